use bitcoin::secp256k1::PublicKey;
use spark_proto::peer::v1::Receipt;
use spark_rules::receipt;

use super::{DeleteClaim, OperatorReceipts, refreshed::Refreshed};

/// No lie: the operator says itself that it knows nothing of what it held before (D12).
const REPAIRED: &str = "the share was repaired: what the operator held before is not shown destroyed";
const UNCONFIRMED: &str = "a destruction is not confirmed yet";
/// What a root sealed dies with that root and with no other.
const EPOCHS: &str = "root epochs do not rise with each destruction";

/// One destroyed version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Version that is gone.
    pub retired: u64,
    /// Its destruction is confirmed independently.
    pub confirmed: bool,
}

/// A change of the owner's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hands {
    /// Of the receipt.
    pub phase: String,
    /// Operation, 16 bytes.
    pub operation: Vec<u8>,
    /// What was added to the operator's public share, 33 bytes.
    pub tweak: Vec<u8>,
}

/// What an operator's receipts for one leaf amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Receipts looked at.
    pub receipts: usize,
    /// Versions in order.
    pub steps: Vec<Step>,
    /// Version that the receipts lead to without a gap.
    pub version: Option<u64>,
    /// A claim used a long-lived package key.
    pub long_lived_packages: bool,
    /// The last change of hands that the receipts tell.
    pub hands: Option<Hands>,
    /// The weakest that they state of what destruction means.
    pub delete_claim: DeleteClaim,
    /// The log begins with a repair (D12): it is clean only if all operators have refreshed the key since.
    pub repaired: bool,
    /// But for that, nothing is missing or wrong.
    pub sound: bool,
    /// Refreshes, each confirmed with all that went before it in this log.
    pub refreshes: Vec<Refreshed>,
    /// First thing that is missing or wrong.
    pub problem: Option<&'static str>,
}

impl Verdict {
    pub(super) fn describe(self, view: &mut OperatorReceipts) {
        view.receipts = self.receipts;
        view.confirmed = self.steps.iter().filter(|s| s.confirmed).count();
        view.version = self.version;
        view.delete_claim = self.delete_claim;
        view.long_lived_packages = self.long_lived_packages;
        view.clean = self.problem.is_none();
        view.repaired = self.repaired;
        view.problem = self.problem.map(ToOwned::to_owned);
    }
}

