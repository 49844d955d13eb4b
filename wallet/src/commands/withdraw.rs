//! `withdraw`.

use bitcoin::{Address, Transaction, address::NetworkUnchecked, consensus::encode};
use spark_wallet::{Wallet, WalletError, flow::ExitOffer};

use super::{
    Printer,
    send::{address, describe},
};
use crate::{
    cli::Withdraw,
    output::{CommandError, List, WithdrawalPlan},
};

pub(super) async fn run(wallet: &Wallet, command: Withdraw, printer: Printer) -> Result<(), CommandError> {
    match command {
        Withdraw::Plan { amount } => {
            let connectors = wallet.withdrawal_leaves(amount.get()).await?;
            printer.show(&WithdrawalPlan { amount_sats: amount.get(), connectors })
        }
        Withdraw::Make { amount, to, payout, provider, exit_tx, connector_tx, expires, id } => {
            let refused = |why: &str| WalletError::Refused(why.into());
            let to: Address<NetworkUnchecked> = to.parse().map_err(|_| refused("--to is no address"))?;
            let to = to
                .require_network(wallet.config().network.bitcoin())
                .map_err(|_| refused("--to is an address of another network"))?;
            let offer = ExitOffer {
                provider: address(&provider)?,
                amount: amount.get(),
                exit_tx: transaction(&exit_tx).ok_or_else(|| refused("--exit-tx is no transaction"))?,
                connector_tx: transaction(&connector_tx)
                    .ok_or_else(|| refused("--connector-tx is no transaction"))?,
                destination: to.script_pubkey(),
                payout: payout.get(),
                expires_in: expires,
            };
            printer.show(&describe(wallet.withdraw(&offer, id).await?))
        }
        Withdraw::List => printer.show(&List { items: wallet.withdrawals().await? }),
    }
}

fn transaction(text: &str) -> Option<Transaction> {
    encode::deserialize(&hex::decode(text).ok()?).ok()
}
