//! Properties of signing over n, t, signing sets, parities, re-keys and adaptors, and equality of every share with
//! the stock crates' composition.

#![allow(clippy::unwrap_used, reason = "a failed test must stop")]

mod stock;

use std::collections::BTreeMap;

use bitcoin::secp256k1::{Message, PublicKey, SECP256K1, XOnlyPublicKey, schnorr};
use proptest::prelude::*;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use spark_rules::{
    feldman::Proofs,
    frost::{
        AggregateError, Coefficients, Commitment, Culprits, KeyContext, Session, SignatureShare,
        SigningPackage, output_key,
    },
    ids::OperatorIndex,
};
use spark_signer::{
    feldman::{split, verify_and_take},
    frost::{NoncePair, sign_operator, sign_user, signing_session},
    secret::SecretScalar,
};

#[derive(Debug, Clone)]
struct Shape {
    seed: u64,
    n: u16,
    t: u16,
    signers: u16,
    user: bool,
    adaptor: bool,
    rekeys: usize,
    message: [u8; 32],
}

fn shapes() -> impl Strategy<Value = Shape> {
    (1u16..=7)
        .prop_flat_map(|n| (Just(n), 1..=n))
        .prop_flat_map(|(n, t)| {
            let rest = (any::<u64>(), any::<bool>(), any::<bool>(), 0usize..4, any::<[u8; 32]>());
            (Just(n), Just(t), t..=n, rest)
        })
        .prop_map(|(n, t, signers, (seed, user, adaptor, rekeys, message))| Shape {
            seed,
            n,
            t,
            signers,
            user,
            adaptor,
            rekeys: if user { rekeys } else { 0 },
            message,
        })
}

/// A leaf: the operators' shares and the user's key.
struct Leaf {
    shares: Vec<SecretScalar>,
    public_shares: Vec<PublicKey>,
    group: PublicKey,
    user: Option<SecretScalar>,
    verifying_key: PublicKey,
}

impl Leaf {
    fn new(shape: &Shape, rng: &mut ChaCha20Rng) -> Self {
        let secret = SecretScalar::random(rng);
        let shares = split(&secret, shape.t, shape.n, rng).unwrap().shares;
        let user = shape.user.then(|| SecretScalar::random(rng));
        let group = secret.public_key();
        let verifying_key = user.as_ref().map_or(group, |user| group.combine(&user.public_key()).unwrap());
        let public_shares = shares.iter().map(SecretScalar::public_key).collect();
        Self { shares, public_shares, group, user, verifying_key }
    }

    /// A transfer: the sender shares the difference of the user keys among the operators.
    fn rekey(&mut self, shape: &Shape, rng: &mut ChaCha20Rng) {
        let new_user = SecretScalar::random(rng);
        let difference = self.user.take().unwrap().sub(&new_user).unwrap();
        let sharing = split(&difference, shape.t, shape.n, rng).unwrap();
        let proofs = Proofs::from_points(sharing.proofs, shape.t).unwrap();
        for (index, (share, tweak)) in (0..).zip(self.shares.iter_mut().zip(&sharing.shares)) {
            let taken = verify_and_take(&proofs, OperatorIndex::new(index), &tweak.to_bytes()).unwrap();
            *share = share.add(&taken).unwrap();
        }
        (self.group, self.public_shares) = proofs.apply(&self.group, &self.public_shares).unwrap();
        self.user = Some(new_user);
    }
}

/// Signing that also keeps what the stock path needs.
struct Round {
    session: Session,
    shares: BTreeMap<OperatorIndex, SignatureShare>,
    user_share: Option<SignatureShare>,
    stock_shares: BTreeMap<OperatorIndex, [u8; 32]>,
    stock_user: Option<[u8; 32]>,
    job: stock::Job,
}

/// A pair whose secrets the test knows.
fn known_pair(rng: &mut ChaCha20Rng) -> (NoncePair, [u8; 32], [u8; 32]) {
    let (hiding, binding) = (SecretScalar::random(rng), SecretScalar::random(rng));
    let (d, e) = (*hiding.to_bytes(), *binding.to_bytes());
    (NoncePair::from_secrets(hiding, binding), d, e)
}

