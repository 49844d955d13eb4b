//! The keys token while the signer runs. Nothing takes its place: while it is away the signer answers with errors, and
//! goes on when it is back. If every thread that asks it is inside a call that does not come back, only another process
//! can ask it again, so this one ends after a while.

use std::{sync::Arc, time::Duration};

use tokio::time::MissedTickBehavior;

use super::INTERVAL;
use crate::{metrics::HsmMetrics, token::KeysToken};

/// Longest time that the process takes to end by itself: what hangs inside a library may hold up its end, too.
const GRACE: Duration = Duration::from_secs(20);

/// No call into the keys token comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("KEYS_TOKEN_STUCK: no call into the keys token has come back for {0:?}; start the signer again")]
pub struct KeysStuck(pub Duration);

impl KeysStuck {
    /// Exit code of the process, EX_TEMPFAIL of sysexits(3): another start may help.
    pub const EXIT: u8 = 75;
}

/// Looks again and again for a token that did not answer. Ends when all of its threads were lost for `end_after`, if that
/// is not zero; the process is then to end, and is ended if it does not.
pub async fn tend_keys(token: Arc<KeysToken>, metrics: HsmMetrics, end_after: Duration) -> KeysStuck {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let stuck = token.stuck_for();
        metrics.keys_stuck(stuck.unwrap_or_default());
        if let Some(stuck) = stuck.filter(|stuck| !end_after.is_zero() && *stuck >= end_after) {
            let error = KeysStuck(stuck);
            tracing::error!(%error, "the process ends");
            end_in(GRACE);
            return error;
        }
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
            // The runtime ends.
            Err(_) => std::future::pending().await,
        }
        metrics.keys_answered(Ok(()));
    }
}

/// Aborts the process, if it is still there then.
fn end_in(grace: Duration) {
    let watchdog = std::thread::Builder::new().name("end".into()).spawn(move || {
        std::thread::sleep(grace);
        std::process::abort();
    });
    if watchdog.is_err() {
        std::process::abort();
    }
}
