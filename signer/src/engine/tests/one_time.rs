//! D14, X25: one-time package keys, from their making to their end.

use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
};
use spark_rules::{
    ids::{LeafId, OperatorIndex, TransferId},
    package,
    package_key::{self, Envelope},
    receipt, vote,
};

use super::{
    Wallet, claim_request, deposit, derive, operation,
    quorum::{Leaf, NOW, OneTime, Quorum},
    send_request_as,
};
use crate::{
    ecies,
    engine::{EngineError, Reply, Request},
    one_time,
    secret::SecretScalar,
    vault::{SecretId, SecretKind, Token as _},
};

const DAY: u64 = 24 * 3600;

fn request(request_id: [u8; 16], count: u32, discard: Vec<Vec<u8>>) -> Request {
    Request::IssuePackageKeys(wire::IssuePackageKeysRequest {
        request_id: request_id.to_vec(),
        count,
        discard,
    })
}

fn ask(
    quorum: &mut Quorum,
    member: usize,
    request: Request,
    now: u64,
) -> Result<wire::IssuePackageKeysResponse, EngineError> {
    match quorum.members[member].engine.run(vec![request], now).remove(0)? {
        Reply::PackageKeys(reply) => Ok(reply),
        _ => panic!(),
    }
}

/// One fresh key of every signer.
pub(super) fn keys(quorum: &mut Quorum) -> Vec<wire::PackageKey> {
    (0..quorum.members.len())
        .map(|m| ask(quorum, m, request(rand::random(), 1, Vec::new()), NOW).unwrap().keys.remove(0))
        .collect()
}

fn secret_of(key: &wire::PackageKey) -> SecretId {
    SecretId::new(key.key_id.as_slice().try_into().unwrap(), SecretKind::PackageKey, 0)
}

/// Whether the vault of a signer still has the secret half.
pub(super) fn lives(quorum: &mut Quorum, member: usize, key: &wire::PackageKey) -> bool {
    quorum.read(member, |txn| txn.has_secret(&secret_of(key)).unwrap())
}

pub(super) fn transfer_id() -> String {
    LeafId::from_bytes(rand::random()).to_string()
}

pub(super) fn parsed(transfer: &str) -> TransferId {
    TransferId::from_bytes(*package::parse_transfer_id(transfer).unwrap().as_bytes())
}

/// A send whose package is sealed to `keys`, and the new key.
fn send(
    quorum: &mut Quorum,
    from: &Wallet,
    to: &Wallet,
    leaf: &Leaf,
    transfer: &str,
    keys: &[wire::PackageKey],
) -> (peer::Operation, SecretScalar) {
    let (kind, owner) = (vote::Kind::Send, from.id());
    quorum.one_time = Some(OneTime { kind, transfer: parsed(transfer), owner, keys: keys.to_vec() });
    let (send, next) = send_request_as(quorum, from, leaf, to.id(), transfer, |_, _| {});
    quorum.one_time = None;
    (operation(quorum, Kind::Send(send)), next)
}

fn finish(quorum: &mut Quorum, request: &peer::Operation) -> Vec<wire::ApplyResponse> {
    let (certificate, opened) = quorum.certify(request).unwrap();
    let derived = derive(quorum, request);
    let proof = quorum.proof(request, &derived, &certificate, &opened);
    (0..quorum.members.len()).map(|m| quorum.apply(m, request, &proof).unwrap()).collect()
}

struct Scene {
    quorum: Quorum,
    alice: Wallet,
    bob: Wallet,
    leaf: Leaf,
}

fn scene() -> Scene {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    Scene { quorum, alice, bob, leaf }
}

fn part(request: &peer::Operation, member: usize) -> Vec<u8> {
    let packages = match request.request.as_ref().unwrap() {
        Kind::Send(send) => &send.transfer_package.as_ref().unwrap().key_tweak_package,
        Kind::Claim(claim) => &claim.claim_package.as_ref().unwrap().key_tweak_package,
        _ => panic!(),
    };
    packages[&OperatorIndex::new(member as u16).identifier_hex()].clone()
}

