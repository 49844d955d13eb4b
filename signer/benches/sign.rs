//! `./ops/bench sign`: the stock crates composed from bytes per job against the own path, interleaved in one run.
//! Both start from the same wire bytes and the same seeded randomness, and every result is compared.
//!
//! What the own path may keep between jobs is what the signer keeps: the output key per leaf, the coefficients
//! per operator set, its own nonce pairs and key shares in memory.

#![allow(clippy::unwrap_used, reason = "a failed benchmark must stop")]

#[path = "../tests/stock/mod.rs"]
mod stock;

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    time::{Duration, Instant},
};

use bitcoin::secp256k1::PublicKey;
use frost_secp256k1_tr::{
    Group as _, Identifier, Secp256K1Group, Signature,
    keys::{SigningShare, VerifiableSecretSharingCommitment, dkg as stock_dkg},
};
use k256::{Scalar, elliptic_curve::PrimeField as _};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use spark_rules::{
    frost::{Coefficients, Commitment, KeyContext, SignatureShare, SigningPackage},
    ids::OperatorIndex,
};
use spark_signer::{
    dkg::{Round1Package, finish, round1},
    feldman::split,
    frost::{NoncePair, sign_operator, sign_user, signing_session},
    secret::SecretScalar,
};
use zeroize::Zeroizing;

const JOBS: usize = 100;
const ROUNDS: usize = 41;
const ME: u16 = 0;

/// Median times of one comparison, per job.
struct Comparison {
    stock: Duration,
    own: Duration,
}

impl Comparison {
    /// Runs both variants `ROUNDS` times, turn by turn, each on its own fresh input.
    fn run<I, O: PartialEq>(
        jobs: usize,
        mut input: impl FnMut() -> I,
        mut stock: impl FnMut() -> Vec<O>,
        mut own: impl FnMut(I) -> Vec<O>,
    ) -> Self {
        let (mut stock_times, mut own_times) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let fresh = input();
            let start = Instant::now();
            let expected = black_box(stock());
            stock_times.push(start.elapsed());
            let start = Instant::now();
            let result = black_box(own(fresh));
            own_times.push(start.elapsed());
            assert!(expected == result, "results differ");
        }
        let median = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2] / u32::try_from(jobs).unwrap()
        };
        Self { stock: median(stock_times), own: median(own_times) }
    }

    fn ratio(&self) -> f64 {
        self.stock.as_secs_f64() / self.own.as_secs_f64()
    }

    fn report(&self, what: &str) {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        println!("{what:<34} stock {:7.1} µs   own {:7.1} µs", micros(self.stock), micros(self.own));
    }
}

/// One leaf and one signing job of it, with every participant's secrets.
struct Fixture {
    job: stock::Job,
    share: SecretScalar,
    secrets: stock::Secrets,
    context: KeyContext,
    coefficients: Coefficients,
    shares: BTreeMap<u16, [u8; 32]>,
    user_share: [u8; 32],
    public_shares: BTreeMap<u16, [u8; 33]>,
    user_key: PublicKey,
    threshold: u16,
    n: u16,
}

