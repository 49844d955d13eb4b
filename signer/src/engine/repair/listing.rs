//! One's own records, page by page, in a form in which all ledgers are alike.

use prost::Message as _;
use rand_core::OsRng;
use spark_proto::signer::v1 as wire;
use spark_rules::ids::KeyshareId;

use super::{
    Helping, LISTING, MAX_PAGE, MAX_PAGE_BYTES, SESSION_SECONDS, TICKET, listing_payload, session_id,
    ticket_payload,
};
use crate::{
    engine::{
        EngineError, Shared,
        ledger::{self, Holder, Phase},
        pending::PENDING,
        prepare::leaf_resource,
    },
    secret::SecretScalar,
    vault::Txn,
};

/// Kinds of records that make up the ledger, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// Keyshares with binding and leaf: owners, versions, last proofs, and the shares.
    Keyshares,
    /// Released maturities (S4).
    Maturities,
    /// What an applied operation consumed for ever: outpoints, transfers, claims.
    Held,
    /// Transfers and whether they are claimed.
    Transfers,
    /// What waits for its second decision (D8). All others must say so: who has seen an end does not list it.
    Pending,
}

impl Table {
    const ALL: [Self; 5] = [Self::Keyshares, Self::Maturities, Self::Held, Self::Transfers, Self::Pending];

    pub(super) fn from_wire(table: u32) -> Result<Self, EngineError> {
        let found = usize::try_from(table).ok().and_then(|table| Self::ALL.get(table));
        found.copied().ok_or(EngineError::Malformed("table"))
    }

    pub(super) const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Keyshares => b"key/",
            Self::Maturities => b"maturity/",
            Self::Held => b"held/",
            Self::Transfers => b"transfer/",
            Self::Pending => PENDING,
        }
    }
}

/// Kept out of what is held for ever: a live claim on a leaf.
const LEAF_CLAIM: &[u8] = b"leaf/";

impl Shared {
    /// The page that an approved signer asks for. Its leaves stay at their versions until the session ends.
    pub(in crate::engine) fn repair_list(
        &mut self,
        txn: &Txn<'_>,
        ticket: wire::RepairTicket,
    ) -> Result<wire::RepairListing, EngineError> {
        self.unlocked()?;
        session_id(&ticket.session_id)?;
        let helpers = self.helpers(&ticket)?;
        let lost = helpers.lost();
        let payload = ticket_payload(&ticket);
        self.approved(lost, ticket.position.as_ref(), TICKET, &payload, &ticket.signature)?;
        if let Some(open) = self.repairs.helping.get(&lost)
            && open.ticket.session_id == ticket.session_id
        {
            return if open.ticket == ticket { Ok(open.listing.clone()) } else { Err(EngineError::Differs) };
        }
        let (items, through) = page(txn, &ticket)?;
        let mut locked = std::collections::BTreeSet::new();
        if Table::from_wire(ticket.table)? == Table::Keyshares {
            for item in items.iter().filter(|item| !item.busy) {
                let id = KeyshareId::parse(&item.key)?;
                let bound = ledger::keyshare(txn, &id)?.and_then(|k| k.bound().transpose()).transpose()?;
                locked.extend(bound.map(|bound| bound.leaf_id));
            }
        }
        let helps = helpers.operators().contains(&self.me);
        let encryption = helps.then(|| SecretScalar::random(&mut OsRng));
        let public = encryption.as_ref().map(|key| key.public_key().serialize().to_vec());
        let position = self.committed_position(txn);
        let mut listing = wire::RepairListing {
            session_id: ticket.session_id.clone(),
            sender: self.me.get().into(),
            encryption_key: public.unwrap_or_default(),
            items,
            through,
            position: Some(position.to_wire()),
            signature: Vec::new(),
        };
        listing.signature = self.sign_statement(&position, LISTING, &listing_payload(&listing, &ticket))?;
        let session = Helping {
            ticket,
            listing: listing.clone(),
            encryption,
            split: None,
            sum: None,
            locked,
            ends: self.now.saturating_add(SESSION_SECONDS),
        };
        self.repairs.helping.insert(lost, session);
        Ok(listing)
    }
}

fn page(txn: &Txn<'_>, ticket: &wire::RepairTicket) -> Result<(Vec<wire::RepairItem>, Vec<u8>), EngineError> {
    let table = Table::from_wire(ticket.table)?;
    let prefix = table.prefix();
    let after = [prefix, &ticket.after].concat();
    let limit = usize::try_from(ticket.limit).map_or(MAX_PAGE, |limit| limit.clamp(1, MAX_PAGE));
    let after = (!ticket.after.is_empty()).then_some(after.as_slice());
    let found = txn.committed().scan_records(prefix, after, limit.saturating_add(1))?;
    let (mut items, mut bytes) = (Vec::new(), 0usize);
    for (number, (full, _)) in found.iter().enumerate() {
        let key = full.get(prefix.len()..).unwrap_or_default();
        if let Some(item) = item(txn, table, key)? {
            bytes = bytes.saturating_add(item.encoded_len());
            items.push(item);
        }
        let last = number.saturating_add(1);
        if last < found.len() && (last == limit || bytes >= MAX_PAGE_BYTES) {
            return Ok((items, key.to_vec()));
        }
    }
    Ok((items, Vec::new()))
}

/// One record, unless it is not one for others.
fn item(txn: &Txn<'_>, table: Table, key: &[u8]) -> Result<Option<wire::RepairItem>, EngineError> {
    if table == Table::Keyshares {
        return keyshare(txn, &KeyshareId::parse(key)?);
    }
    let Some(value) = txn.record(&[table.prefix(), key].concat())? else { return Ok(None) };
    if table == Table::Held {
        if key.starts_with(LEAF_CLAIM) {
            return Ok(None);
        }
        let holder = Holder::decode(&value)?;
        let attempt = ledger::attempt(txn, &holder.operation, holder.attempt)?;
        // An attempt that is not known here came with this signer's own repair, applied. After a return the transfer's
        // id stays held.
        if attempt.is_some_and(|attempt| !matches!(attempt.phase, Phase::Applied | Phase::Returned)) {
            return Ok(None);
        }
    }
    Ok(Some(wire::RepairItem { key: key.to_vec(), value, busy: false }))
}

fn keyshare(txn: &Txn<'_>, id: &KeyshareId) -> Result<Option<wire::RepairItem>, EngineError> {
    let Some(keyshare) = ledger::keyshare(txn, id)?.filter(|k| k.confirmed) else { return Ok(None) };
    let (mut leaf, mut busy) = (Vec::new(), false);
    if let Some(bound) = keyshare.bound()? {
        leaf = ledger::leaf(txn, &bound.leaf_id)?.map(|record| record.encode()).unwrap_or_default();
        busy = ledger::is_held(txn, &leaf_resource(&bound.leaf_id))?;
    }
    let value = wire::RepairKeyshare { keyshare: Some(keyshare.public), binding: keyshare.binding, leaf };
    Ok(Some(wire::RepairItem { key: id.as_bytes().to_vec(), value: value.encode_to_vec(), busy }))
}
