use std::{
    io::{self, IsTerminal as _, Read as _},
    path::Path,
    process::ExitCode,
};

use rand::rngs::OsRng;
use spark_wallet::{
    Wallet, WalletError,
    keys::{Phrase, Words},
};
use zeroize::Zeroizing;

use super::{Done, Printer};
use crate::output::{CommandError, Created, Info, OperatorInfo, explain};

/// More than 24 words of any length.
const MAX_INPUT: u64 = 4096;

pub(super) fn create(dir: &Path, words: u8, printer: Printer) -> Done {
    let words = if words == 12 { Words::Twelve } else { Words::TwentyFour };
    let phrase = Phrase::generate(words, &mut OsRng).map_err(WalletError::from)?;
    let wallet = Wallet::create(dir, &phrase)?;
    printer.show(&Created {
        identity: wallet.keys().identity().public_key().to_string(),
        address: wallet.address()?,
        words: Some(phrase.reveal().to_owned()),
        leaves: Vec::new(),
        deposit_addresses: Vec::new(),
        problems: Vec::new(),
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn restore(dir: &Path, seed_file: Option<&Path>, printer: Printer) -> Done {
    let text = match seed_file {
        Some(file) => Zeroizing::new(std::fs::read_to_string(file)?),
        None if io::stdin().is_terminal() => Zeroizing::new(rpassword::prompt_password("Seed words: ")?),
        None => {
            let mut text = Zeroizing::new(String::new());
            io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text)?;
            text
        }
    };
    let phrase = Phrase::parse(&text).map_err(WalletError::from)?;
    let wallet = Wallet::create(dir, &phrase)?;
    // The keys of deposits derive from leaf ids, which only the operators have now.
    let restored = wallet.restore_deposits().await?;
    printer.show(&Created {
        identity: wallet.keys().identity().public_key().to_string(),
        address: wallet.address()?,
        words: None,
        leaves: wallet.sync().await?,
        deposit_addresses: restored.addresses,
        problems: restored.problems,
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn info(wallet: &Wallet) -> Result<Info, CommandError> {
    let config = wallet.config();
    let key = wallet.keys().identity();
    let logins = wallet.operators().each(|o| o.login(key)).await;
    let operators = logins
        .into_iter()
        .zip(&config.endpoints)
        .zip(config.federation.members())
        .map(|(((index, login), endpoint), member)| OperatorInfo {
            index: index.get(),
            identity: member.identity.to_string(),
            endpoint: format!("https://{}:{}", endpoint.host, endpoint.port),
            reachable: login.is_ok(),
            error: login.err().map(|e| explain(&e)),
        })
        .collect();
    Ok(Info {
        network: config.network.name().to_ascii_lowercase(),
        identity: key.public_key().to_string(),
        address: wallet.address()?,
        account: config.account,
        fee_address: wallet.exit_fee_address()?,
        federation_hash: hex::encode(config.federation.hash()),
        threshold: config.federation.threshold(),
        coordinator: config.coordinator.get(),
        operators,
    })
}
