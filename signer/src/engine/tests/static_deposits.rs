//! D17 (2), D6 (d): what a static address got goes back to its owner on his own statement, and to nobody else.

use std::collections::BTreeMap;

use bitcoin::{
    Amount, ScriptBuf, Transaction, TxIn, TxOut, absolute::LockTime, consensus::encode, secp256k1::PublicKey,
    transaction::Version,
};
use rand::rngs::OsRng;
use spark_proto::{common, peer::v1::operation::Request as Kind, signer::v1 as wire, spark};
use spark_rules::{
    address::Network,
    frost::{SignatureShare, SigningPackage},
    ids::{KeyshareId, LeafId, OperationId, OperatorIndex},
    operation::{Resource, parse_commitments},
    package, point,
    tx::{Spend, StaticRefund, attach_signature, p2tr_script, sighash, verify_input, without_witnesses},
};

use super::{Wallet, bound, deposit_request, operation, quorum::Quorum};
use crate::{
    engine::{EngineError, Reply, Request, ledger},
    frost::{NoncePair, sign_user},
    secret::SecretScalar,
};

/// A static address of a wallet.
struct Static {
    keyshare: wire::PublicKeyshare,
    key: SecretScalar,
    verifying_key: PublicKey,
}

impl Static {
    fn new(quorum: &mut Quorum, wallet: &Wallet) -> Self {
        let (keyshare, key) = (quorum.next_keyshare(), SecretScalar::random(&mut OsRng));
        let verifying_key = quorum.bind_static(key.public_key(), wallet.id());
        Self { keyshare, key, verifying_key }
    }

    fn id(&self) -> LeafId {
        LeafId::of_static_address(&KeyshareId::parse(&self.keyshare.keyshare_id).unwrap())
    }

    fn spend(&self, n: u8, sats: u64) -> Paid {
        Paid::to(p2tr_script(&self.verifying_key), n, sats)
    }
}

/// An output, and the transaction of a number that made it.
#[derive(Clone)]
struct Paid {
    tx: Transaction,
    spend: Spend,
}

impl Paid {
    fn to(script_pubkey: ScriptBuf, n: u8, sats: u64) -> Self {
        let output = |script_pubkey| TxOut { value: Amount::from_sat(sats), script_pubkey };
        let mut outputs = vec![output(ScriptBuf::new()); 3];
        outputs.push(output(script_pubkey));
        let tx = Transaction {
            version: Version::TWO,
            lock_time: LockTime::from_consensus(n.into()),
            input: vec![TxIn::default()],
            output: outputs,
        };
        let spend = Spend::of(&tx, 3).unwrap();
        Self { tx, spend }
    }
}

impl std::ops::Deref for Paid {
    type Target = Spend;
    fn deref(&self) -> &Spend {
        &self.spend
    }
}

fn elsewhere() -> ScriptBuf {
    p2tr_script(&SecretScalar::random(&mut OsRng).public_key())
}

/// A refund with its owner's statement, and the nonce that goes with it.
fn refund(
    address: &Static,
    wallet: &Wallet,
    spend: &Paid,
    to: ScriptBuf,
    sats: u64,
) -> (wire::StaticRefund, NoncePair) {
    let refund =
        StaticRefund::new(spend.spend.clone(), to, Amount::from_sat(sats), Network::Regtest).unwrap();
    let tx = refund.build();
    let message = sighash(&tx, std::slice::from_ref(&spend.txout), 0).unwrap();
    let digest = package::static_refund_digest(Network::Regtest, &spend.outpoint, refund.value(), &message);
    let nonce = NoncePair::generate(&mut OsRng, None);
    let wire = wire::StaticRefund {
        keyshare_id: address.keyshare.keyshare_id.clone(),
        vout: spend.outpoint.vout,
        funding_tx: encode::serialize(&spend.tx),
        refund_tx: encode::serialize(&tx),
        user_commitment: Some(common::SigningCommitment {
            hiding: nonce.commitment().hiding.serialize().to_vec(),
            binding: nonce.commitment().binding.serialize().to_vec(),
        }),
        user_signature: wallet.sign(digest),
    };
    (wire, nonce)
}

