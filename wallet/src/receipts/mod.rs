//! Receipts of destroyed key shares: who has proven to have forgotten, and since when a transfer is final (D15).
//!
//! Proof formats belong to `spark_rules::receipt`; here is what a wallet concludes from them.

mod clean;
mod head;
mod pages;
mod refreshed;
mod watch;

use serde::{Deserialize, Serialize};
use spark_proto::signer::v1::{GetCheckpointRequest, GetReceiptsRequest, GetReceiptsResponse};
use spark_rules::{
    checkpoint::{Checkpoint, Contradiction},
    ids::LeafId,
    receipt, witness,
};

pub use clean::{Step, Verdict, judge};
pub use refreshed::Refreshed;

use self::head::Head;
use crate::{
    Wallet, WalletError,
    client::Operator,
    verify::{Node, VerifyError},
};

const FEW_WITNESSES: &str = "too few other operators have cosigned this head of the log";

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
    /// The operator's pages do not lead to an end.
    #[error("the pages of receipts do not lead to an end")]
    Pages,
    /// The operator signed what contradicts itself. Both heads are kept as evidence.
    #[error("{0}: both signed heads are kept in the wallet's state")]
    Contradiction(Contradiction),
    /// An older head than one that was seen.
    #[error("the operator shows an older head of its log than before")]
    Older,
    /// No proof that the log only grew.
    #[error("the log does not continue the one that this wallet saw before")]
    Inconsistent,
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
    /// Other operators' signers that cosigned the head of the log within the last hour.
    #[serde(default)]
    pub witnesses: usize,
    /// Key version that the log leads to without a gap.
    pub version: Option<u64>,
    /// Every version before it is destroyed.
    pub clean: bool,
    /// A claim used a long-lived package key: final unless recorded packages are opened later.
    pub long_lived_packages: bool,
    /// The log begins with a repair: clean only by a refresh that all have applied, and then it covers no liar.
    #[serde(default)]
    pub repaired: bool,
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
    /// Clean operators that are needed: n − t + 1, repaired ones not counted.
    pub needed: usize,
    /// Fewer than t old shares exist, if at most `tolerated_liars` of the clean operators lie.
    pub is_final: bool,
    /// Clean operators beyond those needed. One that is clean by a refresh after its repair is not counted: the share
    /// that it lost may be somewhere.
    pub tolerated_liars: usize,
    /// In words.
    pub statement: String,
    /// One by one.
    pub by_operator: Vec<OperatorReceipts>,
}

impl Finality {
    /// There is nothing to wait for: it is final, or no operator has anything left to prove, as for one's own deposit.
    pub const fn is_settled(&self) -> bool {
        self.is_final || self.clean == self.operators
    }
}

/// An operator's deletion log as this wallet sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogView {
    /// Position in the federation.
    pub operator: u16,
    /// Receipts under the published head.
    pub size: u64,
    /// Every root key of an earlier epoch is destroyed, says the operator.
    pub destroyed_before: u64,
    /// Other operators' signers that cosigned the head within the last hour.
    pub witnesses: usize,
    /// Why the head is not relied on.
    pub problem: Option<String>,
}

/// All that can be checked of what operators claim to have forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Every log holds, and every operator is clean for every leaf.
    pub ok: bool,
    /// Witnesses that a head needs.
    pub needed_witnesses: usize,
    /// One by one.
    pub logs: Vec<LogView>,
    /// This wallet's leaves.
    pub leaves: Vec<Finality>,
}

