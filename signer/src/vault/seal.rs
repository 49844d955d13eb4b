//! Authenticated encryption with keys that seal exactly once.

use aes_gcm::aead::AeadInPlace as _;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce, Tag};
use rand_core::{OsRng, RngCore as _};
use zeroize::Zeroizing;

/// Bytes that sealing adds.
pub(super) const TAG_BYTES: usize = 16;
/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;

/// The bytes are not what was sealed under this key and context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SealBroken;

/// Encrypts in place and appends the tag. Takes the key's one use, so the nonce is constant; give `text` room for
/// the tag, so that it need not move.
pub(super) fn seal(key: &[u8; KEY_BYTES], context: &[u8], text: &mut Vec<u8>) -> Result<(), SealBroken> {
    let tag = Aes256Gcm::new(key.into()).encrypt_in_place_detached(&Nonce::default(), context, text);
    text.extend_from_slice(&tag.map_err(|_| SealBroken)?);
    Ok(())
}

/// Checks and decrypts what [`seal`] made.
pub(super) fn open(
    key: &[u8; KEY_BYTES],
    context: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealBroken> {
    let (text, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(SealBroken)?;
    let mut text = Zeroizing::new(text.to_vec());
    Aes256Gcm::new(key.into())
        .decrypt_in_place_detached(&Nonce::default(), context, &mut text, Tag::from_slice(tag))
        .map_err(|_| SealBroken)?;
    Ok(text)
}

/// An AES-256 key. One key seals one text.
pub(super) struct DataKey(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl DataKey {
    /// From the operating system's generator.
    pub(super) fn random() -> Self {
        let mut key = Box::new(Zeroizing::new([0u8; KEY_BYTES]));
        OsRng.fill_bytes(&mut key[..]);
        Self(key)
    }

    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut key = Box::new(Zeroizing::new([0u8; KEY_BYTES]));
        if bytes.len() != key.len() {
            return None;
        }
        key.copy_from_slice(bytes);
        Some(Self(key))
    }

    pub(super) fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}
