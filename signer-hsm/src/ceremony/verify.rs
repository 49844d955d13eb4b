//! Whether a transcript says all that it must, and whether the tokens still hold it.

use serde::Serialize;

use super::{
    supplement::Supplement,
    transcript::{MadeDevice, Transcript},
};
use crate::token::{
    DeleteClaim, DeviceInventory, Facts, Inventory, ObjectInfo, Profile, Purpose, bears_attributes,
    federation_key,
};

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
    checks.push(confined("attributes", "", objects));
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
    // Receipts claim what holds for every device.
    let others = transcript.devices.iter().map(|device| (device.profile.as_str(), &device.facts));
    let stated = std::iter::once((transcript.profile.as_str(), &transcript.facts)).chain(others);
    let (profiles, claims): (Vec<_>, Vec<_>) =
        stated.map(|(profile, facts)| (profile, claim(profile, facts))).unzip();
    let claims: Option<Vec<_>> = claims.into_iter().collect();
    let least = claims.and_then(|claims| claims.into_iter().reduce(DeleteClaim::least));
    let said = &transcript.delete_claim;
    checks.push(outcome(
        "delete-claim",
        least.is_some_and(|claim| claim.as_str() == said),
        format!("{said}, the least of {} under the operator's facts", profiles.join(", ")),
    ));
    let root = find(objects, ROOT, "secret").first().map(|root| root.id.clone());
    for device in &transcript.devices {
        checks.extend(further(device, 1));
        let same =
            find(&device.made.objects, ROOT, "secret").iter().all(|made| Some(&made.id) == root.as_ref());
        checks.push(outcome(
            "device-root",
            same,
            format!("device {}: of the same tree and epoch", device.made.id),
        ));
    }
    let mut numbers: Vec<_> = transcript.devices.iter().map(|device| device.made.id).collect();
    numbers.sort_unstable();
    numbers.dedup();
    if !transcript.devices.is_empty() {
        let apart = numbers.len() == transcript.devices.len();
        checks.push(outcome("devices", apart, format!("{} beside the first, each once", numbers.len())));
    }
    checks
}

/// Checks a supplement whose signature was verified, as one of this transcript.
pub fn supplemented(transcript: &Transcript, supplement: &Supplement) -> Vec<Outcome> {
    let device = &supplement.device;
    let ours = supplement.federation_public_key == transcript.federation_public_key
        && supplement.operator == transcript.operator;
    let new = transcript.devices.iter().all(|known| known.made.id != device.made.id);
    let mut checks = vec![
        outcome("supplement-signer", ours, "by the federation key of the transcript"),
        outcome("supplement-device", new, format!("device {} is not in the transcript", device.made.id)),
    ];
    checks.extend(further(device, 0));
    checks
}

fn claim(profile: &str, facts: &Facts) -> Option<DeleteClaim> {
    Profile::by_name(profile).map(|profile| profile.under(facts).delete_claim)
}

/// Whether no key that the tokens report can leave them.
fn confined(name: &'static str, whose: &str, objects: &[ObjectInfo]) -> Outcome {
    let weak: Vec<_> = objects
        .iter()
        .filter(|object| object.class != "public")
        .filter(|object| !bears_attributes(&object.attributes, object.label == "spark-identity-imported"))
        .map(|object| object.label.as_str())
        .collect();
    let said = match weak.as_slice() {
        [] => {
            "every key is sensitive, cannot leave, and was made in the token if it is not imported".to_owned()
        }
        weak => format!("not confined: {}", weak.join(", ")),
    };
    outcome(name, weak.is_empty(), format!("{whose}{said}"))
}

/// A device beyond the first: a sentinel, so many roots, nothing else.
fn further(device: &MadeDevice, roots: usize) -> [Outcome; 3] {
    let (id, objects) = (device.made.id, &device.made.objects);
    let found = |label| find(objects, label, "secret").len();
    let exact = found(SENTINEL) == 1 && found(ROOT) == roots && objects.len() == 1 + roots;
    let said = claim(&device.profile, &device.facts);
    [
        outcome("device-objects", exact, format!("device {id}: {} objects", objects.len())),
        confined("device-attributes", &format!("device {id}: "), objects),
        outcome(
            "device-claim",
            said.is_some_and(|claim| claim.as_str() == device.delete_claim),
            format!("device {id}: {}, from profile {} and its facts", device.delete_claim, device.profile),
        ),
    ]
}

/// Hex of a compressed point from hex of any form.
fn compressed(point: &str) -> Option<String> {
    let bytes = hex::decode(point).ok()?;
    let key = bitcoin::secp256k1::PublicKey::from_slice(&bytes).ok()?;
    Some(hex::encode(key.serialize()))
}

/// Compares with the tokens as they are now: the keys are the same, the roots are later ones of the same tree. Devices
/// that were prepared later need their supplements.
pub fn against_tokens(transcript: &Transcript, supplements: &[Supplement], now: &Inventory) -> Vec<Outcome> {
    let keys = |objects: &[ObjectInfo]| -> Vec<ObjectInfo> {
        objects.iter().filter(|object| object.label != ROOT).cloned().collect()
    };
    let same = keys(&transcript.objects) == keys(&now.objects);
    let then: Vec<_> = find(&transcript.objects, ROOT, "secret");
    let roots: Vec<_> = find(&now.objects, ROOT, "secret");
    let ours = !roots.is_empty() && later(&then, &roots);
    let mut checks = vec![
        outcome("token-serials", transcript.tokens == now.tokens, "the same devices and firmware"),
        outcome("token-objects", same, "the same keys with the same attributes"),
        outcome(
            "token-roots",
            ours,
            format!("{} roots, all of the ceremony's tree, none older", roots.len()),
        ),
    ];
    let made = transcript.devices.iter().chain(supplements.iter().map(|supplement| &supplement.device));
    let made: Vec<&DeviceInventory> = made.map(|device| &device.made).collect();
    for device in &now.devices {
        let known = made.iter().find(|made| made.id == device.id);
        let found = find(&device.objects, ROOT, "secret");
        // One that has not joined yet has no root.
        let same = known.is_some_and(|known| {
            known.token == device.token
                && keys(&known.objects) == keys(&device.objects)
                && later(&then, &found)
        });
        let said = match known {
            Some(_) => format!("device {}: the same device and sentinel, {} roots", device.id, found.len()),
            None => format!("device {} is in no transcript: give its supplement", device.id),
        };
        checks.push(outcome("token-device", same, said));
    }
    checks
}

/// Whether these roots are of the ceremony's tree, and none is older than the ceremony's.
fn later(then: &[&ObjectInfo], roots: &[&ObjectInfo]) -> bool {
    let tree = |object: &&ObjectInfo| object.id.get(..16).map(str::to_owned);
    let expected = then.first().and_then(tree);
    roots.iter().all(|root| {
        tree(root) == expected
            && then.iter().all(|then| root.id >= then.id)
            && bears_attributes(&root.attributes, false)
    })
}
