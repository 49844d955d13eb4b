//! Whether a transcript says all that it must, and whether the tokens still hold it.

use serde::Serialize;

use super::transcript::Transcript;
use crate::token::{Inventory, ObjectInfo, Profile, Purpose, bears_attributes, federation_key};

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// What was checked.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

fn outcome(name: &'static str, ok: bool, detail: impl Into<String>) -> Outcome {
    Outcome { name, ok, detail: detail.into() }
}

const ROOT: &str = "spark-root";
const SENTINEL: &str = "spark-sentinel";
const FEDERATION: &str = "spark-federation";

fn identity_label(transcript: &Transcript) -> &'static str {
    if transcript.identity_method == "imported" { "spark-identity-imported" } else { "spark-identity" }
}

fn find<'a>(objects: &'a [ObjectInfo], label: &str, class: &str) -> Vec<&'a ObjectInfo> {
    objects.iter().filter(|object| object.label == label && object.class == class).collect()
}

/// Checks a transcript whose signature was verified.
pub fn offline(transcript: &Transcript) -> Vec<Outcome> {
    let identity = identity_label(transcript);
    let objects = &transcript.objects;
    let mut checks = Vec::new();
    for (name, label, class) in [
        ("sentinel", SENTINEL, "secret"),
        ("root", ROOT, "secret"),
        ("identity-key", identity, "private"),
        ("identity-point", identity, "public"),
        ("federation-key", FEDERATION, "private"),
        ("federation-point", FEDERATION, "public"),
    ] {
        let count = find(objects, label, class).len();
        checks.push(outcome(name, count == 1, format!("{count} {class} {label}")));
    }
    checks.push(outcome("nothing-else", objects.len() == 6, format!("{} objects", objects.len())));
    let weak: Vec<_> = objects
        .iter()
        .filter(|object| object.class != "public")
        .filter(|object| !bears_attributes(&object.attributes, object.label == "spark-identity-imported"))
        .map(|object| object.label.as_str())
        .collect();
    checks.push(outcome(
        "attributes",
        weak.is_empty(),
        match weak.as_slice() {
            [] => "every key is sensitive, cannot leave, and was made in the token if it is not imported"
                .to_owned(),
            weak => format!("not confined: {}", weak.join(", ")),
        },
    ));
    let apart = objects
        .iter()
        .all(|object| (object.token == Purpose::Roots) == (object.label == ROOT || object.label == SENTINEL));
    checks.push(outcome("tokens", apart && transcript.tokens.len() == 2, "roots apart from keys"));
    let point = |label| find(objects, label, "public").first().and_then(|object| object.point.clone());
    let same = point(identity)
        .is_some_and(|point| compressed(&point) == Some(transcript.identity_public_key.clone()));
    checks.push(outcome("identity-public-key", same, transcript.identity_public_key.clone()));
    let federation = point(FEDERATION).and_then(|point| federation_key(&hex::decode(point).ok()?));
    let same = federation.map(|key| key.to_string()) == Some(transcript.federation_public_key.clone());
    checks.push(outcome("federation-public-key", same, transcript.federation_public_key.clone()));
    let claim =
        Profile::by_name(&transcript.profile).map(|profile| profile.under(&transcript.facts).delete_claim);
    checks.push(outcome(
        "delete-claim",
        claim.is_some_and(|claim| claim.as_str() == transcript.delete_claim),
        format!("{}, from profile {} and the operator's facts", transcript.delete_claim, transcript.profile),
    ));
    checks
}

/// Hex of a compressed point from hex of any form.
fn compressed(point: &str) -> Option<String> {
    let bytes = hex::decode(point).ok()?;
    let key = bitcoin::secp256k1::PublicKey::from_slice(&bytes).ok()?;
    Some(hex::encode(key.serialize()))
}

/// Compares with the tokens as they are now: the keys are the same, the roots are later ones of the same tree.
pub fn against_tokens(transcript: &Transcript, now: &Inventory) -> Vec<Outcome> {
    let keys = |objects: &[ObjectInfo]| -> Vec<ObjectInfo> {
        objects.iter().filter(|object| object.label != ROOT).cloned().collect()
    };
    let same = keys(&transcript.objects) == keys(&now.objects);
    let tree = |object: &&ObjectInfo| object.id.get(..16).map(str::to_owned);
    let then: Vec<_> = find(&transcript.objects, ROOT, "secret");
    let roots: Vec<_> = find(&now.objects, ROOT, "secret");
    let expected = then.first().and_then(tree);
    let ours = !roots.is_empty()
        && roots.iter().all(|root| tree(root) == expected && then.iter().all(|then| root.id >= then.id))
        && roots.iter().all(|root| bears_attributes(&root.attributes, false));
    vec![
        outcome("token-serials", transcript.tokens == now.tokens, "the same devices and firmware"),
        outcome("token-objects", same, "the same keys with the same attributes"),
        outcome(
            "token-roots",
            ours,
            format!("{} roots, all of the ceremony's tree, none older", roots.len()),
        ),
    ]
}
