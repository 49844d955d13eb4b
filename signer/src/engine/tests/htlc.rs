//! D8: transfers that a preimage completes, and what nobody gets out of them.

mod attacks;
mod epochs;
mod maturities;

use bitcoin::hashes::{Hash as _, sha256};
use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
    spark,
};
use spark_rules::{
    ids::{OperationId, OperatorIndex},
    leaf::LeafStatus,
    settlement::{RETURN_MARGIN, Ruling, SettlementVote},
    tx::{Htlc, Plan, verify_input},
    vote::{Kind as OperationKind, Position, VoteError},
};

use super::{
    Wallet, claim_request, deposit, derive, one_time, operation, package_request,
    quorum::{Leaf, OneTime, Quorum},
};
use crate::{
    engine::{EngineError, Reply, Request},
    secret::SecretScalar,
    vault::Token as _,
};

const PREIMAGE: [u8; 32] = [0x66; 32];
const EXPIRY: u32 = 500;

fn payment_hash(preimage: &[u8]) -> [u8; 32] {
    sha256::Hash::hash(preimage).to_byte_array()
}

/// What a wallet sends for one leaf, and the key that the receiver gets.
fn htlc_request(
    quorum: &mut Quorum,
    from: &Wallet,
    leaf: &Leaf,
    receiver: &Wallet,
    preimage: &[u8],
) -> (peer::Htlc, SecretScalar) {
    htlc_request_as(quorum, from, leaf, receiver, preimage, &one_time::transfer_id())
}

fn htlc_request_as(
    quorum: &mut Quorum,
    from: &Wallet,
    leaf: &Leaf,
    receiver: &Wallet,
    preimage: &[u8],
    transfer: &str,
) -> (peer::Htlc, SecretScalar) {
    let terms = Htlc::new(payment_hash(preimage), receiver.id(), from.id());
    let plan = quorum.leaf(0, &leaf.id).build_htlc(&terms).unwrap();
    htlc_request_of(quorum, from, leaf, receiver, preimage, transfer, &plan)
}

fn htlc_request_of(
    quorum: &mut Quorum,
    from: &Wallet,
    leaf: &Leaf,
    receiver: &Wallet,
    preimage: &[u8],
    transfer: &str,
    plan: &Plan,
) -> (peer::Htlc, SecretScalar) {
    let payment_hash = payment_hash(preimage);
    let (mut request, next) = package_request(quorum, from, leaf, receiver.id(), transfer, plan, |_, _| {});
    request.expiry_time = Some(prost_types::Timestamp { seconds: 2_000_000, nanos: 0 });
    let swap = spark::InitiatePreimageSwapRequest {
        payment_hash: payment_hash.to_vec(),
        receiver_identity_public_key: receiver.id().serialize().to_vec(),
        transfer_request: Some(request),
        ..spark::InitiatePreimageSwapRequest::default()
    };
    (peer::Htlc { request: Some(swap), expiry_height: EXPIRY }, next)
}

/// An HTLC after its first decision, at every signer.
struct Pending {
    quorum: Quorum,
    alice: Wallet,
    bob: Wallet,
    leaf: Leaf,
    request: peer::Operation,
    received: SecretScalar,
}

impl Pending {
    /// Alice pays a fresh leaf to Bob; 2 of 3, deciders are members 0 and 1.
    fn new() -> Self {
        let mut quorum = Quorum::new(2, 3);
        let (alice, bob) = (Wallet::new(), Wallet::new());
        let leaf = deposit(&mut quorum, &alice, 50_000);
        Self::of(quorum, alice, bob, leaf).unwrap()
    }

    /// The first decision for one leaf, or the reason of the first NO.
    fn of(mut quorum: Quorum, alice: Wallet, bob: Wallet, leaf: Leaf) -> Result<Self, String> {
        let (htlc, received) = htlc_request(&mut quorum, &alice, &leaf, &bob, &PREIMAGE);
        let request = operation(&mut quorum, Kind::Htlc(htlc));
        Self { quorum, alice, bob, leaf, request, received }.decided()
    }

