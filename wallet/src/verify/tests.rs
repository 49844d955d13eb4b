//! Whole leaves, signed by a federation in memory, and everything a lying operator could change in them.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, Transaction, TxOut, consensus::encode};
use rand::rngs::OsRng;
use spark_proto::spark::{DepositAddressProof, Transfer, TreeNode};
use spark_rules::{
    address::Network,
    ids::LeafId,
    package,
    tx::{INITIAL_TIMELOCK, Plan, Purpose, Source, p2tr_script},
};
use spark_signer::secret::SecretScalar;

use super::*;
use crate::{
    keys::Keys,
    seal,
    testing::{LEAF_ID, Operators, keys},
};

fn id() -> LeafId {
    LeafId::parse(LEAF_ID).unwrap()
}

fn tampered(
    node: &TreeNode,
    change: impl FnOnce(&mut Transaction),
    field: fn(&mut TreeNode) -> &mut Vec<u8>,
) -> TreeNode {
    let mut node = node.clone();
    let bytes = field(&mut node);
    let mut tx: Transaction = encode::deserialize(bytes).unwrap();
    change(&mut tx);
    *bytes = encode::serialize(&tx);
    node
}

fn check(node: &TreeNode, keys: &Keys) -> Result<(), VerifyError> {
    let lineage = Lineage::from_nodes(std::slice::from_ref(node))?;
    lineage.check(&BTreeMap::new())?;
    check_refunds(lineage.leaf()?, &keys.leaf(&id()).unwrap().public_key()).map(|_| ())
}

#[test]
fn a_deposited_leaf_verifies_and_its_forgeries_do_not() {
    let (operators, keys) = (Operators::new(), keys());
    let node = operators.deposit(&keys, &[100_000]);
    assert_eq!(check(&node, &keys), Ok(()));
    let other = crate::testing::keys();
    assert!(matches!(check(&node, &other), Err(VerifyError::Template(_))));
    let root: fn(&mut TreeNode) -> &mut Vec<u8> = |n| &mut n.node_tx;
    let refund: fn(&mut TreeNode) -> &mut Vec<u8> = |n| &mut n.refund_tx;
    let forged = |tx: &mut Transaction| {
        let mut signature = tx.input[0].witness.nth(0).unwrap().to_vec();
        signature[63] ^= 1;
        tx.input[0].witness = bitcoin::Witness::from_slice(&[signature]);
    };
    for field in [root, refund] {
        assert!(check(&tampered(&node, forged, field), &keys).is_err());
        assert!(check(&tampered(&node, |tx| tx.input[0].witness.clear(), field), &keys).is_err());
        assert!(
            check(&tampered(&node, |tx| tx.output[0].value -= bitcoin::Amount::ONE_SAT, field), &keys)
                .is_err()
        );
        assert!(check(&tampered(&node, |tx| drop(tx.output.pop()), field), &keys).is_err());
        assert!(check(&tampered(&node, |tx| tx.input[0].sequence.0 ^= 1 << 31, field), &keys).is_err());
    }
    let change = |change: fn(&mut TreeNode)| {
        let mut node = node.clone();
        change(&mut node);
        check(&node, &keys)
    };
    assert_eq!(change(|n| n.value += 1), Err(VerifyError::Value));
    assert_eq!(change(|n| n.refund_tx.clear()), Err(VerifyError::Field("refund_tx")));
    assert!(change(|n| n.direct_from_cpfp_refund_tx.clear()).is_err());
    assert_eq!(change(|n| n.signing_keyshare = None), Err(VerifyError::Field("signing_keyshare")));
    assert_eq!(
        change(|n| n.parent_node_id = Some(n.id.clone())),
        Err(VerifyError::Lineage("too deep, or a loop"))
    );
}

