//! Random lives of a leaf: timelocks never go up but in a renewal, and no maturity is used twice.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::Txid;
use common::{NEW_OWNER, OWNER, RECEIVER, leaf, public};
use proptest::prelude::*;
use spark_rules::leaf::{LeafError, LeafRecord};
use spark_rules::tx::{
    Connectors, HTLC_OFFSET, Htlc, INTERVAL, LEAST_REFUND_STEP, Maturity, Plan, RawSet, Source,
};

#[derive(Debug, Clone, Copy)]
enum Step {
    Send,
    /// A send that a preimage completes.
    Htlc,
    /// A send that an exit transaction completes.
    Exit,
    /// No preimage came.
    Return,
    Claim,
    Renew,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Send),
        3 => Just(Step::Htlc),
        2 => Just(Step::Exit),
        2 => Just(Step::Return),
        4 => Just(Step::Claim),
        2 => Just(Step::Renew),
    ];
    prop::collection::vec(step, 1..200)
}

/// Serializes a plan and has it checked again, as a signer does.
fn checked(plan: &Plan, check: impl Fn(Source<'_>) -> Result<Plan, LeafError>) {
    let raws: Vec<_> =
        plan.transactions().iter().map(|p| (p.purpose(), bitcoin::consensus::serialize(&p.tx))).collect();
    let set = || raws.iter().fold(RawSet::new(), |set, (purpose, raw)| set.with(*purpose, raw).unwrap());
    assert_eq!(check(Source::Check(set())).as_ref(), Ok(plan));
    // D5: the set is complete, or refused.
    for (missing, _) in &raws {
        let mut rest = RawSet::new();
        for (purpose, raw) in raws.iter().filter(|(purpose, _)| purpose != missing) {
            rest = rest.with(*purpose, raw).unwrap();
        }
        assert!(check(Source::Check(rest)).is_err(), "{missing} is missing");
    }
}

/// Released maturities, and those of them that a return has freed for one more use.
#[derive(Default)]
struct Ledger {
    released: BTreeMap<Maturity, Txid>,
    returned: BTreeSet<Maturity>,
}

impl Ledger {
    /// Files every maturity; the claim may use those of the send before it (D6 c), and the next send those of an HTLC
    /// that was returned (D6 a).
    fn file(&mut self, plan: &Plan, shared: bool) {
        for planned in plan.transactions() {
            for maturity in planned.template.maturities() {
                let former = self.released.insert(maturity, planned.tx.compute_txid());
                let free = self.returned.remove(&maturity);
                assert!(
                    shared || free || former.is_none(),
                    "{} has a rival at {maturity:?}",
                    planned.purpose()
                );
            }
        }
    }

    fn free(&mut self, plan: &Plan) {
        self.returned.extend(plan.transactions().iter().flat_map(|p| p.template.maturities()));
    }
}

fn settled(record: LeafRecord) -> LeafRecord {
    record.checked().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn timelocks_fall(steps in steps(), value in prop_oneof![Just(500u64), 900u64..2000, 10_000u64..100_000_000]) {
        let mut record = leaf(value);
        let mut ledger = Ledger::default();
        let htlc = Htlc::new([6; 32], public(RECEIVER), public(OWNER));
        // Any transaction with one input and more than one output.
        let connectors = Connectors::parse(&bitcoin::consensus::serialize(&leaf(1_000).node_tx)).unwrap();
        let mut in_flight = false;
        // The record to return to, and what is on its way.
        let mut pending: Option<(LeafRecord, Plan)> = None;
        for step in steps {
            let (refund, node) = (record.refund_timelock, record.node_timelock);
            match step {
                Step::Send if !in_flight => match record.build_send(&public(RECEIVER)) {
                    Ok(plan) => {
                        checked(&plan, |source| match source {
                            Source::Check(raws) => record.check_send(raws, &public(RECEIVER)),
                            Source::Build => record.build_send(&public(RECEIVER)),
                        });
                        ledger.file(&plan, false);
                        record = settled(record.with_refunds(&plan).unwrap());
                        in_flight = true;
                        prop_assert!(record.refund_timelock.blocks() + INTERVAL <= refund.blocks());
                        prop_assert!(record.refund_timelock >= LEAST_REFUND_STEP);
                        prop_assert_eq!(record.node_timelock, node);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, LeafError::Exhausted(refund));
                        prop_assert!(refund.blocks() < 2 * INTERVAL);
                    }
                },
                Step::Htlc if !in_flight => match record.build_htlc(&htlc) {
                    Ok(plan) => {
                        checked(&plan, |source| match source {
                            Source::Check(raws) => record.check_htlc(raws, &htlc),
                            Source::Build => record.build_htlc(&htlc),
                        });
                        ledger.file(&plan, false);
                        let before = record.clone();
                        record = settled(record.with_refunds(&plan).unwrap());
                        pending = Some((before, plan));
                        in_flight = true;
                        let step = record.refund_timelock.blocks() - HTLC_OFFSET;
                        prop_assert!(step + INTERVAL <= refund.blocks());
                        prop_assert_eq!(record.claim_timelock().unwrap().blocks(), step);
                        prop_assert_eq!(record.node_timelock, node);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, LeafError::Exhausted(refund));
                        prop_assert!(refund.blocks() < 2 * INTERVAL);
                    }
                },
                Step::Exit if !in_flight => {
                    let Ok(plan) = record.build_exit(&connectors.outputs()[0], &public(RECEIVER)) else {
                        prop_assert!(refund.blocks() < 2 * INTERVAL);
                        continue;
                    };
                    checked(&plan, |source| match source {
                        Source::Check(raws) => {
                            record.check_exit(raws, &connectors, &public(RECEIVER)).map(|(plan, _)| plan)
                        }
                        Source::Build => record.build_exit(&connectors.outputs()[0], &public(RECEIVER)),
                    });
                    ledger.file(&plan, false);
                    record = settled(record.with_refunds(&plan).unwrap());
                    in_flight = true;
                    prop_assert!(record.refund_timelock.blocks() + INTERVAL <= refund.blocks());
                    prop_assert_eq!(record.claim_timelock().unwrap(), record.refund_timelock);
                }
                Step::Return => if let Some((before, plan)) = pending.take() {
                    ledger.free(&plan);
                    record = before;
                    in_flight = false;
                },
                Step::Claim if in_flight => {
                    let plan = record.claim(Source::Build, &public(NEW_OWNER)).unwrap();
                    checked(&plan, |source| record.claim(source, &public(NEW_OWNER)));
                    ledger.file(&plan, true);
                    record = settled(record.with_refunds(&plan).unwrap());
                    in_flight = false;
                    pending = None;
                    prop_assert_eq!(record.refund_timelock, refund.round_down());
                }
                Step::Renew if !in_flight => {
                    let path = record.renewal_path();
                    match record.renew(Source::Build, path) {
                        Ok(plan) => {
                            checked(&plan, |source| record.renew(source, path));
                            // Each renewal has a ladder of its own: no maturity of an earlier one.
                            ledger.file(&plan, false);
                            record = settled(record.with_renewal(&plan).unwrap());
                            prop_assert!(refund.blocks() <= 300);
                            prop_assert_eq!(record.refund_timelock.blocks(), 2000);
                        }
                        Err(error) => {
                            prop_assert_eq!(error, LeafError::Renewal { refund, node });
                            prop_assert!(refund.blocks() > 300);
                        }
                    }
                }
                _ => {}
            }
        }
        let json = serde_json::to_string(&record).unwrap();
        prop_assert_eq!(serde_json::from_str::<LeafRecord>(&json).unwrap(), record);
    }
}

