//! What a ceremony made, signed by the federation key made in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use spark_rules::federation_key::FederationKey;
use spark_signer::vault::{Token, TokenError};

use crate::token::{
    DeviceConfig, DeviceInventory, Facts, LibraryInfo, ObjectInfo, Profile, Purpose, TokenInfo,
};

/// Form of the file.
pub(super) const VERSION: u16 = 1;
/// Starts what is signed, so that it is no statement of another kind.
const DOMAIN: &[u8] = b"spark/signer/ceremony/v1\n";

/// Why a transcript is refused.
#[derive(Debug, thiserror::Error)]
pub enum TranscriptError {
    /// Not JSON of the expected form.
    #[error("transcript: {0}")]
    Form(#[from] serde_json::Error),
    /// A form that this program does not know.
    #[error("transcript has version {0}")]
    Version(u16),
    /// A value that is no key or signature.
    #[error("transcript: {0:?} is malformed")]
    Malformed(Field),
    /// Not signed by the federation key that it names.
    #[error("transcript's signature does not verify")]
    Signature,
    /// The token does not sign.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// A field that is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `federation_public_key`.
    FederationKey,
    /// `signature`.
    Signature,
}

/// A property of the profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Property.
    pub cell: String,
    /// Its value.
    pub value: String,
    /// "verified", "documented" or "unverified".
    pub mark: String,
}

pub(super) fn cells(profile: &Profile) -> Vec<Cell> {
    profile
        .cells()
        .into_iter()
        .map(|(cell, value, mark)| Cell { cell: cell.to_owned(), value, mark: mark.as_str().to_owned() })
        .collect()
}

/// A device for roots beyond the first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeDevice {
    /// Vendor profile.
    pub profile: String,
    /// Its properties, and how sure they are.
    pub cells: Vec<Cell>,
    /// What the operator stated of it.
    pub facts: Facts,
    /// What destroying a root means on it, after these facts.
    pub delete_claim: String,
    /// What was made, as it reports it.
    pub made: DeviceInventory,
}

impl MadeDevice {
    pub(super) fn new(config: &DeviceConfig, made: DeviceInventory) -> Self {
        Self {
            profile: config.profile.name.to_owned(),
            cells: cells(&config.profile),
            facts: config.facts,
            delete_claim: config.profile.delete_claim.as_str().to_owned(),
            made,
        }
    }
}

/// What others need to know of the new signer. Its JSON, without white space and in this order, is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    /// Form of the file.
    pub version: u16,
    /// Index of the operator.
    pub operator: u16,
    /// secp256k1, 33 bytes hex.
    pub identity_public_key: String,
    /// "generated" or "imported".
    pub identity_method: String,
    /// Hex: 32 bytes are an Ed25519 key, 33 a compressed P-256 key.
    pub federation_public_key: String,
    /// 16 bytes hex.
    pub incarnation: String,
    /// What destroying a root means on this hardware, after the operator's facts: the least that holds for any device.
    pub delete_claim: String,
    /// When.
    pub unix_seconds: u64,
    /// Vendor profile of the first device.
    pub profile: String,
    /// Its properties, and how sure they are.
    pub cells: Vec<Cell>,
    /// What the operator stated of it.
    pub facts: Facts,
    /// The PKCS#11 library.
    pub library: LibraryInfo,
    /// The tokens.
    pub tokens: BTreeMap<Purpose, TokenInfo>,
    /// What was made, with its attributes as the tokens report them.
    pub objects: Vec<ObjectInfo>,
    /// Further devices; absent where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<MadeDevice>,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedTranscript {
    /// What is signed.
    pub transcript: Transcript,
    /// By the federation key, 64 bytes hex.
    pub signature: String,
}

impl SignedTranscript {
    pub(super) fn sign(transcript: Transcript, token: &dyn Token) -> Result<Self, TranscriptError> {
        let signature = hex::encode(token.sign_federation(&message(&transcript)?)?);
        Ok(Self { transcript, signature })
    }

    /// Parses a file and checks its signature. What it says is checked by [`super::offline`].
    pub fn parse(text: &str) -> Result<Self, TranscriptError> {
        let signed: Self = serde_json::from_str(text)?;
        if signed.transcript.version != VERSION {
            return Err(TranscriptError::Version(signed.transcript.version));
        }
        let message = message(&signed.transcript)?;
        verified(&signed.transcript.federation_public_key, &message, &signed.signature)?;
        Ok(signed)
    }
}

/// Checks a signature, hex, by a federation key.
pub(super) fn verified(key: &str, message: &[u8], hex: &str) -> Result<(), TranscriptError> {
    let mut signature = [0u8; 64];
    let key = key.parse::<FederationKey>();
    let key = key.map_err(|_| TranscriptError::Malformed(Field::FederationKey))?;
    hex::decode_to_slice(hex, &mut signature).map_err(|_| TranscriptError::Malformed(Field::Signature))?;
    if key.verifies(message, &signature) { Ok(()) } else { Err(TranscriptError::Signature) }
}

/// Unknown fields are refused, so the parsed content is all there is, and writing it anew gives the bytes that
/// were signed.
fn message(transcript: &Transcript) -> Result<Vec<u8>, TranscriptError> {
    let mut message = DOMAIN.to_vec();
    serde_json::to_writer(&mut message, transcript)?;
    Ok(message)
}
