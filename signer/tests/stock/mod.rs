//! The same protocol composed of the stock crates' calls, bytes to bytes: the reference that the fast path is
//! compared with, in results by the tests and in time by the benchmark.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BTreeSet};

use frost_core::CheaterDetection;
use frost_secp256k1_tr::{
    Ciphersuite as _, Group as _, GroupCommitment, Identifier, Secp256K1Group, Secp256K1Sha256TR as Suite,
    SigningPackage, VerifyingKey,
    keys::{EvenY as _, KeyPackage, PublicKeyPackage, SigningShare, Tweak as _, VerifyingShare},
    round1::{NonceCommitment, SigningCommitments, SigningNonces},
    round2::SignatureShare,
};

/// A commitment's wire bytes.
pub(crate) type PairBytes = ([u8; 33], [u8; 33]);

/// A signing job as it arrives.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) verifying_key: [u8; 33],
    pub(crate) message: [u8; 32],
    /// By operator index.
    pub(crate) operators: BTreeMap<u16, PairBytes>,
    pub(crate) user: Option<PairBytes>,
    pub(crate) adaptor: Option<[u8; 33]>,
}

/// One signer's secrets as stored: key share and nonces.
#[derive(Clone)]
pub(crate) struct Secrets {
    pub(crate) share: [u8; 32],
    pub(crate) public_share: [u8; 33],
    pub(crate) hiding: [u8; 32],
    pub(crate) binding: [u8; 32],
}

pub(crate) fn identifier(index: u16) -> Identifier {
    Identifier::try_from(index + 1).unwrap()
}

pub(crate) fn user_identifier() -> Identifier {
    Identifier::derive(b"user").unwrap()
}

fn commitments((hiding, binding): &PairBytes) -> SigningCommitments {
    SigningCommitments::new(
        NonceCommitment::deserialize(hiding).unwrap(),
        NonceCommitment::deserialize(binding).unwrap(),
    )
}

fn package(job: &Job) -> SigningPackage {
    let operators = job.operators.iter().map(|(index, pair)| (identifier(*index), commitments(pair)));
    let user = job.user.iter().map(|pair| (user_identifier(), commitments(pair)));
    SigningPackage::new(operators.chain(user).collect(), &job.message)
}

pub(crate) fn sign_operator(job: &Job, me: u16, secrets: &Secrets) -> [u8; 32] {
    let me = identifier(me);
    let set: BTreeSet<Identifier> = job.operators.keys().map(|index| identifier(*index)).collect();
    let lambda = frost_core::compute_lagrange_coefficient::<Suite>(&set, None, me).unwrap();
    sign(job, me, secrets, lambda, true)
}

pub(crate) fn sign_user(job: &Job, secrets: &Secrets) -> [u8; 32] {
    sign(job, user_identifier(), secrets, k256::Scalar::ONE, false)
}

fn sign(job: &Job, me: Identifier, secrets: &Secrets, lambda: k256::Scalar, operator: bool) -> [u8; 32] {
    let nonces = SigningNonces::from_nonces(
        frost_core::round1::Nonce::deserialize(&secrets.hiding).unwrap(),
        frost_core::round1::Nonce::deserialize(&secrets.binding).unwrap(),
    );
    let package = package(job);
    let key = KeyPackage::new(
        me,
        SigningShare::deserialize(&secrets.share).unwrap(),
        VerifyingShare::deserialize(&secrets.public_share).unwrap(),
        VerifyingKey::deserialize(&job.verifying_key).unwrap(),
        1,
    );
    let key = if operator {
        key.tweak(Some(&[])).into_even_y(None)
    } else {
        // The user's share follows the parities but carries no tweak.
        let key = key.into_even_y(None);
        let tweaked = key.clone().tweak(Some(&[]));
        let moved =
            KeyPackage::new(me, *key.signing_share(), *key.verifying_share(), *tweaked.verifying_key(), 1);
        moved.into_even_y(None)
    };
    let factors = frost_core::compute_binding_factor_list(&package, key.verifying_key(), &[]).unwrap();
    let commitment = group_commitment(job, &package, &factors);
    let challenge =
        Suite::challenge(&commitment.clone().to_element(), key.verifying_key(), &job.message).unwrap();
    let factor = factors.get(&me).unwrap().clone();
    let share = Suite::compute_signature_share(&commitment, &nonces, factor, lambda, &key, challenge);
    share.serialize().try_into().unwrap()
}

fn group_commitment(
    job: &Job,
    package: &SigningPackage,
    factors: &frost_core::BindingFactorList<Suite>,
) -> GroupCommitment<Suite> {
    let commitment = frost_core::compute_group_commitment(package, factors).unwrap();
    match &job.adaptor {
        None => commitment,
        Some(adaptor) => {
            let adaptor = Secp256K1Group::deserialize(adaptor).unwrap();
            GroupCommitment::from_element(commitment.to_element() + adaptor)
        }
    }
}

/// A plain session's signature, verified by the stock crate.
pub(crate) fn aggregate(
    job: &Job,
    shares: &BTreeMap<u16, [u8; 32]>,
    user_share: Option<&[u8; 32]>,
    public_shares: &BTreeMap<u16, [u8; 33]>,
    user_key: Option<&[u8; 33]>,
) -> [u8; 64] {
    let package = package(job);
    let public = public_shares
        .iter()
        .map(|(index, bytes)| (identifier(*index), VerifyingShare::deserialize(bytes).unwrap()))
        .chain(user_key.map(|bytes| (user_identifier(), VerifyingShare::deserialize(bytes).unwrap())))
        .collect();
    let keys = PublicKeyPackage::new(public, VerifyingKey::deserialize(&job.verifying_key).unwrap(), None)
        .tweak(Some(&[]));
    let shares: BTreeMap<Identifier, SignatureShare> = shares
        .iter()
        .map(|(index, bytes)| (identifier(*index), SignatureShare::deserialize(bytes).unwrap()))
        .chain(user_share.map(|bytes| (user_identifier(), SignatureShare::deserialize(bytes).unwrap())))
        .collect();
    let signature =
        frost_core::aggregate_custom(&package, &shares, &keys, CheaterDetection::Disabled).unwrap();
    signature.serialize().unwrap().try_into().unwrap()
}
