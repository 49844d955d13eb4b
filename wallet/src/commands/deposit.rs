use bitcoin::consensus::encode;
use spark_wallet::{Wallet, flow::Funding, state::DepositState};

use super::{Printer, qr_code, refused};
use crate::{
    cli::Deposit,
    output::{
        Address, CommandError, DepositClaimed, DepositFailed, DepositInfo, DepositRefunded, List,
        StaticOutputInfo, explain,
    },
};

const UNCONFIRMED: &str =
    "unconfirmed: whoever pays can still replace it; then claim the transaction that takes its place";

const ONLY_BACK: &str = "note: what comes to a static address cannot be credited on Spark yet: `deposit refund` takes it \
back on chain, for a fee. To have it on Spark, use `deposit address` without --static";

pub(super) async fn run(wallet: &Wallet, command: Deposit, printer: Printer) -> Result<(), CommandError> {
    match command {
        Deposit::Address { qr, is_static: true, rotate } => {
            let address =
                if rotate { wallet.rotate_static_address().await? } else { wallet.static_address().await? };
            let qr = if qr { Some(qr_code(&address.address)?) } else { None };
            eprintln!("{ONLY_BACK}");
            printer.show(&Address { address: address.address, leaf_id: None, qr })
        }
        Deposit::Refund { outpoint, to, fee_rate } => {
            let refunded = wallet.refund_static(&outpoint, &to, fee_rate).await?;
            printer.show(&DepositRefunded {
                txid: refunded.tx.compute_txid().to_string(),
                amount_sats: refunded.value.to_sat(),
                fee_sats: refunded.fee.to_sat(),
                tx: encode::serialize_hex(&refunded.tx),
                broadcast: refunded.broadcast,
            })
        }
        Deposit::List { is_static: true } => {
            let items = wallet.static_outputs().await?.into_iter().map(|output| StaticOutputInfo {
                address: output.address,
                outpoint: output.spend.outpoint.to_string(),
                amount_sats: output.spend.txout.value.to_sat(),
                confirmed: output.confirmed,
                unspent: output.unspent,
            });
            printer.show(&List::<StaticOutputInfo> { items: items.collect() })
        }
        Deposit::Address { qr, .. } => {
            let record = wallet.deposit_address().await?;
            let qr = if qr { Some(qr_code(&record.address)?) } else { None };
            printer.show(&Address { address: record.address, leaf_id: Some(record.leaf_id), qr })
        }
        Deposit::Claim { address, txid, tx } => {
            let funding = match (txid, tx) {
                (Some(txid), _) => Funding::Txid(txid),
                (None, Some(hex)) => Funding::Transaction(
                    encode::deserialize_hex(&hex)
                        .map_err(|_| CommandError::Usage("--tx is no transaction".into()))?,
                ),
                (None, None) => Funding::Scan,
            };
            claim(wallet, address, &funding, printer).await
        }
        Deposit::List { .. } => {
            let items = wallet
                .deposits()?
                .into_iter()
                .map(|d| DepositInfo {
                    address: d.address,
                    leaf_id: d.leaf_id,
                    state: match d.state {
                        DepositState::Requested => "requested",
                        DepositState::Waiting => "waiting",
                        DepositState::Claiming => "claiming",
                        DepositState::Claimed => "claimed",
                    }
                    .into(),
                    amount_sats: d.amount,
                    outpoint: d.outpoint,
                })
                .collect();
            printer.show(&List::<DepositInfo> { items })
        }
    }
}

async fn claim(
    wallet: &Wallet,
    address: Option<String>,
    funding: &Funding,
    printer: Printer,
) -> Result<(), CommandError> {
    let addresses = match address {
        Some(address) => vec![address],
        None => {
            let open = wallet.deposits()?.into_iter().filter(|d| d.state != DepositState::Claimed);
            open.map(|d| d.address).collect()
        }
    };
    let (mut claimed, mut failed) = (0usize, None);
    let alone = addresses.len() == 1;
    for address in addresses {
        match wallet.claim_deposit(&address, funding).await {
            Ok(None) => {}
            Ok(Some(leaf)) => {
                claimed = claimed.saturating_add(1);
                let warning = leaf.is_unconfirmed().then(|| UNCONFIRMED.to_owned());
                printer.show(&DepositClaimed {
                    leaf_id: leaf.leaf_id,
                    address: leaf.address,
                    amount_sats: leaf.value,
                    status: leaf.status,
                    warning,
                })?;
            }
            // One address does not stop the others.
            Err(error) if alone => return Err(error.into()),
            Err(error) => {
                printer.show(&DepositFailed { address, error: explain(&error) })?;
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) => Err(error.into()),
        None if claimed == 0 => Err(refused("nothing to claim: no confirmed output on a waiting address")),
        None => Ok(()),
    }
}
