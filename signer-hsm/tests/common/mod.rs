//! Tokens for tests.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test program uses a part")]

pub mod killer;

use std::{fs, path::PathBuf};

use rustix::fs::FlockOperation;
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
    let module: PathBuf = spark_softhsm::module_path().unwrap().into();
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
        keys: KeysConfig {
            module,
            profile: Profile::SOFTHSM,
            token: token("keys"),
            end_after: KeysConfig::END_AFTER,
        },
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

/// Makes every call into a token of this label hang, until what is returned is dropped: its library waits for a lock
/// on each file before it reads it.
pub fn hang(dir: &TokenDir, label: &str) -> Vec<fs::File> {
    let tokens = fs::read_dir(dir.tokens_path()).unwrap().map(|token| token.unwrap().path());
    let named = |token: &PathBuf| {
        let content = fs::read(token.join("token.object")).unwrap();
        content.windows(label.len()).any(|window| window == label.as_bytes())
    };
    let token = tokens.into_iter().find(named).unwrap();
    let files = fs::read_dir(token).unwrap().map(|file| file.unwrap().path()).map(|path| {
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        file
    });
    files.collect()
}
