//! D13: several federation keys per member, one in each device, each as good as the other.

#![allow(clippy::unwrap_used, reason = "tests")]

use bitcoin::secp256k1::{SECP256K1, SecretKey};
use ed25519_dalek::{Signer as _, SigningKey};
use spark_rules::{
    checkpoint::{self, Checkpoint, Extension},
    federation::{Federation, FederationEntry, FederationError, FederationFile, MemberEntry},
    federation_key::{FederationKey, low_s},
    ids::{Incarnation, OperatorIndex},
    vote::Position,
    witness,
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
    let public = |operator, device| {
        FederationKey::from_bytes(key(operator, device).verifying_key().as_bytes()).unwrap()
    };
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

/// The key of a device without EdDSA.
fn p256() -> p256::ecdsa::SigningKey {
    p256::ecdsa::SigningKey::from_slice(&[9; 32]).unwrap()
}

/// As such a device signs, brought into the form that is accepted.
fn sign_p256(message: &[u8]) -> [u8; 64] {
    let signature: p256::ecdsa::Signature = p256::ecdsa::signature::Signer::sign(&p256(), message);
    low_s(&signature.to_bytes()).unwrap()
}

/// Operator 1 has a P-256 key in its first device.
fn mixed() -> (FederationEntry, FederationKey) {
    let mut entry = entry();
    let key = FederationKey::from_bytes(p256().verifying_key().to_encoded_point(true).as_bytes()).unwrap();
    entry.members[1].federation_public_keys[0] = key.to_string();
    (entry, key)
}

#[test]
fn d13_a_device_without_eddsa_signs_file_and_statements() {
    let (entry, key) = mixed();
    let message = entry.signing_message();
    let other = |operator| hex::encode(self::key(operator, 0).sign(&message).to_bytes());
    let file = |own: &[u8]| FederationFile {
        federation: entry.clone(),
        signatures: vec![other(0), hex::encode(own), other(2)],
    };
    file(&sign_p256(&message)).verify(None).unwrap();
    let former = self::key(1, 0).sign(&message).to_bytes();
    assert_eq!(file(&former).verify(None), Err(FederationError::Signature(1)), "not in the file any more");

    let federation = entry.check().unwrap();
    let position = position(&federation);
    let statement = position.statement(&federation, "test/v1", b"payload");
    position.verify(&federation, "test/v1", b"payload", &sign_p256(&statement)).unwrap();
    assert!(position.verify(&federation, "test/v1", b"other", &sign_p256(&statement)).is_err());
    assert!(federation.verify_by(position.signer, &key, b"words", &sign_p256(b"words")));
    // An uncompressed point is another name of the same key: it is none in the file.
    let mut long = entry.clone();
    long.members[1].federation_public_keys[0] =
        hex::encode(p256().verifying_key().to_encoded_point(false).as_bytes());
    assert!(matches!(long.check(), Err(FederationError::Field(_))));
}

#[test]
fn s7_a_device_without_eddsa_signs_heads_and_cosigns() {
    let (entry, key) = mixed();
    let federation = entry.check().unwrap();
    let one = OperatorIndex::new(1);
    let note = |index, id: u32, blob: Vec<u8>, text: &[u8]| {
        let origin = checkpoint::origin(&federation, index);
        let signature = signed_note::Signature::new(origin, id, blob).unwrap();
        String::from_utf8(signed_note::Note::new(text, &[signature]).unwrap().to_bytes()).unwrap()
    };
    let text = |index| {
        let (origin, lines) = (checkpoint::origin(&federation, index), Extension::default().to_lines());
        tlog_tiles::Checkpoint::new(&origin, 0, tlog_tiles::EMPTY_HASH, &lines).unwrap().to_bytes()
    };
    // Its own head: C2SP's type 2.
    let own = text(one);
    let blob = key.note_blob(&sign_p256(&own)).unwrap();
    let id = key.note_id(&checkpoint::origin(&federation, one));
    let head = Checkpoint::verify(&note(one, id, blob.clone(), &own), &federation, one).unwrap();
    assert_eq!(head.signed, note(one, id, blob, &own));
    let bare = note(one, id, sign_p256(&own).to_vec(), &own);
    assert!(Checkpoint::verify(&bare, &federation, one).is_err(), "not DER");
    // Another operator's head.
    let zero = OperatorIndex::new(0);
    let said = text(zero);
    let cosign = |time: u64| {
        let signature = sign_p256(&witness::cosigned_message(&said, time));
        witness::line(&federation, one, &key, time, &signature).unwrap()
    };
    let (line, said_text) = (cosign(5), String::from_utf8(said.clone()).unwrap());
    assert_eq!(witness::checked_line(&line, &said, &federation, one), Some((line.clone(), 5)));
    assert_eq!(witness::checked_line(&line, &own, &federation, one), None, "another head");
    let cosigners = witness::cosigners(&format!("{said_text}\n{line}\n"), &federation, zero);
    assert_eq!(cosigners.into_iter().collect::<Vec<_>>(), [(one, 5)]);
}
