//! D12: shares of a leaf are refreshed, its key stays; whoever deals wrongly is named, and nothing changes.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::{PublicKey, SECP256K1};
use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
};
use spark_rules::{
    frost::{Coefficients, to_secp},
    ids::OperatorIndex,
    operation::{Deal, Resource, deal_payload},
    point,
    vote::{Position, VoteError},
};

use super::{
    Wallet, deposit, derive, operation,
    quorum::{Leaf, Quorum},
    repairs::transfer,
    send_request,
};
use crate::{
    ecies,
    engine::{ApprovedRepair, EngineError, Reply, Request, ledger, prepare},
    secret::SecretScalar,
    vault::{SecretKind, Token as _},
};

/// The coordinator's repair is approved at the others.
fn permit(quorum: &mut Quorum) {
    let coordinator = &quorum.members[0];
    let approval = ApprovedRepair {
        incarnation: coordinator.engine.shared.incarnation,
        federation_key: coordinator.token.federation_public_key(),
    };
    for member in &mut quorum.members[1..] {
        member.engine.shared.approved.insert(OperatorIndex::new(0), approval.clone());
    }
}

/// An opened session over some leaves.
pub(super) struct Session {
    request: wire::RefreshOpenRequest,
    openings: Vec<wire::RefreshOpening>,
}

fn open(
    quorum: &mut Quorum,
    member: usize,
    request: &wire::RefreshOpenRequest,
) -> Result<wire::RefreshOpening, EngineError> {
    match quorum.call(member, Request::RefreshOpen(request.clone()))? {
        Reply::RefreshOpening(opening) => Ok(opening),
        _ => panic!(),
    }
}

impl Session {
    pub(super) fn open(quorum: &mut Quorum, leaves: &[&Leaf]) -> Result<Self, EngineError> {
        permit(quorum);
        let mut leaf_ids: Vec<_> = leaves.iter().map(|leaf| leaf.id.to_string()).collect();
        leaf_ids.sort();
        let session_id = rand::random::<[u8; 16]>().to_vec();
        let request = wire::RefreshOpenRequest { session_id, coordinator: 0, leaf_ids };
        let openings =
            (0..quorum.members.len()).map(|m| open(quorum, m, &request)).collect::<Result<_, _>>()?;
        Ok(Self { request, openings })
    }

    fn deal(&self, quorum: &mut Quorum, member: usize) -> Result<peer::RefreshDeal, EngineError> {
        let session_id = self.request.session_id.clone();
        let set = wire::RefreshOpeningSet { session_id, messages: self.openings.clone() };
        match quorum.call(member, Request::RefreshDeal(set))? {
            Reply::RefreshDeal(deal) => Ok(deal),
            _ => panic!(),
        }
    }

    fn deals(&self, quorum: &mut Quorum) -> Vec<peer::RefreshDeal> {
        (0..quorum.members.len()).map(|m| self.deal(quorum, m).unwrap()).collect()
    }

    fn request(&self, quorum: &mut Quorum, deals: Vec<peer::RefreshDeal>) -> peer::Operation {
        let refresh = peer::Refresh {
            session_id: self.request.session_id.clone(),
            leaf_ids: self.request.leaf_ids.clone(),
            deciders: (1..=quorum.threshold()).map(u32::from).collect(),
            deals,
        };
        operation(quorum, Kind::Refresh(refresh))
    }

    pub(super) fn dealt(&self, quorum: &mut Quorum) -> peer::Operation {
        let deals = self.deals(quorum);
        self.request(quorum, deals)
    }
}

/// The whole of it.
pub(super) fn refresh(quorum: &mut Quorum, leaves: &[&Leaf]) {
    let request = Session::open(quorum, leaves).unwrap().dealt(quorum);
    quorum.run(request.request.unwrap()).unwrap();
}

fn share(quorum: &mut Quorum, member: usize, leaf: &Leaf, version: u64) -> Option<PublicKey> {
    let record = quorum.leaf(member, &leaf.id);
    let id = prepare::keyshare_secret(&record.keyshare_id, version);
    quorum.read(member, |txn| prepare::read_scalar(txn, &id).ok().map(|share| share.public_key()))
}

