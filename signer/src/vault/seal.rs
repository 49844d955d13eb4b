//! Authenticated encryption with keys that seal exactly once.

use aes_gcm::aead::AeadInPlace as _;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce, Tag};
use rand_core::{OsRng, RngCore as _};
use zeroize::Zeroizing;

/// Bytes that sealing adds.
pub(super) const TAG_BYTES: usize = 16;

/// The bytes are not what was sealed under this key and context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SealBroken;

/// An AES-256 key. One key seals one text, so the nonce is constant.
pub(super) struct DataKey(Box<Zeroizing<[u8; 32]>>);

impl DataKey {
    /// From the operating system's generator.
    pub(super) fn random() -> Self {
        let mut key = Box::new(Zeroizing::new([0u8; 32]));
        OsRng.fill_bytes(&mut key[..]);
        Self(key)
    }

    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut key = Box::new(Zeroizing::new([0u8; 32]));
        if bytes.len() != key.len() {
            return None;
        }
        key.copy_from_slice(bytes);
        Some(Self(key))
    }

    pub(super) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(self.0.as_slice().into())
    }

    /// Encrypts in place and appends the tag. Takes the key's one use; give `text` room for the tag, so
    /// that it need not move.
    pub(super) fn seal(&self, context: &[u8], text: &mut Vec<u8>) -> Result<(), SealBroken> {
        let tag = self.cipher().encrypt_in_place_detached(&Nonce::default(), context, text);
        text.extend_from_slice(&tag.map_err(|_| SealBroken)?);
        Ok(())
    }

    /// Checks and decrypts what [`Self::seal`] made.
    pub(super) fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealBroken> {
        let (text, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(SealBroken)?;
        let mut text = Zeroizing::new(text.to_vec());
        self.cipher()
            .decrypt_in_place_detached(&Nonce::default(), context, &mut text, Tag::from_slice(tag))
            .map_err(|_| SealBroken)?;
        Ok(text)
    }
}
