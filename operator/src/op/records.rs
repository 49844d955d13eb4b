//! One's own records of what a request touches, loaded before any rule is asked.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Script, Transaction, consensus::encode, secp256k1::PublicKey};
use spark_proto::{peer::v1 as wire, spark};
use spark_rules::{
    address::Network,
    ids::{KeyshareId, LeafId, TransferId},
    leaf::{LeafRecord, LeafStatus},
    operation::{Binding, Operation, Records, TransferRecord, TransferShare, named_leaves, transfer_id},
    point,
    vote::Kind,
};
use uuid::Uuid;

use super::settle::{exit_transfer, htlc_transfer};
use crate::db::{
    Db, DbError,
    address::{self, AddressRow},
    chain, keyshare,
    keyshare::KeyshareRow,
    leaf, transfer,
};

/// A consistent view for one request: rules read it without a database.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    leaves: BTreeMap<LeafId, LeafRecord>,
    frozen: BTreeSet<LeafId>,
    mined: BTreeSet<LeafId>,
    bindings: BTreeMap<Vec<u8>, Binding>,
    transfers: BTreeMap<TransferId, TransferRecord>,
}

/// What a request names. Malformed names are left out: the rules refuse them with a reason.
#[derive(Debug, Default)]
struct Names {
    leaves: BTreeSet<Uuid>,
    scripts: Vec<Vec<u8>>,
    transfers: Vec<TransferId>,
}

impl Names {
    fn of(request: &wire::operation::Request) -> Self {
        let mut names = Self::default();
        match request {
            wire::operation::Request::Deposit(deposit) => {
                for utxo in deposit.on_chain_utxo.iter().chain(&deposit.additional_on_chain_utxos) {
                    names.output(utxo);
                }
            }
            wire::operation::Request::Send(send) => {
                names.transfers.extend(transfer_id(&send.transfer_id).ok());
                names.jobs(send.transfer_package.iter().flat_map(|p| &p.leaves_to_send));
            }
            wire::operation::Request::SendMany(send) => {
                names.transfers.extend(transfer_id(&send.transfer_id).ok());
                let packages = send.sender_packages.iter().flat_map(|p| &p.transfer_package);
                names.jobs(packages.flat_map(|p| &p.leaves_to_send));
            }
            wire::operation::Request::Claim(claim) => {
                names.transfers.extend(transfer_id(&claim.transfer_id).ok());
                names.jobs(claim.claim_package.iter().flat_map(|p| &p.leaves_to_claim));
            }
            wire::operation::Request::Renew(renew) => names.leaf(&renew.leaf_id),
            wire::operation::Request::Refresh(_) => {
                named_leaves(request).iter().for_each(|leaf| names.leaf(leaf));
            }
            wire::operation::Request::Htlc(htlc) => names.conditional(htlc_transfer(htlc)),
            wire::operation::Request::CoopExit(exit) => names.conditional(exit_transfer(exit)),
        }
        names
    }

    fn conditional(&mut self, transfer: Option<&spark::StartTransferRequest>) {
        let package = transfer.and_then(|t| t.transfer_package.as_ref());
        self.transfers.extend(transfer.and_then(|t| transfer_id(&t.transfer_id).ok()));
        self.jobs(package.iter().flat_map(|p| &p.leaves_to_send));
    }

    fn leaf(&mut self, text: &str) {
        self.leaves.extend(LeafId::parse(text).ok().map(|id| id.uuid()));
    }

    fn jobs<'a>(&mut self, jobs: impl Iterator<Item = &'a spark::UserSignedTxSigningJob>) {
        for job in jobs {
            self.leaf(&job.leaf_id);
        }
    }

    fn output(&mut self, utxo: &spark::Utxo) {
        let Ok(tx) = encode::deserialize::<Transaction>(&utxo.raw_tx) else { return };
        let vout = usize::try_from(utxo.vout).unwrap_or(usize::MAX);
        self.scripts.extend(tx.output.get(vout).map(|output| output.script_pubkey.to_bytes()));
    }
}

impl Snapshot {
    /// Loads what the request names.
    pub async fn load(db: &Db, request: &wire::operation::Request) -> Result<Self, DbError> {
        let mut names = Names::of(request);
        let mut snapshot = Self::default();
        if !names.scripts.is_empty() {
            for row in address::by_scripts(db.pool(), &names.scripts).await? {
                let key =
                    keyshare::get(db.pool(), row.keyshare_id).await?.ok_or(DbError::Missing("keyshare"))?;
                names.leaves.insert(row.leaf_id);
                snapshot.bindings.insert(row.script.clone(), binding(&row, &key)?);
            }
        }
        for id in names.transfers {
            snapshot.transfer_of(db, id).await?;
        }
        let ids: Vec<Uuid> = names.leaves.into_iter().collect();
        for row in leaf::by_ids(db.pool(), &ids).await? {
            let record = LeafRecord::decode(&row.record).map_err(|_| DbError::Corrupt("leaf.record"))?;
            snapshot.leaves.insert(record.leaf_id, record);
        }
        snapshot.frozen = chain::frozen(db.pool(), &ids).await?.into_iter().map(LeafId::from).collect();
        if matches!(request, wire::operation::Request::Deposit(_)) {
            snapshot.mined = chain::mined(db.pool(), &ids).await?.into_iter().map(LeafId::from).collect();
        }
        Ok(snapshot)
    }

