use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{OutPoint, TxOut, consensus::encode};
use spark_proto::spark::{
    FinalizeDepositTreeCreationRequest, GenerateDepositAddressRequest, HashVariant, TreeNode, Utxo,
};
use spark_rules::{
    ids::LeafId,
    leaf::LeafStatus,
    point,
    tx::{Plan, Purpose, Source, Spend, without_witnesses},
};
use uuid::Uuid;

use super::{
    funding::{Funded, Funding},
    query::agreement,
};
use crate::{
    Wallet, WalletError,
    signing::{CommitmentSets, job},
    state::{DepositRecord, DepositState, LeafKeyKind, Wire},
    verify::{self, Agreement, Lineage, Node, VerifyError, check_refunds},
    wallet::now,
};

/// Times that a claim is built anew with fresh commitments.
const ATTEMPTS: u32 = 2;

/// A deposit that became a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedDeposit {
    /// UUID.
    pub leaf_id: String,
    /// The address it came to.
    pub address: String,
    /// Satoshis.
    pub value: u64,
    /// "CREATING" until confirmed, then "AVAILABLE".
    pub status: String,
}

impl ClaimedDeposit {
    /// Whoever funds an unconfirmed deposit can still take it back.
    pub fn is_unconfirmed(&self) -> bool {
        self.status == LeafStatus::Creating.name()
    }
}

impl Wallet {
    /// A fresh one-time deposit address, verified: P2TR of own plus operators' key, vouched for by every operator.
    pub async fn deposit_address(&self) -> Result<DepositRecord, WalletError> {
        // A request that got no answer is asked again, so that no leaf id is lost.
        let open =
            self.state().all::<DepositRecord>()?.into_iter().find(|d| d.state == DepositState::Requested);
        let mut record = match open {
            Some(record) => record,
            None => {
                let record = DepositRecord {
                    leaf_id: Uuid::now_v7().as_hyphenated().to_string(),
                    address: String::new(),
                    verifying_key: String::new(),
                    state: DepositState::Requested,
                    outpoint: None,
                    amount: None,
                    request: None,
                    created: now(),
                };
                self.state().put(&record)?;
                record
            }
        };
        let id = LeafId::parse(&record.leaf_id).map_err(VerifyError::from)?;
        let key = self.keys().leaf(&id)?.public_key();
        let identity = self.keys().identity().public_key();
        let request = GenerateDepositAddressRequest {
            signing_public_key: key.serialize().to_vec(),
            identity_public_key: identity.serialize().to_vec(),
            network: self.config().network.to_wire() as i32,
            leaf_id: Some(record.leaf_id.clone()),
            is_static: Some(false),
            hash_variant: HashVariant::V2 as i32,
        };
        let answer =
            self.operators()
                .coordinator()
                .spark(self.keys().identity(), request, |mut c, r| async move {
                    c.generate_deposit_address(r).await
                })
                .await?;
        let address = answer.deposit_address.ok_or(WalletError::Answer("the address"))?;
        let proof = address.deposit_address_proof.ok_or(WalletError::Answer("the address proof"))?;
        let verified = verify::deposit_address(
            &address.address,
            &address.verifying_key,
            &proof,
            &key,
            &identity,
            self.config().network,
            &self.config().federation,
        )?;
        record.address = verified.address;
        record.verifying_key = verified.verifying_key.to_string();
        record.state = DepositState::Waiting;
        self.state().put(&record)?;
        Ok(record)
    }

    /// Turns what came to a deposit address into a leaf. Nothing to claim is none. As long as the leaf waits for its
    /// block, another output can be claimed in its place, should the first one vanish.
    pub async fn claim_deposit(
        &self,
        address: &str,
        funding: &Funding,
    ) -> Result<Option<ClaimedDeposit>, WalletError> {
        let mut record = self.deposit_record(address).await?;
        if record.state == DepositState::Claimed {
            return Err(WalletError::Refused(format!("{address} is used up; ask for a new address")));
        }
        // An earlier claim whose answer was lost may have made the leaf.
        let existing = match record.state {
            DepositState::Claiming => self.existing_root(&record).await?,
            _ => None,
        };
        if let Some(root) = existing
            && !self.may_replace(&record, &root, funding).await?
        {
            return self.accept_deposit(record, &root).await.map(Some);
        }
        let mut attempt = 0u32;
        loop {
            let Some(request) = self.next_claim(&mut record, funding, attempt > 0).await? else {
                return Ok(None);
            };
            attempt = attempt.saturating_add(1);
            let asked: BTreeSet<OutPoint> = funded(&request).into_keys().collect();
            let error = match self.finalize(request).await {
                Ok(root) => return self.accept_deposit(record, &root).await.map(Some),
                Err(error) => error,
            };
            // No answer, or "exists": the leaf tells what became of the claim.
            if let Ok(Some(root)) = self.existing_root(&record).await
                && (root.status != LeafStatus::Creating.name() || root_inputs(&root)? == asked)
            {
                return self.accept_deposit(record, &root).await.map(Some);
            }
            // Nonces live in memory, and unconfirmed funding may be replaced: only fresh commitments, over what the
            // chain shows now, help (D7).
            let again = matches!(&error, WalletError::Client(e) if matches!(
                e.code(),
                Some(tonic::Code::Unavailable | tonic::Code::FailedPrecondition)
            ));
            if !again || attempt >= ATTEMPTS {
                return Err(error);
            }
        }
    }