fn ask(
    quorum: &mut Quorum,
    member: usize,
    refund: &wire::StaticRefund,
    commitments: &spark::SigningCommitments,
) -> Result<Vec<u8>, EngineError> {
    let request = wire::RefundStaticDepositRequest {
        refund: Some(refund.clone()),
        commitments: Some(commitments.clone()),
    };
    match quorum.call(member, Request::RefundStaticDeposit(request))? {
        Reply::RefundStaticDeposit(reply) => Ok(reply.share),
        _ => panic!(),
    }
}

/// Everything: commitments after the user's, shares of all who are named, the user's own, one signature.
fn signed(
    quorum: &mut Quorum,
    address: &Static,
    wallet: &Wallet,
    spend: &Paid,
    to: ScriptBuf,
    sats: u64,
) -> Result<Transaction, EngineError> {
    let (wire, nonce) = refund(address, wallet, spend, to, sats);
    let commitments = quorum.commitments(wallet.id(), 1, &[address.id()]).remove(0);
    let mut tx: Transaction = encode::deserialize(&wire.refund_tx).unwrap();
    let message = sighash(&tx, std::slice::from_ref(&spend.txout), 0).unwrap();
    let operators = parse_commitments(Some(&commitments)).unwrap();
    let package = SigningPackage::new(
        address.verifying_key,
        message,
        operators.clone(),
        Some(*nonce.commitment()),
        None,
        quorum.threshold(),
        quorum.size(),
    )
    .unwrap();
    let session = package.session().unwrap();
    let mut shares = BTreeMap::new();
    for index in operators.keys() {
        let share = ask(quorum, index.as_usize(), &wire, &commitments)?;
        shares.insert(*index, SignatureShare::parse(&share).unwrap());
    }
    let user = sign_user(&session, nonce, &address.key).unwrap();
    let public = |i: OperatorIndex| point::parse("share", &address.keyshare.public_shares[i.as_usize()]).ok();
    let signature = session.aggregate(&shares, Some(&user), public, Some(&address.key.public_key())).unwrap();
    attach_signature(&mut tx, 0, signature).unwrap();
    verify_input(&tx, std::slice::from_ref(&spend.txout), 0).unwrap();
    Ok(tx)
}

fn resource(spend: &Spend) -> Resource {
    Resource { kind: "static-outpoint", key: encode::serialize(&spend.outpoint) }
}

/// D6 (d): as often as he likes, at any fee and to any place; another output of the address is another matter.
#[test]
fn d6_an_owner_takes_an_output_back_as_often_as_he_likes() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let address = Static::new(&mut quorum, &alice);
    for (n, sats) in [(1, 9_000), (1, 8_000), (1, 10_000), (2, 9_500)] {
        let spend = address.spend(n, 10_000);
        let tx = signed(&mut quorum, &address, &alice, &spend, elsewhere(), sats).unwrap();
        assert_eq!(tx.output[0].value.to_sat(), sats);
    }
    // Also after a restart: nonces are gone, the keyshare and the claim are not.
    quorum.restart(0);
    quorum.witness(0).unwrap();
    let spend = address.spend(1, 10_000);
    signed(&mut quorum, &address, &alice, &spend, elsewhere(), 7_000).unwrap();
}

/// A signer that is not named holds the output, too, and gives no share.
#[test]
fn every_signer_holds_what_an_owner_took_back() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let address = Static::new(&mut quorum, &alice);
    let spend = address.spend(1, 10_000);
    let (wire, _) = refund(&address, &alice, &spend, elsewhere(), 9_000);
    let commitments = quorum.commitments(alice.id(), 1, &[address.id()]).remove(0);
    assert!(ask(&mut quorum, 2, &wire, &commitments).unwrap().is_empty());
    assert!(!ask(&mut quorum, 0, &wire, &commitments).unwrap().is_empty());
    for (member, held) in [(0, true), (1, false), (2, true)] {
        assert_eq!(quorum.read(member, |txn| ledger::is_held(txn, &resource(&spend))).unwrap(), held);
    }
}

