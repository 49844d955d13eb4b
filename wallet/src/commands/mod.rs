//! One function per command.

mod bundle;
mod deposit;
mod doctor;
mod exit;
mod htlc;
mod receive;
mod send;
mod setup;
mod withdraw;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use spark_wallet::{
    Wallet, WalletError,
    config::{Config, PackageKeys},
};

use crate::{
    cli::{Cli, Command},
    output::{Address, CommandError, List, RenewedInfo, Resumed, Show, explain},
};

type Done = Result<ExitCode, CommandError>;

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    json: bool,
}

impl Printer {
    /// One result, one line of JSON or some lines of text.
    pub(crate) fn show(self, value: &impl Show) -> Result<(), CommandError> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{}", value.text())?;
        }
        out.flush()?;
        Ok(())
    }

    pub(crate) const fn is_json(self) -> bool {
        self.json
    }
}

/// Runs one command.
pub(crate) async fn run(cli: Cli) -> Done {
    let printer = Printer { json: cli.json };
    match cli.command {
        Command::Create { words } => setup::create(&cli.dir, words, printer),
        Command::Restore { seed_file } => setup::restore(&cli.dir, seed_file.as_deref(), printer).await,
        Command::Doctor => doctor::run(&cli.dir, printer).await,
        command => {
            let mut config = Config::load(&cli.dir).map_err(WalletError::from)?;
            if cli.allow_long_lived_package_keys && config.package_keys == PackageKeys::OneTime {
                config.package_keys = PackageKeys::PreferOneTime;
            }
            with_wallet(Wallet::open_with(&cli.dir, config)?, command, printer).await
        }
    }
}

async fn with_wallet(wallet: Wallet, command: Command, printer: Printer) -> Done {
    match command {
        Command::Address { qr } => {
            let address = wallet.address()?;
            let qr = if qr { Some(qr_code(&address)?) } else { None };
            printer.show(&Address { address, leaf_id: None, qr })?;
        }
        Command::Info => printer.show(&setup::info(&wallet).await?)?,
        Command::Deposit(command) => deposit::run(&wallet, command, printer).await?,
        Command::Balance => printer.show(&wallet.balance().await?)?,
        Command::Send(arguments) => send::run(&wallet, arguments, printer).await?,
        Command::Invoice(arguments) => send::invoice(&wallet, arguments, printer)?,
        Command::Htlc(command) => htlc::run(&wallet, command, printer).await?,
        Command::Withdraw(command) => withdraw::run(&wallet, command, printer).await?,
        Command::Resume => printer.show(&List { items: resume(&wallet).await? })?,
        Command::Receive { wait, until_final, timeout } => {
            return receive::run(
                &wallet,
                receive::Until { comes: wait, is_final: until_final },
                timeout,
                printer,
            )
            .await;
        }
        Command::History => printer.show(&List { items: wallet.history()? })?,
        Command::Leaves => printer.show(&List { items: wallet.sync().await? })?,
        Command::Renew { leaf } => {
            let renewed = match leaf {
                Some(leaf) => vec![wallet.renew(&leaf).await?],
                None => wallet.renew_low().await?,
            };
            let items = renewed
                .into_iter()
                .map(|r| RenewedInfo {
                    path: r.path_name().into(),
                    leaf_id: r.leaf_id,
                    refund_before: r.refund_before,
                    refund_after: r.refund_after,
                })
                .collect();
            printer.show(&List { items })?;
        }
        Command::Exit(command) => exit::run(&wallet, command, printer).await?,
        Command::Bundle(command) => bundle::run(&wallet, command, printer)?,
        Command::Receipts { leaf, wait, timeout } => {
            let leaves = match leaf {
                Some(leaf) => vec![leaf],
                None => wallet.sync().await?.into_iter().map(|v| v.leaf_id).collect(),
            };
            if wait {
                receive::until_final(&wallet, &leaves, timeout, printer).await?;
                return Ok(ExitCode::SUCCESS);
            }
            let mut items = Vec::with_capacity(leaves.len());
            for leaf in leaves {
                items.push(wallet.finality(&leaf).await?);
            }
            printer.show(&List { items })?;
        }
        Command::Verify => {
            let verification = wallet.verify().await?;
            printer.show(&verification)?;
            if !verification.ok {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Create { .. } | Command::Restore { .. } | Command::Doctor => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn resume(wallet: &Wallet) -> Result<Vec<Resumed>, CommandError> {
    let outcomes = wallet.resume_sends().await?;
    Ok(outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Ok(sent) => Resumed { transfer_id: sent.transfer_id, sent: true, error: None },
            Err((transfer_id, error)) => Resumed { transfer_id, sent: false, error: Some(explain(&error)) },
        })
        .collect())
}

/// A QR code of half blocks.
pub(crate) fn qr_code(text: &str) -> Result<String, CommandError> {
    let code = qrcode::QrCode::new(text).map_err(|e| CommandError::Usage(e.to_string()))?;
    Ok(code.render::<qrcode::render::unicode::Dense1x2>().build())
}

pub(crate) fn refused(text: impl Into<String>) -> CommandError {
    WalletError::Refused(text.into()).into()
}