#[test]
fn d14_a_key_dies_with_the_operation_that_used_it() {
    let Scene { mut quorum, alice, bob, leaf } = scene();
    let (first, second) = (keys(&mut quorum), keys(&mut quorum));
    let transfer = transfer_id();
    let (request, next) = send(&mut quorum, &alice, &bob, &leaf, &transfer, &first);
    let vote = quorum.prepare(0, &request).vote.unwrap();
    assert_eq!(vote.choice(), peer::Choice::Yes, "{}", vote.reason);
    assert!(lives(&mut quorum, 0, &first[0]), "it dies with the staged tweak, not before");
    // Repeated, and after a restart in between: the same vote.
    quorum.restart(0);
    quorum.witness(0).unwrap();
    assert_eq!(quorum.prepare(0, &request).vote, Some(vote));
    for reply in finish(&mut quorum, &request) {
        assert_eq!(reply.receipts[0].package_kind, "one-time");
    }
    for (member, (used, unused)) in first.iter().zip(&second).enumerate() {
        assert!(!lives(&mut quorum, member, used));
        assert!(lives(&mut quorum, member, unused));
    }

    let (kind, owner) = (vote::Kind::Claim, bob.id());
    quorum.one_time = Some(OneTime { kind, transfer: parsed(&transfer), owner, keys: second.clone() });
    let (claim, _) = claim_request(&mut quorum, &bob, &leaf.id, &transfer, &next);
    quorum.one_time = None;
    for reply in quorum.run(Kind::Claim(claim)).unwrap() {
        assert_eq!(reply.receipts[0].package_kind, "one-time");
    }
    for (member, used) in second.iter().enumerate() {
        assert!(!lives(&mut quorum, member, used));
    }
}

#[test]
fn d14_receipts_tell_the_kinds_apart() {
    let Scene { mut quorum, alice, bob, leaf } = scene();
    let (send, _) = send_request_as(&mut quorum, &alice, &leaf, bob.id(), &transfer_id(), |_, _| {});
    for reply in quorum.run(Kind::Send(send)).unwrap() {
        assert_eq!(reply.receipts[0].package_kind, "identity");
    }
}

#[test]
fn d14_a_key_serves_one_operation() {
    let Scene { mut quorum, alice, bob, leaf } = scene();
    let other = deposit(&mut quorum, &alice, 40_000);
    let third = deposit(&mut quorum, &alice, 30_000);
    let keys = keys(&mut quorum);
    let (request, _) = send(&mut quorum, &alice, &bob, &leaf, &transfer_id(), &keys);
    quorum.certify(&request).unwrap();
    let (again, _) = send(&mut quorum, &alice, &bob, &other, &transfer_id(), &keys);
    assert_eq!(quorum.certify(&again).map(drop).unwrap_err(), "PACKAGE_KEY", "while the first is undecided");
    finish(&mut quorum, &request);
    let (late, _) = send(&mut quorum, &alice, &bob, &third, &transfer_id(), &keys);
    assert_eq!(quorum.certify(&late).map(drop).unwrap_err(), "PACKAGE_KEY", "after the first is applied");
}

#[test]
fn d14_what_is_sealed_for_one_owner_and_transfer_opens_in_no_other() {
    let Scene { mut quorum, alice, bob, leaf } = scene();
    let mallory = Wallet::new();
    let hers = deposit(&mut quorum, &mallory, 45_000);
    let keys = keys(&mut quorum);
    let transfer = transfer_id();
    let (request, _) = send(&mut quorum, &alice, &bob, &leaf, &transfer, &keys);
    // Mallory saw the package on its way. She may name its key, and its ciphertexts, in a transfer of her own.
    let (own, _) = send_request_as(&mut quorum, &mallory, &hers, mallory.id(), &transfer_id(), |_, _| {});
    for seen in [true, false] {
        let mut stolen = own.clone();
        let id = package::parse_transfer_id(&stolen.transfer_id).unwrap();
        let package = stolen.transfer_package.as_mut().unwrap();
        for (member, (operator, sealed)) in package.key_tweak_package.iter_mut().enumerate() {
            *sealed = if seen {
                part(&request, member)
            } else {
                // She does not know the public key: it is in no envelope.
                let guess = SecretScalar::random(&mut rand::rngs::OsRng).public_key();
                let key_id = keys[member].key_id.as_slice().try_into().unwrap();
                let index = OperatorIndex::new(member as u16);
                assert_eq!(*operator, index.identifier_hex());
                let kind = vote::Kind::Send;
                let transfer = TransferId::from_bytes(*id.as_bytes());
                let binding = package_key::binding(&quorum.federation, index, kind, &transfer, &mallory.id());
                one_time::seal(&key_id, &guess, &binding, b"tweak", &mut rand::rngs::OsRng).unwrap()
            };
        }
        package.user_signature = mallory.sign(package::transfer_payload(&id, &package.key_tweak_package));
        let mut stolen = operation(&mut quorum, Kind::Send(stolen));
        stolen.attempt = u32::from(!seen);
        assert_eq!(quorum.certify(&stolen).map(drop).unwrap_err(), "PACKAGE_CONTENT");
    }
    // The key was not used up by that.
    finish(&mut quorum, &request);
}

