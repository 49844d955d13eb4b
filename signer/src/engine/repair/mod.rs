//! Repair between signers (D12): one that lost its store or its HSM gets its shares and its ledger back from the others.
//!
//! A person at every other operator approves it by incarnation and federation key; only what that key signs for that
//! incarnation is answered, so no host can ask in its place. The ledger comes in pages, each a session: all others
//! list the page, at least n − t + 1 must list an item alike, and t helpers make the shares of its keyshares as
//! [`crate::repair`] says. Sessions and their secrets live in memory only, as those of key generation do: a crash
//! abandons the page, and the next one begins where the last stored one ended.

mod agreement;
mod helper;
mod listing;
mod repaired;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use spark_proto::signer::v1 as wire;
use spark_rules::{
    federation::Federation,
    federation_key::FederationKey,
    ids::{Incarnation, LeafId, OperatorIndex},
    point,
    transcript::Transcript,
    vote::Position,
};

use self::{agreement::Agreed, listing::Table};
pub(super) use self::{
    helper::scalars,
    repaired::{left_out, refreshed, unrefreshed, was_repaired},
};
use super::{EngineError, Shared};
use crate::{repair::Helpers, secret::SecretScalar, vault::Vault};

/// Most items of one page.
const MAX_PAGE: usize = 64;
/// A page ends with the item that reaches this many bytes.
const MAX_PAGE_BYTES: usize = 256 << 10;
/// Seconds after which a helper forgets a session, and leaves that it locked are free again.
const SESSION_SECONDS: u64 = 600;

const TICKET: &str = "repair-ticket/v1";
const LISTING: &str = "repair-listing/v1";
const DELTAS: &str = "repair-deltas/v1";
const SUM: &str = "repair-sum/v1";
const PROGRESS: &str = "repair-progress/v1";

const STATE: &[u8] = b"repair/state";

/// A repair that a person approved here: exactly this life of the signer, with exactly this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovedRepair {
    /// The signer's new incarnation.
    pub incarnation: Incarnation,
    /// Federation key in its HSM; one of those that the federation file lists.
    pub federation_key: FederationKey,
}

impl ApprovedRepair {
    /// Whether the approved signer made this statement.
    pub(super) fn made(
        &self,
        federation: &Federation,
        position: &Position,
        statement: &[u8],
        signature: &[u8],
    ) -> bool {
        position.incarnation == self.incarnation
            && federation.verify_by(position.signer, &self.federation_key, statement, signature)
    }
}

/// The page that this signer has open for its own repair.
struct Own {
    ticket: wire::RepairTicket,
    encryption: SecretScalar,
}

/// A page of another signer's repair.
struct Helping {
    ticket: wire::RepairTicket,
    listing: wire::RepairListing,
    /// Of a helper, until it gave its sums.
    encryption: Option<SecretScalar>,
    /// What all others listed, and this helper's deltas.
    split: Option<(Agreed, wire::RepairDeltas)>,
    sum: Option<wire::RepairSum>,
    locked: BTreeSet<LeafId>,
    ends: u64,
}

/// Open pages: at most one of this signer's own, and one per signer that it helps.
#[derive(Default)]
pub(super) struct Sessions {
    own: Option<Own>,
    helping: BTreeMap<OperatorIndex, Helping>,
    /// This signer's own ledger is not complete.
    incomplete: bool,
    /// The own repair has begun, in this process or before.
    begun: bool,
    /// The others said in this process that they approved the own repair.
    expected: bool,
}

impl Sessions {
    /// None open. Reads how far the own repair came; what cannot be read is not complete.
    pub(super) fn new(vault: &Vault) -> Self {
        let (begun, incomplete) = match vault.record(STATE) {
            Ok(None) => (false, false),
            Ok(Some(bytes)) => (
                true,
                wire::RepairState::decode(bytes.as_slice()).map_or(true, |state| is_incomplete(&state)),
            ),
            Err(_) => (true, true),
        };
        Self { incomplete, begun, ..Self::default() }
    }

    /// The same after a batch that was not made durable. What the others said stays said.
    pub(super) fn begin_anew(&mut self, vault: &Vault) {
        let expected = self.expected;
        *self = Self::new(vault);
        if expected {
            self.expect();
        }
    }

    /// Forgets pages of others whose time is over, and their secrets.
    pub(super) fn expire(&mut self, now: u64) {
        self.helping.retain(|_, session| now < session.ends);
    }