fn pair_bytes(commitment: &Commitment) -> stock::PairBytes {
    (commitment.hiding.serialize(), commitment.binding.serialize())
}

fn sign(shape: &Shape, leaf: &Leaf, adaptor: Option<PublicKey>, rng: &mut ChaCha20Rng) -> Round {
    let mut members: Vec<OperatorIndex> = (0..shape.n).map(OperatorIndex::new).collect();
    members.shuffle(rng);
    members.truncate(usize::from(shape.signers));
    let pairs: BTreeMap<_, _> = members.iter().map(|index| (*index, known_pair(rng))).collect();
    let user_pair = leaf.user.as_ref().map(|_| known_pair(rng));
    let package = SigningPackage::new(
        leaf.verifying_key,
        shape.message,
        pairs.iter().map(|(index, (pair, _, _))| (*index, *pair.commitment())).collect(),
        user_pair.as_ref().map(|(pair, _, _)| *pair.commitment()),
        adaptor,
        shape.t,
        shape.n,
    )
    .unwrap();
    let context = KeyContext::new(leaf.verifying_key).unwrap();
    let coefficients = Coefficients::new(&members.iter().copied().collect());
    let session = package.session_with(&context, &coefficients).unwrap();
    assert_eq!(session.challenge(), package.session().unwrap().challenge());
    let job = stock::Job {
        verifying_key: leaf.verifying_key.serialize(),
        message: shape.message,
        operators: package.operators().iter().map(|(i, c)| (i.get(), pair_bytes(c))).collect(),
        user: package.user().map(pair_bytes),
        adaptor: adaptor.map(|point| point.serialize()),
    };
    let (mut shares, mut stock_shares) = (BTreeMap::new(), BTreeMap::new());
    for (index, (pair, hiding, binding)) in pairs {
        let share = &leaf.shares[index.as_usize()];
        let secrets = stock::Secrets {
            share: *share.to_bytes(),
            public_share: share.public_key().serialize(),
            hiding,
            binding,
        };
        stock_shares.insert(index, stock::sign_operator(&job, index.get(), &secrets));
        let own = signing_session(&package, &context, &coefficients, index, &pair).unwrap();
        assert_eq!(own.group_commitment(), session.group_commitment());
        let made = sign_operator(&own, index, pair, share).unwrap();
        assert_eq!(own.verify_operator_share(index, &share.public_key(), &made), Ok(()));
        shares.insert(index, made);
    }
    let (mut user_share, mut stock_user) = (None, None);
    if let Some((pair, hiding, binding)) = user_pair {
        let key = leaf.user.as_ref().unwrap();
        let secrets = stock::Secrets {
            share: *key.to_bytes(),
            public_share: key.public_key().serialize(),
            hiding,
            binding,
        };
        stock_user = Some(stock::sign_user(&job, &secrets));
        user_share = Some(sign_user(&session, pair, key).unwrap());
    }
    Round { session, shares, user_share, stock_shares, stock_user, job }
}

