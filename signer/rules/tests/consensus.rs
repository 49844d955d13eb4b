//! Every template, signed, against Bitcoin Core's own script interpreter.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use bitcoin::consensus::encode::serialize;
use common::{NEW_OWNER, OWNER, RECEIVER, deposit_output, leaf, public, sign};
use spark_rules::tx::{Plan, Planned, RenewalPath, Source, Timelock, verify_input};

fn accepted(planned: &Planned) -> Result<(), bitcoinconsensus::Error> {
    let signed = sign(&planned.template, &planned.tx);
    let bytes = serialize(&signed);
    let prevouts = planned.template.prevouts();
    let utxos: Vec<_> = prevouts
        .iter()
        .map(|o| bitcoinconsensus::Utxo {
            script_pubkey: o.script_pubkey.as_bytes().as_ptr(),
            script_pubkey_len: u32::try_from(o.script_pubkey.len()).unwrap(),
            value: i64::try_from(o.value.to_sat()).unwrap(),
        })
        .collect();
    for (input, prevout) in prevouts.iter().enumerate() {
        assert_eq!(verify_input(&signed, &prevouts, input), Ok(()));
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
    leaf.refund_timelock = Timelock::new(100).unwrap();
    plans.push(leaf.renew(Source::Build, RenewalPath::Refund).unwrap());
    for planned in plans.into_iter().flatten() {
        purposes.insert(planned.purpose());
        let name = planned.purpose();
        assert_eq!(accepted(&planned), Ok(()), "{name}");
    }
    assert_eq!(purposes.len(), 8, "all purposes are covered: {purposes:?}");
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
