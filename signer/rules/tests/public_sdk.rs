//! Known answers made once with the public JavaScript SDK (npm `@buildonspark/spark-sdk` 0.8.8).

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use bitcoin::Transaction;
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::secp256k1::PublicKey;
use common::{GROUP, NEW_OWNER, OWNER, RECEIVER, VERIFYING, deposited, public};
use serde_json::Value;
use sha2::Digest as _;
use spark_proto::spark::{ClaimPackage, HashVariant, TransferPackage};
use spark_rules::address::{Network, SparkAddress, deposit_address, is_deposit_address};
use spark_rules::hash::StructuredHash;
use spark_rules::leaf::LeafRecord;
use spark_rules::package::{self, PackageError};
use spark_rules::tx::{
    Connectors, Htlc, HtlcPath, Plan, Purpose, RawSet, RenewalPath, Source, Spend, Timelock, p2tr_script,
    sighash,
};

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors/public-sdk.json")).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(text(value)).unwrap()
}

fn name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Root => "root",
        Purpose::Node => "node",
        Purpose::DirectNode => "direct_node",
        Purpose::Split => "split",
        Purpose::DirectSplit => "direct_split",
        Purpose::Refund => "refund",
        Purpose::DirectRefund => "direct_refund",
        Purpose::DirectFromCpfpRefund => "direct_from_cpfp_refund",
        Purpose::StaticRefund => "static_refund",
        Purpose::HtlcRefund => "htlc_refund",
        Purpose::HtlcDirectRefund => "htlc_direct_refund",
        Purpose::HtlcDirectFromCpfpRefund => "htlc_direct_from_cpfp_refund",
        Purpose::ConnectorRefund => "connector_refund",
        Purpose::ConnectorDirectRefund => "connector_direct_refund",
        Purpose::ConnectorDirectFromCpfpRefund => "connector_direct_from_cpfp_refund",
    }
}

const PURPOSES: [Purpose; 11] = [
    Purpose::Root,
    Purpose::Node,
    Purpose::DirectNode,
    Purpose::Split,
    Purpose::DirectSplit,
    Purpose::Refund,
    Purpose::DirectRefund,
    Purpose::DirectFromCpfpRefund,
    Purpose::ConnectorRefund,
    Purpose::ConnectorDirectRefund,
    Purpose::ConnectorDirectFromCpfpRefund,
];

fn raws(case: &Value) -> BTreeMap<Purpose, Vec<u8>> {
    PURPOSES
        .into_iter()
        .filter_map(|purpose| case.get(name(purpose)).filter(|v| v.is_string()).map(|v| (purpose, bytes(v))))
        .collect()
}

fn raw_set(raws: &BTreeMap<Purpose, Vec<u8>>) -> RawSet<'_> {
    raws.iter().fold(RawSet::new(), |set, (purpose, raw)| set.with(*purpose, raw).unwrap())
}

