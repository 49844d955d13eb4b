//! Values that all shares of one package have in common.

use std::collections::BTreeMap;

use bitcoin::secp256k1::{Parity, PublicKey, SECP256K1, XOnlyPublicKey};
use k256::Scalar;

use super::{
    USER_IDENTIFIER, hash,
    key::KeyContext,
    lagrange::Coefficients,
    package::{Commitment, PackageError, SigningPackage},
    scalar::{signed, to_secp},
    share::SignatureShare,
};
use crate::ids::OperatorIndex;

/// A share that its key did not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// The package does not name this participant.
    #[error("not a participant of the package")]
    NotAParticipant,
    /// The share's equation does not hold.
    #[error("signature share is invalid")]
    Invalid,
}

/// One participant's equation: `z = ±(d + ρe) + a·s + b`, where `a` carries λ, c and the parities of the keys
/// and `b` the taproot tweak (operators only).
#[derive(Debug, Clone, Copy)]
pub struct SigningTerms {
    commitment: Commitment,
    binding_factor: Scalar,
    key_factor: Scalar,
    constant: Scalar,
    negate_nonce: bool,
}

impl SigningTerms {
    /// The nonce commitment that the package holds for this participant.
    pub const fn commitment(&self) -> &Commitment {
        &self.commitment
    }

    /// ρ.
    pub const fn binding_factor(&self) -> &Scalar {
        &self.binding_factor
    }

    /// a.
    pub const fn key_factor(&self) -> &Scalar {
        &self.key_factor
    }

    /// b.
    pub const fn constant(&self) -> &Scalar {
        &self.constant
    }

    /// Whether the nonces are negated because R (or R + T) is odd.
    pub const fn negate_nonce(&self) -> bool {
        self.negate_nonce
    }

    /// `z·G = ±(D + ρE) + a·Y + b·G`, arranged for one multiplication of a point.
    fn holds(&self, share: &SignatureShare, nonce: &PublicKey, public_share: &PublicKey) -> bool {
        // ±(z − b)·G ∓ a·Y = D + ρE
        let response = signed(share.scalar() - &self.constant, self.negate_nonce);
        let factor = signed(-self.key_factor, self.negate_nonce);
        let left = public_share
            .mul_tweak(SECP256K1, &to_secp(&factor))
            .and_then(|key| key.add_exp_tweak(SECP256K1, &to_secp(&response)));
        left.is_ok_and(|left| left == *nonce)
    }
}

#[derive(Debug, Clone)]
struct Participant {
    commitment: Commitment,
    binding_factor: Scalar,
    nonce: NonceShare,
    lambda: Scalar,
}

/// A participant's part of R. Sums are put off until all points are added at once.
#[derive(Debug, Clone)]
enum NonceShare {
    /// ρ·E, still to be added to D.
    Bound(PublicKey),
    /// D + ρ·E.
    Sum(PublicKey),
}

impl Participant {
    fn points(&self) -> impl Iterator<Item = &PublicKey> {
        let (first, second) = match &self.nonce {
            NonceShare::Bound(bound) => (&self.commitment.hiding, Some(bound)),
            NonceShare::Sum(sum) => (sum, None),
        };
        std::iter::once(first).chain(second)
    }

    fn nonce_sum(&self) -> Option<PublicKey> {
        match &self.nonce {
            NonceShare::Bound(bound) => self.commitment.hiding.combine(bound).ok(),
            NonceShare::Sum(sum) => Some(*sum),
        }
    }
}

/// Binding factors, group commitment, challenge and coefficients of a package.
#[derive(Debug, Clone)]
pub struct Session {
    message: [u8; 32],
    binding_prefix: [u8; 97],
    key: KeyContext,
    operators: BTreeMap<OperatorIndex, Participant>,
    user: Option<Participant>,
    adaptor: Option<PublicKey>,
    group_commitment: PublicKey,
    challenge: Scalar,
}

