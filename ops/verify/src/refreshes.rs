//! Keyshares that a signer lost and got back by repair: which of them all operators have refreshed since.
//!
//! One log cannot show it. The reports of all operators' logs together do: one refresh of the keyshare, confirmed in every
//! log with all that went before it, whose public tweaks are points of one polynomial with a constant term of zero.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use secp256k1::{PublicKey, Scalar};
use serde::{Deserialize, Serialize};

use crate::history::{Entries, Refresh};

/// Of a report of `spark-verify --json log`, what counts here.
#[derive(Debug, Clone, Deserialize)]
pub struct LogReport {
    /// Everything held.
    pub holds: bool,
    /// Whose log.
    pub operator: u16,
    /// Of the federation file.
    pub federation: Option<Members>,
    /// The entries.
    pub entries: Option<Entries>,
}

/// The federation file of a report.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Members {
    /// Hex.
    pub hash: String,
    /// n.
    pub operators: usize,
    /// t.
    pub threshold: usize,
}

/// What all reports together amount to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refreshes {
    /// Every keyshare that any operator got back by repair was refreshed by all since.
    pub holds: bool,
    /// Operators, by how many of their keyshares came by repair.
    pub repaired: BTreeMap<u16, usize>,
    /// Keyshares that all have refreshed: the share that was lost combines with none that is left, if fewer operators lie
    /// than the threshold, less one for each that lost its share.
    pub clean: BTreeSet<String>,
    /// The others.
    pub not_clean: BTreeSet<String>,
}

impl fmt::Display for Refreshes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (operator, keyshares) in &self.repaired {
            writeln!(f, "operator {operator}: {keyshares} keyshares came back by repair")?;
        }
        writeln!(f, "{} of them were refreshed by all operators since", self.clean.len())?;
        for keyshare in &self.not_clean {
            writeln!(f, "not clean: {keyshare}")?;
        }
        Ok(())
    }
}

/// Compares the reports of all operators' logs. Fails where they are not what is asked for.
pub fn compare(reports: &[LogReport]) -> Result<Refreshes, String> {
    let mut federation = None;
    let mut logs: BTreeMap<u16, &Entries> = BTreeMap::new();
    for report in reports {
        let operator = report.operator;
        let members = report.federation.as_ref().filter(|_| report.holds);
        let members =
            members.ok_or_else(|| format!("not everything holds in the log of operator {operator}"))?;
        if *federation.get_or_insert(members) != members {
            return Err(format!("the report of operator {operator} is under another federation file"));
        }
        let entries = report.entries.as_ref();
        let entries =
            entries.ok_or_else(|| format!("the report of operator {operator} is without entries"))?;
        if logs.insert(operator, entries).is_some() {
            return Err(format!("operator {operator} has two reports"));
        }
    }
    let members = federation.ok_or("there is no report")?;
    if !(0u16..).take(members.operators).eq(logs.keys().copied()) {
        return Err(format!("reports of all {} operators are needed", members.operators));
    }
    let mut by_key: BTreeMap<&str, Vec<Vec<&Refresh>>> = BTreeMap::new();
    let repaired: BTreeSet<&str> =
        logs.values().flat_map(|log| &log.repaired_keyshares).map(String::as_str).collect();
    for (place, log) in logs.values().enumerate() {
        for refresh in log.refreshes.iter().filter(|refresh| repaired.contains(refresh.keyshare.as_str())) {
            let of_key =
                by_key.entry(&refresh.keyshare).or_insert_with(|| vec![Vec::new(); members.operators]);
            if let Some(list) = of_key.get_mut(place) {
                list.push(refresh);
            }
        }
    }
    let by_all = |key: &str| by_key.get(key).is_some_and(|logs| applied_by_all(logs, members.threshold));
    let (clean, not_clean): (BTreeSet<String>, BTreeSet<String>) =
        repaired.iter().map(|key| (*key).to_owned()).partition(|key| by_all(key));
    let counted = logs.iter().map(|(operator, log)| (*operator, log.repaired_keyshares.len()));
    Ok(Refreshes {
        holds: not_clean.is_empty(),
        repaired: counted.filter(|(_, count)| *count > 0).collect(),
        clean,
        not_clean,
    })
}

fn applied_by_all(logs: &[Vec<&Refresh>], threshold: usize) -> bool {
    let Some((first, others)) = logs.split_first() else { return false };
    first.iter().any(|refresh| {
        let same = |other: &&&Refresh| {
            (&other.operation, &other.keyshare, other.retired)
                == (&refresh.operation, &refresh.keyshare, refresh.retired)
        };
        let found = others.iter().map(|log| log.iter().find(same).copied());
        let tweaks = std::iter::once(Some(*refresh)).chain(found).map(|found| point(&found?.tweak));
        tweaks.collect::<Option<Vec<_>>>().is_some_and(|tweaks| has_zero_constant(&tweaks, threshold))
    })
}

fn point(text: &str) -> Option<PublicKey> {
    let bytes = hex::decode(text).ok()?;
    (bytes.len() == 33).then(|| PublicKey::from_slice(&bytes).ok()).flatten()
}

