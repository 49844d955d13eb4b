//! Receipts of destroyed key shares: who has proven to have forgotten, and since when a transfer is final (D15).
//!
//! Proof formats belong to `spark_rules::receipt`; here is what a wallet concludes from them.

mod clean;
mod conclude;
mod delete_claim;
mod head;
mod own;
mod pages;
mod refreshed;
#[cfg(test)]
mod tests;
mod watch;

use bitcoin::secp256k1::PublicKey;
use serde::{Deserialize, Serialize};
use spark_proto::{
    signer::v1::{GetCheckpointRequest, GetReceiptsRequest, GetReceiptsResponse},
    spark::TreeNode,
};
use spark_rules::{
    checkpoint::{Checkpoint, Contradiction},
    ids::{LeafId, OperatorIndex},
    receipt, witness,
};

use conclude::{Judged, conclude};
use head::Head;
use own::Own;

pub use clean::{Hands, Step, Verdict, judge};
pub use delete_claim::DeleteClaim;
pub use refreshed::Refreshed;

use crate::{
    Wallet, WalletError,
    client::Operator,
    state::{ClaimRecord, FinalLeaf},
    verify::VerifyError,
};

const FEW_WITNESSES: &str = "too few other operators have cosigned this head of the log";

/// What is known of who vouches for an operator's devices and their profile: operators publish no attestation of their
/// keys, so `delete_claim` is their own word.
const ATTESTATION: &str = "none";

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
    /// The operator's pages are out of order, or do not lead to an end.
    #[error("the pages of receipts are out of order or lead to no end")]
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
    /// What destruction means on this operator's devices, as it says itself: the weakest of all receipts of the leaf.
    #[serde(default)]
    pub delete_claim: DeleteClaim,
    /// The log begins with a repair: clean only by a refresh that all have applied, and then it covers no liar.
    #[serde(default)]
    pub repaired: bool,
    /// What is missing or wrong, if not clean.
    pub problem: Option<String>,
}

impl OperatorReceipts {
    /// Nothing is known yet.
    const fn unknown(operator: u16) -> Self {
        Self {
            operator,
            receipts: 0,
            confirmed: 0,
            witnesses: 0,
            version: None,
            clean: false,
            long_lived_packages: false,
            delete_claim: DeleteClaim::Unknown,
            repaired: false,
            problem: None,
        }
    }
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
    /// The weakest of the operators that count.
    #[serde(default)]
    pub delete_claim: DeleteClaim,
    /// Who vouches for the devices: "none", the operators' word alone.
    #[serde(default)]
    pub attestation: String,
    /// In words.
    pub statement: String,
    /// One by one.
    pub by_operator: Vec<OperatorReceipts>,
}

impl Finality {
    /// There is nothing to wait for: no operator has anything left to prove. That it is final is not enough, since every
    /// further clean operator covers one more liar.
    pub const fn is_settled(&self) -> bool {
        self.clean == self.operators
    }