/// Checks the SDK's transactions and compares what we build.
fn same(case: &Value, plan: impl Fn(Source<'_>) -> Plan) -> Plan {
    let raws = raws(case);
    let checked = plan(Source::Check(raw_set(&raws)));
    assert_eq!(checked.transactions().len(), raws.len());
    assert_eq!(checked, plan(Source::Build));
    checked
}

fn at(leaf: &LeafRecord, refund: u16) -> LeafRecord {
    LeafRecord { refund_timelock: Timelock::new(refund).unwrap(), ..leaf.clone() }
}

#[test]
fn transactions_are_the_same_bytes() {
    let vectors = vectors();
    for case in vectors["cases"].as_array().unwrap() {
        let funding: Transaction = deserialize_hex(text(&case["funding"])).unwrap();
        let mut deposit = case["deposit"].clone();
        deposit["root"] = case["root"].clone();
        let input = vec![Spend::of(&funding, 0).unwrap()];
        let plan = same(&deposit, |source| Plan::deposit(source, input.clone(), &public(OWNER)).unwrap());
        let leaf = deposited(&plan);

        let sent = raws(&case["send"]);
        let checked = leaf.check_send(raw_set(&sent), &public(RECEIVER)).unwrap();
        assert_eq!(checked, leaf.build_send(&public(RECEIVER)).unwrap());
        let in_flight = leaf.clone().with_refunds(&checked).unwrap();
        assert_eq!(in_flight.refund_timelock.blocks(), 1900);
        same(&case["claim"], |source| in_flight.claim(source, &public(NEW_OWNER)).unwrap());

        // The client's marker bit is carried through.
        let marked = raws(&case["marked_claim"]);
        let plan = in_flight.claim(Source::Check(raw_set(&marked)), &public(NEW_OWNER)).unwrap();
        assert!(plan.transactions().iter().all(|p| p.tx.input[0].sequence.to_consensus_u32() >> 30 == 1));

        same(&case["renew_zero"], |source| at(&leaf, 300).renew(source, RenewalPath::Zero).unwrap());

        let parent = leaf.node_spend().unwrap();
        let renewed = same(&case["renew_node"], |source| {
            Plan::renew_node(source, parent.clone(), &public(VERIFYING), &public(OWNER)).unwrap()
        });
        let timed = leaf.clone().with_renewal(&renewed).unwrap().checked().unwrap();
        same(&case["renew_refund"], |source| at(&timed, 100).renew(source, RenewalPath::Refund).unwrap());
        let sent = raws(&case["timed_send"]);
        let checked = timed.check_send(raw_set(&sent), &public(RECEIVER)).unwrap();
        assert_eq!(checked, timed.build_send(&public(RECEIVER)).unwrap());
    }
    let multi = &vectors["multi"];
    let inputs: Vec<_> = multi["fundings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| Spend::of(&deserialize_hex(text(f)).unwrap(), 0).unwrap())
        .collect();
    let plan = Plan::deposit(Source::Build, inputs, &public(OWNER)).unwrap();
    let root = plan.get(Purpose::Root).unwrap();
    assert_eq!(root.template.check(&bytes(&multi["root"])).as_ref(), Ok(&root.tx));
}

#[test]
fn keys_and_deposit_addresses_are_the_same() {
    let vectors = vectors();
    let keys = &vectors["keys"];
    let key = |name: &str| PublicKey::from_slice(&bytes(&keys[name])).unwrap();
    assert_eq!(key("group"), public(GROUP));
    assert_eq!(key("verifying"), public(VERIFYING));
    assert_eq!(bytes(&vectors["script"]), p2tr_script(&key("verifying")).into_bytes());
    let address = text(&vectors["address"]);
    assert_eq!(deposit_address(&key("verifying"), Network::Regtest), address);
    assert!(is_deposit_address(address, &key("verifying"), Network::Regtest));
    // X15: an address of another key, network or spelling is not signed.
    assert!(!is_deposit_address(address, &key("owner"), Network::Regtest));
    assert!(!is_deposit_address(address, &key("verifying"), Network::Mainnet));
    assert!(!is_deposit_address(&address.to_uppercase(), &key("verifying"), Network::Regtest));
    let proof = package::proof_of_possession(&public(RECEIVER), &key("group"), address);
    assert_eq!(hex::encode(proof), text(&vectors["proof_of_possession"]));
}

#[test]
fn package_signatures_verify() {
    let vectors = vectors();
    let case = &vectors["packages"];
    let id = package::parse_transfer_id(text(&case["transfer_id"])).unwrap();
    let sealed: BTreeMap<String, Vec<u8>> =
        case["sealed"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), bytes(v))).collect();
    assert_eq!(hex::encode(package::transfer_payload(&id, &sealed)), text(&case["transfer"]));
    assert_eq!(hex::encode(package::claim_payload(&id, &sealed)), text(&case["claim"]));
    let mut send = TransferPackage {
        key_tweak_package: sealed.clone(),
        user_signature: bytes(&case["transfer_signature"]),
        hash_variant: HashVariant::V2 as i32,
        ..Default::default()
    };
    let claim = ClaimPackage {
        key_tweak_package: sealed,
        user_signature: bytes(&case["claim_signature"]),
        hash_variant: HashVariant::V2 as i32,
        ..Default::default()
    };
    assert_eq!(package::verify_transfer_package(&id, &send, &public(RECEIVER)), Ok(()));
    assert_eq!(package::verify_claim_package(&id, &claim, &public(RECEIVER)), Ok(()));
    assert_eq!(package::verify_claim_package(&id, &claim, &public(OWNER)), Err(PackageError::Signature));
    let other = package::parse_transfer_id("0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2d").unwrap();
    assert_eq!(
        package::verify_transfer_package(&other, &send, &public(RECEIVER)),
        Err(PackageError::Signature)
    );
    // X26: every operator's ciphertext is covered.
    for sealed in send.clone().key_tweak_package.keys() {
        let mut changed = send.clone();
        changed.key_tweak_package.get_mut(sealed).unwrap().push(0);
        let refused = package::verify_transfer_package(&id, &changed, &public(RECEIVER));
        assert_eq!(refused, Err(PackageError::Signature));
    }
    send.hash_variant = HashVariant::Unspecified as i32;
    assert_eq!(
        package::verify_transfer_package(&id, &send, &public(RECEIVER)),
        Err(PackageError::HashVariant)
    );
}

