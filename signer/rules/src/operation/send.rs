//! Send: the leaves go to receivers' identity keys, one step down the ladder, all or none.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use spark_proto::spark;

use super::{
    Context, Draft, MAX_RECEIVERS, Operation, OperationError, Part, Records, Resource, assemble,
    jobs::{LeafJobs, Work, group},
    terms::Terms,
    transfer_id,
};
use crate::{
    ids::{LeafId, OperationId},
    leaf::{LeafRecord, LeafStatus},
    package, point,
    tx::Purpose,
    vote::Kind,
};

/// Ids of transfers are unique per sender (D7), so nobody occupies another's. One with several receivers has no
/// other id than one with one.
pub(super) fn operation_id(request: &spark::StartTransferRequest) -> Result<OperationId, OperationError> {
    id_of(&request.owner_identity_public_key, &request.transfer_id)
}

pub(super) fn operation_id_many(
    request: &spark::StartTransferV3Request,
) -> Result<OperationId, OperationError> {
    id_of(&only(request)?.owner_identity_public_key, &request.transfer_id)
}

fn id_of(owner: &[u8], transfer: &str) -> Result<OperationId, OperationError> {
    let sender = point::parse("owner_identity_public_key", owner)?;
    Ok(OperationId::derive("spark/send", &[&sender.serialize(), transfer_id(transfer)?.as_bytes()]))
}

/// The wire has room for several senders; one operation has one requester.
fn only(request: &spark::StartTransferV3Request) -> Result<&spark::SenderTransferPackage, OperationError> {
    match request.sender_packages.as_slice() {
        [package] => Ok(package),
        [] => Err(OperationError::Malformed("sender_packages")),
        _ => Err(OperationError::Unsupported("a transfer with several senders")),
    }
}

pub(super) fn derive(
    context: Context<'_>,
    request: &spark::StartTransferRequest,
    records: &impl Records,
) -> Result<Operation, OperationError> {
    context.expect_id(operation_id(request)?)?;
    if !request.leaves_to_send.is_empty() {
        return Err(OperationError::Unsupported("a transfer without a package"));
    }
    let receiver = point::parse("receiver_identity_public_key", &request.receiver_identity_public_key)?;
    let words = Words {
        transfer: &request.transfer_id,
        owner: &request.owner_identity_public_key,
        package: request.transfer_package.as_ref(),
        receivers: Receivers::One(receiver),
        invoice: &request.spark_invoice,
        expiry: request.expiry_time.as_ref(),
    };
    words.derive(&context, records)
}

pub(super) fn derive_many(
    context: Context<'_>,
    request: &spark::StartTransferV3Request,
    records: &impl Records,
) -> Result<Operation, OperationError> {
    context.expect_id(operation_id_many(request)?)?;
    let only = only(request)?;
    let words = Words {
        transfer: &request.transfer_id,
        owner: &only.owner_identity_public_key,
        package: only.transfer_package.as_ref(),
        receivers: Receivers::by_leaf(&only.receiver_identity_public_keys)?,
        invoice: "",
        expiry: request.expiry_time.as_ref(),
    };
    words.derive(&context, records)
}

/// Who gets which leaf.
enum Receivers {
    One(PublicKey),
    ByLeaf(BTreeMap<LeafId, PublicKey>),
}

impl Receivers {
    fn by_leaf(wire: &BTreeMap<String, Vec<u8>>) -> Result<Self, OperationError> {
        let mut receivers = BTreeMap::new();
        if wire.len() > super::MAX_LEAVES {
            return Err(OperationError::TooMany { what: "leaves", most: super::MAX_LEAVES });
        }
        for (leaf, key) in wire {
            let malformed = |_| OperationError::Malformed("receiver_identity_public_keys");
            let leaf = LeafId::parse(leaf).map_err(malformed)?;
            // One leaf under two spellings of its id would be one leaf for two receivers.
            if receivers.insert(leaf, point::parse("receiver_identity_public_keys", key)?).is_some() {
                return Err(OperationError::Incomplete(leaf));
            }
        }
        let distinct: std::collections::BTreeSet<_> = receivers.values().map(PublicKey::serialize).collect();
        if distinct.len() > MAX_RECEIVERS {
            return Err(OperationError::TooMany { what: "receivers", most: MAX_RECEIVERS });
        }
        Ok(Self::ByLeaf(receivers))
    }