#[test]
fn a_leaf_lives_through_every_renewal_path() {
    let mut record = leaf(100_000);
    let mut paths = Vec::new();
    for _ in 0..500 {
        match record.build_send(&public(RECEIVER)) {
            Ok(plan) => record = record.with_refunds(&plan).unwrap(),
            Err(_) => {
                let path = record.renewal_path();
                paths.push(format!("{path:?}"));
                let plan = record.renew(Source::Build, path).unwrap();
                record = settled(record.with_renewal(&plan).unwrap());
            }
        }
    }
    // A deposit starts on a zero node, and the zero path leads to the next zero node.
    assert!(paths.len() > 20 && paths.iter().all(|path| path == "Zero"), "{paths:?}");
    let timed = Plan::renew_node(
        Source::Build,
        record.parent_spend().unwrap(),
        &record.verifying_key,
        &public(OWNER),
    )
    .unwrap();
    record = settled(record.with_renewal(&timed).unwrap());
    paths.clear();
    for _ in 0..1000 {
        match record.build_send(&public(RECEIVER)) {
            Ok(plan) => record = record.with_refunds(&plan).unwrap(),
            Err(_) => {
                let path = record.renewal_path();
                paths.push(format!("{path:?}"));
                let before = record.node_timelock;
                let plan = record.renew(Source::Build, path).unwrap();
                record = settled(record.with_renewal(&plan).unwrap());
                assert!(record.node_timelock < before || path == spark_rules::tx::RenewalPath::Node);
            }
        }
    }
    assert!(paths.contains(&"Node".to_owned()) && paths.contains(&"Refund".to_owned()), "{paths:?}");
}