impl Fixture {
    fn new(t: u16, n: u16, rng: &mut ChaCha20Rng) -> Self {
        let secret = SecretScalar::random(rng);
        let user = SecretScalar::random(rng);
        let mut shares = split(&secret, t, n, rng).unwrap().shares;
        let user_key = user.public_key();
        let verifying_key = secret.public_key().combine(&user_key).unwrap();
        let nonces: Vec<(SecretScalar, SecretScalar)> =
            (0..=t).map(|_| (SecretScalar::random(rng), SecretScalar::random(rng))).collect();
        let bytes = |(hiding, binding): &(SecretScalar, SecretScalar)| {
            (hiding.public_key().serialize(), binding.public_key().serialize())
        };
        let (user_nonce, operator_nonces) = nonces.split_last().unwrap();
        let mut message = [0; 32];
        rng.fill_bytes(&mut message);
        let job = stock::Job {
            verifying_key: verifying_key.serialize(),
            message,
            operators: (0..).zip(operator_nonces).map(|(index, nonce)| (index, bytes(nonce))).collect(),
            user: Some(bytes(user_nonce)),
            adaptor: None,
        };
        let session = parse(&job, None, t, n).session().unwrap();
        let pair = |(d, e): &(SecretScalar, SecretScalar)| {
            let copy = |secret: &SecretScalar| SecretScalar::from_bytes(&secret.to_bytes()).unwrap();
            NoncePair::from_secrets(copy(d), copy(e))
        };
        let operator_shares = (0..)
            .zip(operator_nonces)
            .map(|(index, nonce)| {
                let share = &shares[usize::from(index)];
                let share = sign_operator(&session, OperatorIndex::new(index), pair(nonce), share).unwrap();
                (index, share.to_bytes())
            })
            .collect();
        let user_share = sign_user(&session, pair(user_nonce), &user).unwrap().to_bytes();
        let set: BTreeSet<OperatorIndex> = (0..t).map(OperatorIndex::new).collect();
        let public_shares = (0..n).zip(&shares).map(|(i, s)| (i, s.public_key().serialize())).collect();
        let share = shares.swap_remove(usize::from(ME));
        let (hiding, binding) = &operator_nonces[usize::from(ME)];
        let secrets = stock::Secrets {
            share: *share.to_bytes(),
            public_share: share.public_key().serialize(),
            hiding: *hiding.to_bytes(),
            binding: *binding.to_bytes(),
        };
        Self {
            job,
            secrets,
            share,
            context: KeyContext::new(verifying_key).unwrap(),
            coefficients: Coefficients::new(&set),
            shares: operator_shares,
            user_share,
            public_shares,
            user_key,
            threshold: t,
            n,
        }
    }

    fn nonce(&self) -> NoncePair {
        let secret = |bytes| SecretScalar::from_bytes(bytes).unwrap();
        NoncePair::from_secrets(secret(&self.secrets.hiding), secret(&self.secrets.binding))
    }
}

/// A package from wire bytes. A pair that equals the own commitment's bytes needs no decoding.
fn parse(job: &stock::Job, own: Option<&Commitment>, t: u16, n: u16) -> SigningPackage {
    let own = own.map(|commitment| (commitment.to_bytes(), commitment));
    let decode = |(hiding, binding): &stock::PairBytes| match own {
        Some((bytes, commitment)) if bytes[..33] == *hiding && bytes[33..] == *binding => *commitment,
        _ => Commitment::parse(hiding, binding).unwrap(),
    };
    SigningPackage::new(
        PublicKey::from_slice(&job.verifying_key).unwrap(),
        job.message,
        job.operators.iter().map(|(index, pair)| (OperatorIndex::new(*index), decode(pair))).collect(),
        job.user.as_ref().map(decode),
        None,
        t,
        n,
    )
    .unwrap()
}

fn sign(fixtures: &[Fixture]) -> Comparison {
    Comparison::run(
        fixtures.len(),
        || fixtures.iter().map(Fixture::nonce).collect::<Vec<_>>(),
        || fixtures.iter().map(|f| stock::sign_operator(&f.job, ME, &f.secrets)).collect(),
        |nonces| {
            fixtures
                .iter()
                .zip(nonces)
                .map(|(f, nonce)| {
                    let package = parse(&f.job, Some(nonce.commitment()), f.threshold, f.n);
                    let me = OperatorIndex::new(ME);
                    let session = signing_session(&package, &f.context, &f.coefficients, me, &nonce).unwrap();
                    sign_operator(&session, me, nonce, &f.share).unwrap().to_bytes()
                })
                .collect()
        },
    )
}