/// What somebody else claims, its former owner takes back no more; and the other way round.
#[test]
fn one_claimant_per_output() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let address = Static::new(&mut quorum, &alice);
    let provider = ledger::Holder { operation: OperationId::derive("test", &[b"credit"]), attempt: 0 };
    let credited = address.spend(1, 10_000);
    for member in &mut quorum.members {
        let mut txn = member.engine.vault.begin();
        ledger::claim(&mut txn, &resource(&credited), &provider).unwrap();
        txn.commit().unwrap();
    }
    let refused = signed(&mut quorum, &address, &alice, &credited, elsewhere(), 9_000).unwrap_err();
    assert!(matches!(refused, EngineError::Held { .. }), "{refused:?}");

    let kept = address.spend(2, 10_000);
    signed(&mut quorum, &address, &alice, &kept, elsewhere(), 9_000).unwrap();
    for member in 0..2 {
        let mut txn = quorum.members[member].engine.vault.begin();
        assert!(ledger::claim(&mut txn, &resource(&kept), &provider).is_err());
    }
}

/// The statement covers every byte: no other place, amount, output, fee or address under an old signature.
#[test]
fn a_statement_serves_its_transaction_only() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, mallory) = (Wallet::new(), Wallet::new());
    let address = Static::new(&mut quorum, &alice);
    let other = Static::new(&mut quorum, &alice);
    let spend = address.spend(1, 10_000);
    let (good, _) = refund(&address, &alice, &spend, elsewhere(), 9_000);
    let rebuilt = |to: ScriptBuf, sats| {
        let refund =
            StaticRefund::new(spend.spend.clone(), to, Amount::from_sat(sats), Network::Regtest).unwrap();
        encode::serialize(&refund.build())
    };
    let (by_mallory, _) = refund(&address, &mallory, &spend, elsewhere(), 9_000);
    let (next, _) = refund(&address, &alice, &address.spend(2, 10_000), elsewhere(), 9_000);
    let with = |change: &dyn Fn(&mut wire::StaticRefund)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed
    };
    let raised = quorum.commitments(alice.id(), 1, &[address.id()]).remove(0);
    for (changed, reason) in [
        (with(&|r| r.refund_tx = rebuilt(elsewhere(), 9_000)), "PACKAGE_SIGNATURE"),
        (by_mallory, "PACKAGE_SIGNATURE"),
        (with(&|r| r.user_signature.clone_from(&next.user_signature)), "PACKAGE_SIGNATURE"),
        (with(&|r| r.user_signature.clear()), "PACKAGE_SIGNATURE"),
        (with(&|r| r.vout = 4), "FIELD_INVALID"),
        // Another output of the same transaction, which pays somebody else.
        (with(&|r| r.vout = 2), "UNKNOWN"),
        (with(&|r| r.funding_tx = encode::serialize(&address.spend(2, 10_000).tx)), "TEMPLATE"),
        (with(&|r| r.funding_tx.truncate(40)), "FIELD_INVALID"),
        (with(&|r| r.funding_tx.resize(1_000_001, 0)), "FIELD_INVALID"),
        (with(&|r| r.user_commitment = None), "FIELD_INVALID"),
        (with(&|r| r.keyshare_id.clone_from(&other.keyshare.keyshare_id)), "UNKNOWN"),
        (with(&|r| r.keyshare_id = vec![7; 16]), "UNKNOWN"),
    ] {
        let refused = ask(&mut quorum, 0, &changed, &raised).unwrap_err();
        assert_eq!(refused.reason(), reason, "{changed:?}");
    }
    // Nothing of this used the nonces up or held the output.
    assert!(!quorum.read(0, |txn| ledger::is_held(txn, &resource(&spend))).unwrap());
    ask(&mut quorum, 0, &good, &raised).unwrap();
}

