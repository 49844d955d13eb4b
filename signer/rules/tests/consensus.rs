//! Every template, signed, against Bitcoin Core's own script interpreter.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use bitcoin::consensus::encode::serialize;
use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::{Keypair, Message, SECP256K1};
use bitcoin::{Amount, Sequence, Transaction, TxOut};
use common::{NEW_OWNER, OWNER, RECEIVER, deposit_output, leaf, public, secret, sign};
use spark_rules::tx::{
    HTLC_BLOCKS, Htlc, HtlcError, HtlcPath, Plan, Planned, Purpose, RenewalPath, Source, Spend, Timelock,
    p2tr_script, verify_input,
};

fn accepted(planned: &Planned) -> Result<(), bitcoinconsensus::Error> {
    let signed = sign(&planned.template, &planned.tx);
    let prevouts = planned.template.prevouts();
    for input in 0..prevouts.len() {
        assert_eq!(verify_input(&signed, &prevouts, input), Ok(()));
    }
    interpret(&signed, &prevouts)
}

/// Every input in the interpreter.
fn interpret(signed: &Transaction, prevouts: &[TxOut]) -> Result<(), bitcoinconsensus::Error> {
    let bytes = serialize(signed);
    let utxos: Vec<_> = prevouts
        .iter()
        .map(|o| bitcoinconsensus::Utxo {
            script_pubkey: o.script_pubkey.as_bytes().as_ptr(),
            script_pubkey_len: u32::try_from(o.script_pubkey.len()).unwrap(),
            value: i64::try_from(o.value.to_sat()).unwrap(),
        })
        .collect();
    for (input, prevout) in prevouts.iter().enumerate() {
        bitcoinconsensus::verify(
            prevout.script_pubkey.as_bytes(),
            prevout.value.to_sat(),
            &bytes,
            Some(&utxos),
            input,
        )?;
    }
    Ok(())
}

#[test]
fn every_template_is_valid_when_signed() {
    let mut leaf = leaf(100_000);
    let mut purposes = std::collections::BTreeSet::new();
    let inputs = (1..=11).map(|n| deposit_output(n, 10_000 + u64::from(n))).collect();
    let mut plans = vec![Plan::deposit(Source::Build, inputs, &public(OWNER)).unwrap()];
    plans.push(leaf.build_send(&public(RECEIVER)).unwrap());
    plans.push(leaf.claim(Source::Build, &public(NEW_OWNER)).unwrap());
    leaf.refund_timelock = Timelock::new(200).unwrap();
    plans.push(leaf.renew(Source::Build, RenewalPath::Zero).unwrap());
    let mut leaf = leaf.with_renewal(plans.last().unwrap()).unwrap();
    // A timed node for the other two paths.
    let timed =
        Plan::renew_node(Source::Build, leaf.parent_spend().unwrap(), &leaf.verifying_key, &leaf.owner_key)
            .unwrap();
    leaf = leaf.with_renewal(&timed).unwrap().checked().unwrap();
    plans.push(timed);
    plans.push(leaf.build_send(&public(RECEIVER)).unwrap());
    let htlc = Htlc::new([6; 32], public(RECEIVER), public(NEW_OWNER));
    plans.push(leaf.build_htlc(&htlc).unwrap());
    plans.push(leaf.build_exit(&deposit_output(9, 354), &public(RECEIVER)).unwrap());
    leaf.refund_timelock = Timelock::new(100).unwrap();
    plans.push(leaf.renew(Source::Build, RenewalPath::Refund).unwrap());
    for planned in plans.into_iter().flatten() {
        purposes.insert(planned.purpose());
        let name = planned.purpose();
        assert_eq!(accepted(&planned), Ok(()), "{name}");
    }
    assert_eq!(purposes.len(), 14, "all purposes are covered: {purposes:?}");
}

#[test]
fn a_signature_covers_every_prevout() {
    // X27: a sighash over the wrong outputs gives a signature that the chain refuses.
    let plan = Plan::deposit(
        Source::Build,
        vec![deposit_output(1, 10_000), deposit_output(2, 20_000)],
        &public(OWNER),
    )
    .unwrap();
    let root = plan.transactions().first().unwrap();
    let signed = sign(&root.template, &root.tx);
    let mut prevouts = root.template.prevouts();
    prevouts[1] = prevouts[0].clone();
    assert!(verify_input(&signed, &prevouts, 0).is_err());
    prevouts.pop();
    assert!(verify_input(&signed, &prevouts, 0).is_err());
}

const PREIMAGE: [u8; 32] = [0x66; 32];

/// Terms, and the output of a refund in flight that holds them.
fn in_flight() -> (Htlc, Spend) {
    let payment_hash = bitcoin::hashes::sha256::Hash::hash(&PREIMAGE).to_byte_array();
    let htlc = Htlc::new(payment_hash, public(RECEIVER), public(OWNER));
    let plan = leaf(100_000).build_htlc(&htlc).unwrap();
    let output = Spend::of(&plan.get(Purpose::HtlcRefund).unwrap().tx, 0).unwrap();
    (htlc, output)
}

