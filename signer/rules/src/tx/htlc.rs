//! The output of a refund in flight that a preimage or time opens: key path closed, one script leaf for the receiver
//! and one for the sender. Spends of it are the users' own; signers never sign them.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash as _;
use bitcoin::key::TapTweak as _;
use bitcoin::opcodes::all::{OP_CHECKSIG, OP_CSV, OP_DROP, OP_EQUALVERIFY, OP_SHA256};
use bitcoin::script::Builder;
use bitcoin::secp256k1::{PublicKey, SECP256K1, XOnlyPublicKey};
use bitcoin::sighash::{Prevouts, SighashCache};
use bitcoin::taproot::{LeafVersion, TapNodeHash};
use bitcoin::transaction::Version;
use bitcoin::{Amount, ScriptBuf, Sequence, TapLeafHash, TapSighashType, Transaction, TxIn, TxOut, Witness};
use sha2::{Digest as _, Sha256};

use super::{SighashError, Spend};

/// Blocks after which the sender may take an HTLC output back.
pub const HTLC_BLOCKS: u16 = 2160;
/// x-only key whose discrete logarithm nobody knows (BIP 341): SHA-256 of the generator, lifted.
const NUMS: [u8; 32] = [
    0x50, 0x92, 0x9b, 0x74, 0xc1, 0xa0, 0x49, 0x54, 0xb7, 0x8b, 0x4b, 0x60, 0x35, 0xe9, 0x7a, 0x5e, 0x07,
    0x8a, 0x5a, 0x0f, 0x28, 0xec, 0x96, 0xd5, 0x47, 0xbf, 0xee, 0x9a, 0xce, 0x80, 0x3a, 0xc0,
];

/// Who may take an HTLC output, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HtlcPath {
    /// The receiver, with the preimage.
    Preimage,
    /// The sender, [`HTLC_BLOCKS`] after it confirmed.
    Timeout,
}

/// Terms of an HTLC output. Both keys are identity keys; scripts hold their x-coordinates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Htlc {
    payment_hash: [u8; 32],
    receiver: PublicKey,
    sender: PublicKey,
}

/// A preimage that does not hash to the payment hash, or an output that cannot pay the fee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HtlcError {
    /// SHA-256 of the preimage is another hash.
    #[error("preimage does not fit the payment hash")]
    Preimage,
    /// The output is not the one of these terms.
    #[error("output does not belong to the HTLC")]
    Output,
    /// Nothing would be left.
    #[error("fee takes the whole value")]
    Fee,
    /// The sighash cannot be computed.
    #[error(transparent)]
    Sighash(#[from] SighashError),
}

/// Whether `preimage` opens `payment_hash`.
pub fn opens(payment_hash: &[u8; 32], preimage: &[u8]) -> bool {
    Sha256::digest(preimage).as_slice() == payment_hash
}

impl Htlc {
    /// Terms: SHA-256 of the preimage, who takes the output with it, who gets it back.
    pub const fn new(payment_hash: [u8; 32], receiver: PublicKey, sender: PublicKey) -> Self {
        Self { payment_hash, receiver, sender }
    }

    /// SHA-256 of the preimage.
    pub const fn payment_hash(&self) -> &[u8; 32] {
        &self.payment_hash
    }

    /// Who takes the output with the preimage.
    pub const fn receiver(&self) -> &PublicKey {
        &self.receiver
    }

    /// Who gets it back.
    pub const fn sender(&self) -> &PublicKey {
        &self.sender
    }

    /// The leaf script of a path.
    pub fn script(&self, path: HtlcPath) -> ScriptBuf {
        let key = |key: &PublicKey| key.x_only_public_key().0;
        match path {
            HtlcPath::Preimage => Builder::new()
                .push_opcode(OP_SHA256)
                .push_slice(self.payment_hash)
                .push_opcode(OP_EQUALVERIFY)
                .push_x_only_key(&key(&self.receiver))
                .push_opcode(OP_CHECKSIG)
                .into_script(),
            HtlcPath::Timeout => Builder::new()
                .push_int(HTLC_BLOCKS.into())
                .push_opcode(OP_CSV)
                .push_opcode(OP_DROP)
                .push_x_only_key(&key(&self.sender))
                .push_opcode(OP_CHECKSIG)
                .into_script(),
        }
    }

