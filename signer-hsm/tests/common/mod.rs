//! Tokens for tests.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

pub mod killer;

use spark_signer_hsm::token::{
    DeviceConfig, Facts, IdentitySource, KeysConfig, PinSource, Pkcs11Token, Profile, Security, TokenConfig,
    TokenRef, generate_keys,
};
use spark_softhsm::TokenDir;

pub const PIN: &str = "24681357";
pub const SO_PIN: &str = "13572468";

/// Two fresh tokens.
pub fn config(dir: &TokenDir) -> TokenConfig {
    dir.init_token("roots", SO_PIN, PIN).unwrap();
    dir.init_token("keys", SO_PIN, PIN).unwrap();
    existing()
}

/// The tokens that [`config`] made.
pub fn existing() -> TokenConfig {
    let token =
        |label: &str| TokenRef { label: label.into(), serial: None, pin: PinSource::Inline(PIN.into()) };
    let module: std::path::PathBuf = spark_softhsm::module_path().unwrap().into();
    let first = DeviceConfig {
        id: 0,
        module: module.clone(),
        profile: Profile::SOFTHSM,
        roots: token("roots"),
        facts: Facts::default(),
        root_mechanism: None,
        retire: false,
    };
    TokenConfig {
        keys: KeysConfig { module, profile: Profile::SOFTHSM, token: token("keys") },
        devices: vec![first],
        start_without: Vec::new(),
        preload: Vec::new(),
        security: Security::Development,
    }
}

/// Two fresh tokens with keys.
pub fn token(dir: &TokenDir) -> Pkcs11Token {
    generate_keys(&config(dir), &IdentitySource::Generate).unwrap()
}
