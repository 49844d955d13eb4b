//! `doctor`: one line per check, what to do where one fails.

mod certificate;
mod host;

use std::fmt;

use serde::Serialize;
use spark_signer::vault::{StoreError, Token as _, Vault};

use crate::{
    config::Config,
    devices::Fleet,
    federation,
    metrics::HsmMetrics,
    store::RedbStore,
    token::{DeleteClaim, DeviceConfig, Mark, Pkcs11Token, Profile, Security},
};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Good.
    Ok,
    /// Works, but somebody should know.
    Warn,
    /// Must be repaired.
    Fail,
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do; empty if nothing.
    pub hint: &'static str,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Ok, detail: detail.into(), hint: "" }
    }

    fn warn(name: &'static str, detail: impl Into<String>, hint: &'static str) -> Self {
        Self { name, state: State::Warn, detail: detail.into(), hint }
    }

    fn fail(name: &'static str, detail: impl Into<String>, hint: &'static str) -> Self {
        Self { name, state: State::Fail, detail: detail.into(), hint }
    }

    fn of<E: fmt::Display>(name: &'static str, result: Result<String, E>, hint: &'static str) -> Self {
        match result {
            Ok(detail) => Self::ok(name, detail),
            Err(error) => Self::fail(name, error.to_string(), hint),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Warn => "WARN",
            State::Fail => "FAIL",
        };
        write!(f, "{:<20} {state:<5} {}", self.name, self.detail)?;
        if !self.hint.is_empty() {
            write!(f, "\n{:<20} ----> {}", "", self.hint)?;
        }
        Ok(())
    }
}

/// Runs all checks; changes nothing.
pub fn run(config: &Config) -> Vec<Check> {
    let mut checks = host::run(config);
    checks.extend(config.token.devices.iter().flat_map(profile));
    checks.push(apart(config));
    let token = tokens(config, &mut checks);
    federation_file(config, token.as_ref(), &mut checks);
    vault(config, token, &mut checks);
    checks
}

fn apart(config: &Config) -> Check {
    if config.token.is_shared() {
        let hint = "give the keys a token, or a partition, of their own: for development only";
        return Check::warn("keys-apart", "identity and federation keys lie in a token with roots", hint);
    }
    Check::ok("keys-apart", "identity and federation keys have a token of their own")
}

fn profile(device: &DeviceConfig) -> Vec<Check> {
    let profile = &device.profile;
    let cells = profile.cells().map(|(cell, value, mark)| format!("{cell}={value} ({})", mark.as_str()));
    let unsure = profile.cells().iter().any(|(.., mark)| *mark != Mark::Verified);
    let cells = format!("{}: {}", profile.name, cells.join(", "));
    let profile_check = if unsure {
        Check::warn(
            "profile",
            cells,
            "nobody of us tried this device: run `spark-signer conformance` on a scratch token",
        )
    } else {
        Check::ok("profile", cells)
    };
    let missing = profile.missing_facts(&device.facts);
    let full = Profile::by_name(profile.name).is_some_and(|full| full.delete_claim == profile.delete_claim);
    let claim = profile.delete_claim.as_str();
    let claim = if !missing.is_empty() {
        Check::warn(
            "delete-claim",
            format!("{claim}; not stated: {}", missing.join(", ")),
            "find out, and state in [token.facts] what is true; until then nothing is claimed",
        )
    } else if profile.delete_claim == DeleteClaim::None {
        Check::warn("delete-claim", claim, "such a token proves nothing and does not start on mainnet")
    } else if full {
        Check::ok("delete-claim", claim)
    } else {
        Check::ok("delete-claim", format!("{claim}, by [token.facts]"))
    };
    vec![profile_check, claim]
}