#[test]
fn d14_an_abort_destroys_the_key() {
    let Scene { mut quorum, alice, bob, leaf } = scene();
    let keys = keys(&mut quorum);
    let (request, _) = send(&mut quorum, &alice, &bob, &leaf, &transfer_id(), &keys);
    quorum.certify(&request).unwrap();
    let (operation_id, attempt) = (request.operation_id.clone(), request.attempt);
    let mut votes = Vec::new();
    for (member, key) in keys.iter().enumerate() {
        let ask = wire::SignAbortRequest { operation_id: operation_id.clone(), attempt, aborts: Vec::new() };
        match quorum.call(member, Request::SignAbort(ask)).unwrap() {
            Reply::SignAbort(reply) => votes.push(reply.vote.unwrap()),
            _ => panic!(),
        }
        assert!(lives(&mut quorum, member, key), "a proof of commit may still come");
    }
    for (member, key) in keys.iter().enumerate() {
        let proof = Some(peer::ProofOfAbort { votes: votes.clone() });
        let abort = wire::AbortRequest { operation_id: operation_id.clone(), attempt, proof };
        quorum.call(member, Request::Abort(abort)).unwrap();
        assert!(!lives(&mut quorum, member, key));
        let asked = wire::GetReceiptsRequest { leaf_id: leaf.id.to_string(), tree_size: 0, from: 0 };
        match quorum.call(member, Request::GetReceipts(asked)).unwrap() {
            Reply::Receipts(reply) => {
                let last = reply.receipts.last().unwrap();
                assert_eq!((last.phase.as_str(), last.package_kind.as_str()), ("abort", "one-time"));
            }
            _ => panic!(),
        }
    }
}

#[test]
fn d14_expired_and_discarded_keys_die_unused() {
    let Scene { mut quorum, alice, bob, leaf } = scene();
    let expired = keys(&mut quorum);
    let (request_late, _) = send(&mut quorum, &alice, &bob, &leaf, &transfer_id(), &expired);
    let prepare = Request::Prepare(wire::PrepareRequest { operation: Some(request_late) });
    match quorum.members[2].engine.run(vec![prepare], NOW + DAY).remove(0).unwrap() {
        Reply::Prepare(reply) => assert_eq!(reply.vote.unwrap().reason, "PACKAGE_KEY"),
        _ => panic!(),
    }
    let swept = ask(&mut quorum, 2, request([1; 16], 0, Vec::new()), NOW + DAY).unwrap();
    assert_eq!((swept.destroyed, swept.stock, swept.keys.len()), (1, 0, 0));
    assert!(!lives(&mut quorum, 2, &expired[2]));
    assert_eq!(died_unused(&mut quorum, 2), [expired[2].key_id.as_slice()]);

    let made = ask(&mut quorum, 0, request([2; 16], 3, Vec::new()), NOW).unwrap();
    assert_eq!((made.keys.len(), made.stock), (3, 4));
    let again = ask(&mut quorum, 0, request([2; 16], 3, Vec::new()), NOW).unwrap();
    assert_eq!(again, made, "an answer that was lost is given again");
    let differs = ask(&mut quorum, 0, request([2; 16], 2, Vec::new()), NOW);
    assert!(matches!(differs, Err(EngineError::Differs)));
    let ids = vec![made.keys[0].key_id.clone(), vec![0; 16]];
    let discarded = ask(&mut quorum, 0, request([3; 16], 0, ids), NOW).unwrap();
    assert_eq!((discarded.destroyed, discarded.stock), (1, 3));
    assert!(!lives(&mut quorum, 0, &made.keys[0]) && lives(&mut quorum, 0, &made.keys[1]));
    assert_eq!(
        died_unused(&mut quorum, 0),
        [made.keys[0].key_id.as_slice()],
        "a key that never was has no receipt"
    );

    // One that an operation holds is the operation's.
    let held = vec![made.keys[1].clone(), keys(&mut quorum)[1].clone(), keys(&mut quorum)[2].clone()];
    let (request_held, _) = send(&mut quorum, &alice, &bob, &leaf, &transfer_id(), &held);
    quorum.certify(&request_held).unwrap();
    let ids = vec![held[0].key_id.clone()];
    let kept = ask(&mut quorum, 0, request([4; 16], 0, ids), NOW + 2 * DAY).unwrap();
    assert!(kept.destroyed > 0);
    assert!(lives(&mut quorum, 0, &held[0]));
    finish(&mut quorum, &request_held);
    assert!(!lives(&mut quorum, 0, &held[0]));
}