impl Wallet {
    /// Checks the logs of all operators, each against the head that was seen of it before, and the receipts of every
    /// leaf of this wallet, which it verifies first ([`Wallet::sync`]).
    pub async fn verify(&self) -> Result<Verification, WalletError> {
        let needed_witnesses = witness::needed(&self.config().federation);
        let heads = self
            .operators()
            .each(|o| async move {
                let ask = GetCheckpointRequest {};
                let key = self.keys().identity();
                let note =
                    o.log(key, ask, |mut c, r| async move { c.get_checkpoint(r).await }).await?.checkpoint;
                let head = self.head(o.index().get(), &note)?;
                self.continued(o, &head.checkpoint).await?;
                Ok::<_, WalletError>(head)
            })
            .await;
        let mut logs = Vec::with_capacity(heads.len());
        for (index, head) in heads {
            let operator = index.get();
            logs.push(match head {
                Ok(head) => LogView {
                    operator,
                    size: head.checkpoint.size,
                    destroyed_before: head.checkpoint.extension.destroyed_before,
                    witnesses: head.witnesses,
                    problem: (head.witnesses < needed_witnesses).then(|| FEW_WITNESSES.to_owned()),
                },
                Err(error) => LogView {
                    operator,
                    size: 0,
                    destroyed_before: 0,
                    witnesses: 0,
                    problem: Some(error.to_string()),
                },
            });
        }
        let mut leaves = Vec::new();
        for leaf in self.sync().await? {
            leaves.push(self.finality(&leaf.leaf_id).await?);
        }
        let clean = |leaf: &Finality| leaf.clean == leaf.operators;
        let ok = logs.iter().all(|log| log.problem.is_none()) && leaves.iter().all(clean);
        Ok(Verification { ok, needed_witnesses, logs, leaves })
    }

    /// All receipts of a leaf at one operator, with proofs into the head that comes with the first page.
    async fn all_receipts(
        &self,
        operator: &Operator,
        leaf_id: &str,
    ) -> Result<(GetReceiptsResponse, Head), WalletError> {
        let ask = async |tree_size, from| {
            let request = GetReceiptsRequest { leaf_id: leaf_id.to_owned(), tree_size, from };
            let key = self.keys().identity();
            operator.log(key, request, |mut c, r| async move { c.get_receipts(r).await }).await
        };
        let first = ask(0, 0).await?;
        let head = self.head(operator.index().get(), &first.checkpoint)?;
        let size = head.checkpoint.size;
        let receipts = pages::follow(first, size, async |from| Ok(ask(size, from).await?)).await?;
        Ok((receipts, head))
    }

    /// Asks every operator for its receipts of a leaf, checks them, and draws the conclusion of D15.
    pub async fn finality(&self, leaf_id: &str) -> Result<Finality, WalletError> {
        LeafId::parse(leaf_id).map_err(VerifyError::from)?;
        let answers = self
            .operators()
            .each(|o| async move {
                let (receipts, head) = self.all_receipts(o, leaf_id).await?;
                self.continued(o, &head.checkpoint).await?;
                let nodes = self.nodes_by_id(o, vec![leaf_id.to_owned()]).await?;
                Ok::<_, WalletError>((receipts, head, nodes.get(leaf_id).cloned()))
            })
            .await;
        let mut by_operator = Vec::with_capacity(answers.len());
        // What each log shows of refreshes, and whether a repaired operator's holds otherwise.
        let (mut refreshes, mut mended) = (Vec::new(), Vec::new());
        for (index, answer) in answers {
            let mut view = OperatorReceipts {
                operator: index.get(),
                receipts: 0,
                confirmed: 0,
                witnesses: 0,
                version: None,
                clean: false,
                long_lived_packages: false,
                repaired: false,
                problem: None,
            };
            let (mut refreshed, mut sound) = (Vec::new(), false);
            match answer {
                Err(error) => view.problem = Some(error.to_string()),
                Ok((answer, head, node)) => {
                    view.witnesses = head.witnesses;
                    let share = node.as_ref().and_then(|n| n.signing_keyshare.as_ref());
                    let share = share.and_then(|k| k.public_shares.get(&index.identifier_hex())).cloned();
                    let known = node.as_ref().is_some_and(|n| Node::parse(n).is_ok());
                    match included(leaf_id, &answer, &head.checkpoint) {
                        Err(error) => view.problem = Some(error.to_string()),
                        Ok(()) if !known => view.problem = Some("the operator does not know the leaf".into()),
                        Ok(()) => {
                            let destroyed_before = head.checkpoint.extension.destroyed_before;
                            let mut verdict = judge(&answer.receipts, destroyed_before, share.as_deref());
                            (refreshed, sound) = (std::mem::take(&mut verdict.refreshes), verdict.sound);
                            verdict.describe(&mut view);
                        }
                    }
                    if view.witnesses < witness::needed(&self.config().federation) {
                        (refreshed, sound) = (Vec::new(), false);
                        if view.clean {
                            view.clean = false;
                            view.problem = Some(FEW_WITNESSES.to_owned());
                        }
                    }
                }
            }
            refreshes.push(refreshed);
            mended.push(view.repaired && sound);
            by_operator.push(view);
        }
        let federation = &self.config().federation;
        if refreshed::by_all(&refreshes, federation.threshold()) {
            for (view, _) in by_operator.iter_mut().zip(mended).filter(|(_, mended)| *mended) {
                view.clean = true;
                view.problem = None;
            }
        }
        let needed =
            usize::from(federation.size()).saturating_sub(federation.threshold().into()).saturating_add(1);
        Ok(conclude(leaf_id, by_operator, needed))
    }
}

