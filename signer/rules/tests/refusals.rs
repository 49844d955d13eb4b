//! What a signer refuses to sign, with the rule that it names.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use bitcoin::absolute::LockTime;
use bitcoin::consensus::serialize;
use bitcoin::hashes::Hash as _;
use bitcoin::transaction::Version;
use bitcoin::{Amount, ScriptBuf, Sequence, Transaction, TxOut, Witness};
use common::{NEW_OWNER, OWNER, RECEIVER, VERIFYING, deposit_output, leaf, public, secret};
use spark_rules::address::Network;
use spark_rules::leaf::{LeafError, LeafRecord, LeafStatus};
use spark_rules::package::{self, PackageError};
use spark_rules::settlement::{Completion, Condition, RETURN_MARGIN, Ruling, expiry_height};
use spark_rules::tx::{
    Connectors, Htlc, Maturity, Plan, Purpose, RawSet, Rule, Source, StaticRefund, Template, TemplateError,
    Timelock, Variant, anchor, maybe_fee, p2tr_script,
};
use spark_rules::vote::VoteError;

fn tag<T: std::fmt::Debug>(result: Result<T, LeafError>) -> String {
    match result {
        Err(LeafError::Template(TemplateError { rule, .. })) => rule.tag(),
        other => panic!("{other:?}"),
    }
}

/// The tag of a send whose refund was changed.
fn changed_send(record: &LeafRecord, change: impl Fn(&mut Transaction)) -> String {
    let plan = record.build_send(&public(RECEIVER)).unwrap();
    let mut raws: Vec<_> = plan.transactions().iter().map(|p| (p.purpose(), p.tx.clone())).collect();
    change(&mut raws[0].1);
    let raws: Vec<_> = raws.iter().map(|(purpose, tx)| (*purpose, serialize(tx))).collect();
    let set = raws.iter().fold(RawSet::new(), |set, (purpose, raw)| set.with(*purpose, raw).unwrap());
    tag(record.check_send(set, &public(RECEIVER)))
}

fn sequence(raw: u32) -> impl Fn(&mut Transaction) {
    move |tx| tx.input[0].sequence = Sequence::from_consensus(raw)
}

#[test]
fn x8_timelocks_that_mean_something_else_are_refused() {
    let record = leaf(100_000);
    for (raw, rule) in [
        (0xffff_ffff, "tx.sequence"),
        (0x8000_0000 | 1900, "tx.sequence"),
        (1 << 22 | 1900, "tx.sequence"),
        (1 << 29 | 1900, "tx.sequence"),
        (0xffff, "tx.sequence"),
        (0, "refund.timelock.step"),
        (50, "refund.timelock.step"),
        (1850, "refund.timelock.step"),
        (2000, "refund.timelock.step"),
        (2100, "refund.timelock.step"),
        // A lower step is the client's right, but then all its refunds must take it.
        (1800, "direct-from-cpfp-refund.timelock"),
    ] {
        assert_eq!(changed_send(&record, sequence(raw)), rule, "{raw:#x}");
    }
    for version in [1, 2, 4, -1] {
        assert_eq!(changed_send(&record, |tx| tx.version = Version(version)), "tx.version");
    }
    assert_eq!(changed_send(&record, |tx| tx.lock_time = LockTime::from_consensus(1)), "tx.locktime");
}

#[test]
fn x7_refunds_that_pay_anyone_else_are_refused() {
    let record = leaf(100_000);
    let to = |key| move |tx: &mut Transaction| tx.output[0].script_pubkey = p2tr_script(&public(key));
    assert_eq!(changed_send(&record, to(OWNER)), "refund.destination");
    assert_eq!(changed_send(&record, |tx| tx.output[0].value = Amount::from_sat(99_999)), "refund.value");
    assert_eq!(changed_send(&record, |tx| tx.output.truncate(1)), "tx.outputs");
    assert_eq!(changed_send(&record, |tx| tx.output.push(anchor())), "tx.outputs");
    assert_eq!(changed_send(&record, |tx| tx.output.swap(0, 1)), "refund.value");
    assert_eq!(changed_send(&record, |tx| tx.output[1].value = Amount::from_sat(1)), "tx.anchor");
    let elsewhere = TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new() };
    assert_eq!(changed_send(&record, move |tx| tx.output[1] = elsewhere.clone()), "tx.anchor");
    assert_eq!(changed_send(&record, |tx| tx.input[0].previous_output.vout = 1), "tx.outpoint");
    assert_eq!(changed_send(&record, |tx| tx.input.push(tx.input[0].clone())), "tx.inputs");
    assert_eq!(
        changed_send(&record, |tx| tx.input[0].witness = Witness::from_slice(&[[0; 64]])),
        "tx.unsigned"
    );
    assert_eq!(
        changed_send(&record, |tx| tx.input[0].script_sig = ScriptBuf::from_bytes(vec![0x51])),
        "tx.unsigned"
    );
}