/// The key that shares of these members make, whichever versions they are of.
pub(super) fn combined(shares: &BTreeMap<usize, PublicKey>) -> PublicKey {
    let members: BTreeSet<_> = shares.keys().map(|m| OperatorIndex::new(*m as u16)).collect();
    let weights = Coefficients::new(&members);
    let parts: Vec<_> = members
        .iter()
        .map(|m| {
            let weight = to_secp(weights.get(*m).unwrap());
            shares[&m.as_usize()].mul_tweak(SECP256K1, &weight).unwrap()
        })
        .collect();
    PublicKey::combine_keys(&parts.iter().collect::<Vec<_>>()).unwrap()
}

pub(super) fn receipts(quorum: &mut Quorum, member: usize, leaf: &Leaf) -> Vec<peer::Receipt> {
    let request = wire::GetReceiptsRequest { leaf_id: leaf.id.to_string(), tree_size: 0, from: 0 };
    match quorum.call(member, Request::GetReceipts(request)).unwrap() {
        Reply::Receipts(reply) => reply.receipts,
        _ => panic!(),
    }
}

/// Nothing of a refresh is left, and the leaf is as it was.
fn untouched(quorum: &mut Quorum, leaf: &Leaf, version: u64) {
    for member in 0..quorum.members.len() {
        let record = quorum.leaf(member, &leaf.id);
        assert_eq!(record.version, version);
        assert_eq!(share(quorum, member, leaf, version), Some(record.public_shares[member]));
    }
}

fn whole(t: u16, n: u16) {
    let mut quorum = Quorum::new(t, n);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaves = [deposit(&mut quorum, &alice, 50_000), deposit(&mut quorum, &alice, 60_000)];
    let moved = deposit(&mut quorum, &alice, 70_000);
    let moved = transfer(&mut quorum, &alice, &moved, &bob);
    let all = [&leaves[0], &leaves[1], &moved];
    let before: Vec<_> = all.iter().map(|leaf| quorum.leaf(0, &leaf.id)).collect();
    refresh(&mut quorum, &all);
    let (t, n) = (usize::from(t), usize::from(n));
    for (leaf, before) in all.iter().zip(&before) {
        let after = quorum.leaf(0, &leaf.id);
        assert_eq!(after.version, before.version + 1);
        assert_eq!((after.group_key, after.owner_key), (before.group_key, before.owner_key));
        assert_eq!(after.refunds, before.refunds);
        assert_ne!(after.last_proof, before.last_proof);
        for member in 0..n {
            assert_eq!(quorum.leaf(member, &leaf.id), after);
            assert_ne!(after.public_shares[member], before.public_shares[member]);
            assert_eq!(share(&mut quorum, member, leaf, after.version), Some(after.public_shares[member]));
            let left = quorum.read(member, |txn| txn.secrets_of(after.keyshare_id.as_bytes()).unwrap());
            assert_eq!(left.len(), 1, "the old share lives");
            let last = receipts(&mut quorum, member, leaf).pop().unwrap();
            assert_eq!((last.phase.as_str(), last.new_version), ("refresh", after.version));
            assert_eq!((last.live_versions, last.package_kind.as_str()), (vec![after.version], "one-time"));
            let tweak = point::parse("tweak", &last.tweak_commitment).unwrap();
            let sum = before.public_shares[member].combine(&tweak).unwrap();
            assert_eq!(sum, after.public_shares[member]);
        }
        let of = |shares: &[PublicKey], members: std::ops::Range<usize>| -> BTreeMap<usize, PublicKey> {
            members.map(|m| (m, shares[m])).collect()
        };
        assert_eq!(combined(&of(&after.public_shares, n - t..n)), after.group_key);
        // One old share among t is enough to make nothing.
        let mut mixed = of(&after.public_shares, n - t..n);
        mixed.insert(n - 1, before.public_shares[n - 1]);
        assert_ne!(combined(&mixed), after.group_key);
    }
    // The next owner's refunds are signed with the new shares.
    let moved = transfer(&mut quorum, &bob, &moved, &alice);
    refresh(&mut quorum, &[&moved]);
    transfer(&mut quorum, &alice, &moved, &bob);
    transfer(&mut quorum, &alice, &leaves[0], &bob);
}

#[test]
fn d12_a_refresh_changes_every_share_and_no_key() {
    whole(2, 3);
    whole(3, 5);
}

