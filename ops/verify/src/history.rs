//! The lives of keyshares as a log's entries tell them: every version destroyed once, none missing.

use std::collections::{BTreeMap, BTreeSet};

use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use crate::{
    entries::{HexBytes, Receipt},
    failure::{Failures, Reason},
};

/// What the entries amount to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    /// Entries that are the log's, from its beginning on.
    pub read: u64,
    /// Lines beyond the checkpoint; they prove nothing.
    pub beyond: u64,
    /// By phase.
    pub phases: BTreeMap<String, u64>,
    /// Keyshares seen.
    pub keyshares: u64,
    /// Destructions whose root is said to be destroyed.
    pub confirmed: u64,
    /// Destructions that are not confirmed yet.
    pub pending: u64,
    /// Keyshares that came back by repair: of earlier versions this log says nothing.
    pub repaired: u64,
    /// Those keyshares, in hex: clean only by a refresh that all operators show (`spark-verify refreshes`).
    pub repaired_keyshares: BTreeSet<String>,
    /// Refreshes that are confirmed, with all that went before them in the keyshare's history.
    pub refreshes: Vec<Refresh>,
    /// One-time package keys that died unused.
    pub unused_package_keys: u64,
    /// Claims whose packages were encrypted to a long-lived key.
    pub long_lived_claims: u64,
    /// By `delete_claim`: what destruction means on the device.
    pub delete_claims: BTreeMap<String, u64>,
}

/// A version that was retired by a refresh: the key stayed, the share changed. All in hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refresh {
    /// Keyshare.
    pub keyshare: String,
    /// Operation, the same at all operators.
    pub operation: String,
    /// Version that is gone.
    pub retired: u64,
    /// What was added to the operator's public share.
    pub tweak: String,
}

/// The live version of a keyshare.
#[derive(Debug, Clone)]
struct Live {
    version: u64,
    share: HexBytes,
    /// In which it is sealed, at the earliest: no root of an earlier one takes it along.
    epoch: u64,
    /// Everything so far is confirmed.
    confirmed: bool,
}

/// Follows all keyshares along the log.
#[derive(Debug, Default)]
pub struct History {
    live: BTreeMap<HexBytes, Live>,
    dead: BTreeSet<HexBytes>,
    epochs: (u64, u64),
    totals: Entries,
}

