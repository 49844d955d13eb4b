//! What does not hold, each with a stable reason.

use std::fmt;

use serde::{Serialize, Serializer};

/// More findings than this say nothing new, and a log that is wrong everywhere must not be read to its end.
const MOST: usize = 32;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// Why something does not hold. The texts are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])* $name,)* }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Stable text.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Sizes, thresholds or keys of the federation file are not safe.
    FederationUnsafe = "FEDERATION_UNSAFE",
    /// A member has not signed the federation file.
    FederationUnsigned = "FEDERATION_UNSIGNED",
    /// The log has no checkpoint.
    CheckpointMissing = "CHECKPOINT_MISSING",
    /// Not a checkpoint in a signed note, or one of our lines twice.
    CheckpointMalformed = "CHECKPOINT_MALFORMED",
    /// The checkpoint is of another log.
    CheckpointOrigin = "CHECKPOINT_ORIGIN",
    /// No signature by a key of the operator.
    CheckpointUnsigned = "CHECKPOINT_UNSIGNED",
    /// A signature under a key of the operator is wrong.
    CheckpointSignature = "CHECKPOINT_SIGNATURE",
    /// The checkpoint says that a root is destroyed which was not yet made.
    DestroyedBeforeAhead = "DESTROYED_BEFORE_AHEAD",
    /// A cosignature under a key of another operator is wrong.
    CosignatureInvalid = "COSIGNATURE_INVALID",
    /// Fewer other operators than needed cosigned the checkpoint.
    WitnessesTooFew = "WITNESSES_TOO_FEW",
    /// A bundle that the checkpoint's size demands is not there.
    BundleMissing = "BUNDLE_MISSING",
    /// A bundle has another number of records, or records of another length.
    BundleMalformed = "BUNDLE_MALFORMED",
    /// A bundle's records are not those of the signed tree.
    BundleDiffers = "BUNDLE_DIFFERS",
    /// A tile that the checkpoint's size demands is not there.
    TileMissing = "TILE_MISSING",
    /// A tile's hashes are not those of the tree.
    TileDiffers = "TILE_DIFFERS",
    /// Neither records nor tiles lead to the signed root.
    RootDiffers = "ROOT_DIFFERS",
    /// A record stands in the log twice; salts never repeat.
    RecordRepeated = "RECORD_REPEATED",
    /// The earlier checkpoint is not signed by the operator.
    SinceUnsigned = "SINCE_UNSIGNED",
    /// Two signed checkpoints of which neither log begins with the other: evidence.
    LogForked = "LOG_FORKED",
    /// A later signed checkpoint states a shorter log: evidence.
    LogShrunk = "LOG_SHRUNK",
    /// The checkpoint is older than the one that was seen before.
    CheckpointOlder = "CHECKPOINT_OLDER",
    /// The signer's position went back.
    PositionBack = "POSITION_BACK",
    /// What was said to be destroyed is not said any more.
    DestroyedBeforeBack = "DESTROYED_BEFORE_BACK",
    /// The entries end before the log does.
    EntriesMissing = "ENTRIES_MISSING",
    /// A field of an entry has no legal value.
    EntryMalformed = "ENTRY_MALFORMED",
    /// A one-time package key dies a second time.
    PackageKeyRepeated = "PACKAGE_KEY_REPEATED",
    /// An entry is not in its place.
    EntryIndex = "ENTRY_INDEX",
    /// An entry is not the one that the log holds.
    EntryDiffers = "ENTRY_DIFFERS",
    /// An entry of a kind that this program cannot judge.
    PhaseUnknown = "PHASE_UNKNOWN",
    /// A keyshare does not begin with the making of its version 0.
    KeyshareBegin = "KEYSHARE_BEGIN",
    /// A keyshare is made twice.
    KeyshareRestarted = "KEYSHARE_RESTARTED",
    /// A version is retired twice.
    VersionRepeated = "VERSION_REPEATED",
    /// A version is missing.
    VersionGap = "VERSION_GAP",
    /// Another version than the newest remains live, or the newest does not.
    VersionLive = "VERSION_LIVE",
    /// An aborted attempt changes the keyshare.
    AbortChanges = "ABORT_CHANGES",
    /// The retired public share is not the last new one.
    ShareBroken = "SHARE_BROKEN",
    /// The new public share is not the retired one plus the tweak.
    ShareSum = "SHARE_SUM",
    /// A root epoch is smaller than one before it.
    EpochBack = "EPOCH_BACK",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One thing that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Stable reason.
    pub reason: Reason,
    /// For people.
    pub detail: String,
    /// Signed notes that contradict each other, the earlier first; empty if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The first findings, and how many more there were.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    first: Vec<Failure>,
    left_out: u64,
}

impl Failures {
    /// Adds one.
    pub fn add(&mut self, reason: Reason, detail: impl Into<String>) {
        self.add_with_notes(reason, detail, Vec::new());
    }

    /// Adds one with its evidence.
    pub fn add_with_notes(&mut self, reason: Reason, detail: impl Into<String>, notes: Vec<String>) {
        if self.is_full() {
            self.left_out = self.left_out.saturating_add(1);
        } else {
            self.first.push(Failure { reason, detail: detail.into(), notes });
        }
    }

    /// No more are kept; looking further is of no use.
    pub const fn is_full(&self) -> bool {
        self.first.len() >= MOST
    }

    /// Everything holds so far.
    pub const fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// The findings, and how many were left out.
    pub fn into_parts(self) -> (Vec<Failure>, u64) {
        (self.first, self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_stable_texts_of_their_own() {
        let mut texts: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert!(texts.iter().all(|t| t.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')));
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Reason::ALL.len());
        assert_eq!(serde_json::to_string(&Reason::LogForked).unwrap(), "\"LOG_FORKED\"");
    }

    #[test]
    fn findings_are_counted_beyond_those_kept() {
        let mut failures = Failures::default();
        for _ in 0..MOST + 3 {
            failures.add(Reason::TileDiffers, "x");
        }
        let (first, left_out) = failures.into_parts();
        assert_eq!((first.len(), left_out), (MOST, 3));
    }
}
