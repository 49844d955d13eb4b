//! What a transcript lacks: a device that was prepared after the ceremony, signed by the same federation key.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use spark_signer::vault::Token;

use super::{
    CeremonyError,
    transcript::{MadeDevice, TranscriptError, VERSION, verified},
};
use crate::{
    config::Config,
    token::{DeviceConfig, DeviceInventory, KeysToken, prepare_device},
};

/// Starts what is signed, so that it is no statement of another kind.
const DOMAIN: &[u8] = b"spark/signer/device/v1\n";

/// A device that may join. It has no root yet. The JSON, without white space and in this order, is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Supplement {
    /// Form of the file.
    pub version: u16,
    /// Index of the operator.
    pub operator: u16,
    /// Of the ceremony.
    pub federation_public_key: String,
    /// When.
    pub unix_seconds: u64,
    /// What was prepared.
    pub device: MadeDevice,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedSupplement {
    /// What is signed.
    pub supplement: Supplement,
    /// By the federation key, 64 bytes hex.
    pub signature: String,
}

impl SignedSupplement {
    /// Parses a file and checks its signature.
    pub fn parse(text: &str) -> Result<Self, TranscriptError> {
        let signed: Self = serde_json::from_str(text)?;
        if signed.supplement.version != VERSION {
            return Err(TranscriptError::Version(signed.supplement.version));
        }
        let message = message(&signed.supplement)?;
        verified(&signed.supplement.federation_public_key, &message, &signed.signature)?;
        Ok(signed)
    }
}

fn message(supplement: &Supplement) -> Result<Vec<u8>, TranscriptError> {
    let mut message = DOMAIN.to_vec();
    serde_json::to_writer(&mut message, supplement)?;
    Ok(message)
}

/// Prepares a device to hold roots and says what it is then. Refuses when it has been prepared before.
pub fn supplement(config: &Config, device: &DeviceConfig) -> Result<SignedSupplement, CeremonyError> {
    // First: a device whose supplement cannot be signed is not prepared.
    let keys = KeysToken::open(&config.token)?;
    prepare_device(device, config.token.security)?;
    let made = DeviceInventory::read(device, config.token.security)?;
    let supplement = Supplement {
        version: VERSION,
        operator: config.operator,
        federation_public_key: hex::encode(keys.federation_public_key()),
        unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        device: MadeDevice::new(device, made),
    };
    let message = message(&supplement)?;
    let signature = hex::encode(keys.sign_federation(&message)?);
    Ok(SignedSupplement { supplement, signature })
}
