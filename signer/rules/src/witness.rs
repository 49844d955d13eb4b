//! Witnesses: other operators' signers that follow a deletion log and cosign its heads (C2SP tlog-cosignature).
//!
//! A cosignature says: since I follow this log, it only grew, and it never took back what it had said.
//!
//! C2SP has timestamped cosignatures by Ed25519 and ML-DSA keys only. A witness whose federation key is a P-256 key signs
//! the same message; the id in its line is of a type of ours, so that whoever knows C2SP alone ignores the line.

use std::collections::BTreeMap;

use signed_note::{Note, Signature as NoteSignature};
use tlog_tiles::{EMPTY_HASH, Hash};

use crate::{
    checkpoint::witness_name, federation::Federation, federation_key::FederationKey, ids::OperatorIndex,
};

/// Time and signature.
const LENGTH: usize = 8 + 64;

/// What a witness signs: `text` is the checkpoint without its signatures, `time` in seconds since 1970.
pub fn cosigned_message(text: &[u8], time: u64) -> Vec<u8> {
    let mut message = format!("cosignature/v1\ntime {time}\n").into_bytes();
    message.extend_from_slice(text);
    message
}

/// The signature line of a cosignature, without line feed. `None` if the name cannot be one.
pub fn line(
    federation: &Federation,
    witness: OperatorIndex,
    key: &FederationKey,
    time: u64,
    signature: &[u8],
) -> Option<String> {
    let name = witness_name(federation, witness);
    let id = key.cosignature_id(&name);
    let blob = [time.to_be_bytes().as_slice(), signature].concat();
    let line = String::from_utf8(NoteSignature::new(name, id, blob).ok()?.to_bytes()).ok()?;
    Some(line.trim_end().to_owned())
}

/// A cosignature line of this witness over `text`, verified and written anew; `None` if it is anything else, or more.
pub fn checked_line(
    line: &str,
    text: &[u8],
    federation: &Federation,
    witness: OperatorIndex,
) -> Option<(String, u64)> {
    if line.contains('\n') {
        return None;
    }
    let signature = NoteSignature::from_bytes(line.as_bytes()).ok()?;
    let name = witness_name(federation, witness);
    if signature.name() != name {
        return None;
    }
    let keys = &federation.member(witness)?.federation_keys;
    let key = keys.iter().find(|key| key.cosignature_id(&name) == signature.id())?;
    let time = verified(text, signature.signature(), key)?;
    let line = String::from_utf8(signature.to_bytes()).ok()?;
    Some((line.trim_end().to_owned(), time))
}

/// The other operators that cosigned a checkpoint of `owner`, each with the time of its latest valid cosignature.
/// Lines of strangers, and those that do not verify, count for nothing.
pub fn cosigners(note: &str, federation: &Federation, owner: OperatorIndex) -> BTreeMap<OperatorIndex, u64> {
    let mut found = BTreeMap::new();
    let Ok(parsed) = Note::from_bytes(note.as_bytes()) else { return found };
    for line in note.get(parsed.text().len()..).unwrap_or_default().lines() {
        for member in federation.members().iter().filter(|member| member.index != owner) {
            if let Some((_, time)) = checked_line(line, parsed.text(), federation, member.index) {
                let latest = found.entry(member.index).or_insert(time);
                *latest = time.max(*latest);
            }
        }
    }
    found
}

fn verified(text: &[u8], blob: &[u8], key: &FederationKey) -> Option<u64> {
    if blob.len() != LENGTH {
        return None;
    }
    let (time, signature) = blob.split_first_chunk::<8>()?;
    let time = u64::from_be_bytes(*time);
    key.verifies(&cosigned_message(text, time), signature).then_some(time)
}

/// Cosignatures that a checkpoint needs before a wallet relies on it: any two such sets share an honest witness that
/// is not the log's own operator, so no two forks of a log reach it. With n operators, t − 1 of which may lie, one of
/// them the log's: ⌈(n + t − 2) / 2⌉ of the n − 1 others.
///
/// With few operators that is all others: with 2 of 3, one that is down keeps new heads from being relied on.
pub fn needed(federation: &Federation) -> usize {
    needed_of(federation.size().into(), federation.threshold().into())
}

const fn needed_of(n: usize, t: usize) -> usize {
    n.saturating_add(t).saturating_sub(2).div_ceil(2)
}

/// What of a log is enough to append to it: the roots of its complete subtrees, the largest first (RFC 6962).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Frontier {
    size: u64,
    roots: Vec<Hash>,
}

impl Frontier {
    /// From stored parts; `None` if they are not of one tree.
    pub fn new(size: u64, roots: &[Vec<u8>]) -> Option<Self> {
        if usize::try_from(size.count_ones()).ok()? != roots.len() {
            return None;
        }
        let roots =
            roots.iter().map(|root| Some(Hash(root.as_slice().try_into().ok()?))).collect::<Option<_>>()?;
        Some(Self { size, roots })
    }

    /// Records.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The parts to store.
    pub fn roots(&self) -> Vec<Vec<u8>> {
        self.roots.iter().map(|root| root.0.to_vec()).collect()
    }

