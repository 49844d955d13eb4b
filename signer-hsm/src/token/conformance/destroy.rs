//! What a destruction looks like, here and from another process; what happens when sessions are lost.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use cryptoki::mechanism::Mechanism;
use cryptoki::object::AttributeType;
use spark_signer::vault::TokenError;

use super::Options;
use super::report::{Outcome, Report};
use super::scratch::Scratch;
use crate::token::config::{PinSource, Security, TokenRef};
use crate::token::error::token_error;
use crate::token::link::Link;
use crate::token::module::Module;
use crate::token::pin;

/// How many objects bear each label, in a process that starts the library afresh.
pub fn look(module: &Path, token: &TokenRef, labels: &[String]) -> Result<Vec<usize>, TokenError> {
    let module = Module::load(module)?;
    let link = Link::new(&module, token, Security::Production)?;
    link.fresh(|session| labels.iter().map(|label| Ok(Scratch::find(session, label)?.len())).collect())?
        .map_err(token_error)
}

pub(super) fn check(scratch: &Scratch, options: &Options, report: &mut Report) -> Result<(), TokenError> {
    if !report.is_yes("hmac-root") {
        for name in ["destroy", "destroy-elsewhere"] {
            report.add(name, Outcome::Unknown("no root can be made".into()));
        }
        return Ok(());
    }
    let (alive, dead) = (scratch.label("alive"), scratch.label("dead"));
    let here = scratch.session(|session| {
        scratch.root(session, &alive)?;
        let (root, _) = scratch.root(session, &dead)?;
        session.sign(&Mechanism::Sha256Hmac, root, b"in use")?;
        session.destroy_object(root)?;
        let mut wrong = Vec::new();
        if session.get_attributes(root, &[AttributeType::Id]).is_ok() {
            wrong.push("its handle still reads");
        }
        if session.sign(&Mechanism::Sha256Hmac, root, b"in use").is_ok() {
            wrong.push("its handle still signs");
        }
        if session.destroy_object(root).is_ok() {
            wrong.push("it can be destroyed twice");
        }
        if !Scratch::find(session, &dead)?.is_empty() {
            wrong.push("a search still finds it");
        }
        Ok(wrong)
    })?;
    report.add(
        "destroy",
        match here {
            Ok(wrong) if wrong.is_empty() => Outcome::Yes("handle is dead, a search finds nothing".into()),
            Ok(wrong) => Outcome::No(wrong.join(", ")),
            Err(error) => Outcome::No(error.to_string()),
        },
    );
    let elsewhere = match &options.program {
        None => Outcome::Unknown("no other process".into()),
        Some(program) => match other_process(program, options, &[&alive, &dead]) {
            Ok(counts) if counts == [1, 0] => Outcome::Yes(
                "a process with a fresh library sees the living root and not the destroyed one".into(),
            ),
            Ok(counts) => Outcome::No(format!("another process counts {counts:?}, expected [1, 0]")),
            Err(error) => Outcome::No(error),
        },
    };
    report.add("destroy-elsewhere", elsewhere);
    Ok(())
}

/// Starts this program for [`look`]; the PIN goes through its standard input.
fn other_process(program: &Path, options: &Options, labels: &[&str]) -> Result<Vec<usize>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("another process: {error}");
    let pin = pin::text(&options.token, Security::Production).map_err(|error| failed(&error))?;
    let mut command = Command::new(program);
    command.arg("conformance").arg("--module").arg(&options.module).arg("--token").arg(&options.token.label);
    if let Some(serial) = &options.token.serial {
        command.arg("--serial").arg(serial);
    }
    for label in labels {
        command.arg("--look").arg(label);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(pin.as_bytes()).map_err(|error| failed(&error))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(failed(&String::from_utf8_lossy(&output.stderr).trim()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(&error))
}

impl TokenRef {
    /// The same token with a PIN that was read before.
    pub fn holding(mut self, pin: zeroize::Zeroizing<String>) -> Self {
        self.pin = PinSource::Held(pin);
        self
    }
}

/// Closes every session and starts the library anew, as after a lost connection.
pub(super) fn session_loss(module: &Module, scratch: &Scratch, report: &mut Report) {
    let label = scratch.label("survivor");
    let made = scratch.session(|session| scratch.root(session, &label));
    if !matches!(made, Ok(Ok(_))) {
        report.add("session-loss", Outcome::Unknown("no root can be made".into()));
        return;
    }
    let result = module.reinitialize().and_then(|()| {
        scratch
            .session(|session| {
                let found = Scratch::find(session, &label)?;
                for root in &found {
                    session.sign(&Mechanism::Sha256Hmac, *root, b"again")?;
                    session.destroy_object(*root)?;
                }
                Ok(found.len())
            })?
            .map_err(token_error)
    });
    report.add(
        "session-loss",
        match result {
            Ok(1) => {
                Outcome::Yes("after C_Finalize, C_Initialize and login the root is found and signs".into())
            }
            Ok(count) => Outcome::No(format!("{count} roots found afterwards")),
            Err(error) => Outcome::No(error.to_string()),
        },
    );
}
