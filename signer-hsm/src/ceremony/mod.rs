//! The key ceremony: keys in the tokens, an empty vault with a new incarnation, a signed transcript of public
//! facts.

mod plan;
mod supplement;
mod transcript;
mod verify;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rand_core::{OsRng, RngCore as _};
use spark_rules::ids::Incarnation;
use spark_signer::vault::{CreateError, StoreError, Token, TokenError, Vault};

pub use plan::{Plan, Planned, PlannedDevice};
pub use supplement::{SignedSupplement, Supplement, supplement};
pub use transcript::{Cell, Field, MadeDevice, SignedTranscript, Transcript, TranscriptError};
pub use verify::{Outcome, against_tokens, offline, supplemented};

use crate::{
    config::Config,
    devices::{DeviceError, Fleet},
    metrics::HsmMetrics,
    store::RedbStore,
    token::{IdentitySource, Inventory, generate_keys, prepare_device},
};

/// Why a ceremony fails.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    /// Tokens.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A further device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Counting calls.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// The store's file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] CreateError),
    /// The transcript.
    #[error(transparent)]
    Transcript(#[from] TranscriptError),
}

/// Runs it. Refuses when tokens or store hold anything.
pub fn run(config: &Config, identity: &IdentitySource) -> Result<SignedTranscript, CeremonyError> {
    let token = Arc::new(generate_keys(&config.token, identity)?);
    for device in config.token.devices.iter().skip(1) {
        prepare_device(device, config.token.security)?;
    }
    let fleet = Fleet::load(config, &HsmMetrics::new()?)?;
    let store = RedbStore::create(&config.store)?;
    let mut incarnation = [0u8; 16];
    OsRng.fill_bytes(&mut incarnation);
    let shared: Arc<dyn Token> = Arc::<crate::token::Pkcs11Token>::clone(&token);
    Vault::create(fleet.devices(shared), Box::new(store), Incarnation::from_bytes(incarnation))?;
    // Read back from the tokens: what was asked for is not what was made.
    let Inventory { library, tokens, objects, devices } = Inventory::read(&config.token)?;
    let further = config.token.devices.iter().skip(1).zip(devices);
    let transcript = Transcript {
        version: transcript::VERSION,
        operator: config.operator,
        identity_public_key: hex::encode(token.identity_public_key().serialize()),
        identity_method: token.identity_method().as_str().to_owned(),
        federation_public_key: hex::encode(token.federation_public_key()),
        incarnation: hex::encode(incarnation),
        delete_claim: fleet.delete_claim().as_str().to_owned(),
        unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        profile: token.profile().name.to_owned(),
        cells: transcript::cells(token.profile()),
        facts: config.token.first().map(|first| first.facts).unwrap_or_default(),
        library,
        tokens,
        objects,
        devices: further.map(|(device, made)| MadeDevice::new(device, made)).collect(),
    };
    Ok(SignedTranscript::sign(transcript, &*token)?)
}
