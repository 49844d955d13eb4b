//! Distributed key generation, pure: a batch of independent Pedersen runs with proofs of knowledge, message for
//! message those of frost-secp256k1-tr (RFC 9591 companion, FROST paper figure 1), including its closing tweak.
//!
//! The proofs bind no session; the signed envelope around the round-1 message does (see `proto/signer`).

mod finish;
mod package;

use rand_core::{CryptoRng, RngCore};
use spark_rules::ids::OperatorIndex;
use zeroize::Zeroizing;

pub use self::{
    finish::{DkgOutput, finish},
    package::Round1Package,
};
use crate::{feldman::evaluate, secret::SecretScalar};

/// A run that gives no keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DkgError {
    /// n, t, own index or batch size do not fit together.
    #[error("parameters of the run do not fit together")]
    Parameters,
    /// Messages are not exactly those of all members.
    #[error("messages of the run are not complete")]
    Messages,
    /// A round-1 package does not decode or has another threshold.
    #[error("round-1 package {key} of operator {} is malformed", culprit.get())]
    Package {
        /// Its sender.
        culprit: OperatorIndex,
        /// Position in the batch.
        key: usize,
    },
    /// A proof of knowledge does not verify.
    #[error("proof of knowledge {key} of operator {} is invalid", culprit.get())]
    Proof {
        /// Its sender.
        culprit: OperatorIndex,
        /// Position in the batch.
        key: usize,
    },
    /// A share does not match its sender's commitments.
    #[error("share {key} of operator {} is invalid", culprit.get())]
    Share {
        /// Its sender.
        culprit: OperatorIndex,
        /// Position in the batch.
        key: usize,
    },
    /// Keys add up to the point at infinity or a share to zero.
    #[error("keys of position {0} cancel out")]
    Identity(usize),
}

/// One member's polynomials of a batch; erased when dropped (D14).
#[expect(missing_debug_implementations, reason = "secrets are never printed")]
pub struct Round1Secret {
    session_id: [u8; 16],
    me: OperatorIndex,
    n: u16,
    t: u16,
    /// Per key: t coefficients, lowest first.
    polynomials: Vec<Vec<SecretScalar>>,
    packages: Vec<Round1Package>,
}

impl Round1Secret {
    /// The session that the envelope binds.
    pub const fn session_id(&self) -> &[u8; 16] {
        &self.session_id
    }

    /// Keys in the batch.
    pub fn count(&self) -> usize {
        self.polynomials.len()
    }

    /// The shares for another member: count × 32 bytes big-endian, in the order of the batch. To be encrypted to
    /// the recipient's one-time key.
    pub fn shares_for(&self, recipient: OperatorIndex) -> Result<Zeroizing<Vec<u8>>, DkgError> {
        if recipient.get() >= self.n || recipient == self.me {
            return Err(DkgError::Parameters);
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.count() * 32));
        for (key, polynomial) in self.polynomials.iter().enumerate() {
            bytes.extend_from_slice(&*own_value(polynomial, recipient, key)?.to_bytes());
        }
        Ok(bytes)
    }
}

fn own_value(polynomial: &[SecretScalar], at: OperatorIndex, key: usize) -> Result<SecretScalar, DkgError> {
    let coefficients: Vec<&SecretScalar> = polynomial.iter().collect();
    evaluate(&coefficients, at).map_err(|_| DkgError::Identity(key))
}

/// Starts a batch of `count` keys as member `me` of a `t`-of-`n` federation. The generator must be the operating
/// system's or one that erases its state (D14).
pub fn round1(
    rng: &mut (impl RngCore + CryptoRng),
    session_id: &[u8; 16],
    me: OperatorIndex,
    n: u16,
    t: u16,
    count: usize,
) -> Result<(Round1Secret, Vec<Round1Package>), DkgError> {
    if t < 2 || t > n || me.get() >= n || count == 0 {
        return Err(DkgError::Parameters);
    }
    let mut polynomials = Vec::with_capacity(count);
    let mut packages = Vec::with_capacity(count);
    for _ in 0..count {
        let polynomial: Vec<SecretScalar> = (0..t).map(|_| SecretScalar::random(rng)).collect();
        packages.push(Round1Package::prove(rng, me, &polynomial).ok_or(DkgError::Parameters)?);
        polynomials.push(polynomial);
    }
    let secret = Round1Secret { session_id: *session_id, me, n, t, polynomials, packages: packages.clone() };
    Ok((secret, packages))
}
