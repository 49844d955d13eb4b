//! Cosignatures of the other operators (C2SP tlog-cosignature, version 1). That has no form for ECDSA: a witness with
//! a P-256 key signs the same message, and its line has a key id of a type of its own.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{
    failure::{Failures, Reason},
    federation::Federation,
    key::Key,
    note::{Note, NoteSignature},
};

/// A valid cosignature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cosignature {
    /// The witness.
    pub operator: u16,
    /// When it signed, in seconds since 1970, by its own clock.
    pub unix_seconds: u64,
}

/// What the other operators signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Witnesses {
    /// Distinct other operators that must have cosigned.
    pub needed: usize,
    /// Distinct other operators that did.
    pub distinct: usize,
    /// All valid cosignatures.
    pub cosignatures: Vec<Cosignature>,
    /// Signature lines by keys that the federation file does not name for them; they count for nothing.
    pub ignored: usize,
}

/// What a witness signs.
fn message(unix_seconds: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {unix_seconds}\n{text}")
}

/// The time of a cosignature, if it is valid.
fn time_of(line: &NoteSignature, key: &Key, text: &str) -> Option<u64> {
    let (time, signature) = line.blob.split_first_chunk::<8>()?;
    let time = u64::from_be_bytes(*time);
    let legal = i64::try_from(time).is_ok();
    (legal && key.signed(message(time, text).as_bytes(), signature)).then_some(time)
}

/// Verifies the cosignatures of every operator but the log's own.
pub fn verify(
    note: &Note,
    federation: &Federation,
    operator: u16,
    needed: usize,
    failures: &mut Failures,
) -> Witnesses {
    let origin = federation.origin(operator);
    let mut cosignatures = Vec::new();
    let mut ignored = 0usize;
    for line in note.signatures() {
        let own = federation.keys(operator).iter().any(|key| line.is_by(&origin, key.note_id(&origin)));
        let signer = federation.indices().filter(|index| *index != operator).find_map(|index| {
            let name = federation.witness(index);
            let key =
                federation.keys(index).iter().find(|key| line.is_by(&name, key.cosignature_id(&name)))?;
            Some((index, key))
        });
        match signer {
            Some((index, key)) => match time_of(line, key, note.text()) {
                Some(unix_seconds) => cosignatures.push(Cosignature { operator: index, unix_seconds }),
                None => failures.add(
                    Reason::CosignatureInvalid,
                    format!("the cosignature under a key of operator {index} does not verify"),
                ),
            },
            None if own => {}
            None => ignored = ignored.saturating_add(1),
        }
    }
    let distinct = cosignatures.iter().map(|c| c.operator).collect::<BTreeSet<_>>().len();
    if distinct < needed {
        failures.add(
            Reason::WitnessesTooFew,
            format!("{distinct} of the other operators cosigned the checkpoint, {needed} are needed"),
        );
    }
    Witnesses { needed, distinct, cosignatures, ignored }
}