    async fn transfer_of(&mut self, db: &Db, id: TransferId) -> Result<(), DbError> {
        let Some(row) = transfer::get(db.pool(), id.uuid()).await? else { return Ok(()) };
        if matches!(row.status, transfer::SENDER_KEY_TWEAK_PENDING | transfer::RETURNED) {
            // Nothing to claim: signers know no such transfer either.
            return Ok(());
        }
        let leaves = transfer::leaves(db.pool(), &[row.transfer_id]).await?;
        let shares = transfer::shares(db.pool(), &[row.transfer_id]).await?.into_iter();
        let receivers = shares.map(|share| -> Result<TransferShare, DbError> {
            let receiver = point::parse("receiver", &share.receiver)
                .map_err(|_| DbError::Corrupt("transfer_receiver.receiver"))?;
            let own = leaves.iter().filter(|leaf| leaf.receiver == share.receiver);
            Ok(TransferShare {
                receiver,
                leaves: own.map(|leaf| *leaf.leaf_id.as_bytes()).collect(),
                claimed: share.status == transfer::COMPLETED,
            })
        });
        let record = TransferRecord {
            id: *id.as_bytes(),
            sender: point::parse("sender", &row.sender).map_err(|_| DbError::Corrupt("transfer.sender"))?,
            receivers: receivers.collect::<Result<_, DbError>>()?,
            invoice: row.invoice,
            expiry_seconds: row.expiry.map_or(0, |micros| micros / 1_000_000),
        };
        self.transfers.insert(id, record);
        Ok(())
    }

    /// Leaves that were found.
    pub fn leaves(&self) -> usize {
        self.leaves.len()
    }

    /// The same, as it was when this operation was voted for: what it holds, nothing else may change, but a
    /// reorganisation may have taken a deposit's confirmation back since, and a decision stands all the same (D21).
    pub fn as_voted(mut self, kind: Kind) -> Self {
        let status = match kind {
            Kind::Send | Kind::Htlc | Kind::CoopExit | Kind::Renew | Kind::Refresh => LeafStatus::Available,
            Kind::Claim => LeafStatus::TransferLocked,
            Kind::Deposit => return self,
        };
        for record in self.leaves.values_mut() {
            record.status = status;
        }
        self
    }

    /// A leaf on which the chain forbids a YES: frozen (D21), or a deposit that is to be replaced although a block
    /// has it (D20).
    pub fn forbidden(&self, operation: &Operation) -> Option<LeafId> {
        let frozen = operation.claims().into_iter().map(|c| c.leaf).find(|leaf| self.frozen.contains(leaf));
        frozen.or_else(|| operation.replaces().filter(|leaf| !self.unconfirmed(leaf)))
    }

    fn unconfirmed(&self, leaf: &LeafId) -> bool {
        let creating = self.leaves.get(leaf).is_some_and(|record| record.status == LeafStatus::Creating);
        creating && !self.mined.contains(leaf)
    }
}

impl Records for Snapshot {
    fn leaf(&self, id: &LeafId) -> Option<LeafRecord> {
        self.leaves.get(id).cloned()
    }

    fn binding(&self, script: &Script) -> Option<Binding> {
        self.bindings.get(script.as_bytes()).cloned()
    }

    fn transfer(&self, id: &TransferId) -> Option<TransferRecord> {
        self.transfers.get(id).cloned()
    }
}

/// Name of a network in storage.
pub(crate) fn network_column(network: Network) -> String {
    network.name().to_lowercase()
}

fn network(column: &str) -> Result<Network, DbError> {
    [Network::Mainnet, Network::Regtest, Network::Testnet, Network::Signet]
        .into_iter()
        .find(|n| network_column(*n) == column)
        .ok_or(DbError::Corrupt("deposit_address.network"))
}

/// The public shares of a keyshare row, by operator index.
pub(crate) fn public_shares(row: &KeyshareRow) -> Result<Vec<PublicKey>, DbError> {
    row.public_shares
        .chunks(33)
        .map(|bytes| {
            point::parse("public share", bytes).map_err(|_| DbError::Corrupt("keyshare.public_shares"))
        })
        .collect()
}

fn binding(row: &AddressRow, key: &KeyshareRow) -> Result<Binding, DbError> {
    let parse =
        |name: &'static str, bytes: &[u8]| point::parse(name, bytes).map_err(|_| DbError::Corrupt(name));
    Ok(Binding {
        keyshare_id: KeyshareId::from(row.keyshare_id),
        leaf_id: LeafId::from(row.leaf_id),
        user_key: parse("deposit_address.user_key", &row.user_key)?,
        identity: parse("deposit_address.identity", &row.identity)?,
        network: network(&row.network)?,
        group_key: parse("keyshare.group_key", &key.group_key)?,
        public_shares: public_shares(key)?,
        verifying_key: parse("deposit_address.verifying_key", &row.verifying_key)?,
        is_static: row.is_static,
    })
}
