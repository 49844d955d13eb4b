//! From operators one by one to how final a leaf is (D15).

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;

use super::{ATTESTATION, DeleteClaim, Finality, OperatorReceipts};

const OTHER_SHARES: &str = "the operator shows other public shares than most";

/// An operator's receipts as judged by themselves and against what this wallet knows.
pub(super) struct Judged {
    pub(super) view: OperatorReceipts,
    /// All public shares, as this operator shows them; its own one is the one that its log leads to.
    pub(super) shares: Vec<PublicKey>,
}

/// On which version and which shares operators agree.
///
/// Where the wallet knows its own claim, every clean operator shows it, so what most agree on counts, and nobody keeps
/// the others from counting by a version that he made up. Else the highest version does: an older one may be how the
/// leaf stood before it went and came back.
fn agreed(operators: &[Judged], is_claimed: bool) -> Option<(Option<u64>, Vec<PublicKey>)> {
    let mut groups: BTreeMap<(Option<u64>, &[PublicKey]), usize> = BTreeMap::new();
    for judged in operators.iter().filter(|judged| judged.view.clean) {
        let members = groups.entry((judged.view.version, &judged.shares)).or_default();
        *members = members.saturating_add(usize::from(!judged.view.repaired));
    }
    let best = if is_claimed {
        groups.into_iter().max_by_key(|((version, _), members)| (*members, *version))
    } else {
        groups.into_iter().max_by_key(|((version, _), members)| (*version, *members))
    };
    best.map(|((version, shares), _)| (version, shares.to_vec()))
}

/// `delete_claim device`, or who states what where that differs.
fn claims(counted: &[&OperatorReceipts]) -> String {
    let mut by_claim: BTreeMap<DeleteClaim, Vec<String>> = BTreeMap::new();
    for view in counted {
        by_claim.entry(view.delete_claim).or_default().push(view.operator.to_string());
    }
    let several = by_claim.len() > 1;
    let words = by_claim.into_iter().map(|(claim, operators)| match several {
        true => format!("{claim} at {}", operators.join(" and ")),
        false => claim.to_string(),
    });
    words.collect::<Vec<_>>().join(", ")
}