/// The points at 1 … n lie on a polynomial of degree t − 1 through the point at infinity at 0. By divided differences: of
/// any t + 1 points at successive places, the point at infinity at place 0 being the first, the t-th difference
/// Σ (−1)ᵏ·C(t, k)·P vanishes.
fn has_zero_constant(tweaks: &[PublicKey], threshold: usize) -> bool {
    let (n, t) = (tweaks.len(), threshold);
    if t < 2 || n < t {
        return false;
    }
    // Places 0 … n; the window that begins at `from`.
    (0..=n.saturating_sub(t)).all(|from| {
        let terms = (0..=t).filter_map(|k| {
            let place = from.saturating_add(k).checked_sub(1)?;
            Some((place, k))
        });
        let parts: Option<Vec<PublicKey>> = terms
            .map(|(place, k)| {
                let part = times(tweaks.get(place)?, binomial(t, k)?)?;
                Some(if k % 2 == 1 { part.negate(secp256k1::SECP256K1) } else { part })
            })
            .collect();
        parts.is_some_and(|parts| {
            let Some((last, rest)) = parts.split_last() else { return false };
            let rest: Vec<_> = rest.iter().collect();
            PublicKey::combine_keys(&rest) == Ok(last.negate(secp256k1::SECP256K1))
        })
    })
}

fn binomial(n: usize, k: usize) -> Option<u64> {
    (0..k).try_fold(1u64, |value, i| {
        let step = u64::try_from(n.checked_sub(i)?).ok()?;
        value.checked_mul(step)?.checked_div(u64::try_from(i.checked_add(1)?).ok()?)
    })
}

fn times(point: &PublicKey, factor: u64) -> Option<PublicKey> {
    let mut bytes = [0u8; 32];
    bytes.get_mut(24..)?.copy_from_slice(&factor.to_be_bytes());
    point.mul_tweak(secp256k1::SECP256K1, &Scalar::from_be_bytes(bytes).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use secp256k1::SecretKey;

    fn scalar(value: u64) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[24..].copy_from_slice(&value.to_be_bytes());
        PublicKey::from_secret_key(secp256k1::SECP256K1, &SecretKey::from_slice(&bytes).unwrap())
    }

    #[test]
    fn only_polynomials_through_zero_pass() {
        let of = |n: u64, f: &dyn Fn(u64) -> u64| (1..=n).map(|x| scalar(f(x))).collect::<Vec<_>>();
        assert!(has_zero_constant(&of(3, &|x| 5 * x), 2));
        assert!(has_zero_constant(&of(5, &|x| 5 * x + 7 * x * x), 3));
        assert!(has_zero_constant(&of(7, &|x| x + 2 * x * x + 3 * x * x * x), 4));
        assert!(!has_zero_constant(&of(3, &|x| 5 * x + 1), 2));
        assert!(!has_zero_constant(&of(3, &|x| 5 * x + x * x), 2));
        assert!(!has_zero_constant(&of(5, &|x| 5 * x + 7 * x * x + 1), 3));
        assert!(!has_zero_constant(&of(5, &|x| x * x * x), 3));
        let mut touched = of(5, &|x| 5 * x + 7 * x * x);
        touched[4] = scalar(3);
        assert!(!has_zero_constant(&touched, 3));
        assert!(!has_zero_constant(&[], 2));
    }

    fn report(operator: u16, repaired: bool, tweak: u64) -> LogReport {
        let refresh = Refresh {
            keyshare: "aa".into(),
            operation: "01".into(),
            retired: 3,
            tweak: hex::encode(scalar(tweak).serialize()),
        };
        let repaired_keyshares = repaired.then(|| "aa".to_owned()).into_iter().collect();
        LogReport {
            holds: true,
            operator,
            federation: Some(Members { hash: "ff".into(), operators: 3, threshold: 2 }),
            entries: Some(Entries { repaired_keyshares, refreshes: vec![refresh], ..Entries::default() }),
        }
    }

    fn outcome(change: impl FnOnce(&mut Vec<LogReport>)) -> Result<bool, String> {
        let mut reports = vec![report(0, false, 5), report(1, false, 10), report(2, true, 15)];
        change(&mut reports);
        compare(&reports).map(|found| found.holds)
    }

    #[test]
    fn all_logs_must_show_one_refresh() {
        let entries = |reports: &mut Vec<LogReport>, i: usize| reports[i].entries.take().unwrap();
        assert_eq!(outcome(|_| {}), Ok(true));
        let without = |i: usize| {
            outcome(move |r| {
                let old = entries(r, i);
                r[i].entries = Some(Entries { refreshes: Vec::new(), ..old });
            })
        };
        for i in 0..3 {
            assert_eq!(without(i), Ok(false), "{i}");
        }
        assert_eq!(outcome(|r| r[1] = report(1, false, 11)), Ok(false));
        assert_eq!(
            outcome(|r| r[0].entries.as_mut().unwrap().refreshes[0].operation = "02".into()),
            Ok(false)
        );
        assert_eq!(outcome(|r| r[0].entries.as_mut().unwrap().refreshes[0].retired = 2), Ok(false));
        // Reports that say nothing together.
        assert!(outcome(|r| drop(r.pop())).is_err());
        assert!(outcome(|r| r[1].operator = 0).is_err());
        assert!(outcome(|r| r[1].holds = false).is_err());
        assert!(outcome(|r| r[1].entries = None).is_err());
        assert!(outcome(|r| r[1].federation.as_mut().unwrap().hash = "ee".into()).is_err());
        assert!(compare(&[]).is_err());
    }
}