/// What a dealer whose polynomial is not of the right kind sends, signed by its own key: f(i) for the i-th operator.
fn crooked(
    quorum: &Quorum,
    session: &Session,
    honest: &peer::RefreshDeal,
    commitments: &[&SecretScalar],
    value: impl Fn(usize) -> SecretScalar,
) -> peer::RefreshDeal {
    let mut deal = peer::RefreshDeal {
        commitments: commitments.iter().map(|c| c.public_key().serialize().to_vec()).collect(),
        ..honest.clone()
    };
    for (to, opening) in session.openings.iter().enumerate() {
        let key = point::parse("encryption_key", &opening.encryption_key).unwrap();
        let bytes = value(to).to_bytes();
        let sealed = ecies::seal(&key, bytes.as_slice(), &mut rand::rngs::OsRng).unwrap();
        deal.ciphertexts.insert(to as u32, sealed);
    }
    sign(quorum, deal)
}

fn sign(quorum: &Quorum, mut deal: peer::RefreshDeal) -> peer::RefreshDeal {
    let position = Position::parse(deal.position.as_ref()).unwrap();
    let statement = position.statement(&quorum.federation, Deal::DOMAIN, &deal_payload(&deal));
    let token = &quorum.members[deal.dealer as usize].token;
    deal.signature = token.sign_federation(&statement).unwrap().to_vec();
    deal
}

fn number(value: u8) -> SecretScalar {
    let mut bytes = [0; 32];
    bytes[31] = value;
    SecretScalar::from_bytes(&bytes).unwrap()
}

/// The votes of all members on a refresh in which member 1 deals what `tamper` makes of its honest part.
fn votes(tamper: impl FnOnce(&Quorum, &Session, &peer::RefreshDeal) -> peer::RefreshDeal) -> Vec<String> {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let session = Session::open(&mut quorum, &[&leaf]).unwrap();
    let mut deals = session.deals(&mut quorum);
    deals[1] = tamper(&quorum, &session, &deals[1]);
    let request = session.request(&mut quorum, deals);
    let votes: Vec<_> = (0..3).map(|m| quorum.prepare(m, &request).vote.unwrap()).collect();
    let certificate = peer::Certificate { votes: votes.clone() };
    let release = wire::ReleaseRequest {
        operation_id: request.operation_id.clone(),
        certificate: Some(certificate),
        ..wire::ReleaseRequest::default()
    };
    assert!((0..3).all(|m| quorum.call(m, Request::Release(release.clone())).is_err()), "somebody commits");
    untouched(&mut quorum, &leaf, 0);
    votes
        .into_iter()
        .map(|vote| if vote.choice() == peer::Choice::Yes { String::new() } else { vote.reason })
        .collect()
}

#[test]
fn d12_a_constant_term_other_than_zero_is_named() {
    // 5 + 7x, committed to as 7x: there is no place for the other commitment.
    let votes = votes(|quorum, session, honest| {
        crooked(quorum, session, honest, &[&number(7)], |to| number(5 + 7 * (to as u8 + 1)))
    });
    assert_eq!((votes[0].as_str(), votes[2].as_str()), ("REFRESH_SHARE_1", "REFRESH_SHARE_1"));
}

#[test]
fn d12_another_degree_is_named() {
    // 7x + 3x², with both commitments, or with one.
    let value = |to: usize| {
        let x = to as u8 + 1;
        number(7 * x + 3 * x * x)
    };
    let seen =
        votes(|quorum, session, honest| crooked(quorum, session, honest, &[&number(7), &number(3)], value));
    assert_eq!(seen, ["REFRESH_DEAL_1"; 3]);
    let seen = votes(|quorum, session, honest| crooked(quorum, session, honest, &[&number(7)], value));
    assert_eq!((seen[0].as_str(), seen[2].as_str()), ("REFRESH_SHARE_1", "REFRESH_SHARE_1"));
    let seen = votes(|quorum, session, honest| crooked(quorum, session, honest, &[], value));
    assert_eq!(seen, ["REFRESH_DEAL_1"; 3]);
}

