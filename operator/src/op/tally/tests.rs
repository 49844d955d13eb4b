use std::collections::BTreeSet;

use bitcoin::secp256k1::{PublicKey, SECP256K1, SecretKey};
use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;
use spark_rules::{
    federation::{FederationEntry, MemberEntry},
    ids::Incarnation,
    vote::{Ballot, Kind, Position},
};

use super::*;

const OPERATION: OperationId = OperationId::from_bytes([9; 16]);

fn key(index: u16) -> SigningKey {
    SigningKey::from_bytes(&[index as u8 + 1; 32])
}

fn federation(n: u16, threshold: u16) -> Federation {
    let members = (0..n)
        .map(|i| {
            let secret = SecretKey::from_slice(&[i as u8 + 1; 32]).unwrap();
            MemberEntry {
                identity_public_key: PublicKey::from_secret_key(SECP256K1, &secret).to_string(),
                federation_public_keys: vec![hex::encode(key(i).verifying_key().to_bytes())],
                tls_spki_sha256: vec![hex::encode([i as u8 + 100; 32])],
                peer_address: format!("127.0.0.1:{}", 9000 + i),
                public_address: format!("https://127.0.0.1:{}", 8000 + i),
            }
        })
        .collect();
    let entry = FederationEntry {
        epoch: 1,
        network: "regtest".to_owned(),
        threshold,
        quorum: None,
        faults: None,
        members,
    };
    entry.check().unwrap()
}

fn named(indices: &[u16]) -> BTreeSet<OperatorIndex> {
    indices.iter().copied().map(OperatorIndex::new).collect()
}

fn vote(
    federation: &Federation,
    signer: u16,
    choice: Choice,
    digest: u8,
    named: &BTreeSet<OperatorIndex>,
    reason: &str,
) -> wire::Vote {
    let position = Position {
        federation_epoch: 1,
        signer: OperatorIndex::new(signer),
        incarnation: Incarnation::from_bytes([1; 16]),
        root_epoch: 1,
        sequence: 7,
    };
    let ballot = Ballot {
        operation: OPERATION,
        attempt: 0,
        kind: Kind::Send,
        choice,
        digest: [digest; 32],
        named: named.clone(),
    };
    let signature = key(signer).sign(&ballot.statement(federation, &position)).to_bytes().to_vec();
    ballot.into_wire(position, signature, reason.to_owned())
}

#[test]
fn all_yes_certifies() {
    let federation = federation(3, 2);
    let named = named(&[0, 2]);
    let mut tally = Tally::new(&federation, OPERATION, 0, named.clone());
    for signer in 0..3 {
        let Verdict::Waiting(missing) = tally.verdict() else { panic!() };
        assert_eq!(missing.len(), 3 - usize::from(signer));
        tally.record(&vote(&federation, signer, Choice::Yes, 1, &named, "")).unwrap();
    }
    let Verdict::Certified(certificate) = tally.verdict() else { panic!() };
    Certificate::verify(&certificate, &federation).unwrap();
}

#[test]
fn a_no_refuses_and_only_named_aborts_prove_it() {
    let federation = federation(3, 2);
    let named = named(&[0, 2]);
    let mut tally = Tally::new(&federation, OPERATION, 0, named.clone());
    tally.record(&vote(&federation, 0, Choice::Yes, 1, &named, "")).unwrap();
    tally.record(&vote(&federation, 1, Choice::No, 0, &named, "LEAF_UNAVAILABLE")).unwrap();
    assert_eq!(tally.verdict(), Verdict::Refused { reason: "LEAF_UNAVAILABLE".to_owned() });
    assert_eq!(tally.abort_missing(), named);
    tally.record(&vote(&federation, 0, Choice::Abort, 1, &named, "")).unwrap();
    assert!(matches!(tally.verdict(), Verdict::Refused { .. }));
    tally.record(&vote(&federation, 2, Choice::Abort, 1, &named, "")).unwrap();
    assert!(matches!(tally.verdict(), Verdict::Aborted(_)));
}

#[test]
fn different_digests_refuse() {
    let federation = federation(3, 2);
    let named = named(&[0, 1]);
    let mut tally = Tally::new(&federation, OPERATION, 0, named.clone());
    for (signer, digest) in [(0, 1), (1, 1), (2, 2)] {
        tally.record(&vote(&federation, signer, Choice::Yes, digest, &named, "")).unwrap();
    }
    assert_eq!(tally.verdict(), Verdict::Refused { reason: "DIGEST_MISMATCH".to_owned() });
}

#[test]
fn foreign_votes_are_not_counted() {
    let federation = federation(3, 2);
    let named = named(&[0, 1]);
    let mut tally = Tally::new(&federation, OPERATION, 1, named.clone());
    assert!(matches!(
        tally.record(&vote(&federation, 0, Choice::Yes, 1, &named, "")),
        Err(VoteError::Disagree("operation"))
    ));
    let mut tally = Tally::new(&federation, OPERATION, 0, named.clone());
    let mut forged = vote(&federation, 0, Choice::Yes, 1, &named, "");
    forged.choice = wire::Choice::Abort.into();
    assert!(matches!(tally.record(&forged), Err(VoteError::Signature(0))));
    let other = self::named(&[0, 2]);
    assert!(matches!(
        tally.record(&vote(&federation, 0, Choice::Yes, 1, &other, "")),
        Err(VoteError::Disagree("named"))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever order votes come in: a certificate needs every YES over one digest and no ABORT of a named signer; a
    /// proof of abort needs all named signers; the two never follow from one set of votes.
    #[test]
    fn verdicts_follow_from_the_votes(
        n in 3u16..6,
        choices in prop::collection::vec((0u16..5, 0u8..3, 1u8..3), 0..20),
    ) {
        let federation = federation(n, 2);
        let named = named(&[0, n - 1]);
        let mut tally = Tally::new(&federation, OPERATION, 0, named.clone());
        let (mut yes, mut aborted) = (BTreeMap::new(), BTreeSet::new());
        for (signer, choice, digest) in choices {
            let signer = signer % n;
            let choice = [Choice::Yes, Choice::No, Choice::Abort][usize::from(choice)];
            tally.record(&vote(&federation, signer, choice, digest, &named, "")).unwrap();
            if choice.aborts() { aborted.insert(signer); } else { yes.entry(signer).or_insert(digest); }
        }
        let all_named_aborted = [0, n - 1].iter().all(|i| aborted.contains(i));
        let named_aborted = [0, n - 1].iter().any(|i| aborted.contains(i));
        let digests: BTreeSet<_> = yes.values().collect();
        match tally.verdict() {
            Verdict::Aborted(proof) => {
                prop_assert!(all_named_aborted);
                prop_assert!(ProofOfAbort::verify(&proof, &federation, OPERATION, 0, &named).is_ok());
            }
            Verdict::Certified(certificate) => {
                prop_assert!(!named_aborted && yes.len() == usize::from(n) && digests.len() == 1);
                prop_assert!(Certificate::verify(&certificate, &federation).is_ok());
            }
            Verdict::Refused { .. } => prop_assert!(!all_named_aborted && (!aborted.is_empty() || digests.len() > 1)),
            Verdict::Waiting(missing) => {
                prop_assert!(aborted.is_empty() && digests.len() <= 1);
                prop_assert_eq!(missing.len(), usize::from(n) - yes.len());
            }
        }
    }
}
