//! Money of a test's own key: to spend it twice.

use anyhow::Context as _;
use bitcoin::{
    Address, Amount, CompressedPublicKey, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut,
    Witness,
    absolute::LockTime,
    ecdsa,
    secp256k1::{Message, SECP256K1, SecretKey},
    sighash::{EcdsaSighashType, SighashCache},
    transaction::Version,
};
use spark_devnet::network::Devnet;

/// One confirmed P2WPKH output.
pub(crate) struct Coin {
    key: SecretKey,
    address: Address,
    outpoint: OutPoint,
    value: Amount,
}

impl Coin {
    pub(crate) async fn new(devnet: &Devnet, sats: u64) -> anyhow::Result<Self> {
        let key = SecretKey::new(&mut rand::rngs::OsRng);
        let address = Address::p2wpkh(&CompressedPublicKey(key.public_key(SECP256K1)), Network::Regtest);
        let value = Amount::from_sat(sats);
        let paid = devnet.faucet().send(&address, value).await?;
        devnet.faucet().mine(1).await?;
        Ok(Self { key, address, outpoint: OutPoint { txid: paid.compute_txid(), vout: 0 }, value })
    }

    /// Its own address.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// A signed transaction that spends it: the outputs in order, what is left of the value after them and `fee`
    /// back to the own key. It signals that it may be replaced. Not broadcast.
    pub(crate) fn spend(&self, outputs: &[(&str, u64)], fee: u64) -> anyhow::Result<Transaction> {
        let mut output = Vec::new();
        for (address, sats) in outputs {
            let to = address.parse::<Address<_>>()?.require_network(Network::Regtest)?;
            output.push(TxOut { value: Amount::from_sat(*sats), script_pubkey: to.script_pubkey() });
        }
        let paid: Amount = output.iter().map(|o| o.value).sum();
        let change = self.value.checked_sub(paid + Amount::from_sat(fee)).context("too much")?;
        if change > Amount::from_sat(1000) {
            output.push(TxOut { value: change, script_pubkey: self.address.script_pubkey() });
        }
        let input = TxIn {
            previous_output: self.outpoint,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        };
        let mut tx =
            Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![input], output };
        let kind = EcdsaSighashType::All;
        let digest = SighashCache::new(&tx).p2wpkh_signature_hash(
            0,
            &self.address.script_pubkey(),
            self.value,
            kind,
        )?;
        let message = Message::from(digest);
        let signature =
            ecdsa::Signature { signature: SECP256K1.sign_ecdsa(&message, &self.key), sighash_type: kind };
        let public = self.key.public_key(SECP256K1);
        let first = tx.input.first_mut().context("input")?;
        first.witness = Witness::p2wpkh(&signature, &public);
        Ok(tx)
    }
}
