//! Public keys of TLS peers, named by hash.

use std::{
    collections::HashSet,
    fmt,
    str::FromStr,
    sync::{Arc, PoisonError, RwLock},
};

use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use super::TransportError;

/// SHA-256 of a certificate's DER-encoded SubjectPublicKeyInfo (the pin of RFC 7469, in hex).
///
/// It survives renewal of a certificate for the same key. The federation file names peers by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spki([u8; 32]);

/// Not 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a TLS key hash is 64 hex digits")]
pub struct SpkiParseError;

impl Spki {
    /// From the 32 bytes of the hash.
    pub const fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The 32 bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Hash of the public key in a DER-encoded X.509 certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, TransportError> {
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(TransportError::Certificate)?;
        Ok(Self(Sha256::digest(parsed.subject_public_key_info().as_ref()).into()))
    }
}

impl fmt::Display for Spki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Spki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spki({self})")
    }
}

impl FromStr for Spki {
    type Err = SpkiParseError;

    fn from_str(text: &str) -> Result<Self, SpkiParseError> {
        let digits: Vec<u8> = text
            .chars()
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()).ok_or(SpkiParseError))
            .collect::<Result<_, _>>()?;
        let bytes: Vec<u8> = digits
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Ok(high << 4 | low),
                _ => Err(SpkiParseError),
            })
            .collect::<Result<_, _>>()?;
        bytes.try_into().map(Self).map_err(|_| SpkiParseError)
    }
}

/// Key of the client at the other end of a connection, in the extensions of every request. `None` when the
/// client showed no certificate, which only [`ClientAuth::Off`](super::ClientAuth::Off) and
/// [`Optional`](super::ClientAuth::Optional) allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerSpki(pub Option<Spki>);

/// Keys that a listener accepts. Clones share one list; [`replace`](Self::replace) takes effect for the next
/// handshake and for the next request on connections that are already open.
#[derive(Debug, Clone, Default)]
pub struct SpkiAllowList {
    keys: Arc<RwLock<Arc<HashSet<Spki>>>>,
}

impl SpkiAllowList {
    /// Accepts exactly these keys.
    pub fn new(keys: impl IntoIterator<Item = Spki>) -> Self {
        let list = Self::default();
        list.replace(keys);
        list
    }

    /// Accepts exactly these keys from now on.
    pub fn replace(&self, keys: impl IntoIterator<Item = Spki>) {
        let keys = Arc::new(keys.into_iter().collect());
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Whether the key is on the list now.
    pub fn allows(&self, key: &Spki) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip_and_rejects() {
        let key = Spki::from_bytes(std::array::from_fn(|i| u8::try_from(i * 7).unwrap_or(255)));
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().to_uppercase().parse(), Ok(key));
        for bad in ["", "00", &"0".repeat(63), &"0".repeat(66), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<Spki>(), Err(SpkiParseError), "{bad}");
        }
    }

    #[test]
    fn clones_share_the_list() {
        let (one, other) = (Spki::from_bytes([1; 32]), Spki::from_bytes([2; 32]));
        let list = SpkiAllowList::new([one]);
        let clone = list.clone();
        list.replace([other]);
        assert!(!clone.allows(&one) && clone.allows(&other));
    }
}