#[test]
fn x7_claims_are_held_to_the_same_template() {
    let mut record = leaf(100_000);
    record.refund_timelock = Timelock::new(1900).unwrap();
    let plan = record.claim(Source::Build, &public(NEW_OWNER)).unwrap();
    let (refund, direct) = (serialize(&plan.transactions()[0].tx), serialize(&plan.transactions()[1].tx));
    let claim = |raws: RawSet<'_>| record.claim(Source::Check(raws), &public(NEW_OWNER));
    let set = || RawSet::new().with(Purpose::Refund, &refund).unwrap();
    let complete = || set().with(Purpose::DirectFromCpfpRefund, &direct).unwrap();
    assert_eq!(claim(complete()), Ok(plan.clone()));
    assert_eq!(tag(claim(set())), "direct-from-cpfp-refund.missing");
    // A zero node has no direct refund.
    assert_eq!(
        tag(claim(complete().with(Purpose::DirectRefund, &direct).unwrap())),
        "direct-refund.unexpected"
    );
    assert!(set().with(Purpose::Refund, &refund).is_err());
    let mut early = plan.transactions()[0].tx.clone();
    early.input[0].sequence = Sequence::from_consensus(0);
    let early = serialize(&early);
    let raws =
        RawSet::new().with(Purpose::Refund, &early).unwrap().with(Purpose::DirectFromCpfpRefund, &direct);
    assert_eq!(tag(claim(raws.unwrap())), "refund.timelock");
}

#[test]
fn bytes_that_are_no_transaction_are_refused() {
    let record = leaf(100_000);
    let plan = record.build_send(&public(RECEIVER)).unwrap();
    let refund = &plan.transactions()[0];
    let raw = serialize(&refund.tx);
    let rule = |raw: &[u8]| refund.template.check(raw).map_err(|e| e.rule);
    assert_eq!(rule(&raw), Ok(refund.tx.clone()));
    assert_eq!(rule(&[]), Err(Rule::Encoding));
    assert_eq!(rule(&raw[..raw.len() - 1]), Err(Rule::Encoding));
    assert_eq!(rule(&[raw.as_slice(), &[0]].concat()), Err(Rule::Encoding));
    assert_eq!(rule(&vec![0; 4097]), Err(Rule::Encoding));
}

#[test]
fn roots_collect_one_address_once() {
    let rule = |inputs| Template::root(inputs).map(|_| ()).map_err(|e| e.rule);
    let refused = Err(Rule::Parameters(Purpose::Root));
    assert_eq!(rule(vec![deposit_output(1, 5)]), Ok(()));
    assert_eq!(rule(vec![]), refused);
    assert_eq!(rule(vec![deposit_output(1, 0)]), refused);
    assert_eq!(rule(vec![deposit_output(1, 5), deposit_output(1, 5)]), refused);
    assert_eq!(rule(vec![deposit_output(1, u64::MAX), deposit_output(2, 1)]), refused);
    assert_eq!(rule((0..12).map(|n| deposit_output(n, 5)).collect()), refused);
    let mut other = deposit_output(2, 5);
    other.txout.script_pubkey = p2tr_script(&public(OWNER));
    assert_eq!(rule(vec![deposit_output(1, 5), other]), refused);
}

#[test]
fn fees_are_taken_only_where_they_fit() {
    let fee = |sats| maybe_fee(Amount::from_sat(sats)).to_sat();
    assert_eq!([fee(0), fee(955), fee(956), fee(1000)], [0, 955, 1, 45]);
}

#[test]
fn records_that_contradict_themselves_are_refused() {
    let good = leaf(100_000);
    let refused = |change: fn(&mut LeafRecord)| {
        let mut record = good.clone();
        change(&mut record);
        record.checked().unwrap_err()
    };
    assert_eq!(refused(|r| r.owner_key = public(NEW_OWNER)), LeafError::KeySum);
    assert_eq!(refused(|r| r.verifying_key = public(OWNER)), LeafError::KeySum);
    assert_eq!(refused(|r| r.value += 1), LeafError::Output("node tx"));
    assert_eq!(refused(|r| r.refund_timelock = Timelock::ZERO), LeafError::Timelock("refund tx"));
    assert_eq!(refused(|r| r.node_prevouts.clear()), LeafError::Prevouts("node tx"));
    let plan =
        Plan::renew_node(Source::Build, good.node_spend().unwrap(), &public(VERIFYING), &public(OWNER))
            .unwrap();
    let mut timed = good.clone().with_renewal(&plan).unwrap();
    assert_eq!(timed.check(), Ok(()));
    assert_eq!(timed.parent_id, Some(good.split_node_id(&plan.get(Purpose::Split).unwrap().tx)));
    timed.direct_node_tx = None;
    assert_eq!(timed.check(), Err(LeafError::NoDirectNode));
}

