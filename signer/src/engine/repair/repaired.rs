//! The repaired signer's part: asks page by page, checks what comes and stores it.

use std::collections::BTreeMap;

use prost::Message as _;
use rand_core::OsRng;
use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    ids::{KeyshareId, OperatorIndex},
    vote::Position,
};
use zeroize::Zeroizing;

use super::{
    Own, PROGRESS, STATE, SUM, TICKET, Table,
    agreement::{Agreed, AgreedKey, commitments},
    delta_transcript,
    helper::scalars,
    is_incomplete, progress_payload, session_id, sum_payload, ticket_payload,
};
use crate::{
    ecies,
    engine::{
        EngineError, Shared, journal,
        ledger::{self, Keyshare},
        prepare::keyshare_secret,
    },
    repair::Commitments,
    secret::SecretScalar,
    vault::Txn,
};

fn state(txn: &Txn<'_>) -> Result<Option<wire::RepairState>, EngineError> {
    let Some(bytes) = txn.record(STATE)? else { return Ok(None) };
    Ok(Some(wire::RepairState::decode(bytes.as_slice())?))
}

const MENDED: &[u8] = b"repaired/";

fn mended_key(id: &KeyshareId) -> Vec<u8> {
    [MENDED, id.as_bytes()].concat()
}

/// Whether this signer's share of the key came by repair: what an earlier life held of it is not shown destroyed.
pub(in crate::engine) fn was_repaired(txn: &Txn<'_>, id: &KeyshareId) -> Result<bool, EngineError> {
    Ok(txn.record(&mended_key(id))?.is_some())
}

/// All signers applied a refresh: the share that was lost combines with none that is in use.
pub(in crate::engine) fn refreshed(txn: &mut Txn<'_>, id: &KeyshareId) {
    txn.delete_record(&mended_key(id));
}

/// Items that this signer's repair has left out so far.
pub(in crate::engine) fn left_out(txn: &Txn<'_>) -> Result<u64, EngineError> {
    let state = state(txn)?.unwrap_or_default();
    Ok(if state.repaired { state.left_out } else { state.skipped_in_run })
}

/// Names of keyshares.
type Names = Vec<Vec<u8>>;

/// Keyshares after `after` that were repaired and not refreshed, at most `limit`, and where the next page begins.
pub(in crate::engine) fn unrefreshed(
    txn: &Txn<'_>,
    after: &[u8],
    limit: usize,
) -> Result<(Names, Vec<u8>), EngineError> {
    let from = (!after.is_empty()).then(|| [MENDED, after].concat());
    let found = txn.committed().scan_records(MENDED, from.as_deref(), limit)?;
    let names: Vec<_> =
        found.iter().map(|(key, _)| key.get(MENDED.len()..).unwrap_or_default().to_vec()).collect();
    let through = if names.len() < limit { Vec::new() } else { names.last().cloned().unwrap_or_default() };
    Ok((names, through))
}

impl Shared {
    /// Opens the next page, of a repair that all others approved. From the first one on this signer neither votes nor releases, until all are stored. After
    /// that it begins anew, for what was skipped, and votes until a page brings something.
    pub(in crate::engine) fn repair_open(
        &mut self,
        txn: &mut Txn<'_>,
        request: &wire::RepairOpenRequest,
    ) -> Result<wire::RepairTicket, EngineError> {
        self.heard()?;
        let id = session_id(&request.session_id)?;
        if let Some(own) = &self.repairs.own
            && own.ticket.session_id == id
        {
            let same = own.ticket.helpers == request.helpers && own.ticket.limit == request.limit;
            return if same { Ok(own.ticket.clone()) } else { Err(EngineError::Differs) };
        }
        let state = match state(txn)? {
            Some(state) if state.session_id == id => return Err(EngineError::Repair("the page is stored")),
            Some(state) if !state.done => state,
            // A word of the host alone is no reason to stop working.
            None if !self.repairs.expected => {
                return Err(EngineError::Repair("the others have not approved one of this signer"));
            }
            former => {
                let former = former.unwrap_or_default();
                let anew = wire::RepairState {
                    repaired: former.repaired,
                    taken_in_all: former.taken_in_all,
                    left_out: former.left_out,
                    ..wire::RepairState::default()
                };
                txn.put_record(STATE, anew.encode_to_vec());
                anew
            }
        };
        let incomplete = is_incomplete(&state);
        let encryption = SecretScalar::random(&mut OsRng);
        let position = if txn.is_empty() { self.committed_position(txn) } else { self.position(txn) };
        let mut ticket = wire::RepairTicket {
            session_id: id.to_vec(),
            lost: self.me.get().into(),
            helpers: request.helpers.clone(),
            table: state.table,
            after: state.after,
            limit: request.limit,
            encryption_key: encryption.public_key().serialize().to_vec(),
            position: Some(position.to_wire()),
            signature: Vec::new(),
        };
        self.helpers(&ticket)?;
        ticket.signature = self.sign_statement(&position, TICKET, &ticket_payload(&ticket))?;
        self.repairs.incomplete = incomplete;
        self.repairs.begun = true;
        self.repairs.own = Some(Own { ticket: ticket.clone(), encryption });
        Ok(ticket)
    }