/// Keys that the log of a signer says to have died unused.
fn died_unused(quorum: &mut Quorum, member: usize) -> Vec<Vec<u8>> {
    let size = quorum.read(member, |txn| crate::engine::deletion_log::size(txn).unwrap());
    let asked = wire::ReadLogRequest { from: 0, until: size };
    let Reply::Log(log) = quorum.call(member, Request::ReadLog(asked)).unwrap() else { panic!() };
    let entries = log.entries.into_iter().filter(|entry| entry.phase == receipt::UNUSED);
    entries.flat_map(|entry| entry.package_keys).collect()
}

#[test]
fn d14_the_stock_is_bounded_and_a_locked_signer_makes_none() {
    let mut quorum = Quorum::new(2, 3);
    let refused = |quorum: &mut Quorum, r| ask(quorum, 0, r, NOW).map(drop).unwrap_err().reason();
    assert_eq!(refused(&mut quorum, request([1; 16], 129, Vec::new())), "FIELD_INVALID");
    assert_eq!(refused(&mut quorum, request([1; 16], 1, vec![vec![1; 15]])), "FIELD_INVALID");
    let short = wire::IssuePackageKeysRequest { request_id: vec![1; 15], count: 1, discard: Vec::new() };
    assert_eq!(refused(&mut quorum, Request::IssuePackageKeys(short)), "FIELD_INVALID");
    for number in 0..64 {
        ask(&mut quorum, 0, request([number; 16], 128, Vec::new()), NOW).unwrap();
    }
    assert_eq!(refused(&mut quorum, request([99; 16], 1, Vec::new())), "PACKAGE_KEY");
    quorum.restart(0);
    assert_eq!(refused(&mut quorum, request([100; 16], 1, Vec::new())), "SIGNER_LOCKED");
}

/// X25: who recorded the packages and later gets the use of the identity key, and whatever the signer still holds,
/// opens what was sealed to the identity key, and nothing that was sealed to a one-time key.
#[test]
fn x25_recorded_packages_do_not_open_later() {
    let Scene { mut quorum, alice, bob, leaf } = scene();
    let other = deposit(&mut quorum, &alice, 40_000);
    let keys = keys(&mut quorum);
    let (one_time_send, _) = send(&mut quorum, &alice, &bob, &leaf, &transfer_id(), &keys);
    let (identity_send, _) =
        send_request_as(&mut quorum, &alice, &other, bob.id(), &transfer_id(), |_, _| {});
    let identity_send = operation(&mut quorum, Kind::Send(identity_send));
    let recorded: Vec<_> = (0..3).map(|m| (part(&one_time_send, m), part(&identity_send, m))).collect();
    finish(&mut quorum, &one_time_send);
    finish(&mut quorum, &identity_send);
    for (member, (new, old)) in recorded.iter().enumerate() {
        let token = quorum.members[member].token.clone();
        let envelope = ecies::Envelope::parse(old).unwrap();
        let x = token.identity_ecdh_x(envelope.ephemeral()).unwrap();
        assert!(envelope.open_with_shared_x(&x).is_ok(), "the bound of public wallets");

        let envelope = Envelope::parse(new).unwrap();
        let id = envelope.key_id;
        assert!(quorum.read(member, |txn| txn.secrets_of(&id).unwrap()).is_empty());
    }
}
