//! What a run found.

use std::fmt;

use cryptoki::mechanism::MechanismType;
use serde::Serialize;
use spark_signer::vault::TokenError;

use super::fit::{Fit, Verdict};
use crate::token::error::token_error;
use crate::token::inventory::{LibraryInfo, TokenInfo};
use crate::token::link::Link;
use crate::token::module::Module;

/// How one finding came out; the text says what was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "detail", rename_all = "kebab-case")]
pub enum Outcome {
    /// As a signer needs it.
    Yes(String),
    /// Not so.
    No(String),
    /// Could not be tried.
    Unknown(String),
}

impl Outcome {
    /// Whether it is as a signer needs it.
    pub const fn is_yes(&self) -> bool {
        matches!(self, Self::Yes(_))
    }

    /// From a call that must succeed.
    pub(super) fn of<E: fmt::Display>(result: Result<String, E>) -> Self {
        result.map_or_else(|error| Self::No(error.to_string()), Self::Yes)
    }

    /// From a call that must be refused.
    pub(super) fn refused<T, E: fmt::Display>(result: Result<T, E>, succeeded: &str) -> Self {
        match result {
            Ok(_) => Self::No(succeeded.to_owned()),
            Err(error) => Self::Yes(format!("refused: {error}")),
        }
    }
}

/// One finding.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Name.
    pub name: &'static str,
    /// How it came out.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How long one operation takes.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// Operation.
    pub operation: &'static str,
    /// Median, microseconds.
    pub median_us: u64,
    /// Slowest, microseconds.
    pub slowest_us: u64,
    /// Calls.
    pub runs: usize,
}

/// What more objects do to a root cycle.
#[derive(Debug, Clone, Serialize)]
pub struct Growth {
    /// Objects added.
    pub objects: u16,
    /// Median root cycle before, microseconds.
    pub before_us: u64,
    /// With them, microseconds.
    pub with_us: u64,
}

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The library.
    pub library: LibraryInfo,
    /// The token.
    pub token: TokenInfo,
    /// Mechanisms by name.
    pub mechanisms: Vec<String>,
    /// Findings.
    pub findings: Vec<Finding>,
    /// Latencies.
    pub latencies: Vec<Latency>,
    /// Effect of more objects.
    pub growth: Option<Growth>,
    /// Vendor profiles, best first.
    pub fits: Vec<Fit>,
}

/// What a roots token must do.
const ROOTS: &[&str] = &[
    "hmac-root",
    "hmac-repeats",
    "attributes",
    "value-hidden",
    "wrap-refused",
    "destroy",
    "destroy-elsewhere",
    "clean",
];
/// What a keys token must do.
const KEYS: &[&str] = &["ecdsa-secp256k1", "federation-key", "ecdh-raw", "key-attributes", "clean"];

impl Report {
    pub(super) fn add(&mut self, name: &'static str, outcome: Outcome) {
        self.findings.push(Finding { name, outcome });
    }

    /// One finding.
    pub fn finding(&self, name: &str) -> Option<&Outcome> {
        self.findings.iter().find(|finding| finding.name == name).map(|finding| &finding.outcome)
    }

    pub(super) fn is_yes(&self, name: &str) -> bool {
        self.finding(name).is_some_and(Outcome::is_yes)
    }

    fn missing(&self, needed: &[&'static str]) -> Vec<&'static str> {
        needed.iter().copied().filter(|name| !self.is_yes(name)).collect()
    }

    /// What keeps this token from holding roots; empty if it can.
    pub fn missing_for_roots(&self) -> Vec<&'static str> {
        self.missing(ROOTS)
    }

    /// What keeps this token from holding the identity and federation keys; empty if it can.
    pub fn missing_for_keys(&self) -> Vec<&'static str> {
        self.missing(KEYS)
    }
}

pub(super) fn describe(module: &Module, link: &Link) -> Result<Report, TokenError> {
    let context = module.context();
    let slot = link.slot(&context)?;
    let mechanisms = context.get_mechanism_list(slot).map_err(token_error)?;
    Ok(Report {
        library: LibraryInfo::read(&context)?,
        token: TokenInfo::read(&context, slot)?,
        mechanisms: mechanisms.iter().map(MechanismType::to_string).collect(),
        findings: Vec::new(),
        latencies: Vec::new(),
        growth: None,
        fits: Vec::new(),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { library, token, .. } = self;
        writeln!(
            f,
            "library   {} {} {} (PKCS#11 {})",
            library.manufacturer, library.description, library.version, library.cryptoki
        )?;
        writeln!(
            f,
            "token     {} {} {}, serial {}, firmware {}",
            token.label, token.manufacturer, token.model, token.serial, token.firmware
        )?;
        writeln!(f, "mechanisms {}", self.mechanisms.len())?;
        for Finding { name, outcome } in &self.findings {
            let (word, detail) = match outcome {
                Outcome::Yes(detail) => ("yes", detail),
                Outcome::No(detail) => ("NO", detail),
                Outcome::Unknown(detail) => ("?", detail),
            };
            writeln!(f, "{name:<18} {word:<4} {detail}")?;
        }
        for latency in &self.latencies {
            let Latency { operation, median_us, slowest_us, runs } = latency;
            writeln!(f, "{operation:<18} {median_us} us median, {slowest_us} us slowest of {runs}")?;
        }
        if let Some(Growth { objects, before_us, with_us }) = &self.growth {
            writeln!(
                f,
                "{:<18} root cycle {before_us} us, {with_us} us with {objects} more objects",
                "object-count"
            )?;
        }
        for fit in &self.fits {
            let count = |verdict| fit.cells.iter().filter(|cell| cell.verdict == verdict).count();
            writeln!(
                f,
                "profile {:<10} {} confirmed, {} refuted, {} open",
                fit.profile,
                count(Verdict::Confirmed),
                count(Verdict::Refuted),
                count(Verdict::Open)
            )?;
        }
        if let Some(best) = self.fits.first() {
            writeln!(f, "best fit: {}", best.profile)?;
            for cell in &best.cells {
                writeln!(
                    f,
                    "  {:<16} {:<28} {:<11} now {}: {}",
                    cell.cell,
                    cell.value,
                    cell.mark.as_str(),
                    cell.verdict.as_str(),
                    cell.why
                )?;
            }
        }
        let verdict = |missing: Vec<&str>| {
            if missing.is_empty() { "yes".into() } else { format!("no: {}", missing.join(", ")) }
        };
        writeln!(f, "may hold roots: {}", verdict(self.missing_for_roots()))?;
        writeln!(f, "may hold keys:  {}", verdict(self.missing_for_keys()))
    }
}