    /// The record of an address; one that this wallet forgot is searched at the operators.
    async fn deposit_record(&self, address: &str) -> Result<DepositRecord, WalletError> {
        let find = || -> Result<Option<DepositRecord>, WalletError> {
            Ok(self.state().all::<DepositRecord>()?.into_iter().find(|d| d.address == address))
        };
        if let Some(record) = find()? {
            return Ok(record);
        }
        self.restore_deposits().await?;
        find()?.ok_or_else(|| WalletError::Refused(format!("{address} is no address of this wallet")))
    }

    async fn existing_root(&self, record: &DepositRecord) -> Result<Option<TreeNode>, WalletError> {
        let id = record.leaf_id.clone();
        let mut nodes = self.nodes_by_id(self.operators().coordinator(), vec![id]).await?;
        Ok(nodes.remove(&record.leaf_id))
    }

    /// Whether to claim another output in place of a leaf that waits for its block: when its own output is gone, or
    /// when more is to be had.
    async fn may_replace(
        &self,
        record: &DepositRecord,
        root: &TreeNode,
        funding: &Funding,
    ) -> Result<bool, WalletError> {
        if root.status != LeafStatus::Creating.name() {
            return Ok(false);
        }
        let Some(chain) = self.chain_if_any() else {
            // Nobody here can tell; a user who names a transaction knows why.
            return Ok(match funding {
                Funding::Transaction(tx) => {
                    let txid = tx.compute_txid();
                    !root_inputs(root)?.iter().any(|outpoint| outpoint.txid == txid)
                }
                _ => false,
            });
        };
        let now = self.funding_outputs(record, funding).await?;
        let ((sum, outpoints), present) = (totals(&now), root_inputs(root)?);
        if now.is_empty() || outpoints == present {
            return Ok(false);
        }
        for outpoint in &present {
            if chain.unspent(outpoint).await?.is_none() {
                return Ok(true);
            }
        }
        Ok(sum > root.value)
    }

    /// The claim to send: the very bytes of the last attempt if the same outputs are there, unless `fresh`
    /// commitments are needed.
    async fn next_claim(
        &self,
        record: &mut DepositRecord,
        funding: &Funding,
        fresh: bool,
    ) -> Result<Option<FinalizeDepositTreeCreationRequest>, WalletError> {
        let stored = record.request.as_ref().map(Wire::decode).transpose();
        let stored = stored.map_err(|_| WalletError::Answer("the stored claim"))?;
        if let (Some(stored), Funding::Scan, None, false) = (&stored, funding, self.chain_if_any(), fresh) {
            return Ok(Some(stored.clone()));
        }
        let outputs = self.funding_outputs(record, funding).await?;
        let (sum, outpoints) = totals(&outputs);
        if outputs.is_empty() {
            return Ok(None);
        }
        if let Some(stored) = stored
            && !fresh
            && funded(&stored).into_keys().collect::<BTreeSet<_>>() == outpoints
        {
            return Ok(Some(stored));
        }
        let request = self.deposit_request(record, &outputs).await?;
        record.outpoint = outputs.first().map(|(spend, _)| spend.outpoint.to_string());
        record.amount = Some(sum);
        record.request = Some(Wire::of(&request));
        record.state = DepositState::Claiming;
        self.state().put(record)?;
        Ok(Some(request))
    }

    async fn finalize(&self, request: FinalizeDepositTreeCreationRequest) -> Result<TreeNode, WalletError> {
        let answer = self
            .operators()
            .coordinator()
            .spark(self.keys().identity(), request, |mut c, r| async move {
                c.finalize_deposit_tree_creation(r).await
            })
            .await?;
        answer.root_node.ok_or(WalletError::Answer("the root node"))
    }