impl Session {
    /// Fails if R, or R + T, is the point at infinity.
    pub fn new(package: &SigningPackage) -> Result<Self, PackageError> {
        let key = KeyContext::new(*package.verifying_key())?;
        Self::with(package, &key, &Coefficients::of(package.operators().keys().copied()))
    }

    /// As [`Self::new`] with the values cached per key and per operator set; refuses those of another.
    pub fn with(
        package: &SigningPackage,
        key: &KeyContext,
        coefficients: &Coefficients,
    ) -> Result<Self, PackageError> {
        Self::compute(package, key, coefficients, |_, _| None)
    }

    /// As [`Self::with`] for a signer, who knows the nonces of `me`: `nonce_sum` gives D + ρ·E for ρ by a
    /// multiplication of the base point, which is cheaper than that of E.
    pub fn with_own_nonce(
        package: &SigningPackage,
        key: &KeyContext,
        coefficients: &Coefficients,
        me: OperatorIndex,
        nonce_sum: impl Fn(&Scalar) -> Option<PublicKey>,
    ) -> Result<Self, PackageError> {
        let me = me.identifier();
        Self::compute(package, key, coefficients, |identifier, factor| {
            (*identifier == me).then(|| nonce_sum(factor)).flatten()
        })
    }

    fn compute(
        package: &SigningPackage,
        key: &KeyContext,
        coefficients: &Coefficients,
        known: impl Fn(&[u8; 32], &Scalar) -> Option<PublicKey>,
    ) -> Result<Self, PackageError> {
        if key.verifying_key() != package.verifying_key()
            || !coefficients.covers(package.operators().keys().copied())
        {
            return Err(PackageError::Prepared);
        }
        let prefix = binding_prefix(package, key);
        let bind = |identifier: &[u8; 32], commitment: &Commitment, lambda: Scalar| {
            let binding_factor = hash::binding_factor(&prefix, identifier);
            let nonce = match known(identifier, &binding_factor) {
                Some(sum) => NonceShare::Sum(sum),
                None => NonceShare::Bound(
                    commitment
                        .binding
                        .mul_tweak(SECP256K1, &to_secp(&binding_factor))
                        .map_err(|_| PackageError::Identity)?,
                ),
            };
            Ok(Participant { commitment: *commitment, binding_factor, nonce, lambda })
        };
        let mut operators = BTreeMap::new();
        for (index, commitment) in package.operators() {
            let lambda = coefficients.get(*index).ok_or(PackageError::Prepared)?;
            operators.insert(*index, bind(&index.identifier(), commitment, *lambda)?);
        }
        let user =
            package.user().map(|commitment| bind(&USER_IDENTIFIER, commitment, Scalar::ONE)).transpose()?;

        let points: Vec<&PublicKey> =
            operators.values().chain(&user).flat_map(Participant::points).chain(package.adaptor()).collect();
        let group_commitment = PublicKey::combine_keys(&points).map_err(|_| PackageError::Identity)?;
        let (r, _) = group_commitment.x_only_public_key();
        let challenge = hash::challenge(&r.serialize(), &key.output_key().serialize(), package.message());
        Ok(Self {
            message: *package.message(),
            binding_prefix: prefix,
            key: *key,
            operators,
            user,
            adaptor: package.adaptor().copied(),
            group_commitment,
            challenge,
        })
    }

    /// The message, 32 bytes.
    pub const fn message(&self) -> &[u8; 32] {
        &self.message
    }

    /// Q, under which the signature verifies.
    pub const fn output_key(&self) -> XOnlyPublicKey {
        self.key.output_key()
    }

    /// What every binding factor hashes before the participant's identifier.
    pub const fn binding_prefix(&self) -> &[u8; 97] {
        &self.binding_prefix
    }

    /// R, or R + T in an adaptor session.
    pub const fn group_commitment(&self) -> &PublicKey {
        &self.group_commitment
    }

    /// The adaptor point.
    pub const fn adaptor(&self) -> Option<&PublicKey> {
        self.adaptor.as_ref()
    }

    /// The BIP340 challenge, 32 bytes big-endian.
    pub fn challenge(&self) -> [u8; 32] {
        self.challenge.to_bytes().into()
    }

