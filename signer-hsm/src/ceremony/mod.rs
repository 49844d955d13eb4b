//! The key ceremony: keys in the tokens, an empty vault with a new incarnation, a transcript of public facts.

use std::sync::Arc;

use rand_core::{OsRng, RngCore as _};
use serde::Serialize;
use spark_rules::ids::Incarnation;
use spark_signer::vault::{CreateError, StoreError, Token, TokenError, Vault};

use crate::{
    config::Config,
    devices::Fleet,
    metrics::HsmMetrics,
    store::RedbStore,
    token::{IdentitySource, generate_keys, prepare_device},
};

/// Why a ceremony fails.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    /// Tokens.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Counting calls.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// The store's file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] CreateError),
}

/// What others need to know of the new signer.
#[derive(Debug, Clone, Serialize)]
pub struct Transcript {
    /// Index of the operator.
    pub operator: u16,
    /// secp256k1, 33 bytes hex.
    pub identity_public_key: String,
    /// "generated" or "imported".
    pub identity_method: &'static str,
    /// Ed25519, 32 bytes hex.
    pub federation_public_key: String,
    /// 16 bytes hex.
    pub incarnation: String,
    /// What destroying a root means on this hardware.
    pub delete_claim: &'static str,
}

/// Runs it. Refuses when tokens or store hold anything.
pub fn run(config: &Config, identity: &IdentitySource) -> Result<Transcript, CeremonyError> {
    let token = generate_keys(&config.token, identity)?;
    let method = token.identity_method();
    for device in &config.token.devices {
        prepare_device(device, config.token.security)?;
    }
    let fleet = Fleet::load(config, &token, &HsmMetrics::new()?)?;
    let delete_claim = fleet.delete_claim().as_str();
    let store = RedbStore::create(&config.store)?;
    let mut incarnation = [0u8; 16];
    OsRng.fill_bytes(&mut incarnation);
    let token: Arc<dyn Token> = Arc::new(token);
    Vault::create(fleet.devices(Arc::clone(&token)), Box::new(store), Incarnation::from_bytes(incarnation))?;
    Ok(Transcript {
        operator: config.operator,
        identity_public_key: hex::encode(token.identity_public_key().serialize()),
        identity_method: method.as_str(),
        federation_public_key: hex::encode(token.federation_public_key()),
        incarnation: hex::encode(incarnation),
        delete_claim,
    })
}