/// A spend by `path`, signed with the key of `signer`.
fn spend(
    htlc: &Htlc,
    output: &Spend,
    path: HtlcPath,
    signer: u8,
    change: impl Fn(&mut Transaction),
) -> Transaction {
    let destination = p2tr_script(&public(signer));
    let mut tx = htlc.spend(output, path, destination, Amount::from_sat(300)).unwrap();
    change(&mut tx);
    let message = Message::from_digest(htlc.sighash(&tx, &output.txout, path).unwrap());
    let key = Keypair::from_secret_key(SECP256K1, &secret(signer));
    let signature = SECP256K1.sign_schnorr_no_aux_rand(&message, &key).serialize();
    tx.input[0].witness = match path {
        HtlcPath::Preimage => htlc.preimage_witness(signature, &PREIMAGE).unwrap(),
        HtlcPath::Timeout => htlc.timeout_witness(signature).unwrap(),
    };
    tx
}

#[test]
fn an_htlc_output_has_two_ways_out() {
    let (htlc, output) = in_flight();
    let valid = |tx: &Transaction| interpret(tx, std::slice::from_ref(&output.txout)).is_ok();
    let receiver = spend(&htlc, &output, HtlcPath::Preimage, RECEIVER, |_| {});
    assert!(valid(&receiver));
    assert_eq!(receiver.output[0].value, Amount::from_sat(100_000 - 300));
    let sender = spend(&htlc, &output, HtlcPath::Timeout, OWNER, |_| {});
    assert!(valid(&sender));
    assert_eq!(sender.input[0].sequence, Sequence::from_height(HTLC_BLOCKS));

    // Neither takes the other's way, nor his own too early.
    assert!(!valid(&spend(&htlc, &output, HtlcPath::Preimage, OWNER, |_| {})));
    assert!(!valid(&spend(&htlc, &output, HtlcPath::Timeout, RECEIVER, |_| {})));
    let early = |tx: &mut Transaction| tx.input[0].sequence = Sequence::from_height(HTLC_BLOCKS - 1);
    assert!(!valid(&spend(&htlc, &output, HtlcPath::Timeout, OWNER, early)));
    let seconds = |tx: &mut Transaction| tx.input[0].sequence = Sequence::from_512_second_intervals(u16::MAX);
    assert!(!valid(&spend(&htlc, &output, HtlcPath::Timeout, OWNER, seconds)));
    let mut wrong = receiver.clone();
    let stack: Vec<_> = receiver.input[0].witness.iter().map(<[u8]>::to_vec).collect();
    wrong.input[0].witness =
        [stack[0].clone(), vec![7; 32], stack[2].clone(), stack[3].clone()].to_vec().into();
    assert!(!valid(&wrong));
}

#[test]
fn spends_of_other_terms_are_refused() {
    let (htlc, output) = in_flight();
    let destination = || p2tr_script(&public(RECEIVER));
    let other = Htlc::new(*htlc.payment_hash(), public(NEW_OWNER), public(OWNER));
    let refused = other.spend(&output, HtlcPath::Preimage, destination(), Amount::ZERO);
    assert_eq!(refused, Err(HtlcError::Output));
    let all = htlc.spend(&output, HtlcPath::Preimage, destination(), output.txout.value);
    assert_eq!(all, Err(HtlcError::Fee));
    assert_eq!(htlc.preimage_witness([0; 64], &[7; 32]), Err(HtlcError::Preimage));
}

/// X27: a refund's signature covers its connector. It is void without it, with another one, and with one of another value.
#[test]
fn x27_an_exit_refund_is_void_without_its_connector() {
    let connector = deposit_output(9, 354);
    let plan = leaf(100_000).build_exit(&connector, &public(RECEIVER)).unwrap();
    for planned in plan.transactions() {
        let signed = sign(&planned.template, &planned.tx);
        let prevouts = planned.template.prevouts();
        assert_eq!(interpret(&signed, &prevouts), Ok(()));
        assert_eq!(signed.input[1].sequence, Sequence::MAX);
        assert_eq!(signed.output[0].value, planned.template.build().output[0].value);
        // The leaf's own input, in everything that is not this transaction over these outputs.
        let void = |change: &dyn Fn(&mut Transaction, &mut Vec<TxOut>)| {
            let (mut tx, mut prevouts) = (signed.clone(), prevouts.clone());
            change(&mut tx, &mut prevouts);
            verify_input(&tx, &prevouts, 0).is_err()
        };
        assert!(void(&|tx, prevouts| {
            tx.input.pop();
            prevouts.pop();
        }));
        assert!(void(&|tx, _| tx.input[1].previous_output.vout = 2));
        assert!(void(&|_, prevouts| prevouts[1].value = Amount::from_sat(355)));
        assert!(void(&|_, prevouts| prevouts[1] = prevouts[0].clone()));
        assert!(void(&|tx, _| tx.input[1].sequence = Sequence::ENABLE_RBF_NO_LOCKTIME));
    }
}
