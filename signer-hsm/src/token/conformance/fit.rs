//! Which vendor profile a token fits, and which of its cells a run confirms or refutes.

use serde::Serialize;

use super::report::{Outcome, Report};
use crate::token::profile::{EcdhExtract, LogSignature, Mark, Policies, Profile, RootMechanism};

/// What a run says of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Seen.
    Confirmed,
    /// Seen otherwise.
    Refuted,
    /// A run cannot tell.
    Open,
}

impl Verdict {
    /// Name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Refuted => "refuted",
            Self::Open => "open",
        }
    }
}

/// One cell of a profile.
#[derive(Debug, Clone, Serialize)]
pub struct CellFit {
    /// Property.
    pub cell: &'static str,
    /// The profile's value.
    pub value: String,
    /// How sure it was before.
    pub mark: Mark,
    /// What this run says.
    pub verdict: Verdict,
    /// Why.
    pub why: String,
}

/// One profile.
#[derive(Debug, Clone, Serialize)]
pub struct Fit {
    /// Its name.
    pub profile: &'static str,
    /// Whether the library's maker is this vendor.
    pub vendor: bool,
    /// Its cells.
    pub cells: Vec<CellFit>,
}

impl Fit {
    /// Cells with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cells.iter().filter(|cell| cell.verdict == verdict).count()
    }
}

/// Words that makers put into their libraries' names.
const VENDORS: &[(&str, &[&str])] = &[
    ("luna", &["safenet", "thales", "luna", "gemalto"]),
    ("nshield", &["ncipher", "entrust", "nshield"]),
    ("cloudhsm", &["cloudhsm", "cavium", "marvell", "amazon"]),
    ("yubihsm2", &["yubico", "yubihsm"]),
    ("securosys", &["securosys", "primus"]),
    ("softhsm", &["softhsm"]),
    ("kryoptic", &["kryoptic"]),
];

/// All profiles, best first: the maker's own, then those with the fewest cells refuted.
pub(super) fn all(report: &Report) -> Vec<Fit> {
    let name = format!(
        "{} {} {} {}",
        report.library.manufacturer,
        report.library.description,
        report.token.manufacturer,
        report.token.model
    )
    .to_lowercase();
    let mut fits: Vec<_> = Profile::ALL
        .iter()
        .map(|profile| {
            let words = VENDORS
                .iter()
                .find(|(vendor, _)| *vendor == profile.name)
                .map_or(&[][..], |(_, words)| words);
            Fit {
                profile: profile.name,
                vendor: words.iter().any(|word| name.contains(word)),
                cells: cells(profile, report),
            }
        })
        .collect();
    fits.sort_by_key(|fit| {
        (!fit.vendor, fit.count(Verdict::Refuted), std::cmp::Reverse(fit.count(Verdict::Confirmed)))
    });
    fits
}

fn cells(profile: &Profile, report: &Report) -> Vec<CellFit> {
    let told =
        |holds: bool, why: &str| (if holds { Verdict::Confirmed } else { Verdict::Refuted }, why.to_owned());
    let judge = |cell: &str| match cell {
        "root_mechanism" => match profile.root_mechanism {
            RootMechanism::HmacSha256 => {
                told(report.is_yes("hmac-root") && report.is_yes("hmac-repeats"), "hmac-root")
            }
            // Repeatable is not enough: it must be CMAC.
            RootMechanism::AesCmac => match report.finding("aes-cmac-known") {
                _ if !report.is_yes("aes-cmac") => told(false, "aes-cmac"),
                Some(Outcome::Yes(_)) => told(true, "aes-cmac-known"),
                Some(Outcome::No(_)) => told(false, "aes-cmac-known"),
                Some(Outcome::Unknown(_)) | None => {
                    (Verdict::Open, "unverified: no known answer could be asked for".to_owned())
                }
            },
        },
        "policies" => match profile.policies {
            Policies::Required => told(report.is_yes("policies"), "policies"),
            Policies::Optional => told(report.is_yes("hmac-root"), "made with them or without"),
        },
        "ecdh_extract" => match profile.ecdh_extract {
            EcdhExtract::Yes => told(report.is_yes("ecdh-raw"), "ecdh-raw"),
            EcdhExtract::No => told(!report.is_yes("ecdh-raw"), "ecdh-raw"),
            EcdhExtract::Policy => {
                let now = if report.is_yes("ecdh-raw") { "allowed" } else { "not allowed" };
                (Verdict::Confirmed, format!("{now} by this device's present policy"))
            }
        },
        "log_signature" => match profile.log_signature {
            LogSignature::Ed25519 => told(report.is_yes("ed25519"), "ed25519"),
            LogSignature::EcdsaP256 => {
                told(report.is_yes("ecdsa-p256") && !report.is_yes("ed25519"), "ecdsa-p256 and no ed25519")
            }
        },
        "delete_claim" => match report.finding("destroy-elsewhere") {
            Some(Outcome::No(_)) => (Verdict::Refuted, "destroy-elsewhere".to_owned()),
            _ => (Verdict::Open, "copies and backups cannot be seen from here".to_owned()),
        },
        "min_batch" => match report.latencies.iter().find(|latency| latency.operation == "root-cycle") {
            Some(cycle) if !profile.min_batch.is_zero() => {
                let holds = u128::from(cycle.slowest_us) <= profile.min_batch.as_micros();
                told(holds, &format!("slowest root cycle {} us", cycle.slowest_us))
            }
            _ => (Verdict::Open, "not measured, or no limit".to_owned()),
        },
        _ => (Verdict::Open, String::new()),
    };
    profile
        .cells()
        .into_iter()
        .map(|(cell, value, mark)| {
            let (verdict, why) = judge(cell);
            CellFit { cell, value, mark, verdict, why }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::token::inventory::{LibraryInfo, TokenInfo};

    fn report(findings: &[(&'static str, Outcome)]) -> Report {
        let name = || "Some Vendor".to_owned();
        let mut report = Report {
            library: LibraryInfo {
                manufacturer: name(),
                description: name(),
                version: name(),
                cryptoki: name(),
            },
            token: TokenInfo {
                label: name(),
                manufacturer: name(),
                model: name(),
                serial: name(),
                firmware: name(),
            },
            mechanisms: Vec::new(),
            findings: Vec::new(),
            latencies: Vec::new(),
            growth: None,
            fits: Vec::new(),
        };
        for (name, outcome) in findings {
            report.add(name, outcome.clone());
        }
        report
    }

    #[test]
    fn a_wrong_cmac_refutes_and_an_unverified_one_confirms_nothing() {
        let profile = Profile::SOFTHSM.with_root_mechanism(RootMechanism::AesCmac);
        let verdict = |repeats: Outcome, known: Option<Outcome>| {
            let mut findings = vec![("aes-cmac", repeats)];
            findings.extend(known.map(|known| ("aes-cmac-known", known)));
            let cells = cells(&profile, &report(&findings));
            cells.iter().find(|cell| cell.cell == "root_mechanism").unwrap().verdict
        };
        let (yes, no) = (|| Outcome::Yes(String::new()), || Outcome::No(String::new()));
        assert_eq!(verdict(yes(), Some(yes())), Verdict::Confirmed);
        assert_eq!(verdict(yes(), Some(no())), Verdict::Refuted);
        assert_eq!(verdict(yes(), Some(Outcome::Unknown(String::new()))), Verdict::Open);
        assert_eq!(verdict(yes(), None), Verdict::Open);
        assert_eq!(verdict(no(), Some(yes())), Verdict::Refuted);
    }
}
