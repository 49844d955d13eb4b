//! D8: transfers that an exit transaction completes, and what nobody gets out of them.

use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness, absolute::LockTime,
    consensus::serialize, hashes::Hash as _, transaction::Version,
};
use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
    spark,
};
use spark_rules::{
    leaf::LeafStatus,
    settlement::RETURN_MARGIN,
    tx::{Connectors, p2tr_script, verify_input},
};

use super::{
    Wallet, claim_request, deposit, derive, one_time, operation, package_request,
    quorum::{Leaf, Quorum},
};
use crate::{
    engine::{EngineError, Reply, Request},
    secret::SecretScalar,
};

const EXPIRY: u32 = 500;
const DEPTH: u32 = 3;

/// A connector transaction over output 1 of an exit transaction, with two connectors.
fn connector_tx(exit: Txid) -> Transaction {
    let connector = TxOut { value: Amount::from_sat(354), script_pubkey: p2tr_script(&Wallet::new().id()) };
    Transaction {
        version: Version(3),
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint { txid: exit, vout: 1 },
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        }],
        output: vec![connector.clone(), connector.clone(), connector],
    }
}

fn exit_txid(n: u8) -> Txid {
    Txid::from_byte_array([n; 32])
}

/// What a wallet sends for one leaf with connector `vout`, and the key that the receiver gets.
fn exit_request(
    quorum: &mut Quorum,
    from: &Wallet,
    leaf: &Leaf,
    provider: &Wallet,
    connector_tx: &Transaction,
    vout: usize,
) -> (peer::CoopExit, SecretScalar) {
    let raw = serialize(connector_tx);
    let connector = Connectors::parse(&raw).unwrap().outputs()[vout].clone();
    let plan = quorum.leaf(0, &leaf.id).build_exit(&connector, &provider.id()).unwrap();
    let transfer = one_time::transfer_id();
    let (mut request, next) = package_request(quorum, from, leaf, provider.id(), &transfer, &plan, |_, _| {});
    request.expiry_time = Some(prost_types::Timestamp { seconds: 2_000_000, nanos: 0 });
    let mut txid = connector_tx.input[0].previous_output.txid.to_byte_array();
    txid.reverse();
    let request = spark::CooperativeExitRequest {
        transfer: Some(request),
        exit_id: one_time::transfer_id(),
        exit_txid: txid.to_vec(),
        connector_tx: raw,
    };
    (peer::CoopExit { request: Some(request), expiry_height: EXPIRY, depth: DEPTH }, next)
}

/// An exit after its first decision, at every signer.
struct Pending {
    quorum: Quorum,
    alice: Wallet,
    provider: Wallet,
    leaf: Leaf,
    request: peer::Operation,
    received: SecretScalar,
}

impl Pending {
    /// Alice leaves with a fresh leaf; 2 of 3, deciders are members 0 and 1.
    fn new() -> Self {
        let mut quorum = Quorum::new(2, 3);
        let (alice, provider) = (Wallet::new(), Wallet::new());
        let leaf = deposit(&mut quorum, &alice, 50_000);
        Self::of(quorum, alice, provider, leaf, exit_txid(1)).unwrap()
    }

    /// The first decision for one leaf, or the reason of the first NO.
    fn of(
        mut quorum: Quorum,
        alice: Wallet,
        provider: Wallet,
        leaf: Leaf,
        exit: Txid,
    ) -> Result<Self, String> {
        let (exit, received) = exit_request(&mut quorum, &alice, &leaf, &provider, &connector_tx(exit), 0);
        let request = operation(&mut quorum, Kind::CoopExit(exit));
        let (certificate, opened) = quorum.certify(&request)?;
        let derived = derive(&mut quorum, &request);
        let proof = quorum.proof(&request, &derived, &certificate, &opened);
        for member in 0..quorum.members.len() {
            quorum.apply(member, &request, &proof).unwrap();
        }
        Ok(Self { quorum, alice, provider, leaf, request, received })
    }