    /// The first decision on what was asked for.
    fn decided(mut self) -> Result<Self, String> {
        let Self { quorum, request, .. } = &mut self;
        let (certificate, opened) = quorum.certify(request)?;
        let derived = derive(quorum, request);
        let proof = quorum.proof(request, &derived, &certificate, &opened);
        for member in 0..quorum.members.len() {
            quorum.apply(member, request, &proof).unwrap();
        }
        Ok(self)
    }

    fn word(
        &mut self,
        member: usize,
        preimage: &[u8],
        tip: u32,
    ) -> Result<peer::SettlementVote, EngineError> {
        let request = wire::SignSettlementRequest {
            operation_id: self.request.operation_id.clone(),
            attempt: self.request.attempt,
            preimage: preimage.to_vec(),
            tip_height: tip,
            ..wire::SignSettlementRequest::default()
        };
        match self.quorum.call(member, Request::SignSettlement(request))? {
            Reply::SignSettlement(reply) => Ok(reply.vote.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn words(&mut self, preimage: &[u8], tip: u32) -> Vec<peer::SettlementVote> {
        (0..2).map(|member| self.word(member, preimage, tip).unwrap()).collect()
    }

    fn settle(
        &mut self,
        member: usize,
        votes: &[peer::SettlementVote],
    ) -> Result<Vec<peer::Receipt>, EngineError> {
        let request = wire::SettleRequest {
            operation_id: self.request.operation_id.clone(),
            attempt: self.request.attempt,
            proof: Some(peer::ProofOfSettlement { votes: votes.to_vec() }),
        };
        match self.quorum.call(member, Request::Settle(request))? {
            Reply::Settle(reply) => Ok(reply.receipts),
            other => panic!("{other:?}"),
        }
    }

    /// The second decision at every signer.
    fn end(&mut self, preimage: &[u8], tip: u32) {
        let votes = self.words(preimage, tip);
        for member in 0..3 {
            self.settle(member, &votes).unwrap();
        }
    }

    fn returned(&mut self) {
        self.end(&[], EXPIRY + RETURN_MARGIN);
    }

    /// A word that a member's key signs although its engine would not.
    fn forged(&self, member: usize, ruling: Ruling, digest: [u8; 32]) -> peer::SettlementVote {
        let vote = SettlementVote {
            position: Position {
                federation_epoch: self.quorum.federation.epoch(),
                signer: OperatorIndex::new(member as u16),
                incarnation: self.quorum.members[member].engine.vault().incarnation(),
                root_epoch: 1,
                sequence: 1,
            },
            operation: OperationId::parse(&self.request.operation_id).unwrap(),
            attempt: self.request.attempt,
            digest,
            ruling,
        };
        let statement = vote.statement(&self.quorum.federation);
        let signature = self.quorum.members[member].token.sign_federation(&statement).unwrap();
        vote.into_wire(signature.to_vec())
    }

    /// Secrets that belong to the operation.
    fn staged(&self, member: usize) -> usize {
        let owner: [u8; 16] = self.request.operation_id.clone().try_into().unwrap();
        self.quorum.members[member].engine.vault().secrets_of(&owner).unwrap().len()
    }

    fn transfer_id(&self) -> String {
        match &self.request.request {
            Some(Kind::Htlc(htlc)) => {
                htlc.request.as_ref().unwrap().transfer_request.as_ref().unwrap().transfer_id.clone()
            }
            _ => panic!(),
        }
    }

    fn phases(&mut self, member: usize) -> Vec<String> {
        let request = wire::GetReceiptsRequest { leaf_id: self.leaf.id.to_string(), tree_size: 0, from: 0 };
        let Reply::Receipts(reply) = self.quorum.call(member, Request::GetReceipts(request)).unwrap() else {
            panic!()
        };
        reply.receipts.into_iter().map(|receipt| receipt.phase).collect()
    }
}

/// The first decision completes the exit by preimage and changes nothing else.
#[test]
fn a_pending_leaf_is_locked_with_its_old_keys() {
    let mut pending = Pending::new();
    let derived = derive(&mut pending.quorum, &pending.request.clone());
    for member in 0..3 {
        let record = pending.quorum.leaf(member, &pending.leaf.id);
        assert_eq!((record.version, record.refund_timelock.blocks()), (0, 2000));
        assert_eq!(record.owner_identity, pending.alice.id());
        assert_eq!(pending.staged(member), 1, "the tweak stays staged, the shares are gone");
        assert_eq!(pending.phases(member), ["dkg"]);
        let signed = pending.quorum.read(member, |txn| {
            txn.scan_records(&[b"signed/".as_slice(), pending.leaf.id.as_bytes()].concat()).unwrap()
        });
        for planned in derived.parts[0].plan.transactions() {
            let tag = planned.purpose().tag().as_bytes();
            let (_, raw) = signed.iter().find(|(key, _)| key.ends_with(tag)).unwrap();
            let tx = bitcoin::consensus::deserialize(raw).unwrap();
            verify_input(&tx, &planned.template.prevouts(), 0).unwrap();
        }
    }
    // Nobody else gets the leaf, and the receiver does not claim it.
    let (send, _) =
        super::send_request(&mut pending.quorum, &pending.alice, &pending.leaf, pending.alice.id());
    assert_eq!(pending.quorum.run(Kind::Send(send)).unwrap_err(), "LEAF_UNAVAILABLE");
    let id = pending.transfer_id();
    let (claim, _) =
        claim_request(&mut pending.quorum, &pending.bob, &pending.leaf.id, &id, &pending.received);
    assert_eq!(pending.quorum.run(Kind::Claim(claim)).unwrap_err(), "UNKNOWN");
}

#[test]
fn a_preimage_completes_the_transfer() {
    let mut pending = Pending::new();
    let votes = pending.words(&PREIMAGE, 0);
    for member in 0..3 {
        let receipts = pending.settle(member, &votes).unwrap();
        assert_eq!(pending.settle(member, &votes).unwrap(), receipts, "a repeat gets the same");
        let record = pending.quorum.leaf(member, &pending.leaf.id);
        assert_eq!((record.version, record.refund_timelock.blocks()), (1, 1970));
        assert_eq!(record.status, LeafStatus::TransferLocked);
        assert_eq!(record.owner_key, pending.received.public_key());
        assert_eq!(pending.staged(member), 0);
        assert_eq!(pending.phases(member), ["dkg", "send"]);
    }
    let id = pending.transfer_id();
    let (claim, key) =
        claim_request(&mut pending.quorum, &pending.bob, &pending.leaf.id, &id, &pending.received);
    pending.quorum.run(Kind::Claim(claim)).unwrap();
    let record = pending.quorum.leaf(2, &pending.leaf.id);
    assert_eq!((record.version, record.refund_timelock.blocks()), (2, 1900));
    assert_eq!((record.owner_identity, record.owner_key), (pending.bob.id(), key.public_key()));
}

#[test]
fn an_expired_one_goes_back() {
    let mut pending = Pending::new();
    let before = pending.quorum.leaf(0, &pending.leaf.id);
    let votes = pending.words(&[], EXPIRY + RETURN_MARGIN);
    for member in 0..3 {
        let receipts = pending.settle(member, &votes).unwrap();
        assert_eq!(pending.settle(member, &votes).unwrap(), receipts);
        let record = pending.quorum.leaf(member, &pending.leaf.id);
        assert_ne!(record.last_proof, before.last_proof, "the next digest tells who knows of it");
        assert_eq!(spark_rules::leaf::LeafRecord { last_proof: before.last_proof, ..record }, before);
        assert_eq!(pending.staged(member), 0, "the tweak is destroyed");
        assert_eq!(pending.phases(member), ["dkg", "abort"]);
        assert_eq!((receipts[0].retired_version, receipts[0].new_version), (0, 0));
        assert!(!receipts[0].tweak_commitment.is_empty());
    }
    assert!(matches!(pending.word(0, &PREIMAGE, 0), Err(EngineError::Decided("returned"))));
    // The transfer's id is used up, in every kind.
    let id = pending.transfer_id();
    let (send, _) = super::send_request_as(
        &mut pending.quorum,
        &pending.alice,
        &pending.leaf,
        pending.bob.id(),
        &id,
        |_, _| {},
    );
    assert_eq!(pending.quorum.run(Kind::Send(send)).unwrap_err(), "LEAF_UNAVAILABLE");
    let mut again = pending.request.clone();
    again.attempt = 1;
    let refused = pending.quorum.call(0, Request::Prepare(wire::PrepareRequest { operation: Some(again) }));
    assert!(matches!(refused, Err(EngineError::Decided(_))), "{refused:?}");
}

/// Nothing of it lives in memory only.
#[test]
fn it_survives_restarts() {
    let mut pending = Pending::new();
    let word = pending.word(0, &PREIMAGE, 0).unwrap();
    for member in 0..3 {
        pending.quorum.restart(member);
    }
    for member in 0..3 {
        pending.quorum.witness(member).unwrap();
    }
    assert_eq!(pending.word(0, &PREIMAGE, 0).unwrap(), word);
    assert!(matches!(pending.word(0, &[], 1000), Err(EngineError::Decided("committed"))));
    pending.end(&PREIMAGE, 0);
    assert_eq!(pending.quorum.leaf(1, &pending.leaf.id).version, 1);
}

/// D10: the journal tells an operator whose tables were lost all that it must know.
#[test]
fn the_journal_tells_of_both_decisions() {
    let mut pending = Pending::new();
    let kinds = |pending: &mut Pending, member| {
        let request = wire::ReadJournalRequest { after: 0, limit: 1000 };
        let Reply::ReadJournal(reply) = pending.quorum.call(member, Request::ReadJournal(request)).unwrap()
        else {
            panic!()
        };
        let of_it = |e: &wire::JournalEntry| e.operation_id == pending.request.operation_id;
        reply.entries.into_iter().filter(of_it).collect::<Vec<_>>()
    };
    let entries = kinds(&mut pending, 0);
    assert!(!entries[0].operation.is_empty(), "undecided: the request is there");
    pending.end(&PREIMAGE, 0);
    let entries = kinds(&mut pending, 0);
    let names: Vec<_> = entries.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(names, ["prepared", "released", "pending", "ruled", "applied"]);
    assert!(entries[0].operation.is_empty(), "decided: the ciphertexts are gone");
    assert!(entries[2].proof.is_some() && !entries[2].opened.is_empty());
    assert_eq!(entries[3].settlement.as_ref().unwrap().preimage, PREIMAGE);
    assert!(!entries[4].leaves.is_empty() && !entries[4].transfer.is_empty());
    let entries = kinds(&mut pending, 2);
    let names: Vec<_> = entries.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(names, ["prepared", "pending", "applied"]);
}

/// D14: what the package was sealed to dies with the first decision; a restored copy of it opens nothing while the leaf
/// is pending.
#[test]
fn d14_the_package_key_dies_with_the_first_decision() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (keys, transfer) = (one_time::keys(&mut quorum), one_time::transfer_id());
    let (kind, owner) = (OperationKind::Htlc, alice.id());
    quorum.one_time =
        Some(OneTime { kind, transfer: one_time::parsed(&transfer), owner, keys: keys.clone() });
    let (htlc, received) = htlc_request_as(&mut quorum, &alice, &leaf, &bob, &PREIMAGE, &transfer);
    quorum.one_time = None;
    let request = operation(&mut quorum, Kind::Htlc(htlc));
    let mut pending = Pending { quorum, alice, bob, leaf, request, received }.decided().unwrap();
    for (member, key) in keys.iter().enumerate() {
        assert!(!one_time::lives(&mut pending.quorum, member, key));
    }
    let votes = pending.words(&PREIMAGE, 0);
    for member in 0..3 {
        assert_eq!(pending.settle(member, &votes).unwrap()[0].package_kind, "one-time");
    }
}
