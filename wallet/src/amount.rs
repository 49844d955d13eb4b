//! Amounts as people write them: always with a unit.

use std::{fmt, str::FromStr};

/// Satoshis; `1000sat`, `1000 sat` or `0.001btc` as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sats(u64);

/// A text that is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no amount: write a positive number with its unit, like 1000sat or 0.001btc")]
pub struct AmountError(String);

/// 21 million bitcoin.
const MAX: u64 = 21_000_000 * 100_000_000;

impl Sats {
    /// Satoshis.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Sats {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let refuse = || AmountError(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let sats = if let Some(number) = lower.strip_suffix("sats").or_else(|| lower.strip_suffix("sat")) {
            digits(number.trim_end())
        } else if let Some(number) = lower.strip_suffix("btc") {
            let (whole, fraction) = number.trim_end().split_once('.').unwrap_or((number.trim_end(), "0"));
            if fraction.is_empty() || fraction.len() > 8 {
                return Err(refuse());
            }
            let whole = digits(whole).and_then(|w| w.checked_mul(100_000_000));
            whole.zip(digits(&format!("{fraction:0<8}"))).and_then(|(w, f)| w.checked_add(f))
        } else {
            None
        };
        sats.filter(|s| (1..=MAX).contains(s)).map(Self).ok_or_else(refuse)
    }
}

fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

impl fmt::Display for Sats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sat", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_needed() {
        let ok = |text: &str| text.parse::<Sats>().map(Sats::get);
        assert_eq!(ok("1000sat"), Ok(1000));
        assert_eq!(ok("1000 sats"), Ok(1000));
        assert_eq!(ok("0.001btc"), Ok(100_000));
        assert_eq!(ok("1 BTC"), Ok(100_000_000));
        assert_eq!(ok("0.00000001btc"), Ok(1));
        for bad in [
            "1000",
            "",
            "sat",
            "0sat",
            "-1sat",
            "1.5sat",
            "+1sat",
            "1.btc",
            ".btc",
            "1.123456789btc",
            "21000001btc",
        ] {
            assert!(ok(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn both_units_agree(sats in 1..=MAX) {
            let btc = format!("{}.{:08}btc", sats / 100_000_000, sats % 100_000_000);
            prop_assert_eq!(btc.parse::<Sats>().unwrap().get(), sats);
            prop_assert_eq!(format!("{}", Sats(sats)).parse::<Sats>().unwrap().get(), sats);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Sats>();
        }
    }
}