    /// Appends a record, by its data.
    pub fn push(&mut self, record: &[u8]) {
        let mut root = tlog_tiles::record_hash(record);
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                root = tlog_tiles::node_hash(left, root);
            }
        }
        self.roots.push(root);
        self.size = self.size.saturating_add(1);
    }

    /// Root of the tree.
    pub fn root(&self) -> [u8; 32] {
        let mut roots = self.roots.iter().rev();
        let Some(last) = roots.next() else { return EMPTY_HASH.0 };
        roots.fold(*last, |right, left| tlog_tiles::node_hash(*left, right)).0
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn public(key: &SigningKey) -> FederationKey {
        FederationKey::from_bytes(key.verifying_key().as_bytes()).unwrap()
    }

    /// RFC 6962, section 2.1, as it is written there.
    fn naive(records: &[Vec<u8>]) -> [u8; 32] {
        match records {
            [] => Sha256::digest(b"").into(),
            [one] => Sha256::new().chain_update([0]).chain_update(one).finalize().into(),
            many => {
                let mut left = 1;
                while left * 2 < many.len() {
                    left *= 2;
                }
                let (a, b) = many.split_at(left);
                Sha256::new()
                    .chain_update([1])
                    .chain_update(naive(a))
                    .chain_update(naive(b))
                    .finalize()
                    .into()
            }
        }
    }

    #[test]
    fn the_frontier_leads_to_the_root_of_rfc_6962() {
        let records: Vec<Vec<u8>> = (0u16..70).map(|i| i.to_be_bytes().to_vec()).collect();
        let mut frontier = Frontier::default();
        for size in 0..records.len() {
            assert_eq!(frontier.root(), naive(&records[..size]), "{size}");
            assert_eq!(Frontier::new(size as u64, &frontier.roots()), Some(frontier.clone()));
            // One complete subtree more than the size has.
            assert_eq!(Frontier::new(2 * size as u64 + 1, &frontier.roots()), None);
            frontier.push(&records[size]);
        }
    }

    fn federation() -> (Federation, Vec<SigningKey>) {
        let keys: Vec<SigningKey> = (1u8..4).map(|i| SigningKey::from_bytes(&[i; 32])).collect();
        let members = keys.iter().enumerate().map(|(i, key)| crate::federation::MemberEntry {
            identity_public_key: {
                let secret = secp256k1::SecretKey::from_slice(&[i as u8 + 1; 32]).unwrap();
                secret.public_key(secp256k1::SECP256K1).to_string()
            },
            federation_public_keys: vec![hex::encode(key.verifying_key().as_bytes())],
            tls_spki_sha256: vec![hex::encode([i as u8 + 100; 32])],
            peer_address: format!("operator-{i}:1"),
            public_address: format!("https://operator-{i}:2"),
        });
        let entry = crate::federation::FederationEntry {
            epoch: 1,
            network: "regtest".into(),
            threshold: 2,
            quorum: None,
            faults: None,
            members: members.collect(),
        };
        (entry.check().unwrap(), keys)
    }

    #[test]
    fn only_valid_lines_of_other_members_count() {
        let (federation, keys) = federation();
        let owner = OperatorIndex::new(0);
        let text = "log\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";
        let line_of = |witness: u16, key: usize, time: u64, said: &str| {
            let signature = keys[key].sign(&cosigned_message(said.as_bytes(), time)).to_bytes();
            line(&federation, OperatorIndex::new(witness), &public(&keys[key]), time, &signature).unwrap()
        };
        let count = |lines: &[String]| {
            let note = format!("{text}\n{}\n", lines.join("\n"));
            let found = cosigners(&note, &federation, owner);
            found.into_iter().map(|(index, time)| (index.get(), time)).collect::<Vec<_>>()
        };
        let good = [line_of(1, 1, 5, text), line_of(2, 2, 6, text), line_of(2, 2, 9, text)];
        assert_eq!(count(&good), [(1, 5), (2, 9)]);
        // The log's own operator, a foreign key under a member's name, another text, a line that was touched.
        let touched = line_of(2, 2, 6, text).replace(' ', "  ");
        let bad = [line_of(0, 0, 5, text), line_of(1, 2, 5, text), line_of(2, 2, 5, "other\n")];
        assert_eq!(count(&bad), []);
        assert_eq!(count(&[touched]), []);
        // A time that was changed is not the one that was signed.
        let signature = keys[1].sign(&cosigned_message(text.as_bytes(), 5)).to_bytes();
        let later = line(&federation, OperatorIndex::new(1), &public(&keys[1]), 6, &signature).unwrap();
        assert_eq!(count(&[later]), []);
        // A line and something beside it would spoil a note, or crowd others out of it.
        let one = line_of(1, 1, 5, text);
        let checked = |said: &str| checked_line(said, text.as_bytes(), &federation, OperatorIndex::new(1));
        assert_eq!(checked(&one), Some((one.clone(), 5)));
        for more in [format!("{one}\n"), format!("\n{one}"), format!("{one}\n{one}"), format!("{one} ")] {
            assert_eq!(checked(&more), None, "{more:?}");
        }
        assert_eq!(checked_line(&one, text.as_bytes(), &federation, OperatorIndex::new(2)), None);
    }

    #[test]
    fn two_forks_cannot_both_have_enough_witnesses() {
        for n in 3usize..=15 {
            for t in 2..n {
                let needed = needed_of(n, t);
                // The log's operator and t - 2 others lie and sign both forks; honest ones sign one.
                let honest = n - 1 - (t - 2);
                let most_for_both = 2 * (t - 2) + honest;
                assert!(2 * needed > most_for_both, "{n} {t}");
                assert!(needed < n, "{n} {t}");
            }
        }
    }
}
