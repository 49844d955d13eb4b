//! What this wallet knows of a leaf by itself. An operator whose log is without a fault may still show another history
//! than the leaf's: that of its previous owner, or one that nobody else has.

use bitcoin::secp256k1::{PublicKey, SECP256K1};
use spark_proto::spark::TreeNode;
use spark_rules::{
    federation::Federation,
    feldman::{Proofs, is_sharing_of},
    ids::{LeafId, OperationId, OperatorIndex, TransferId},
    operation::claim_id,
    package, point,
};

use super::clean::{Hands, Verdict};
use crate::{
    Wallet, WalletError,
    state::{ClaimRecord, StoredLeaf},
    verify::{Node, VerifyError},
};

pub(super) const NOT_OURS: &str = "this wallet has no such leaf: nothing to hold the receipts against";
const OTHER_KEY: &str = "the operator shows another key of the leaf than this wallet's";
const OTHER_SHARES: &str = "the public shares that the operator shows are not shares of the leaf's key";
const OTHER_CLAIM: &str = "the last change of hands in the log is not this wallet's claim";
const OTHER_TWEAK: &str = "the tweak in the log is not the one of this wallet's claim";

/// A claim of the leaf that this wallet has sent.
struct OwnClaim {
    operation: OperationId,
    /// Commitments to the tweak, of every time that it was sent; none where an older wallet did not keep them.
    tweaks: Vec<Proofs>,
}

/// A leaf as this wallet knows it.
pub(super) struct Own {
    verifying_key: PublicKey,
    /// The operators' key: what the leaf's key is without this wallet's.
    group: PublicKey,
    /// The last claim; several only if they were begun in one second.
    claims: Vec<OwnClaim>,
}

impl Wallet {
    /// What this wallet knows of one of its leaves.
    pub(super) fn own(&self, leaf: &LeafId) -> Result<Option<Own>, WalletError> {
        let leaf_id = leaf.to_string();
        let Some(stored) = self.state().get::<StoredLeaf>(&leaf_id)? else { return Ok(None) };
        let stored: TreeNode = match stored.lineage.first().map(|node| node.decode()) {
            Some(Ok(node)) => node,
            Some(Err(_)) | None => return Err(WalletError::Answer("the stored leaf")),
        };
        let verifying_key =
            point::parse("verifying_public_key", &stored.verifying_public_key).map_err(VerifyError::from)?;
        let own = self.keys().leaf(leaf)?.public_key();
        let group = verifying_key.combine(&own.negate(SECP256K1)).map_err(|_| VerifyError::KeySum)?;
        let threshold = self.config().federation.threshold();
        let receiver = self.keys().identity().public_key();
        let claims = self.last_claims(&leaf_id)?.into_iter().map(|record| {
            let uuid = package::parse_transfer_id(&record.transfer_id).map_err(VerifyError::from)?;
            let proofs = |proofs: &Vec<String>| {
                let points: Option<Vec<_>> = proofs.iter().map(|point| hex::decode(point).ok()).collect();
                Proofs::parse(&points?, threshold).ok()
            };
            let of_leaf = record.tweaks.iter().filter(|tweak| tweak.leaf_id == leaf_id);
            let tweaks: Option<_> = of_leaf.map(|tweak| proofs(&tweak.proofs)).collect();
            Ok::<_, WalletError>(OwnClaim {
                operation: claim_id(&TransferId::from_bytes(*uuid.as_bytes()), &receiver),
                tweaks: tweaks.ok_or(WalletError::Answer("the stored claim"))?,
            })
        });
        Ok(Some(Own { verifying_key, group, claims: claims.collect::<Result<_, _>>()? }))
    }

    /// The latest claim of a leaf that this wallet has sent, if it has sent any.
    pub(super) fn last_claims(&self, leaf_id: &str) -> Result<Vec<ClaimRecord>, WalletError> {
        let mut claims = self.state().all::<ClaimRecord>()?;
        claims.retain(|c| (c.done || c.request.is_some()) && c.leaves.iter().any(|leaf| leaf == leaf_id));
        let last = claims.iter().map(|claim| claim.created).max();
        claims.retain(|claim| Some(claim.created) == last);
        Ok(claims)
    }
}

impl Own {
    /// This wallet has claimed the leaf, so it knows which version is meant.
    pub(super) fn is_claimed(&self) -> bool {
        !self.claims.is_empty()
    }

    /// Holds what an operator shows against what this wallet knows: the leaf's key, the last change of hands, and all
    /// public shares. Returns these, by operator.
    pub(super) fn shares(
        &self,
        operator: OperatorIndex,
        federation: &Federation,
        node: &TreeNode,
        verdict: &Verdict,
    ) -> Result<Vec<PublicKey>, &'static str> {
        let parsed = Node::parse(node).map_err(|_| OTHER_KEY)?;
        if (parsed.verifying_key, parsed.group_key) != (self.verifying_key, self.group) {
            return Err(OTHER_KEY);
        }
        if self.is_claimed() {
            match &verdict.hands {
                Some(hands) => self.claimed(operator, hands)?,
                // What was before the repair is not in this log, and nothing counts on it.
                None if verdict.repaired => {}
                None => return Err(OTHER_CLAIM),
            }
        }
        let shown = node.signing_keyshare.as_ref().ok_or(OTHER_SHARES)?;
        let share = |index: OperatorIndex| {
            shown.public_shares.get(&index.identifier_hex()).and_then(|b| PublicKey::from_slice(b).ok())
        };
        let shares = federation.indices().map(share).collect::<Option<Vec<_>>>().ok_or(OTHER_SHARES)?;
        if !is_sharing_of(&self.group, &shares, federation.threshold()) {
            return Err(OTHER_SHARES);
        }
        Ok(shares)
    }

    fn claimed(&self, operator: OperatorIndex, hands: &Hands) -> Result<(), &'static str> {
        let same = |claim: &&OwnClaim| {
            hands.phase == "claim" && claim.operation.as_bytes().as_slice() == hands.operation
        };
        let claim = self.claims.iter().find(same).ok_or(OTHER_CLAIM)?;
        let is_tweak = |proofs: &Proofs| {
            proofs.share_commitment(operator).is_ok_and(|point| point.serialize().as_slice() == hands.tweak)
        };
        if claim.tweaks.is_empty() || claim.tweaks.iter().any(is_tweak) { Ok(()) } else { Err(OTHER_TWEAK) }
    }
}