#[test]
fn status_names_are_those_of_the_public_wire() {
    for name in
        ["AVAILABLE", "CREATING", "TRANSFER_LOCKED", "SPLITTED", "SPLIT_LOCKED", "ON_CHAIN", "RENEW_LOCKED"]
    {
        let status: LeafStatus = name.parse().unwrap();
        assert_eq!(status.name(), name);
        assert_eq!(status.to_wire().as_str_name(), format!("TREE_NODE_STATUS_{name}"));
        assert_eq!(LeafStatus::from_wire(status.to_wire()), status);
    }
}

#[test]
fn stages_release_children_first() {
    let record = leaf(100_000);
    let stages = |plan: &Plan| plan.transactions().iter().map(|p| (p.purpose(), p.stage)).collect::<Vec<_>>();
    use Purpose::{DirectFromCpfpRefund, DirectNode, DirectRefund, DirectSplit, Node, Refund, Split};
    assert_eq!(
        stages(&record.build_send(&public(RECEIVER)).unwrap()),
        [(Refund, 0), (DirectFromCpfpRefund, 0)]
    );
    let plan =
        Plan::renew_node(Source::Build, record.node_spend().unwrap(), &public(VERIFYING), &public(OWNER))
            .unwrap();
    assert_eq!(
        stages(&plan),
        [
            (Split, 2),
            (DirectSplit, 2),
            (Node, 1),
            (DirectNode, 1),
            (Refund, 0),
            (DirectRefund, 0),
            (DirectFromCpfpRefund, 0),
        ]
    );
    assert_eq!(plan.stages(), 3);
}

#[test]
fn maturities_drop_the_offset_of_the_variant() {
    let record = leaf(100_000);
    let plan = record.build_send(&public(RECEIVER)).unwrap();
    let maturities: Vec<_> = plan.transactions().iter().flat_map(|p| p.template.maturities()).collect();
    let outpoint = record.node_spend().unwrap().outpoint;
    let step = Timelock::new(1900).unwrap();
    let expected = [Variant::Cpfp, Variant::Direct].map(|variant| Maturity { outpoint, step, variant });
    assert_eq!(maturities, expected);
    for maturity in maturities {
        assert_eq!(Maturity::from_bytes(&maturity.to_bytes()), Ok(maturity));
    }
    assert!(Maturity::from_bytes(&[0xff; 39]).is_err());
}

#[test]
fn nonces_name_their_operator() {
    let nonce = package::challenge_nonce(&public(1), [7; 16]);
    assert!(package::challenge_nonce_is_for(&nonce, &public(1)));
    assert!(!package::challenge_nonce_is_for(&nonce, &public(2)));
    assert!(!package::challenge_nonce_is_for(&nonce[..31], &public(1)));
    assert!(!package::challenge_nonce_is_for(&[], &public(1)));
}

#[test]
fn ciphers_are_signed_for_one_leaf_of_one_transfer() {
    use bitcoin::secp256k1::{Message, SECP256K1, ecdsa::Signature};
    let digest = package::secret_cipher_digest("leaf", "transfer", b"cipher");
    let signature = SECP256K1.sign_ecdsa(&Message::from_digest(digest), &secret(RECEIVER));
    let verify = |leaf, transfer, cipher: &[u8], signature: &[u8]| {
        package::verify_secret_cipher(leaf, transfer, cipher, signature, &public(RECEIVER))
    };
    let compact = signature.serialize_compact();
    assert_eq!(verify("leaf", "transfer", b"cipher", &compact), Ok(()));
    assert_eq!(verify("leaf", "transfer", b"cipher", &signature.serialize_der()), Ok(()));
    assert_eq!(verify("other", "transfer", b"cipher", &compact), Err(PackageError::Signature));
    assert_eq!(verify("leaf", "other", b"cipher", &compact), Err(PackageError::Signature));
    assert_eq!(verify("leaf", "transfer", b"other", &compact), Err(PackageError::Signature));
    // The other s of the same signature is what some wallets send.
    let mut high = compact;
    let order = hex::decode("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").unwrap();
    let mut borrow = 0i16;
    for i in (0..32).rev() {
        let difference = i16::from(order[i]) - i16::from(compact[32 + i]) - borrow;
        borrow = i16::from(difference < 0);
        high[32 + i] = difference.rem_euclid(256) as u8;
    }
    assert_ne!(Signature::from_compact(&high).unwrap(), signature);
    assert_eq!(verify("leaf", "transfer", b"cipher", &high), Ok(()));
    assert!(package::parse_transfer_id("0193C5D2-7B0A-7C40-9A55-2F3F6D0A1B2C").is_err());
}

