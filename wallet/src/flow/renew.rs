use spark_proto::spark::{
    RenewLeafRequest, RenewNodeTimelockSigningJob, RenewNodeZeroTimelockSigningJob,
    RenewRefundTimelockSigningJob, UserSignedTxSigningJob, renew_leaf_request::SigningJobs,
};
use spark_rules::{
    ids::LeafId,
    tx::{INITIAL_TIMELOCK, INTERVAL, LEAST_REFUND_STEP, Plan, Purpose, RenewalPath, Source, Timelock},
};
use tonic::Code;

use super::query::Nodes;
use crate::{
    Wallet, WalletError,
    signing::{CommitmentSets, job},
    state::LeafKeyKind,
    verify::{Agreement, Node, VerifyError, check_claimed},
};

/// Times a renewal is built anew with fresh commitments.
const ATTEMPTS: u32 = 4;
/// Below this the node itself is renewed, not only the refund.
const NODE_LOW: u16 = 2 * INTERVAL;
/// Operators renew at or below this.
const RENEWABLE: u16 = 3 * INTERVAL;

/// A leaf with fresh timelocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// UUID, unchanged.
    pub leaf_id: String,
    /// Which transactions were replaced.
    pub path: RenewalPath,
    /// Blocks before.
    pub refund_before: u16,
    /// Blocks now.
    pub refund_after: u16,
}

impl Renewed {
    /// "node", "refund" or "zero".
    pub const fn path_name(&self) -> &'static str {
        match self.path {
            RenewalPath::Node => "node",
            RenewalPath::Refund => "refund",
            RenewalPath::Zero => "zero",
        }
    }
}

impl Wallet {
    /// Renews every leaf whose refund has no step left for a send.
    pub async fn renew_low(&self) -> Result<Vec<Renewed>, WalletError> {
        let busy = self.busy_leaves()?;
        let mut renewed = Vec::new();
        for view in self.sync().await? {
            if view.is_spendable() && view.needs_renewal() && !busy.contains(&view.leaf_id) {
                renewed.push(self.renew(&view.leaf_id).await?);
            }
        }
        Ok(renewed)
    }

    /// Renews one leaf. The transactions are fixed by the leaf's state, so a repeat after a crash is the same
    /// operation.
    pub async fn renew(&self, leaf_id: &str) -> Result<Renewed, WalletError> {
        let id = LeafId::parse(leaf_id).map_err(VerifyError::from)?;
        let nodes = self.agreed_nodes(&[leaf_id.to_owned()]).await?;
        let lineage = self.verified_lineage(&id, &nodes, &Agreement::All).await?.lineage;
        let node = lineage.leaf()?.clone();
        let own = self.keys().leaf(&id)?;
        if own.public_key().combine(&node.group_key) != Ok(node.verifying_key) {
            return Err(VerifyError::KeySum.into());
        }
        let refund_before = node.refund_timelock()?.blocks();
        if refund_before > RENEWABLE {
            return Err(WalletError::Refused(format!(
                "the refund's timelock is {refund_before}; operators renew at {RENEWABLE} or below"
            )));
        }
        let (path, count) = path(node.node_timelock()?);
        let (p, d) = (&node.verifying_key, &own.public_key());
        let plan = match path {
            // Stands on the node itself: nothing above it need be known.
            RenewalPath::Zero => Plan::renew_zero(Source::Build, node.spend()?, p, d),
            RenewalPath::Node => {
                let parent = lineage.leaf_parent_spend(&self.deposits_of(&lineage).await?)?;
                Plan::renew_node(Source::Build, parent, p, d)
            }
            RenewalPath::Refund => {
                let parent = lineage.leaf_parent_spend(&self.deposits_of(&lineage).await?)?;
                let step = node.node_timelock()?.step_down().map_err(VerifyError::from)?;
                Plan::renew_refund(Source::Build, parent, p, d, step)
            }
        }
        .map_err(VerifyError::from)?;
        self.submit_renewal(&node, &plan, path, count).await?;
        let nodes = self.agreed_nodes(&[leaf_id.to_owned()]).await?;
        self.accept_renewal(&node, &plan, &nodes).await?;
        Ok(Renewed {
            leaf_id: leaf_id.to_owned(),
            path,
            refund_before,
            refund_after: INITIAL_TIMELOCK.blocks(),
        })
    }