    fn leaf(&self, path: HtlcPath) -> TapLeafHash {
        TapLeafHash::from_script(&self.script(path), LeafVersion::TapScript)
    }

    fn internal() -> Result<XOnlyPublicKey, HtlcError> {
        XOnlyPublicKey::from_slice(&NUMS).map_err(|_| HtlcError::Output)
    }

    fn root(&self) -> TapNodeHash {
        TapNodeHash::from_node_hashes(
            self.leaf(HtlcPath::Preimage).into(),
            self.leaf(HtlcPath::Timeout).into(),
        )
    }

    /// The script that pays to these terms.
    pub fn script_pubkey(&self) -> Result<ScriptBuf, HtlcError> {
        let (output, _) = Self::internal()?.tap_tweak(SECP256K1, Some(self.root()));
        Ok(ScriptBuf::new_p2tr_tweaked(output))
    }

    /// What proves that a leaf script belongs to the output (BIP 341).
    pub fn control_block(&self, path: HtlcPath) -> Result<Vec<u8>, HtlcError> {
        let internal = Self::internal()?;
        let (_, parity) = internal.tap_tweak(SECP256K1, Some(self.root()));
        let sibling = match path {
            HtlcPath::Preimage => self.leaf(HtlcPath::Timeout),
            HtlcPath::Timeout => self.leaf(HtlcPath::Preimage),
        };
        let mut block = vec![LeafVersion::TapScript.to_consensus() | parity.to_u8()];
        block.extend_from_slice(&internal.serialize());
        block.extend_from_slice(sibling.as_byte_array());
        Ok(block)
    }

    /// The unsigned spend of output `htlc` to `destination`, less `fee`.
    pub fn spend(
        &self,
        htlc: &Spend,
        path: HtlcPath,
        destination: ScriptBuf,
        fee: Amount,
    ) -> Result<Transaction, HtlcError> {
        if htlc.txout.script_pubkey != self.script_pubkey()? {
            return Err(HtlcError::Output);
        }
        let value =
            htlc.txout.value.checked_sub(fee).filter(|left| *left > Amount::ZERO).ok_or(HtlcError::Fee)?;
        let sequence = match path {
            HtlcPath::Preimage => Sequence::ENABLE_RBF_NO_LOCKTIME,
            HtlcPath::Timeout => Sequence::from_height(HTLC_BLOCKS),
        };
        let input = TxIn {
            previous_output: htlc.outpoint,
            script_sig: ScriptBuf::new(),
            sequence,
            witness: Witness::new(),
        };
        Ok(Transaction {
            version: Version(3),
            lock_time: LockTime::ZERO,
            input: vec![input],
            output: vec![TxOut { value, script_pubkey: destination }],
        })
    }

    /// What the path's key signs of a spend: BIP 341 script path, SIGHASH_DEFAULT.
    pub fn sighash(&self, spend: &Transaction, htlc: &TxOut, path: HtlcPath) -> Result<[u8; 32], HtlcError> {
        SighashCache::new(spend)
            .taproot_script_spend_signature_hash(
                0,
                &Prevouts::All(std::slice::from_ref(htlc)),
                self.leaf(path),
                TapSighashType::Default,
            )
            .map(|hash| hash.to_byte_array())
            .map_err(|_| HtlcError::Sighash(SighashError::Input(0)))
    }

    /// The witness of the receiver's spend. A preimage that does not fit is refused.
    pub fn preimage_witness(&self, signature: [u8; 64], preimage: &[u8]) -> Result<Witness, HtlcError> {
        if !opens(&self.payment_hash, preimage) {
            return Err(HtlcError::Preimage);
        }
        let script = self.script(HtlcPath::Preimage);
        let control = self.control_block(HtlcPath::Preimage)?;
        Ok(Witness::from_slice(&[signature.as_slice(), preimage, script.as_bytes(), &control]))
    }

    /// The witness of the sender's spend.
    pub fn timeout_witness(&self, signature: [u8; 64]) -> Result<Witness, HtlcError> {
        let script = self.script(HtlcPath::Timeout);
        let control = self.control_block(HtlcPath::Timeout)?;
        Ok(Witness::from_slice(&[signature.as_slice(), script.as_bytes(), &control]))
    }
}
