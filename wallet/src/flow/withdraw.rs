//! Withdrawals: leaves go to a provider on condition that its payment on chain confirms.

use bitcoin::{ScriptBuf, Transaction, consensus::encode};
use serde::{Deserialize, Serialize};
use spark_proto::spark::{Transfer, TransferStatus, transfer_filter::Participant};
use spark_rules::{address::SparkAddress, tx::Connectors};
use uuid::Uuid;

use super::{order::Order, send::Sent};
use crate::{
    Wallet, WalletError,
    state::{ExitTerms, SendRecord, SendState},
    wallet::now,
};

/// What a provider offers for leaves. None of it is believed: the transactions say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitOffer {
    /// Who gets the leaves.
    pub provider: SparkAddress,
    /// Satoshis of the leaves together.
    pub amount: u64,
    /// The transaction that pays, signed or not.
    pub exit_tx: Transaction,
    /// The transaction that spends an output of it, with an output for each leaf and one more.
    pub connector_tx: Transaction,
    /// Where this wallet wants its money.
    pub destination: ScriptBuf,
    /// Satoshis that must come there in one output.
    pub payout: u64,
    /// Seconds after which the leaves come back, if the payment is not there; operators make six blocks of it at least.
    pub expires_in: u64,
}

/// A withdrawal of this wallet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    /// UUID.
    pub transfer_id: String,
    /// Satoshis of the leaves.
    pub amount_sats: u64,
    /// Satoshis that come on chain.
    pub payout_sats: u64,
    /// The transaction that pays.
    pub exit_txid: String,
    /// "pending", "settled" or "returned", as all operators say; "unclear" where they differ.
    pub status: String,
}

impl Wallet {
    /// How many leaves a withdrawal of `amount` takes now: as many connectors must be offered.
    pub async fn withdrawal_leaves(&self, amount: u64) -> Result<usize, WalletError> {
        let payee = (self.keys().identity().public_key().to_string(), amount);
        let parts = self.choose(&[payee]).await?;
        Ok(parts.iter().map(|part| part.leaves.len()).sum())
    }

    /// Gives leaves for a payment on chain. Nothing is signed unless the exit transaction pays what is asked for, and
    /// the refunds that the provider gets need it to be in a block. The same `id` is the same withdrawal.
    pub async fn withdraw(&self, offer: &ExitOffer, id: Option<Uuid>) -> Result<Sent, WalletError> {
        self.check_receiver(&offer.provider)?;
        let connectors = offer.check().map_err(|why| WalletError::Refused(why.into()))?;
        let raw = encode::serialize(&offer.connector_tx);
        if id.is_none_or(|id| !self.is_known(&id)) && self.withdrawal_leaves(offer.amount).await? > connectors
        {
            return Err(WalletError::Refused("the offer has fewer connectors than leaves".into()));
        }
        let terms = ExitTerms {
            exit_txid: offer.exit_tx.compute_txid().to_string(),
            connector_tx: hex::encode(raw),
            destination: hex::encode(offer.destination.as_bytes()),
            payout: offer.payout,
            expires: now().saturating_add(offer.expires_in),
            steps: Vec::new(),
        };
        let payees = vec![(offer.provider.identity.to_string(), offer.amount)];
        let order = Order { payees, invoice: String::new(), htlc: None, exit: Some(terms) };
        self.start_send(order, id).await
    }

    fn is_known(&self, id: &Uuid) -> bool {
        let id = id.as_hyphenated().to_string();
        self.state().get::<SendRecord>(&id).is_ok_and(|found| found.is_some())
    }

    /// What became of withdrawals. Settled ones are marked as gone.
    pub async fn withdrawals(&self) -> Result<Vec<Withdrawal>, WalletError> {
        let mut views = Vec::new();
        let sender = self.keys().identity().public_key().serialize();
        for record in self.state().all::<SendRecord>()? {
            let Some(terms) = record.exit.as_ref().filter(|_| record.state == SendState::Done) else {
                continue;
            };
            let participant = Participant::SenderIdentityPublicKey(sender.to_vec());
            let answers = self.transfer_everywhere(&record.transfer_id, &participant).await;
            let seen: Option<Vec<&Transfer>> =
                answers.iter().map(|(_, answer)| answer.as_ref().ok().and_then(Option::as_ref)).collect();
            let status = seen.map_or("unclear", |seen| agreed(&seen));
            if status == "settled" {
                self.forget_sent(&record)?;
            }
            views.push(Withdrawal {
                transfer_id: record.transfer_id.clone(),
                amount_sats: record.amount,
                payout_sats: terms.payout,
                exit_txid: terms.exit_txid.clone(),
                status: status.into(),
            });
        }
        Ok(views)
    }
}