#[test]
fn d12_a_value_off_the_polynomial_is_named_by_whom_it_reaches() {
    let seen = votes(|quorum, session, honest| {
        crooked(quorum, session, honest, &[&number(7)], |to| number(7 * (to as u8 + 1) + u8::from(to == 2)))
    });
    assert_eq!((seen[0].as_str(), seen[2].as_str()), ("", "REFRESH_SHARE_1"));
    // What nobody can open, and an envelope of no or too many values.
    for garbage in [Vec::new(), vec![9; 100]] {
        let seen = votes(|quorum, _, honest| {
            let mut deal = honest.clone();
            deal.ciphertexts.insert(2, garbage);
            sign(quorum, deal)
        });
        assert_eq!((seen[0].as_str(), seen[2].as_str()), ("", "REFRESH_SHARE_1"));
    }
    // A recipient left out, another one added, and a hand other than the dealer's.
    let left_out = votes(|quorum, _, honest| {
        let mut deal = honest.clone();
        deal.ciphertexts.remove(&2);
        sign(quorum, deal)
    });
    let added = votes(|quorum, _, honest| {
        let mut deal = honest.clone();
        deal.ciphertexts.insert(3, Vec::new());
        sign(quorum, deal)
    });
    let unsigned = votes(|_, _, honest| peer::RefreshDeal { signature: vec![0; 64], ..honest.clone() });
    for seen in [left_out, added, unsigned] {
        assert_eq!(seen, ["REFRESH_DEAL_1"; 3]);
    }
}

/// Two deals of one session: at least one signer does not find its own, or the digests differ.
#[test]
fn d12_a_dealer_that_says_two_things_gets_no_certificate() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let session = Session::open(&mut quorum, &[&leaf]).unwrap();
    let deals = session.deals(&mut quorum);
    let mut other = deals.clone();
    other[1] = crooked(&quorum, &session, &deals[1], &[&number(7)], |to| number(7 * (to as u8 + 1)));
    let (first, second) = (session.request(&mut quorum, deals), session.request(&mut quorum, other));
    let yes = quorum.prepare(0, &first).vote.unwrap();
    let also = quorum.prepare(2, &second).vote.unwrap();
    assert_eq!((yes.choice(), also.choice()), (peer::Choice::Yes, peer::Choice::Yes));
    assert_ne!(yes.digest, also.digest);
    assert_eq!(quorum.prepare(1, &second).vote.unwrap().reason, "REFRESH");
    untouched(&mut quorum, &leaf, 0);
}

#[test]
fn d12_replays_change_nothing() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let session = Session::open(&mut quorum, &[&leaf]).unwrap();
    assert_eq!(session.openings[1], open(&mut quorum, 1, &session.request).unwrap());
    let deals = session.deals(&mut quorum);
    assert_eq!(deals, session.deals(&mut quorum), "a repeat deals anew");
    let request = session.request(&mut quorum, deals.clone());
    let (certificate, opened) = quorum.certify(&request).unwrap();
    assert_eq!(quorum.certify(&request).unwrap().0, certificate);
    let derived = derive(&mut quorum, &request);
    let proof = quorum.proof(&request, &derived, &certificate, &opened);
    for _ in 0..2 {
        (0..3).for_each(|m| drop(quorum.apply(m, &request, &proof).unwrap()));
    }
    assert_eq!(quorum.leaf(0, &leaf.id).version, 1);
    // The session is over: neither it nor what was dealt in it serves again.
    assert!(matches!(open(&mut quorum, 0, &session.request), Err(EngineError::Refresh(_))));
    assert!(matches!(session.deal(&mut quorum, 0), Err(EngineError::Refresh(_))));
    let next = Session::open(&mut quorum, &[&leaf]).unwrap();
    let fresh = next.deals(&mut quorum);
    let mut renamed = deals.clone();
    renamed.iter_mut().for_each(|deal| deal.session_id = next.request.session_id.clone());
    let replayed = next.request(&mut quorum, renamed);
    assert_eq!(quorum.prepare(0, &replayed).vote.unwrap().reason, "REFRESH_DEAL_0");
    // Signed anew, by all, what was dealt to other keys opens for nobody.
    let mut signed = deals;
    for deal in &mut signed {
        (deal.session_id, deal.openings) = (next.request.session_id.clone(), fresh[0].openings.clone());
        *deal = sign(&quorum, deal.clone());
    }
    let replayed = next.request(&mut quorum, signed);
    assert_eq!(quorum.prepare(1, &replayed).vote.unwrap().reason, "REFRESH");
    untouched(&mut quorum, &leaf, 1);
}

