//! The keys token while the signer runs. Nothing takes its place: while it is away the signer answers with errors, and
//! goes on when it is back.

use std::sync::Arc;

use tokio::time::MissedTickBehavior;

use super::INTERVAL;
use crate::{metrics::HsmMetrics, token::KeysToken};

/// Looks again and again for a token that did not answer, for ever.
pub async fn tend_keys(token: Arc<KeysToken>, metrics: HsmMetrics) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if metrics.keys_answer() {
            continue;
        }
        let looked = Arc::clone(&token);
        // It ends: every call into the token has a deadline.
        match tokio::task::spawn_blocking(move || looked.revive()).await {
            Ok(Ok(())) => tracing::warn!("the keys token answers again"),
            Ok(Err(error)) => {
                tracing::error!(%error, "the keys token does not answer: no vote, no receipt");
                continue;
            }
            Err(_) => return,
        }
        metrics.keys_answered(Ok(()));
    }
}