/// What all operators say of a transfer.
fn agreed(seen: &[&Transfer]) -> &'static str {
    let of = |transfer: &&Transfer| match transfer.status() {
        TransferStatus::SenderKeyTweakPending => "pending",
        TransferStatus::Returned => "returned",
        TransferStatus::SenderKeyTweaked
        | TransferStatus::ReceiverKeyTweaked
        | TransferStatus::ReceiverKeyTweakLocked
        | TransferStatus::ReceiverKeyTweakApplied
        | TransferStatus::ReceiverRefundSigned
        | TransferStatus::Completed => "settled",
        _ => "unclear",
    };
    let first = seen.first().map_or("unclear", of);
    if seen.iter().all(|transfer| of(transfer) == first) { first } else { "unclear" }
}

impl ExitOffer {
    /// Whether the transactions do what is asked for. Returns the number of connectors.
    fn check(&self) -> Result<usize, &'static str> {
        let txid = self.exit_tx.compute_txid();
        let connectors = Connectors::parse(&encode::serialize(&self.connector_tx))
            .map_err(|_| "the connector transaction is none")?;
        let exit = connectors.exit();
        let spent = usize::try_from(exit.vout).ok().and_then(|vout| self.exit_tx.output.get(vout));
        if exit.txid != txid || spent.is_none() {
            return Err("the connector transaction does not spend the exit transaction");
        }
        // What the connectors stand on is the provider's, even where it has the same script.
        let paid = (0u32..).zip(&self.exit_tx.output).any(|(vout, output)| {
            vout != exit.vout
                && output.script_pubkey == self.destination
                && output.value.to_sat() >= self.payout
        });
        if !paid || self.payout == 0 {
            return Err("the exit transaction does not pay the address that was asked for");
        }
        // What is signed in a script can be changed by anybody, and the id with it.
        if self.exit_tx.input.is_empty()
            || self.exit_tx.input.iter().any(|input| !input.script_sig.is_empty())
        {
            return Err("the exit transaction has inputs that may change its id");
        }
        Ok(connectors.outputs().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{
        Amount, OutPoint, Sequence, TxIn, TxOut, Txid, Witness, absolute::LockTime, hashes::Hash as _,
        transaction::Version,
    };

    fn tx(spends: OutPoint, outputs: &[(&ScriptBuf, u64)]) -> Transaction {
        Transaction {
            version: Version(3),
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: spends,
                script_sig: ScriptBuf::new(),
                sequence: Sequence::MAX,
                witness: Witness::new(),
            }],
            output: outputs
                .iter()
                .map(|(script, sats)| TxOut {
                    value: Amount::from_sat(*sats),
                    script_pubkey: (*script).clone(),
                })
                .collect(),
        }
    }

    fn script(n: u8) -> ScriptBuf {
        ScriptBuf::from_bytes(vec![0x51, 0x02, n, n])
    }

    fn offer() -> ExitOffer {
        let keys = crate::testing::keys();
        let coin = OutPoint { txid: Txid::from_byte_array([7; 32]), vout: 0 };
        let exit_tx = tx(coin, &[(&script(1), 90_000), (&script(2), 1_000)]);
        let connectors = OutPoint { txid: exit_tx.compute_txid(), vout: 1 };
        ExitOffer {
            provider: SparkAddress {
                network: spark_rules::address::Network::Regtest,
                identity: keys.identity().public_key(),
                invoice: None,
                signature: None,
            },
            amount: 100_000,
            connector_tx: tx(connectors, &[(&script(3), 354), (&script(3), 354), (&script(3), 200)]),
            exit_tx,
            destination: script(1),
            payout: 90_000,
            expires_in: 3_600,
        }
    }

    /// A provider that pays somebody else, less, or by a transaction that is not the one under the connectors.
    #[test]
    fn an_offer_is_what_its_transactions_say() {
        assert_eq!(offer().check(), Ok(2));
        let refused = |change: &dyn Fn(&mut ExitOffer)| {
            let mut changed = offer();
            change(&mut changed);
            changed.check().unwrap_err()
        };
        let unpaid = "the exit transaction does not pay the address that was asked for";
        assert_eq!(refused(&|o| o.destination = script(9)), unpaid);
        assert_eq!(refused(&|o| o.payout = 90_001), unpaid);
        assert_eq!(refused(&|o| o.payout = 0), unpaid);
        // The output under the connectors is the provider's to spend.
        assert_eq!(refused(&|o| (o.destination, o.payout) = (script(2), 1_000)), unpaid);
        let apart = "the connector transaction does not spend the exit transaction";
        assert_eq!(refused(&|o| o.exit_tx.output[0].value = Amount::from_sat(90_001)), apart);
        assert_eq!(refused(&|o| o.connector_tx.input[0].previous_output.vout = 2), apart);
        assert_eq!(refused(&|o| o.connector_tx.output.truncate(1)), "the connector transaction is none");
        let malleable = |o: &mut ExitOffer| {
            o.exit_tx.input[0].script_sig = script(4);
            o.connector_tx.input[0].previous_output.txid = o.exit_tx.compute_txid();
        };
        assert_eq!(refused(&malleable), "the exit transaction has inputs that may change its id");
    }
}