    /// The money is this wallet's alone: final, or one's own deposit, which all operators show never changed hands.
    pub const fn is_safe(&self) -> bool {
        self.is_final || self.is_settled()
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
    /// Who vouches for the operator's devices: "none", its own word alone.
    #[serde(default)]
    pub attestation: String,
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
                    attestation: ATTESTATION.to_owned(),
                    problem: (head.witnesses < needed_witnesses).then(|| FEW_WITNESSES.to_owned()),
                },
                Err(error) => LogView {
                    operator,
                    size: 0,
                    destroyed_before: 0,
                    witnesses: 0,
                    attestation: ATTESTATION.to_owned(),
                    problem: Some(error.to_string()),
                },
            });
        }
        let mut leaves = Vec::new();
        for leaf in self.sync().await? {
            leaves.push(self.finality(&leaf.leaf_id).await?);
        }
        let ok = logs.iter().all(|log| log.problem.is_none()) && leaves.iter().all(Finality::is_settled);
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

    /// Asks every operator for its receipts of a leaf, checks them, holds them against what this wallet knows of the leaf
    /// by itself, and draws the conclusion of D15.
    pub async fn finality(&self, leaf_id: &str) -> Result<Finality, WalletError> {
        let leaf = LeafId::parse(leaf_id).map_err(VerifyError::from)?;
        let own = self.own(&leaf)?;
        let answers = self.operators().each(|operator| self.shown(operator, leaf_id)).await;
        let mut operators = Vec::with_capacity(answers.len());
        // What each log shows of refreshes, and whether a repaired operator's holds otherwise.
        let (mut refreshes, mut mended) = (Vec::new(), Vec::new());
        for (index, answer) in answers {
            let mut view = OperatorReceipts::unknown(index.get());
            let mut held = Held::default();
            match answer {
                Err(error) => view.problem = Some(error.to_string()),
                Ok(shown) => held = self.held(index, leaf_id, own.as_ref(), &shown, &mut view),
            }
            mended.push(view.repaired && held.sound);
            refreshes.push(held.refreshes);
            operators.push(Judged { view, shares: held.shares });
        }
        let federation = &self.config().federation;
        if refreshed::by_all(&refreshes, federation.threshold()) {
            for (judged, _) in operators.iter_mut().zip(mended).filter(|(_, mended)| *mended) {
                judged.view.clean = true;
                judged.view.problem = None;
            }
        }
        let needed =
            usize::from(federation.size()).saturating_sub(federation.threshold().into()).saturating_add(1);
        let finality = conclude(leaf_id, operators, needed, own.is_some_and(|own| own.is_claimed()));
        self.note_final(&finality)?;
        Ok(finality)
    }

    /// What an operator shows of a leaf: receipts under a head that continues what was seen, and the leaf.
    async fn shown(&self, operator: &Operator, leaf_id: &str) -> Result<Shown, WalletError> {
        let (receipts, head) = self.all_receipts(operator, leaf_id).await?;
        self.continued(operator, &head.checkpoint).await?;
        let mut nodes = self.nodes_by_id(operator, vec![leaf_id.to_owned()]).await?;
        Ok(Shown { receipts, head, node: nodes.remove(leaf_id) })
    }

    /// Judges what an operator shows and describes it in `view`. Returns what of it holds beside others.
    fn held(
        &self,
        index: OperatorIndex,
        leaf_id: &str,
        own: Option<&Own>,
        shown: &Shown,
        view: &mut OperatorReceipts,
    ) -> Held {
        let federation = &self.config().federation;
        view.witnesses = shown.head.witnesses;
        if let Err(error) = included(leaf_id, &shown.receipts, &shown.head.checkpoint) {
            view.problem = Some(error.to_string());
            return Held::default();
        }
        let Some(node) = &shown.node else {
            view.problem = Some("the operator does not know the leaf".into());
            return Held::default();
        };
        let share = node.signing_keyshare.as_ref();
        let share = share.and_then(|key| key.public_shares.get(&index.identifier_hex()));
        let destroyed_before = shown.head.checkpoint.extension.destroyed_before;
        let mut verdict = judge(&shown.receipts.receipts, destroyed_before, share.map(Vec::as_slice));
        let shares = match own {
            Some(own) => own.shares(index, federation, node, &verdict),
            None => Err(own::NOT_OURS),
        };
        let (refreshes, sound) = (std::mem::take(&mut verdict.refreshes), verdict.sound);
        verdict.describe(view);
        let doubt = match &shares {
            _ if view.witnesses < witness::needed(federation) => Some(FEW_WITNESSES),
            Err(reason) => Some(*reason),
            Ok(_) => None,
        };
        if let Some(reason) = doubt {
            view.clean = false;
            view.problem.get_or_insert_with(|| reason.to_owned());
            return Held::default();
        }
        Held { refreshes, sound, shares: shares.unwrap_or_default() }
    }

    /// Remembers under the claim how final its leaf became: later the leaf may be somebody else's.
    fn note_final(&self, finality: &Finality) -> Result<(), WalletError> {
        if !finality.is_final {
            return Ok(());
        }
        for mut claim in self.last_claims(&finality.leaf_id)? {
            loop {
                let mut noted = claim.clone();
                noted.finals.retain(|leaf| leaf.leaf_id != finality.leaf_id);
                noted.finals.push(FinalLeaf {
                    leaf_id: finality.leaf_id.clone(),
                    clean: finality.clean,
                    statement: finality.statement.clone(),
                });
                let same = noted.finals.iter().all(|leaf| claim.finals.contains(leaf));
                if same || self.state().replace(&claim.transfer_id, Some(&claim), &noted)? {
                    break;
                }
                // Another call wrote it meanwhile.
                match self.state().get::<ClaimRecord>(&claim.transfer_id)? {
                    Some(newer) => claim = newer,
                    None => break,
                }
            }
        }
        Ok(())
    }
}

/// What an operator shows of a leaf.
struct Shown {
    receipts: GetReceiptsResponse,
    head: Head,
    node: Option<TreeNode>,
}

/// What of it holds.
#[derive(Default)]
struct Held {
    refreshes: Vec<Refreshed>,
    /// Nothing is wrong or missing, but perhaps for a repair.
    sound: bool,
    shares: Vec<PublicKey>,
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