/// S14: whoever pays a static address can make the transaction as large as a block takes. Its owner gets what it paid
/// back all the same.
#[test]
fn s14_a_large_payment_goes_back_like_any_other() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let address = Static::new(&mut quorum, &alice);
    let Paid { tx, .. } = address.spend(1, 10_000);
    let data = |count: usize| TxOut {
        value: Amount::ZERO,
        script_pubkey: ScriptBuf::from_bytes([&[0x6a], vec![7; count].as_slice()].concat()),
    };
    let mut witness = tx.clone();
    witness.input[0].witness.push(vec![7; 3_000_000]);
    let mut outputs = tx;
    outputs.output.extend((0..90).map(|_| data(10_000)));
    for (tx, least) in [(witness, 3_000_000), (outputs, 900_000)] {
        assert!(encode::serialize(&tx).len() > least);
        let spend = Spend::of(&tx, 3).unwrap();
        let (mut wire, _) = refund(&address, &alice, &Paid { tx: tx.clone(), spend }, elsewhere(), 9_000);
        wire.funding_tx = without_witnesses(&tx);
        let commitments = quorum.commitments(alice.id(), 1, &[address.id()]).remove(0);
        ask(&mut quorum, 0, &wire, &commitments).unwrap();
    }
}

/// Whoever owns a static address holds what it got, and nothing else: a host that signs over somebody's deposit cannot
/// keep its signer from voting for it. What it invents for the address has an end.
#[test]
fn a_refund_holds_only_what_its_address_got() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, mallory) = (Wallet::new(), Wallet::new());
    let (leaf, verifying_key) = bound(&mut quorum, &alice);
    let request = deposit_request(&mut quorum, &alice, &leaf.key, verifying_key, 50_000);
    let utxo = request.on_chain_utxo.clone().unwrap();
    let tx: Transaction = encode::deserialize(&utxo.raw_tx).unwrap();
    let spend = Spend::of(&tx, utxo.vout).unwrap();

    let address = Static::new(&mut quorum, &mallory);
    let commitments = quorum.commitments(mallory.id(), 1, &[address.id()]).remove(0);
    let (by_mallory, _) = refund(&address, &mallory, &Paid { tx, spend }, elsewhere(), 9_000);
    for member in 0..3 {
        assert_eq!(ask(&mut quorum, member, &by_mallory, &commitments).unwrap_err().reason(), "UNKNOWN");
        assert!(quorum.read(member, |txn| txn.scan_records(b"held/").unwrap().is_empty()));
    }
    quorum.run(Kind::Deposit(request)).unwrap();

    let mut txn = quorum.members[2].engine.vault.begin();
    let id = KeyshareId::parse(&address.keyshare.keyshare_id).unwrap();
    txn.put_record(&[b"static-held/".as_slice(), id.as_bytes()].concat(), 9_999u32.to_be_bytes().to_vec());
    txn.commit().unwrap();
    for (n, refused) in [(1, None), (2, Some("TOO_MANY")), (1, None)] {
        let (wire, _) = refund(&address, &mallory, &address.spend(n, 10_000), elsewhere(), 9_000);
        let answer = ask(&mut quorum, 2, &wire, &commitments);
        assert_eq!(answer.err().map(|error| error.reason()), refused);
    }
}

/// S3: one nonce, one answer: the very same bytes get it again, others get nothing.
#[test]
fn s3_a_nonce_serves_one_refund() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let address = Static::new(&mut quorum, &alice);
    let spend = address.spend(1, 10_000);
    let (first, _) = refund(&address, &alice, &spend, elsewhere(), 9_000);
    let (second, _) = refund(&address, &alice, &spend, elsewhere(), 8_000);
    let commitments = quorum.commitments(alice.id(), 1, &[address.id()]).remove(0);
    let share = ask(&mut quorum, 0, &first, &commitments).unwrap();
    assert_eq!(ask(&mut quorum, 0, &first, &commitments).unwrap(), share);
    assert_eq!(quorum.members[0].engine.alarms().count(), 0, "a repeat is no attack");
    assert_eq!(ask(&mut quorum, 0, &second, &commitments).unwrap_err().reason(), "NONCE_UNKNOWN");
    assert!(quorum.members[0].engine.alarms().any(|alarm| alarm == "nonce_replayed"));
    // Commitments for a static address are for its owner.
    let request = wire::CommitNoncesRequest {
        count: 1,
        identity: Wallet::new().id().serialize().to_vec(),
        leaf_ids: vec![address.id().to_string()],
    };
    assert_eq!(quorum.call(0, Request::CommitNonces(request)).unwrap_err().reason(), "NOT_OWNER");
}

