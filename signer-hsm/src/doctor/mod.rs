//! `doctor`: one line per check, what to do where one fails.

use serde::Serialize;
use spark_signer::vault::{Token as _, Vault};

use crate::{
    config::Config, devices::Fleet, federation, metrics::HsmMetrics, store::RedbStore, token::Pkcs11Token,
};

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// "ok" or "fail".
    pub state: &'static str,
    /// What was found, or what to do.
    pub detail: String,
}

fn check(name: &'static str, result: Result<String, String>) -> Check {
    match result {
        Ok(detail) => Check { name, state: "ok", detail },
        Err(detail) => Check { name, state: "fail", detail },
    }
}

/// Runs all checks; changes nothing.
pub fn run(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    let token = Pkcs11Token::open(&config.token);
    match &token {
        Ok(token) => {
            checks.push(check("tokens", Ok(format!("profile {}", token.profile().name))));
            checks.push(check(
                "probe",
                token.probe().map(|()| "root answers".into()).map_err(|e| e.to_string()),
            ));
            let digest = [7u8; 32];
            let signed = token.sign_identity(&digest).map(|_| "identity key signs, low-S".into());
            checks.push(check("identity", signed.map_err(|e| e.to_string())));
            let signed = token.sign_federation(b"spark/doctor").map(|_| "federation key signs".into());
            checks.push(check("federation-key", signed.map_err(|e| e.to_string())));
            checks.push(check("delete-claim", Ok(token.profile().delete_claim.as_str().to_owned())));
        }
        Err(error) => checks.push(check("tokens", Err(error.to_string()))),
    }
    if let Some(path) = &config.federation {
        let result = federation::verify(path).map(|hash| format!("hash {hash}")).map_err(|e| e.to_string());
        checks.push(check("federation-file", result));
    }
    match RedbStore::open(&config.store) {
        Ok(store) => {
            checks.push(check("store", Ok(config.store.display().to_string())));
            if let Ok(token) = token {
                let result = open_vault(config, token, store);
                checks.push(check(
                    "vault",
                    result
                        .map(|v| {
                            format!(
                                "epoch {}, sequence {}, {} secrets",
                                v.epoch(),
                                v.sequence(),
                                v.secret_count()
                            )
                        })
                        .map_err(|e| e.to_string()),
                ));
            }
        }
        Err(error) => checks.push(check("store", Err(error.to_string()))),
    }
    checks
}

fn open_vault(config: &Config, token: Pkcs11Token, store: RedbStore) -> anyhow::Result<Vault> {
    let fleet = Fleet::load(config, &token, &HsmMetrics::new()?)?;
    Ok(Vault::open(fleet.devices(std::sync::Arc::new(token)), Box::new(store))?)
}