    /// The others approved the repair of this life: until it is done, nothing else is.
    pub(super) const fn expect(&mut self) {
        self.expected = true;
        if !self.begun {
            self.incomplete = true;
        }
    }

    #[cfg(test)]
    pub(super) fn open_pages(&self) -> usize {
        self.helping.len()
    }

    /// Whether this signer is under repair: half a ledger neither votes nor releases.
    pub(super) const fn incomplete(&self) -> bool {
        self.incomplete
    }

    /// Whether a leaf stays at its version for a repair.
    pub(super) fn locks(&self, leaf: &LeafId, now: u64) -> bool {
        self.helping.values().any(|session| now < session.ends && session.locked.contains(leaf))
    }
}

/// A first run that is not over; of a later one, what was taken lacks the tables that follow. A later run that has taken
/// nothing yet holds nothing up, whoever began it.
const fn is_incomplete(state: &wire::RepairState) -> bool {
    !state.done && (!state.repaired || state.taken_in_run > 0)
}

fn session_id(bytes: &[u8]) -> Result<[u8; 16], EngineError> {
    bytes.try_into().map_err(|_| EngineError::Malformed("session_id"))
}

pub(super) fn ticket_payload(m: &wire::RepairTicket) -> Vec<u8> {
    let mut t = Transcript::new("spark/repair/ticket");
    t.bytes(&m.session_id).u64(m.lost.into()).u64(m.helpers.len() as u64);
    for helper in &m.helpers {
        t.u64((*helper).into());
    }
    t.u64(m.table.into()).bytes(&m.after).u64(m.limit.into()).bytes(&m.encryption_key);
    t.finish().to_vec()
}

fn listing_payload(m: &wire::RepairListing, ticket: &wire::RepairTicket) -> Vec<u8> {
    let mut t = Transcript::new("spark/repair/listing");
    t.bytes(&ticket_payload(ticket)).u64(m.sender.into()).bytes(&m.encryption_key);
    t.bytes(&m.through).u64(m.items.len() as u64);
    for item in &m.items {
        t.bytes(&item.key).bytes(&item.value).u64(item.busy.into());
    }
    t.finish().to_vec()
}

fn deltas_payload(m: &wire::RepairDeltas) -> Vec<u8> {
    let mut t = Transcript::new("spark/repair/deltas");
    t.bytes(&m.session_id).u64(m.sender.into()).bytes(&m.agreement).u64(m.commitments.len() as u64);
    for point in &m.commitments {
        t.bytes(point);
    }
    t.u64(m.ciphertexts.len() as u64);
    for (recipient, ciphertext) in &m.ciphertexts {
        t.u64((*recipient).into()).bytes(ciphertext);
    }
    t.finish().to_vec()
}

fn sum_payload(m: &wire::RepairSum) -> Vec<u8> {
    let mut t = Transcript::new("spark/repair/sum");
    t.bytes(&m.session_id).u64(m.sender.into()).bytes(&m.transcript).bytes(&m.ciphertext);
    t.finish().to_vec()
}

fn progress_payload(m: &wire::RepairProgress) -> Vec<u8> {
    let mut t = Transcript::new("spark/repair/progress");
    t.bytes(&m.session_id).u64(m.lost.into()).u64(m.taken).u64(m.skipped).u64(m.done.into());
    t.finish().to_vec()
}

impl Shared {
    /// Who helps, by a ticket of this federation.
    fn helpers(&self, ticket: &wire::RepairTicket) -> Result<Helpers, EngineError> {
        let lost = self.known(ticket.lost)?;
        let operators =
            ticket.helpers.iter().map(|index| self.known(*index)).collect::<Result<Vec<_>, _>>()?;
        if !operators.is_sorted_by(|a, b| a < b) {
            return Err(EngineError::Malformed("helpers"));
        }
        let operators = operators.into_iter().collect();
        Ok(Helpers::new(operators, lost, self.federation.threshold())?)
    }

    fn known(&self, index: u32) -> Result<OperatorIndex, EngineError> {
        let index = OperatorIndex::from_wire(index)?;
        self.federation.member(index).map(|_| index).ok_or(EngineError::Malformed("operator"))
    }

