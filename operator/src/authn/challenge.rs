//! Challenges: issue and check.

use hmac::Mac as _;
use prost::Message as _;
use rand::{RngCore as _, rngs::OsRng};
use secp256k1::{Message, PublicKey, SECP256K1, ecdsa::Signature};
use sha2::{Digest as _, Sha256};
use spark_proto::spark_authn::{Challenge, ProtectedChallenge};
pub use spark_rules::package::challenge_nonce;

use super::{Authn, CHALLENGE_TTL, SKEW};
use crate::status::{Reason, Refused, text};

const VERSION: i32 = 1;
const PURPOSE: &[u8] = b"spark/challenge";

impl Authn {
    /// A challenge for the holder of a SEC1-encoded public key. Nothing is stored.
    pub(super) fn issue_challenge(&self, public_key: &[u8]) -> Result<ProtectedChallenge, Refused> {
        let identity = parse_key("public_key", public_key)?;
        let mut random = [0; 16];
        OsRng.fill_bytes(&mut random);
        let challenge = Challenge {
            version: VERSION,
            timestamp: i64::try_from(self.now()).unwrap_or(i64::MAX),
            nonce: challenge_nonce(&self.operator, random).to_vec(),
            public_key: identity.serialize().to_vec(),
        };
        let server_hmac = self.mac(PURPOSE, &challenge.encode_to_vec()).finalize().into_bytes().to_vec();
        Ok(ProtectedChallenge { version: VERSION, challenge: Some(challenge), server_hmac })
    }

    /// Checks an answered challenge and uses it up. `signature` is DER-encoded ECDSA over SHA-256 of the
    /// challenge's canonical encoding.
    pub(super) async fn accept_answer(
        &self,
        protected: ProtectedChallenge,
        signature: &[u8],
        public_key: &[u8],
    ) -> Result<PublicKey, Refused> {
        if protected.version != VERSION {
            return Err(Refused::field("protected_challenge.version", "must be 1"));
        }
        let challenge = protected
            .challenge
            .ok_or_else(|| Refused::field("protected_challenge.challenge", "is missing"))?;
        // Encoded again from the four known fields: unknown fields never reach the tag or the signature.
        let encoded = challenge.encode_to_vec();
        if self.mac(PURPOSE, &encoded).verify_slice(&protected.server_hmac).is_err() {
            // Ours from before a restart, most likely: the same remedy as for an old one.
            return Err(expired("challenge expired, or never issued here"));
        }
        let issued = u64::try_from(challenge.timestamp).unwrap_or_default();
        let now = self.now();
        let (ttl, skew) = (CHALLENGE_TTL.as_secs(), SKEW.as_secs());
        if now > issued.saturating_add(ttl).saturating_add(skew) || issued > now.saturating_add(skew) {
            return Err(expired(text::CHALLENGE_EXPIRED));
        }
        let identity = parse_key("protected_challenge.challenge.public_key", &challenge.public_key)?;
        if parse_key("public_key", public_key)? != identity {
            return Err(Refused::field("public_key", "must be that of the challenge"));
        }
        let mut signature = Signature::from_der(signature)
            .map_err(|_| Refused::field("signature", "must be a DER-encoded ECDSA signature"))?;
        signature.normalize_s();
        let digest = Message::from_digest(Sha256::digest(&encoded).into());
        SECP256K1
            .verify_ecdsa(&digest, &signature, &identity)
            .map_err(|_| Refused::new(Reason::SignatureInvalid, "signature does not verify"))?;
        let nonce: [u8; 32] = challenge
            .nonce
            .try_into()
            .map_err(|_| Refused::field("protected_challenge.challenge.nonce", "must have 32 bytes"))?;
        // Last, so that only the key's holder can use a challenge up.
        if !self.answered.entry(nonce).or_insert(()).await.is_fresh() {
            return Err(Refused::new(Reason::ChallengeUsed, "challenge was answered before"));
        }
        Ok(identity)
    }
}

fn expired(text: &str) -> Refused {
    Refused::new(Reason::ChallengeExpired, text)
}

fn parse_key(field: &'static str, bytes: &[u8]) -> Result<PublicKey, Refused> {
    PublicKey::from_slice(bytes).map_err(|_| Refused::field(field, "must be a secp256k1 public key"))
}