impl History {
    /// Takes the next entry of the log.
    pub fn take(&mut self, receipt: &Receipt, destroyed_before: u64, failures: &mut Failures) {
        let totals = &mut self.totals;
        totals.read = totals.read.saturating_add(1);
        let counts =
            [(&mut totals.phases, &receipt.phase), (&mut totals.delete_claims, &receipt.delete_claim)];
        for (counts, name) in counts {
            let count = counts.entry(name.clone()).or_default();
            *count = count.saturating_add(1);
        }
        let confirmed = receipt.is_confirmed(destroyed_before);
        let of_state = match confirmed {
            true => &mut totals.confirmed,
            false => &mut totals.pending,
        };
        *of_state = of_state.saturating_add(1);
        if receipt.phase == "claim" && receipt.package_kind == "identity" {
            totals.long_lived_claims = totals.long_lived_claims.saturating_add(1);
        }
        let index = receipt.log_index;
        let mut add = |reason, what: String| failures.add(reason, format!("entry {index}: {what}"));
        let (before, after) = (receipt.root_epoch_before, receipt.root_epoch_after);
        let back = before < self.epochs.0 || after < self.epochs.1 || after < before;
        // What was staged may have died in the batch that another one's destruction ended.
        let destroys = !matches!(receipt.phase.as_str(), "dkg" | "repair" | "abort");
        if back || (destroys && after == before) {
            let (last_before, last_after) = self.epochs;
            add(
                Reason::EpochBack,
                format!("root epochs {before} to {after} after {last_before} to {last_after}"),
            );
        }
        self.epochs = (before, after);
        let live = self.live.get(&receipt.keyshare_id);
        if let Some(live) = live
            && destroys
            && !back
            && before < live.epoch
        {
            let (version, epoch) = (live.version, live.epoch);
            add(
                Reason::EpochBack,
                format!("version {version}, sealed in epoch {epoch}, would die with the root of {before}"),
            );
        }
        let confirmed = confirmed && live.is_none_or(|live| live.confirmed);
        let next = match receipt.phase.as_str() {
            "dkg" => made(live, receipt, &mut add),
            "repair" => {
                totals.repaired = totals.repaired.saturating_add(1);
                totals.repaired_keyshares.insert(hex::encode(&receipt.keyshare_id.0));
                repaired(live, receipt, &mut add)
            }
            "abort" => aborted(live, receipt, &mut add),
            "unused" => {
                unused(&mut self.dead, receipt, &mut add);
                return;
            }
            "deposit" | "send" | "claim" | "renew" | "refresh" | "retire" => {
                replaced(live, receipt, &mut add)
            }
            other => {
                add(Reason::PhaseUnknown, format!("its phase is {other:?}"));
                return;
            }
        };
        if receipt.live_versions != [receipt.new_version] {
            add(
                Reason::VersionLive,
                format!("live are {:?}, not the new version only", receipt.live_versions),
            );
        }
        if receipt.phase == "refresh" && confirmed && next.is_some() {
            totals.refreshes.push(Refresh {
                keyshare: hex::encode(&receipt.keyshare_id.0),
                operation: hex::encode(&receipt.operation_id.0),
                retired: receipt.retired_version,
                tweak: hex::encode(&receipt.tweak_commitment.0),
            });
        }
        match next {
            Some(next) => {
                self.live.insert(receipt.keyshare_id.clone(), Live { confirmed, ..next });
            }
            // An aborted attempt destroys something, too.
            None => {
                if let Some(live) = self.live.get_mut(&receipt.keyshare_id) {
                    live.confirmed = confirmed;
                }
            }
        }
    }

    /// What all of them amount to.
    pub fn totals(self) -> Entries {
        let unused_package_keys = self.dead.len() as u64;
        Entries { keyshares: self.live.len() as u64, unused_package_keys, ..self.totals }
    }
}

/// The version that the receipt leads to; after a finding too, so that one gap is told once.
fn next(receipt: &Receipt) -> Option<Live> {
    Some(Live {
        version: receipt.new_version,
        share: receipt.new_public_share.clone(),
        epoch: receipt.root_epoch_after,
        confirmed: false,
    })
}

fn made(live: Option<&Live>, receipt: &Receipt, add: &mut impl FnMut(Reason, String)) -> Option<Live> {
    if live.is_some() {
        add(Reason::KeyshareRestarted, format!("keyshare {:?} is made again", receipt.keyshare_id));
        return None;
    }
    if receipt.new_version != 0 {
        add(Reason::KeyshareBegin, format!("the keyshare begins with version {}", receipt.new_version));
    }
    if point(&receipt.new_public_share).is_none() {
        add(Reason::EntryMalformed, "new_public_share is no point".to_owned());
    }
    next(receipt)
}

/// The log of a repaired signer begins with the version that the others made again.
fn repaired(live: Option<&Live>, receipt: &Receipt, add: &mut impl FnMut(Reason, String)) -> Option<Live> {
    if live.is_some() {
        add(Reason::KeyshareRestarted, format!("keyshare {:?} is repaired after all", receipt.keyshare_id));
        return None;
    }
    if receipt.retired_version != receipt.new_version {
        add(Reason::VersionGap, "a repair changes no version".to_owned());
    }
    if point(&receipt.new_public_share).is_none() {
        add(Reason::EntryMalformed, "new_public_share is no point".to_owned());
    }
    next(receipt)
}

