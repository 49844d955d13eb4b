//! Key generation among own members, and in mixed sessions with the stock crate through the wire bytes.

#![allow(clippy::unwrap_used, reason = "a failed test must stop")]

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use frost_secp256k1_tr::{Identifier, keys::dkg as stock};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use spark_rules::{
    frost::{SigningPackage, output_key},
    ids::OperatorIndex,
};
use spark_signer::{
    dkg::{DkgError, DkgOutput, Round1Package, Round1Secret, finish, round1},
    frost::{NoncePair, sign_operator},
};
use zeroize::Zeroizing;

const SESSION: [u8; 16] = [9; 16];

type Packages = BTreeMap<OperatorIndex, Vec<Round1Package>>;
type Received = BTreeMap<OperatorIndex, Zeroizing<Vec<u8>>>;

fn member(index: u16) -> OperatorIndex {
    OperatorIndex::new(index)
}

fn start(n: u16, t: u16, count: usize, seed: u64) -> (Vec<Round1Secret>, Packages) {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut packages = Packages::new();
    let secrets = (0..n)
        .map(|index| {
            let (secret, own) = round1(&mut rng, &SESSION, member(index), n, t, count).unwrap();
            let wire = own.iter().map(|p| Round1Package::parse(&p.to_bytes(), t).unwrap()).collect();
            packages.insert(member(index), wire);
            secret
        })
        .collect();
    (secrets, packages)
}

fn shares_to(me: u16, secrets: &[Secret1<'_>]) -> Received {
    secrets
        .iter()
        .filter(|(index, _)| *index != me)
        .map(|(index, secret)| (member(*index), secret.shares_for(member(me)).unwrap()))
        .collect()
}

type Secret1<'a> = (u16, &'a Round1Secret);

fn received(me: u16, secrets: &[Round1Secret]) -> Received {
    let all: Vec<Secret1<'_>> = (0..).zip(secrets).collect();
    shares_to(me, &all)
}

