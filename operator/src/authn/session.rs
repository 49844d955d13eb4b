//! Sessions as opaque tokens.
//!
//! base64url of: version ‖ compressed identity key ‖ expiry (seconds since 1970, big-endian) ‖ 8 random bytes ‖
//! HMAC-SHA-256 of what precedes.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::Mac as _;
use http::HeaderMap;
use rand::{RngCore as _, rngs::OsRng};
use secp256k1::PublicKey;

use super::Authn;
use crate::status::Refused;

const VERSION: u8 = 1;
const PURPOSE: &[u8] = b"spark/session";
const BODY: usize = 1 + 33 + 8 + 8;
const TAG: usize = 32;
/// Decodable text of this size or more is a token, whoever issued it; less is noise such as `undefined`.
const LOOKS_LIKE_A_TOKEN: usize = 32;

/// Who calls. In the extensions of requests that carry a valid token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The wallet's identity key.
    pub identity: PublicKey,
}

impl Session {
    /// The session of a request that passed the authorisation table, or the refusal for one without.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Refused> {
        request.extensions().get::<Self>().copied().ok_or_else(Refused::no_session)
    }
}

/// Who asks a query: an identity, or, where reads are open, anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// The session's identity, if there is a session.
    pub identity: Option<PublicKey>,
}

impl Reader {
    /// Who asks. Without a session only where reads are open.
    pub fn of<T>(request: &tonic::Request<T>, open_reads: bool) -> Result<Self, Refused> {
        let identity = request.extensions().get::<Session>().map(|session| session.identity);
        if identity.is_none() && !open_reads {
            return Err(Refused::no_session());
        }
        Ok(Self { identity })
    }

    /// The identity where a query is about the asking one itself.
    pub fn own(&self) -> Result<PublicKey, Refused> {
        self.identity.ok_or_else(Refused::no_session)
    }

    /// Its 33 bytes; empty, which is nobody's, without a session.
    pub fn bytes(&self) -> Vec<u8> {
        self.identity.map_or_else(Vec::new, |identity| identity.serialize().to_vec())
    }
}

/// What the metadata of a call says about its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    /// No token, or text that is none.
    Absent,
    /// A token that is over or of another process.
    Expired,
    /// A valid token.
    Valid(Session),
}

impl TokenState {
    /// The session, or the refusal for a call that needs one.
    pub fn required(self) -> Result<Session, Refused> {
        match self {
            Self::Valid(session) => Ok(session),
            Self::Absent => Err(Refused::no_session()),
            Self::Expired => Err(Refused::session_expired()),
        }
    }
}

impl Authn {
    /// A token for `identity`, and the second since 1970 at which it ends.
    pub(super) fn issue_session(&self, identity: &PublicKey) -> (String, u64) {
        let expires = self.now().saturating_add(self.ttl.as_secs());
        let mut random = [0; 8];
        OsRng.fill_bytes(&mut random);
        let mut token = Vec::with_capacity(BODY + TAG);
        token.push(VERSION);
        token.extend(identity.serialize());
        token.extend(expires.to_be_bytes());
        token.extend(random);
        let tag = self.mac(PURPOSE, &token).finalize().into_bytes();
        token.extend(tag);
        (URL_SAFE_NO_PAD.encode(token), expires)
    }

    /// The session that the `authorization` header carries, with or without `Bearer `.
    pub fn session(&self, headers: &HeaderMap) -> TokenState {
        let Some(text) = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok())
        else {
            return TokenState::Absent;
        };
        let text = text.trim();
        let text = match text.split_at_checked(7) {
            Some((prefix, token)) if prefix.eq_ignore_ascii_case("Bearer ") => token.trim(),
            _ => text,
        };
        let Ok(token) = URL_SAFE_NO_PAD.decode(text) else { return TokenState::Absent };
        if token.len() < LOOKS_LIKE_A_TOKEN {
            return TokenState::Absent;
        }
        self.open(&token).map_or(TokenState::Expired, TokenState::Valid)
    }

    fn open(&self, token: &[u8]) -> Option<Session> {
        let (body, tag) = token.split_at_checked(BODY)?;
        self.mac(PURPOSE, body).verify_slice(tag).ok()?;
        let (version, rest) = body.split_first()?;
        let (identity, rest) = rest.split_at_checked(33)?;
        let (expires, _random) = rest.split_first_chunk::<8>()?;
        if *version != VERSION || u64::from_be_bytes(*expires) <= self.now() {
            return None;
        }
        Some(Session { identity: PublicKey::from_slice(identity).ok()? })
    }
}
