//! The transactions of a leaf. Nothing else writes sequences, versions, anchors or fees.
//!
//! A [`Template`] describes one transaction. Wallets build it; signers check the client's bytes against it and
//! sign what they rebuilt. A [`Plan`] lays out all transactions of a deposit, transfer, claim or renewal.
//! Amounts are in satoshis, timelocks in blocks.

mod connector;
mod error;
mod htlc;
mod maturity;
mod plan;
mod sighash;
mod static_refund;
mod template;
mod timelock;

pub use connector::{Connectors, MAX_CONNECTOR_TX};
pub use error::{Rule, TemplateError};
pub use htlc::{HTLC_BLOCKS, Htlc, HtlcError, HtlcPath, opens};
pub use maturity::{Maturity, MaturityError};
pub use plan::{Basis, Plan, Planned, RawSet, RenewalPath, Source};
pub use sighash::{SighashError, attach_signature, sighash, verify_input};
pub use static_refund::StaticRefund;
pub use template::{Purpose, Template, Variant};
pub use timelock::{INITIAL_TIMELOCK, INTERVAL, LEAST_REFUND_STEP, SequenceField, Timelock, TimelockError};

use bitcoin::key::{TapTweak as _, UntweakedPublicKey};
use bitcoin::secp256k1::{PublicKey, SECP256K1};
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, consensus::encode};

/// Blocks by which a direct transaction lags behind its CPFP twin.
pub const DIRECT_OFFSET: u16 = 50;
/// Blocks by which an HTLC refund lags behind a plain one of the same step, which undercuts it.
pub const HTLC_OFFSET: u16 = 70;
/// The same of its direct twins.
pub const DIRECT_HTLC_OFFSET: u16 = 85;
/// Fee of a direct transaction, in satoshis: 191 vB at 5 sat/vB.
pub const FEE: u64 = 955;
/// Most outputs of one address that one deposit may collect.
pub const MAX_ROOT_INPUTS: usize = 11;
/// Most bytes of a funding transaction that a deposit brings: the relay limit of 400,000 weight units.
pub const MAX_FUNDING: usize = 400_000;
/// Most bytes of a transaction without its witnesses: each weighs four units, and a block 4,000,000 (BIP 141). What a
/// static address got may be as large, whoever made it.
pub const MAX_BASE: usize = 1_000_000;
/// Script of the pay-to-anchor output, `OP_1 <4e73>` (BIP 433).
pub const ANCHOR_SCRIPT: [u8; 4] = [0x51, 0x02, 0x4e, 0x73];

/// `value` less the fee of a direct transaction; a value that cannot pay it stays as it is.
pub fn maybe_fee(value: Amount) -> Amount {
    match value.to_sat() {
        sats if sats > FEE => Amount::from_sat(sats - FEE),
        _ => value,
    }
}

/// The ephemeral anchor: nothing, spendable by anyone.
pub fn anchor() -> TxOut {
    TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from_bytes(ANCHOR_SCRIPT.to_vec()) }
}

/// A transaction as its id covers it (BIP 141), serialized.
pub fn without_witnesses(tx: &Transaction) -> Vec<u8> {
    let mut tx = tx.clone();
    for input in &mut tx.input {
        input.witness.clear();
    }
    encode::serialize(&tx)
}

/// The script that pays to `key` as internal key without a script tree (BIP 341).
pub fn p2tr_script(key: &PublicKey) -> ScriptBuf {
    let (internal, _): (UntweakedPublicKey, _) = key.x_only_public_key();
    let (output, _) = internal.tap_tweak(SECP256K1, None);
    ScriptBuf::new_p2tr_tweaked(output)
}

/// An output to spend: where it is and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spend {
    /// Where.
    pub outpoint: OutPoint,
    /// Value and script.
    pub txout: TxOut,
}

impl Spend {
    /// Output `vout` of `tx`, if it has one.
    pub fn of(tx: &Transaction, vout: u32) -> Option<Self> {
        let txout = tx.output.get(usize::try_from(vout).ok()?)?.clone();
        Some(Self { outpoint: OutPoint { txid: tx.compute_txid(), vout }, txout })
    }

    /// Output `vout` of a serialized transaction of at most [`MAX_BASE`] bytes, if it is one and has it. Who passes one
    /// on leaves its witnesses away ([`without_witnesses`]): no output and no id depends on them, and they may be large.
    pub fn of_funding(raw: &[u8], vout: u32) -> Option<Self> {
        let tx = (raw.len() <= MAX_BASE).then(|| encode::deserialize(raw).ok()).flatten()?;
        Self::of(&tx, vout)
    }
}
