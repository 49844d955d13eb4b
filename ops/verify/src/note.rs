//! Signed notes (C2SP signed-note): a text and signature lines.

use std::fmt::{self, Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Longest note that is read, in bytes.
pub const MAX_NOTE: usize = 64 * 1024;
/// The specification demands that 16 be accepted; a federation has fewer members.
const MAX_SIGNATURES: usize = 64;
/// Em dash and space before each signature.
const MARK: &str = "\u{2014} ";

/// Not a signed note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a signed note: {0}")]
pub struct NoteError(&'static str);

/// One signature line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    /// Name of the key.
    pub name: String,
    /// Tells apart the keys of one name.
    pub key_id: [u8; 4],
    /// What follows the key id; its form depends on the key.
    pub blob: Vec<u8>,
}

/// A signed note, parsed; no signature is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

impl Note {
    /// Reads a note strictly: what passes is what it is displayed as.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > MAX_NOTE {
            return Err(NoteError("it is too long"));
        }
        let all = std::str::from_utf8(bytes).map_err(|_| NoteError("it is not UTF-8"))?;
        if all.bytes().any(|b| b < 0x20 && b != b'\n') {
            return Err(NoteError("it has control characters"));
        }
        // The last empty line divides; the text keeps its own final newline.
        let (text, lines) = all
            .rfind("\n\n")
            .and_then(|at| all.split_at_checked(at.saturating_add(1)))
            .ok_or(NoteError("no empty line divides text and signatures"))?;
        let lines = lines
            .strip_prefix('\n')
            .and_then(|l| l.strip_suffix('\n'))
            .ok_or(NoteError("it does not end with a signature line"))?;
        let signatures = lines
            .split('\n')
            .take(MAX_SIGNATURES + 1)
            .map(NoteSignature::parse)
            .collect::<Result<Vec<_>, _>>()?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(NoteError("it has too many signatures"));
        }
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// What is signed, with its final newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All signature lines in order.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        f.write_char('\n')?;
        for signature in &self.signatures {
            let blob = [signature.key_id.as_slice(), &signature.blob].concat();
            writeln!(f, "{MARK}{} {}", signature.name, STANDARD.encode(blob))?;
        }
        Ok(())
    }
}

impl NoteSignature {
    fn parse(line: &str) -> Result<Self, NoteError> {
        let (name, blob) = line
            .strip_prefix(MARK)
            .and_then(|rest| rest.split_once(' '))
            .ok_or(NoteError("a signature line has another form"))?;
        if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c == '+') {
            return Err(NoteError("a key name is illegal"));
        }
        let blob = STANDARD.decode(blob).map_err(|_| NoteError("a signature is not base64"))?;
        match blob.split_first_chunk::<4>() {
            Some((key_id, blob)) if !blob.is_empty() => {
                Ok(Self { name: name.to_owned(), key_id: *key_id, blob: blob.to_vec() })
            }
            _ => Err(NoteError("a signature is too short")),
        }
    }

    /// Whether this line claims to be of a key, by name and key id.
    pub fn is_by(&self, name: &str, key_id: [u8; 4]) -> bool {
        self.name == name && self.key_id == key_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The note of the specification's own example.
    const SAMPLE: &str = "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito \
                          sera.\n\n— quasimodo.example/salvatore \
                          NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n";

    #[test]
    fn the_sample_of_the_specification_is_read() {
        let note = Note::parse(SAMPLE.as_bytes()).unwrap();
        assert!(note.text().ends_with("\n\ned è subito sera.\n"), "the last empty line divides");
        assert_eq!(note.signatures().len(), 1);
        assert_eq!(note.signatures()[0].name, "quasimodo.example/salvatore");
        assert_eq!(note.signatures()[0].key_id, [0x36, 0x7b, 0xa0, 0x4b]);
        assert_eq!(note.signatures()[0].blob.len(), 64);
        assert_eq!(note.to_string(), SAMPLE);
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let line = "\u{2014} k AAAAAAA=\n";
        assert!(Note::parse(format!("t\n\n{line}").as_bytes()).is_ok());
        for bad in [
            String::new(),
            "t\n".to_owned(),
            "t\n\n".to_owned(),
            format!("t\n{line}"),
            format!("t\n\n{line}\n"),
            format!("t\n\n{}", line.trim_end()),
            format!("t\r\n\n{line}"),
            "t\n\n- k AAAAAAA=\n".to_owned(),
            "t\n\n\u{2014} k\n".to_owned(),
            "t\n\n\u{2014}  AAAAAAA=\n".to_owned(),
            "t\n\n\u{2014} a+b AAAAAAA=\n".to_owned(),
            "t\n\n\u{2014} a\u{2003}b AAAAAAA=\n".to_owned(),
            "t\n\n\u{2014} k AAAAAAA\n".to_owned(),
            "t\n\n\u{2014} k AAAAAAB=\n".to_owned(),
            "t\n\n\u{2014} k AAAAAA==\n".to_owned(),
            "t\n\n\u{2014} k AAAAAAA= \n".to_owned(),
            format!("t\n\n{}", line.repeat(MAX_SIGNATURES + 1)),
            format!("{}\n\n{line}", "t".repeat(MAX_NOTE)),
        ] {
            assert!(Note::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Note::parse(format!("t\n\n{}", line.repeat(MAX_SIGNATURES)).as_bytes()).is_ok());
        assert!(Note::parse(b"\xff\n\n\xe2\x80\x94 k AAAAAAA=\n").is_err());
    }
}