fn aggregate(fixtures: &[Fixture]) -> Comparison {
    Comparison::run(
        fixtures.len(),
        || (),
        || {
            fixtures
                .iter()
                .map(|f| {
                    let user_key = f.user_key.serialize();
                    stock::aggregate(
                        &f.job,
                        &f.shares,
                        Some(&f.user_share),
                        &f.public_shares,
                        Some(&user_key),
                    )
                })
                .collect()
        },
        |()| {
            fixtures
                .iter()
                .map(|f| {
                    let package = parse(&f.job, None, f.threshold, f.n);
                    let session = package.session_with(&f.context, &f.coefficients).unwrap();
                    let shares = f
                        .shares
                        .iter()
                        .map(|(index, bytes)| {
                            (OperatorIndex::new(*index), SignatureShare::parse(bytes).unwrap())
                        })
                        .collect();
                    let user_share = SignatureShare::parse(&f.user_share).unwrap();
                    // Public shares are decoded only where blame is due.
                    let public = |index: OperatorIndex| {
                        f.public_shares.get(&index.get()).and_then(|bytes| PublicKey::from_slice(bytes).ok())
                    };
                    session.aggregate(&shares, Some(&user_share), public, Some(&f.user_key)).unwrap()
                })
                .collect()
        },
    )
}

fn nonces() -> Comparison {
    let share = SecretScalar::random(&mut ChaCha20Rng::seed_from_u64(3));
    let share_bytes = share.to_bytes();
    Comparison::run(
        JOBS,
        || (),
        || {
            let mut rng = ChaCha20Rng::seed_from_u64(4);
            let share = SigningShare::deserialize(&*share_bytes).unwrap();
            (0..JOBS)
                .map(|_| {
                    let (nonces, commitments) = frost_secp256k1_tr::round1::commit(&share, &mut rng);
                    black_box(nonces);
                    let hiding = commitments.hiding().serialize().unwrap();
                    [hiding, commitments.binding().serialize().unwrap()].concat()
                })
                .collect()
        },
        |()| {
            let mut rng = ChaCha20Rng::seed_from_u64(4);
            (0..JOBS)
                .map(|_| {
                    black_box(NoncePair::generate(&mut rng, Some(&share))).commitment().to_bytes().to_vec()
                })
                .collect()
        },
    )
}

/// Everything a member of a key generation ends up with, as bytes.
#[derive(PartialEq)]
struct KeyBytes {
    round1: Vec<u8>,
    sent: Vec<Vec<u8>>,
    group: [u8; 33],
    public_shares: Vec<[u8; 33]>,
    share: [u8; 32],
}

/// One member's whole work per key: its package, the shares it sends, and its keys from the others' bytes.
fn dkg(t: u16, n: u16) -> Comparison {
    const KEYS: usize = 16;
    let mut rng = ChaCha20Rng::seed_from_u64(5);
    let me = OperatorIndex::new(ME);
    let others: Vec<OperatorIndex> = (1..n).map(OperatorIndex::new).collect();
    let mut wire: BTreeMap<OperatorIndex, Vec<Vec<u8>>> = BTreeMap::new();
    let mut inbox: BTreeMap<OperatorIndex, Zeroizing<Vec<u8>>> = BTreeMap::new();
    for other in &others {
        let (secret, packages) = round1(&mut rng, &[0; 16], *other, n, t, KEYS).unwrap();
        wire.insert(*other, packages.iter().map(Round1Package::to_bytes).collect());
        inbox.insert(*other, secret.shares_for(me).unwrap());
    }
    let stock = || {
        let mut rng = ChaCha20Rng::seed_from_u64(6);
        (0..KEYS).map(|key| stock_key(t, n, key, &wire, &inbox, &mut rng)).collect()
    };
    let own = |()| {
        let mut rng = ChaCha20Rng::seed_from_u64(6);
        let (secret, mine) = round1(&mut rng, &[0; 16], me, n, t, KEYS).unwrap();
        let round1: Vec<Vec<u8>> = mine.iter().map(Round1Package::to_bytes).collect();
        let sent: Vec<_> = others.iter().map(|other| secret.shares_for(*other).unwrap()).collect();
        let mut packages: BTreeMap<_, Vec<_>> = wire
            .iter()
            .map(|(other, batch)| {
                (*other, batch.iter().map(|bytes| Round1Package::parse(bytes, t).unwrap()).collect())
            })
            .collect();
        packages.insert(me, mine);
        let keys = finish(secret, &packages, &inbox).unwrap();
        (0..)
            .zip(round1)
            .zip(keys)
            .map(|((key, round1), output)| KeyBytes {
                round1,
                sent: sent.iter().map(|bytes| bytes[32 * key..32 * key + 32].to_vec()).collect(),
                group: output.group_key.serialize(),
                public_shares: output.public_shares.iter().map(PublicKey::serialize).collect(),
                share: *output.share.to_bytes(),
            })
            .collect()
    };
    Comparison::run(KEYS, || (), stock, own)
}