/// A refund of a static deposit of 10,000 satoshis with one change.
fn changed_refund(change: impl Fn(&mut Transaction)) -> Result<StaticRefund, String> {
    let spend = deposit_output(7, 10_000);
    let value = Amount::from_sat(9_000);
    let script = p2tr_script(&public(RECEIVER));
    let good = StaticRefund::new(spend.clone(), script, value, Network::Regtest).unwrap();
    let mut tx = good.build();
    change(&mut tx);
    StaticRefund::check(&serialize(&tx), spend, Network::Regtest).map_err(|error| error.rule.tag())
}

#[test]
fn x7_a_static_refund_spends_one_output_to_one_address_and_nothing_else() {
    let refused = |change: &dyn Fn(&mut Transaction)| changed_refund(change).unwrap_err();
    // Place and value are the owner's to choose, within what the chain carries.
    let elsewhere = p2tr_script(&public(NEW_OWNER));
    assert!(changed_refund(|_| {}).is_ok());
    assert!(changed_refund(|tx| tx.output[0].script_pubkey = elsewhere.clone()).is_ok());
    for (value, fits) in [(329, false), (330, true), (10_000, true), (10_001, false)] {
        let result = changed_refund(|tx| tx.output[0].value = Amount::from_sat(value));
        assert_eq!(result.err().as_deref(), (!fits).then_some("static-refund.value"), "{value}");
    }
    for script in [ScriptBuf::new(), ScriptBuf::new_op_return([1]), ScriptBuf::from_bytes(vec![0x51])] {
        let tag = refused(&|tx| tx.output[0].script_pubkey = script.clone());
        assert_eq!(tag, "static-refund.destination", "{script:?}");
    }
    for version in [1, 2, 4, -1] {
        assert_eq!(refused(&|tx| tx.version = Version(version)), "tx.version");
    }
    assert_eq!(refused(&|tx| tx.lock_time = LockTime::from_consensus(1)), "tx.locktime");
    assert_eq!(refused(&|tx| tx.output.push(anchor())), "tx.outputs");
    assert_eq!(refused(&|tx| tx.output.clear()), "tx.outputs");
    assert_eq!(refused(&|tx| tx.input.push(tx.input[0].clone())), "tx.inputs");
    assert_eq!(refused(&|tx| tx.input[0].previous_output.vout = 0), "tx.outpoint");
    assert_eq!(
        refused(&|tx| tx.input[0].previous_output.txid = deposit_output(8, 1).outpoint.txid),
        "tx.outpoint"
    );
    assert_eq!(refused(&|tx| tx.input[0].witness = Witness::from_slice(&[[1u8; 64]])), "tx.unsigned");
    assert_eq!(refused(&|tx| tx.input[0].script_sig = ScriptBuf::from_bytes(vec![0])), "tx.unsigned");
    for raw in [0, 1, 2000, 0xffff_fffd, 0xffff_fffe] {
        assert_eq!(refused(&|tx| tx.input[0].sequence = Sequence::from_consensus(raw)), "tx.sequence");
    }
    // Not even the same transaction in other bytes.
    let spend = deposit_output(7, 10_000);
    let mut raw = serialize(
        &StaticRefund::check(
            &serialize(&changed_refund(|_| {}).unwrap().build()),
            spend.clone(),
            Network::Regtest,
        )
        .unwrap()
        .build(),
    );
    raw.push(0);
    assert_eq!(
        StaticRefund::check(&raw, spend.clone(), Network::Regtest).unwrap_err().rule.tag(),
        "tx.encoding"
    );
    assert_eq!(
        StaticRefund::check(&vec![0; 5000], spend, Network::Regtest).unwrap_err().rule.tag(),
        "tx.encoding"
    );
}