fn tokens(config: &Config, checks: &mut Vec<Check>) -> Option<Pkcs11Token> {
    let token = match Pkcs11Token::open(&config.token) {
        Ok(token) => token,
        Err(error) => {
            let hint =
                "library path, labels, PINs, device and network; `spark-signer token info` needs no PIN";
            checks.push(Check::fail("tokens", error.to_string(), hint));
            return None;
        }
    };
    checks.push(Check::ok("tokens", "both found, logged in, attributes as they must be"));
    let device = "the device or its client is ill: vendor's log, then restart the client";
    checks.push(Check::of("probe", token.probe().map(|()| "lists its objects and signs".to_owned()), device));
    let signed = token.sign_identity(&[7; 32]).map(|_| "signs, low S".to_owned());
    checks.push(Check::of("identity-key", signed, device));
    let point = token.identity_public_key();
    let exchanged = token.identity_ecdh_x(&point).map(|_| "result can be read".to_owned());
    checks.push(Check::of(
        "identity-ecdh",
        exchanged,
        "the device's policy must let a derived secret be read",
    ));
    let kind = token.federation_public_key().kind().as_str();
    let signed = token.sign_federation(b"spark/doctor").map(|_| format!("signs, {kind}"));
    checks.push(Check::of("federation-key", signed, device));
    checks.push(match token.identity_method().as_str() {
        "generated" => Check::ok("identity-method", "generated"),
        other => Check::warn("identity-method", other, "for development only"),
    });
    Some(token)
}

fn federation_file(config: &Config, token: Option<&Pkcs11Token>, checks: &mut Vec<Check>) {
    let Some(path) = &config.federation else {
        checks.push(Check::warn(
            "federation-file",
            "not configured",
            "needed to start: see the runbook of the ceremony",
        ));
        return;
    };
    let read =
        || -> anyhow::Result<_> { Ok(federation::read(path)?.verify(config.pinned_hash()?.as_ref())?) };
    let federation = match read() {
        Ok(federation) => federation,
        Err(error) => {
            let hint = "content, signatures or pinned hash are wrong: compare the hash with the other operators by voice";
            checks.push(Check::fail("federation-file", error.to_string(), hint));
            return;
        }
    };
    let pinned = if config.federation_hash.is_some() { "pinned" } else { "NOT pinned" };
    let detail =
        format!("epoch {}, {} members, hash {pinned}", federation.epoch(), federation.members().len());
    checks.push(if config.federation_hash.is_some() || config.profile == Security::Development {
        Check::ok("federation-file", detail)
    } else {
        Check::fail("federation-file", detail, "set federation_hash")
    });
    let Some(token) = token else { return };
    let member = federation.member(spark_rules::ids::OperatorIndex::new(config.operator));
    let ours = member.is_some_and(|member| {
        member.identity == token.identity_public_key()
            && member.federation_keys.contains(&token.federation_public_key())
    });
    checks.push(if ours {
        Check::ok("federation-member", format!("operator {} has these keys", config.operator))
    } else {
        Check::fail(
            "federation-member",
            "keys in the tokens are not the file's",
            "wrong token, wrong index or old file",
        )
    });
}

fn vault(config: &Config, token: Option<Pkcs11Token>, checks: &mut Vec<Check>) {
    let store = match RedbStore::open(&config.store) {
        Ok(store) => store,
        Err(StoreError::InUse) => {
            let hint = "the signer runs: `spark_signer_*` metrics tell of its vault; stop it to check the store here";
            checks.push(Check::warn("store", "in use", hint));
            return;
        }
        Err(error) => {
            let hint = "never make a new one in its place: runbook of the lost signer";
            checks.push(Check::fail("store", error.to_string(), hint));
            return;
        }
    };
    checks.push(Check::ok("store", config.store.display().to_string()));
    let Some(token) = token else { return };
    let vault = match open_vault(config, token, store) {
        Ok(vault) => vault,
        Err(error) => {
            let hint =
                "store and token do not belong together, or one was put back: runbook of the lost signer";
            checks.push(Check::fail("vault", error.to_string(), hint));
            return;
        }
    };
    let detail =
        format!("epoch {}, sequence {}, {} secrets", vault.epoch(), vault.sequence(), vault.secret_count());
    checks.push(Check::ok("vault", detail));
    checks.push(match &*vault.stray_roots() {
        [] => Check::ok("roots", "one"),
        // A stopped signer may have left the old one or the spare one.
        [_] => Check::ok("roots", "one, and one that the signer destroys when its peers have answered"),
        more => Check::warn(
            "roots",
            format!("one, and {} that should be gone", more.len()),
            "start the signer; if they stay, the device does not destroy: alarm destroy_pending",
        ),
    });
}

fn open_vault(config: &Config, token: Pkcs11Token, store: RedbStore) -> anyhow::Result<Vault> {
    let fleet = Fleet::load(config, &HsmMetrics::new()?)?;
    Ok(Vault::open(fleet.devices(std::sync::Arc::new(token)), Box::new(store))?)
}