/// A leaf has one live claim: whoever comes second loses, or waits.
#[test]
fn d12_a_leaf_in_a_transfer_is_not_refreshed() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    // Opened and dealt before the send, prepared after it.
    let session = Session::open(&mut quorum, &[&leaf]).unwrap();
    let refresh = session.dealt(&mut quorum);
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let sent = operation(&mut quorum, Kind::Send(send));
    let (certificate, opened) = quorum.certify(&sent).unwrap();
    assert_eq!(quorum.certify(&refresh).unwrap_err(), "LEAF_UNAVAILABLE");
    assert!(Session::open(&mut quorum, &[&leaf]).is_err(), "held, and opened");
    let derived = derive(&mut quorum, &sent);
    let proof = quorum.proof(&sent, &derived, &certificate, &opened);
    (0..3).for_each(|m| drop(quorum.apply(m, &sent, &proof).unwrap()));
    // Sent and not claimed: the claim brings new shares itself.
    let refused = Session::open(&mut quorum, &[&leaf]).err().unwrap();
    assert_eq!(refused.reason(), "LEAF_UNAVAILABLE");
    untouched(&mut quorum, &leaf, 1);

    // The other way round: a send waits for the refresh, and is made of what follows it.
    let other = deposit(&mut quorum, &alice, 60_000);
    let refresh = Session::open(&mut quorum, &[&other]).unwrap().dealt(&mut quorum);
    let (certificate, opened) = quorum.certify(&refresh).unwrap();
    let (send, _) = send_request(&mut quorum, &alice, &other, bob.id());
    let sent = operation(&mut quorum, Kind::Send(send));
    assert_eq!(quorum.certify(&sent).unwrap_err(), "LEAF_UNAVAILABLE");
    let derived = derive(&mut quorum, &refresh);
    let proof = quorum.proof(&refresh, &derived, &certificate, &opened);
    (0..3).for_each(|m| drop(quorum.apply(m, &refresh, &proof).unwrap()));
    transfer(&mut quorum, &alice, &other, &bob);
}

/// Whoever crashes before its vote forgets the session and votes NO; from the vote on a restart loses nothing.
#[test]
fn d12_a_crash_at_each_step_of_a_refresh() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let crash = |quorum: &mut Quorum, member: usize| {
        quorum.restart(member);
        quorum.witness(member).unwrap();
    };
    let session = Session::open(&mut quorum, &[&leaf]).unwrap();
    crash(&mut quorum, 1);
    assert!(matches!(session.deal(&mut quorum, 1), Err(EngineError::Refresh(_))), "opened, then a crash");
    let session = Session::open(&mut quorum, &[&leaf]).unwrap();
    let request = session.dealt(&mut quorum);
    crash(&mut quorum, 1);
    assert_eq!(quorum.prepare(0, &request).vote.unwrap().choice(), peer::Choice::Yes);
    assert_eq!(quorum.prepare(1, &request).vote.unwrap().reason, "REFRESH", "dealt, then a crash");
    // Ended by a proof of abort: what member 0 staged dies, and its log says so.
    let mut votes = Vec::new();
    for member in 0..3 {
        let abort = wire::SignAbortRequest {
            operation_id: request.operation_id.clone(),
            attempt: 0,
            aborts: votes.clone(),
        };
        match quorum.call(member, Request::SignAbort(abort)).unwrap() {
            Reply::SignAbort(reply) => votes.push(reply.vote.unwrap()),
            _ => panic!(),
        }
    }
    let proof = Some(peer::ProofOfAbort { votes });
    let abort = wire::AbortRequest { operation_id: request.operation_id.clone(), attempt: 0, proof };
    quorum.call(0, Request::Abort(abort)).unwrap();
    assert_eq!(receipts(&mut quorum, 0, &leaf).pop().unwrap().phase, "abort");
    untouched(&mut quorum, &leaf, 0);

    let request = Session::open(&mut quorum, &[&leaf]).unwrap().dealt(&mut quorum);
    let (certificate, opened) = quorum.certify(&request).unwrap();
    crash(&mut quorum, 1);
    assert_eq!(quorum.certify(&request).unwrap().0, certificate, "voted, then a crash");
    let derived = derive(&mut quorum, &request);
    let proof = quorum.proof(&request, &derived, &certificate, &opened);
    crash(&mut quorum, 1);
    // It committed: it cannot take that back, and says the same again.
    let abort =
        wire::SignAbortRequest { operation_id: request.operation_id.clone(), attempt: 0, aborts: Vec::new() };
    assert!(matches!(quorum.call(1, Request::SignAbort(abort)), Err(EngineError::Decided(_))));
    let again = quorum.proof(&request, &derived, &certificate, &opened);
    quorum.apply(0, &request, &again).unwrap();
    quorum.apply(2, &request, &proof).unwrap();

    // Member 1 has not applied it: its old share lives, and its log does not say otherwise.
    let phases: Vec<_> = receipts(&mut quorum, 1, &leaf).into_iter().map(|r| r.phase).collect();
    assert_eq!(phases, ["dkg"]);
    assert!(share(&mut quorum, 1, &leaf, 0).is_some());
    assert_eq!(receipts(&mut quorum, 0, &leaf).pop().unwrap().phase, "refresh");
    crash(&mut quorum, 1);
    quorum.apply(1, &request, &proof).unwrap();
    assert_eq!(receipts(&mut quorum, 1, &leaf).pop().unwrap().phase, "refresh");
    assert!(share(&mut quorum, 1, &leaf, 0).is_none());
    untouched(&mut quorum, &leaf, 1);
}

