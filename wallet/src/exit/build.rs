use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    transaction::Version,
};
use rand::rngs::OsRng;
use spark_rules::tx::{ANCHOR_SCRIPT, SighashError, Spend, attach_signature, sighash};

use crate::keys::{KeyError, SigningKey};

/// Least value of an output that every node relays, in satoshis, whatever its type.
const DUST: u64 = 546;

/// A child that cannot pay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChildError {
    /// The parent has no anchor.
    #[error("the parent has no anchor output")]
    NoAnchor,
    /// After the fee less than the dust limit remains.
    #[error("{available} sat cannot pay a fee of {fee} sat")]
    TooSmall {
        /// Value of the child's inputs.
        available: u64,
        /// Fee of the package.
        fee: u64,
    },
    /// The child cannot be hashed.
    #[error(transparent)]
    Sighash(#[from] SighashError),
    /// The child cannot be signed.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A signed child and what it pays for itself and its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Spends `money`, and the parent's anchor where there is one.
    pub tx: Transaction,
    /// Satoshis.
    pub fee: u64,
}

impl Child {
    /// A child of `parent` that moves `money` (P2TR of `key`) to `destination`, less the fee of both at
    /// `fee_rate` sat/vB.
    pub fn build(
        parent: &Transaction,
        money: &Spend,
        key: &SigningKey,
        destination: ScriptBuf,
        fee_rate: u64,
    ) -> Result<Self, ChildError> {
        let vout = parent.output.iter().position(|o| o.script_pubkey.as_bytes() == ANCHOR_SCRIPT);
        let vout = vout.and_then(|v| u32::try_from(v).ok()).ok_or(ChildError::NoAnchor)?;
        let anchor = Spend::of(parent, vout).ok_or(ChildError::NoAnchor)?;
        let above = size(parent).saturating_mul(fee_rate);
        Self::spend(&[money.clone(), anchor], key, destination, fee_rate, above, Version(3))
    }

    /// A child of `parent`, which has no anchor and pays `paid` itself: what that lacks of `fee_rate` comes on top.
    pub fn of_direct(
        parent: &Transaction,
        paid: u64,
        money: &Spend,
        key: &SigningKey,
        destination: ScriptBuf,
        fee_rate: u64,
    ) -> Result<Self, ChildError> {
        let above = size(parent).saturating_mul(fee_rate).saturating_sub(paid);
        Self::spend(std::slice::from_ref(money), key, destination, fee_rate, above, Version(3))
    }

    /// Moves confirmed `money` (P2TR of `key`) to `destination`, less its own fee.
    pub fn sweep(
        money: &Spend,
        key: &SigningKey,
        destination: ScriptBuf,
        fee_rate: u64,
    ) -> Result<Self, ChildError> {
        Self::spend(std::slice::from_ref(money), key, destination, fee_rate, 0, Version::TWO)
    }

    /// Spends `inputs`, the first of which is `key`'s and the others nobody's, into one output. `above` is what is
    /// paid for an ancestor.
    fn spend(
        inputs: &[Spend],
        key: &SigningKey,
        destination: ScriptBuf,
        fee_rate: u64,
        above: u64,
        version: Version,
    ) -> Result<Self, ChildError> {
        let available = inputs.iter().fold(0u64, |sum, i| sum.saturating_add(i.txout.value.to_sat()));
        let mut tx = Transaction {
            version,
            lock_time: LockTime::ZERO,
            input: inputs.iter().map(|spend| input(spend.outpoint)).collect(),
            output: vec![TxOut { value: Amount::from_sat(available), script_pubkey: destination }],
        };
        // The signature has 64 bytes whatever it signs, so the size is known before.
        attach_signature(&mut tx, 0, [0; 64])?;
        let fee = size(&tx).saturating_mul(fee_rate).saturating_add(above);
        let rest = available.checked_sub(fee).filter(|rest| *rest >= DUST);
        let rest = rest.ok_or(ChildError::TooSmall { available, fee })?;
        for output in &mut tx.output {
            output.value = Amount::from_sat(rest);
        }
        let prevouts: Vec<TxOut> = inputs.iter().map(|spend| spend.txout.clone()).collect();
        let message = sighash(&tx, &prevouts, 0)?;
        let signature = key.sign_taproot(message, &mut OsRng)?;
        attach_signature(&mut tx, 0, signature)?;
        Ok(Self { tx, fee })
    }