/// Follows the versions of one keyshare: from the DKG secrets on, every version destroyed and confirmed, exactly
/// one live, shares adding up, and the last one the share that the operator shows (`share`, 33 bytes). The last
/// change of hands must be a claim, or there was none: a send proves nothing against its sender, who knows its tweak
/// (D15).
///
/// Confirmed is what the signed checkpoint says (`destroyed_before`), not the state that comes with a receipt and that
/// nobody signs.
pub fn judge(receipts: &[Receipt], destroyed_before: u64, share: Option<&[u8]>) -> Verdict {
    let mut sorted: Vec<&Receipt> = receipts.iter().collect();
    sorted.sort_by_key(|r| r.sequence);
    let mut verdict = Verdict {
        receipts: receipts.len(),
        steps: Vec::new(),
        version: None,
        long_lived_packages: false,
        hands: None,
        delete_claim: DeleteClaim::weakest(receipts),
        repaired: false,
        sound: false,
        refreshes: Vec::new(),
        problem: None,
    };
    let mut last: Option<&Receipt> = None;
    let mut epochs = Epochs::default();
    let mut problem = None;
    for receipt in sorted {
        if !epochs.rise(receipt) {
            problem = Some(EPOCHS);
            break;
        }
        let confirmed = receipt::is_confirmed(receipt, destroyed_before);
        if !confirmed {
            problem.get_or_insert(UNCONFIRMED);
        }
        match receipt.phase.as_str() {
            // An aborted attempt dies without a new version.
            "abort" => continue,
            "dkg" if last.is_none() && receipt.new_version == 0 => verdict.version = Some(0),
            receipt::REPAIR if last.is_none() && receipt.retired_version == receipt.new_version => {
                verdict.repaired = true;
                verdict.version = Some(receipt.new_version);
            }
            _ if last.is_some() => {
                if let Some(reason) = last.and_then(|last| gap(last, receipt)) {
                    problem = Some(reason);
                    break;
                }
                if receipt.phase == receipt::REFRESH {
                    // The key stays with whom it is; what is shown counts only without a doubt before it.
                    verdict.refreshes.extend(problem.is_none().then(|| Refreshed::of(receipt)).flatten());
                } else if !receipt.tweak_commitment.is_empty() {
                    verdict.hands = Some(Hands {
                        phase: receipt.phase.clone(),
                        operation: receipt.operation_id.clone(),
                        tweak: receipt.tweak_commitment.clone(),
                    });
                }
                verdict.steps.push(Step { retired: receipt.retired_version, confirmed });
                verdict.version = Some(receipt.new_version);
                verdict.long_lived_packages |= receipt.phase == "claim" && receipt.package_kind != "one-time";
            }
            _ => {
                problem = Some("the receipts do not begin with the key's creation");
                break;
            }
        }
        if receipt.live_versions != [receipt.new_version] {
            problem = Some("an older version remains live");
            break;
        }
        last = Some(receipt);
    }
    verdict.problem = match (problem, last) {
        (Some(problem), _) => Some(problem),
        (None, None) => Some("no receipts"),
        (None, Some(last)) if share != Some(last.new_public_share.as_slice()) => {
            Some("the receipts do not lead to the share in use")
        }
        (None, Some(_)) if verdict.hands.as_ref().is_some_and(|hands| hands.phase != "claim") => {
            Some("the last owner's key is not replaced: no claim followed the send")
        }
        (None, Some(_)) => None,
    };
    verdict.sound = verdict.problem.is_none();
    if verdict.repaired && matches!(verdict.problem, None | Some(UNCONFIRMED)) {
        verdict.problem = Some(REPAIRED);
    }
    verdict
}

/// Epochs along one key's receipts.
#[derive(Default)]
struct Epochs {
    /// Of the receipt before.
    before: u64,
    /// In which the present version is sealed, at the earliest.
    live: u64,
}

impl Epochs {
    /// Whether a receipt may follow: epochs never go back, and a version dies with a root not older than it is, which
    /// its death ends.
    fn rise(&mut self, next: &Receipt) -> bool {
        let (before, after) = (next.root_epoch_before, next.root_epoch_after);
        let holds = match next.phase.as_str() {
            "dkg" | receipt::REPAIR => before <= after,
            // What was staged may have died in the batch that another one's destruction ended.
            "abort" => before <= after && before >= self.before,
            _ => before < after && before >= self.live,
        };
        self.before = before;
        if next.phase != "abort" {
            self.live = after;
        }
        holds
    }
}

