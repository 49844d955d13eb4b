//! The header: where the vault stands, and the keys to everything.
//!
//! On disk: head (format, tree, epoch, sequence, salt) ‖ sealed body. The head is associated data and the
//! context from which the root derives the body's key; the salt makes every sealing key unique even if a
//! batch is cut off and made again.

use std::collections::BTreeMap;

use rand_core::{OsRng, RngCore as _};
use spark_rules::ids::Incarnation;
use zeroize::Zeroizing;

use super::ledger::{RecordSet, SetState};
use super::seal::{DataKey, SealBroken, TAG_BYTES};
use super::token::{RootId, TreeId};

const FORMAT: &[u8; 4] = b"SPV1";
const CONTEXT: &[u8] = b"spark/vault/header/v1";
const SALT_BYTES: usize = 32;
pub(super) const HEAD_BYTES: usize = 4 + 8 + 8 + 8 + SALT_BYTES;
const PAGE_ENTRY: usize = 4 + 32;
const FIXED_BODY: usize = 16 + 32 + 32 + 8 + 4 + 4;

/// The part in the clear.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) root: RootId,
    pub(super) sequence: u64,
    salt: [u8; SALT_BYTES],
}

impl Head {
    /// A head that has never sealed anything.
    pub(super) fn fresh(root: RootId, sequence: u64) -> Self {
        let mut salt = [0u8; SALT_BYTES];
        OsRng.fill_bytes(&mut salt);
        Self { root, sequence, salt }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES);
        out.extend_from_slice(FORMAT);
        out.extend_from_slice(&self.root.to_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.salt);
        out
    }

    /// Head and sealed body.
    pub(super) fn decode(stored: &[u8]) -> Option<(Self, &[u8])> {
        let rest = stored.strip_prefix(FORMAT)?;
        let (tree, rest) = rest.split_first_chunk::<8>()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (salt, body) = rest.split_first_chunk::<SALT_BYTES>()?;
        let root = RootId { tree: TreeId(*tree), epoch: u64::from_be_bytes(*epoch) };
        Some((Self { root, sequence: u64::from_be_bytes(*sequence), salt: *salt }, body))
    }

    /// What the root turns into the body's key.
    pub(super) fn derivation(&self) -> Vec<u8> {
        [CONTEXT, &self.encode()].concat()
    }
}

/// The sealed part, while writing.
pub(super) struct BodyRef<'a> {
    pub(super) incarnation: Incarnation,
    pub(super) records: &'a RecordSet,
    pub(super) state: SetState,
    pub(super) next_page: u32,
    pub(super) pages: &'a BTreeMap<u32, &'a DataKey>,
}

impl BodyRef<'_> {
    /// Head and body, sealed.
    pub(super) fn seal(&self, head: &Head, key: &DataKey) -> Result<Vec<u8>, SealBroken> {
        let bytes = FIXED_BODY + self.pages.len() * PAGE_ENTRY + TAG_BYTES;
        let mut body = Zeroizing::new(Vec::with_capacity(bytes));
        body.extend_from_slice(self.incarnation.as_bytes());
        body.extend_from_slice(self.records.key().expose());
        body.extend_from_slice(&self.state.sum);
        body.extend_from_slice(&self.state.count.to_be_bytes());
        body.extend_from_slice(&self.next_page.to_be_bytes());
        body.extend_from_slice(&u32::try_from(self.pages.len()).map_err(|_| SealBroken)?.to_be_bytes());
        for (number, page_key) in self.pages {
            body.extend_from_slice(&number.to_be_bytes());
            body.extend_from_slice(page_key.expose());
        }
        let mut out = head.encode();
        key.seal(&out, &mut body)?;
        out.extend_from_slice(&body);
        Ok(out)
    }
}

/// The sealed part, as read.
pub(super) struct Body {
    pub(super) incarnation: Incarnation,
    pub(super) records: RecordSet,
    pub(super) next_page: u32,
    pub(super) pages: BTreeMap<u32, DataKey>,
}

impl Body {
    pub(super) fn open(head: &Head, key: &DataKey, sealed: &[u8]) -> Result<Self, SealBroken> {
        let text = key.open(&head.encode(), sealed)?;
        Self::decode(&text).ok_or(SealBroken)
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let (incarnation, rest) = text.split_first_chunk::<16>()?;
        let (record_key, rest) = rest.split_at_checked(32)?;
        let (sum, rest) = rest.split_first_chunk::<32>()?;
        let (count, rest) = rest.split_first_chunk::<8>()?;
        let (next_page, rest) = rest.split_first_chunk::<4>()?;
        let (pages, rest) = rest.split_first_chunk::<4>()?;
        if rest.len() != (u32::from_be_bytes(*pages) as usize).checked_mul(PAGE_ENTRY)? {
            return None;
        }
        let mut keys = BTreeMap::new();
        for entry in rest.chunks_exact(PAGE_ENTRY) {
            let (number, key) = entry.split_first_chunk::<4>()?;
            keys.insert(u32::from_be_bytes(*number), DataKey::from_slice(key)?);
        }
        let state = SetState { sum: *sum, count: u64::from_be_bytes(*count) };
        Some(Self {
            incarnation: Incarnation::from_bytes(*incarnation),
            records: RecordSet::with(DataKey::from_slice(record_key)?, state).ok()?,
            next_page: u32::from_be_bytes(*next_page),
            pages: keys,
        })
    }
}