fn run(n: u16, t: u16, count: usize, seed: u64) -> Vec<Vec<DkgOutput>> {
    let (secrets, packages) = start(n, t, count, seed);
    let inbox: Vec<Received> = (0..n).map(|me| received(me, &secrets)).collect();
    secrets.into_iter().zip(&inbox).map(|(secret, inbox)| finish(secret, &packages, inbox).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn members_agree_and_their_shares_sign(
        (n, t) in (2u16..=6).prop_flat_map(|n| (Just(n), 2..=n)),
        count in 1usize..3,
        seed in any::<u64>(),
        message in any::<[u8; 32]>(),
    ) {
        let outputs = run(n, t, count, seed);
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        for key in 0..count {
            let first = &outputs[0][key];
            for (index, output) in outputs.iter().enumerate() {
                prop_assert_eq!(output[key].group_key, first.group_key);
                prop_assert_eq!(&output[key].public_shares, &first.public_shares);
                prop_assert_eq!(output[key].share.public_key(), first.public_shares[index]);
            }
            let signers = n - t..n;
            let nonces: BTreeMap<_, _> =
                signers.map(|index| (member(index), NoncePair::generate(&mut rng, None))).collect();
            let package = SigningPackage::new(
                first.group_key,
                message,
                nonces.iter().map(|(index, nonce)| (*index, *nonce.commitment())).collect(),
                None,
                None,
                t,
                n,
            ).unwrap();
            let session = package.session().unwrap();
            prop_assert_eq!(session.output_key(), output_key(&first.group_key));
            let shares = nonces
                .into_iter()
                .map(|(index, nonce)| {
                    let share = &outputs[index.as_usize()][key].share;
                    (index, sign_operator(&session, index, nonce, share).unwrap())
                })
                .collect();
            let public = |index: OperatorIndex| first.public_shares.get(index.as_usize()).copied();
            prop_assert!(session.aggregate(&shares, None, public, None).is_ok());
        }
    }
}

#[test]
fn same_randomness_gives_the_stock_packages() {
    for (n, t) in [(3, 2), (5, 3), (7, 7)] {
        for index in 0..n {
            let seed = u64::from(index);
            let mut rng = ChaCha20Rng::seed_from_u64(seed);
            let (_, own) = round1(&mut rng, &SESSION, member(index), n, t, 2).unwrap();
            let mut rng = ChaCha20Rng::seed_from_u64(seed);
            for package in own {
                let (_, stock) = stock::part1(identifier(index), n, t, &mut rng).unwrap();
                assert_eq!(Round1Package::from_stock(&stock, t), Some(package.clone()));
                assert_eq!(package.to_stock().unwrap(), stock);
            }
        }
    }
}

fn identifier(index: u16) -> Identifier {
    Identifier::try_from(index + 1).unwrap()
}

/// Runs a session of which the members in `own` are ours and the others use the stock crate.
fn mixed(n: u16, t: u16, own: &[u16], seed: u64) {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut wire: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for index in 0..n {
        if own.contains(&index) {
            let (secret, packages) = round1(&mut rng, &SESSION, member(index), n, t, 1).unwrap();
            wire.insert(index, packages[0].to_bytes());
            ours.push((index, secret));
        } else {
            let (secret, package) = stock::part1(identifier(index), n, t, &mut rng).unwrap();
            wire.insert(index, Round1Package::from_stock(&package, t).unwrap().to_bytes());
            theirs.push((index, secret));
        }
    }
    let parsed = |index: u16| Round1Package::parse(&wire[&index], t).unwrap();
    let mut shares: BTreeMap<(u16, u16), Vec<u8>> = BTreeMap::new();
    let mut theirs_round2 = Vec::new();
    for (index, secret) in theirs {
        let others: BTreeMap<_, _> = (0..n)
            .filter(|other| *other != index)
            .map(|other| (identifier(other), parsed(other).to_stock().unwrap()))
            .collect();
        let (secret, packages) = stock::part2(secret, &others).unwrap();
        for other in (0..n).filter(|other| *other != index) {
            shares.insert((index, other), packages[&identifier(other)].signing_share().serialize());
        }
        theirs_round2.push((index, secret, others));
    }
    for (index, secret) in &ours {
        for other in (0..n).filter(|other| other != index) {
            shares.insert((*index, other), secret.shares_for(member(other)).unwrap().to_vec());
        }
    }
    let mut keys: Vec<(PublicKey, Vec<PublicKey>)> = Vec::new();
    for (index, secret) in ours {
        let packages = (0..n).map(|other| (member(other), vec![parsed(other)])).collect();
        let inbox = (0..n)
            .filter(|other| *other != index)
            .map(|other| (member(other), Zeroizing::new(shares[&(other, index)].clone())))
            .collect();
        let [output] = <[DkgOutput; 1]>::try_from(finish(secret, &packages, &inbox).unwrap()).ok().unwrap();
        assert_eq!(output.share.public_key(), output.public_shares[usize::from(index)]);
        keys.push((output.group_key, output.public_shares));
    }
    for (index, secret, others) in theirs_round2 {
        let inbox = (0..n)
            .filter(|other| *other != index)
            .map(|other| {
                let share =
                    frost_secp256k1_tr::keys::SigningShare::deserialize(&shares[&(other, index)]).unwrap();
                (identifier(other), stock::round2::Package::new(share))
            })
            .collect();
        let (_, public) = stock::part3(&secret, &others, &inbox).unwrap();
        let group = PublicKey::from_slice(&public.verifying_key().serialize().unwrap()).unwrap();
        let public_shares = (0..n)
            .map(|other| {
                let share = public.verifying_shares()[&identifier(other)].serialize().unwrap();
                PublicKey::from_slice(&share).unwrap()
            })
            .collect();
        keys.push((group, public_shares));
    }
    assert_eq!(keys.len(), usize::from(n));
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn mixed_sessions_with_the_stock_crate_agree() {
    for seed in 0..8 {
        mixed(3, 2, &[0], seed);
        mixed(3, 2, &[2], seed);
        mixed(3, 2, &[0, 1], seed);
        mixed(3, 2, &[1, 2], seed);
        mixed(5, 3, &[1, 3], seed);
        mixed(3, 3, &[0, 1, 2], seed);
    }
}

#[test]
fn a_bad_proof_names_its_sender() {
    let (secrets, mut packages) = start(3, 2, 2, 1);
    let inbox = received(0, &secrets);
    let honest = packages[&member(1)][1].to_bytes();
    for at in [0, 33, 66] {
        let mut bytes = honest.clone();
        bytes[at..at + 33].copy_from_slice(&packages[&member(2)][0].to_bytes()[..33]);
        if at == 66 {
            bytes = honest.clone();
            bytes[130] ^= 1;
        }
        packages.get_mut(&member(1)).unwrap()[1] = Round1Package::parse(&bytes, 2).unwrap();
        let secret = start(3, 2, 2, 1).0.remove(0);
        let error = finish(secret, &packages, &inbox).err().unwrap();
        let expected = if at == 33 {
            // The proof covers the constant term only; a foreign higher coefficient shows in the share.
            DkgError::Share { culprit: member(1), key: 1 }
        } else {
            DkgError::Proof { culprit: member(1), key: 1 }
        };
        assert_eq!(error, expected);
    }
}

#[test]
fn a_proof_of_another_member_is_refused() {
    let (mut secrets, mut packages) = start(3, 2, 1, 2);
    let copied = packages[&member(1)].clone();
    packages.insert(member(2), copied);
    let inbox = received(0, &secrets);
    let error = finish(secrets.remove(0), &packages, &inbox).err().unwrap();
    assert_eq!(error, DkgError::Proof { culprit: member(2), key: 0 });
}

#[test]
fn a_bad_share_names_its_sender() {
    for bad in [[1u8; 32], [0; 32], [0xff; 32]] {
        let (mut secrets, packages) = start(4, 3, 3, 3);
        let mut inbox = received(1, &secrets);
        inbox.get_mut(&member(3)).unwrap()[64..96].copy_from_slice(&bad);
        let error = finish(secrets.remove(1), &packages, &inbox).err().unwrap();
        assert_eq!(error, DkgError::Share { culprit: member(3), key: 2 });
    }
}

#[test]
fn incomplete_runs_give_no_keys() {
    let take = || start(3, 2, 2, 4).0.remove(0);
    let (secrets, packages) = start(3, 2, 2, 4);
    let inbox = received(0, &secrets);
    assert!(finish(take(), &packages, &inbox).is_ok());

    let mut fewer = packages.clone();
    fewer.remove(&member(2));
    assert_eq!(finish(take(), &fewer, &inbox).err(), Some(DkgError::Messages));
    let mut more = packages.clone();
    more.insert(member(3), packages[&member(2)].clone());
    assert_eq!(finish(take(), &more, &inbox).err(), Some(DkgError::Messages));
    let mut swapped = packages.clone();
    swapped.insert(member(0), packages[&member(1)].clone());
    assert_eq!(finish(take(), &swapped, &inbox).err(), Some(DkgError::Messages));
    let mut short = packages.clone();
    short.get_mut(&member(1)).unwrap().pop();
    let culprit = member(1);
    assert_eq!(finish(take(), &short, &inbox).err(), Some(DkgError::Package { culprit, key: 1 }));

    let mut silent = inbox.clone();
    silent.remove(&member(1));
    assert_eq!(finish(take(), &packages, &silent).err(), Some(DkgError::Messages));
    let mut cut = inbox;
    cut.get_mut(&member(1)).unwrap().pop();
    assert_eq!(finish(take(), &packages, &cut).err(), Some(DkgError::Share { culprit, key: 0 }));
}

#[test]
fn another_threshold_does_not_parse() {
    let (secrets, packages) = start(3, 2, 1, 5);
    let bytes = packages[&member(0)][0].to_bytes();
    assert_eq!(bytes.len(), 2 * 33 + 65);
    assert!(Round1Package::parse(&bytes, 1).is_none());
    assert!(Round1Package::parse(&bytes, 3).is_none());
    assert!(Round1Package::parse(&bytes[1..], 2).is_none());
    assert!(Round1Package::parse(&[], 2).is_none());
    assert!(secrets[0].shares_for(member(0)).is_err());
    assert!(secrets[0].shares_for(member(3)).is_err());
    let mut rng = ChaCha20Rng::seed_from_u64(6);
    for (me, n, t, count) in [(0, 3, 1, 1), (0, 3, 4, 1), (3, 3, 2, 1), (0, 3, 2, 0)] {
        assert!(round1(&mut rng, &SESSION, member(me), n, t, count).is_err());
    }
}
