//! Round-1 packages: commitments to a polynomial and a proof of knowledge of its constant term.

use bitcoin::secp256k1::{Parity, PublicKey, SECP256K1};
use frost_secp256k1_tr::{self as stock, Group as _};
use k256::{ProjectivePoint, Scalar, elliptic_curve::PrimeField as _};
use rand_core::{CryptoRng, RngCore};
use spark_rules::{
    feldman::Proofs,
    frost::{dkg_challenge, to_secp},
    ids::OperatorIndex,
    point,
};
use zeroize::Zeroizing;

use crate::secret::SecretScalar;

/// Commitments and Schnorr proof (R, z) of one key; on the wire t × 33 bytes ‖ R (33) ‖ z (32).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round1Package {
    commitments: Proofs,
    nonce: PublicKey,
    response: Scalar,
}

impl Round1Package {
    /// Proves knowledge of the constant term; none if there is no coefficient.
    pub(super) fn prove(
        rng: &mut (impl RngCore + CryptoRng),
        me: OperatorIndex,
        polynomial: &[SecretScalar],
    ) -> Option<Self> {
        let threshold = u16::try_from(polynomial.len()).ok()?;
        let points = polynomial.iter().map(SecretScalar::public_key).collect();
        let commitments = Proofs::from_points(points, threshold).ok()?;
        let constant = polynomial.first()?;
        let nonce = SecretScalar::random(rng);
        let mut nonce_point = nonce.public_key();
        let mut k = Zeroizing::new(*nonce.scalar());
        // The stock suite makes R even, as BIP340 encodings would. R is public, so the branch reveals nothing.
        if nonce_point.x_only_public_key().1 == Parity::Odd {
            nonce_point = nonce_point.negate(SECP256K1);
            *k = -*k;
        }
        let challenge =
            dkg_challenge(&me.identifier(), &commitments.constant().serialize(), &nonce_point.serialize());
        let response = *k + constant.scalar() * &challenge;
        Some(Self { commitments, nonce: nonce_point, response })
    }

    /// Exactly `threshold` × 33 + 65 bytes; every point compressed, z canonical.
    pub fn parse(bytes: &[u8], threshold: u16) -> Option<Self> {
        let (points, proof) = bytes.split_at_checked(usize::from(threshold) * 33)?;
        let (nonce, response) = proof.split_at_checked(33)?;
        let response = <[u8; 32]>::try_from(response).ok()?;
        let points: Vec<&[u8]> = points.chunks_exact(33).collect();
        Some(Self {
            commitments: Proofs::parse(&points, threshold).ok()?,
            nonce: point::parse("nonce of the proof of knowledge", nonce).ok()?,
            response: Option::from(Scalar::from_repr(response.into()))?,
        })
    }

    /// The wire form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.commitments.points().iter().flat_map(PublicKey::serialize).collect();
        bytes.extend_from_slice(&self.nonce.serialize());
        bytes.extend_from_slice(&self.response.to_bytes());
        bytes
    }

    /// Commitments to the polynomial.
    pub const fn commitments(&self) -> &Proofs {
        &self.commitments
    }

    /// Checks the proof of knowledge as made by `sender`: `R = z·G − c·F_0`.
    pub fn verify(&self, sender: OperatorIndex) -> bool {
        let constant = self.commitments.constant();
        let challenge = dkg_challenge(&sender.identifier(), &constant.serialize(), &self.nonce.serialize());
        constant
            .mul_tweak(SECP256K1, &to_secp(&-challenge))
            .and_then(|key| key.add_exp_tweak(SECP256K1, &to_secp(&self.response)))
            .is_ok_and(|nonce| nonce == self.nonce)
    }

    /// As the package of frost-secp256k1-tr.
    pub fn to_stock(&self) -> Result<stock::keys::dkg::round1::Package, stock::Error> {
        let points = self.commitments.points().iter().map(PublicKey::serialize);
        let commitment = stock::keys::VerifiableSecretSharingCommitment::deserialize(points)?;
        let nonce: ProjectivePoint = stock::Secp256K1Group::deserialize(&self.nonce.serialize())?;
        Ok(stock::keys::dkg::round1::Package::new(commitment, stock::Signature::new(nonce, self.response)))
    }

    /// From the package of frost-secp256k1-tr; none if it is not of this threshold.
    pub fn from_stock(package: &stock::keys::dkg::round1::Package, threshold: u16) -> Option<Self> {
        let mut bytes: Vec<u8> = package.commitment().serialize().ok()?.concat();
        let proof = package.proof_of_knowledge();
        bytes.extend_from_slice(&stock::Secp256K1Group::serialize(proof.R()).ok()?);
        bytes.extend_from_slice(&proof.z().to_bytes());
        Self::parse(&bytes, threshold)
    }
}
