//! Handing a leaf over: the difference of two user keys, shared among the operators and sealed for each.

use std::collections::BTreeMap;

use prost::Message as _;
use rand::rngs::OsRng;
use spark_proto::spark::{
    ClaimLeafKeyTweak, ClaimLeafKeyTweaks, SecretShare, SendLeafKeyTweak, SendLeafKeyTweaks,
};
use spark_rules::federation::Federation;
use spark_signer::{
    ecies::EciesError,
    feldman::{self, SharingError, Split},
    secret::{SecretError, SecretScalar},
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    recipients::{Purpose, Recipients},
    state::ClaimTweak,
};

/// A package that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TweakError {
    /// Old and new key are equal: nothing would change hands.
    #[error("old and new key of a leaf are equal")]
    NoChange,
    /// The secret cannot be shared.
    #[error(transparent)]
    Sharing(#[from] SharingError),
    /// The package cannot be sealed.
    #[error(transparent)]
    Seal(#[from] EciesError),
}

impl From<SecretError> for TweakError {
    fn from(_: SecretError) -> Self {
        Self::NoChange
    }
}

/// A leaf changing its user key.
pub(crate) struct LeafTweak {
    leaf_id: String,
    split: Split,
    public: BTreeMap<String, Vec<u8>>,
    cipher: Vec<u8>,
    signature: Vec<u8>,
}

impl std::fmt::Debug for LeafTweak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeafTweak").field("leaf_id", &self.leaf_id).finish_non_exhaustive()
    }
}

impl LeafTweak {
    /// Shares old − new among the operators.
    pub(crate) fn new(
        leaf_id: String,
        old: &SecretScalar,
        new: &SecretScalar,
        federation: &Federation,
    ) -> Result<Self, TweakError> {
        let difference = old.sub(new)?;
        let split = feldman::split(&difference, federation.threshold(), federation.size(), &mut OsRng)?;
        let public = federation
            .indices()
            .zip(&split.shares)
            .map(|(index, share)| (index.identifier_hex(), share.public_key().serialize().to_vec()))
            .collect();
        Ok(Self { leaf_id, split, public, cipher: Vec::new(), signature: Vec::new() })
    }

    /// Adds what the receiver gets: the new key, sealed, and the sender's signature over it (64 bytes).
    #[must_use]
    pub(crate) fn with_cipher(mut self, cipher: Vec<u8>, signature: Vec<u8>) -> Self {
        self.cipher = cipher;
        self.signature = signature;
        self
    }

    /// What one operator adds to its share.
    #[cfg(test)]
    pub(crate) fn part(&self, operator: usize) -> SecretScalar {
        SecretScalar::from_bytes(&self.split.shares[operator].to_bytes()).unwrap()
    }

    /// What receipts of a claim can be held against.
    pub(crate) fn public_half(&self) -> ClaimTweak {
        let proofs = self.split.proofs.iter().map(|proof| hex::encode(proof.serialize())).collect();
        ClaimTweak { leaf_id: self.leaf_id.clone(), proofs }
    }

    fn share(&self, operator: usize) -> Option<SecretShare> {
        let share = self.split.shares.get(operator)?;
        Some(SecretShare {
            secret_share: share.to_bytes().to_vec(),
            proofs: self.split.proofs.iter().map(|p| p.serialize().to_vec()).collect(),
        })
    }
}

/// Every operator's part of a send, sealed, by identifier.
pub(crate) fn seal_send(
    leaves: &[LeafTweak],
    federation: &Federation,
    recipients: &Recipients,
    purpose: &Purpose,
) -> Result<BTreeMap<String, Vec<u8>>, TweakError> {
    seal(federation, recipients, purpose, |operator| {
        let leaves_to_send = leaves
            .iter()
            .map(|leaf| SendLeafKeyTweak {
                leaf_id: leaf.leaf_id.clone(),
                secret_share_tweak: leaf.share(operator),
                pubkey_shares_tweak: leaf.public.clone(),
                secret_cipher: leaf.cipher.clone(),
                signature: leaf.signature.clone(),
                ..Default::default()
            })
            .collect();
        let mut message = SendLeafKeyTweaks { leaves_to_send };
        let bytes = Zeroizing::new(message.encode_to_vec());
        for share in message.leaves_to_send.iter_mut().filter_map(|l| l.secret_share_tweak.as_mut()) {
            share.secret_share.zeroize();
        }
        bytes
    })
}