    /// The operators that sign.
    pub fn operators(&self) -> impl Iterator<Item = OperatorIndex> + '_ {
        self.operators.keys().copied()
    }

    /// Whether the user signs.
    pub const fn has_user(&self) -> bool {
        self.user.is_some()
    }

    /// λ of an operator, 32 bytes big-endian.
    pub fn lambda(&self, index: OperatorIndex) -> Option<[u8; 32]> {
        self.operators.get(&index).map(|p| p.lambda.to_bytes().into())
    }

    /// The equation of one operator.
    pub fn operator_terms(&self, index: OperatorIndex) -> Option<SigningTerms> {
        let participant = self.operators.get(&index)?;
        let weight = signed(participant.lambda * self.challenge, self.key.output_odd);
        Some(self.terms(participant, signed(weight, self.key.key_odd), weight * self.key.tweak))
    }

    /// The equation of the user.
    pub fn user_terms(&self) -> Option<SigningTerms> {
        let participant = self.user.as_ref()?;
        let key_factor = signed(self.challenge, self.key.output_odd != self.key.key_odd);
        Some(self.terms(participant, key_factor, Scalar::ZERO))
    }

    fn terms(&self, participant: &Participant, key_factor: Scalar, constant: Scalar) -> SigningTerms {
        SigningTerms {
            commitment: participant.commitment,
            binding_factor: participant.binding_factor,
            key_factor,
            constant,
            negate_nonce: self.commitment_odd(),
        }
    }

    /// Verifies an operator's share against its public key share.
    pub fn verify_operator_share(
        &self,
        index: OperatorIndex,
        public_share: &PublicKey,
        share: &SignatureShare,
    ) -> Result<(), ShareError> {
        let participant = self.operators.get(&index).ok_or(ShareError::NotAParticipant)?;
        let terms = self.operator_terms(index).ok_or(ShareError::NotAParticipant)?;
        let nonce = participant.nonce_sum().ok_or(ShareError::Invalid)?;
        terms.holds(share, &nonce, public_share).then_some(()).ok_or(ShareError::Invalid)
    }

    /// Verifies the user's share against the user's key of the leaf.
    pub fn verify_user_share(&self, user_key: &PublicKey, share: &SignatureShare) -> Result<(), ShareError> {
        let participant = self.user.as_ref().ok_or(ShareError::NotAParticipant)?;
        let terms = self.user_terms().ok_or(ShareError::NotAParticipant)?;
        let nonce = participant.nonce_sum().ok_or(ShareError::Invalid)?;
        terms.holds(share, &nonce, user_key).then_some(()).ok_or(ShareError::Invalid)
    }

    pub(super) fn commitment_odd(&self) -> bool {
        self.group_commitment.x_only_public_key().1 == Parity::Odd
    }

    pub(super) const fn challenge_scalar(&self) -> &Scalar {
        &self.challenge
    }

    pub(super) fn nonce_points(&self) -> impl Iterator<Item = &PublicKey> {
        self.operators.values().chain(&self.user).flat_map(Participant::points)
    }
}

/// What every binding factor hashes before the identifier: enc(Q) ‖ H4(message) ‖ H5(commitment list).
fn binding_prefix(package: &SigningPackage, key: &KeyContext) -> [u8; 97] {
    let mut list = Vec::with_capacity((package.operators().len() + 1) * 98);
    for (index, commitment) in package.operators() {
        list.extend_from_slice(&index.identifier());
        list.extend_from_slice(&commitment.to_bytes());
    }
    if let Some(user) = package.user() {
        list.extend_from_slice(&USER_IDENTIFIER);
        list.extend_from_slice(&user.to_bytes());
    }
    let mut prefix = [0u8; 97];
    // Q is even by construction.
    prefix[0] = 0x02;
    prefix[1..33].copy_from_slice(&key.output_key().serialize());
    prefix[33..65].copy_from_slice(&hash::message(package.message()));
    prefix[65..].copy_from_slice(&hash::commitments(&list));
    prefix
}