    async fn accept_deposit(
        &self,
        mut record: DepositRecord,
        root: &TreeNode,
    ) -> Result<ClaimedDeposit, WalletError> {
        let node = Node::parse(root)?;
        if node.id.to_string() != record.leaf_id || node.verifying_key.to_string() != record.verifying_key {
            return Err(VerifyError::Field("root_node").into());
        }
        check_refunds(&node, &self.keys().leaf(&node.id)?.public_key())?;
        let lineage = Lineage::from_nodes(std::slice::from_ref(root))?;
        // The chain's outputs where it can be asked, else those that this wallet itself asked to collect.
        let stored = record.request.as_ref().and_then(|r| r.decode().ok());
        let mut deposits = stored.as_ref().map(funded).unwrap_or_default();
        deposits.extend(self.deposits_of(&lineage).await?);
        lineage.check(&deposits)?;
        let agreement = match self.nodes_everywhere(std::slice::from_ref(&record.leaf_id)).await {
            Ok((_, others)) => agreement(root, &others),
            Err(error) => Agreement::Silence(error.to_string()),
        };
        let nodes = BTreeMap::from([(root.id.clone(), root.clone())]);
        self.remember(&lineage, &nodes, LeafKeyKind::Leaf, &agreement)?;
        record.outpoint = lineage.deposit_outpoints().first().map(ToString::to_string);
        record.amount = Some(node.value);
        // Until its block the funding may be replaced by its payer, and the address is needed again.
        let confirmed = node.status != LeafStatus::Creating.name() && agreement == Agreement::All;
        record.state = if confirmed { DepositState::Claimed } else { DepositState::Claiming };
        self.state().put(&record)?;
        Ok(ClaimedDeposit {
            leaf_id: record.leaf_id,
            address: record.address,
            value: node.value,
            status: node.status,
        })
    }

    async fn deposit_request(
        &self,
        record: &DepositRecord,
        outputs: &[Funded],
    ) -> Result<FinalizeDepositTreeCreationRequest, WalletError> {
        let id = LeafId::parse(&record.leaf_id).map_err(VerifyError::from)?;
        let key = self.keys().leaf(&id)?;
        let verifying_key = hex::decode(&record.verifying_key).unwrap_or_default();
        let verifying_key = point::parse("verifying_key", &verifying_key).map_err(VerifyError::from)?;
        let spends: Vec<Spend> = outputs.iter().map(|(spend, _)| spend.clone()).collect();
        let plan = Plan::deposit(Source::Build, spends, &key.public_key()).map_err(VerifyError::from)?;
        let count = u32::try_from(outputs.len()).unwrap_or(u32::MAX).saturating_add(2);
        let mut sets = CommitmentSets::new(self.commitments(Vec::new(), count, 1).await?);
        let mut sign = |purpose| {
            let planned = plan.get(purpose).ok_or(WalletError::Answer("a transaction"))?;
            // The leaf id is empty here: operators find the address by the output script.
            Ok::<_, WalletError>(Some(job(
                "",
                planned,
                &key,
                &verifying_key,
                &mut sets,
                &self.config().federation,
            )?))
        };
        let utxo = |(spend, tx): &Funded| Utxo {
            raw_tx: without_witnesses(tx),
            vout: spend.outpoint.vout,
            network: self.config().network.to_wire() as i32,
            txid: Vec::new(),
        };
        Ok(FinalizeDepositTreeCreationRequest {
            identity_public_key: self.keys().identity().public_key().serialize().to_vec(),
            on_chain_utxo: outputs.first().map(utxo),
            root_tx_signing_job: sign(Purpose::Root)?,
            refund_tx_signing_job: sign(Purpose::Refund)?,
            direct_from_cpfp_refund_tx_signing_job: sign(Purpose::DirectFromCpfpRefund)?,
            additional_on_chain_utxos: outputs.iter().skip(1).map(utxo).collect(),
        })
    }
}

fn totals(outputs: &[Funded]) -> (u64, BTreeSet<OutPoint>) {
    let sum = outputs.iter().fold(0u64, |sum, (s, _)| sum.saturating_add(s.txout.value.to_sat()));
    (sum, outputs.iter().map(|(spend, _)| spend.outpoint).collect())
}

/// What a claim collects.
fn funded(request: &FinalizeDepositTreeCreationRequest) -> BTreeMap<OutPoint, TxOut> {
    let utxos = request.on_chain_utxo.iter().chain(&request.additional_on_chain_utxos);
    utxos
        .filter_map(|utxo| Spend::of(&encode::deserialize(&utxo.raw_tx).ok()?, utxo.vout))
        .map(|spend| (spend.outpoint, spend.txout))
        .collect()
}

fn root_inputs(root: &TreeNode) -> Result<BTreeSet<OutPoint>, WalletError> {
    Ok(Node::parse(root)?.node_tx.input.iter().map(|input| input.previous_output).collect())
}
