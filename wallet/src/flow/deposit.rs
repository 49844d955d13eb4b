use std::collections::BTreeMap;

use bitcoin::{OutPoint, Transaction, TxOut, Txid, consensus::encode};
use spark_proto::spark::{
    FinalizeDepositTreeCreationRequest, GenerateDepositAddressRequest, HashVariant, TreeNode, Utxo,
};
use spark_rules::{
    ids::LeafId,
    point,
    tx::{MAX_ROOT_INPUTS, Plan, Purpose, Source, Spend},
};
use uuid::Uuid;

use crate::{
    Wallet, WalletError,
    signing::{CommitmentSets, job},
    state::{DepositRecord, DepositState, LeafKeyKind, Wire},
    verify::{self, Lineage, Node, VerifyError, check_refunds},
    wallet::now,
};

/// How the wallet finds the money on a deposit address.
#[derive(Debug, Clone)]
pub enum Funding {
    /// The funding transaction itself, confirmed or not.
    Transaction(Transaction),
    /// Its id; bitcoind is asked for it.
    Txid(Txid),
    /// bitcoind's set of unspent outputs is searched: confirmed outputs only.
    Scan,
}

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

    /// Turns what came to a deposit address into a leaf. Nothing to claim is none.
    pub async fn claim_deposit(
        &self,
        address: &str,
        funding: &Funding,
    ) -> Result<Option<ClaimedDeposit>, WalletError> {
        let record = self.state().all::<DepositRecord>()?.into_iter().find(|d| d.address == address);
        let mut record =
            record.ok_or_else(|| WalletError::Refused(format!("{address} is no address of this wallet")))?;
        if record.state == DepositState::Claimed {
            return Err(WalletError::Refused(format!("{address} is used up; ask for a new address")));
        }
        let request = match (&record.request, funding) {
            // The very bytes of the first attempt, unless another output is named.
            (Some(request), Funding::Scan) => {
                request.decode().map_err(|_| WalletError::Answer("the stored claim"))?
            }
            _ => {
                let outputs = self.funding_outputs(&record, funding).await?;
                if outputs.is_empty() {
                    return Ok(None);
                }
                let request = self.deposit_request(&record, &outputs).await?;
                record.outpoint = outputs.first().map(|(spend, _)| spend.outpoint.to_string());
                record.amount = Some(outputs.iter().map(|(s, _)| s.txout.value.to_sat()).sum());
                record.request = Some(Wire::of(&request));
                record.state = DepositState::Claiming;
                self.state().put(&record)?;
                request
            }
        };
        let node = match self.finalize(request).await {
            Err(WalletError::Client(error))
                if matches!(
                    error.code(),
                    Some(tonic::Code::Unavailable | tonic::Code::FailedPrecondition)
                ) =>
            {
                // Nonces live in the signers' memory, and an unconfirmed funding transaction may have been
                // replaced: only fresh commitments, over what the chain shows now, help (D7).
                let outputs = self.funding_outputs(&record, funding).await?;
                if outputs.is_empty() {
                    return Err(error.into());
                }
                let request = self.deposit_request(&record, &outputs).await?;
                record.outpoint = outputs.first().map(|(spend, _)| spend.outpoint.to_string());
                record.amount = Some(outputs.iter().map(|(s, _)| s.txout.value.to_sat()).sum());
                record.request = Some(Wire::of(&request));
                self.state().put(&record)?;
                self.finalize(request).await?
            }
            other => other?,
        };
        self.accept_deposit(record, &node).await.map(Some)
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
        let nodes = BTreeMap::from([(root.id.clone(), root.clone())]);
        lineage.check(&self.deposits_of(&lineage).await?)?;
        self.remember(&lineage, &nodes, LeafKeyKind::Leaf)?;
        record.state = DepositState::Claimed;
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
        outputs: &[(Spend, Transaction)],
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
        let utxo = |(spend, tx): &(Spend, Transaction)| Utxo {
            raw_tx: encode::serialize(tx),
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

    async fn funding_outputs(
        &self,
        record: &DepositRecord,
        funding: &Funding,
    ) -> Result<Vec<(Spend, Transaction)>, WalletError> {
        let script = record
            .address
            .parse::<bitcoin::Address<_>>()
            .map_err(|_| VerifyError::Address)?
            .assume_checked()
            .script_pubkey();
        let tx = match funding {
            Funding::Transaction(tx) => tx.clone(),
            Funding::Txid(txid) => {
                let tx = self.chain()?.transaction(txid).await?;
                tx.ok_or_else(|| WalletError::Refused(format!("bitcoind does not know {txid}")))?
            }
            Funding::Scan => return self.scanned_outputs(record).await,
        };
        let pays = |(_, out): &(u32, &TxOut)| out.script_pubkey == script;
        let (vout, txout) = (0u32..).zip(&tx.output).find(pays).ok_or_else(|| {
            WalletError::Refused(format!("the transaction does not pay {}", record.address))
        })?;
        let spend = Spend { outpoint: OutPoint { txid: tx.compute_txid(), vout }, txout: txout.clone() };
        Ok(vec![(spend, tx)])
    }

    async fn scanned_outputs(
        &self,
        record: &DepositRecord,
    ) -> Result<Vec<(Spend, Transaction)>, WalletError> {
        let mut outputs = Vec::new();
        for unspent in self.chain()?.scan(&record.address).await?.into_iter().take(MAX_ROOT_INPUTS) {
            let tx = self.chain()?.transaction(&unspent.outpoint.txid).await?;
            let tx = tx.ok_or_else(|| {
                WalletError::Refused(format!(
                    "bitcoind cannot show {}: it needs -txindex",
                    unspent.outpoint.txid
                ))
            })?;
            outputs.push((Spend { outpoint: unspent.outpoint, txout: unspent.txout }, tx));
        }
        Ok(outputs)
    }
}
