//! Repair of a share among own members, and in mixed sessions with the stock crate through the values' bytes.

#![allow(clippy::unwrap_used, reason = "a failed test must stop")]

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::PublicKey;
use frost_secp256k1_tr::{
    Identifier, Secp256K1Sha256TR, VerifyingKey,
    keys::{KeyPackage, PublicKeyPackage, SigningShare, VerifyingShare, repairable as stock},
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use spark_rules::ids::OperatorIndex;
use spark_signer::{
    feldman,
    repair::{Commitments, Helpers, RepairError},
    secret::SecretScalar,
};

/// Deltas by receiver and sender.
type Received = BTreeMap<OperatorIndex, BTreeMap<OperatorIndex, SecretScalar>>;
/// By sender.
type Committed = BTreeMap<OperatorIndex, Commitments>;

/// A sharing, a lost member and who helps it.
struct Case {
    shares: Vec<SecretScalar>,
    public: Vec<PublicKey>,
    group: PublicKey,
    threshold: u16,
    helpers: Helpers,
    rng: ChaCha20Rng,
}

fn member(index: u16) -> OperatorIndex {
    OperatorIndex::new(index)
}

impl Case {
    fn new(n: u16, t: u16, lost: u16, order: &[u16], seed: u64) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let secret = SecretScalar::random(&mut rng);
        let shares = feldman::split(&secret, t, n, &mut rng).unwrap().shares;
        let chosen = order.iter().copied().filter(|i| *i != lost).take(t.into()).map(member).collect();
        Self {
            public: shares.iter().map(SecretScalar::public_key).collect(),
            group: secret.public_key(),
            shares,
            threshold: t,
            helpers: Helpers::new(chosen, member(lost), t).unwrap(),
            rng,
        }
    }

    fn public(&self, index: OperatorIndex) -> PublicKey {
        self.public[index.as_usize()]
    }

    /// All deltas by receiver and sender, and all commitments.
    fn deltas(&mut self) -> (Received, Committed) {
        let mut received = Received::new();
        let mut commitments = BTreeMap::new();
        for helper in self.helpers.operators() {
            let split = self.helpers.split(*helper, &self.shares[helper.as_usize()], &mut self.rng).unwrap();
            let public = self.public[helper.as_usize()];
            self.helpers.check_commitments(*helper, &public, &split.commitments).unwrap();
            for (to, delta) in split.deltas {
                received.entry(to).or_default().insert(*helper, delta);
            }
            commitments.insert(*helper, split.commitments);
        }
        (received, commitments)
    }

    fn sums(
        &self,
        received: &Received,
        commitments: &Committed,
    ) -> Result<BTreeMap<OperatorIndex, SecretScalar>, RepairError> {
        received
            .iter()
            .map(|(helper, deltas)| Ok((*helper, self.helpers.sum(*helper, deltas, commitments)?)))
            .collect()
    }

    fn key_package(&self, index: OperatorIndex) -> KeyPackage {
        let share = SigningShare::deserialize(self.shares[index.as_usize()].to_bytes().as_slice()).unwrap();
        let public = VerifyingShare::deserialize(&self.public(index).serialize()).unwrap();
        let group = VerifyingKey::deserialize(&self.group.serialize()).unwrap();
        KeyPackage::new(identifier(index), share, public, group, self.threshold)
    }
}

fn identifier(index: OperatorIndex) -> Identifier {
    Identifier::try_from(index.share_index()).unwrap()
}

fn other_scalar() -> SecretScalar {
    SecretScalar::from_bytes(&[1; 32]).unwrap()
}

