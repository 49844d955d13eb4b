//! Heads of deletion logs: C2SP tlog-checkpoint in a signed note, with three extension lines of ours.

use std::cmp::Ordering;

use signed_note::{Note, Verifier, VerifierList};
use tlog_tiles::{Error as LogError, Hash};

use crate::{federation::Federation, ids::OperatorIndex};

/// Every root of an earlier epoch than this is destroyed, as a process that is not the signer's saw in the token.
const DESTROYED_BEFORE: &str = "spark/destroyed-before ";
/// Root epoch and journal sequence of the signer when it signed.
const POSITION: &str = "spark/position ";
/// Records in the log when this was signed; more than the size where the checkpoint states an earlier head.
const LOG_SIZE: &str = "spark/log-size ";

/// A checkpoint that proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not a checkpoint of this operator's log in a signed note.
    #[error("checkpoint: {0} is malformed")]
    Malformed(&'static str),
    /// Not signed by the operator.
    #[error("checkpoint is not signed by the operator's federation key")]
    Signature,
    /// Another log, or a shorter one.
    #[error("log does not continue the one that was seen before: {0}")]
    Consistency(LogError),
}

/// Where a signer stood when it signed a checkpoint. Later ones are greater in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SignedAt {
    /// Root epoch.
    pub root_epoch: u64,
    /// Journal sequence.
    pub sequence: u64,
}

/// What a checkpoint says besides size and root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extension {
    /// The signer's position.
    pub position: SignedAt,
    /// All roots of earlier epochs are destroyed, independently confirmed.
    pub destroyed_before: u64,
    /// Records in the log when it was signed.
    pub log_size: u64,
}

impl Extension {
    /// The extension lines.
    pub fn to_lines(&self) -> String {
        let Self { position, destroyed_before, log_size } = self;
        format!(
            "{POSITION}{} {}\n{DESTROYED_BEFORE}{destroyed_before}\n{LOG_SIZE}{log_size}\n",
            position.root_epoch, position.sequence
        )
    }

    /// Each of our lines once, lines of others as they come. Who left one out could take back what he said in it.
    fn parse(lines: &str, size: u64) -> Option<Self> {
        let number = |text: &str| text.parse::<u64>().ok();
        let (root_epoch, sequence) = single(lines, POSITION)?.split_once(' ')?;
        let position = SignedAt { root_epoch: number(root_epoch)?, sequence: number(sequence)? };
        let destroyed_before = number(single(lines, DESTROYED_BEFORE)?)?;
        let log_size = number(single(lines, LOG_SIZE)?)?;
        (log_size >= size).then_some(Self { position, destroyed_before, log_size })
    }

    /// Signed before `other` was, or in the same batch and saying less.
    pub fn is_older_than(&self, other: &Self) -> bool {
        let (this, that) = (self.position.sequence, other.position.sequence);
        this < that
            || this == that
                && (self.destroyed_before < other.destroyed_before
                    || self.position.root_epoch < other.position.root_epoch
                    || self.log_size < other.log_size)
    }
}

/// What follows `prefix`, where exactly one line begins with it.
fn single<'a>(lines: &'a str, prefix: &str) -> Option<&'a str> {
    let mut found = lines.lines().filter_map(|line| line.strip_prefix(prefix));
    match (found.next(), found.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

/// First lines of all names of a federation: schema-less, and unique to its file.
fn namespace(federation: &Federation) -> String {
    let hash = hex::encode(federation.hash().first_chunk::<8>().unwrap_or(&[0; 8]));
    format!("spark-operator.invalid/{hash}")
}

/// Origin line of an operator's log, and name of the key that signs its checkpoints.
pub fn origin(federation: &Federation, index: OperatorIndex) -> String {
    format!("{}/{}", namespace(federation), index.get())
}

/// Name of the key with which an operator cosigns the logs of others.
pub fn witness_name(federation: &Federation, index: OperatorIndex) -> String {
    format!("{}/witness/{}", namespace(federation), index.get())
}

/// A checkpoint whose signature by the operator's federation key was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Records in the log.
    pub size: u64,
    /// RFC 6962 root.
    pub root: [u8; 32],
    /// What else it says.
    pub extension: Extension,
    /// What is signed: the note without its signatures.
    pub text: Vec<u8>,
    /// The note with the operator's signature only: evidence holds nothing that others could add.
    pub signed: String,
}

/// Most bytes of a note that is looked at: a head with the cosignatures of all operators has fewer than 4 KiB.
const MAX_NOTE: usize = 16 << 10;

impl Checkpoint {
    /// Parses a signed note and verifies it under the operator's federation keys (C2SP tlog-checkpoint, signed-note).
    pub fn verify(
        note: &str,
        federation: &Federation,
        index: OperatorIndex,
    ) -> Result<Self, CheckpointError> {
        let malformed = || CheckpointError::Malformed("note");
        if note.len() > MAX_NOTE {
            return Err(malformed());
        }
        let note = Note::from_bytes(note.as_bytes()).map_err(|_| malformed())?;
        let checkpoint = tlog_tiles::Checkpoint::from_bytes(note.text()).map_err(|_| malformed())?;
        let origin = origin(federation, index);
        if checkpoint.origin() != origin {
            return Err(CheckpointError::Malformed("origin"));
        }
        let member = federation.member(index).ok_or_else(malformed)?;
        let verifiers = member
            .federation_keys
            .iter()
            .map(|key| Box::new(key.note_verifier(&origin)) as Box<dyn Verifier>)
            .collect();
        let (verified, _) =
            note.verify(&VerifierList::new(verifiers)).map_err(|_| CheckpointError::Signature)?;
        let signature = verified.first().ok_or(CheckpointError::Signature)?;
        let signed = Note::new(note.text(), std::slice::from_ref(signature)).map_err(|_| malformed())?;
        let signed = String::from_utf8(signed.to_bytes()).map_err(|_| malformed())?;
        let size = checkpoint.size();
        let extension =
            Extension::parse(checkpoint.extension(), size).ok_or(CheckpointError::Malformed("extension"))?;
        Ok(Self { size, root: checkpoint.hash().0, extension, text: note.text().to_vec(), signed })
    }
}