#[test]
fn structured_hashes_are_the_same() {
    let hash = StructuredHash::new(&["a", "bc"]).text("text").int(258u32).bytes(&[0]).finish();
    assert_eq!(hex::encode(hash), text(&vectors()["hash"]));
}

#[test]
fn spark_addresses_are_the_same() {
    for case in vectors()["addresses"].as_array().unwrap() {
        let written = text(&case["text"]);
        let address = SparkAddress::decode(written).unwrap();
        assert_eq!(address.identity, public(RECEIVER));
        assert_eq!(address.verify(), Ok(()));
        match text(&case["network"]).parse::<Network>() {
            Ok(network) => {
                assert_eq!(address, SparkAddress::new(network, public(RECEIVER)));
                assert_eq!(address.encode().unwrap(), written);
            }
            // The SDK's LOCAL is a regtest with a prefix of its own.
            Err(_) => assert_eq!(address.network, Network::Regtest),
        }
    }
}

#[test]
fn invoices_are_the_same() {
    for case in vectors()["invoices"].as_array().unwrap() {
        let bare = SparkAddress::decode(text(&case["bare"])).unwrap();
        assert_eq!(bare.encode().unwrap(), text(&case["bare"]));
        assert!(bare.verify().is_err());
        assert_eq!(bare.invoice_hash().map(hex::encode).as_deref(), case["hash"].as_str());
        let signed = SparkAddress::decode(text(&case["signed"])).unwrap();
        assert_eq!(signed.encode().unwrap(), text(&case["signed"]));
        assert_eq!(signed.verify(), Ok(()));
        let forged = SparkAddress { identity: public(OWNER), ..signed };
        assert!(forged.verify().is_err());
    }
}

/// The output of an HTLC of [`RECEIVER`] and [`NEW_OWNER`], and both ways out of it.
#[test]
fn htlc_outputs_are_the_sdks() {
    let payment_hash = sha2::Sha256::digest([0x66; 32]).into();
    let htlc = Htlc::new(payment_hash, public(RECEIVER), public(NEW_OWNER));
    let script = "51202267d5f7bb20f84c850f13e84d4e7d85116cc5db84675be9e812de2a5f284f78";
    assert_eq!(htlc.script_pubkey().unwrap().to_hex_string(), script);
    let paths = [
        (
            HtlcPath::Preimage,
            "a820352302489bc2fcf025cf00cda8308033f97ac87712ce90b4d7cd72c58e4c3af988209ac20335eb38768d2052be1dbbc3c8f61\
             78407458e51e6b4ad22f1d91758895bac",
            "c150929b74c1a04954b78b4b6035e97a5e078a5a0f28ec96d547bfee9ace803ac07b7e07e4ee8d41ae1505528bfa92c1c592fbeed\
             109b8301f5ff8fca1aa5af7e5",
        ),
        (
            HtlcPath::Timeout,
            "027008b275202c0b7cf95324a07d05398b240174dc0c2be444d96b159aa6c7f7b1e668680991ac",
            "c150929b74c1a04954b78b4b6035e97a5e078a5a0f28ec96d547bfee9ace803ac0d653225d533f1e062b6e3b862b0eaae5d15f48b\
             d183a60b2709fa637b52f0974",
        ),
    ];
    for (path, script, control) in paths {
        assert_eq!(htlc.script(path).to_hex_string(), script);
        assert_eq!(hex::encode(htlc.control_block(path).unwrap()), control);
    }
}

/// X27: refunds with a connector, and what is signed of them: over both outputs.
#[test]
fn exit_refunds_are_the_sdks() {
    let vectors = vectors();
    let connectors = Connectors::parse(&bytes(&vectors["connector_tx"])).unwrap();
    assert_eq!(connectors.exit().to_string(), format!("{}:1", "07".repeat(32)));
    for case in vectors["cases"].as_array().unwrap() {
        let funding: Transaction = deserialize_hex(text(&case["funding"])).unwrap();
        let input = vec![Spend::of(&funding, 0).unwrap()];
        let leaf = deposited(&Plan::deposit(Source::Build, input, &public(OWNER)).unwrap());
        let theirs = raws(&case["exit"]);
        let (plan, connector) = leaf.check_exit(raw_set(&theirs), &connectors, &public(RECEIVER)).unwrap();
        assert_eq!(connector.vout, 1);
        assert_eq!(plan, leaf.build_exit(&connectors.outputs()[1], &public(RECEIVER)).unwrap());
        let signed: Vec<_> = plan
            .transactions()
            .iter()
            .map(|p| hex::encode(sighash(&p.tx, &p.template.prevouts(), 0).unwrap()))
            .collect();
        let expected: Vec<_> = case["exit"]["sighashes"].as_array().unwrap().iter().map(text).collect();
        assert_eq!(signed, expected);
    }
}