    /// Fee of `parent` with a child of the usual size.
    pub fn fee(parent: &Transaction, fee_rate: u64) -> u64 {
        // Two inputs, one with a signature of 64 bytes, and one P2TR output.
        const CHILD: u64 = 153;
        size(parent).saturating_add(CHILD).saturating_mul(fee_rate)
    }

    /// Least money that a child of `parent` needs at `fee_rate`.
    pub fn needs(parent: &Transaction, fee_rate: u64) -> u64 {
        Self::fee(parent, fee_rate).saturating_add(DUST)
    }
}

fn input(previous_output: OutPoint) -> TxIn {
    TxIn {
        previous_output,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::new(),
    }
}

fn size(tx: &Transaction) -> u64 {
    u64::try_from(tx.vsize()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Keys, Words};
    use bitcoin::hashes::Hash as _;
    use proptest::prelude::*;
    use spark_rules::tx::{Template, Timelock, p2tr_script, verify_input};

    fn keys() -> Keys {
        crate::keys::Phrase::generate(Words::Twelve, &mut OsRng).unwrap().keys(0).unwrap()
    }

    fn spend(key: &SigningKey, sats: u64, vout: u32) -> Spend {
        Spend {
            outpoint: OutPoint { txid: bitcoin::Txid::all_zeros(), vout },
            txout: TxOut { value: Amount::from_sat(sats), script_pubkey: p2tr_script(&key.public_key()) },
        }
    }

    fn parent(keys: &Keys) -> Transaction {
        let step = Timelock::new(2000).unwrap();
        let money = spend(keys.identity(), 50_000, 0);
        let mut tx = Template::refund(money, &keys.identity().public_key(), step).unwrap().build();
        attach_signature(&mut tx, 0, [1; 64]).unwrap();
        tx
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn packages_pay_their_rate(rate in 1u64..200, sats in 600u64..200_000) {
            let keys = keys();
            let (parent, fee_key) = (parent(&keys), keys.exit_fee().unwrap());
            let money = spend(&fee_key, sats, 7);
            match Child::build(&parent, &money, &fee_key, p2tr_script(&fee_key.public_key()), rate) {
                Ok(child) => {
                    let out: u64 = child.tx.output.iter().map(|o| o.value.to_sat()).sum();
                    let vsize = (parent.vsize() + child.tx.vsize()) as u64;
                    prop_assert_eq!(sats - out, child.fee);
                    prop_assert_eq!(child.fee, vsize * rate);
                    prop_assert_eq!(Child::fee(&parent, rate), child.fee);
                    prop_assert_eq!(child.tx.version, Version(3));
                    let anchor = parent.output[1].clone();
                    prop_assert!(verify_input(&child.tx, &[money.txout, anchor], 0).is_ok());
                    prop_assert!(sats >= Child::needs(&parent, rate));
                }
                Err(ChildError::TooSmall { .. }) => prop_assert!(sats < Child::needs(&parent, rate)),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn sweeps_pay_their_own_rate(rate in 1u64..200, sats in 600u64..200_000, paid in 0u64..3000) {
            let keys = keys();
            let key = keys.identity();
            let (money, to) = (spend(key, sats, 0), p2tr_script(&key.public_key()));
            match Child::sweep(&money, key, to.clone(), rate) {
                Ok(sweep) => {
                    prop_assert_eq!(sats - sweep.tx.output[0].value.to_sat(), sweep.tx.vsize() as u64 * rate);
                    prop_assert!(verify_input(&sweep.tx, std::slice::from_ref(&money.txout), 0).is_ok());
                }
                Err(ChildError::TooSmall { .. }) => prop_assert!(sats < 546 + 200 * rate),
                Err(other) => prop_assert!(false, "{other}"),
            }
            let parent = parent(&keys);
            if let Ok(child) = Child::of_direct(&parent, paid, &money, key, to, rate) {
                let both = (parent.vsize() + child.tx.vsize()) as u64 * rate;
                prop_assert!(child.fee + paid >= both);
                prop_assert_eq!(child.fee, (both - child.tx.vsize() as u64 * rate).saturating_sub(paid)
                    + child.tx.vsize() as u64 * rate);
                prop_assert_eq!(child.tx.version, Version(3));
            }
        }
    }

    #[test]
    fn parents_without_anchor_are_refused() {
        let keys = keys();
        let mut parent = parent(&keys);
        parent.output.pop();
        let fee_key = keys.exit_fee().unwrap();
        let child = Child::build(&parent, &spend(&fee_key, 9000, 1), &fee_key, ScriptBuf::new(), 1);
        assert_eq!(child, Err(ChildError::NoAnchor));
    }
}
