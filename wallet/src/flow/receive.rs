use spark_proto::spark::{
    ClaimPackage, ClaimTransferRequest, HashVariant, SubscribeToEventsRequest, Transfer, TransferType,
    subscribe_to_events_response::Event,
};
use spark_rules::{
    ids::TransferId,
    package,
    tx::{Basis, Plan, Purpose as Of, Source},
    vote::Kind,
};
use tonic::Code;

use super::query::Nodes;
use crate::{
    Wallet, WalletError,
    client::ClientError,
    recipients::Purpose,
    signing::{CommitmentSets, job},
    state::{ClaimRecord, ClaimTweak, LeafKeyKind, Wire},
    tweak::{LeafTweak, seal_claim},
    verify::{Agreement, Incoming, Node, VerifyError, check_claimed, incoming},
    wallet::now,
};

/// Times a claim is built anew with fresh commitments.
const ATTEMPTS: u32 = 4;

/// A transfer that is this wallet's alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// UUID.
    pub transfer_id: String,
    /// Sender's identity key, hex.
    pub sender: String,
    /// Satoshis.
    pub amount: u64,
    /// Leaves that came.
    pub leaves: Vec<String>,
}

/// Something an operator pushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A transfer may wait.
    Transfer,
    /// A deposit is confirmed.
    Deposit,
    /// The stream lives.
    Alive,
}

impl Wallet {
    /// Claims all transfers that wait. One that fails does not stop the others; its error comes with its id.
    ///
    /// What came back of transfers for a preimage is made safe first.
    pub async fn receive(&self) -> Result<Vec<Result<Claimed, (String, WalletError)>>, WalletError> {
        if let Err(error) = self.end_htlcs().await {
            tracing::warn!(%error, "what ended could not be finished yet");
        }
        let mut outcomes = Vec::new();
        for transfer in self.pending().await? {
            let id = transfer.id.clone();
            outcomes.push(self.claim(&transfer).await.map_err(|error| (id, error)));
        }
        Ok(outcomes)
    }

    /// Opens the coordinator's stream of events. It only wakes this wallet up: nothing in it is believed.
    pub async fn events(
        &self,
    ) -> Result<impl futures::Stream<Item = Result<Notice, ClientError>> + use<>, WalletError> {
        let request = SubscribeToEventsRequest {
            identity_public_key: self.keys().identity().public_key().serialize().to_vec(),
        };
        let operator = self.operators().coordinator();
        let index = operator.index();
        let stream = operator
            .spark(self.keys().identity(), request, |mut c, r| async move { c.subscribe_to_events(r).await })
            .await?;
        use futures::StreamExt as _;
        Ok(stream.map(move |item| match item {
            Ok(event) => Ok(match event.event {
                Some(Event::ReceiverTransfer(_)) => Notice::Transfer,
                Some(Event::Deposit(_)) => Notice::Deposit,
                _ => Notice::Alive,
            }),
            Err(status) => Err(ClientError::Status { operator: index, status: Box::new(status) }),
        }))
    }

