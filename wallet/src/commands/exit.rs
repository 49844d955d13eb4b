use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressStyle};
use spark_wallet::{
    Wallet, WalletError,
    exit::{ExitStatus, FeePolicy},
};

use super::{Printer, refused};
use crate::{
    cli::Exit,
    output::{CommandError, List, Show as _},
};

/// Longest wait for one block before looking again.
const WAIT_SECONDS: u64 = 30;

pub(super) async fn run(wallet: &Wallet, command: Exit, printer: Printer) -> Result<(), CommandError> {
    match command {
        Exit::Plan { leaf, fee_rate } => printer.show(&wallet.exit_plan(&leaf, fee_rate).await?),
        Exit::Start { leaf, to, fee_rate, force, yes, wait } => {
            if !yes {
                let plan = wallet.exit_plan(&leaf, fee_rate).await?;
                ask(&plan.text(), printer)?;
            }
            wallet.exit_start(&leaf, &to, fee_rate, force).await?;
            go_on(wallet, &leaf, fee_rate, wait, printer).await
        }
        Exit::Status { leaf } => {
            let leaves = match leaf {
                Some(leaf) => vec![leaf],
                None => wallet.exits()?.into_iter().map(|e| e.leaf_id).collect(),
            };
            let mut items = Vec::with_capacity(leaves.len());
            for leaf in leaves {
                items.push(wallet.exit_status(&leaf).await?);
            }
            printer.show(&List { items })
        }
        Exit::Resume { leaf, fee_rate, wait } => go_on(wallet, &leaf, fee_rate, wait, printer).await,
    }
}

/// Shows every change; with `wait` until the money has arrived.
async fn go_on(
    wallet: &Wallet,
    leaf: &str,
    fee_rate: Option<u64>,
    wait: bool,
    printer: Printer,
) -> Result<(), CommandError> {
    let bar =
        if wait && !printer.is_json() && io::stderr().is_terminal() { bar() } else { ProgressBar::hidden() };
    let fee = match fee_rate {
        Some(rate) => FeePolicy::Rate(rate),
        // Whoever waits here wants it to end, also when blocks get dearer meanwhile.
        None if wait => FeePolicy::Follow,
        None => FeePolicy::Estimate,
    };
    let mut shown: Option<ExitStatus> = None;
    loop {
        let status = wallet.exit_advance(leaf, fee).await?;
        // Counting blocks is for the bar; objects are for steps.
        if shown.as_ref().is_none_or(|s| phases(s) != phases(&status)) {
            bar.suspend(|| printer.show(&status))?;
        }
        if status.done || !wait {
            bar.finish_and_clear();
            return Ok(());
        }
        let left = u64::from(status.blocks_left);
        if bar.length().is_none_or(|total| total < left) {
            bar.set_length(left);
        }
        bar.set_position(bar.length().unwrap_or(left).saturating_sub(left));
        shown = Some(status);
        wallet
            .chain()
            .map_err(WalletError::from)?
            .wait_for_block(WAIT_SECONDS)
            .await
            .map_err(WalletError::from)?;
    }
}

fn phases(status: &ExitStatus) -> Vec<(spark_wallet::exit::StepState, Option<bitcoin::Txid>)> {
    let steps = status.steps.iter().map(|s| (s.state, s.child_txid));
    steps.chain([(status.sweep_state, status.sweep_txid)]).collect()
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} blocks of timelocks, {elapsed}") {
        bar.set_style(style);
    }
    bar
}

fn ask(plan: &str, printer: Printer) -> Result<(), CommandError> {
    if printer.is_json() || !io::stdin().is_terminal() {
        return Err(CommandError::Usage("an exit needs --yes where nobody can be asked".into()));
    }
    println!("{plan}");
    print!("Leave to the chain? This cannot be undone. [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if answer.trim().eq_ignore_ascii_case("y") { Ok(()) } else { Err(refused("not confirmed")) }
}
