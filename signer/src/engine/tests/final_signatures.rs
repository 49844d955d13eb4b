//! D2, S5, S14: a certificate alone burns nothing. Without every final signature, each verified, nothing is applied.

use spark_proto::peer::v1::{self as peer, FinalSignature, operation::Request as Kind};
use spark_rules::tx::RenewalPath;

use super::{
    Wallet, bound, claim_request, deposit, deposit_request, derive, operation,
    quorum::{Leaf, Quorum},
    renewals::{renewal, worn},
    send_request,
};
use crate::vault::{RootId, SecretId, SecretKind};

/// What a refused apply must leave at a signer as it was.
#[derive(Debug, PartialEq)]
struct State {
    root: RootId,
    log_size: u64,
    record: Vec<u8>,
    /// Whether the share of the present version is there, and whether one of the next is.
    shares: (bool, bool),
    /// Staged tweaks and sealed shares of the operation.
    staged: Vec<SecretId>,
}

impl State {
    fn of(quorum: &mut Quorum, member: usize, request: &peer::Operation, leaf: &Leaf, version: u64) -> Self {
        let record = quorum.leaf(member, &leaf.id);
        let owner = *record.keyshare_id.as_bytes();
        let engine = &mut quorum.members[member].engine;
        let log_size = engine.log_size().unwrap();
        assert_eq!(engine.alarms().count(), 0);
        let vault = engine.vault();
        let share = |version| vault.has_secret(&SecretId::new(owner, SecretKind::Keyshare, version)).unwrap();
        let operation: [u8; 16] = request.operation_id.clone().try_into().unwrap();
        Self {
            root: vault.root(),
            log_size,
            record: record.encode(),
            shares: (share(version), share(version + 1)),
            staged: vault.secrets_of(&operation).unwrap(),
        }
    }

    fn tweaks(&self) -> usize {
        self.staged.iter().filter(|id| id.kind == SecretKind::StagedTweak).count()
    }
}

/// An operation with everybody's YES, and all shares released.
fn proven(quorum: &mut Quorum, request: Kind) -> (peer::Operation, peer::ProofOfCommit) {
    let request = operation(quorum, request);
    let (certificate, opened) = quorum.certify(&request).unwrap();
    let derived = derive(quorum, &request);
    let proof = quorum.proof(&request, &derived, &certificate, &opened);
    (request, proof)
}

/// Final signatures that are not all of the operation's: each list by what is wrong with it.
fn wrong(good: &[FinalSignature], foreign: &[FinalSignature]) -> Vec<(String, Vec<FinalSignature>)> {
    let mut lists = vec![("none".to_owned(), Vec::new())];
    let mut add = |what: String, change: &dyn Fn(&mut Vec<FinalSignature>)| {
        let mut list = good.to_vec();
        change(&mut list);
        assert_ne!(list, good, "{what}");
        lists.push((what, list));
    };
    let jobs = good.len();
    for job in 0..jobs {
        add(format!("{job} missing"), &|list| drop(list.remove(job)));
        add(format!("{job} twice"), &|list| list.push(good[job].clone()));
        add(format!("{job} twice, another missing"), &|list| list[(job + 1) % jobs] = good[job].clone());
        add(format!("{job} swapped"), &|list| {
            list[job].signature.clone_from(&good[(job + 1) % jobs].signature);
            list[(job + 1) % jobs].signature.clone_from(&good[job].signature);
        });
        for byte in [0, 31, 32, 63] {
            add(format!("{job} bent at {byte}"), &|list| list[job].signature[byte] ^= 1);
        }
        add(format!("{job} zero"), &|list| list[job].signature.fill(0));
        add(format!("{job} of another leaf"), &|list| {
            list[job].signature.clone_from(&foreign[job].signature);
        });
        add(format!("{job} short"), &|list| list[job].signature.truncate(63));
        add(format!("{job} with a sighash type"), &|list| list[job].signature.push(1));
    }
    add("one too many".to_owned(), &|list| {
        list.push(FinalSignature { job: jobs as u32, signature: good[0].signature.clone() });
    });
    add("a job that no machine counts".to_owned(), &|list| {
        list.push(FinalSignature { job: u32::MAX, signature: good[0].signature.clone() });
    });
    add("all of another leaf".to_owned(), &|list| *list = foreign.to_vec());
    lists
}

