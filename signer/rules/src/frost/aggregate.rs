//! From shares to a signature, or to the names of those who spoiled it.

use std::collections::BTreeMap;

use bitcoin::secp256k1::{Message, PublicKey, SECP256K1, schnorr::Signature};
use k256::Scalar;

use super::{adaptor::PreSignature, session::Session, share::SignatureShare};
use crate::ids::OperatorIndex;

/// Those whose shares do not verify.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Culprits {
    /// Operators, ascending.
    pub operators: Vec<OperatorIndex>,
    /// The user.
    pub user: bool,
}

/// Shares that give no signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AggregateError {
    /// Shares are not exactly those of the package's participants.
    #[error("shares and participants differ")]
    Participants,
    /// An adaptor session gives a pre-signature, a plain one a signature.
    #[error("session is of the other kind, adaptor or plain")]
    Kind,
    /// No public share or user key is known for a participant, so blame cannot be assigned.
    #[error("signature is invalid and a participant's public key is unknown")]
    UnknownKey,
    /// These participants sent invalid shares.
    #[error("invalid signature shares: operators {:?}, user {}", .0.operators, .0.user)]
    Culprits(Culprits),
    /// Every share verifies yet the sum does not: the public shares do not belong to the verifying key.
    #[error("public shares do not belong to the verifying key")]
    Inconsistent,
}

impl Session {
    /// The BIP340 signature, 64 bytes, verified under Q. On failure names exactly those whose share is invalid.
    pub fn aggregate(
        &self,
        operator_shares: &BTreeMap<OperatorIndex, SignatureShare>,
        user_share: Option<&SignatureShare>,
        public_shares: impl Fn(OperatorIndex) -> Option<PublicKey>,
        user_key: Option<&PublicKey>,
    ) -> Result<[u8; 64], AggregateError> {
        if self.adaptor().is_some() {
            return Err(AggregateError::Kind);
        }
        let signature = signature_bytes(&self.r(), &self.sum(operator_shares, user_share)?);
        if verifies(self, &signature) {
            return Ok(signature);
        }
        Err(self.blame(operator_shares, user_share, public_shares, user_key))
    }

    /// The pre-signature of an adaptor session, verified by its own equation. Blames as [`Self::aggregate`].
    pub fn aggregate_adaptor(
        &self,
        operator_shares: &BTreeMap<OperatorIndex, SignatureShare>,
        user_share: Option<&SignatureShare>,
        public_shares: impl Fn(OperatorIndex) -> Option<PublicKey>,
        user_key: Option<&PublicKey>,
    ) -> Result<PreSignature, AggregateError> {
        let adaptor = self.adaptor().ok_or(AggregateError::Kind)?;
        let sum = self.sum(operator_shares, user_share)?;
        PreSignature::verified(self, adaptor, sum)
            .ok_or_else(|| self.blame(operator_shares, user_share, public_shares, user_key))
    }

    fn sum(
        &self,
        operator_shares: &BTreeMap<OperatorIndex, SignatureShare>,
        user_share: Option<&SignatureShare>,
    ) -> Result<Scalar, AggregateError> {
        if !self.operators().eq(operator_shares.keys().copied()) || self.has_user() != user_share.is_some() {
            return Err(AggregateError::Participants);
        }
        Ok(operator_shares.values().chain(user_share).fold(Scalar::ZERO, |sum, share| sum + share.scalar()))
    }

    fn blame(
        &self,
        operator_shares: &BTreeMap<OperatorIndex, SignatureShare>,
        user_share: Option<&SignatureShare>,
        public_shares: impl Fn(OperatorIndex) -> Option<PublicKey>,
        user_key: Option<&PublicKey>,
    ) -> AggregateError {
        let mut culprits = Culprits::default();
        for (index, share) in operator_shares {
            let Some(public_share) = public_shares(*index) else { return AggregateError::UnknownKey };
            if self.verify_operator_share(*index, &public_share, share).is_err() {
                culprits.operators.push(*index);
            }
        }
        if let Some(share) = user_share {
            let Some(key) = user_key else { return AggregateError::UnknownKey };
            culprits.user = self.verify_user_share(key, share).is_err();
        }
        if culprits == Culprits::default() {
            AggregateError::Inconsistent
        } else {
            AggregateError::Culprits(culprits)
        }
    }

    pub(super) fn r(&self) -> [u8; 32] {
        self.group_commitment().x_only_public_key().0.serialize()
    }
}

pub(super) fn signature_bytes(r: &[u8; 32], z: &Scalar) -> [u8; 64] {
    let mut bytes = [0u8; 64];
    bytes[..32].copy_from_slice(r);
    bytes[32..].copy_from_slice(&z.to_bytes());
    bytes
}

pub(super) fn verifies(session: &Session, signature: &[u8; 64]) -> bool {
    Signature::from_slice(signature).is_ok_and(|signature| {
        let message = Message::from_digest(*session.message());
        SECP256K1.verify_schnorr(&signature, &message, &session.output_key()).is_ok()
    })
}