/// Every operator's part of a claim, sealed, by identifier.
pub(crate) fn seal_claim(
    leaves: &[LeafTweak],
    federation: &Federation,
    recipients: &Recipients,
    purpose: &Purpose,
) -> Result<BTreeMap<String, Vec<u8>>, TweakError> {
    seal(federation, recipients, purpose, |operator| {
        let leaves_to_receive = leaves
            .iter()
            .map(|leaf| ClaimLeafKeyTweak {
                leaf_id: leaf.leaf_id.clone(),
                secret_share_tweak: leaf.share(operator),
                pubkey_shares_tweak: leaf.public.clone(),
            })
            .collect();
        let mut message = ClaimLeafKeyTweaks { leaves_to_receive };
        let bytes = Zeroizing::new(message.encode_to_vec());
        for share in message.leaves_to_receive.iter_mut().filter_map(|l| l.secret_share_tweak.as_mut()) {
            share.secret_share.zeroize();
        }
        bytes
    })
}

fn seal(
    federation: &Federation,
    recipients: &Recipients,
    purpose: &Purpose,
    part: impl Fn(usize) -> Zeroizing<Vec<u8>>,
) -> Result<BTreeMap<String, Vec<u8>>, TweakError> {
    federation
        .members()
        .iter()
        .map(|member| {
            let plain = part(member.index.as_usize());
            Ok((member.index.identifier_hex(), recipients.seal(federation, member.index, purpose, &plain)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{LEAF_ID, Operators};
    use spark_rules::{
        feldman::Proofs,
        ids::{OperatorIndex, TransferId},
        vote::Kind,
    };

    #[test]
    fn operators_find_shares_that_move_their_key() {
        let operators = Operators::new();
        let federation = &operators.federation;
        let (old, new) = (SecretScalar::random(&mut OsRng), SecretScalar::random(&mut OsRng));
        let tweak = || LeafTweak::new(LEAF_ID.into(), &old, &new, federation).unwrap();
        let to = Recipients::long_lived(federation);
        let transfer = TransferId::from_bytes([1; 16]);
        let purpose = Purpose { kind: Kind::Send, transfer, owner: old.public_key() };
        let send = seal_send(&[tweak().with_cipher(vec![1], vec![2])], federation, &to, &purpose).unwrap();
        let claim = seal_claim(&[tweak()], federation, &to, &purpose).unwrap();
        let mut proofs_seen = Vec::new();
        for (i, identity) in operators.identities.iter().enumerate() {
            let index = OperatorIndex::new(i as u16);
            let open =
                |sealed: &[u8]| spark_signer::ecies::Envelope::parse(sealed).unwrap().open(identity).unwrap();
            let sent = SendLeafKeyTweaks::decode(open(&send[&index.identifier_hex()]).as_slice()).unwrap();
            let claimed =
                ClaimLeafKeyTweaks::decode(open(&claim[&index.identifier_hex()]).as_slice()).unwrap();
            let leaf = &sent.leaves_to_send[0];
            assert_eq!(
                (leaf.secret_cipher.as_slice(), leaf.signature.as_slice()),
                ([1].as_slice(), [2].as_slice())
            );
            let parts = [
                (leaf.secret_share_tweak.as_ref().unwrap(), &leaf.pubkey_shares_tweak),
                (
                    claimed.leaves_to_receive[0].secret_share_tweak.as_ref().unwrap(),
                    &claimed.leaves_to_receive[0].pubkey_shares_tweak,
                ),
            ];
            for (share, public) in parts {
                let proofs = Proofs::parse(&share.proofs, 2).unwrap();
                let bytes: [u8; 32] = share.secret_share.clone().try_into().unwrap();
                proofs.verify_share(index, &bytes).unwrap();
                // The new keys add up to the same verifying key.
                let moved = proofs.constant().combine(&new.public_key()).unwrap();
                assert_eq!(moved, old.public_key());
                for j in federation.indices() {
                    let expected = proofs.share_commitment(j).unwrap().serialize().to_vec();
                    assert_eq!(public[&j.identifier_hex()], expected);
                }
            }
            proofs_seen.push(leaf.secret_share_tweak.as_ref().unwrap().proofs.clone());
        }
        proofs_seen.dedup();
        assert_eq!(proofs_seen.len(), 1, "all operators see the same commitments");
        assert!(matches!(LeafTweak::new(LEAF_ID.into(), &old, &old, federation), Err(TweakError::NoChange)));
    }
}