    /// Verifies and claims one transfer. Repeating it after a crash finishes it.
    pub async fn claim(&self, transfer: &Transfer) -> Result<Claimed, WalletError> {
        let mut record = match self.state().get::<ClaimRecord>(&transfer.id)? {
            // Its leaves have gone on since, or may have.
            Some(record) if record.done => return self.finished(record),
            Some(record) => record,
            None => ClaimRecord {
                transfer_id: transfer.id.clone(),
                sender: hex::encode(&transfer.sender_identity_public_key),
                amount: transfer.total_value,
                leaves: transfer
                    .leaves
                    .iter()
                    .filter_map(|l| l.leaf.as_ref())
                    .map(|l| l.id.clone())
                    .collect(),
                request: None,
                tweaks: Vec::new(),
                finals: Vec::new(),
                done: false,
                problem: None,
                created: now(),
            },
        };
        let htlc = self.terms_of(transfer).await?;
        let leaves = incoming(transfer, self.keys().identity(), htlc.as_ref());
        if let Err(error) = &leaves {
            record.problem = Some(error.to_string());
            self.state().put(&record)?;
        }
        if htlc.is_none() && transfer.r#type() != TransferType::CooperativeExit {
            // Even where the sender left garbage, the refund to the identity key may stand (D23).
            self.keep_exit(transfer).await?;
        }
        let leaves = leaves?;
        verified_terms(&mut record, transfer, &leaves);
        self.state().put(&record)?;
        self.submit_claim(&mut record, &leaves).await?;
        self.accept_claim(&record, &leaves).await?;
        self.finished(record)
    }

    pub(super) fn finished(&self, mut record: ClaimRecord) -> Result<Claimed, WalletError> {
        (record.done, record.problem) = (true, None);
        self.state().put(&record)?;
        Ok(Claimed {
            transfer_id: record.transfer_id,
            sender: record.sender,
            amount: record.amount,
            leaves: record.leaves,
        })
    }

    async fn submit_claim(&self, record: &mut ClaimRecord, leaves: &[Incoming]) -> Result<(), WalletError> {
        let mut attempt = 0;
        loop {
            let request = match &record.request {
                Some(stored) => stored.decode().map_err(|_| WalletError::Answer("the stored claim"))?,
                None => {
                    let (request, tweaks) = self.claim_request(&record.transfer_id, leaves).await?;
                    record.request = Some(Wire::of(&request));
                    // An earlier one may yet turn out to be the one that was applied.
                    record.tweaks.extend(tweaks);
                    self.state().put(record)?;
                    request
                }
            };
            let answer = self
                .operators()
                .coordinator()
                .spark(self.keys().identity(), request, |mut c, r| async move { c.claim_transfer(r).await })
                .await;
            match answer {
                Ok(_) => return Ok(()),
                // Finished before; what it made is verified next.
                Err(error) if error.code() == Some(Code::AlreadyExists) => return Ok(()),
                Err(error) if attempt < ATTEMPTS => {
                    match error.code() {
                        // Undecided: the same bytes again.
                        Some(Code::Aborted | Code::DeadlineExceeded | Code::Cancelled) if attempt == 0 => {}
                        // Nonces lost or the attempt aborted: the same transactions with fresh commitments (D2).
                        Some(
                            Code::Unavailable
                            | Code::FailedPrecondition
                            | Code::Aborted
                            | Code::DeadlineExceeded
                            | Code::Cancelled,
                        ) => record.request = None,
                        _ => return Err(error.into()),
                    }
                    attempt = attempt.saturating_add(1);
                    tokio::time::sleep(std::time::Duration::from_millis(250 << attempt)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn claim_request(
        &self,
        id: &str,
        leaves: &[Incoming],
    ) -> Result<(ClaimTransferRequest, Vec<ClaimTweak>), WalletError> {
        let federation = &self.config().federation;
        let count = u32::try_from(leaves.len()).unwrap_or(u32::MAX);
        let (sets, recipients) = tokio::try_join!(self.commitments(Vec::new(), 3, count), self.recipients())?;
        let mut package = ClaimPackage { hash_variant: HashVariant::V2 as i32, ..Default::default() };
        let mut tweaks = Vec::with_capacity(leaves.len());
        for (leaf, mut sets) in leaves.iter().zip(CommitmentSets::by_leaf(sets, 3, leaves.len())?) {
            let leaf_id = leaf.node.id.to_string();
            let own = self.keys().leaf(&leaf.node.id)?;
            let basis = Basis { node: leaf.node.spend()?, direct_node: leaf.node.direct_spend()? };
            let plan = Plan::refunds(Source::Build, &basis, &own.public_key(), leaf.step.round_down())
                .map_err(VerifyError::from)?;
            for planned in plan.transactions() {
                let job = job(&leaf_id, planned, &own, &leaf.node.verifying_key, &mut sets, federation)?;
                match planned.purpose() {
                    Of::Refund => package.leaves_to_claim.push(job),
                    Of::DirectRefund => package.direct_leaves_to_claim.push(job),
                    _ => package.direct_from_cpfp_leaves_to_claim.push(job),
                }
            }
            tweaks.push(LeafTweak::new(leaf_id, &leaf.secret, own.secret(), federation)?);
        }
        let uuid = package::parse_transfer_id(id).map_err(VerifyError::from)?;
        let (transfer, owner) =
            (TransferId::from_bytes(*uuid.as_bytes()), self.keys().identity().public_key());
        let purpose = Purpose { kind: Kind::Claim, transfer, owner };
        package.key_tweak_package = seal_claim(&tweaks, federation, &recipients, &purpose)?;
        let digest = package::claim_payload(&uuid, &package.key_tweak_package);
        package.user_signature = self.keys().identity().sign_ecdsa(digest)?.serialize_der().to_vec();
        let request = ClaimTransferRequest {
            transfer_id: id.to_owned(),
            owner_identity_public_key: self.keys().identity().public_key().serialize().to_vec(),
            claim_package: Some(package),
        };
        Ok((request, tweaks.iter().map(LeafTweak::public_half).collect()))
    }

    /// After a claim every operator must show the leaf under this wallet's own key, with refunds to it.
    async fn accept_claim(&self, record: &ClaimRecord, leaves: &[Incoming]) -> Result<(), WalletError> {
        let nodes = self.agreed_nodes(&record.leaves).await?;
        for leaf in leaves {
            let node =
                Node::parse(nodes.get(&leaf.node.id.to_string()).ok_or(WalletError::Answer("a leaf"))?)?;
            let own = self.keys().leaf(&node.id)?.public_key();
            if own.combine(&node.group_key) != Ok(node.verifying_key)
                || node.verifying_key != leaf.node.verifying_key
                || node.node_tx != leaf.node.node_tx
                || node.owner_identity != self.keys().identity().public_key()
            {
                return Err(VerifyError::KeySum.into());
            }
            check_claimed(&node, &own, leaf.step.round_down())?;
            self.remember_agreed(&node, &nodes).await?;
        }
        Ok(())
    }

    pub(super) async fn remember_agreed(&self, node: &Node, nodes: &Nodes) -> Result<(), WalletError> {
        let verified = self.verified_lineage(&node.id, nodes, &Agreement::All).await?;
        self.remember(&verified.lineage, nodes, LeafKeyKind::Leaf, &Agreement::All)
    }
}

/// Takes the terms of a transfer from its verified leaves, whatever was listed first.
fn verified_terms(record: &mut ClaimRecord, transfer: &Transfer, leaves: &[Incoming]) {
    let ids: Vec<String> = leaves.iter().map(|leaf| leaf.node.id.to_string()).collect();
    if record.leaves != ids {
        // A claim of other leaves is no claim of these.
        record.request = None;
    }
    record.leaves = ids;
    record.amount = leaves.iter().fold(0u64, |sum, leaf| sum.saturating_add(leaf.node.value));
    record.sender = hex::encode(&transfer.sender_identity_public_key);
    record.problem = None;
}
