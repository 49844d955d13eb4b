use std::{
    collections::BTreeSet,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use spark_wallet::{Wallet, WalletError, flow::Claimed, flow::Notice, receipts::Finality};

use super::{Done, Printer};
use crate::output::{CommandError, Received, explain};

/// Events only hint; without one this wallet looks by itself.
const POLL: Duration = Duration::from_secs(10);

/// What to wait for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until {
    /// That something comes.
    pub(super) comes: bool,
    /// That what was claimed is final.
    pub(super) is_final: bool,
}

/// Longest wait.
fn patience(seconds: u64) -> Duration {
    Duration::from_secs(seconds.min(86_400 * 365))
}

pub(super) async fn run(wallet: &Wallet, until: Until, timeout: u64, printer: Printer) -> Done {
    let wait = until.comes;
    let end = Instant::now() + patience(timeout);
    let mut leaves = Vec::new();
    for outcome in wallet.resume_claims().await? {
        match outcome {
            Ok(claimed) => {
                leaves.extend_from_slice(&claimed.leaves);
                printer.show(&describe(wallet, claimed).await)?;
            }
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
                    leaves.extend_from_slice(&transfer.leaves);
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
            _ if claimed > 0 || !wait => break,
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
    if until.is_final && !leaves.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        until_final(wallet, &leaves, left.as_secs(), printer).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows how leaves become final, until all operators are clean for all of them. Where the time ends before that, it is
/// enough that they are final.
pub(super) async fn until_final(
    wallet: &Wallet,
    leaves: &[String],
    timeout: u64,
    printer: Printer,
) -> Result<(), CommandError> {
    let mut failed = Ok(());
    let show = |finality: &Finality| {
        if failed.is_ok() {
            failed = printer.show(finality);
        }
    };
    let leaves = wallet.until_final(leaves, patience(timeout), show).await?;
    failed?;
    if leaves.iter().all(Finality::is_safe) {
        return Ok(());
    }
    Err(CommandError::Unavailable(format!("not final within {timeout} seconds")))
}

fn failure(transfer_id: String, error: &WalletError) -> Received {
    Received {
        transfer_id,
        amount_sats: None,
        sender: None,
        leaves: Vec::new(),
        state: "received".to_owned(),
        finality: Vec::new(),
        error: Some(explain(error)),
    }
}

pub(super) async fn describe(wallet: &Wallet, claimed: Claimed) -> Received {
    let mut finality = Vec::new();
    for leaf in &claimed.leaves {
        match wallet.finality(leaf).await {
            Ok(verdict) => finality.push(verdict),
            Err(error) => tracing::warn!(leaf, error = explain(&error), "no receipts"),
        }
    }
    let all = finality.len() == claimed.leaves.len() && finality.iter().all(|leaf| leaf.is_final);
    Received {
        state: if all { "final" } else { "claimed" }.to_owned(),
        transfer_id: claimed.transfer_id,
        amount_sats: Some(claimed.amount),
        sender: Some(claimed.sender),
        leaves: claimed.leaves,
        finality,
        error: None,
    }
}
