use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
};

use spark_wallet::{Wallet, WalletError, bundle};

use super::Printer;
use crate::{
    cli::Bundle,
    output::{BundleInfo, CommandError},
};

pub(super) fn run(wallet: &Wallet, command: Bundle, printer: Printer) -> Result<(), CommandError> {
    match command {
        Bundle::Export { file } => {
            let bundle = wallet.export_bundle()?;
            let bytes = serde_json::to_vec_pretty(&bundle).map_err(std::io::Error::from)?;
            let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
            out.write_all(&bytes)?;
            out.sync_all()?;
            printer.show(&BundleInfo { file: file.display().to_string(), leaves: bundle.leaves.len() })
        }
        Bundle::Import { file } => {
            let text = fs::read_to_string(&file)?;
            let bundle = bundle::Bundle::parse(&text).map_err(WalletError::from)?;
            let leaves = wallet.import_bundle(&bundle)?;
            printer.show(&BundleInfo { file: file.display().to_string(), leaves })
        }
    }
}