/// What was voted for under an earlier federation file can only be aborted, and must be.
#[test]
fn d12_a_refresh_ends_with_its_federation_file() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let request = Session::open(&mut quorum, &[&leaf]).unwrap().dealt(&mut quorum);
    quorum.certify(&request).unwrap();
    quorum.next_epoch();
    (0..3).for_each(|member| quorum.witness(member).unwrap());
    let mut votes = Vec::new();
    for member in 0..3 {
        let abort = wire::SignAbortRequest {
            operation_id: request.operation_id.clone(),
            attempt: 0,
            aborts: votes.clone(),
        };
        match quorum.call(member, Request::SignAbort(abort)).unwrap() {
            Reply::SignAbort(reply) => votes.push(reply.vote.unwrap()),
            _ => panic!(),
        }
    }
    for member in 0..3 {
        let proof = Some(peer::ProofOfAbort { votes: votes.clone() });
        let abort = wire::AbortRequest { operation_id: request.operation_id.clone(), attempt: 0, proof };
        quorum.call(member, Request::Abort(abort)).unwrap();
    }
    refresh(&mut quorum, &[&leaf]);
    untouched(&mut quorum, &leaf, 1);
}

/// D1: nothing is signed, so t deciders commit; a certificate alone decides nothing.
#[test]
fn d1_a_refresh_is_decided_by_all_its_deciders() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let request = Session::open(&mut quorum, &[&leaf]).unwrap().dealt(&mut quorum);
    let (certificate, opened) = quorum.certify(&request).unwrap();
    let derived = derive(&mut quorum, &request);
    // Not a decider.
    let release = wire::ReleaseRequest {
        operation_id: request.operation_id.clone(),
        certificate: Some(certificate.clone()),
        ..wire::ReleaseRequest::default()
    };
    assert!(matches!(quorum.call(0, Request::Release(release)), Err(EngineError::NotNamed)));
    let proof = quorum.proof(&request, &derived, &certificate, &opened);
    let commits = proof.commits.clone();
    let with = |commits: Vec<peer::Vote>| peer::ProofOfCommit { commits, ..proof.clone() };
    let yes = certificate.votes[1].clone();
    for wrong in [
        Vec::new(),
        vec![commits[0].clone()],
        vec![commits[0].clone(), commits[0].clone()],
        vec![commits[0].clone(), yes],
    ] {
        let refused = quorum.apply(2, &request, &with(wrong));
        assert!(matches!(refused, Err(EngineError::Vote(_))), "{refused:?}");
    }
    let altered = peer::Vote { digest: vec![3; 32], ..commits[1].clone() };
    let refused = quorum.apply(2, &request, &with(vec![commits[0].clone(), altered]));
    assert!(matches!(refused, Err(EngineError::Vote(VoteError::Signature(_)))), "{refused:?}");
    untouched(&mut quorum, &leaf, 0);
    quorum.apply(2, &request, &proof).unwrap();
    // A COMMIT is no vote of a certificate, and no part of a proof that signatures make.
    let crossed = peer::Certificate { votes: commits };
    let crossed = peer::ProofOfCommit { certificate: Some(crossed), ..proof };
    assert!(quorum.apply(0, &request, &crossed).is_err());
}

