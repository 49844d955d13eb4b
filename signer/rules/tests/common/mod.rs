//! A leaf with plain keys, so that tests can sign for everyone.
#![allow(dead_code, reason = "each test binary uses its part")]

use bitcoin::key::{Keypair, TapTweak as _};
use bitcoin::secp256k1::{Message, PublicKey, SECP256K1, SecretKey};
use bitcoin::{Amount, OutPoint, Transaction, TxOut, Txid, hashes::Hash as _};
use spark_rules::address::Network;
use spark_rules::ids::{KeyshareId, LeafId};
use spark_rules::leaf::{LeafRecord, LeafStatus, Refunds};
use spark_rules::tx::{
    INITIAL_TIMELOCK, Plan, Purpose, Source, Spend, Template, Timelock, attach_signature, p2tr_script,
    sighash,
};
use uuid::Uuid;

pub(crate) fn secret(byte: u8) -> SecretKey {
    SecretKey::from_slice(&[byte; 32]).unwrap()
}

pub(crate) fn public(byte: u8) -> PublicKey {
    secret(byte).public_key(SECP256K1)
}

/// Keys as in the vectors: operators, owner, their sum.
pub(crate) const GROUP: u8 = 0x11;
pub(crate) const OWNER: u8 = 0x22;
pub(crate) const VERIFYING: u8 = 0x33;
pub(crate) const RECEIVER: u8 = 0x55;
pub(crate) const NEW_OWNER: u8 = 0x44;

pub(crate) fn deposit_output(n: u8, value: u64) -> Spend {
    Spend {
        outpoint: OutPoint { txid: Txid::from_byte_array([n; 32]), vout: 1 },
        txout: TxOut { value: Amount::from_sat(value), script_pubkey: p2tr_script(&public(VERIFYING)) },
    }
}

/// The record that a deposit makes.
pub(crate) fn deposited(plan: &Plan) -> LeafRecord {
    let root = plan.get(Purpose::Root).unwrap();
    LeafRecord {
        leaf_id: LeafId::parse("0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2c").unwrap(),
        tree_id: Uuid::from_bytes([9; 16]),
        parent_id: None,
        value: root.tx.output[0].value.to_sat(),
        keyshare_id: KeyshareId::from_bytes([8; 16]),
        version: 0,
        group_key: public(GROUP),
        public_shares: vec![public(1), public(2), public(3)],
        owner_identity: public(RECEIVER),
        owner_key: public(OWNER),
        verifying_key: public(VERIFYING),
        network: Network::Regtest,
        node_prevouts: root.template.prevouts(),
        node_tx: root.tx.clone(),
        direct_node_tx: None,
        refunds: Refunds {
            cpfp: plan.get(Purpose::Refund).unwrap().tx.clone(),
            direct: None,
            direct_from_cpfp: plan.get(Purpose::DirectFromCpfpRefund).unwrap().tx.clone(),
        },
        refund_timelock: INITIAL_TIMELOCK,
        node_timelock: Timelock::ZERO,
        last_proof: [0; 32],
        status: LeafStatus::Available,
    }
    .checked()
    .unwrap()
}

pub(crate) fn leaf(value: u64) -> LeafRecord {
    deposited(&Plan::deposit(Source::Build, vec![deposit_output(7, value)], &public(OWNER)).unwrap())
}

/// Signs every input with the plain verifying key.
pub(crate) fn sign(template: &Template, tx: &Transaction) -> Transaction {
    let key = Keypair::from_secret_key(SECP256K1, &secret(VERIFYING)).tap_tweak(SECP256K1, None).to_keypair();
    let mut signed = tx.clone();
    for input in 0..tx.input.len() {
        let message = Message::from_digest(sighash(tx, &template.prevouts(), input).unwrap());
        let signature = SECP256K1.sign_schnorr_no_aux_rand(&message, &key);
        attach_signature(&mut signed, input, signature.serialize()).unwrap();
    }
    signed
}
