//! From all messages of a batch to its keys.

use std::collections::BTreeMap;

use bitcoin::secp256k1::{Parity, PublicKey, SECP256K1};
use k256::Scalar;
use spark_rules::{feldman::Proofs, frost::KeyContext, ids::OperatorIndex};
use zeroize::Zeroizing;

use super::{DkgError, Round1Package, Round1Secret, own_value};
use crate::{feldman::verify_and_take, secret::SecretScalar};

/// One key of the batch.
#[expect(missing_debug_implementations, reason = "secrets are never printed")]
pub struct DkgOutput {
    /// The operators' key, tweaked as the stock crate does (see [`finish`]).
    pub group_key: PublicKey,
    /// Public key shares by operator index.
    pub public_shares: Vec<PublicKey>,
    /// The own key share.
    pub share: SecretScalar,
}

/// Verifies every proof of knowledge and every received share and computes the batch's keys. `packages` holds the
/// round-1 packages of all members, the own included; `received` the shares from every other member, count × 32
/// bytes each.
///
/// As the stock crate's `post_dkg` does, each key is made even and moved by its own BIP341 tweak; all shares move
/// along. The leaf's total key is tweaked once more when signing.
pub fn finish(
    secret: Round1Secret,
    packages: &BTreeMap<OperatorIndex, Vec<Round1Package>>,
    received: &BTreeMap<OperatorIndex, Zeroizing<Vec<u8>>>,
) -> Result<Vec<DkgOutput>, DkgError> {
    let members = (0..secret.n).map(OperatorIndex::new);
    let others = members.clone().filter(|index| *index != secret.me);
    if !packages.keys().copied().eq(members)
        || !received.keys().copied().eq(others)
        || packages.get(&secret.me) != Some(&secret.packages)
    {
        return Err(DkgError::Messages);
    }
    let count = secret.count();
    for (sender, batch) in packages {
        if batch.len() != count {
            return Err(DkgError::Package { culprit: *sender, key: batch.len().min(count) });
        }
        for (key, package) in batch.iter().enumerate() {
            if package.commitments().points().len() != usize::from(secret.t) {
                return Err(DkgError::Package { culprit: *sender, key });
            }
            if *sender != secret.me && !package.verify(*sender) {
                return Err(DkgError::Proof { culprit: *sender, key });
            }
        }
    }
    if let Some((sender, _)) = received.iter().find(|(_, bytes)| bytes.len() != count * 32) {
        return Err(DkgError::Share { culprit: *sender, key: 0 });
    }
    (0..count).map(|key| finish_key(&secret, packages, received, key)).collect()
}

fn finish_key(
    secret: &Round1Secret,
    packages: &BTreeMap<OperatorIndex, Vec<Round1Package>>,
    received: &BTreeMap<OperatorIndex, Zeroizing<Vec<u8>>>,
    key: usize,
) -> Result<DkgOutput, DkgError> {
    let polynomial = secret.polynomials.get(key).ok_or(DkgError::Messages)?;
    let proofs: Vec<(OperatorIndex, &Proofs)> = packages
        .iter()
        .filter_map(|(sender, batch)| Some((*sender, batch.get(key)?.commitments())))
        .collect();

    let sum = sum_commitments(&proofs, secret.t).ok_or(DkgError::Identity(key))?;
    let public_shares: Vec<PublicKey> = (0..secret.n)
        .map(|index| sum.share_commitment(OperatorIndex::new(index)))
        .collect::<Result<_, _>>()
        .map_err(|_| DkgError::Identity(key))?;

    // One check for the sum; the senders are checked one by one only to name the culprit.
    let own = own_value(polynomial, secret.me, key)?;
    let mut total = Zeroizing::new(*own.scalar());
    for (sender, bytes) in received {
        let share = share_at(bytes, key).ok_or(DkgError::Share { culprit: *sender, key })?;
        let share =
            SecretScalar::from_bytes(&share).map_err(|_| DkgError::Share { culprit: *sender, key })?;
        *total += share.scalar();
    }
    let share = SecretScalar::from_scalar(*total).map_err(|_| DkgError::Identity(key));
    let expected = public_shares.get(secret.me.as_usize());
    match share {
        Ok(share) if Some(&share.public_key()) == expected => {
            tweaked(sum.constant(), &public_shares, &share, key)
        }
        other => Err(blame(secret.me, &proofs, received, key)
            .unwrap_or_else(|| other.err().unwrap_or(DkgError::Identity(key)))),
    }
}

fn share_at(bytes: &Zeroizing<Vec<u8>>, key: usize) -> Option<Zeroizing<[u8; 32]>> {
    let start = key.checked_mul(32)?;
    bytes.get(start..start.checked_add(32)?)?.try_into().ok().map(Zeroizing::new)
}

fn sum_commitments(proofs: &[(OperatorIndex, &Proofs)], t: u16) -> Option<Proofs> {
    let points = (0..usize::from(t))
        .map(|k| {
            let column: Vec<&PublicKey> = proofs.iter().filter_map(|(_, p)| p.points().get(k)).collect();
            PublicKey::combine_keys(&column).ok()
        })
        .collect::<Option<Vec<_>>>()?;
    Proofs::from_points(points, t).ok()
}

fn blame(
    me: OperatorIndex,
    proofs: &[(OperatorIndex, &Proofs)],
    received: &BTreeMap<OperatorIndex, Zeroizing<Vec<u8>>>,
    key: usize,
) -> Option<DkgError> {
    proofs.iter().find_map(|(sender, proofs)| {
        let share = share_at(received.get(sender)?, key)?;
        verify_and_take(proofs, me, &share).err().map(|_| DkgError::Share { culprit: *sender, key })
    })
}

fn tweaked(
    group: PublicKey,
    public_shares: &[PublicKey],
    share: &SecretScalar,
    key: usize,
) -> Result<DkgOutput, DkgError> {
    let identity = |_| DkgError::Identity(key);
    let odd = group.x_only_public_key().1 == Parity::Odd;
    let even = |point: &PublicKey| if odd { point.negate(SECP256K1) } else { *point };
    let context = KeyContext::new(group).map_err(|_| DkgError::Identity(key))?;
    let tweak = context.tweak();
    let tweak_point = SecretScalar::from_scalar(*tweak).map_err(|_| DkgError::Identity(key))?.public_key();
    let group_key = even(&group).combine(&tweak_point).map_err(identity)?;
    let public_shares = public_shares
        .iter()
        .map(|point| even(point).combine(&tweak_point))
        .collect::<Result<_, _>>()
        .map_err(identity)?;
    let scalar: Zeroizing<Scalar> =
        Zeroizing::new(if odd { -*share.scalar() } else { *share.scalar() } + tweak);
    let share = SecretScalar::from_scalar(*scalar).map_err(|_| DkgError::Identity(key))?;
    Ok(DkgOutput { group_key, public_shares, share })
}
