//! Known answers of the public reference implementation (`data/frost-vectors.json`, or the file that
//! `FROST_VECTORS` names): inputs, every intermediate value and every output.

#![allow(clippy::unwrap_used, reason = "a failed test must stop")]

use std::{collections::BTreeMap, path::PathBuf};

use bitcoin::secp256k1::{Message, PublicKey, SECP256K1, XOnlyPublicKey, schnorr};
use serde::Deserialize;
use spark_rules::{
    feldman::Proofs,
    frost::{Commitment, KeyContext, SigningPackage, USER_IDENTIFIER, output_key},
    ids::OperatorIndex,
    point,
};
use spark_signer::{
    feldman::verify_and_take,
    frost::{NoncePair, sign_operator, sign_user},
    secret::SecretScalar,
};
use zeroize::Zeroizing;

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    threshold: u16,
    max_signers: u16,
    inputs: Inputs,
    intermediate: Intermediate,
    outputs: Outputs,
}

#[derive(Deserialize)]
struct Inputs {
    adaptor: Option<Adaptor>,
    key_tweak: Option<KeyTweak>,
    message: String,
    operator_group_public_key: String,
    operators: Vec<Operator>,
    user: Option<User>,
    verifying_key: String,
}

#[derive(Deserialize)]
struct Adaptor {
    public: String,
    secret: String,
}

