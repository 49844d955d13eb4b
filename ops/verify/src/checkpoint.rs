//! Checkpoints (C2SP tlog-checkpoint) of an operator's log and their signature.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;

use crate::{failure::Reason, federation::Federation, merkle::Hash, note::Note};

/// Where the signer stood when it signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Epoch of the root key.
    pub root_epoch: u64,
    /// Of the journal.
    pub sequence: u64,
}

/// Content of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Names the log.
    pub origin: String,
    /// Records.
    pub size: u64,
    /// RFC 6962 root.
    pub root: Hash,
    /// Line `spark/position`.
    pub position: Option<Position>,
    /// Line `spark/destroyed-before`: every root of an earlier epoch is said to be destroyed.
    pub destroyed_before: Option<u64>,
    /// Line `spark/log-size`: records in the log when this was signed, at least `size`.
    pub log_size: Option<u64>,
}

/// A decimal without sign and leading zeroes.
fn decimal(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    (canonical && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

impl Checkpoint {
    /// Reads a note's text. `Err` says what is malformed.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut lines = text.strip_suffix('\n').ok_or("the text does not end with a newline")?.split('\n');
        let origin = lines.next().filter(|l| !l.is_empty()).ok_or("no origin")?.to_owned();
        let size = lines.next().and_then(decimal).ok_or("the size is no decimal")?;
        let root = lines
            .next()
            .and_then(|l| STANDARD.decode(l).ok())
            .and_then(|bytes| Hash::try_from(bytes).ok())
            .ok_or("the root is not 32 bytes of base64")?;
        let mut this = Self { origin, size, root, position: None, destroyed_before: None, log_size: None };
        for line in lines {
            this.extend(line)?;
        }
        if this.log_size.is_some_and(|all| all < size) {
            return Err("the log is smaller than its head");
        }
        Ok(this)
    }

    /// Takes an extension line; others' are ignored.
    fn extend(&mut self, line: &str) -> Result<(), &'static str> {
        if line.is_empty() {
            return Err("an extension line is empty");
        }
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        let known = |repeated: bool| match repeated {
            true => Err("an extension line stands twice"),
            false => Ok(()),
        };
        match name {
            "spark/position" => {
                known(self.position.is_some())?;
                self.position = value
                    .split_once(' ')
                    .and_then(|(epoch, sequence)| {
                        Some(Position { root_epoch: decimal(epoch)?, sequence: decimal(sequence)? })
                    })
                    .map(Some)
                    .ok_or("the position is not two decimals")?;
            }
            "spark/destroyed-before" => {
                known(self.destroyed_before.is_some())?;
                self.destroyed_before = Some(decimal(value).ok_or("destroyed-before is no decimal")?);
            }
            "spark/log-size" => {
                known(self.log_size.is_some())?;
                self.log_size = Some(decimal(value).ok_or("log-size is no decimal")?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Every root of an earlier epoch is said to be destroyed; 0 if the checkpoint does not say.
    pub fn destroyed_before(&self) -> u64 {
        self.destroyed_before.unwrap_or(0)
    }

    /// Records in the log when it was signed.
    pub fn log_size(&self) -> u64 {
        self.log_size.unwrap_or(self.size)
    }
}

/// A checkpoint that the operator signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// Its content.
    pub checkpoint: Checkpoint,
    /// The note around it.
    pub note: Note,
}

/// Reads a checkpoint of `operator` and verifies that a key of that operator signed it.
pub fn verify(
    bytes: &[u8],
    federation: &Federation,
    operator: u16,
) -> Result<SignedCheckpoint, (Reason, String)> {
    let note = Note::parse(bytes).map_err(|e| (Reason::CheckpointMalformed, e.to_string()))?;
    let checkpoint = Checkpoint::parse(note.text())
        .map_err(|what| (Reason::CheckpointMalformed, format!("not a checkpoint: {what}")))?;
    let origin = federation.origin(operator);
    if checkpoint.origin != origin {
        return Err((
            Reason::CheckpointOrigin,
            format!("it is of the log {:?}, not of {origin:?}", checkpoint.origin),
        ));
    }
    let mut valid = false;
    for key in federation.keys(operator) {
        for line in note.signatures().iter().filter(|s| s.is_by(&origin, key.note_id(&origin))) {
            if !key.signed_note(note.text().as_bytes(), &line.blob) {
                return Err((
                    Reason::CheckpointSignature,
                    format!("a signature under the operator's key {} is wrong", hex::encode(key.bytes())),
                ));
            }
            valid = true;
        }
    }
    match valid {
        true => Ok(SignedCheckpoint { checkpoint, note }),
        false => {
            Err((Reason::CheckpointUnsigned, format!("no key of operator {operator} signed the checkpoint")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "log\n5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";

    #[test]
    fn extension_lines() {
        let plain = Checkpoint::parse(HEAD).unwrap();
        assert_eq!((plain.size, plain.position, plain.destroyed_before(), plain.log_size()), (5, None, 0, 5));
        let full =
            format!("{HEAD}foreign x\nspark/log-size 7\nspark/position 3 9\nspark/destroyed-before 2\n");
        let full = Checkpoint::parse(&full).unwrap();
        assert_eq!(full.position, Some(Position { root_epoch: 3, sequence: 9 }));
        assert_eq!((full.destroyed_before(), full.log_size()), (2, 7));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for bad in [
            "",
            "log\n",
            "log\n5\n",
            "\n5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            "log\n05\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            "log\n+5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            "log\n\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            "log\n18446744073709551616\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            "log\n5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuA==\n",
            "log\n5\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        ] {
            assert!(Checkpoint::parse(bad).is_err(), "{bad:?}");
        }
        for bad in [
            "\n",
            "spark/position 1\n",
            "spark/position 1 2 3\n",
            "spark/position\n",
            "spark/destroyed-before 01\n",
            "spark/log-size 4\n",
            "spark/log-size 9\nspark/log-size 9\n",
            "spark/position 1 2\nspark/position 1 2\n",
            "spark/destroyed-before 1\nspark/destroyed-before 1\n",
        ] {
            assert!(Checkpoint::parse(&format!("{HEAD}{bad}")).is_err(), "{bad:?}");
        }
    }
}