/// D17: the statement is over the sighash, so over every byte and what is spent; its form is that of deployed wallets.
#[test]
fn a_static_refund_needs_its_owners_statement() {
    use bitcoin::secp256k1::{Message, SECP256K1};
    let refund = changed_refund(|_| {}).unwrap();
    let message =
        spark_rules::tx::sighash(&refund.build(), std::slice::from_ref(&refund.spend().txout), 0).unwrap();
    let outpoint = refund.spend().outpoint;
    let digest = |network, value| package::static_refund_digest(network, &outpoint, value, &message);
    let sign = |digest: [u8; 32], key: u8| {
        SECP256K1.sign_ecdsa(&Message::from_digest(digest), &secret(key)).serialize_der().to_vec()
    };
    let verify = |signature: &[u8]| {
        package::verify_static_refund(Network::Regtest, &refund, signature, &public(OWNER))
    };
    let right = digest(Network::Regtest, refund.value());
    assert_eq!(verify(&sign(right, OWNER)).unwrap(), message);
    for wrong in [
        sign(right, RECEIVER),
        sign(digest(Network::Mainnet, refund.value()), OWNER),
        sign(digest(Network::Regtest, Amount::from_sat(8_999)), OWNER),
        sign(message, OWNER),
        Vec::new(),
    ] {
        assert_eq!(verify(&wrong).unwrap_err(), PackageError::Signature);
    }
    // The bytes that public wallets hash, written out.
    let mut bytes = b"claim_static_depositregtest".to_vec();
    bytes.extend_from_slice(outpoint.txid.to_string().as_bytes());
    bytes.extend_from_slice(&[1, 0, 0, 0, 2]);
    bytes.extend_from_slice(&9_000u64.to_le_bytes());
    bytes.extend_from_slice(&message);
    let hash = <bitcoin::hashes::sha256::Hash as bitcoin::hashes::Hash>::hash(&bytes);
    assert_eq!(right, *AsRef::<[u8; 32]>::as_ref(&hash));
}

/// The tag of an HTLC send whose transactions were changed; none if it was taken.
fn changed_htlc(record: &LeafRecord, htlc: &Htlc, change: impl Fn(&mut [Transaction])) -> Option<String> {
    let plan = record.build_htlc(htlc).unwrap();
    let mut txs: Vec<_> = plan.transactions().iter().map(|p| p.tx.clone()).collect();
    change(&mut txs);
    let raws: Vec<_> =
        plan.transactions().iter().zip(&txs).map(|(p, tx)| (p.purpose(), serialize(tx))).collect();
    let set = raws.iter().fold(RawSet::new(), |set, (purpose, raw)| set.with(*purpose, raw).unwrap());
    let checked = record.check_htlc(set, htlc);
    checked.is_err().then(|| tag(checked))
}

fn htlc_to(receiver: u8) -> Htlc {
    Htlc::new([6; 32], public(receiver), public(OWNER))
}

#[test]
fn htlc_refunds_are_held_to_their_template() {
    let record = leaf(100_000);
    let htlc = htlc_to(RECEIVER);
    assert_eq!(changed_htlc(&record, &htlc, |_| {}), None);
    let timelocks: Vec<_> = record
        .build_htlc(&htlc)
        .unwrap()
        .transactions()
        .iter()
        .map(|p| (p.purpose(), p.template.step().blocks(), p.template.timelock().blocks()))
        .collect();
    assert_eq!(
        timelocks,
        [(Purpose::HtlcRefund, 1900, 1970), (Purpose::HtlcDirectFromCpfpRefund, 1900, 1985)]
    );
    let at = |raw| changed_htlc(&record, &htlc, move |txs| sequence(raw)(&mut txs[0])).unwrap();
    for raw in [0, 69, 70, 1900, 1950, 1985, 2070] {
        assert_eq!(at(raw), "refund.timelock.step", "{raw}");
    }
    // A lower step, but then of all of them.
    assert_eq!(at(1870), "htlc-direct-from-cpfp-refund.timelock");
    let other = |change: fn() -> Htlc| {
        changed_htlc(&record, &htlc, move |txs| {
            txs[0].output[0].script_pubkey = change().script_pubkey().unwrap();
        })
    };
    for change in [
        || htlc_to(NEW_OWNER),
        || Htlc::new([7; 32], public(RECEIVER), public(OWNER)),
        || Htlc::new([6; 32], public(RECEIVER), public(NEW_OWNER)),
        || Htlc::new([6; 32], public(OWNER), public(RECEIVER)),
    ] {
        assert_eq!(other(change).as_deref(), Some("htlc-refund.destination"));
    }
    let plain = |txs: &mut [Transaction]| txs[0].output[0].script_pubkey = p2tr_script(&public(RECEIVER));
    assert_eq!(changed_htlc(&record, &htlc, plain).as_deref(), Some("htlc-refund.destination"));
    let value = |txs: &mut [Transaction]| txs[1].output[0].value = Amount::from_sat(100_000);
    assert_eq!(changed_htlc(&record, &htlc, value).as_deref(), Some("htlc-direct-from-cpfp-refund.value"));
}

