//! A federation, leaves and a database for tests of handlers.

use bitcoin::{
    Amount, OutPoint, Sequence, Transaction, TxIn, TxOut,
    absolute::LockTime,
    hashes::{Hash as _, sha256},
    transaction::Version,
};
use secp256k1::{PublicKey, SecretKey};
use spark_rules::{
    address::Network,
    federation::{Federation, FederationEntry, MemberEntry},
    ids::{KeyshareId, LeafId},
    leaf::{LeafRecord, LeafStatus, Refunds},
    tx::{Timelock, p2tr_script},
};
use uuid::Uuid;

use crate::{
    authn::Session,
    db::{
        Db,
        leaf::{self, LeafWrite},
        transfer::{self, TransferLeafRow, TransferRow},
    },
};

/// n operators, t of which sign. Keys follow from their index.
pub(crate) fn federation(n: u16, threshold: u16) -> Federation {
    let members = (0..n)
        .map(|index| {
            let tag = |what: &str| sha256::Hash::hash(format!("{what} {index}").as_bytes()).to_byte_array();
            let identity =
                PublicKey::from_secret_key_global(&SecretKey::from_slice(&tag("identity")).unwrap());
            MemberEntry {
                identity_public_key: identity.to_string(),
                federation_public_keys: vec![ed25519(index)],
                tls_spki_sha256: vec![hex::encode(tag("tls"))],
                peer_address: format!("127.0.0.1:{}", 9000 + index),
                public_address: format!("https://localhost:{}", 8535 + index),
            }
        })
        .collect();
    FederationEntry { epoch: 1, network: "regtest".into(), threshold, quorum: None, faults: None, members }
        .check()
        .unwrap()
}

/// Public keys of the first tests of RFC 8032, section 7.1.
fn ed25519(index: u16) -> String {
    const KEYS: [&str; 3] = [
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
    ];
    KEYS[usize::from(index)].to_owned()
}

/// The key of a number.
pub(crate) fn key(number: u8) -> PublicKey {
    PublicKey::from_secret_key_global(&SecretKey::from_slice(&[number; 32]).unwrap())
}

/// A session of the identity of a number.
pub(crate) fn session(number: u8) -> Session {
    Session { identity: key(number) }
}

/// The leaf id of a number.
pub(crate) fn leaf_id(number: u8) -> LeafId {
    LeafId::from_bytes([number; 16])
}

fn tx(spends: OutPoint, key: &PublicKey, value: u64) -> Transaction {
    Transaction {
        version: Version(3),
        lock_time: LockTime::ZERO,
        input: vec![TxIn { previous_output: spends, sequence: Sequence(2000), ..TxIn::default() }],
        output: vec![TxOut { value: Amount::from_sat(value), script_pubkey: p2tr_script(key) }],
    }
}

/// A leaf of 1000 satoshis, unsigned.
pub(crate) fn record(leaf: u8, owner: u8, version: u64, status: LeafStatus) -> LeafRecord {
    let (group, user) = (key(100), key(owner));
    let verifying = group.combine(&user).unwrap();
    let node = tx(OutPoint { txid: bitcoin::Txid::from_byte_array([leaf; 32]), vout: 1 }, &verifying, 1000);
    let below = OutPoint { txid: node.compute_txid(), vout: 0 };
    LeafRecord {
        leaf_id: leaf_id(leaf),
        tree_id: Uuid::from_bytes([leaf; 16]),
        parent_id: None,
        value: 1000,
        keyshare_id: KeyshareId::from_bytes([leaf; 16]),
        version,
        group_key: group,
        public_shares: vec![key(101), key(102), key(103)],
        owner_identity: key(owner),
        owner_key: user,
        verifying_key: verifying,
        network: Network::Regtest,
        node_prevouts: vec![TxOut { value: Amount::from_sat(1000), script_pubkey: p2tr_script(&verifying) }],
        node_tx: node,
        direct_node_tx: None,
        refunds: Refunds {
            cpfp: tx(below, &user, 1000),
            direct: None,
            direct_from_cpfp: tx(below, &user, 45),
        },
        refund_timelock: Timelock::new(2000).unwrap(),
        node_timelock: Timelock::ZERO,
        last_proof: [0; 32],
        status,
    }
}

/// Writes a leaf as an operation would.
pub(crate) async fn put_leaf(db: &Db, record: &LeafRecord) {
    let write = LeafWrite {
        leaf_id: record.leaf_id.uuid(),
        tree_id: record.tree_id,
        parent_id: record.parent_id.map(|id| id.uuid()),
        version: i64::try_from(record.version).unwrap(),
        owner_identity: record.owner_identity.serialize().to_vec(),
        status: record.status.name().to_owned(),
        value: i64::try_from(record.value).unwrap(),
        node_txid: record.node_tx.compute_txid().to_byte_array().to_vec(),
        record: record.encode(),
    };
    leaf::upsert(db.pool(), &write).await.unwrap();
}

/// Writes a transfer of one leaf as an applied send would; the leaf is written too.
pub(crate) async fn put_transfer(db: &Db, id: u8, leaf: u8, sender: u8, receiver: u8) -> Uuid {
    put_shared_transfer(db, id, sender, &[(leaf, receiver)], "").await
}

/// Writes a transfer that gives each leaf to its receiver, and the leaves.
pub(crate) async fn put_shared_transfer(db: &Db, id: u8, sender: u8, to: &[(u8, u8)], invoice: &str) -> Uuid {
    let row = TransferRow {
        transfer_id: Uuid::from_bytes([id; 16]),
        sender: key(sender).serialize().to_vec(),
        receiver: key(to[0].1).serialize().to_vec(),
        total: 1000 * i64::try_from(to.len()).unwrap(),
        status: transfer::SENDER_KEY_TWEAKED,
        kind: 2,
        expiry: None,
        invoice: invoice.to_owned(),
        created_micros: 0,
        updated_micros: 0,
        completed_micros: None,
    };
    let mut leaves = Vec::new();
    for (position, (leaf, receiver)) in (0..).zip(to) {
        let sent = record(*leaf, sender, 1, LeafStatus::TransferLocked);
        put_leaf(db, &sent).await;
        leaves.push(TransferLeafRow {
            transfer_id: row.transfer_id,
            leaf_id: sent.leaf_id.uuid(),
            receiver: key(*receiver).serialize().to_vec(),
            position,
            leaf_version: 1,
            value: 1000,
            secret_cipher: vec![1; 129],
            signature: vec![2; 64],
            intermediate_refund_tx: bitcoin::consensus::serialize(&sent.refunds.cpfp),
            intermediate_direct_refund_tx: Vec::new(),
            intermediate_direct_from_cpfp_refund_tx: bitcoin::consensus::serialize(
                &sent.refunds.direct_from_cpfp,
            ),
            record: sent.encode(),
        });
    }
    transfer::insert(db.pool(), &row).await.unwrap();
    transfer::insert_shares(db.pool(), &row, &leaves).await.unwrap();
    for leaf in &leaves {
        transfer::insert_leaf(db.pool(), leaf).await.unwrap();
    }
    row.transfer_id
}

/// Writes the claim of a transfer by its receiver.
pub(crate) async fn put_claim(db: &Db, transfer: Uuid, leaf: u8, receiver: u8) {
    put_leaf(db, &record(leaf, receiver, 2, LeafStatus::Available)).await;
    let mut connection = db.pool().acquire().await.unwrap();
    let receiver = key(receiver).serialize();
    transfer::complete(&mut connection, transfer, &receiver).await.unwrap();
}