#[derive(Deserialize)]
struct KeyTweak {
    original_shares: BTreeMap<String, String>,
    original_user_secret: String,
    tweak_proofs: Vec<String>,
    tweak_shares: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Operator {
    identifier: String,
    nonce: Nonce,
    public_share: String,
    secret_share: String,
}

#[derive(Deserialize)]
struct User {
    identifier: String,
    nonce: Nonce,
    public_key: String,
    secret_key: String,
}

#[derive(Deserialize)]
struct Nonce {
    hiding: String,
    binding: String,
    hiding_commitment: String,
    binding_commitment: String,
}

#[derive(Deserialize)]
struct Intermediate {
    binding_factor_preimages: BTreeMap<String, String>,
    binding_factors: BTreeMap<String, String>,
    challenge: String,
    group_commitment: String,
    lambda: BTreeMap<String, String>,
    output_key: String,
    tap_tweak: String,
}

#[derive(Deserialize)]
struct Outputs {
    adapted_signature: Option<String>,
    aggregate: String,
    operator_signature_shares: BTreeMap<String, String>,
    user_signature_share: Option<String>,
}

fn cases(path: PathBuf) -> Vec<Case> {
    let text = std::fs::read_to_string(&path).unwrap();
    serde_json::from_str::<File>(&text).unwrap().cases
}

fn bytes<const N: usize>(text: &str) -> [u8; N] {
    hex::decode(text).unwrap().try_into().unwrap()
}

fn key(text: &str) -> PublicKey {
    point::parse("vector", &hex::decode(text).unwrap()).unwrap()
}

fn secret(text: &str) -> SecretScalar {
    SecretScalar::from_bytes(&bytes(text)).unwrap()
}

fn pair(nonce: &Nonce) -> NoncePair {
    let pair = NoncePair::from_secrets(secret(&nonce.hiding), secret(&nonce.binding));
    assert_eq!(*pair.commitment(), commitment(nonce));
    pair
}

fn commitment(nonce: &Nonce) -> Commitment {
    let point = |text| hex::decode(text).unwrap();
    Commitment::parse(&point(&nonce.hiding_commitment), &point(&nonce.binding_commitment)).unwrap()
}

fn verifies(output: &XOnlyPublicKey, message: &[u8; 32], signature: &[u8]) -> bool {
    let signature = schnorr::Signature::from_slice(signature).unwrap();
    SECP256K1.verify_schnorr(&signature, &Message::from_digest(*message), output).is_ok()
}

fn check(case: &Case) {
    let Case { name, inputs, intermediate, outputs, .. } = case;
    let message = bytes(&inputs.message);
    let verifying_key = key(&inputs.verifying_key);
    let operators: BTreeMap<OperatorIndex, &Operator> = inputs
        .operators
        .iter()
        .map(|o| (OperatorIndex::from_identifier(&o.identifier).unwrap(), o))
        .collect();
    let user_key = inputs.user.as_ref().map(|u| key(&u.public_key));
    let group = key(&inputs.operator_group_public_key);
    let total = user_key.map_or(group, |user| user.combine(&group).unwrap());
    assert_eq!(total, verifying_key, "{name}");

    let package = SigningPackage::new(
        verifying_key,
        message,
        operators.iter().map(|(index, o)| (*index, commitment(&o.nonce))).collect(),
        inputs.user.as_ref().map(|u| commitment(&u.nonce)),
        inputs.adaptor.as_ref().map(|a| key(&a.public)),
        case.threshold,
        case.max_signers,
    )
    .unwrap();
    let session = package.session().unwrap();

    let context = KeyContext::new(verifying_key).unwrap();
    assert_eq!(hex::encode(context.tap_tweak()), intermediate.tap_tweak, "{name}");
    let output = output_key(&verifying_key);
    assert_eq!(format!("02{output}"), intermediate.output_key, "{name}");
    assert_eq!(session.output_key(), output);
    assert_eq!(session.group_commitment().to_string(), intermediate.group_commitment, "{name}");
    assert_eq!(hex::encode(session.challenge()), intermediate.challenge, "{name}");

    let mut shares = BTreeMap::new();
    for (index, operator) in &operators {
        let id = &operator.identifier;
        let terms = session.operator_terms(*index).unwrap();
        let preimage = [session.binding_prefix().as_slice(), &index.identifier()].concat();
        assert_eq!(hex::encode(preimage), intermediate.binding_factor_preimages[id], "{name}");
        assert_eq!(
            hex::encode(terms.binding_factor().to_bytes()),
            intermediate.binding_factors[id],
            "{name}"
        );
        assert_eq!(hex::encode(session.lambda(*index).unwrap()), intermediate.lambda[id], "{name}");
        let share_secret = secret(&operator.secret_share);
        assert_eq!(share_secret.public_key(), key(&operator.public_share));
        let share = sign_operator(&session, *index, pair(&operator.nonce), &share_secret).unwrap();
        assert_eq!(hex::encode(share.to_bytes()), outputs.operator_signature_shares[id], "{name}");
        session.verify_operator_share(*index, &key(&operator.public_share), &share).unwrap();
        shares.insert(*index, share);
    }
    let user_share = inputs.user.as_ref().map(|user| {
        assert_eq!(bytes(&user.identifier), USER_IDENTIFIER);
        let terms = session.user_terms().unwrap();
        let preimage = [session.binding_prefix().as_slice(), &USER_IDENTIFIER].concat();
        assert_eq!(hex::encode(preimage), intermediate.binding_factor_preimages[&user.identifier], "{name}");
        let rho = hex::encode(terms.binding_factor().to_bytes());
        assert_eq!(rho, intermediate.binding_factors[&user.identifier], "{name}");
        let share = sign_user(&session, pair(&user.nonce), &secret(&user.secret_key)).unwrap();
        assert_eq!(Some(hex::encode(share.to_bytes())), outputs.user_signature_share, "{name}");
        session.verify_user_share(&key(&user.public_key), &share).unwrap();
        share
    });

    let public = |index| operators.get(&index).map(|o| key(&o.public_share));
    match &inputs.adaptor {
        None => {
            let signature =
                session.aggregate(&shares, user_share.as_ref(), public, user_key.as_ref()).unwrap();
            assert_eq!(hex::encode(signature), outputs.aggregate, "{name}");
            assert!(verifies(&output, &message, &signature), "{name}");
        }
        Some(adaptor) => {
            let pre =
                session.aggregate_adaptor(&shares, user_share.as_ref(), public, user_key.as_ref()).unwrap();
            assert_eq!(hex::encode(pre.to_bytes()), outputs.aggregate, "{name}");
            assert!(!verifies(&output, &message, &pre.to_bytes()), "{name}");
            let signature = pre.complete(&bytes(&adaptor.secret)).unwrap();
            assert_eq!(Some(hex::encode(signature)), outputs.adapted_signature, "{name}");
            assert!(verifies(&output, &message, &signature), "{name}");
            assert_eq!(hex::encode(pre.extract(&signature).unwrap()), adaptor.secret, "{name}");
        }
    }
    if let Some(tweak) = &inputs.key_tweak {
        check_key_tweak(case, tweak);
    }
}

/// A transfer's re-key: shares move by f(i), the user's key by −f(0), P stays.
fn check_key_tweak(case: &Case, tweak: &KeyTweak) {
    let raw: Vec<Vec<u8>> = tweak.tweak_proofs.iter().map(|p| hex::decode(p).unwrap()).collect();
    let proofs = Proofs::parse(&raw, case.threshold).unwrap();
    let mut before = Vec::new();
    for (id, original) in &tweak.original_shares {
        let index = OperatorIndex::from_identifier(id).unwrap();
        let added = Zeroizing::new(bytes(&tweak.tweak_shares[id]));
        let added = verify_and_take(&proofs, index, &added).unwrap();
        let moved = secret(original).add(&added).unwrap();
        if let Some(operator) = case.inputs.operators.iter().find(|o| o.identifier == *id) {
            assert!(moved.ct_eq(&secret(&operator.secret_share)));
        }
        before.push(secret(original).public_key());
    }
    let user_before = secret(&tweak.original_user_secret).public_key();
    let verifying_key = key(&case.inputs.verifying_key);
    let group_before = verifying_key.combine(&user_before.negate(SECP256K1)).unwrap();
    let (group, public_shares) = proofs.apply(&group_before, &before).unwrap();
    assert_eq!(group, key(&case.inputs.operator_group_public_key));
    for operator in &case.inputs.operators {
        let index = OperatorIndex::from_identifier(&operator.identifier).unwrap();
        assert_eq!(public_shares[index.as_usize()], key(&operator.public_share));
    }
    let user = user_before.combine(&proofs.constant().negate(SECP256K1)).unwrap();
    assert_eq!(Some(user), case.inputs.user.as_ref().map(|u| key(&u.public_key)));
}

#[test]
fn vectors() {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/frost-vectors.json");
    let mut cases = cases(own);
    if let Some(path) = std::env::var_os("FROST_VECTORS") {
        cases.extend(self::cases(path.into()));
    }
    assert!(!cases.is_empty());
    for case in &cases {
        check(case);
    }
}