/// What two heads that one operator signed cannot both say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// One size, two roots.
    #[error("the operator signed two different logs")]
    Forked,
    /// The later one was signed over fewer entries.
    #[error("the operator's log lost entries")]
    Shrank,
    /// Roots that were destroyed are not any more, or the signer's own epoch went back.
    #[error("the operator takes back what it said of destroyed roots")]
    EpochWentBack,
}

impl Contradiction {
    /// Stable reason.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Forked => "LOG_FORKED",
            Self::Shrank => "LOG_SHRUNK",
            Self::EpochWentBack => "EPOCH_WENT_BACK",
        }
    }

    /// Looks for one, in whatever order the heads arrived: what counts is the order in which they were signed.
    pub fn between(one: &Checkpoint, other: &Checkpoint) -> Option<Self> {
        if one.size == other.size && one.root != other.root {
            return Some(Self::Forked);
        }
        let (one, other) = (&one.extension, &other.extension);
        let (before, after) = match one.position.sequence.cmp(&other.position.sequence) {
            Ordering::Less => (one, other),
            Ordering::Greater => (other, one),
            // One batch may hold several heads.
            Ordering::Equal => return None,
        };
        if after.log_size < before.log_size {
            return Some(Self::Shrank);
        }
        let back = after.destroyed_before < before.destroyed_before
            || after.position.root_epoch < before.position.root_epoch;
        back.then_some(Self::EpochWentBack)
    }
}

/// Verifies that the log of `new` begins with the log of `old` (RFC 6962, section 2.1.2).
pub fn verify_consistency(
    proof: &[Vec<u8>],
    old: (u64, [u8; 32]),
    new: (u64, [u8; 32]),
) -> Result<(), CheckpointError> {
    if old.0 == 0 {
        return Ok(());
    }
    let hashes = proof
        .iter()
        .map(|hash| <[u8; 32]>::try_from(hash.as_slice()).map(Hash))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| CheckpointError::Malformed("hashes"))?;
    tlog_tiles::check_tree(&hashes, new.0, Hash(new.1), old.0, Hash(old.1))
        .map_err(CheckpointError::Consistency)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_one_batch_what_says_less_is_older() {
        let head = |sequence, root_epoch, destroyed_before, log_size| Extension {
            position: SignedAt { root_epoch, sequence },
            destroyed_before,
            log_size,
        };
        let known = head(10, 3, 2, 6);
        for older in [head(9, 9, 9, 9), head(10, 2, 2, 6), head(10, 3, 1, 6), head(10, 3, 2, 5)] {
            assert!(older.is_older_than(&known), "{older:?}");
        }
        for newer in [known, head(10, 3, 3, 6), head(10, 3, 2, 7), head(11, 0, 0, 0)] {
            assert!(!newer.is_older_than(&known), "{newer:?}");
        }
    }

    #[test]
    fn contradictions_are_found_whatever_the_order() {
        let head = |size, root: u8, sequence, root_epoch, destroyed_before, log_size| Checkpoint {
            size,
            root: [root; 32],
            extension: Extension { position: SignedAt { root_epoch, sequence }, destroyed_before, log_size },
            text: Vec::new(),
            signed: String::new(),
        };
        let known = head(5, 1, 10, 3, 2, 6);
        for (other, found) in [
            (head(5, 1, 11, 3, 2, 6), None),
            // An earlier head, signed later, and a later one, signed earlier.
            (head(3, 2, 11, 4, 2, 6), None),
            (head(6, 2, 10, 3, 2, 6), None),
            (head(5, 2, 11, 3, 2, 6), Some(Contradiction::Forked)),
            (head(4, 2, 11, 3, 2, 5), Some(Contradiction::Shrank)),
            (head(7, 2, 9, 3, 2, 7), Some(Contradiction::Shrank)),
            (head(6, 2, 11, 3, 1, 6), Some(Contradiction::EpochWentBack)),
            (head(6, 2, 11, 2, 2, 6), Some(Contradiction::EpochWentBack)),
            // Within one batch nothing says which was first.
            (head(4, 2, 10, 3, 2, 4), None),
        ] {
            assert_eq!(Contradiction::between(&known, &other), found, "{other:?}");
            assert_eq!(Contradiction::between(&other, &known), found, "{other:?}");
        }
    }

    #[test]
    fn extension_lines_round_trip_and_bad_ones_are_refused() {
        let said = Extension {
            position: SignedAt { root_epoch: 7, sequence: 9 },
            destroyed_before: 6,
            log_size: 12,
        };
        assert_eq!(Extension::parse(&said.to_lines(), 12), Some(said));
        assert_eq!(Extension::parse(&format!("other/line x\n{}", said.to_lines()), 3), Some(said));
        assert_eq!(Extension::parse("", 4), None);
        for left_out in said.to_lines().lines() {
            assert_eq!(Extension::parse(&said.to_lines().replace(left_out, ""), 12), None, "{left_out}");
        }
        // A log that is smaller than one of its heads, a line said twice, and what is no number.
        assert_eq!(Extension::parse(&said.to_lines(), 13), None);
        assert_eq!(Extension::parse(&said.to_lines().repeat(2), 12), None);
        for bad in ["spark/position 7\n", "spark/destroyed-before -1\n", "spark/log-size many\n"] {
            assert_eq!(Extension::parse(bad, 0), None, "{bad}");
        }
    }
}