/// Checks that every receipt is of this leaf and in the log that the checkpoint states.
fn included(leaf_id: &str, answer: &GetReceiptsResponse, head: &Checkpoint) -> Result<(), ReceiptError> {
    let (receipts, proofs) = (&answer.receipts, &answer.proofs);
    if receipts.len() != proofs.len() {
        return Err(ReceiptError::Count { receipts: receipts.len(), proofs: proofs.len() });
    }
    for (i, (receipt, proof)) in receipts.iter().zip(proofs).enumerate() {
        if receipt.leaf_id != leaf_id {
            return Err(ReceiptError::Leaf(i));
        }
        if proof.tree_size != head.size || proof.index != receipt.log_index {
            return Err(ReceiptError::Inclusion(i));
        }
        receipt::verify_inclusion(receipt, proof, head.root).map_err(|_| ReceiptError::Inclusion(i))?;
    }
    Ok(())
}

fn conclude(leaf_id: &str, by_operator: Vec<OperatorReceipts>, needed: usize) -> Finality {
    // The same operators for all versions: those that agree on the highest version count.
    let version = by_operator.iter().filter(|o| o.clean).filter_map(|o| o.version).max();
    let counted = |o: &&OperatorReceipts| o.clean && o.version == version;
    let clean = by_operator.iter().filter(counted).count();
    // Those whose own log shows everything from the key's making on: of the versions that a repaired one held when it was
    // lost, its share may still exist.
    let sound = by_operator.iter().filter(counted).filter(|o| !o.repaired).count();
    let caveat = by_operator.iter().filter(counted).any(|o| o.long_lived_packages);
    let operators = by_operator.len();
    let is_final = version.is_some_and(|v| v > 0) && sound >= needed;
    let tolerated_liars = if is_final { sound.saturating_sub(needed) } else { 0 };
    let statement = if is_final {
        let packages = if caveat { "; unless recorded packages are opened later" } else { "" };
        let mended = if sound < clean {
            format!(" ({} by a refresh after repair)", clean.saturating_sub(sound))
        } else {
            String::new()
        };
        format!("final, {clean} of {operators} clean{mended}, tolerates {tolerated_liars} liars{packages}")
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
        let extension = spark_rules::checkpoint::Extension::default().to_lines();
        let text = format!("{origin}\n0\n{}\n{extension}", STANDARD.encode(Sha256::digest(b"")));
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
            spark_rules::checkpoint::origin(
                &operators.federation,
                spark_rules::ids::OperatorIndex::new(index),
            )
        };
        let checked = |note: String| wallet.head(0, &note).map(|head| (head.checkpoint.size, head.witnesses));
        assert_eq!(checked(checkpoint(&of(0))), Ok((0, 0)));
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
            witnesses: 2,
            version,
            clean,
            long_lived_packages: false,
            repaired: false,
            problem: None,
        }
    }

    /// The share that was lost counts as one that exists, although its operator is clean again.
    #[test]
    fn d12_who_is_clean_by_a_refresh_covers_no_liar() {
        let of = |list: [(bool, bool); 5]| {
            let views = (0u16..)
                .zip(list)
                .map(|(i, (clean, repaired))| OperatorReceipts { repaired, ..operator(i, Some(2), clean) })
                .collect();
            let f = conclude("x", views, 3);
            (f.is_final, f.clean, f.tolerated_liars)
        };
        let (own, mended, not) = ((true, false), (true, true), (false, false));
        assert_eq!(of([own; 5]), (true, 5, 2));
        assert_eq!(of([own, own, own, own, mended]), (true, 5, 1));
        assert_eq!(of([own, own, own, mended, mended]), (true, 5, 0));
        // Two lost shares and one that was not shown destroyed are t of one version.
        assert_eq!(of([own, own, mended, mended, not]), (false, 4, 0));
        assert_eq!(of([own, own, mended, mended, mended]), (false, 5, 0));
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
