//! What is signed, by whom, with which nonces.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use sha2::{Digest as _, Sha256};

use super::{key::KeyContext, lagrange::Coefficients, session::Session};
use crate::{
    ids::OperatorIndex,
    point::{self, PointError},
};

/// A package that nobody may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackageError {
    /// Threshold and member count do not form a sharing.
    #[error("threshold {threshold} of {members} is not a sharing")]
    Parameters {
        /// t.
        threshold: u16,
        /// n.
        members: u16,
    },
    /// Fewer operators than the threshold; the user does not count.
    #[error("{operators} operators cannot sign, {threshold} are needed")]
    TooFewOperators {
        /// Operators in the package.
        operators: usize,
        /// t.
        threshold: u16,
    },
    /// An operator outside the federation.
    #[error("operator {} is not in the federation", .0.get())]
    UnknownOperator(OperatorIndex),
    /// Coefficients or key context of another package.
    #[error("prepared values belong to another key or operator set")]
    Prepared,
    /// A sum of points is the point at infinity.
    #[error("nonce commitments or keys cancel out")]
    Identity,
}

/// Public half of a nonce pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Commitment {
    /// D.
    pub hiding: PublicKey,
    /// E.
    pub binding: PublicKey,
}

impl Commitment {
    /// Two compressed points of 33 bytes.
    pub fn parse(hiding: &[u8], binding: &[u8]) -> Result<Self, PointError> {
        Ok(Self {
            hiding: point::parse("hiding commitment", hiding)?,
            binding: point::parse("binding commitment", binding)?,
        })
    }

    /// D ‖ E, 33 bytes each.
    pub fn to_bytes(&self) -> [u8; 66] {
        let mut bytes = [0u8; 66];
        bytes[..33].copy_from_slice(&self.hiding.serialize());
        bytes[33..].copy_from_slice(&self.binding.serialize());
        bytes
    }
}

/// Everything a signature share depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningPackage {
    verifying_key: PublicKey,
    message: [u8; 32],
    operators: BTreeMap<OperatorIndex, Commitment>,
    user: Option<Commitment>,
    adaptor: Option<PublicKey>,
}

impl SigningPackage {
    /// `verifying_key` is P with its parity, taken from own records and never from a request: a share for P and
    /// one for −P under one nonce reveal the key share. `threshold` and `n` come from the federation file.
    /// `user` is absent only where P is the operators' key alone. An adaptor point must have been decoded by
    /// [`crate::point::parse`]; one that does not decode is an error, not an absence.
    pub fn new(
        verifying_key: PublicKey,
        message: [u8; 32],
        operators: BTreeMap<OperatorIndex, Commitment>,
        user: Option<Commitment>,
        adaptor: Option<PublicKey>,
        threshold: u16,
        n: u16,
    ) -> Result<Self, PackageError> {
        if threshold == 0 || threshold > n {
            return Err(PackageError::Parameters { threshold, members: n });
        }
        if operators.len() < usize::from(threshold) {
            return Err(PackageError::TooFewOperators { operators: operators.len(), threshold });
        }
        if let Some(stranger) = operators.keys().find(|index| index.get() >= n) {
            return Err(PackageError::UnknownOperator(*stranger));
        }
        Ok(Self { verifying_key, message, operators, user, adaptor })
    }

    /// P.
    pub const fn verifying_key(&self) -> &PublicKey {
        &self.verifying_key
    }

    /// The message, 32 bytes.
    pub const fn message(&self) -> &[u8; 32] {
        &self.message
    }

    /// The operators that sign and their commitments.
    pub const fn operators(&self) -> &BTreeMap<OperatorIndex, Commitment> {
        &self.operators
    }

    /// The user's commitment.
    pub const fn user(&self) -> Option<&Commitment> {
        self.user.as_ref()
    }

    /// The adaptor point.
    pub const fn adaptor(&self) -> Option<&PublicKey> {
        self.adaptor.as_ref()
    }

    /// Binds every field of the package: key with parity, message, operators and commitments, the user's or its
    /// absence, adaptor point or its absence. Two packages with equal digests are the same job.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"spark/frost/package/v1");
        hash.update(self.verifying_key.serialize());
        hash.update(self.message);
        hash.update((self.operators.len() as u64).to_be_bytes());
        for (index, commitment) in &self.operators {
            hash.update(index.identifier());
            hash.update(commitment.to_bytes());
        }
        hash.update([u8::from(self.user.is_some())]);
        if let Some(user) = &self.user {
            hash.update(user.to_bytes());
        }
        hash.update([u8::from(self.adaptor.is_some())]);
        if let Some(adaptor) = &self.adaptor {
            hash.update(adaptor.serialize());
        }
        hash.finalize().into()
    }

    /// Computes what all shares of this package have in common.
    pub fn session(&self) -> Result<Session, PackageError> {
        Session::new(self)
    }

    /// As [`Self::session`], with values that stay the same per key and per operator set.
    pub fn session_with(
        &self,
        key: &KeyContext,
        coefficients: &Coefficients,
    ) -> Result<Session, PackageError> {
        Session::with(self, key, coefficients)
    }
}
