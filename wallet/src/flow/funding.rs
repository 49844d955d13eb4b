//! The money on a deposit address.

use std::cmp::Reverse;

use bitcoin::{Transaction, Txid};
use spark_rules::tx::{MAX_ROOT_INPUTS, Spend};

use crate::{Wallet, WalletError, state::DepositRecord, verify::VerifyError};

/// How the wallet finds the money on a deposit address.
#[derive(Debug, Clone)]
pub enum Funding {
    /// The funding transaction itself, confirmed or not.
    Transaction(Transaction),
    /// Its id; bitcoind is asked for it.
    Txid(Txid),
    /// bitcoind's set of unspent outputs is searched: confirmed outputs only.
    Scan,
}

/// An output on a deposit address, and the transaction that has it.
pub(super) type Funded = (Spend, Transaction);

/// Those outputs that a root collects: the most valuable ones. An address is used up with its first leaf, so
/// whoever pays dust to it must not push out the money.
pub(super) fn most_valuable(mut outputs: Vec<Funded>) -> Vec<Funded> {
    // The order is fixed, so that a repeat asks for the same root.
    outputs.sort_by_key(|(spend, _)| (Reverse(spend.txout.value), spend.outpoint));
    outputs.dedup_by_key(|(spend, _)| spend.outpoint);
    outputs.truncate(MAX_ROOT_INPUTS);
    outputs
}

/// All outputs of `tx` that pay `script`.
fn paying(tx: &Transaction, script: &bitcoin::ScriptBuf) -> Vec<Funded> {
    (0u32..)
        .take(tx.output.len())
        .filter_map(|vout| Spend::of(tx, vout))
        .filter(|spend| spend.txout.script_pubkey == *script)
        .map(|spend| (spend, tx.clone()))
        .collect()
}

impl Wallet {
    /// What a claim of this address collects: of a named transaction all that it pays there, and whatever else
    /// bitcoind knows there to be confirmed.
    pub(super) async fn funding_outputs(
        &self,
        record: &DepositRecord,
        funding: &Funding,
    ) -> Result<Vec<Funded>, WalletError> {
        let tx = match funding {
            Funding::Transaction(tx) => tx.clone(),
            Funding::Txid(txid) => {
                let tx = self.chain()?.transaction(txid).await?;
                tx.ok_or_else(|| WalletError::Refused(format!("bitcoind does not know {txid}")))?
            }
            Funding::Scan => return Ok(most_valuable(self.scanned_outputs(record).await?)),
        };
        let script = record
            .address
            .parse::<bitcoin::Address<_>>()
            .map_err(|_| VerifyError::Address)?
            .assume_checked()
            .script_pubkey();
        let named = paying(&tx, &script);
        if named.is_empty() {
            return Err(WalletError::Refused(format!("the transaction does not pay {}", record.address)));
        }
        let mut outputs = named.clone();
        if self.chain_if_any().is_some() {
            outputs.extend(self.scanned_outputs(record).await?);
        }
        let chosen = most_valuable(outputs);
        let left_out = |(spend, _): &Funded| !chosen.iter().any(|(c, _)| c.outpoint == spend.outpoint);
        if named.iter().all(left_out) {
            return Err(WalletError::Refused(format!(
                "{} has more valuable outputs than those of the transaction; claim without naming one",
                record.address
            )));
        }
        Ok(chosen)
    }

    async fn scanned_outputs(&self, record: &DepositRecord) -> Result<Vec<Funded>, WalletError> {
        let mut unspent = self.chain()?.scan(&record.address).await?;
        // Only these are fetched: whoever pays a thousand outputs of dust costs no thousand calls.
        unspent.sort_by_key(|u| (Reverse(u.txout.value), u.outpoint));
        let mut outputs = Vec::new();
        for unspent in unspent.into_iter().take(MAX_ROOT_INPUTS) {
            let tx = self.chain()?.transaction(&unspent.outpoint.txid).await?;
            let tx = tx.ok_or_else(|| {
                WalletError::Refused(format!(
                    "bitcoind cannot show {}: it needs -txindex",
                    unspent.outpoint.txid
                ))
            })?;
            outputs.push((Spend { outpoint: unspent.outpoint, txout: unspent.txout }, tx));
        }
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{Amount, ScriptBuf, TxOut, absolute::LockTime, hashes::Hash as _, transaction::Version};
    use proptest::prelude::*;

    fn script() -> ScriptBuf {
        ScriptBuf::from_bytes(vec![0x51])
    }

    fn tx(values: &[u64]) -> Transaction {
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: Vec::new(),
            output: values
                .iter()
                .map(|v| TxOut { value: Amount::from_sat(*v), script_pubkey: script() })
                .collect(),
        }
    }

    proptest! {
        /// Whatever dust lies on an address, nothing more valuable than what is collected is left over.
        #[test]
        fn dust_never_pushes_money_out(values in prop::collection::vec(330u64..100_000, 1..40)) {
            let tx = tx(&values);
            let all = paying(&tx, &script());
            prop_assert_eq!(all.len(), values.len());
            let chosen = most_valuable(all.iter().cloned().chain(all.iter().cloned()).collect());
            prop_assert_eq!(chosen.len(), values.len().min(MAX_ROOT_INPUTS));
            let least = chosen.iter().map(|(s, _)| s.txout.value).min().unwrap();
            let left = all.iter().filter(|(s, _)| !chosen.iter().any(|(c, _)| c.outpoint == s.outpoint));
            for (spend, _) in left {
                prop_assert!(spend.txout.value <= least);
            }
        }
    }

    #[test]
    fn only_outputs_of_the_address_count() {
        let mut tx = tx(&[1000, 2000, 3000]);
        tx.output[1].script_pubkey = ScriptBuf::from_bytes(vec![0x52]);
        let vouts: Vec<u32> = paying(&tx, &script()).iter().map(|(s, _)| s.outpoint.vout).collect();
        assert_eq!(vouts, [0, 2]);
        assert_ne!(tx.compute_txid(), Txid::all_zeros());
    }
}