fn stock_key(
    t: u16,
    n: u16,
    key: usize,
    wire: &BTreeMap<OperatorIndex, Vec<Vec<u8>>>,
    inbox: &BTreeMap<OperatorIndex, Zeroizing<Vec<u8>>>,
    rng: &mut ChaCha20Rng,
) -> KeyBytes {
    let id = |index: OperatorIndex| Identifier::try_from(index.share_index()).unwrap();
    let (secret, mine) = stock_dkg::part1(id(OperatorIndex::new(ME)), n, t, rng).unwrap();
    let mut round1 = mine.commitment().serialize().unwrap().concat();
    round1.extend(Secp256K1Group::serialize(mine.proof_of_knowledge().R()).unwrap());
    round1.extend(mine.proof_of_knowledge().z().to_bytes());
    let packages: BTreeMap<Identifier, stock_dkg::round1::Package> = wire
        .iter()
        .map(|(other, batch)| {
            let (points, proof) = batch[key].split_at(usize::from(t) * 33);
            let commitment = VerifiableSecretSharingCommitment::deserialize(points.chunks(33)).unwrap();
            let nonce = Secp256K1Group::deserialize(proof[..33].try_into().unwrap()).unwrap();
            let response: [u8; 32] = proof[33..].try_into().unwrap();
            let proof = Signature::new(nonce, Scalar::from_repr(response.into()).unwrap());
            (id(*other), stock_dkg::round1::Package::new(commitment, proof))
        })
        .collect();
    let (secret, sent) = stock_dkg::part2(secret, &packages).unwrap();
    let received = inbox
        .iter()
        .map(|(other, bytes)| {
            let share = SigningShare::deserialize(&bytes[32 * key..32 * key + 32]).unwrap();
            (id(*other), stock_dkg::round2::Package::new(share))
        })
        .collect();
    let (own, public) = stock_dkg::part3(&secret, &packages, &received).unwrap();
    let point = |bytes: Vec<u8>| <[u8; 33]>::try_from(bytes).unwrap();
    KeyBytes {
        round1,
        sent: sent.values().map(|package| package.signing_share().serialize()).collect(),
        group: point(public.verifying_key().serialize().unwrap()),
        public_shares: public.verifying_shares().values().map(|s| point(s.serialize().unwrap())).collect(),
        share: own.signing_share().serialize().try_into().unwrap(),
    }
}

fn main() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let small: Vec<Fixture> = (0..JOBS).map(|_| Fixture::new(2, 3, &mut rng)).collect();
    let large: Vec<Fixture> = (0..JOBS).map(|_| Fixture::new(3, 5, &mut rng)).collect();
    let sign_small = sign(&small);
    sign_small.report("operator share, 2-of-3");
    let sign_large = sign(&large);
    sign_large.report("operator share, 3-of-5");
    let aggregate_small = aggregate(&small);
    aggregate_small.report("aggregate and verify, 2-of-3");
    aggregate(&large).report("aggregate and verify, 3-of-5");
    let nonces = nonces();
    nonces.report("nonce pair");
    let dkg_small = dkg(2, 3);
    dkg_small.report("DKG per key and member, 2-of-3");
    dkg(3, 5).report("DKG per key and member, 3-of-5");
    for (name, comparison) in [
        ("sign_ratio_2of3", &sign_small),
        ("sign_ratio_3of5", &sign_large),
        ("aggregate_ratio", &aggregate_small),
        ("nonce_ratio", &nonces),
        ("dkg_ratio", &dkg_small),
    ] {
        println!("{name}={:.2}", comparison.ratio());
    }
}
