//! What the process gives up before it touches a secret (rule S1): core dumps, being traced, new privileges, swap,
//! files and network that it has no business with, system calls that it does not make.
//!
//! Production applies every measure that the configuration does not switch off, and does not start when one of them
//! cannot be applied. Development tries, and says what is missing; a measure that its configuration asks for by name is
//! obligatory there, too.

mod filesystem;
mod limits;
mod syscalls;

use std::path::PathBuf;

use serde::Deserialize;

pub use filesystem::Places;
pub use syscalls::Role;

use crate::token::Security;

/// A requested measure that could not be applied.
#[derive(Debug, thiserror::Error)]
#[error("hardening.{measure}: {why}")]
pub struct HardeningError {
    measure: &'static str,
    why: String,
}

impl HardeningError {
    fn new(measure: &'static str, why: impl Into<String>) -> Self {
        Self { measure, why: why.into() }
    }

    fn of<E: std::fmt::Display>(measure: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::new(measure, error.to_string())
    }

    /// Name of the measure in the configuration.
    pub const fn measure(&self) -> &'static str {
        self.measure
    }
}

/// Whether a measure is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Or the process does not start.
    Enforce,
    /// Not at all.
    Off,
}

/// What happens to a system call that is not on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyscallMode {
    /// It fails with EPERM.
    Enforce,
    /// It is made, and the kernel's audit log names it: to find out what a vendor's library needs.
    Log,
    /// There is no list.
    Off,
}

/// `[hardening]`: what to apply, and what a vendor's library needs beyond SoftHSM's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HardeningConfig {
    /// No core dumps, no tracing by other processes of the same user.
    pub core_dumps: Option<Mode>,
    /// No new privileges.
    pub privileges: Option<Mode>,
    /// All memory locked.
    pub memory: Option<Mode>,
    /// Landlock: only the files that the signer needs.
    pub filesystem: Option<Mode>,
    /// Landlock: no TCP connections but to `connect_ports`, no further listening sockets.
    pub network: Option<Mode>,
    /// seccomp: only the system calls that the signer needs.
    pub syscalls: Option<SyscallMode>,
    /// Files and folders that the library reads.
    pub read: Vec<PathBuf>,
    /// Files and folders that it also writes.
    pub write: Vec<PathBuf>,
    /// TCP ports of a network HSM.
    pub connect_ports: Vec<u16>,
    /// Names of further system calls.
    pub extra_syscalls: Vec<String>,
}

/// The measures of one process.
#[derive(Debug, Clone, Copy)]
pub struct Hardening<'a> {
    config: &'a HardeningConfig,
    security: Security,
}

impl<'a> Hardening<'a> {
    /// Those of a configuration.
    pub const fn new(config: &'a HardeningConfig, security: Security) -> Self {
        Self { config, security }
    }

    /// What needs no knowledge of the process: first of all.
    pub fn basics(&self) -> Result<(), HardeningError> {
        self.apply("core_dumps", self.config.core_dumps, limits::core_dumps)?;
        self.apply("privileges", self.config.privileges, limits::privileges)?;
        self.apply("memory", self.config.memory, limits::memory)
    }

    /// Files and TCP ports, for the calling thread and all that it starts from now on: before there are others.
    pub fn confine(&self, places: &Places) -> Result<(), HardeningError> {
        let enforced = |mode| mode != Some(Mode::Off);
        let (files, network) = (enforced(self.config.filesystem), enforced(self.config.network));
        self.announce("filesystem", files);
        self.announce("network", network);
        if !files && !network {
            return Ok(());
        }
        let asked =
            [self.config.filesystem, self.config.network].into_iter().any(|mode| mode == Some(Mode::Enforce));
        self.judge(asked, filesystem::confine(places, self.config, files, network))
    }

    /// System calls, for all threads: when everything is open and nothing was served yet.
    pub fn filter(&self, role: Role) -> Result<(), HardeningError> {
        let mode = self.config.syscalls.unwrap_or(SyscallMode::Enforce);
        self.announce("syscalls", mode == SyscallMode::Enforce);
        if mode == SyscallMode::Off {
            return Ok(());
        }
        self.judge(self.config.syscalls.is_some(), syscalls::filter(role, mode, self.config))
    }

    fn apply(
        &self,
        name: &'static str,
        mode: Option<Mode>,
        measure: impl FnOnce() -> Result<(), HardeningError>,
    ) -> Result<(), HardeningError> {
        let enforced = mode != Some(Mode::Off);
        self.announce(name, enforced);
        if enforced { self.judge(mode.is_some(), measure()) } else { Ok(()) }
    }

    fn announce(&self, measure: &'static str, enforced: bool) {
        if !enforced && self.security == Security::Production {
            tracing::warn!(measure, "hardening is switched off by the configuration");
        }
    }

    /// A measure that failed ends the process, unless it is development that nobody asked to be hardened.
    fn judge(&self, asked: bool, result: Result<(), HardeningError>) -> Result<(), HardeningError> {
        match result {
            Err(error) if !asked && self.security == Security::Development => {
                tracing::warn!(%error, "not hardened");
                Ok(())
            }
            result => result,
        }
    }
}
