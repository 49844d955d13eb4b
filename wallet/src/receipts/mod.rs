//! Receipts of destroyed key shares: who has proven to have forgotten, and since when a transfer is final (D15).
//!
//! Proof formats belong to `spark_rules::receipt`; here is what a wallet concludes from them.

mod clean;

use serde::{Deserialize, Serialize};
use spark_proto::signer::v1::{GetReceiptsRequest, GetReceiptsResponse};
use spark_rules::{ids::LeafId, receipt};

pub use clean::{Step, Verdict, judge};

use crate::{
    Wallet, WalletError,
    client::ClientError,
    verify::{Node, VerifyError},
};

/// Most bytes of a checkpoint that is looked at.
const MAX_CHECKPOINT: usize = 16 << 10;

/// Receipts that prove nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// The checkpoint is no signed note of this operator about its own log.
    #[error("checkpoint is not of the operator's log, or not signed by the operator")]
    Checkpoint,
    /// Receipts and proofs do not match one to one.
    #[error("{receipts} receipts with {proofs} proofs")]
    Count {
        /// Receipts.
        receipts: usize,
        /// Proofs.
        proofs: usize,
    },
    /// A receipt is not in the log.
    #[error("receipt {0} is not in the log that the checkpoint states")]
    Inclusion(usize),
    /// A receipt is for another leaf.
    #[error("receipt {0} is for another leaf")]
    Leaf(usize),
}

/// What one operator has proven about a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorReceipts {
    /// Position in the federation.
    pub operator: u16,
    /// Receipts in the operator's log for this leaf, each with a valid proof.
    pub receipts: usize,
    /// Of these, destructions that are confirmed independently.
    pub confirmed: usize,
    /// Key version that the log leads to without a gap.
    pub version: Option<u64>,
    /// Every version before it is destroyed.
    pub clean: bool,
    /// A claim used a long-lived package key: final unless recorded packages are opened later.
    pub long_lived_packages: bool,
    /// What is missing or wrong, if not clean.
    pub problem: Option<String>,
}

/// What all operators together have proven about a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finality {
    /// UUID.
    pub leaf_id: String,
    /// Clean at one and the same version.
    pub clean: usize,
    /// All operators.
    pub operators: usize,
    /// Clean operators that are needed: n − t + 1.
    pub needed: usize,
    /// Fewer than t old shares exist, if at most `tolerated_liars` of the clean operators lie.
    pub is_final: bool,
    /// Clean operators beyond those needed.
    pub tolerated_liars: usize,
    /// In words.
    pub statement: String,
    /// One by one.
    pub by_operator: Vec<OperatorReceipts>,
}

impl Wallet {
    /// Asks every operator for its receipts of a leaf, checks them, and draws the conclusion of D15.
    pub async fn finality(&self, leaf_id: &str) -> Result<Finality, WalletError> {
        LeafId::parse(leaf_id).map_err(VerifyError::from)?;
        let answers = self
            .operators()
            .each(|o| async move {
                let request = GetReceiptsRequest { leaf_id: leaf_id.to_owned() };
                let receipts = o
                    .log(self.keys().identity(), request, |mut c, r| async move { c.get_receipts(r).await })
                    .await?;
                let nodes = self.nodes_by_id(o, vec![leaf_id.to_owned()]).await?;
                Ok::<_, ClientError>((receipts, nodes.get(leaf_id).cloned()))
            })
            .await;
        let mut by_operator = Vec::with_capacity(answers.len());
        for (index, answer) in answers {
            let mut view = OperatorReceipts {
                operator: index.get(),
                receipts: 0,
                confirmed: 0,
                version: None,
                clean: false,
                long_lived_packages: false,
                problem: None,
            };
            match answer {
                Err(error) => view.problem = Some(error.to_string()),
                Ok((answer, node)) => {
                    let share = node.as_ref().and_then(|n| n.signing_keyshare.as_ref());
                    let share = share.and_then(|k| k.public_shares.get(&index.identifier_hex())).cloned();
                    let known = node.as_ref().is_some_and(|n| Node::parse(n).is_ok());
                    match self.checked(index.get(), leaf_id, &answer) {
                        Err(error) => view.problem = Some(error.to_string()),
                        Ok(_) if !known => view.problem = Some("the operator does not know the leaf".into()),
                        Ok(destroyed_before) => {
                            judge(&answer.receipts, destroyed_before, share.as_deref()).describe(&mut view);
                        }
                    }
                }
            }
            by_operator.push(view);
        }
        let federation = &self.config().federation;
        let needed =
            usize::from(federation.size()).saturating_sub(federation.threshold().into()).saturating_add(1);
        Ok(conclude(leaf_id, by_operator, needed))
    }

    /// Checks every proof. Returns the epoch before which the operator, in its signed checkpoint, says that all roots
    /// are destroyed.
    fn checked(
        &self,
        operator: u16,
        leaf_id: &str,
        answer: &GetReceiptsResponse,
    ) -> Result<u64, ReceiptError> {
        let index = spark_rules::ids::OperatorIndex::new(operator);
        if answer.checkpoint.len() > MAX_CHECKPOINT {
            return Err(ReceiptError::Checkpoint);
        }
        // Signed under the operator's key name, of the log with the operator's origin: not another log of its.
        let checkpoint = receipt::verify_checkpoint(&answer.checkpoint, &self.config().federation, index)
            .map_err(|_| ReceiptError::Checkpoint)?;
        let (receipts, proofs) = (&answer.receipts, &answer.proofs);
        if receipts.len() != proofs.len() {
            return Err(ReceiptError::Count { receipts: receipts.len(), proofs: proofs.len() });
        }
        for (i, (receipt, proof)) in receipts.iter().zip(proofs).enumerate() {
            if receipt.leaf_id != leaf_id {
                return Err(ReceiptError::Leaf(i));
            }
            if proof.tree_size != checkpoint.size || proof.index != receipt.log_index {
                return Err(ReceiptError::Inclusion(i));
            }
            receipt::verify_inclusion(receipt, proof, checkpoint.root)
                .map_err(|_| ReceiptError::Inclusion(i))?;
        }
        Ok(checkpoint.destroyed_before)
    }
}

