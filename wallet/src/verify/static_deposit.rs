use std::collections::BTreeMap;

use bitcoin::{Transaction, consensus::encode, hashes::Hash as _};
use spark_proto::spark::AddressedUtxo;
use spark_rules::tx::{Spend, p2tr_script};

use super::{DepositAddress, VerifyError};

/// Checks an output that an operator lists: that its transaction has that id, and that the output pays one of the
/// owner's own addresses, which were verified before.
pub fn static_output(
    listed: &AddressedUtxo,
    own: &BTreeMap<String, DepositAddress>,
) -> Result<Spend, VerifyError> {
    let utxo = listed.utxo.as_ref().ok_or(VerifyError::Field("utxo"))?;
    let tx: Transaction = encode::deserialize(&utxo.raw_tx).map_err(|_| VerifyError::Field("utxo.raw_tx"))?;
    let mut txid = tx.compute_txid().to_byte_array();
    // On the wire as people read it.
    txid.reverse();
    if utxo.txid != txid {
        return Err(VerifyError::Field("utxo.txid"));
    }
    let spend = Spend::of(&tx, utxo.vout).ok_or(VerifyError::Field("utxo.vout"))?;
    let address = own.get(&listed.address).ok_or(VerifyError::Address)?;
    if spend.txout.script_pubkey != p2tr_script(&address.verifying_key) {
        return Err(VerifyError::Address);
    }
    Ok(spend)
}

#[cfg(test)]
mod tests {
    use bitcoin::{Amount, TxOut, absolute::LockTime, transaction::Version};
    use spark_proto::spark::Utxo;
    use spark_rules::address::{Network, deposit_address};

    use super::*;
    use crate::testing::keys;

    #[test]
    fn outputs_that_are_not_what_they_are_said_to_be_are_refused() {
        let verifying_key = keys().identity().public_key();
        let address = deposit_address(&verifying_key, Network::Regtest);
        let mine = DepositAddress { address: address.clone(), verifying_key, group_key: verifying_key };
        let own = BTreeMap::from([(address.clone(), mine)]);
        let output = TxOut { value: Amount::from_sat(1_000), script_pubkey: p2tr_script(&verifying_key) };
        let other = TxOut {
            script_pubkey: p2tr_script(&keys().static_deposit(5).unwrap().public_key()),
            ..output.clone()
        };
        let tx = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            // Without inputs the bytes read as something else.
            input: vec![bitcoin::TxIn::default()],
            output: vec![other, output],
        };
        let mut txid = tx.compute_txid().to_byte_array().to_vec();
        txid.reverse();
        let good = AddressedUtxo {
            address,
            utxo: Some(Utxo { raw_tx: encode::serialize(&tx), vout: 1, network: 2, txid }),
            is_confirmed: true,
        };
        assert_eq!(static_output(&good, &own).unwrap().txout.value.to_sat(), 1_000);
        let with = |change: &dyn Fn(&mut AddressedUtxo, &mut Utxo)| {
            let (mut listed, mut utxo) = (good.clone(), good.utxo.clone().unwrap());
            change(&mut listed, &mut utxo);
            static_output(&AddressedUtxo { utxo: Some(utxo), ..listed }, &own).unwrap_err()
        };
        assert_eq!(with(&|_, u| u.vout = 0), VerifyError::Address);
        assert_eq!(with(&|_, u| u.vout = 2), VerifyError::Field("utxo.vout"));
        assert_eq!(with(&|_, u| u.txid.reverse()), VerifyError::Field("utxo.txid"));
        assert_eq!(with(&|_, u| u.raw_tx.clear()), VerifyError::Field("utxo.raw_tx"));
        assert_eq!(with(&|l, _| l.address = "bcrt1pother".into()), VerifyError::Address);
    }
}
