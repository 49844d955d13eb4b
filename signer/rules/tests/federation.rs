//! D13: several federation keys per member, one in each device, each as good as the other.

#![allow(clippy::unwrap_used, reason = "tests")]

use bitcoin::secp256k1::{SECP256K1, SecretKey};
use ed25519_dalek::{Signer as _, SigningKey};
use spark_rules::{
    federation::{Federation, FederationEntry, FederationError, FederationFile, MemberEntry},
    ids::{Incarnation, OperatorIndex},
    vote::Position,
};

/// Device 0 or 1 of an operator.
fn key(operator: u8, device: u8) -> SigningKey {
    SigningKey::from_bytes(&[1 + operator + 16 * device; 32])
}

fn entry() -> FederationEntry {
    let member = |operator: u8| {
        let identity = SecretKey::from_slice(&[operator + 1; 32]).unwrap().public_key(SECP256K1);
        let public = |device| hex::encode(key(operator, device).verifying_key().as_bytes());
        MemberEntry {
            identity_public_key: hex::encode(identity.serialize()),
            federation_public_keys: vec![public(0), public(1)],
            tls_spki_sha256: vec![hex::encode([100 + operator; 32])],
            peer_address: format!("peer{operator}:1"),
            public_address: format!("https://peer{operator}:2"),
        }
    };
    FederationEntry {
        epoch: 1,
        network: "regtest".into(),
        threshold: 2,
        quorum: None,
        faults: None,
        members: (0..3).map(member).collect(),
    }
}

fn position(federation: &Federation) -> Position {
    Position {
        federation_epoch: federation.epoch(),
        signer: OperatorIndex::new(1),
        incarnation: Incarnation::from_bytes([7; 16]),
        root_epoch: 3,
        sequence: 4,
    }
}

#[test]
fn d13_any_device_signs_file_and_statements() {
    let entry = entry();
    let message = entry.signing_message();
    let signed = |devices: [u8; 3]| FederationFile {
        federation: entry.clone(),
        signatures: (0..)
            .zip(devices)
            .map(|(o, d)| hex::encode(key(o, d).sign(&message).to_bytes()))
            .collect(),
    };
    for devices in [[0, 0, 0], [1, 0, 1]] {
        signed(devices).verify(None).unwrap();
    }
    let mut foreign = signed([0, 0, 0]);
    foreign.signatures[1] = hex::encode(key(2, 1).sign(&message).to_bytes());
    assert_eq!(foreign.verify(None), Err(FederationError::Signature(1)));

    let federation = entry.check().unwrap();
    let position = position(&federation);
    let statement = position.statement(&federation, "test/v1", b"payload");
    for device in [0, 1] {
        let signature = key(1, device).sign(&statement).to_bytes();
        position.verify(&federation, "test/v1", b"payload", &signature).unwrap();
    }
    let foreign = key(2, 0).sign(&statement).to_bytes();
    assert!(position.verify(&federation, "test/v1", b"payload", &foreign).is_err());
}

#[test]
fn d12_one_certain_device_can_be_asked_for() {
    let federation = entry().check().unwrap();
    let one = OperatorIndex::new(1);
    let public = |operator, device| *key(operator, device).verifying_key().as_bytes();
    let signature = key(1, 1).sign(b"words").to_bytes();
    assert!(federation.verify_by(one, &public(1, 1), b"words", &signature));
    assert!(!federation.verify_by(one, &public(1, 0), b"words", &signature), "the other device");
    assert!(!federation.verify_by(one, &public(1, 1), b"other words", &signature));
    assert!(
        !federation.verify_by(OperatorIndex::new(2), &public(1, 1), b"words", &signature),
        "another member"
    );
    assert!(
        !federation.verify_by(one, &public(1, 2), b"words", &key(1, 2).sign(b"words").to_bytes()),
        "unlisted"
    );
}

#[test]
fn d13_a_key_stands_in_the_file_once() {
    let mut entry = entry();
    entry.members[1].federation_public_keys[1] = entry.members[0].federation_public_keys[1].clone();
    assert!(matches!(entry.check(), Err(FederationError::Field(_))));
}