/// D5: one shape for all; neither shape passes for the other.
#[test]
fn plain_and_htlc_refunds_do_not_mix() {
    let record = leaf(100_000);
    let htlc = htlc_to(RECEIVER);
    let raw = |plan: &Plan, purpose| serialize(&plan.get(purpose).unwrap().tx);
    let (plain, locked) = (record.build_send(&public(RECEIVER)).unwrap(), record.build_htlc(&htlc).unwrap());
    let (refund, direct) =
        (raw(&locked, Purpose::HtlcRefund), raw(&locked, Purpose::HtlcDirectFromCpfpRefund));
    let set = |list: &[(Purpose, &Vec<u8>)]| {
        let mut raws = RawSet::new();
        for (purpose, bytes) in list.iter().copied() {
            raws = raws.with(purpose, Box::leak(bytes.clone().into_boxed_slice())).unwrap();
        }
        raws
    };
    let as_plain = set(&[(Purpose::Refund, &refund), (Purpose::DirectFromCpfpRefund, &direct)]);
    assert_eq!(tag(record.check_send(as_plain, &public(RECEIVER))), "refund.timelock.step");
    let half = set(&[(Purpose::HtlcRefund, &refund)]);
    assert_eq!(tag(record.check_htlc(half, &htlc)), "htlc-direct-from-cpfp-refund.missing");
    let both = set(&[
        (Purpose::HtlcRefund, &refund),
        (Purpose::HtlcDirectFromCpfpRefund, &direct),
        (Purpose::Refund, &raw(&plain, Purpose::Refund)),
    ]);
    assert_eq!(tag(record.check_htlc(both, &htlc)), "refund.unexpected");
    let mixed = set(&[
        (Purpose::HtlcRefund, &raw(&plain, Purpose::Refund)),
        (Purpose::HtlcDirectFromCpfpRefund, &direct),
    ]);
    assert_eq!(tag(record.check_htlc(mixed, &htlc)), "refund.timelock.step");
    let template = Template::htlc_refund(
        Purpose::Refund,
        record.node_spend().unwrap(),
        &htlc,
        Timelock::new(1900).unwrap(),
    );
    assert_eq!(template.unwrap_err().rule.tag(), "refund.parameters");
}

/// D23: the claim goes down to the step of the HTLC; the record is consistent in between.
#[test]
fn a_claim_after_an_htlc_takes_the_step_below() {
    let record = leaf(100_000);
    let plan = record.build_htlc(&htlc_to(RECEIVER)).unwrap();
    let received = record.with_refunds(&plan).unwrap().checked().unwrap();
    assert_eq!(received.refund_timelock.blocks(), 1970);
    let claim = received.claim(Source::Build, &public(NEW_OWNER)).unwrap();
    let claimed = received.with_refunds(&claim).unwrap().checked().unwrap();
    assert_eq!(claimed.refund_timelock.blocks(), 1900);
    // Their maturities are the same, as of any intermediate and claimed refund (D6 c).
    let of =
        |plan: &Plan| plan.transactions().iter().flat_map(|p| p.template.maturities()).collect::<Vec<_>>();
    assert_eq!(of(&plan), of(&claim));
}

/// D8: what the second decision of a conditional operation may rest on.
#[test]
fn rulings_need_their_condition() {
    let payment_hash = bitcoin::hashes::sha256::Hash::hash(&[9; 32]).to_byte_array();
    let condition = Condition::preimage(payment_hash, 100);
    assert_eq!(condition.returnable_at(), 100 + RETURN_MARGIN);
    let commit = |preimage: &[u8]| Ruling::asked(preimage, 0).and_then(|r| condition.check(&r).map(|()| r));
    assert_eq!(commit(&[9; 32]), Ok(Ruling::Commit { preimage: [9; 32] }));
    assert_eq!(commit(&[8; 32]), Err(VoteError::Disagree("payment hash")));
    assert_eq!(commit(&[9; 31]), Err(VoteError::Malformed("preimage")));
    let abort = |tip| Ruling::asked(&[], tip).and_then(|r| condition.check(&r));
    assert_eq!(abort(100 + RETURN_MARGIN), Ok(()));
    assert_eq!(abort(99 + RETURN_MARGIN), Err(VoteError::Disagree("expiry")));
    assert_eq!(abort(0), Err(VoteError::Disagree("expiry")));
    let never = Condition::preimage(payment_hash, u32::MAX);
    assert_eq!(never.returnable_at(), u32::MAX);
}