fn verifies(output: &XOnlyPublicKey, message: &[u8; 32], signature: &[u8; 64]) -> bool {
    let signature = schnorr::Signature::from_slice(signature).unwrap();
    SECP256K1.verify_schnorr(&signature, &Message::from_digest(*message), output).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_signing_set_signs_and_equals_the_stock_composition(shape in shapes()) {
        let mut rng = ChaCha20Rng::seed_from_u64(shape.seed);
        let mut leaf = Leaf::new(&shape, &mut rng);
        let verifying_key = leaf.verifying_key;
        for _ in 0..shape.rekeys {
            leaf.rekey(&shape, &mut rng);
        }
        let user_key = leaf.user.as_ref().map(SecretScalar::public_key);
        let total = user_key.map_or(leaf.group, |user| leaf.group.combine(&user).unwrap());
        prop_assert_eq!(total, verifying_key);
        for (share, public) in leaf.shares.iter().zip(&leaf.public_shares) {
            prop_assert_eq!(&share.public_key(), public);
        }

        let adaptor = shape.adaptor.then(|| SecretScalar::random(&mut rng));
        let point = adaptor.as_ref().map(SecretScalar::public_key);
        let round = sign(&shape, &leaf, point, &mut rng);
        for (index, share) in &round.shares {
            prop_assert_eq!(share.to_bytes(), round.stock_shares[index]);
            let public = &leaf.public_shares[index.as_usize()];
            prop_assert!(round.session.verify_operator_share(*index, public, share).is_ok());
        }
        prop_assert_eq!(round.user_share.map(SignatureShare::to_bytes), round.stock_user);
        if let (Some(key), Some(share)) = (&user_key, &round.user_share) {
            prop_assert!(round.session.verify_user_share(key, share).is_ok());
        }

        let public = |index: OperatorIndex| leaf.public_shares.get(index.as_usize()).copied();
        let output = output_key(&verifying_key);
        let (session, user_share) = (&round.session, round.user_share.as_ref());
        match adaptor {
            None => {
                let signature = session.aggregate(&round.shares, user_share, public, user_key.as_ref()).unwrap();
                prop_assert!(verifies(&output, &shape.message, &signature));
                let stock = stock::aggregate(
                    &round.job,
                    &round.stock_shares.iter().map(|(i, s)| (i.get(), *s)).collect(),
                    round.stock_user.as_ref(),
                    &(0..).zip(&leaf.public_shares).map(|(i, p)| (i, p.serialize())).collect(),
                    user_key.map(|key| key.serialize()).as_ref(),
                );
                prop_assert_eq!(stock, signature);
                prop_assert_eq!(
                    session.aggregate_adaptor(&round.shares, user_share, public, user_key.as_ref()),
                    Err(AggregateError::Kind)
                );
            }
            Some(secret) => {
                prop_assert_eq!(
                    session.aggregate(&round.shares, user_share, public, user_key.as_ref()),
                    Err(AggregateError::Kind)
                );
                let pre =
                    session.aggregate_adaptor(&round.shares, user_share, public, user_key.as_ref()).unwrap();
                prop_assert!(!verifies(&output, &shape.message, &pre.to_bytes()));
                let signature = pre.complete(&secret.to_bytes()).unwrap();
                prop_assert!(verifies(&output, &shape.message, &signature));
                prop_assert_eq!(pre.extract(&signature).unwrap(), *secret.to_bytes());
                prop_assert!(pre.complete(&SecretScalar::random(&mut rng).to_bytes()).is_err());
                prop_assert!(pre.extract(&pre.to_bytes()).is_err());
            }
        }
    }

    #[test]
    fn blame_names_exactly_the_bad(shape in shapes(), bad in any::<u8>()) {
        let mut rng = ChaCha20Rng::seed_from_u64(shape.seed);
        let leaf = Leaf::new(&shape, &mut rng);
        let point = shape.adaptor.then(|| SecretScalar::random(&mut rng).public_key());
        let Round { session, mut shares, mut user_share, .. } = sign(&shape, &leaf, point, &mut rng);
        let mut culprits = Culprits::default();
        for (position, (index, share)) in shares.iter_mut().enumerate() {
            if bad & (1 << position) != 0 {
                *share = SignatureShare::parse(&*SecretScalar::random(&mut rng).to_bytes()).unwrap();
                culprits.operators.push(*index);
            }
        }
        if bad & 0x80 != 0 && user_share.is_some() {
            user_share = Some(SignatureShare::parse(&*SecretScalar::random(&mut rng).to_bytes()).unwrap());
            culprits.user = true;
        }
        prop_assume!(culprits != Culprits::default());
        let public = |index: OperatorIndex| leaf.public_shares.get(index.as_usize()).copied();
        let user_key = leaf.user.as_ref().map(SecretScalar::public_key);
        let error = if shape.adaptor {
            session.aggregate_adaptor(&shares, user_share.as_ref(), public, user_key.as_ref()).err()
        } else {
            session.aggregate(&shares, user_share.as_ref(), public, user_key.as_ref()).err()
        };
        prop_assert_eq!(error, Some(AggregateError::Culprits(culprits)));
    }
}
