//! Authenticated encryption with keys that seal exactly once.

use std::ops::{Deref, DerefMut};

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use rand_core::{OsRng, RngCore as _};
use zeroize::{Zeroize as _, Zeroizing};

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
    let tag = seal_in_place(key, context, text)?;
    text.extend_from_slice(&tag);
    Ok(())
}

/// The same, for who puts the tag where it belongs.
pub(super) fn seal_in_place(
    key: &[u8; KEY_BYTES],
    context: &[u8],
    text: &mut [u8],
) -> Result<[u8; TAG_BYTES], SealBroken> {
    let tag = Aes256Gcm::new(key.into()).encrypt_inout_detached(&Nonce::default(), context, text.into());
    tag.map(Into::into).map_err(|_| SealBroken)
}

/// Checks and decrypts what [`seal`] made.
pub(super) fn open(key: &[u8; KEY_BYTES], context: &[u8], sealed: &[u8]) -> Result<Buffer, SealBroken> {
    let mut text = Buffer(sealed.to_vec());
    let length = open_in_place(key, context, &mut text)?;
    text.truncate(length);
    Ok(text)
}

/// The same in place. Returns how long the text is; after it comes the tag.
pub(super) fn open_in_place(
    key: &[u8; KEY_BYTES],
    context: &[u8],
    sealed: &mut [u8],
) -> Result<usize, SealBroken> {
    let (text, tag) = sealed.split_last_chunk_mut::<TAG_BYTES>().ok_or(SealBroken)?;
    let length = text.len();
    Aes256Gcm::new(key.into())
        .decrypt_inout_detached(&Nonce::default(), context, text.into(), (&*tag).into())
        .map_err(|_| SealBroken)?;
    Ok(length)
}

/// Bytes that are wiped in one sweep, all that was allocated: [`Zeroizing`] goes over a vector byte by byte, which takes
/// as long as opening a page. Does not grow beyond its capacity without leaving a copy behind.
#[derive(Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// What it holds, once that is no secret any more.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.0.resize(self.0.capacity(), 0);
        self.0.as_mut_slice().zeroize();
    }
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

/// Keys of one batch, from the operating system's generator, which is asked for many at a time: a call to it costs as
/// much as sealing a page. A key leaves no copy behind, and what was not used is wiped with the batch.
pub(super) struct KeySource {
    drawn: Buffer,
}

impl KeySource {
    const AT_A_TIME: usize = 128;

    pub(super) fn new() -> Self {
        Self { drawn: Buffer::with_capacity(Self::AT_A_TIME * KEY_BYTES) }
    }

    /// The next key.
    pub(super) fn draw(&mut self) -> DataKey {
        let mut key = Box::new(Zeroizing::new([0u8; KEY_BYTES]));
        if self.drawn.is_empty() {
            self.drawn.resize(Self::AT_A_TIME * KEY_BYTES, 0);
            OsRng.fill_bytes(self.drawn.as_mut_slice());
        }
        let at = self.drawn.len().saturating_sub(KEY_BYTES);
        if let Some(last) = self.drawn.get_mut(at..) {
            key.copy_from_slice(last);
            last.zeroize();
        }
        self.drawn.truncate(at);
        DataKey(key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_keys_of_a_batch_are_alike() {
        let mut source = KeySource::new();
        let count = 3 * KeySource::AT_A_TIME + 1;
        let keys: BTreeSet<[u8; KEY_BYTES]> = (0..count).map(|_| *source.draw().expose()).collect();
        assert_eq!(keys.len(), count);
        assert!(!keys.contains(&[0; KEY_BYTES]));
    }

    #[test]
    fn what_is_sealed_opens_by_its_key_and_context_only() {
        let (key, other) = (DataKey::random(), DataKey::random());
        let mut text = Vec::with_capacity(5 + TAG_BYTES);
        text.extend_from_slice(b"share");
        seal(key.expose(), b"place", &mut text).unwrap();
        assert_eq!(text.len(), 5 + TAG_BYTES);
        assert_eq!(open(key.expose(), b"place", &text).unwrap().as_slice(), b"share");
        assert!(open(key.expose(), b"elsewhere", &text).is_err());
        assert!(open(other.expose(), b"place", &text).is_err());
        assert!(open(key.expose(), b"place", &[0; TAG_BYTES - 1]).is_err());
    }

    /// Test case 15 and 16 of McGrew and Viega's specification of GCM, AES-256, have other nonces; with the constant
    /// one, case 13 and 14 are what a page looks like.
    #[test]
    fn it_is_aes_256_gcm_with_nonce_zero() {
        let mut text = Vec::new();
        seal(&[0; KEY_BYTES], &[], &mut text).unwrap();
        assert_eq!(hex::encode(&text), "530f8afbc74536b9a963b4f1c4cb738b");
        let mut text = vec![0; 16];
        seal(&[0; KEY_BYTES], &[], &mut text).unwrap();
        assert_eq!(hex::encode(&text), "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919");
    }
}
