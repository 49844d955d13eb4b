//! Deposit: outputs of a one-time address become the root of a tree with one leaf.
//!
//! A leaf that is still what a deposit made is bound to its outpoint, not to its id: other outputs of the same
//! address replace the first ones (D20), as a replaced or never mined transaction demands. The keys stay; the
//! version moves, so that the former one is consumed once, like any other. Whether the former outputs are
//! unconfirmed is each operator's view of the chain; who owns both is the same person in any case.

use bitcoin::{Transaction, consensus::encode};
use spark_proto::spark;
use uuid::Uuid;

use super::{
    Binding, Context, Draft, Operation, OperationError, Part, Records, Resource, Terms, assemble,
    jobs::{LeafJobs, Work},
};
use crate::{
    ids::{LeafId, OperationId},
    leaf::{LeafRecord, LeafStatus, Refunds},
    point,
    tx::{INITIAL_TIMELOCK, MAX_FUNDING, MAX_ROOT_INPUTS, Plan, Purpose, Source, Spend, Timelock},
    vote::Kind,
};

/// The output that a UTXO message points at; the txid is always computed, never believed.
fn spend(utxo: Option<&spark::Utxo>) -> Result<Spend, OperationError> {
    let utxo = utxo.ok_or(OperationError::Malformed("on_chain_utxo"))?;
    if utxo.raw_tx.len() > MAX_FUNDING {
        return Err(OperationError::TooMany { what: "bytes of a funding transaction", most: MAX_FUNDING });
    }
    let tx: Transaction =
        encode::deserialize(&utxo.raw_tx).map_err(|_| OperationError::Malformed("on_chain_utxo.raw_tx"))?;
    Spend::of(&tx, utxo.vout).ok_or(OperationError::Malformed("on_chain_utxo.vout"))
}

/// One deposit per first outpoint.
pub(super) fn operation_id(
    request: &spark::FinalizeDepositTreeCreationRequest,
) -> Result<OperationId, OperationError> {
    Ok(id_of(&spend(request.on_chain_utxo.as_ref())?))
}

fn id_of(spend: &Spend) -> OperationId {
    let outpoint = encode::serialize(&spend.outpoint);
    OperationId::derive("spark/deposit", &[&outpoint])
}

pub(super) fn derive(
    context: Context<'_>,
    request: &spark::FinalizeDepositTreeCreationRequest,
    records: &impl Records,
) -> Result<Operation, OperationError> {
    let mut inputs = vec![spend(request.on_chain_utxo.as_ref())?];
    if request.additional_on_chain_utxos.len() >= MAX_ROOT_INPUTS {
        return Err(OperationError::TooMany { what: "deposit outputs", most: MAX_ROOT_INPUTS });
    }
    for utxo in &request.additional_on_chain_utxos {
        inputs.push(spend(Some(utxo))?);
    }
    let first = inputs.first().ok_or(OperationError::Malformed("on_chain_utxo"))?.clone();
    context.expect_id(id_of(&first))?;
    let owner = point::parse("identity_public_key", &request.identity_public_key)?;
    let binding =
        records.binding(&first.txout.script_pubkey).ok_or(OperationError::Unknown("deposit address"))?;
    if binding.identity != owner {
        return Err(OperationError::Unknown("deposit address"));
    }
    if binding.is_static {
        return Err(OperationError::StaticAddress);
    }
    let leaf = binding.leaf_id;
    let former = records.leaf(&leaf);
    if former.as_ref().is_some_and(|former| !replaceable(former, &binding)) {
        return Err(OperationError::Unavailable(leaf));
    }
    let mut jobs = LeafJobs::default();
    for (purpose, job) in [
        (Purpose::Root, &request.root_tx_signing_job),
        (Purpose::Refund, &request.refund_tx_signing_job),
        (Purpose::DirectFromCpfpRefund, &request.direct_from_cpfp_refund_tx_signing_job),
    ] {
        jobs.add(leaf, purpose, job.as_ref().ok_or(OperationError::Incomplete(leaf))?)?;
    }
    if jobs.signing_key(leaf)? != binding.user_key {
        return Err(OperationError::SigningKey(leaf));
    }
    let resources =
        inputs.iter().map(|i| Resource { kind: "outpoint", key: encode::serialize(&i.outpoint) }).collect();
    let plan = Plan::deposit(Source::Check(jobs.raws()?), inputs, &binding.user_key)?;
    let mut record = record(&binding, &plan, &first)?;
    if let Some(former) = former {
        record.version = former.version;
        record.last_proof = former.last_proof;
        // Refreshed, perhaps: the key is the address's, the shares are the present ones.
        record.public_shares = former.public_shares;
    }
    let mut work = Work::default();
    jobs.sign(context.federation, &record, &plan, binding.user_key, &mut work.jobs)?;
    work.parts.push(Part { record, plan, receiver: owner });
    assemble(
        &context,
        Draft {
            kind: Kind::Deposit,
            requester: owner,
            parts: work.parts,
            jobs: work.jobs,
            sealed: None,
            resources,
            terms: Terms::default(),
        },
    )
}

/// No transfer was committed: keys, owner and timelock are those of the deposit.
fn replaceable(former: &LeafRecord, binding: &Binding) -> bool {
    former.is_fresh_deposit()
        && matches!(former.status, LeafStatus::Creating | LeafStatus::Available)
        && former.owner_identity == binding.identity
        && former.owner_key == binding.user_key
        && former.group_key == binding.group_key
}

fn record(binding: &Binding, plan: &Plan, first: &Spend) -> Result<LeafRecord, OperationError> {
    let tx = |purpose| plan.get(purpose).ok_or(OperationError::Incomplete(binding.leaf_id));
    let root = tx(Purpose::Root)?;
    let tree = LeafId::derive("spark/tree", &[&encode::serialize(&first.outpoint)]);
    let value = root.tx.output.first().map_or(0, |o| o.value.to_sat());
    Ok(LeafRecord {
        leaf_id: binding.leaf_id,
        tree_id: Uuid::from_bytes(*tree.as_bytes()),
        parent_id: None,
        value,
        keyshare_id: binding.keyshare_id,
        version: 0,
        group_key: binding.group_key,
        public_shares: binding.public_shares.clone(),
        owner_identity: binding.identity,
        owner_key: binding.user_key,
        verifying_key: binding.verifying_key,
        network: binding.network,
        node_tx: root.tx.clone(),
        node_prevouts: root.template.prevouts(),
        direct_node_tx: None,
        refunds: Refunds {
            cpfp: tx(Purpose::Refund)?.tx.clone(),
            direct: None,
            direct_from_cpfp: tx(Purpose::DirectFromCpfpRefund)?.tx.clone(),
        },
        refund_timelock: INITIAL_TIMELOCK,
        node_timelock: Timelock::ZERO,
        last_proof: [0; 32],
        status: LeafStatus::Creating,
    }
    .checked()?)
}