    fn word(&mut self, member: usize, tip: u32, mined: u32) -> Result<peer::SettlementVote, EngineError> {
        let request = wire::SignSettlementRequest {
            operation_id: self.request.operation_id.clone(),
            attempt: self.request.attempt,
            tip_height: tip,
            block_height: mined,
            // Deciders may see it in different blocks.
            block_hash: if mined == 0 { Vec::new() } else { vec![member as u8; 32] },
            ..wire::SignSettlementRequest::default()
        };
        match self.quorum.call(member, Request::SignSettlement(request))? {
            Reply::SignSettlement(reply) => Ok(reply.vote.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn settle(&mut self, member: usize, votes: &[peer::SettlementVote]) -> Result<(), EngineError> {
        let request = wire::SettleRequest {
            operation_id: self.request.operation_id.clone(),
            attempt: self.request.attempt,
            proof: Some(peer::ProofOfSettlement { votes: votes.to_vec() }),
        };
        self.quorum.call(member, Request::Settle(request)).map(drop)
    }

    fn end(&mut self, tip: u32, mined: u32) {
        let votes: Vec<_> = (0..2).map(|member| self.word(member, tip, mined).unwrap()).collect();
        for member in 0..3 {
            self.settle(member, &votes).unwrap();
            self.settle(member, &votes).unwrap();
        }
    }

    fn transfer_id(&self) -> String {
        let Some(Kind::CoopExit(exit)) = &self.request.request else { panic!() };
        exit.request.as_ref().unwrap().transfer.as_ref().unwrap().transfer_id.clone()
    }
}

/// The first decision completes refunds that only the exit transaction makes valid, and changes nothing else.
#[test]
fn a_pending_exit_changes_no_key() {
    let mut pending = Pending::new();
    let derived = derive(&mut pending.quorum, &pending.request.clone());
    for member in 0..3 {
        let record = pending.quorum.leaf(member, &pending.leaf.id);
        assert_eq!((record.version, record.refund_timelock.blocks()), (0, 2000));
        let signed = pending.quorum.read(member, |txn| {
            txn.scan_records(&[b"signed/".as_slice(), pending.leaf.id.as_bytes()].concat()).unwrap()
        });
        for planned in derived.parts[0].plan.transactions() {
            let tag = planned.purpose().tag().as_bytes();
            let (_, raw) = signed.iter().find(|(key, _)| key.ends_with(tag)).unwrap();
            let tx: Transaction = bitcoin::consensus::deserialize(raw).unwrap();
            let prevouts = planned.template.prevouts();
            assert_eq!(prevouts.len(), 2);
            // X27: over both outputs; the connector is the provider's to sign.
            verify_input(&tx, &prevouts, 0).unwrap();
            assert!(tx.input[1].witness.is_empty());
        }
    }
    let id = pending.transfer_id();
    let (claim, _) =
        claim_request(&mut pending.quorum, &pending.provider, &pending.leaf.id, &id, &pending.received);
    assert_eq!(pending.quorum.run(Kind::Claim(claim)).unwrap_err(), "UNKNOWN", "before it is confirmed");
    let to = pending.alice.id();
    let (send, _) = super::send_request(&mut pending.quorum, &pending.alice, &pending.leaf, to);
    assert_eq!(pending.quorum.run(Kind::Send(send)).unwrap_err(), "LEAF_UNAVAILABLE");
}

#[test]
fn confirmations_complete_it() {
    let mut pending = Pending::new();
    for (tip, mined) in [(40, 39), (41, 40), (41, 0), (41, 42)] {
        assert!(pending.word(0, tip, mined).is_err(), "{tip} {mined}");
    }
    // Also long after the expiry, as long as nobody said otherwise.
    pending.end(EXPIRY + 50, 40);
    let record = pending.quorum.leaf(2, &pending.leaf.id);
    assert_eq!((record.version, record.refund_timelock.blocks()), (1, 1900));
    assert_eq!(record.status, LeafStatus::TransferLocked);
    let id = pending.transfer_id();
    let (claim, key) =
        claim_request(&mut pending.quorum, &pending.provider, &pending.leaf.id, &id, &pending.received);
    pending.quorum.run(Kind::Claim(claim)).unwrap();
    let record = pending.quorum.leaf(2, &pending.leaf.id);
    assert_eq!((record.owner_identity, record.owner_key), (pending.provider.id(), key.public_key()));
    // The claim's refund needs no connector.
    assert_eq!((record.version, record.refunds.cpfp.input.len()), (2, 1));
}

/// One decider's word is none; a preimage is no confirmation; words of both ends do not add up.
#[test]
fn x13_nobody_completes_it_alone() {
    let mut pending = Pending::new();
    let first = pending.word(0, 50, 40).unwrap();
    assert!(pending.settle(2, std::slice::from_ref(&first)).is_err());
    assert!(pending.settle(2, &[first.clone(), first.clone()]).is_err());
    let request = wire::SignSettlementRequest {
        operation_id: pending.request.operation_id.clone(),
        preimage: vec![6; 32],
        ..wire::SignSettlementRequest::default()
    };
    assert!(pending.quorum.call(1, Request::SignSettlement(request.clone())).is_err());
    let both = wire::SignSettlementRequest { block_hash: vec![6; 32], tip_height: 50, ..request };
    assert!(pending.quorum.call(1, Request::SignSettlement(both)).is_err());
    assert!(matches!(pending.word(2, 50, 40), Err(EngineError::NotNamed)));
    let abort = pending.word(1, EXPIRY + RETURN_MARGIN, 0).unwrap();
    assert!(pending.settle(2, &[first, abort]).is_err());
    // The first word of each is its last.
    assert!(matches!(pending.word(0, EXPIRY + RETURN_MARGIN, 0), Err(EngineError::Decided(_))));
    assert!(matches!(pending.word(1, 50, 40), Err(EngineError::Decided(_))));
    assert_eq!(pending.quorum.leaf(2, &pending.leaf.id).version, 0);
}

/// D6: what was signed with a connector may still become valid, so nobody but its receiver gets the maturity again.
#[test]
fn an_expired_exit_goes_back_with_its_maturity_used() {
    let mut pending = Pending::new();
    assert!(pending.word(0, EXPIRY + RETURN_MARGIN - 1, 0).is_err());
    pending.end(EXPIRY + RETURN_MARGIN, 0);
    let record = pending.quorum.leaf(2, &pending.leaf.id);
    assert_eq!((record.version, record.status), (0, LeafStatus::Available));
    let Pending { mut quorum, alice, provider, leaf, .. } = pending;
    let carol = Wallet::new();
    let (send, _) = super::send_request(&mut quorum, &alice, &leaf, carol.id());
    assert_eq!(quorum.run(Kind::Send(send)).unwrap_err(), "MATURITY_USED");
    let (other, _) = exit_request(&mut quorum, &alice, &leaf, &carol, &connector_tx(exit_txid(2)), 0);
    assert_eq!(quorum.run(Kind::CoopExit(other)).unwrap_err(), "MATURITY_USED");
    // The connectors of the former exit are used up, whatever became of it.
    let (same, _) = exit_request(&mut quorum, &alice, &leaf, &provider, &connector_tx(exit_txid(1)), 0);
    assert_eq!(quorum.run(Kind::CoopExit(same)).unwrap_err(), "LEAF_UNAVAILABLE");
    let again = Pending::of(quorum, alice, provider, leaf, exit_txid(2));
    assert!(again.is_ok());
}

/// One connector is one leaf's, and one output of an exit transaction serves one exit.
#[test]
fn connectors_serve_once() {
    let mut pending = Pending::new();
    let second = deposit(&mut pending.quorum, &pending.alice, 20_000);
    let tx = connector_tx(exit_txid(1));
    let (exit, _) = exit_request(&mut pending.quorum, &pending.alice, &second, &pending.provider, &tx, 1);
    let request = operation(&mut pending.quorum, Kind::CoopExit(exit));
    assert_eq!(pending.quorum.certify(&request).unwrap_err(), "LEAF_UNAVAILABLE", "another leaf, same exit");

    let Pending { mut quorum, alice, provider, .. } = pending;
    let third = deposit(&mut quorum, &alice, 20_000);
    let tx = connector_tx(exit_txid(3));
    let (mut exit, _) = exit_request(&mut quorum, &alice, &second, &provider, &tx, 0);
    let (mut other, _) = exit_request(&mut quorum, &alice, &third, &provider, &tx, 0);
    let theirs = package(&mut other).clone();
    let both = package(&mut exit);
    both.leaves_to_send.extend(theirs.leaves_to_send);
    both.direct_from_cpfp_leaves_to_send.extend(theirs.direct_from_cpfp_leaves_to_send);
    let request = operation(&mut quorum, Kind::CoopExit(exit));
    assert_eq!(quorum.certify(&request).unwrap_err(), "TEMPLATE", "two leaves, one connector");
}

type Change<'a> = &'a dyn Fn(&mut peer::CoopExit);

fn asked(exit: &mut peer::CoopExit) -> &mut spark::CooperativeExitRequest {
    exit.request.as_mut().unwrap()
}

fn transfer(exit: &mut peer::CoopExit) -> &mut spark::StartTransferRequest {
    asked(exit).transfer.as_mut().unwrap()
}

fn package(exit: &mut peer::CoopExit) -> &mut spark::TransferPackage {
    transfer(exit).transfer_package.as_mut().unwrap()
}

/// D5: the request means one thing, and the connectors stand on the exit transaction that it names.
#[test]
fn an_exit_request_means_one_thing() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, provider, mallory) = (Wallet::new(), Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let tx = connector_tx(exit_txid(1));
    let (exit, _) = exit_request(&mut quorum, &alice, &leaf, &provider, &tx, 0);
    let (plain, _) = super::send_request(&mut quorum, &alice, &leaf, provider.id());
    let plain = plain.transfer_package.unwrap();
    let hers = mallory.id().serialize().to_vec();
    let other = serialize(&connector_tx(exit_txid(2)));
    let changes: &[(&str, &str, Change<'_>)] = &[
        ("exit id", "FIELD_INVALID", &|e| asked(e).exit_id = "x".into()),
        ("exit txid", "FIELD_INVALID", &|e| asked(e).exit_txid = vec![2; 32]),
        ("short txid", "FIELD_INVALID", &|e| asked(e).exit_txid.truncate(31)),
        ("no connectors", "TEMPLATE", &|e| asked(e).connector_tx.clear()),
        ("other connectors", "FIELD_INVALID", &|e| asked(e).connector_tx.clone_from(&other)),
        ("both others", "TEMPLATE", &|e| {
            asked(e).connector_tx.clone_from(&other);
            asked(e).exit_txid = vec![2; 32];
        }),
        ("no expiry", "FIELD_INVALID", &|e| transfer(e).expiry_time = None),
        ("no height", "FIELD_INVALID", &|e| e.expiry_height = 0),
        ("no depth", "FIELD_INVALID", &|e| e.depth = 0),
        ("depth", "FIELD_INVALID", &|e| e.depth = 101),
        ("receiver", "TEMPLATE", &|e| transfer(e).receiver_identity_public_key.clone_from(&hers)),
        ("an invoice", "UNSUPPORTED", &|e| transfer(e).spark_invoice = "x".into()),
        ("plain refunds", "TEMPLATE", &|e| {
            package(e).leaves_to_send.clone_from(&plain.leaves_to_send);
            package(e).direct_from_cpfp_leaves_to_send.clone_from(&plain.direct_from_cpfp_leaves_to_send);
        }),
        ("variant left out", "TEMPLATE", &|e| package(e).direct_from_cpfp_leaves_to_send.clear()),
        ("a share for the connector", "FIELD_INVALID", &|e| {
            let job = &mut package(e).leaves_to_send[0];
            job.additional_inputs = vec![spark::InputSigningData::default()];
        }),
    ];
    for (attempt, (name, reason, change)) in changes.iter().enumerate() {
        let mut changed = exit.clone();
        change(&mut changed);
        let mut request = operation(&mut quorum, Kind::CoopExit(changed));
        request.attempt = attempt as u32;
        assert_eq!(quorum.certify(&request).unwrap_err(), *reason, "{name}");
    }
    // The txid as it is hashed, not as it is shown.
    let mut same = exit;
    asked(&mut same).exit_txid = vec![1; 32];
    let mut request = operation(&mut quorum, Kind::CoopExit(same));
    request.attempt = changes.len() as u32;
    quorum.certify(&request).unwrap();
}

/// D4, D8: what the coordinator adds is voted for; told differently, there is no certificate.
#[test]
fn a_depth_told_differently_is_not_certified() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, provider) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let tx = connector_tx(exit_txid(1));
    let (exit, _) = exit_request(&mut quorum, &alice, &leaf, &provider, &tx, 0);
    let shallow = peer::CoopExit { depth: 1, ..exit.clone() };
    let (exit, shallow) =
        (operation(&mut quorum, Kind::CoopExit(exit)), operation(&mut quorum, Kind::CoopExit(shallow)));
    let votes: Vec<_> = (0..3)
        .map(|member| quorum.prepare(member, if member == 0 { &shallow } else { &exit }).vote.unwrap())
        .collect();
    assert!(votes.iter().all(|vote| vote.choice() == peer::Choice::Yes));
    let certificate = peer::Certificate { votes };
    assert!(spark_rules::vote::Certificate::verify(&certificate, &quorum.federation).is_err());
}