    async fn submit_renewal(
        &self,
        node: &Node,
        plan: &Plan,
        path: RenewalPath,
        count: u32,
    ) -> Result<(), WalletError> {
        let leaf_id = node.id.to_string();
        let own = self.keys().leaf(&node.id)?;
        let refund = node.refund_tx.as_ref().ok_or(VerifyError::Field("refund_tx"))?;
        let key = refund.compute_txid().to_string();
        let mut attempt = 0;
        loop {
            let mut sets = CommitmentSets::new(self.commitments(vec![leaf_id.clone()], count, 0).await?);
            let mut jobs = Vec::new();
            for planned in plan.transactions() {
                let job =
                    job(&leaf_id, planned, &own, &node.verifying_key, &mut sets, &self.config().federation)?;
                jobs.push((planned.purpose(), job));
            }
            let request =
                RenewLeafRequest { leaf_id: leaf_id.clone(), signing_jobs: Some(arrange(path, &jobs)) };
            let idempotency = key.parse().map_err(|_| WalletError::Answer("a transaction id"))?;
            let idempotency: tonic::metadata::MetadataValue<tonic::metadata::Ascii> = idempotency;
            let answer = self
                .operators()
                .coordinator()
                .spark(self.keys().identity(), request, |mut c, mut r| {
                    r.metadata_mut().insert("x-idempotency-key", idempotency.clone());
                    async move { c.renew_leaf(r).await }
                })
                .await;
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(Code::AlreadyExists) => return Ok(()),
                Err(error)
                    if attempt < ATTEMPTS
                        && matches!(error.code(), Some(Code::Unavailable | Code::Aborted)) =>
                {
                    attempt = attempt.saturating_add(1);
                    tokio::time::sleep(std::time::Duration::from_millis(250 << attempt)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn accept_renewal(&self, before: &Node, plan: &Plan, nodes: &Nodes) -> Result<(), WalletError> {
        let node = Node::parse(nodes.get(&before.id.to_string()).ok_or(WalletError::Answer("a leaf"))?)?;
        let planned = plan.get(Purpose::Node).ok_or(WalletError::Answer("a node"))?;
        if node.verifying_key != before.verifying_key
            || node.group_key != before.group_key
            || node.node_tx.compute_txid() != planned.tx.compute_txid()
        {
            return Err(VerifyError::Field("renewed node").into());
        }
        check_claimed(&node, &self.keys().leaf(&node.id)?.public_key(), INITIAL_TIMELOCK)?;
        let lineage = self.verified_lineage(&node.id, nodes, &Agreement::All).await?.lineage;
        self.remember(&lineage, nodes, LeafKeyKind::Leaf, &Agreement::All)
    }
}

/// Path and number of transactions.
fn path(node: Timelock) -> (RenewalPath, u32) {
    let next = node.step_down().ok().filter(|step| *step >= LEAST_REFUND_STEP);
    if node.is_zero() {
        (RenewalPath::Zero, 4)
    } else if node.blocks() < NODE_LOW || next.is_none() {
        (RenewalPath::Node, 7)
    } else {
        (RenewalPath::Refund, 5)
    }
}

fn arrange(path: RenewalPath, jobs: &[(Purpose, UserSignedTxSigningJob)]) -> SigningJobs {
    let take = |purpose| jobs.iter().find(|(p, _)| *p == purpose).map(|(_, job)| job.clone());
    match path {
        RenewalPath::Node => SigningJobs::RenewNodeTimelockSigningJob(RenewNodeTimelockSigningJob {
            split_node_tx_signing_job: take(Purpose::Split),
            split_node_direct_tx_signing_job: take(Purpose::DirectSplit),
            node_tx_signing_job: take(Purpose::Node),
            refund_tx_signing_job: take(Purpose::Refund),
            direct_node_tx_signing_job: take(Purpose::DirectNode),
            direct_refund_tx_signing_job: take(Purpose::DirectRefund),
            direct_from_cpfp_refund_tx_signing_job: take(Purpose::DirectFromCpfpRefund),
        }),
        RenewalPath::Refund => SigningJobs::RenewRefundTimelockSigningJob(RenewRefundTimelockSigningJob {
            node_tx_signing_job: take(Purpose::Node),
            refund_tx_signing_job: take(Purpose::Refund),
            direct_node_tx_signing_job: take(Purpose::DirectNode),
            direct_refund_tx_signing_job: take(Purpose::DirectRefund),
            direct_from_cpfp_refund_tx_signing_job: take(Purpose::DirectFromCpfpRefund),
        }),
        RenewalPath::Zero => SigningJobs::RenewNodeZeroTimelockSigningJob(RenewNodeZeroTimelockSigningJob {
            node_tx_signing_job: take(Purpose::Node),
            refund_tx_signing_job: take(Purpose::Refund),
            direct_node_tx_signing_job: take(Purpose::DirectNode),
            direct_from_cpfp_refund_tx_signing_job: take(Purpose::DirectFromCpfpRefund),
        }),
    }
}