    /// Checks every message of the page, and every share against its recorded public share; stores all or nothing.
    pub(in crate::engine) fn repair_finish(
        &mut self,
        txn: &mut Txn<'_>,
        request: wire::RepairFinishRequest,
    ) -> Result<wire::RepairProgress, EngineError> {
        self.heard()?;
        let id = session_id(&request.session_id)?;
        let mut state = state(txn)?.ok_or(EngineError::Repair("session is unknown"))?;
        if state.session_id == id {
            return self.progress(txn, &state);
        }
        let own = self.repairs.own.as_ref().filter(|own| own.ticket.session_id == id);
        let ticket = own.ok_or(EngineError::Repair("session is unknown"))?.ticket.clone();
        let listings = self.check_listings(&ticket, request.listings)?;
        let agreed = self.agree(&ticket, &listings)?;
        let taken = if agreed.keys.is_empty() {
            take_records(txn, Table::from_wire(ticket.table)?, &agreed)
        } else {
            let shares = self.shares(&ticket, &agreed, request.deltas, request.sums)?;
            self.take_keys(txn, &agreed, &shares)
        }?;
        state.session_id = id.to_vec();
        state.after.clone_from(&agreed.through);
        if agreed.through.is_empty() {
            state.table = state.table.saturating_add(1);
            state.done = Table::from_wire(state.table).is_err();
        }
        state.taken = taken;
        state.skipped = agreed.skipped;
        state.taken_in_all = state.taken_in_all.saturating_add(taken);
        state.taken_in_run = state.taken_in_run.saturating_add(taken);
        state.skipped_in_run = state.skipped_in_run.saturating_add(agreed.skipped);
        if state.done {
            state.repaired = true;
            state.left_out = state.skipped_in_run;
        }
        txn.put_record(STATE, state.encode_to_vec());
        let progress = self.progress(txn, &state)?;
        // The one-time key dies with the page (D14).
        self.repairs.own = None;
        self.repairs.incomplete = is_incomplete(&state);
        Ok(progress)
    }

    /// How far the own repair is.
    pub(in crate::engine) fn repair_status(&self, txn: &Txn<'_>) -> Result<wire::RepairStatus, EngineError> {
        let state = state(txn)?.unwrap_or_default();
        Ok(wire::RepairStatus {
            waiting: self.repairs.incomplete,
            repaired: state.repaired,
            taken: state.taken_in_all,
            skipped: if state.repaired { state.left_out } else { state.skipped_in_run },
        })
    }

    fn progress(
        &self,
        txn: &Txn<'_>,
        state: &wire::RepairState,
    ) -> Result<wire::RepairProgress, EngineError> {
        let position = if txn.is_empty() { self.committed_position(txn) } else { self.position(txn) };
        let mut progress = wire::RepairProgress {
            session_id: state.session_id.clone(),
            lost: self.me.get().into(),
            taken: state.taken,
            skipped: state.skipped,
            done: state.done,
            position: Some(position.to_wire()),
            signature: Vec::new(),
        };
        progress.signature = self.sign_statement(&position, PROGRESS, &progress_payload(&progress))?;
        Ok(progress)
    }

    /// The shares of the page's keyshares, each the recorded one.
    fn shares(
        &self,
        ticket: &wire::RepairTicket,
        agreed: &Agreed,
        deltas: Vec<wire::RepairDeltas>,
        sums: Vec<wire::RepairSum>,
    ) -> Result<Vec<SecretScalar>, EngineError> {
        let helpers = self.helpers(ticket)?;
        let deltas = self.check_deltas(ticket, agreed, deltas)?;
        let transcript = delta_transcript(agreed, &deltas);
        let keys = agreed.keys.len();
        let mut points: Vec<BTreeMap<OperatorIndex, Commitments>> = vec![BTreeMap::new(); keys];
        for (sender, message) in &deltas {
            let parsed = commitments(message, helpers.operators(), keys)?;
            for ((key, points), parsed) in agreed.keys.iter().zip(&mut points).zip(parsed) {
                helpers.check_commitments(*sender, key.public_share(*sender)?, &parsed)?;
                points.insert(*sender, parsed);
            }
        }
        if sums.len() != helpers.operators().len() {
            return Err(EngineError::Repair("sums are not complete"));
        }
        let own = self.repairs.own.as_ref().ok_or(EngineError::Repair("session is unknown"))?;
        let mut by_key: Vec<BTreeMap<OperatorIndex, SecretScalar>> =
            agreed.keys.iter().map(|_| BTreeMap::new()).collect();
        for message in &sums {
            let sender = self.known(message.sender)?;
            let position = Position::parse(message.position.as_ref())?;
            if position.signer != sender || message.session_id != ticket.session_id {
                return Err(EngineError::Repair("sums disagree"));
            }
            position.verify(&self.federation, SUM, &sum_payload(message), &message.signature)?;
            if message.transcript != transcript {
                return Err(EngineError::Repair("helpers saw different deltas"));
            }
            let plain = ecies::Envelope::parse(&message.ciphertext)?.open(&own.encryption)?;
            for (sums, sum) in by_key.iter_mut().zip(scalars(&plain, keys)?) {
                sums.insert(sender, sum);
            }
        }
        let all = agreed.keys.iter().zip(&by_key).zip(&points);
        all.map(|((key, sums), points)| Ok(helpers.repair(sums, points, key.public_share(self.me)?)?))
            .collect()
    }

