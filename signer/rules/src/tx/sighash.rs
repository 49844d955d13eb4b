use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::secp256k1::{Message, SECP256K1, XOnlyPublicKey};
use bitcoin::sighash::{Prevouts, SighashCache};
use bitcoin::{ScriptBuf, TapSighashType, Transaction, TxOut, Witness};

/// A transaction that cannot be signed or is not validly signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SighashError {
    /// BIP 341 hashes every spent output.
    #[error("{expected} spent outputs are needed, not {got}")]
    Prevouts {
        /// Number of inputs.
        expected: usize,
        /// Number of outputs given.
        got: usize,
    },
    /// No such input.
    #[error("no input {0}")]
    Input(usize),
    /// The spent output is no P2TR output.
    #[error("input {0} spends no taproot output")]
    NotTaproot(usize),
    /// The witness is not one signature of 64 bytes.
    #[error("input {0} carries no key path signature of 64 bytes")]
    Witness(usize),
    /// The signature does not verify under the output key.
    #[error("signature of input {0} is invalid")]
    Signature(usize),
}

/// BIP 341 sighash of the key path, SIGHASH_DEFAULT. `prevouts` are the spent outputs of *all* inputs, in order.
pub fn sighash(tx: &Transaction, prevouts: &[TxOut], input_index: usize) -> Result<[u8; 32], SighashError> {
    if prevouts.len() != tx.input.len() {
        return Err(SighashError::Prevouts { expected: tx.input.len(), got: prevouts.len() });
    }
    SighashCache::new(tx)
        .taproot_key_spend_signature_hash(input_index, &Prevouts::All(prevouts), TapSighashType::Default)
        .map(|hash| hash.to_byte_array())
        .map_err(|_| SighashError::Input(input_index))
}

/// Puts a BIP340 signature into the witness of an input.
pub fn attach_signature(
    tx: &mut Transaction,
    input_index: usize,
    signature: [u8; 64],
) -> Result<(), SighashError> {
    let input = tx.input.get_mut(input_index).ok_or(SighashError::Input(input_index))?;
    input.witness = Witness::from_slice(&[signature]);
    Ok(())
}

/// Verifies an input's 64-byte signature under the output key of what it spends.
pub fn verify_input(tx: &Transaction, prevouts: &[TxOut], input_index: usize) -> Result<(), SighashError> {
    let message = Message::from_digest(sighash(tx, prevouts, input_index)?);
    let input = tx.input.get(input_index).ok_or(SighashError::Input(input_index))?;
    let prevout = prevouts.get(input_index).ok_or(SighashError::Input(input_index))?;
    let key = output_key(&prevout.script_pubkey).ok_or(SighashError::NotTaproot(input_index))?;
    let mut elements = input.witness.iter();
    let signature = match (elements.next(), elements.next()) {
        (Some(only), None) if only.len() == 64 => {
            Signature::from_slice(only).map_err(|_| SighashError::Witness(input_index))?
        }
        _ => return Err(SighashError::Witness(input_index)),
    };
    SECP256K1.verify_schnorr(&signature, &message, &key).map_err(|_| SighashError::Signature(input_index))
}

fn output_key(script: &ScriptBuf) -> Option<XOnlyPublicKey> {
    match script.as_bytes() {
        [0x51, 0x20, key @ ..] if key.len() == 32 => XOnlyPublicKey::from_slice(key).ok(),
        _ => None,
    }
}