fn conclude(leaf_id: &str, by_operator: Vec<OperatorReceipts>, needed: usize) -> Finality {
    // The same operators for all versions: those that agree on the highest version count.
    let version = by_operator.iter().filter(|o| o.clean).filter_map(|o| o.version).max();
    let counted = |o: &&OperatorReceipts| o.clean && o.version == version;
    let clean = by_operator.iter().filter(counted).count();
    let caveat = by_operator.iter().filter(counted).any(|o| o.long_lived_packages);
    let operators = by_operator.len();
    let is_final = version.is_some_and(|v| v > 0) && clean >= needed;
    let tolerated_liars = if is_final { clean.saturating_sub(needed) } else { 0 };
    let statement = if is_final {
        let packages = if caveat { "; unless recorded packages are opened later" } else { "" };
        format!("final, {clean} of {operators} clean, tolerates {tolerated_liars} liars{packages}")
    } else {
        format!("not final yet: {clean} of {operators} clean, {needed} needed")
    };
    Finality {
        leaf_id: leaf_id.to_owned(),
        clean,
        operators,
        needed,
        is_final,
        tolerated_liars,
        statement,
        by_operator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkpoint of an empty log under this origin, signed by the first operator's federation key.
    fn checkpoint(origin: &str) -> String {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        use ed25519_dalek::{Signer as _, SigningKey};
        use sha2::{Digest as _, Sha256};
        // RFC 8032, test 1: the first of the federation keys of tests.
        let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let key = SigningKey::from_bytes(&seed.try_into().unwrap());
        let text = format!("{origin}\n0\n{}\n", STANDARD.encode(Sha256::digest(b"")));
        let public = [[1u8].as_slice(), key.verifying_key().as_bytes()].concat();
        let id = Sha256::digest([origin.as_bytes(), b"\n", &public].concat());
        let signature = [&id[..4], &key.sign(text.as_bytes()).to_bytes()].concat();
        format!("{text}\n\u{2014} {origin} {}\n", STANDARD.encode(signature))
    }

    #[tokio::test]
    async fn s7_checkpoints_of_another_log_prove_nothing() {
        let operators = crate::testing::Operators::new();
        let keys = crate::testing::keys();
        let (wallet, _dir) =
            crate::testing::wallet_of(&operators, keys, Vec::new(), std::time::Duration::from_secs(1));
        let of = |index| {
            receipt::checkpoint_origin(&operators.federation, spark_rules::ids::OperatorIndex::new(index))
        };
        let checked = |note: String| {
            let answer = GetReceiptsResponse { checkpoint: note, ..Default::default() };
            wallet.checked(0, "leaf", &answer)
        };
        assert_eq!(checked(checkpoint(&of(0))), Ok(0));
        // The same key may sign many logs: one for each wallet, say.
        for origin in [of(1), "spark-operator.invalid/for-alice".to_owned()] {
            assert_eq!(checked(checkpoint(&origin)), Err(ReceiptError::Checkpoint));
        }
        assert_eq!(checked(checkpoint(&of(0)).replace("\n0\n", "\n1\n")), Err(ReceiptError::Checkpoint));
        assert_eq!(checked("x".repeat(1 << 20)), Err(ReceiptError::Checkpoint));
    }

    fn operator(operator: u16, version: Option<u64>, clean: bool) -> OperatorReceipts {
        OperatorReceipts {
            operator,
            receipts: 1,
            confirmed: 1,
            version,
            clean,
            long_lived_packages: false,
            problem: None,
        }
    }

    #[test]
    fn finality_counts_clean_operators_at_one_version() {
        let of = |list: [(u64, bool); 3]| {
            let views = (0u16..).zip(list).map(|(i, (v, c))| operator(i, Some(v), c)).collect();
            let f = conclude("x", views, 2);
            (f.is_final, f.clean, f.tolerated_liars)
        };
        assert_eq!(of([(2, true), (2, true), (2, true)]), (true, 3, 1));
        assert_eq!(of([(2, true), (2, true), (2, false)]), (true, 2, 0));
        assert_eq!(of([(2, true), (2, false), (2, false)]), (false, 1, 0));
        // A laggard at an older version does not count.
        assert_eq!(of([(2, true), (1, true), (1, true)]), (false, 1, 0));
        // Nobody has destroyed anything at version 0.
        assert_eq!(of([(0, true), (0, true), (0, true)]), (false, 3, 0));
    }

    #[test]
    fn the_caveat_of_long_lived_keys_is_said() {
        let mut views =
            vec![operator(0, Some(1), true), operator(1, Some(1), true), operator(2, None, false)];
        assert_eq!(conclude("x", views.clone(), 2).statement, "final, 2 of 3 clean, tolerates 0 liars");
        if let Some(first) = views.first_mut() {
            first.long_lived_packages = true;
        }
        assert!(conclude("x", views, 2).statement.ends_with("unless recorded packages are opened later"));
    }
}