#[test]
fn roots_with_several_inputs_need_the_chain() {
    let (operators, keys) = (Operators::new(), keys());
    let values = [10_000, 20_000, 30_000];
    let node = operators.deposit(&keys, &values);
    let lineage = Lineage::from_nodes(std::slice::from_ref(&node)).unwrap();
    assert!(matches!(lineage.check(&BTreeMap::new()), Err(VerifyError::Lineage(_))));
    let script = p2tr_script(&lineage.leaf().unwrap().verifying_key);
    let outputs = |values: [u64; 3]| -> BTreeMap<OutPoint, TxOut> {
        let txouts =
            values.map(|v| TxOut { value: bitcoin::Amount::from_sat(v), script_pubkey: script.clone() });
        lineage.deposit_outpoints().into_iter().zip(txouts).collect()
    };
    assert_eq!(lineage.check(&outputs(values)), Ok(()));
    assert!(lineage.check(&outputs([10_000, 30_000, 20_000])).is_err());
    // What lies under the root does not need it.
    assert_eq!(lineage.check_below_root(), Ok(()));
}

#[test]
fn what_the_chain_says_of_the_deposit_counts() {
    let (operators, keys) = (Operators::new(), keys());
    let node = operators.deposit(&keys, &[50_000]);
    let lineage = Lineage::from_nodes(std::slice::from_ref(&node)).unwrap();
    let of = |sats, script_pubkey| {
        let txout = TxOut { value: bitcoin::Amount::from_sat(sats), script_pubkey };
        lineage.check(&lineage.deposit_outpoints().into_iter().map(|o| (o, txout.clone())).collect())
    };
    let script = p2tr_script(&lineage.leaf().unwrap().verifying_key);
    assert_eq!(of(50_000, script.clone()), Ok(()));
    // The output that the root names is worth less, or somebody else's.
    assert!(of(1_000, script).is_err());
    assert!(of(50_000, p2tr_script(&keys.identity().public_key())).is_err());
}

#[test]
fn renewed_leaves_verify_down_from_the_root() {
    let (operators, keys) = (Operators::new(), keys());
    let own = keys.leaf(&id()).unwrap();
    let old = operators.deposit(&keys, &[50_000]);
    let parsed = Node::parse(&old).unwrap();
    let plan =
        Plan::renew_zero(Source::Build, parsed.spend().unwrap(), &parsed.verifying_key, &own.public_key())
            .unwrap();
    let signed = operators.sign_plan(&plan, &own);
    let raw = |purpose| encode::serialize(&signed[&purpose]);
    let parent = TreeNode { id: "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2d".into(), ..old.clone() };
    let leaf = TreeNode {
        parent_node_id: Some(parent.id.clone()),
        node_tx: raw(Purpose::Node),
        direct_tx: raw(Purpose::DirectNode),
        refund_tx: raw(Purpose::Refund),
        direct_from_cpfp_refund_tx: raw(Purpose::DirectFromCpfpRefund),
        ..old.clone()
    };
    let nodes: BTreeMap<_, _> = [&leaf, &parent].into_iter().map(|n| (n.id.clone(), n.clone())).collect();
    let lineage = Lineage::assemble(&id(), &nodes).unwrap();
    assert_eq!(lineage.nodes().len(), 2);
    assert_eq!(lineage.check(&BTreeMap::new()), Ok(()));
    assert_eq!(check_claimed(lineage.leaf().unwrap(), &own.public_key(), INITIAL_TIMELOCK), Ok(()));
    // A parent of another tree does not carry the leaf.
    let stranger = TreeNode { id: parent.id.clone(), ..Operators::new().deposit(&keys, &[50_000]) };
    let nodes: BTreeMap<_, _> = [&leaf, &stranger].into_iter().map(|n| (n.id.clone(), n.clone())).collect();
    assert!(Lineage::assemble(&id(), &nodes).unwrap().check(&BTreeMap::new()).is_err());
    assert_eq!(
        Lineage::assemble(&id(), &BTreeMap::from([(leaf.id.clone(), leaf)])),
        Err(VerifyError::Lineage("a node is missing"))
    );
}

