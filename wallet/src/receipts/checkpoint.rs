use base64::{Engine as _, engine::general_purpose::STANDARD};
use spark_rules::{federation::Federation, ids::OperatorIndex};

use super::ReceiptError;

/// Most bytes of a checkpoint that is looked at.
const MAX: usize = 16 << 10;

/// State of an operator's log, signed by its federation key (C2SP tlog-checkpoint, signed-note).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log.
    pub origin: String,
    /// Number of records.
    pub size: u64,
    /// Root of the Merkle tree (RFC 6962).
    pub root: [u8; 32],
}

impl Checkpoint {
    /// Reads a signed note and requires a signature of `operator`'s federation key. Signatures of others, such as
    /// witnesses, are passed over.
    pub fn verify(
        note: &str,
        operator: OperatorIndex,
        federation: &Federation,
    ) -> Result<Self, ReceiptError> {
        let checkpoint = Self::parse(note)?;
        let (text, signatures) = split(note)?;
        let signed = signatures.lines().any(|line| {
            signature(line).is_some_and(|bytes| federation.verify(operator, text.as_bytes(), &bytes))
        });
        if signed { Ok(checkpoint) } else { Err(ReceiptError::Checkpoint) }
    }

    fn parse(note: &str) -> Result<Self, ReceiptError> {
        let (text, _) = split(note)?;
        let mut lines = text.lines();
        let mut line = || lines.next().filter(|l| !l.is_empty()).ok_or(ReceiptError::Checkpoint);
        let origin = line()?.to_owned();
        let size = line()?;
        let canonical = size == "0" || (!size.starts_with('0') && size.bytes().all(|b| b.is_ascii_digit()));
        let size = size.parse().ok().filter(|_| canonical).ok_or(ReceiptError::Checkpoint)?;
        let root =
            STANDARD.decode(line()?).ok().and_then(|r| r.try_into().ok()).ok_or(ReceiptError::Checkpoint)?;
        Ok(Self { origin, size, root })
    }
}

/// Text with its final newline, and the signature lines.
fn split(note: &str) -> Result<(&str, &str), ReceiptError> {
    let end = note.rfind("\n\n").filter(|_| note.len() <= MAX).ok_or(ReceiptError::Checkpoint)?;
    let text = note.get(..=end).ok_or(ReceiptError::Checkpoint)?;
    let signatures = note.get(end..).ok_or(ReceiptError::Checkpoint)?.trim_start_matches('\n');
    Ok((text, signatures))
}

/// The 64 bytes after the four of the key id.
fn signature(line: &str) -> Option<Vec<u8>> {
    let (_, encoded) = line.strip_prefix("\u{2014} ")?.rsplit_once(' ')?;
    let bytes = STANDARD.decode(encoded).ok()?;
    bytes.get(4..).filter(|s| s.len() == 64).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: &str = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";

    #[test]
    fn notes_are_read_strictly() {
        let note = format!("spark.example/op0\n20852163\n{ROOT}\n\n\u{2014} x AAAA\n");
        let checkpoint = Checkpoint::parse(&note).unwrap();
        assert_eq!((checkpoint.origin.as_str(), checkpoint.size), ("spark.example/op0", 20_852_163));
        let (text, signatures) = split(&note).unwrap();
        assert!(text.ends_with("=\n") && signatures.starts_with('\u{2014}'));
        for bad in ["", "\n\n", "a\n01\nx\n\n", "a\n+1\nAAAA\n\n", "a\n1\nAAAA\n\n"] {
            assert!(Checkpoint::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_note_panics(note in ".*") {
            let _ = Checkpoint::parse(&note);
            let _ = signature(&note);
        }
    }
}