pub(super) fn conclude(
    leaf_id: &str,
    mut operators: Vec<Judged>,
    needed: usize,
    is_claimed: bool,
) -> Finality {
    let chosen = agreed(&operators, is_claimed);
    let version = chosen.as_ref().and_then(|(version, _)| *version);
    for judged in &mut operators {
        let others = chosen.as_ref().is_some_and(|(_, shares)| *shares != judged.shares);
        if judged.view.clean && judged.view.version == version && others {
            judged.view.clean = false;
            judged.view.problem = Some(OTHER_SHARES.to_owned());
        }
    }
    let by_operator: Vec<OperatorReceipts> = operators.into_iter().map(|judged| judged.view).collect();
    // The same operators for all versions.
    let counted: Vec<_> = by_operator.iter().filter(|o| o.clean && o.version == version).collect();
    let clean = counted.len();
    // Those whose own log shows everything from the key's making on: of the versions that a repaired one held when it was
    // lost, its share may still exist.
    let sound = counted.iter().filter(|o| !o.repaired).count();
    let caveat = counted.iter().any(|o| o.long_lived_packages);
    let total = by_operator.len();
    let is_final = version.is_some_and(|v| v > 0) && sound >= needed;
    let tolerated_liars = if is_final { sound.saturating_sub(needed) } else { 0 };
    let statement = if is_final {
        let packages = if caveat { "; unless recorded packages are opened later" } else { "" };
        let mended = if sound < clean {
            format!(" ({} by a refresh after repair)", clean.saturating_sub(sound))
        } else {
            String::new()
        };
        let claims = claims(&counted);
        format!(
            "final, {clean} of {total} clean{mended}, tolerates {tolerated_liars} liars, delete_claim {claims}{packages}"
        )
    } else {
        format!("not final yet: {clean} of {total} clean, {needed} needed")
    };
    let delete_claim = counted.iter().map(|o| o.delete_claim).min().unwrap_or_default();
    Finality {
        leaf_id: leaf_id.to_owned(),
        clean,
        operators: total,
        needed,
        is_final,
        tolerated_liars,
        delete_claim,
        attestation: ATTESTATION.to_owned(),
        statement,
        by_operator,
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{SECP256K1, SecretKey};

    use super::*;

    fn operator(operator: u16, version: Option<u64>, clean: bool) -> Judged {
        let view = OperatorReceipts {
            receipts: 1,
            confirmed: 1,
            witnesses: 2,
            version,
            clean,
            delete_claim: DeleteClaim::Device,
            ..OperatorReceipts::unknown(operator)
        };
        Judged { view, shares: Vec::new() }
    }

    /// The share that was lost counts as one that exists, although its operator is clean again.
    #[test]
    fn d12_who_is_clean_by_a_refresh_covers_no_liar() {
        let of = |list: [(bool, bool); 5]| {
            let views = (0u16..).zip(list).map(|(i, (clean, repaired))| {
                let mut judged = operator(i, Some(2), clean);
                judged.view.repaired = repaired;
                judged
            });
            let f = conclude("x", views.collect(), 3, true);
            (f.is_final, f.clean, f.tolerated_liars)
        };
        let (own, mended, not) = ((true, false), (true, true), (false, false));
        assert_eq!(of([own; 5]), (true, 5, 2));
        assert_eq!(of([own, own, own, own, mended]), (true, 5, 1));
        assert_eq!(of([own, own, own, mended, mended]), (true, 5, 0));
        // Two lost shares and one that was not shown destroyed are t of one version.
        assert_eq!(of([own, own, mended, mended, not]), (false, 4, 0));
        assert_eq!(of([own, own, mended, mended, mended]), (false, 5, 0));
    }

    #[test]
    fn finality_counts_clean_operators_at_one_version() {
        let of = |list: [(u64, bool); 3], is_claimed| {
            let views = (0u16..).zip(list).map(|(i, (v, c))| operator(i, Some(v), c)).collect();
            let f = conclude("x", views, 2, is_claimed);
            (f.is_final, f.clean, f.tolerated_liars)
        };
        for is_claimed in [false, true] {
            assert_eq!(of([(2, true), (2, true), (2, true)], is_claimed), (true, 3, 1));
            assert_eq!(of([(2, true), (2, true), (2, false)], is_claimed), (true, 2, 0));
            assert_eq!(of([(2, true), (2, false), (2, false)], is_claimed), (false, 1, 0));
            // A laggard at an older version does not count.
            assert_eq!(of([(2, true), (2, true), (1, true)], is_claimed), (true, 2, 0));
            // Nobody has destroyed anything at version 0.
            assert_eq!(of([(0, true), (0, true), (0, true)], is_claimed), (false, 3, 0));
        }
        // One that is alone with a high version keeps nobody from counting who shows the wallet's own claim. Of a leaf
        // whose claim the wallet does not know, the older version may be one before the leaf went and came back.
        assert_eq!(of([(99, true), (2, true), (2, true)], true), (true, 2, 0));
        assert_eq!(of([(99, true), (2, true), (2, true)], false), (false, 1, 0));
    }

    #[test]
    fn clean_operators_count_together_only_with_the_same_shares() {
        let point = PublicKey::from_secret_key(SECP256K1, &SecretKey::from_slice(&[7; 32]).unwrap());
        let mut views: Vec<Judged> = (0..3).map(|i| operator(i, Some(2), true)).collect();
        views[1].shares.push(point);
        let f = conclude("x", views, 2, true);
        assert_eq!((f.is_final, f.clean, f.tolerated_liars), (true, 2, 0));
        let odd = &f.by_operator[1];
        assert_eq!((odd.clean, odd.problem.as_deref()), (false, Some(OTHER_SHARES)));
    }

    #[test]
    fn the_statement_says_what_deletion_means_and_where_it_is_weak() {
        let f = |change: &dyn Fn(&mut Vec<Judged>)| {
            let mut views =
                vec![operator(0, Some(1), true), operator(1, Some(1), true), operator(2, None, false)];
            change(&mut views);
            let f = conclude("x", views, 2, true);
            (f.statement, f.delete_claim)
        };
        let plain = "final, 2 of 3 clean, tolerates 0 liars, delete_claim";
        assert_eq!(f(&|_| {}), (format!("{plain} device"), DeleteClaim::Device));
        for claim in [DeleteClaim::None, DeleteClaim::HostMedia, DeleteClaim::DeviceMinusBackups] {
            let all = |views: &mut Vec<Judged>| views.iter_mut().for_each(|v| v.view.delete_claim = claim);
            assert_eq!(f(&all), (format!("{plain} {claim}"), claim));
            // The weaker first; who is not counted does not matter.
            let one = |views: &mut Vec<Judged>| views[1].view.delete_claim = claim;
            assert_eq!(f(&one), (format!("{plain} {claim} at 1, device at 0"), claim));
            let other = |views: &mut Vec<Judged>| views[2].view.delete_claim = claim;
            assert_eq!(f(&other), (format!("{plain} device"), DeleteClaim::Device));
        }
        let long_lived = f(&|views| views[0].view.long_lived_packages = true).0;
        assert_eq!(long_lived, format!("{plain} device; unless recorded packages are opened later"));
        // Where nothing is final nothing is claimed.
        let none = f(&|views| views.iter_mut().for_each(|v| v.view.clean = false));
        assert_eq!(none, ("not final yet: 0 of 3 clean, 2 needed".into(), DeleteClaim::Unknown));
    }
}