fn aborted(live: Option<&Live>, receipt: &Receipt, add: &mut impl FnMut(Reason, String)) -> Option<Live> {
    let Some(live) = live else {
        add(Reason::KeyshareBegin, format!("keyshare {:?} was not made", receipt.keyshare_id));
        return next(receipt);
    };
    let same = receipt.retired_version == live.version
        && receipt.new_version == live.version
        && receipt.retired_public_share == live.share
        && receipt.new_public_share == live.share;
    if !same {
        add(Reason::AbortChanges, format!("an aborted attempt changes version {}", live.version));
    }
    None
}

/// Most package keys of one entry, as witnesses accept it.
const MOST_PACKAGE_KEYS: usize = 256;

/// One-time package keys that nobody used: they have nothing to do with a keyshare. Witnesses ask for the same.
fn unused(dead: &mut BTreeSet<HexBytes>, receipt: &Receipt, add: &mut impl FnMut(Reason, String)) {
    let keyshare = [
        &receipt.keyshare_id,
        &receipt.operation_id,
        &receipt.retired_public_share,
        &receipt.new_public_share,
        &receipt.tweak_commitment,
    ];
    let none = keyshare.iter().all(|bytes| bytes.0.is_empty())
        && receipt.leaf_id.is_empty()
        && receipt.live_versions.is_empty()
        && (receipt.retired_version, receipt.new_version) == (0, 0);
    let ids = &receipt.package_keys;
    let named = (1..=MOST_PACKAGE_KEYS).contains(&ids.len()) && ids.iter().all(|id| id.0.len() == 16);
    if !none || !named {
        add(Reason::EntryMalformed, "an entry of unused package keys names none, or a keyshare".to_owned());
    } else if !ids.is_sorted() {
        add(Reason::EntryMalformed, "an entry's package keys are not in order".to_owned());
    }
    for id in &receipt.package_keys {
        if !dead.insert(id.clone()) {
            add(Reason::PackageKeyRepeated, format!("package key {id:?} died before"));
        }
    }
}

fn replaced(live: Option<&Live>, receipt: &Receipt, add: &mut impl FnMut(Reason, String)) -> Option<Live> {
    let Some(live) = live else {
        add(Reason::KeyshareBegin, format!("keyshare {:?} was not made", receipt.keyshare_id));
        return next(receipt);
    };
    let (retired, new) = (receipt.retired_version, receipt.new_version);
    if retired < live.version {
        add(
            Reason::VersionRepeated,
            format!("version {retired} was retired before, version {} is live", live.version),
        );
        return None;
    }
    if retired > live.version || retired.checked_add(1) != Some(new) {
        add(
            Reason::VersionGap,
            format!("it retires version {retired} for {new}, version {} is live", live.version),
        );
        return next(receipt);
    }
    if receipt.retired_public_share != live.share {
        add(Reason::ShareBroken, format!("the share of version {retired} is another one"));
    }
    let stays =
        ["renew", "deposit"].contains(&receipt.phase.as_str()) && receipt.tweak_commitment.0.is_empty();
    let holds = match stays {
        // New timelocks, or another output of a deposit address: only the version moves.
        true => receipt.new_public_share == receipt.retired_public_share,
        false => sum(&receipt.retired_public_share, &receipt.tweak_commitment)
            .is_some_and(|sum| sum.serialize()[..] == receipt.new_public_share.0),
    };
    if !holds {
        add(Reason::ShareSum, format!("the share of version {new} is not the retired one plus the tweak"));
    }
    next(receipt)
}

/// A compressed point (SEC 1).
fn point(bytes: &HexBytes) -> Option<PublicKey> {
    (bytes.0.len() == 33).then(|| PublicKey::from_slice(&bytes.0).ok()).flatten()
}

/// `None` where the sum is no public key.
fn sum(a: &HexBytes, b: &HexBytes) -> Option<PublicKey> {
    point(a)?.combine(&point(b)?).ok()
}