    fn take(&mut self, leaf: &LeafId) -> Result<PublicKey, OperationError> {
        match self {
            Self::One(receiver) => Ok(*receiver),
            Self::ByLeaf(receivers) => receivers.remove(leaf).ok_or(OperationError::Incomplete(*leaf)),
        }
    }

    /// Every receiver that was named got its leaf.
    fn end(&self) -> Result<(), OperationError> {
        match self {
            Self::ByLeaf(receivers) => match receivers.keys().next() {
                Some(leaf) => Err(OperationError::Incomplete(*leaf)),
                None => Ok(()),
            },
            Self::One(_) => Ok(()),
        }
    }
}

/// The client's words, whichever method they came by.
struct Words<'a> {
    transfer: &'a str,
    owner: &'a [u8],
    package: Option<&'a spark::TransferPackage>,
    receivers: Receivers,
    invoice: &'a str,
    expiry: Option<&'a prost_types::Timestamp>,
}

/// The record of a leaf that its owner may give away now, by jobs under the leaf's key. For every kind of send.
pub(super) fn sendable(
    records: &impl Records,
    sender: &PublicKey,
    leaf: LeafId,
    jobs: &LeafJobs<'_>,
) -> Result<LeafRecord, OperationError> {
    let record = records.leaf(&leaf).ok_or(OperationError::Unknown("leaf"))?;
    if record.owner_identity != *sender {
        return Err(OperationError::NotOwner(leaf));
    }
    if record.status != LeafStatus::Available {
        return Err(OperationError::Unavailable(leaf));
    }
    if jobs.signing_key(leaf)? != record.owner_key {
        return Err(OperationError::SigningKey(leaf));
    }
    Ok(record)
}

impl Words<'_> {
    fn derive(mut self, context: &Context<'_>, records: &impl Records) -> Result<Operation, OperationError> {
        let transfer = transfer_id(self.transfer)?;
        let sender = point::parse("owner_identity_public_key", self.owner)?;
        let wire = self.package.ok_or(OperationError::Malformed("transfer_package"))?;
        let sealed = context.sealed(transfer, &wire.key_tweak_package)?;
        package::verify_transfer_package(&transfer.uuid(), wire, &sender)?;
        let mut work = Work::default();
        for (leaf, jobs) in group([
            (Purpose::Refund, &wire.leaves_to_send),
            (Purpose::DirectRefund, &wire.direct_leaves_to_send),
            (Purpose::DirectFromCpfpRefund, &wire.direct_from_cpfp_leaves_to_send),
        ])? {
            let record = sendable(records, &sender, leaf, &jobs)?;
            let receiver = self.receivers.take(&leaf)?;
            let plan = record.check_send(jobs.raws()?, &receiver)?;
            jobs.sign(context.federation, &record, &plan, record.owner_key, &mut work.jobs)?;
            work.parts.push(Part { record, plan, receiver });
        }
        self.receivers.end()?;
        let terms = Terms::of(self.invoice, self.expiry, &sender, &work.parts)?;
        let mut resources = vec![Resource { kind: "transfer", key: transfer.as_bytes().to_vec() }];
        resources.extend(terms.resource());
        assemble(
            context,
            Draft {
                kind: Kind::Send,
                requester: sender,
                parts: work.parts,
                jobs: work.jobs,
                sealed: Some(sealed),
                resources,
                terms,
            },
        )
    }
}