fn gap(last: &Receipt, next: &Receipt) -> Option<&'static str> {
    if last.keyshare_id != next.keyshare_id {
        return Some("the receipts are of several keys");
    }
    if next.retired_version != last.new_version || next.new_version != last.new_version.saturating_add(1) {
        return Some("a version is missing");
    }
    if next.retired_public_share != last.new_public_share {
        return Some("the retired share is not the one before");
    }
    if matches!(next.phase.as_str(), "renew" | "deposit") && next.tweak_commitment.is_empty() {
        // The key stays; only the leaf's version moved: new timelocks, or another output of the deposit address.
        return (next.new_public_share != last.new_public_share)
            .then_some("the share changed without a tweak");
    }
    let key = |bytes: &[u8]| PublicKey::from_slice(bytes).ok();
    let sum = key(&next.retired_public_share)
        .zip(key(&next.tweak_commitment))
        .and_then(|(a, b)| a.combine(&b).ok());
    if sum.map(|s| s.serialize()).as_ref().map(|s| s.as_slice()) != Some(next.new_public_share.as_slice()) {
        return Some("the new share is not the retired one plus its tweak");
    }
    None
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

    /// All that the log below retires is destroyed.
    const DESTROYED_BEFORE: u64 = 13;

    /// Share 1, then +2 = 3 (send), then +4 = 7 (claim).
    fn log() -> Vec<Receipt> {
        let bytes = |scalar| point(scalar).serialize().to_vec();
        let base = |sequence, phase: &str, version| Receipt {
            sequence,
            phase: phase.into(),
            keyshare_id: vec![7; 16],
            new_version: version,
            live_versions: vec![version],
            root_epoch_before: sequence,
            root_epoch_after: sequence + u64::from(phase != "dkg"),
            package_kind: "one-time".into(),
            ..Default::default()
        };
        vec![
            Receipt { new_public_share: bytes(1), ..base(10, "dkg", 0) },
            Receipt {
                retired_version: 0,
                retired_public_share: bytes(1),
                tweak_commitment: bytes(2),
                new_public_share: bytes(3),
                ..base(11, "send", 1)
            },
            Receipt {
                retired_version: 1,
                retired_public_share: bytes(3),
                tweak_commitment: bytes(4),
                new_public_share: bytes(7),
                ..base(12, "claim", 2)
            },
        ]
    }

    fn problem(change: impl FnOnce(&mut Vec<Receipt>)) -> Option<&'static str> {
        let mut log = log();
        change(&mut log);
        judge(&log, DESTROYED_BEFORE, Some(&point(7).serialize())).problem
    }

    #[test]
    fn a_complete_log_is_clean() {
        let share = point(7).serialize();
        let mut shuffled = log();
        shuffled.reverse();
        let verdict = judge(&shuffled, DESTROYED_BEFORE, Some(&share));
        assert_eq!((verdict.problem, verdict.version, verdict.steps.len()), (None, Some(2), 2));
        assert!(!verdict.long_lived_packages);
        assert_eq!(judge(&[], DESTROYED_BEFORE, Some(&share)).problem, Some("no receipts"));
        assert_eq!(
            judge(&log(), DESTROYED_BEFORE, None).problem,
            Some("the receipts do not lead to the share in use")
        );
    }

    #[test]
    fn d15_sends_alone_are_not_clean() {
        let mut sent = log();
        sent.pop();
        let verdict = judge(&sent, DESTROYED_BEFORE, Some(&point(3).serialize()));
        assert_eq!(verdict.problem, Some("the last owner's key is not replaced: no claim followed the send"));
        // Nor does a renewal after the send help.
        let mut renewed = sent.clone();
        renewed.push(Receipt {
            sequence: 12,
            phase: "renew".into(),
            retired_version: 1,
            new_version: 2,
            live_versions: vec![2],
            retired_public_share: point(3).serialize().to_vec(),
            new_public_share: point(3).serialize().to_vec(),
            root_epoch_before: 12,
            root_epoch_after: 13,
            ..sent[1].clone()
        });
        renewed[2].tweak_commitment.clear();
        let verdict = judge(&renewed, DESTROYED_BEFORE, Some(&point(3).serialize()));
        assert_eq!(verdict.problem, Some("the last owner's key is not replaced: no claim followed the send"));
        // An own deposit never changed hands.
        assert_eq!(judge(&log()[..1], DESTROYED_BEFORE, Some(&point(1).serialize())).problem, None);
    }

    #[test]
    fn every_gap_is_found() {
        assert_eq!(problem(|_| {}), None);
        assert_eq!(problem(|l| drop(l.remove(1))), Some("a version is missing"));
        assert_eq!(problem(|l| drop(l.remove(0))), Some("the receipts do not begin with the key's creation"));
        assert_eq!(
            problem(|l| (l[0].new_version, l[0].live_versions) = (5, vec![5])),
            Some("the receipts do not begin with the key's creation")
        );
        assert_eq!(problem(|l| drop(l.pop())), Some("the receipts do not lead to the share in use"));
        let later = |l: &mut Vec<Receipt>| (l[2].root_epoch_before, l[2].root_epoch_after) = (13, 14);
        assert_eq!(problem(later), Some("a destruction is not confirmed yet"));
        assert_eq!(problem(|l| l[2].root_epoch_after = 14), Some("a destruction is not confirmed yet"));
        // What an operator calls confirmed is not, unless it signs that.
        let said = |l: &mut Vec<Receipt>| {
            later(l);
            l[2].state = "confirmed".into();
        };
        assert_eq!(problem(said), Some("a destruction is not confirmed yet"));
        assert_eq!(problem(|l| l[2].live_versions = vec![1, 2]), Some("an older version remains live"));
        assert_eq!(problem(|l| l[2].live_versions.clear()), Some("an older version remains live"));
        assert_eq!(problem(|l| l[1].keyshare_id = vec![8; 16]), Some("the receipts are of several keys"));
        let other = || point(9).serialize().to_vec();
        assert_eq!(
            problem(|l| l[1].retired_public_share = other()),
            Some("the retired share is not the one before")
        );
        assert_eq!(
            problem(|l| l[1].tweak_commitment = other()),
            Some("the new share is not the retired one plus its tweak")
        );
    }

    /// Section 4, check 6: what one root sealed is not destroyed by an earlier one's end, nor without any.
    #[test]
    fn epochs_rise_where_a_phase_destroys() {
        let bent = |index: usize, before: u64, after: u64| {
            problem(|l| (l[index].root_epoch_before, l[index].root_epoch_after) = (before, after))
        };
        assert_eq!((bent(1, 10, 11), bent(2, 12, 13)), (None, None));
        for (index, before, after) in
            [(1, 11, 11), (1, 11, 10), (1, 9, 12), (2, 11, 12), (2, 12, 12), (0, 10, 9)]
        {
            assert_eq!(bent(index, before, after), Some(EPOCHS), "{index} {before} {after}");
        }
        // A key's making destroys nothing; it may end a batch that does.
        assert_eq!((bent(0, 10, 10), bent(0, 10, 11)), (None, None));
        // An aborted attempt does not end an epoch by itself, but none goes back.
        let aborted = |before, after| {
            problem(|l| {
                let abort = Receipt { sequence: 13, phase: "abort".into(), ..Default::default() };
                l.push(Receipt { root_epoch_before: before, root_epoch_after: after, ..abort });
            })
        };
        assert_eq!((aborted(12, 12), aborted(12, 13)), (None, None));
        assert_eq!((aborted(11, 13), aborted(12, 11)), (Some(EPOCHS), Some(EPOCHS)));
    }

    #[test]
    fn the_last_change_of_hands_and_the_weakest_claim_are_told() {
        let mut log = log();
        log[0].delete_claim = "none".into();
        log[2].operation_id = vec![5; 16];
        log.iter_mut().skip(1).for_each(|r| r.delete_claim = "device".into());
        let verdict = judge(&log, DESTROYED_BEFORE, None);
        let tweak = point(4).serialize().to_vec();
        assert_eq!(verdict.hands, Some(Hands { phase: "claim".into(), operation: vec![5; 16], tweak }));
        assert_eq!(verdict.delete_claim, DeleteClaim::None);
    }

    #[test]
    fn d12_a_repaired_operator_is_followed_and_not_clean() {
        let mut log = log();
        log[1] = Receipt {
            phase: receipt::REPAIR.into(),
            retired_version: 1,
            retired_public_share: Vec::new(),
            tweak_commitment: Vec::new(),
            root_epoch_after: 11,
            ..log[1].clone()
        };
        log.remove(0);
        let share = point(7).serialize();
        let verdict = judge(&log, DESTROYED_BEFORE, Some(&share));
        assert_eq!((verdict.problem, verdict.version, verdict.steps.len()), (Some(REPAIRED), Some(2), 1));
        assert!(verdict.repaired && verdict.sound && verdict.refreshes.is_empty());
        // A repair in the midst of a log, and one that skips versions, are none.
        let mut twice = log.clone();
        twice.insert(1, Receipt { sequence: 11, ..log[0].clone() });
        assert_eq!(judge(&twice, DESTROYED_BEFORE, Some(&share)).problem, Some("a version is missing"));
        log[0].retired_version = 0;
        assert_eq!(
            judge(&log, DESTROYED_BEFORE, Some(&share)).problem,
            Some("the receipts do not begin with the key's creation")
        );
    }

    #[test]
    fn d12_a_refresh_is_told_and_is_no_change_of_hands() {
        let refreshed = |change: &dyn Fn(&mut Receipt)| {
            let mut log = log();
            log.push(Receipt {
                sequence: 13,
                phase: receipt::REFRESH.into(),
                operation_id: vec![5; 16],
                retired_version: 2,
                new_version: 3,
                live_versions: vec![3],
                retired_public_share: point(7).serialize().to_vec(),
                tweak_commitment: point(2).serialize().to_vec(),
                new_public_share: point(9).serialize().to_vec(),
                root_epoch_before: 13,
                root_epoch_after: 14,
                ..log[2].clone()
            });
            change(&mut log[3]);
            judge(&log, DESTROYED_BEFORE + 1, Some(&point(9).serialize()))
        };
        let verdict = refreshed(&|_| {});
        assert_eq!((verdict.problem, verdict.version, verdict.refreshes.len()), (None, Some(3), 1));
        // Not before it is confirmed, and not with a share that it does not lead to.
        let verdict = refreshed(&|r| r.root_epoch_after = 15);
        assert_eq!((verdict.problem, verdict.refreshes.len()), (Some(UNCONFIRMED), 0));
        let verdict = refreshed(&|r| r.tweak_commitment.clear());
        assert_eq!(verdict.problem, Some("the new share is not the retired one plus its tweak"));
        let verdict = refreshed(&|r| r.new_public_share = point(8).serialize().to_vec());
        assert!(verdict.problem.is_some() && verdict.refreshes.is_empty());
        // After a send it takes a claim, whatever is refreshed.
        let mut sent = log();
        sent.pop();
        sent.push(Receipt {
            sequence: 12,
            phase: receipt::REFRESH.into(),
            operation_id: vec![5; 16],
            retired_version: 1,
            new_version: 2,
            live_versions: vec![2],
            retired_public_share: point(3).serialize().to_vec(),
            new_public_share: point(5).serialize().to_vec(),
            tweak_commitment: point(2).serialize().to_vec(),
            root_epoch_before: 12,
            root_epoch_after: 13,
            ..sent[1].clone()
        });
        let verdict = judge(&sent, DESTROYED_BEFORE, Some(&point(5).serialize()));
        assert_eq!(verdict.problem, Some("the last owner's key is not replaced: no claim followed the send"));
    }

    #[test]
    fn versions_that_move_without_a_tweak_keep_the_share() {
        for phase in ["renew", "deposit", "claim"] {
            let moved = |share: PublicKey| {
                let mut log = log();
                log.truncate(1);
                log.push(Receipt {
                    sequence: 11,
                    phase: phase.into(),
                    retired_version: 0,
                    new_version: 1,
                    live_versions: vec![1],
                    retired_public_share: point(1).serialize().to_vec(),
                    new_public_share: share.serialize().to_vec(),
                    root_epoch_after: 11,
                    ..log[0].clone()
                });
                judge(&log, DESTROYED_BEFORE, Some(&share.serialize())).problem
            };
            assert_eq!(moved(point(1)).is_none(), phase != "claim", "{phase}");
            assert!(moved(point(2)).is_some(), "{phase}");
        }
    }

    #[test]
    fn aborted_attempts_change_nothing_but_must_be_confirmed() {
        let abort = Receipt {
            sequence: 13,
            phase: "abort".into(),
            root_epoch_before: 12,
            root_epoch_after: 13,
            ..Default::default()
        };
        assert_eq!(problem(|l| l.push(abort.clone())), None);
        let pending = Receipt { root_epoch_before: 13, root_epoch_after: 14, ..abort };
        assert_eq!(problem(|l| l.push(pending)), Some("a destruction is not confirmed yet"));
    }
}
