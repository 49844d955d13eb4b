//! The header: where the vault stands, and the keys to everything.
//!
//! On disk: head (format, tree, epoch, sequence, salt) ‖ wraps of the top key, one per device ‖ body sealed under the
//! top key. The head is associated data and the context from which a device's root derives the key that wraps; the
//! salt makes every such key unique even if a batch is cut off and made again. The top key is fresh with every commit,
//! so that a second device needs no more than a wrap of its own.

use rand_core::{OsRng, RngCore as _};
use spark_rules::ids::Incarnation;
use zeroize::Zeroizing;

use super::ledger::{RecordSet, SetState};
use super::seal::{self, DataKey, KEY_BYTES, SealBroken, TAG_BYTES};
use super::store::Extent;
use super::token::{DeviceId, RootId, TreeId};
use super::tree::Top;

const FORMAT: &[u8; 4] = b"SPV3";
const CONTEXT: &[u8] = b"spark/vault/header/v3";
const SALT_BYTES: usize = 32;
const HEAD_BYTES: usize = 4 + 8 + 8 + 8 + SALT_BYTES;
/// Device number and the top key, wrapped.
const WRAP_BYTES: usize = 1 + KEY_BYTES + TAG_BYTES;
const BODY_BYTES: usize = 16 + 32 + 32 + 8 + 8 + 8 + 1 + 1 + 8 + KEY_BYTES;

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

    /// Head, and what follows it.
    pub(super) fn decode(stored: &[u8]) -> Option<(Self, &[u8])> {
        let rest = stored.strip_prefix(FORMAT)?;
        let (tree, rest) = rest.split_first_chunk::<8>()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (salt, rest) = rest.split_first_chunk::<SALT_BYTES>()?;
        let root = RootId { tree: TreeId(*tree), epoch: u64::from_be_bytes(*epoch) };
        Some((Self { root, sequence: u64::from_be_bytes(*sequence), salt: *salt }, rest))
    }

    /// Devices for which a stored header wraps its top key, as it says.
    pub(super) fn devices(stored: &[u8]) -> Option<Vec<DeviceId>> {
        let (wraps, _) = split_wraps(stored.get(HEAD_BYTES..)?)?;
        wraps.chunks_exact(WRAP_BYTES).map(|wrap| wrap.first().copied().map(DeviceId)).collect()
    }

    /// What a root turns into the key that wraps the top key.
    pub(super) fn derivation(&self) -> Vec<u8> {
        [CONTEXT, &self.encode()].concat()
    }
}

/// What the body says, while writing.
pub(super) struct BodyRef<'a> {
    pub(super) incarnation: Incarnation,
    pub(super) records: &'a RecordSet,
    pub(super) state: SetState,
    pub(super) top: Option<&'a Top>,
    /// Slots of the store from here on were never written.
    pub(super) end: u64,
    pub(super) secrets: u64,
}

impl BodyRef<'_> {
    /// The whole header. Each key is what a device's root made of [`Head::derivation`].
    pub(super) fn seal(&self, head: &Head, keys: &[(DeviceId, DataKey)]) -> Result<Vec<u8>, SealBroken> {
        let mut out = head.encode();
        let top_key = DataKey::random();
        let mut wraps = vec![u8::try_from(keys.len()).map_err(|_| SealBroken)?];
        for (device, key) in keys {
            let mut wrap = Zeroizing::new(Vec::with_capacity(KEY_BYTES + TAG_BYTES));
            wrap.extend_from_slice(top_key.expose());
            seal::seal(key.expose(), &out, &mut wrap)?;
            wraps.push(device.0);
            wraps.extend_from_slice(&wrap);
        }
        out.extend_from_slice(&wraps);

        let mut body = Zeroizing::new(Vec::with_capacity(BODY_BYTES + TAG_BYTES));
        body.extend_from_slice(self.incarnation.as_bytes());
        body.extend_from_slice(self.records.key().expose());
        body.extend_from_slice(&self.state.sum);
        body.extend_from_slice(&self.state.count.to_be_bytes());
        body.extend_from_slice(&self.end.to_be_bytes());
        body.extend_from_slice(&self.secrets.to_be_bytes());
        body.push(u8::from(self.top.is_some()));
        if let Some(top) = self.top {
            body.push(top.level);
            body.extend_from_slice(&top.at.number().to_be_bytes());
            body.extend_from_slice(top.key.expose());
        }
        seal::seal(top_key.expose(), &out, &mut body)?;
        out.extend_from_slice(&body);
        Ok(out)
    }
}

/// The sealed part, as read.
pub(super) struct Body {
    pub(super) incarnation: Incarnation,
    pub(super) records: RecordSet,
    pub(super) top: Option<Top>,
    /// Slots of the store from here on were never written.
    pub(super) end: u64,
    pub(super) secrets: u64,
}

impl Body {
    /// Opens what [`BodyRef::seal`] made, by one device's key.
    pub(super) fn open(stored: &[u8], device: DeviceId, key: &DataKey) -> Result<Self, SealBroken> {
        let (head, rest) = stored.split_at_checked(HEAD_BYTES).ok_or(SealBroken)?;
        let (wraps, sealed) = split_wraps(rest).ok_or(SealBroken)?;
        let wrap = wraps
            .chunks_exact(WRAP_BYTES)
            .find_map(|wrap| wrap.split_first().and_then(|(of, wrap)| (*of == device.0).then_some(wrap)))
            .ok_or(SealBroken)?;
        let top_key = seal::open(key.expose(), head, wrap)?;
        let context = stored.get(..HEAD_BYTES + 1 + wraps.len()).ok_or(SealBroken)?;
        let text = seal::open(top_key.first_chunk().ok_or(SealBroken)?, context, sealed)?;
        Self::decode(&text).ok_or(SealBroken)
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let (incarnation, rest) = text.split_first_chunk::<16>()?;
        let (record_key, rest) = rest.split_at_checked(32)?;
        let (sum, rest) = rest.split_first_chunk::<32>()?;
        let (count, rest) = rest.split_first_chunk::<8>()?;
        let (end, rest) = rest.split_first_chunk::<8>()?;
        let (secrets, rest) = rest.split_first_chunk::<8>()?;
        let (has_top, rest) = rest.split_first()?;
        let top = match has_top {
            0 if rest.is_empty() => None,
            1 => {
                let (level, rest) = rest.split_first()?;
                let (at, key) = rest.split_first_chunk::<8>()?;
                let key = DataKey::from_slice(key)?;
                Some(Top { level: *level, at: Extent::from_number(u64::from_be_bytes(*at))?, key })
            }
            _ => return None,
        };
        let state = SetState { sum: *sum, count: u64::from_be_bytes(*count) };
        Some(Self {
            incarnation: Incarnation::from_bytes(*incarnation),
            records: RecordSet::with(DataKey::from_slice(record_key)?, state).ok()?,
            top,
            end: u64::from_be_bytes(*end),
            secrets: u64::from_be_bytes(*secrets),
        })
    }
}

/// The wraps, and what follows them.
fn split_wraps(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (count, rest) = rest.split_first()?;
    rest.split_at_checked(usize::from(*count).checked_mul(WRAP_BYTES)?)
}
