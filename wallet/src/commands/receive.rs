use std::{
    collections::BTreeSet,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use spark_wallet::{Wallet, WalletError, flow::Claimed, flow::Notice};

use super::{Done, Printer};
use crate::output::{CommandError, Received, explain};

/// Events only hint; without one this wallet looks by itself.
const POLL: Duration = Duration::from_secs(10);

pub(super) async fn run(wallet: &Wallet, wait: bool, timeout: u64, printer: Printer) -> Done {
    let end = Instant::now() + Duration::from_secs(timeout.min(86_400 * 365));
    for outcome in wallet.resume_claims().await? {
        match outcome {
            Ok(claimed) => printer.show(&describe(wallet, claimed).await)?,
            // An old one that cannot be finished does not keep new ones away.
            Err((id, error)) => printer.show(&failure(id, &error))?,
        }
    }
    // Subscribed before looking, so that nothing falls between.
    let mut events = if wait { Some(Box::pin(wallet.events().await?)) } else { None };
    let mut shown = BTreeSet::new();
    loop {
        let mut failed: Option<WalletError> = None;
        let mut claimed = 0usize;
        for outcome in wallet.receive().await? {
            match outcome {
                Ok(transfer) => {
                    claimed = claimed.saturating_add(1);
                    printer.show(&describe(wallet, transfer).await)?;
                }
                Err((transfer_id, error)) => {
                    let failure = failure(transfer_id, &error);
                    // While waiting the same trouble is told once.
                    if shown.insert((failure.transfer_id.clone(), failure.error.clone())) {
                        printer.show(&failure)?;
                    }
                    failed = Some(error);
                }
            }
        }
        match failed {
            // Its text has been shown with the transfer.
            Some(error) if !wait => {
                return Ok(ExitCode::from(CommandError::from(error).exit_code()));
            }
            _ if claimed > 0 || !wait => return Ok(ExitCode::SUCCESS),
            _ => {}
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CommandError::Unavailable(format!("nothing came within {timeout} seconds")));
        }
        let wake = tokio::time::sleep(left.min(POLL));
        tokio::pin!(wake);
        loop {
            let Some(stream) = events.as_mut() else {
                wake.as_mut().await;
                break;
            };
            tokio::select! {
                () = &mut wake => break,
                event = stream.next() => match event {
                    Some(Ok(Notice::Alive)) => {}
                    Some(Ok(Notice::Transfer | Notice::Deposit)) => break,
                    // The stream ended; polling goes on, and a new stream is tried with the next round.
                    Some(Err(_)) | None => events = None,
                },
            }
        }
        if events.is_none() {
            events = wallet.events().await.ok().map(Box::pin);
        }
    }
}

fn failure(transfer_id: String, error: &WalletError) -> Received {
    Received {
        transfer_id,
        amount_sats: None,
        sender: None,
        leaves: Vec::new(),
        finality: Vec::new(),
        error: Some(explain(error)),
    }
}

async fn describe(wallet: &Wallet, claimed: Claimed) -> Received {
    let mut finality = Vec::new();
    for leaf in &claimed.leaves {
        match wallet.finality(leaf).await {
            Ok(verdict) => finality.push(verdict),
            Err(error) => tracing::warn!(leaf, error = explain(&error), "no receipts"),
        }
    }
    Received {
        transfer_id: claimed.transfer_id,
        amount_sats: Some(claimed.amount),
        sender: Some(claimed.sender),
        leaves: claimed.leaves,
        finality,
        error: None,
    }
}
