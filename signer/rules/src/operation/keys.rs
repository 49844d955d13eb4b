//! What an operation does to keys: the public half of the tweaks.

use std::collections::BTreeMap;

use bitcoin::secp256k1::{PublicKey, SECP256K1};
use spark_proto::signer::v1 as wire;

use super::{Operation, OperationError};
use crate::{
    feldman::{FeldmanError, Proofs, ZeroProofs},
    ids::{LeafId, OperatorIndex},
    package,
    vote::Kind,
};

/// A leaf's operator key after the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TweakedKey {
    /// Version after it.
    pub version: u64,
    /// S.
    pub group_key: PublicKey,
    /// Public shares by operator index.
    pub public_shares: Vec<PublicKey>,
    /// D.
    pub owner_key: PublicKey,
    /// Feldman commitments of the tweak; none where the key stays.
    pub proofs: Option<Proofs>,
    /// Those of a refresh: the shares change, the key stays.
    pub refresh: Option<ZeroProofs>,
    /// What the sender sealed for the receiver, byte for byte.
    pub secret_cipher: Vec<u8>,
    /// The sender's signature over it, byte for byte.
    pub signature: Vec<u8>,
}

impl TweakedKey {
    /// The public half of what one operator adds to its share; none where shares stay.
    pub fn share_commitment(&self, operator: OperatorIndex) -> Result<Option<PublicKey>, FeldmanError> {
        match (&self.proofs, &self.refresh) {
            (Some(proofs), _) => proofs.share_commitment(operator).map(Some),
            (None, Some(refresh)) => refresh.share_commitment(operator).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Keys of all leaves after the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys(BTreeMap<LeafId, TweakedKey>);

impl Keys {
    /// Derives the keys from the public parts of an opened package: exactly the operation's leaves, exactly t
    /// Feldman commitments each, and for a claim P − S' equal to the key that signs the refunds.
    pub fn derive(operation: &Operation, opened: &[wire::OpenedLeaf]) -> Result<Self, OperationError> {
        let Some(sealed) = &operation.sealed else {
            if !opened.is_empty() {
                return Err(OperationError::Opened("no package expected"));
            }
            let mut keys: BTreeMap<_, _> =
                operation.parts.iter().map(|p| (p.record.leaf_id, unchanged(operation.kind, p))).collect();
            if let Some(refresh) = &operation.refresh {
                refresh.apply(&mut keys)?;
            }
            return Ok(Self(keys));
        };
        if opened.len() != operation.parts.len() {
            return Err(OperationError::Opened("number of leaves"));
        }
        let mut by_leaf = BTreeMap::new();
        for leaf in opened {
            let id = LeafId::parse(&leaf.leaf_id).map_err(|_| OperationError::Opened("leaf_id"))?;
            if by_leaf.insert(id, leaf).is_some() {
                return Err(OperationError::Opened("leaf twice"));
            }
        }
        let mut keys = BTreeMap::new();
        for part in &operation.parts {
            let record = &part.record;
            let opened = by_leaf.get(&record.leaf_id).ok_or(OperationError::Opened("leaf missing"))?;
            let proofs = Proofs::parse(&opened.proofs, operation.threshold())?;
            let (group_key, public_shares) = proofs.apply(&record.group_key, &record.public_shares)?;
            let owner_key = record
                .verifying_key
                .combine(&group_key.negate(SECP256K1))
                .map_err(|_| OperationError::Opened("owner key is the point at infinity"))?;
            match operation.kind {
                Kind::Claim => {
                    let signs = operation
                        .jobs
                        .iter()
                        .filter(|j| j.leaf == record.leaf_id)
                        .all(|j| j.user_key == owner_key);
                    if !signs {
                        return Err(OperationError::SigningKey(record.leaf_id));
                    }
                    if !opened.secret_cipher.is_empty() || !opened.signature.is_empty() {
                        return Err(OperationError::Opened("secret_cipher in a claim"));
                    }
                }
                _ => package::verify_secret_cipher(
                    &opened.leaf_id,
                    &sealed.transfer.to_string(),
                    &opened.secret_cipher,
                    &opened.signature,
                    &operation.requester,
                )?,
            }
            keys.insert(
                record.leaf_id,
                TweakedKey {
                    version: record.version.saturating_add(1),
                    group_key,
                    public_shares,
                    owner_key,
                    proofs: Some(proofs),
                    refresh: None,
                    secret_cipher: opened.secret_cipher.clone(),
                    signature: opened.signature.clone(),
                },
            );
        }
        Ok(Self(keys))
    }

    /// One leaf's.
    pub fn get(&self, leaf: &LeafId) -> Option<&TweakedKey> {
        self.0.get(leaf)
    }

    /// All leaves.
    pub fn iter(&self) -> impl Iterator<Item = (&LeafId, &TweakedKey)> {
        self.0.iter()
    }
}

impl Operation {
    /// The public shares that the operators' signature shares of a leaf must fit: those before a send, those
    /// after a claim (which signs with the key that it makes).
    pub fn signing_shares<'a>(&'a self, leaf: &LeafId, keys: &'a Keys) -> Option<&'a [PublicKey]> {
        match self.kind {
            Kind::Claim => keys.get(leaf).map(|k| k.public_shares.as_slice()),
            _ => self
                .parts
                .iter()
                .find(|p| p.record.leaf_id == *leaf)
                .map(|p| p.record.public_shares.as_slice()),
        }
    }
}

fn unchanged(kind: Kind, part: &super::Part) -> TweakedKey {
    let record = &part.record;
    TweakedKey {
        version: match kind {
            // Renewals, refreshes and replaced deposits keep the key; the version still moves, so that each is consumed once.
            Kind::Renew | Kind::Refresh => record.version.saturating_add(1),
            Kind::Deposit if !part.is_new() => record.version.saturating_add(1),
            _ => record.version,
        },
        group_key: record.group_key,
        public_shares: record.public_shares.clone(),
        owner_key: record.owner_key,
        proofs: None,
        refresh: None,
        secret_cipher: Vec::new(),
        signature: Vec::new(),
    }
}
