//! `htlc`.

use spark_wallet::Wallet;

use super::{Printer, receive::describe, send::address};
use crate::{
    cli::Htlc,
    output::{CommandError, HtlcInfo, List},
};

pub(super) async fn run(wallet: &Wallet, command: Htlc, printer: Printer) -> Result<(), CommandError> {
    match command {
        Htlc::Create { to, amount, payment_hash, expires, id } => {
            let own = payment_hash.is_none();
            let to = address(&to)?;
            let htlc = wallet
                .send_for_preimage(&to, amount.get(), payment_hash.map(|hash| hash.0), expires, id)
                .await?;
            let preimage = match htlc.sent.transfer_id.parse() {
                Ok(id) if own => Some(hex::encode(*wallet.preimage(&id)?)),
                _ => None,
            };
            printer.show(&HtlcInfo {
                transfer_id: htlc.sent.transfer_id,
                amount_sats: htlc.sent.amount,
                receiver: htlc.sent.receiver,
                payment_hash: hex::encode(htlc.payment_hash),
                preimage,
            })
        }
        Htlc::Claim { preimage, amount } => {
            let claimed = wallet.claim_htlc(&preimage.0, amount.get()).await?;
            printer.show(&describe(wallet, claimed).await)
        }
        Htlc::Exit { id, to, fee_rate } => {
            let leaves = wallet.htlc_exit(&id.to_string(), &to, fee_rate)?;
            printer.show(&List { items: leaves.into_iter().flatten().collect() })
        }
        Htlc::List => printer.show(&List { items: wallet.htlcs().await? }),
    }
}
