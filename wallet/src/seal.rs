//! Sealing for operators and receivers, opening what is sent to this wallet: ECIES over secp256k1.

use bitcoin::secp256k1::PublicKey;
use rand::rngs::OsRng;
use spark_signer::ecies::{self, EciesError};
use zeroize::Zeroizing;

use crate::keys::SigningKey;

/// Seals for the holder of `recipient`.
pub(crate) fn seal(recipient: &PublicKey, plain: &[u8]) -> Result<Vec<u8>, EciesError> {
    ecies::seal(recipient, plain, &mut OsRng)
}

/// Opens with this wallet's identity key.
pub(crate) fn open(identity: &SigningKey, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, EciesError> {
    ecies::Envelope::parse(sealed)?.open(identity.secret())
}