/// Shows `request`, about `leaf`, with every wrong list to every signer, and then as it is. `tweaked`: it stages one.
fn nothing_is_burnt(quorum: &mut Quorum, leaf: &Leaf, tweaked: bool, request: Kind, foreign: Kind) {
    let version = quorum.leaf(0, &leaf.id).version;
    let (_, foreign) = proven(quorum, foreign);
    let (request, proof) = proven(quorum, request);
    for member in 0..3 {
        let before = State::of(quorum, member, &request, leaf, version);
        assert_eq!((before.shares, before.tweaks()), ((true, false), usize::from(tweaked)));
        for (what, signatures) in wrong(&proof.signatures, &foreign.signatures) {
            let bad = peer::ProofOfCommit { signatures, ..proof.clone() };
            let refused = quorum.apply(member, &request, &bad);
            let reason = refused.map(drop).map_err(|error| error.reason());
            assert_eq!(reason, Err("FINAL_SIGNATURE"), "{what}");
            assert_eq!(State::of(quorum, member, &request, leaf, version), before, "{what}");
        }
        // None of that took anything from the proof.
        quorum.apply(member, &request, &proof).unwrap();
        let after = State::of(quorum, member, &request, leaf, version);
        assert_eq!((after.shares, after.staged.len()), ((false, true), 0));
        assert_eq!((after.log_size, after.root.epoch), (before.log_size + 1, before.root.epoch + 1));
        assert_ne!(after.record, before.record);
    }
}

/// A send of `leaf` by `from`.
fn send(quorum: &mut Quorum, from: &Wallet, leaf: &Leaf, to: &Wallet) -> Kind {
    Kind::Send(send_request(quorum, from, leaf, to.id()).0)
}

#[test]
fn a_send_needs_every_final_signature() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let (leaf, other) = (deposit(&mut quorum, &alice, 50_000), deposit(&mut quorum, &alice, 50_000));
    let request = send(&mut quorum, &alice, &leaf, &bob);
    let foreign = send(&mut quorum, &alice, &other, &bob);
    nothing_is_burnt(&mut quorum, &leaf, true, request, foreign);
}

#[test]
fn a_claim_needs_every_final_signature() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let claim_of = |quorum: &mut Quorum, leaf: &Leaf| {
        let (send, received) = send_request(quorum, &alice, leaf, bob.id());
        let transfer = send.transfer_id.clone();
        quorum.run(Kind::Send(send)).unwrap();
        Kind::Claim(claim_request(quorum, &bob, &leaf.id, &transfer, &received).0)
    };
    let (leaf, other) = (deposit(&mut quorum, &alice, 50_000), deposit(&mut quorum, &alice, 50_000));
    let request = claim_of(&mut quorum, &leaf);
    let foreign = claim_of(&mut quorum, &other);
    nothing_is_burnt(&mut quorum, &leaf, true, request, foreign);
}

#[test]
fn a_renewal_needs_every_final_signature() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let (leaf, other) = (deposit(&mut quorum, &alice, 50_000), deposit(&mut quorum, &alice, 50_000));
    let renewal_of = |quorum: &mut Quorum, leaf: &Leaf| {
        let fresh = quorum.leaf(0, &leaf.id);
        quorum.plant(&worn(&fresh, 300));
        Kind::Renew(renewal(quorum, &alice, leaf, RenewalPath::Zero))
    };
    let request = renewal_of(&mut quorum, &leaf);
    let foreign = renewal_of(&mut quorum, &other);
    nothing_is_burnt(&mut quorum, &leaf, false, request, foreign);
}

/// The one that moves a version: it takes the place of an earlier output.
#[test]
fn a_deposit_needs_every_final_signature() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let (leaf, key) = bound(&mut quorum, &alice);
    let (other, other_key) = bound(&mut quorum, &alice);
    let first = deposit_request(&mut quorum, &alice, &leaf.key, key, 50_000);
    quorum.run(Kind::Deposit(first)).unwrap();
    let request = deposit_request(&mut quorum, &alice, &leaf.key, key, 70_000);
    let foreign = deposit_request(&mut quorum, &alice, &other.key, other_key, 70_000);
    nothing_is_burnt(&mut quorum, &leaf, false, Kind::Deposit(request), Kind::Deposit(foreign));
}

/// The first deposit burns nothing; without its signatures there is no leaf, either.
#[test]
fn a_first_deposit_makes_no_leaf_without_its_signatures() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let (leaf, key) = bound(&mut quorum, &alice);
    let (other, other_key) = bound(&mut quorum, &alice);
    let request = deposit_request(&mut quorum, &alice, &leaf.key, key, 50_000);
    let foreign = deposit_request(&mut quorum, &alice, &other.key, other_key, 50_000);
    let (_, foreign) = proven(&mut quorum, Kind::Deposit(foreign));
    let (request, proof) = proven(&mut quorum, Kind::Deposit(request));
    for member in 0..3 {
        let there = |quorum: &mut Quorum| {
            quorum.read(member, |txn| crate::engine::ledger::leaf(txn, &leaf.id).unwrap().is_some())
        };
        let root = quorum.members[member].engine.vault().root();
        for (what, signatures) in wrong(&proof.signatures, &foreign.signatures) {
            let bad = peer::ProofOfCommit { signatures, ..proof.clone() };
            let refused = quorum.apply(member, &request, &bad).unwrap_err();
            assert_eq!(refused.reason(), "FINAL_SIGNATURE", "{what}");
            assert!(!there(&mut quorum), "{what}");
            assert_eq!(quorum.members[member].engine.vault().root(), root);
        }
        quorum.apply(member, &request, &proof).unwrap();
        assert!(there(&mut quorum));
    }
}