    /// Stores shares with their records and says in the log that they were repaired. What this signer has it keeps: it
    /// may have moved on.
    fn take_keys(
        &self,
        txn: &mut Txn<'_>,
        agreed: &Agreed,
        shares: &[SecretScalar],
    ) -> Result<u64, EngineError> {
        let mut taken = 0u64;
        for (key, share) in agreed.keys.iter().zip(shares) {
            if ledger::keyshare(txn, &key.id)?.is_some() {
                continue;
            }
            self.take_key(txn, key, share)?;
            taken = taken.saturating_add(1);
        }
        Ok(taken)
    }

    fn take_key(&self, txn: &mut Txn<'_>, key: &AgreedKey, share: &SecretScalar) -> Result<(), EngineError> {
        let public = key.content.keyshare.clone().ok_or(EngineError::Malformed("keyshare"))?;
        let owner = self.known(public.owner)?;
        ledger::put_keyshare(txn, &key.id, &public);
        ledger::confirm_keyshare(txn, &key.id, owner);
        let bytes = Zeroizing::new(share.to_bytes().to_vec());
        txn.put_secret(keyshare_secret(&key.id, key.version), bytes)?;
        txn.put_record(&mended_key(&key.id), key.version.to_be_bytes().to_vec());
        let keyshare = Keyshare { public, binding: key.content.binding.clone(), confirmed: true };
        let bound = keyshare.bound()?;
        let fits = match (&bound, &key.leaf) {
            (_, None) => true,
            (Some(bound), Some(leaf)) => {
                bound.leaf_id == leaf.leaf_id
                    && leaf.keyshare_id == key.id
                    && bound.verifying_key == leaf.verifying_key
            }
            (None, Some(_)) => false,
        };
        if !fits {
            return Err(EngineError::Repair("leaf and keyshare do not belong together"));
        }
        // The operator's tables follow: what is not in the journal of this life, they may not serve (D10).
        let content = wire::RepairKeyshare { leaf: Vec::new(), ..key.content.clone() };
        let entry = wire::JournalEntry {
            kind: "repaired".to_owned(),
            operation: content.encode_to_vec(),
            leaves: key.leaf.iter().map(spark_rules::leaf::LeafRecord::encode).collect(),
            ..wire::JournalEntry::default()
        };
        journal::append(txn, entry)?;
        let Some((bound, binding)) = bound.zip(keyshare.binding) else { return Ok(()) };
        ledger::bind_keyshare(txn, &bound, &binding, owner);
        if let Some(leaf) = &key.leaf {
            ledger::put_leaf(txn, leaf);
        }
        let receipt = self.begin_receipt(&bound, key.version, share.public_key().serialize().to_vec());
        self.append_receipt(txn, receipt)?;
        Ok(())
    }

    /// The first receipt of a leaf whose share was repaired: nothing is retired, and nothing is said of before.
    pub(in crate::engine) fn begin_receipt(
        &self,
        bound: &spark_rules::operation::Binding,
        version: u64,
        public_share: Vec<u8>,
    ) -> peer::Receipt {
        peer::Receipt {
            keyshare_id: bound.keyshare_id.as_bytes().to_vec(),
            leaf_id: bound.leaf_id.to_string(),
            phase: spark_rules::receipt::REPAIR.to_owned(),
            retired_version: version,
            new_version: version,
            new_public_share: public_share,
            live_versions: vec![version],
            ..peer::Receipt::default()
        }
    }
}

/// Takes records that this signer lacks.
fn take_records(txn: &mut Txn<'_>, table: Table, agreed: &Agreed) -> Result<u64, EngineError> {
    let mut taken = 0u64;
    for (key, value) in &agreed.records {
        let key = [table.prefix(), key].concat();
        let known = txn.record(&key)?;
        // What was pending when it was taken, and came back since, is the one exception from what one has.
        let returned = table == Table::Maturities
            && known.as_deref().map(|known| ledger::returned_since(known, value)).transpose()? == Some(true);
        if known.is_none() || returned {
            txn.put_record(&key, value.clone());
            taken = taken.saturating_add(1);
        }
    }
    Ok(taken)
}