/// D8: one height from the wire's time, which every operator computes for itself.
#[test]
fn a_time_becomes_a_height_once() {
    assert_eq!(expiry_height(100, 1_000, 1_001), Some(106), "six blocks at least");
    assert_eq!(expiry_height(100, 1_000, 1_000 + 6 * 600), Some(106));
    assert_eq!(expiry_height(100, 1_000, 1_001 + 6 * 600), Some(107), "rounded up");
    assert_eq!(expiry_height(100, 1_000, 1_000 + 4320 * 600), Some(4420));
    for expires in [i64::MIN, 0, 1_000, 1_001 + 4320 * 600, i64::MAX] {
        assert_eq!(expiry_height(100, 1_000, expires), None, "{expires}");
    }
    assert_eq!(expiry_height(u32::MAX, 1_000, 2_000), None);
    let condition = Condition::preimage([0; 32], 200);
    for (view, fits) in [(197, true), (203, true), (196, false), (204, false), (0, false), (u32::MAX, false)]
    {
        assert_eq!(condition.fits(view), fits, "{view}");
    }
}

/// A connector transaction with outputs for two leaves and one for its fee.
fn connector_tx() -> Transaction {
    let mut tx = leaf(1_000).node_tx;
    tx.input[0].previous_output.vout = 4;
    tx.output = (0..3)
        .map(|_| TxOut { value: Amount::from_sat(354), script_pubkey: p2tr_script(&public(9)) })
        .collect();
    tx
}

#[test]
fn connectors_are_all_outputs_but_the_last() {
    let tx = connector_tx();
    let connectors = Connectors::parse(&serialize(&tx)).unwrap();
    assert_eq!(connectors.exit(), tx.input[0].previous_output);
    let found: Vec<_> = connectors.outputs().iter().map(|c| (c.outpoint.txid, c.outpoint.vout)).collect();
    assert_eq!(found, [(tx.compute_txid(), 0), (tx.compute_txid(), 1)]);
    let refused = |change: &dyn Fn(&mut Transaction)| {
        let mut tx = connector_tx();
        change(&mut tx);
        Connectors::parse(&serialize(&tx)).unwrap_err().rule.tag()
    };
    assert_eq!(refused(&|tx| tx.input.push(tx.input[0].clone())), "connector.tx");
    assert_eq!(refused(&|tx| tx.output.truncate(1)), "connector.tx");
    assert_eq!(refused(&|tx| tx.input[0].previous_output = bitcoin::OutPoint::null()), "connector.tx");
    assert_eq!(refused(&|tx| tx.output = vec![tx.output[0].clone(); 500]), "connector.tx");
    assert_eq!(Connectors::parse(&[]).unwrap_err().rule.tag(), "connector.tx");
    // What signed it does not matter.
    let mut signed = tx.clone();
    signed.input[0].witness = Witness::from_slice(&[[7; 64]]);
    assert_eq!(Connectors::parse(&serialize(&signed)), Ok(connectors));
}

/// The tag of an exit whose transactions were changed.
fn changed_exit(record: &LeafRecord, change: impl Fn(&mut [Transaction])) -> Option<String> {
    let connectors = Connectors::parse(&serialize(&connector_tx())).unwrap();
    let plan = record.build_exit(&connectors.outputs()[0], &public(RECEIVER)).unwrap();
    let mut txs: Vec<_> = plan.transactions().iter().map(|p| p.tx.clone()).collect();
    change(&mut txs);
    let raws: Vec<_> =
        plan.transactions().iter().zip(&txs).map(|(p, tx)| (p.purpose(), serialize(tx))).collect();
    let set = raws.iter().fold(RawSet::new(), |set, (purpose, raw)| set.with(*purpose, raw).unwrap());
    let checked = record.check_exit(set, &connectors, &public(RECEIVER));
    checked.is_err().then(|| tag(checked))
}

#[test]
fn x27_exit_refunds_are_held_to_their_connector() {
    let record = leaf(100_000);
    assert_eq!(changed_exit(&record, |_| {}), None);
    let refused = |change: &dyn Fn(&mut [Transaction])| changed_exit(&record, change).unwrap();
    // Without a connector, with two, with another one, with the fee's, with one of another transaction.
    assert_eq!(refused(&|txs| txs[0].input.truncate(1)), "tx.inputs");
    assert_eq!(refused(&|txs| txs[0].input.push(txs[0].input[1].clone())), "tx.inputs");
    assert_eq!(refused(&|txs| txs[1].input.truncate(1)), "tx.inputs");
    assert_eq!(refused(&|txs| txs[0].input[1].previous_output.vout = 2), "connector.outpoint");
    assert_eq!(refused(&|txs| txs[0].input[1].previous_output.vout = 3), "connector.outpoint");
    let elsewhere = record.node_tx.compute_txid();
    assert_eq!(refused(&|txs| txs[0].input[1].previous_output.txid = elsewhere), "connector.outpoint");
    // All variants have the same one.
    assert_eq!(refused(&|txs| txs[1].input[1].previous_output.vout = 1), "tx.outpoint");
    assert_eq!(refused(&|txs| txs[0].input.swap(0, 1)), "tx.sequence");
    for raw in [0, 1900, 0xffff_fffd] {
        assert_eq!(refused(&|txs| txs[0].input[1].sequence = Sequence::from_consensus(raw)), "tx.sequence");
    }
    assert_eq!(refused(&|txs| txs[0].input[1].witness = Witness::from_slice(&[[0; 64]])), "tx.unsigned");
    // Everything else as in a plain send; the connector's value is not the refund's.
    assert_eq!(refused(&|txs| sequence(1950)(&mut txs[0])), "refund.timelock.step");
    assert_eq!(refused(&|txs| sequence(1800)(&mut txs[0])), "connector-direct-from-cpfp.timelock");
    assert_eq!(refused(&|txs| txs[0].output[0].value += Amount::from_sat(354)), "connector-refund.value");
    let theirs = p2tr_script(&public(OWNER));
    assert_eq!(
        refused(&|txs| txs[0].output[0].script_pubkey = theirs.clone()),
        "connector-refund.destination"
    );
}