    /// Signed by the approved signer, for its own repair.
    fn approved(
        &self,
        lost: OperatorIndex,
        position: Option<&spark_proto::peer::v1::Position>,
        domain: &str,
        payload: &[u8],
        signature: &[u8],
    ) -> Result<(), EngineError> {
        let refused = EngineError::NotApproved(lost.get());
        let Some(approved) = self.approved.get(&lost) else { return Err(refused) };
        let position = Position::parse(position)?;
        if lost == self.me || position.signer != lost {
            return Err(refused);
        }
        position.verify(&self.federation, domain, payload, signature)?;
        let statement = position.statement(&self.federation, domain, payload);
        if approved.made(&self.federation, &position, &statement, signature) { Ok(()) } else { Err(refused) }
    }

    /// Listings of all but the repaired signer, each signed, in order and within the page.
    fn check_listings(
        &self,
        ticket: &wire::RepairTicket,
        messages: Vec<wire::RepairListing>,
    ) -> Result<BTreeMap<OperatorIndex, wire::RepairListing>, EngineError> {
        if messages.len() > usize::from(self.federation.size()) {
            return Err(EngineError::Repair("more messages than members"));
        }
        let helpers = self.helpers(ticket)?;
        let mut by_sender = BTreeMap::new();
        for message in messages {
            let sender = self.known(message.sender)?;
            let position = Position::parse(message.position.as_ref())?;
            if position.signer != sender || message.session_id != ticket.session_id {
                return Err(EngineError::Repair("listings disagree"));
            }
            let payload = listing_payload(&message, ticket);
            position.verify(&self.federation, LISTING, &payload, &message.signature)?;
            if helpers.operators().contains(&sender) {
                point::parse("encryption_key", &message.encryption_key)?;
            }
            let keys = std::iter::once(&ticket.after).chain(message.items.iter().map(|item| &item.key));
            let last = message.items.last().map_or(&ticket.after, |item| &item.key);
            let ordered =
                keys.is_sorted_by(|a, b| a < b) || (ticket.after.is_empty() && message.items.is_empty());
            let through =
                message.through.is_empty() || (message.through >= *last && message.through > ticket.after);
            if !ordered || !through || message.items.len() > MAX_PAGE {
                return Err(EngineError::Repair("a listing is not of this page"));
            }
            by_sender.insert(sender, message);
        }
        let others = self.federation.indices().filter(|index| *index != helpers.lost());
        if !others.eq(by_sender.keys().copied()) {
            return Err(EngineError::Repair("listings are not complete"));
        }
        Ok(by_sender)
    }

    /// What the listings agree on.
    fn agree(
        &self,
        ticket: &wire::RepairTicket,
        listings: &BTreeMap<OperatorIndex, wire::RepairListing>,
    ) -> Result<Agreed, EngineError> {
        let table = Table::from_wire(ticket.table)?;
        let need = match table {
            Table::Pending => listings.len(),
            _ => usize::from(
                self.federation.size().saturating_sub(self.federation.threshold()).saturating_add(1),
            ),
        };
        Agreed::of(ticket, listings, need, table)
    }

    /// Deltas of all helpers over one agreement, signed; whether their points fit is the caller's to check.
    fn check_deltas(
        &self,
        ticket: &wire::RepairTicket,
        agreed: &Agreed,
        messages: Vec<wire::RepairDeltas>,
    ) -> Result<BTreeMap<OperatorIndex, wire::RepairDeltas>, EngineError> {
        if messages.len() > usize::from(self.federation.size()) {
            return Err(EngineError::Repair("more messages than members"));
        }
        let helpers = self.helpers(ticket)?;
        let mut by_sender = BTreeMap::new();
        for message in messages {
            let sender = self.known(message.sender)?;
            let position = Position::parse(message.position.as_ref())?;
            if position.signer != sender || message.session_id != ticket.session_id {
                return Err(EngineError::Repair("deltas disagree"));
            }
            position.verify(&self.federation, DELTAS, &deltas_payload(&message), &message.signature)?;
            if message.agreement != agreed.digest() {
                return Err(EngineError::Repair("helpers saw different listings"));
            }
            by_sender.insert(sender, message);
        }
        if !helpers.operators().iter().eq(by_sender.keys()) {
            return Err(EngineError::Repair("deltas are not complete"));
        }
        Ok(by_sender)
    }
}

/// What the sums are of.
fn delta_transcript(agreed: &Agreed, deltas: &BTreeMap<OperatorIndex, wire::RepairDeltas>) -> [u8; 32] {
    let mut t = Transcript::new("spark/repair/transcript");
    t.bytes(&agreed.digest());
    for message in deltas.values() {
        t.bytes(&deltas_payload(message));
    }
    t.finish()
}