/// Keys, polynomials and sums live as long as they must: one session per coordinator, and nothing of it after the vote.
#[test]
fn d14_what_was_dealt_dies_with_the_session() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let first = Session::open(&mut quorum, &[&leaf]).unwrap();
    let dealt = first.dealt(&mut quorum);
    let second = Session::open(&mut quorum, &[&leaf]).unwrap();
    assert_eq!(quorum.prepare(0, &dealt).vote.unwrap().reason, "REFRESH", "two sessions of one coordinator");
    let request = second.dealt(&mut quorum);
    let (certificate, opened) = quorum.certify(&request).unwrap();
    for member in 0..3 {
        assert!(matches!(second.deal(&mut quorum, member), Err(EngineError::Refresh(_))));
    }
    let derived = derive(&mut quorum, &request);
    let proof = quorum.proof(&request, &derived, &certificate, &opened);
    for member in 0..3 {
        quorum.apply(member, &request, &proof).unwrap();
        let left = quorum.read(member, |txn| txn.secrets_of(derived.id.as_bytes()).unwrap());
        assert!(left.iter().all(|id| id.kind != SecretKind::StagedTweak), "a staged sum lives");
    }
}

/// No user asks for a refresh: without a person's approval of a repair no operator can hold other people's leaves by it.
#[test]
fn s14_nobody_refreshes_unasked() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let request = wire::RefreshOpenRequest {
        session_id: vec![7; 16],
        coordinator: 0,
        leaf_ids: vec![leaf.id.to_string()],
    };
    for member in 1..3 {
        let refused = open(&mut quorum, member, &request).err().unwrap();
        assert!(matches!(refused, EngineError::NotApproved(0)), "{refused}");
    }
    permit(&mut quorum);
    for member in 1..3 {
        open(&mut quorum, member, &request).unwrap();
    }
}

/// D1: a coordinator that could be a decider could hold any leaf by a refresh that it leaves undecided.
#[test]
fn s14_the_others_end_a_refresh_without_its_coordinator() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let mut request = Session::open(&mut quorum, &[&leaf]).unwrap().dealt(&mut quorum);
    let deciders = |request: &mut peer::Operation, deciders: &[u32]| match &mut request.request {
        Some(Kind::Refresh(refresh)) => refresh.deciders = deciders.to_vec(),
        _ => panic!(),
    };
    deciders(&mut request, &[0, 1]);
    let vote = quorum.prepare(1, &request).vote.unwrap();
    assert_eq!((vote.choice(), vote.reason.as_str()), (peer::Choice::No, "SIGNER_SET"));

    let request = Session::open(&mut quorum, &[&leaf]).unwrap().dealt(&mut quorum);
    quorum.certify(&request).unwrap();
    // The coordinator is silent from here on.
    let mut votes = Vec::new();
    for member in 1..3 {
        let abort = wire::SignAbortRequest {
            operation_id: request.operation_id.clone(),
            attempt: 0,
            aborts: votes.clone(),
        };
        match quorum.call(member, Request::SignAbort(abort)).unwrap() {
            Reply::SignAbort(reply) => votes.push(reply.vote.unwrap()),
            _ => panic!(),
        }
    }
    for member in 1..3 {
        let proof = Some(peer::ProofOfAbort { votes: votes.clone() });
        let abort = wire::AbortRequest { operation_id: request.operation_id.clone(), attempt: 0, proof };
        quorum.call(member, Request::Abort(abort)).unwrap();
        let held = Resource { kind: "leaf", key: leaf.id.as_bytes().to_vec() };
        assert!(!quorum.read(member, |txn| ledger::is_held(txn, &held)).unwrap());
    }
}