/// D5: a refund with a connector is no plain one, and the other way round.
#[test]
fn plain_and_exit_refunds_do_not_mix() {
    let record = leaf(100_000);
    let connectors = Connectors::parse(&serialize(&connector_tx())).unwrap();
    let exit = record.build_exit(&connectors.outputs()[0], &public(RECEIVER)).unwrap();
    let plain = record.build_send(&public(RECEIVER)).unwrap();
    let raw = |plan: &Plan, purpose| serialize(&plan.get(purpose).unwrap().tx);
    let (refund, direct) =
        (raw(&exit, Purpose::ConnectorRefund), raw(&exit, Purpose::ConnectorDirectFromCpfpRefund));
    let set = |a, b| RawSet::new().with(a, &refund).unwrap().with(b, &direct).unwrap();
    let as_plain = set(Purpose::Refund, Purpose::DirectFromCpfpRefund);
    assert_eq!(tag(record.check_send(as_plain, &public(RECEIVER))), "tx.inputs");
    let (refund, direct) = (raw(&plain, Purpose::Refund), raw(&plain, Purpose::DirectFromCpfpRefund));
    let as_exit = RawSet::new()
        .with(Purpose::ConnectorRefund, &refund)
        .unwrap()
        .with(Purpose::ConnectorDirectFromCpfpRefund, &direct)
        .unwrap();
    assert_eq!(tag(record.check_exit(as_exit, &connectors, &public(RECEIVER))), "tx.inputs");
    // They share a maturity, which the ledger gives to one of them.
    let of =
        |plan: &Plan| plan.transactions().iter().flat_map(|p| p.template.maturities()).collect::<Vec<_>>();
    assert_eq!(of(&exit), of(&plain));
    let node = record.node_spend().unwrap();
    let same = Template::connector_refund(
        Purpose::ConnectorRefund,
        node.clone(),
        node.clone(),
        &public(RECEIVER),
        Timelock::new(1900).unwrap(),
    );
    assert_eq!(same.unwrap_err().rule.tag(), "connector-refund.parameters");
}

/// D8: an exit is completed by its depth, whatever the height of its expiry, and by nothing else.
#[test]
fn an_exit_needs_its_depth() {
    let completes = Completion::Exit { txid: connector_tx().compute_txid(), depth: 3 };
    let condition = Condition { completes, expiry_height: 100 };
    let seen = |tip, height| condition.check(&Ruling::confirmed(tip, height, &[7; 32]).unwrap());
    assert_eq!(seen(52, 50), Ok(()));
    assert_eq!(seen(500, 50), Ok(()));
    for (tip, height) in [(51, 50), (50, 50), (49, 50), (0, u32::MAX)] {
        assert_eq!(seen(tip, height), Err(VoteError::Disagree("depth")), "{tip} {height}");
    }
    assert!(Ruling::confirmed(52, 50, &[7; 31]).is_err());
    let preimage = Ruling::asked(&[9; 32], 0).unwrap();
    assert_eq!(condition.check(&preimage), Err(VoteError::Disagree("payment hash")));
    let hash = bitcoin::hashes::sha256::Hash::hash(&[9; 32]).to_byte_array();
    let mined = Ruling::confirmed(52, 50, &[7; 32]).unwrap();
    assert_eq!(Condition::preimage(hash, 100).check(&mined), Err(VoteError::Disagree("depth")));
    let abort = |tip| condition.check(&Ruling::asked(&[], tip).unwrap());
    assert_eq!((abort(106), abort(105)), (Ok(()), Err(VoteError::Disagree("expiry"))));
    assert!(!mined.agrees(&Ruling::asked(&[], 106).unwrap()) && mined.agrees(&preimage));
}
