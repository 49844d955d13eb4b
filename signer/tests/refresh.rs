//! Refresh of shares among own members, and in mixed sessions with the stock crate through the values' bytes.

#![allow(clippy::unwrap_used, reason = "a failed test must stop")]

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use frost_secp256k1_tr::{Identifier, keys::refresh as stock};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use spark_rules::{
    feldman::{Proofs, ZeroProofs, is_sharing_of, is_zero_sharing},
    ids::OperatorIndex,
};
use spark_signer::{
    feldman,
    refresh::{Deal, RefreshError, deal, take},
    secret::SecretScalar,
};

fn member(index: u16) -> OperatorIndex {
    OperatorIndex::new(index)
}

/// What `me` gets of all deals.
fn dealt(
    deals: &[Deal],
    me: usize,
) -> (BTreeMap<OperatorIndex, &ZeroProofs>, BTreeMap<OperatorIndex, SecretScalar>) {
    (0u16..)
        .zip(deals)
        .map(|(dealer, deal)| {
            let share = SecretScalar::from_bytes(&deal.shares[me].to_bytes()).unwrap();
            ((member(dealer), &deal.proofs), (member(dealer), share))
        })
        .unzip()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every share moves to where its public tweak says, and all lie on one polynomial with the same constant term.
    #[test]
    fn the_key_stays_and_every_share_changes(n in 2u16..8, below in 0u16..6, seed: u64) {
        let t = (n - below.min(n - 2)).max(2);
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let secret = SecretScalar::random(&mut rng);
        let split = feldman::split(&secret, t, n, &mut rng).unwrap();
        let deals: Vec<_> = (0..n).map(|_| deal(t, n, &mut rng).unwrap()).collect();
        let sum = ZeroProofs::sum(&deals.iter().map(|d| d.proofs.clone()).collect::<Vec<_>>()).unwrap();
        let before: Vec<PublicKey> = split.shares.iter().map(SecretScalar::public_key).collect();
        let after = sum.apply(&before).unwrap();
        let mut tweaks: Vec<_> = (0..n).map(|i| sum.share_commitment(member(i)).unwrap()).collect();
        prop_assert!(is_zero_sharing(&tweaks, t));
        tweaks[usize::from(n) - 1] = secret.public_key();
        prop_assert!(!is_zero_sharing(&tweaks, t));
        prop_assert!(!is_zero_sharing(&before, t), "any sharing passes");
        for shares in [&before, &after] {
            prop_assert!(is_sharing_of(&secret.public_key(), shares, t));
            prop_assert!(!is_sharing_of(&before[0], shares, t), "of another key");
            // One share, wherever it stands, and a place too few for the threshold.
            for wrong in 0..shares.len() {
                let mut shares = shares.clone();
                shares[wrong] = secret.public_key();
                prop_assert!(!is_sharing_of(&secret.public_key(), &shares, t));
            }
            prop_assert!(!is_sharing_of(&secret.public_key(), &shares[1..], t));
            prop_assert!(!is_sharing_of(&secret.public_key(), &shares[..usize::from(t) - 1], t));
        }
        // The commitments of the new sharing: the old constant, the other coefficients moved.
        let mut points = split.proofs.clone();
        for (point, added) in points.iter_mut().skip(1).zip(sum.points()) {
            *point = point.combine(added).unwrap();
        }
        let proofs = Proofs::from_points(points, t).unwrap();
        prop_assert_eq!(proofs.constant(), secret.public_key());
        for (i, share) in split.shares.iter().enumerate() {
            let (proofs_of, shares) = dealt(&deals, i);
            let tweak = take(member(i as u16), &proofs_of, &shares).unwrap();
            let new = share.add(&tweak).unwrap();
            prop_assert_eq!(new.public_key(), after[i]);
            prop_assert_eq!(new.public_key(), proofs.share_commitment(member(i as u16)).unwrap());
            prop_assert!(!new.ct_eq(share));
        }
    }
}

#[test]
fn who_deals_wrongly_is_named() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let deals: Vec<_> = (0..5).map(|_| deal(3, 5, &mut rng).unwrap()).collect();
    let (proofs, mut shares) = dealt(&deals, 1);
    assert!(take(member(1), &proofs, &shares).is_ok());
    shares.insert(member(3), SecretScalar::random(&mut rng));
    assert_eq!(take(member(1), &proofs, &shares).err(), Some(RefreshError::Share { culprit: member(3) }));
    // Another member's value is none of this one's, and all must have dealt.
    let (_, mut shares) = dealt(&deals, 1);
    assert_eq!(take(member(2), &proofs, &shares).err(), Some(RefreshError::Share { culprit: member(0) }));
    shares.remove(&member(4));
    assert_eq!(take(member(1), &proofs, &shares).err(), Some(RefreshError::Incomplete));
    assert_eq!(take(member(1), &BTreeMap::new(), &BTreeMap::new()).err(), Some(RefreshError::Incomplete));
    for (t, n) in [(0, 3), (1, 3), (4, 3)] {
        assert!(matches!(deal(t, n, &mut rng), Err(RefreshError::Parameters { .. })));
    }
    // One commitment too many, or too few, is another degree.
    let points = deals[0].proofs.points();
    assert!(ZeroProofs::from_points(points[..1].to_vec(), 3).is_err());
    assert!(ZeroProofs::from_points(vec![points[0]; 3], 3).is_err());
    assert!(ZeroProofs::from_points(Vec::new(), 1).is_err());
}

/// Members 1 and 2 run the stock crate's first two rounds; what they send is what this crate takes.
#[test]
fn stock_members_deal_what_ours_take() {
    let (t, n) = (2u16, 3u16);
    let mut rng = ChaCha20Rng::seed_from_u64(2);
    let id = |index: u16| Identifier::try_from(index + 1).unwrap();
    let ours = deal(t, n, &mut rng).unwrap();
    let run: BTreeMap<u16, _> =
        (0..n).map(|i| (i, stock::refresh_dkg_part1(id(i), n, t, &mut rng).unwrap())).collect();
    let mut proofs = BTreeMap::from([(member(0), ours.proofs)]);
    let mut shares =
        BTreeMap::from([(member(0), SecretScalar::from_bytes(&ours.shares[0].to_bytes()).unwrap())]);
    for dealer in 1..n {
        let (secret, package) = run[&dealer].clone();
        let others = run
            .iter()
            .filter(|(i, _)| **i != dealer)
            .map(|(i, (_, package))| (id(*i), package.clone()))
            .collect();
        let (_, values) = stock::refresh_dkg_part2(secret, &others).unwrap();
        let points = package.commitment().serialize().unwrap();
        let value: [u8; 32] = values[&id(0)].signing_share().serialize().try_into().unwrap();
        proofs.insert(member(dealer), ZeroProofs::parse(&points, t).unwrap());
        shares.insert(member(dealer), SecretScalar::from_bytes(&value).unwrap());
    }
    let proofs: BTreeMap<_, _> = proofs.iter().map(|(i, p)| (*i, p)).collect();
    assert!(take(member(0), &proofs, &shares).is_ok());
}
