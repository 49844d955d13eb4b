//! When a repaired operator is clean again (D12): all operators have refreshed the key, and every one shows that what it
//! held before is destroyed. Then the share that was lost is the only one of its version, if nobody lies.

use bitcoin::secp256k1::PublicKey;
use spark_proto::peer::v1::Receipt;
use spark_rules::feldman::is_zero_sharing;

/// A refresh as one operator's log tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refreshed {
    operation: Vec<u8>,
    keyshare: Vec<u8>,
    retired: u64,
    tweak: PublicKey,
}

impl Refreshed {
    /// From a receipt of phase `refresh`; none if it shows no change.
    pub fn of(receipt: &Receipt) -> Option<Self> {
        Some(Self {
            operation: receipt.operation_id.clone(),
            keyshare: receipt.keyshare_id.clone(),
            retired: receipt.retired_version,
            tweak: PublicKey::from_slice(&receipt.tweak_commitment).ok()?,
        })
    }

    fn is_same(&self, other: &Self) -> bool {
        (&self.operation, &self.keyshare, self.retired) == (&other.operation, &other.keyshare, other.retired)
    }
}

/// Whether one refresh stands in all operators' logs (`logs`, by operator index, each with what its witnessed head
/// shows), and is one: the public tweaks are points of one polynomial whose constant term is zero.
pub(super) fn by_all(logs: &[Vec<Refreshed>], threshold: u16) -> bool {
    let Some((first, others)) = logs.split_first() else { return false };
    first.iter().any(|refresh| {
        let same = others.iter().map(|log| log.iter().find(|other| other.is_same(refresh)));
        let tweaks: Option<Vec<_>> =
            std::iter::once(Some(refresh)).chain(same).map(|found| found.map(|found| found.tweak)).collect();
        tweaks.is_some_and(|tweaks| is_zero_sharing(&tweaks, threshold))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::secp256k1::{SECP256K1, SecretKey};

    fn point(scalar: u8) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[31] = scalar;
        PublicKey::from_secret_key(SECP256K1, &SecretKey::from_slice(&bytes).unwrap())
    }

    /// 5x at 1, 2, 3.
    fn logs() -> Vec<Vec<Refreshed>> {
        let tweaks = [5, 10, 15].map(point);
        let of = |tweak| Refreshed { operation: vec![1; 16], keyshare: vec![2; 16], retired: 4, tweak };
        tweaks.into_iter().map(|tweak| vec![of(tweak)]).collect()
    }

    fn changed(change: impl FnOnce(&mut Vec<Vec<Refreshed>>)) -> bool {
        let mut logs = logs();
        change(&mut logs);
        by_all(&logs, 2)
    }

    #[test]
    fn d12_one_refresh_stands_in_all_logs() {
        assert!(changed(|_| {}));
        assert!(!changed(|logs| logs[1].clear()), "one has not applied it");
        assert!(!changed(|logs| logs[2][0].operation = vec![9; 16]));
        assert!(!changed(|logs| logs[2][0].retired = 5));
        assert!(!changed(|logs| logs[0][0].keyshare = vec![9; 16]));
        // Tweaks with another constant term, or of another degree: something else happened to the key.
        assert!(!changed(|logs| logs[2][0].tweak = point(16)));
        assert!(!changed(|logs| {
            for (log, tweak) in logs.iter_mut().zip([6, 11, 16]) {
                log[0].tweak = point(tweak);
            }
        }));
        // A later one counts as well.
        assert!(changed(|logs| {
            let later = |r: &Refreshed| Refreshed { retired: 9, operation: vec![3; 16], ..r.clone() };
            logs.iter_mut().for_each(|log| {
                let more = later(&log[0]);
                log.push(more);
            });
            logs[1].remove(0);
        }));
        assert!(!by_all(&[], 2));
    }
}
