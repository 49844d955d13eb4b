use std::fmt;

use serde::{Deserialize, Serialize};
use spark_proto::peer::v1::Receipt;

/// What a destruction means on an operator's devices, by their profile (`delete_claim` of its receipts). The weakest
/// comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeleteClaim {
    /// No receipt, or words that this wallet does not know.
    #[default]
    Unknown,
    /// Nothing: a software token, say.
    None,
    /// A file on the host was removed.
    HostMedia,
    /// Gone from the device; the vendor's backups keep it for a time.
    DeviceMinusBackups,
    /// Gone from the device.
    Device,
}

impl DeleteClaim {
    fn parse(words: &str) -> Self {
        match words {
            "none" => Self::None,
            "host-media" => Self::HostMedia,
            "device-minus-backups" => Self::DeviceMinusBackups,
            "device" => Self::Device,
            _ => Self::Unknown,
        }
    }

    /// The weakest that any of these receipts states: a chain of destructions is worth no more than its weakest link.
    pub fn weakest(receipts: &[Receipt]) -> Self {
        receipts.iter().map(|receipt| Self::parse(&receipt.delete_claim)).min().unwrap_or_default()
    }
}

impl fmt::Display for DeleteClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::HostMedia => "host-media",
            Self::DeviceMinusBackups => "device-minus-backups",
            Self::Device => "device",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weakest_of_all_receipts_counts() {
        let weakest = |words: &[&str]| {
            let of = |claim: &&str| Receipt { delete_claim: (*claim).into(), ..Receipt::default() };
            DeleteClaim::weakest(&words.iter().map(of).collect::<Vec<_>>())
        };
        // The words of receipts, each by itself and in JSON.
        for (words, claim) in [
            ("device", DeleteClaim::Device),
            ("device-minus-backups", DeleteClaim::DeviceMinusBackups),
            ("host-media", DeleteClaim::HostMedia),
            ("none", DeleteClaim::None),
        ] {
            assert_eq!(weakest(&[words]), claim);
            assert_eq!(
                (claim.to_string(), serde_json::to_value(claim).unwrap()),
                (words.into(), words.into())
            );
        }
        // One that changed on the way, in either direction.
        assert_eq!(weakest(&["device", "none", "device"]), DeleteClaim::None);
        assert_eq!(weakest(&["none", "device"]), DeleteClaim::None);
        assert_eq!(weakest(&["device", "device-minus-backups"]), DeleteClaim::DeviceMinusBackups);
        assert_eq!(weakest(&["device-minus-backups", "host-media"]), DeleteClaim::HostMedia);
        assert_eq!(weakest(&["none", "better than any device"]), DeleteClaim::Unknown);
        assert_eq!(weakest(&[]), DeleteClaim::Unknown);
    }
}
