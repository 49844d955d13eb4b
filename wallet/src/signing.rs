//! The user's half of signatures: nonces live for one call, between the operators' commitments and the share.

use std::collections::BTreeMap;

use bitcoin::{consensus::encode, secp256k1::PublicKey};
use rand::rngs::OsRng;
use spark_proto::{
    common::SigningCommitment,
    spark::{InputSigningData, RequestedSigningCommitments, SigningCommitments, UserSignedTxSigningJob},
};
use spark_rules::{
    federation::Federation,
    frost::{Commitment, PackageError, SigningPackage},
    ids::{IdError, OperatorIndex},
    point::PointError,
    tx::{Planned, SighashError, sighash},
};
use spark_signer::frost::{NoncePair, SignError, sign_user};

use crate::keys::SigningKey;

/// A share that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SigningError {
    /// Fewer commitment sets than asked for.
    #[error("the operator returned too few nonce commitments")]
    TooFew,
    /// A commitment is no pair of points.
    #[error(transparent)]
    Point(#[from] PointError),
    /// A commitment of a stranger.
    #[error(transparent)]
    Operator(#[from] IdError),
    /// The set of signers is not one of this federation.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The transaction cannot be hashed.
    #[error(transparent)]
    Sighash(#[from] SighashError),
    /// The share cannot be computed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Commitment sets as the operators sent them, each used for one signature.
#[derive(Debug)]
pub(crate) struct CommitmentSets(std::vec::IntoIter<RequestedSigningCommitments>);

impl CommitmentSets {
    /// Sets in the order of the answer.
    pub(crate) fn new(sets: Vec<RequestedSigningCommitments>) -> Self {
        Self(sets.into_iter())
    }

    /// `kinds` lists of `leaves` sets: the answer's index is kind × leaves + leaf.
    pub(crate) fn by_leaf(
        sets: Vec<RequestedSigningCommitments>,
        kinds: usize,
        leaves: usize,
    ) -> Result<Vec<Self>, SigningError> {
        if leaves == 0 || kinds.checked_mul(leaves) != Some(sets.len()) {
            return Err(SigningError::TooFew);
        }
        let mut by_leaf: Vec<Vec<RequestedSigningCommitments>> = vec![Vec::with_capacity(kinds); leaves];
        for (i, set) in sets.into_iter().enumerate() {
            by_leaf.get_mut(i % leaves).ok_or(SigningError::TooFew)?.push(set);
        }
        Ok(by_leaf.into_iter().map(Self::new).collect())
    }

    fn take(&mut self) -> Result<RequestedSigningCommitments, SigningError> {
        self.0.next().ok_or(SigningError::TooFew)
    }
}

/// One transaction with this wallet's share of each input's signature; a connector is somebody else's to sign.
pub(crate) fn job(
    leaf_id: &str,
    planned: &Planned,
    key: &SigningKey,
    verifying_key: &PublicKey,
    sets: &mut CommitmentSets,
    federation: &Federation,
) -> Result<UserSignedTxSigningJob, SigningError> {
    let prevouts = planned.template.prevouts();
    let mut parts = Vec::with_capacity(prevouts.len());
    for input in 0..planned.template.inputs().len() {
        let message = sighash(&planned.tx, &prevouts, input)?;
        parts.push(share(message, key, verifying_key, sets.take()?, federation)?);
    }
    let mut parts = parts.into_iter();
    let first = parts.next().ok_or(SigningError::TooFew)?;
    Ok(UserSignedTxSigningJob {
        leaf_id: leaf_id.to_owned(),
        signing_public_key: key.public_key().serialize().to_vec(),
        raw_tx: encode::serialize(&planned.tx),
        signing_nonce_commitment: first.signing_nonce_commitment,
        user_signature: first.user_signature,
        signing_commitments: first.signing_commitments,
        additional_inputs: parts.collect(),
    })
}

fn share(
    message: [u8; 32],
    key: &SigningKey,
    verifying_key: &PublicKey,
    set: RequestedSigningCommitments,
    federation: &Federation,
) -> Result<InputSigningData, SigningError> {
    let operators = set
        .signing_nonce_commitments
        .iter()
        .map(|(id, c)| Ok((OperatorIndex::from_identifier(id)?, Commitment::parse(&c.hiding, &c.binding)?)))
        .collect::<Result<BTreeMap<_, _>, SigningError>>()?;
    let nonce = NoncePair::generate(&mut OsRng, Some(key.secret()));
    let user = *nonce.commitment();
    let package = SigningPackage::new(
        *verifying_key,
        message,
        operators,
        Some(user),
        None,
        federation.threshold(),
        federation.size(),
    )?;
    let share = sign_user(&package.session()?, nonce, key.secret())?;
    Ok(InputSigningData {
        signing_nonce_commitment: Some(SigningCommitment {
            hiding: user.hiding.serialize().to_vec(),
            binding: user.binding.serialize().to_vec(),
        }),
        user_signature: share.to_bytes().to_vec(),
        signing_commitments: Some(SigningCommitments { signing_commitments: set.signing_nonce_commitments }),
    })
}