#[test]
fn transfers_open_only_for_their_receiver_and_only_unchanged() {
    let (sender, receiver) = (keys(), keys());
    let new = SecretScalar::random(&mut OsRng);
    let mut operators = Operators::new();
    let transfer = operators.transfer(&sender, receiver.identity(), &new);
    let opened = incoming(&transfer, receiver.identity(), None).unwrap();
    assert!(opened[0].secret.ct_eq(&new));
    assert_eq!(opened[0].step.blocks(), 1900);
    assert!(incoming(&transfer, sender.identity(), None).is_err());
    let with = |change: &dyn Fn(&mut Transfer)| {
        let mut other = transfer.clone();
        change(&mut other);
        incoming(&other, receiver.identity(), None).map(|_| ())
    };
    assert_eq!(with(&|t| t.leaves[0].signature[5] ^= 1), Err(PackageError::Signature.into()));
    assert_eq!(with(&|t| t.leaves[0].secret_cipher[90] ^= 1), Err(PackageError::Signature.into()));
    assert_eq!(with(&|t| t.total_value += 1), Err(VerifyError::Field("total_value")));
    assert_eq!(with(&|t| t.leaves.clear()), Err(VerifyError::Field("leaves")));
    assert_eq!(with(&|t| t.leaves.push(t.leaves[0].clone())), Err(VerifyError::Field("leaves")));
    // A signed refund of an earlier owner instead of the one to us.
    let old =
        |t: &mut Transfer| t.leaves[0].intermediate_refund_tx = t.leaves[0].leaf.clone().unwrap().refund_tx;
    assert!(matches!(with(&old), Err(VerifyError::Template(_))));
    // The operators have not applied the tweak, or another one.
    let garbage = |t: &mut Transfer| {
        let keyshare = t.leaves[0].leaf.as_mut().unwrap().signing_keyshare.as_mut().unwrap();
        keyshare.public_key = sender.identity().public_key().serialize().to_vec();
    };
    assert!(matches!(with(&garbage), Err(VerifyError::Garbage(_))));
}

#[test]
fn garbage_in_the_cipher_is_called_by_its_name() {
    let (sender, receiver) = (keys(), keys());
    let new = SecretScalar::random(&mut OsRng);
    let mut transfer = Operators::new().transfer(&sender, receiver.identity(), &new);
    for cipher in [vec![4; 10], seal::seal(&receiver.identity().public_key(), &[1; 31]).unwrap()] {
        let digest = package::secret_cipher_digest(LEAF_ID, &transfer.id, &cipher);
        transfer.leaves[0].signature = sender.identity().sign_ecdsa(digest).unwrap().serialize_der().to_vec();
        transfer.leaves[0].secret_cipher = cipher;
        let error = incoming(&transfer, receiver.identity(), None).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("paid, not claimable, exit available"), "{error}");
    }
}

#[test]
fn deposit_addresses_need_every_operator() {
    let (operators, keys) = (Operators::new(), keys());
    let own = keys.leaf(&id()).unwrap().public_key();
    let identity = keys.identity().public_key();
    let (address, verifying_key, proof) = operators.address(&keys, LEAF_ID);
    let verify = |address: &str, key: &[u8], proof: &DepositAddressProof, network| {
        deposit_address(address, key, proof, &own, &identity, network, &operators.federation).map(|_| ())
    };
    let key = verifying_key.serialize();
    assert_eq!(verify(&address, &key, &proof, Network::Regtest), Ok(()));
    assert_eq!(verify(&address, &key, &proof, Network::Mainnet), Err(VerifyError::Address));
    assert_eq!(verify(&address.to_uppercase(), &key, &proof, Network::Regtest), Err(VerifyError::Address));
    for missing in operators.federation.indices() {
        let mut proof = proof.clone();
        proof.address_signatures.remove(&missing.identifier_hex());
        let expected = Err(VerifyError::AddressSignature(missing.get()));
        assert_eq!(verify(&address, &key, &proof, Network::Regtest), expected);
        proof
            .address_signatures
            .insert(missing.identifier_hex(), operators.ecdsa(missing.as_usize(), [0; 32]));
        assert_eq!(verify(&address, &key, &proof, Network::Regtest), expected);
    }
    let mut forged = proof.clone();
    forged.proof_of_possession_signature[0] ^= 1;
    assert_eq!(verify(&address, &key, &forged, Network::Regtest), Err(VerifyError::Possession));
}