/// A person takes the approval back, which restarts a signer: what is not voted for yet comes to nothing, what is voted
/// for is decided like everything else, and no leaf stays held.
#[test]
fn an_approval_that_is_taken_back_holds_nothing() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let withdraw = |quorum: &mut Quorum| {
        quorum.restart(2);
        quorum.witness(2).unwrap();
        assert!(quorum.members[2].engine.shared.approved.is_empty());
    };
    // Between dealing and voting.
    let request = Session::open(&mut quorum, &[&leaf]).unwrap().dealt(&mut quorum);
    withdraw(&mut quorum);
    for member in [0, 1] {
        assert_eq!(quorum.prepare(member, &request).vote.unwrap().choice(), peer::Choice::Yes);
    }
    let no = quorum.prepare(2, &request).vote.unwrap();
    assert_eq!((no.choice(), no.reason.as_str()), (peer::Choice::No, "REFRESH"));
    let abort =
        wire::SignAbortRequest { operation_id: request.operation_id.clone(), attempt: 0, aborts: Vec::new() };
    let yes = match quorum.call(1, Request::SignAbort(abort)).unwrap() {
        Reply::SignAbort(reply) => reply.vote.unwrap(),
        _ => panic!(),
    };
    for member in 0..3 {
        let proof = Some(peer::ProofOfAbort { votes: vec![yes.clone(), no.clone()] });
        let abort = wire::AbortRequest { operation_id: request.operation_id.clone(), attempt: 0, proof };
        quorum.call(member, Request::Abort(abort)).unwrap();
    }
    untouched(&mut quorum, &leaf, 0);

    // After the vote.
    let request = Session::open(&mut quorum, &[&leaf]).unwrap().dealt(&mut quorum);
    let (certificate, opened) = quorum.certify(&request).unwrap();
    let derived = derive(&mut quorum, &request);
    withdraw(&mut quorum);
    let proof = quorum.proof(&request, &derived, &certificate, &opened);
    for member in 0..3 {
        quorum.apply(member, &request, &proof).unwrap();
    }
    untouched(&mut quorum, &leaf, 1);
    let session = wire::RefreshOpenRequest {
        session_id: vec![7; 16],
        coordinator: 0,
        leaf_ids: vec![leaf.id.to_string()],
    };
    assert!(
        matches!(open(&mut quorum, 2, &session), Err(EngineError::NotApproved(0))),
        "and no other begins"
    );
}

/// One decider's COMMIT and another's ABORT would hold the leaves for ever, and a cut line is enough for it: so the word of
/// the lowest one is everybody's.
#[test]
fn d1_deciders_of_a_refresh_never_split() {
    for commits in [true, false] {
        let mut quorum = Quorum::new(2, 3);
        let alice = Wallet::new();
        let leaf = deposit(&mut quorum, &alice, 50_000);
        let request = Session::open(&mut quorum, &[&leaf]).unwrap().dealt(&mut quorum);
        let (certificate, opened) = quorum.certify(&request).unwrap();
        let derived = derive(&mut quorum, &request);
        let commit = |quorum: &mut Quorum, member, commits: Vec<peer::Vote>| {
            let release = wire::ReleaseRequest {
                operation_id: request.operation_id.clone(),
                certificate: Some(certificate.clone()),
                commits,
                ..wire::ReleaseRequest::default()
            };
            match quorum.call(member, Request::Release(release))? {
                Reply::Release(reply) => Ok(reply.commit.unwrap()),
                _ => panic!(),
            }
        };
        let abort = |quorum: &mut Quorum, member, aborts: Vec<peer::Vote>| {
            let operation_id = request.operation_id.clone();
            let abort = wire::SignAbortRequest { operation_id, attempt: 0, aborts };
            match quorum.call(member, Request::SignAbort(abort))? {
                Reply::SignAbort(reply) => Ok(reply.vote.unwrap()),
                _ => panic!(),
            }
        };
        // Decider 2 has its YES and hears nothing of decider 1.
        assert!(matches!(abort(&mut quorum, 2, Vec::new()), Err(EngineError::OutOfTurn(1))));
        assert!(matches!(commit(&mut quorum, 2, Vec::new()), Err(EngineError::OutOfTurn(1))));
        if commits {
            let first = commit(&mut quorum, 1, Vec::new()).unwrap();
            assert!(abort(&mut quorum, 1, Vec::new()).is_err());
            assert!(abort(&mut quorum, 2, vec![first.clone()]).is_err());
            commit(&mut quorum, 2, vec![first]).unwrap();
            let proof = quorum.proof(&request, &derived, &certificate, &opened);
            (0..3).for_each(|member| drop(quorum.apply(member, &request, &proof).unwrap()));
            untouched(&mut quorum, &leaf, 1);
        } else {
            let first = abort(&mut quorum, 1, Vec::new()).unwrap();
            assert!(commit(&mut quorum, 2, vec![first.clone()]).is_err());
            let second = abort(&mut quorum, 2, vec![first.clone()]).unwrap();
            for member in 0..3 {
                let proof = Some(peer::ProofOfAbort { votes: vec![first.clone(), second.clone()] });
                let operation_id = request.operation_id.clone();
                let abort = wire::AbortRequest { operation_id, attempt: 0, proof };
                quorum.call(member, Request::Abort(abort)).unwrap();
            }
            untouched(&mut quorum, &leaf, 0);
        }
    }
}