/// A static address makes no leaf, and a leaf's address gives nothing back: each keyshare has one use.
#[test]
fn s2_static_and_one_time_addresses_do_not_serve_each_other() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let address = Static::new(&mut quorum, &alice);
    let request = deposit_request(&mut quorum, &alice, &address.key, address.verifying_key, 50_000);
    let request = operation(&mut quorum, Kind::Deposit(request));
    assert_eq!(quorum.certify(&request).unwrap_err(), "STATIC_ADDRESS");

    let keyshare = quorum.next_keyshare();
    let (leaf, verifying_key) = bound(&mut quorum, &alice);
    let one_time = Static { keyshare, key: leaf.key, verifying_key };
    let spend = one_time.spend(1, 10_000);
    let (wire, _) = refund(&one_time, &alice, &spend, elsewhere(), 9_000);
    let commitments = quorum.commitments(alice.id(), 1, &[]).remove(0);
    assert_eq!(ask(&mut quorum, 0, &wire, &commitments).unwrap_err().reason(), "UNKNOWN");
}

/// X15, D20: bound once, as static or not; the id is not the coordinator's to choose; a peer needs its signature.
#[test]
fn x15_a_static_address_is_bound_once() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let keyshare = quorum.next_keyshare();
    let id = KeyshareId::parse(&keyshare.keyshare_id).unwrap();
    let key = SecretScalar::random(&mut OsRng).public_key();
    let binding = |leaf: LeafId, is_static| wire::Binding {
        keyshare_id: keyshare.keyshare_id.clone(),
        leaf_id: leaf.to_string(),
        user_public_key: key.serialize().to_vec(),
        identity_public_key: alice.id().serialize().to_vec(),
        network: 2,
        coordinator: 0,
        is_static,
    };
    let bind =
        |binding| wire::BindKeyshareRequest { binding: Some(binding), position: None, signature: Vec::new() };
    let chosen = bind(binding(LeafId::from_bytes([5; 16]), true));
    assert!(matches!(quorum.call(0, Request::BindKeyshare(chosen)), Err(EngineError::Binding(_))));
    let right = LeafId::of_static_address(&id);
    // Nobody occupies it with a leaf of his own, before or after.
    let other = KeyshareId::parse(&[9; 16]).unwrap();
    let occupied = bind(binding(LeafId::of_static_address(&other), false));
    assert!(matches!(quorum.call(0, Request::BindKeyshare(occupied)), Err(EngineError::Binding(_))));
    let Reply::BindKeyshare(first) =
        quorum.call(0, Request::BindKeyshare(bind(binding(right, true)))).unwrap()
    else {
        panic!()
    };
    let again = quorum.call(0, Request::BindKeyshare(bind(binding(right, true)))).unwrap();
    assert!(matches!(again, Reply::BindKeyshare(reply) if reply.address == first.address));
    assert!(quorum.call(0, Request::BindKeyshare(bind(binding(right, false)))).is_err());
    // The coordinator's word for a static address is none for a one-time address, and the other way round.
    for (is_static, accepted) in [(false, false), (true, true)] {
        let request = wire::BindKeyshareRequest {
            binding: Some(binding(right, is_static)),
            position: first.position.clone(),
            signature: first.signature.clone(),
        };
        assert_eq!(quorum.call(1, Request::BindKeyshare(request)).is_ok(), accepted);
    }
}