/// n, t, who lost the share, and an order of members of which the first t others help.
fn cases() -> impl Strategy<Value = (u16, u16, u16, Vec<u16>)> {
    (3u16..=15).prop_flat_map(|n| (Just(n), 2..n, 0..n)).prop_flat_map(|(n, t, lost)| {
        (Just(n), Just(t), Just(lost), Just((0..n).collect::<Vec<_>>()).prop_shuffle())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_helpers_repair_any_share((n, t, lost, order) in cases(), seed: u64) {
        let mut case = Case::new(n, t, lost, &order, seed);
        let (received, commitments) = case.deltas();
        let sums = case.sums(&received, &commitments).unwrap();
        let public = case.public(member(lost));
        let share = case.helpers.repair(&sums, &commitments, &public).unwrap();
        prop_assert!(share.ct_eq(&case.shares[usize::from(lost)]));
        // No single value on the way is the share, and another member's record does not fit.
        let on_the_way = sums.values().chain(received.values().flat_map(BTreeMap::values));
        prop_assert!(on_the_way.into_iter().all(|value| !value.ct_eq(&share)));
        let other = case.public(member((lost + 1) % n));
        prop_assert_eq!(case.helpers.repair(&sums, &commitments, &other).err(), Some(RepairError::Share));
    }

    #[test]
    fn own_and_stock_helpers_repair_together((n, t, lost, order) in cases(), seed: u64, own: u16) {
        let mut case = Case::new(n, t, lost, &order, seed);
        let ids: Vec<Identifier> = case.helpers.operators().iter().map(|i| identifier(*i)).collect();
        let lost = member(lost);
        // Deltas as bytes by receiver: some helpers are ours, the others the stock crate's.
        let mut inbox: BTreeMap<OperatorIndex, Vec<Vec<u8>>> = BTreeMap::new();
        for helper in case.helpers.operators().clone() {
            if (own >> helper.get()) & 1 == 1 {
                let split = case.helpers.split(helper, &case.shares[helper.as_usize()], &mut case.rng).unwrap();
                for (to, delta) in split.deltas {
                    inbox.entry(to).or_default().push(delta.to_bytes().to_vec());
                }
            } else {
                let package = case.key_package(helper);
                let deltas =
                    stock::repair_share_part1::<Secp256K1Sha256TR, _>(&ids, &package, &mut case.rng, identifier(lost));
                let deltas = deltas.unwrap();
                for to in case.helpers.operators() {
                    inbox.entry(*to).or_default().push(deltas[&identifier(*to)].serialize());
                }
            }
        }
        let stock_deltas = |bytes: &[Vec<u8>]| {
            bytes.iter().map(|b| stock::Delta::deserialize(b).unwrap()).collect::<Vec<_>>()
        };
        let sigmas: Vec<_> =
            inbox.values().map(|bytes| stock::repair_share_part2(&stock_deltas(bytes))).collect();
        // The stock crate's own sums, and ours over the same deltas.
        for (bytes, sigma) in inbox.values().zip(&sigmas) {
            let scalars = bytes.iter().map(|b| SecretScalar::from_bytes(b.as_slice().try_into().unwrap()).unwrap());
            let sum = scalars.reduce(|a, b| a.add(&b).unwrap()).unwrap();
            prop_assert_eq!(sum.to_bytes().to_vec(), sigma.serialize());
        }
        let shares = case.public.iter().zip(0..).map(|(point, index)| {
            (identifier(member(index)), VerifyingShare::deserialize(&point.serialize()).unwrap())
        });
        let group = VerifyingKey::deserialize(&case.group.serialize()).unwrap();
        let keys = PublicKeyPackage::new(shares.collect(), group, Some(t));
        let repaired = stock::repair_share_part3(&sigmas, identifier(lost), &keys).unwrap();
        prop_assert_eq!(repaired.signing_share().serialize(), case.shares[lost.as_usize()].to_bytes().to_vec());
    }

    #[test]
    fn who_sends_something_wrong_is_named((n, t, lost, order) in cases(), seed: u64, at: prop::sample::Index) {
        let mut case = Case::new(n, t, lost, &order, seed);
        let helpers: Vec<OperatorIndex> = case.helpers.operators().iter().copied().collect();
        let culprit = helpers[at.index(helpers.len())];
        let victim = helpers[at.index(helpers.len() - 1)];
        let public = case.public(member(lost));

        // Another share than the recorded one.
        let split = case.helpers.split(culprit, &other_scalar(), &mut case.rng).unwrap();
        let checked = case.helpers.check_commitments(culprit, &case.public(culprit), &split.commitments);
        prop_assert_eq!(checked, Err(RepairError::Commitment { culprit }));

        // Another delta than the one committed to.
        let (mut received, commitments) = case.deltas();
        received.get_mut(&victim).unwrap().insert(culprit, other_scalar());
        prop_assert_eq!(case.sums(&received, &commitments).err(), Some(RepairError::Delta { culprit }));

        // Another sum.
        let (received, commitments) = case.deltas();
        let mut sums = case.sums(&received, &commitments).unwrap();
        sums.insert(culprit, other_scalar());
        let repaired = case.helpers.repair(&sums, &commitments, &public).err();
        prop_assert_eq!(repaired, Some(RepairError::Sum { culprit }));
        sums.remove(&culprit);
        prop_assert_eq!(case.helpers.repair(&sums, &commitments, &public).err(), Some(RepairError::Messages));
    }
}

#[test]
fn helpers_are_exactly_t_others() {
    let set = |members: &[u16]| members.iter().copied().map(member).collect::<BTreeSet<_>>();
    assert_eq!(Helpers::new(set(&[0, 1]), member(1), 2).err(), Some(RepairError::Helpers));
    assert_eq!(Helpers::new(set(&[0]), member(1), 2).err(), Some(RepairError::Helpers));
    assert_eq!(Helpers::new(set(&[0, 2, 3]), member(1), 2).err(), Some(RepairError::Helpers));
    assert_eq!(Helpers::new(set(&[]), member(1), 0).err(), Some(RepairError::Helpers));
    let helpers = Helpers::new(set(&[0, 2]), member(1), 2).unwrap();
    let stranger = helpers.split(member(3), &other_scalar(), &mut ChaCha20Rng::seed_from_u64(1));
    assert_eq!(stranger.err(), Some(RepairError::Helpers));
}
