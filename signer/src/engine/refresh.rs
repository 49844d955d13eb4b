//! Refresh of keyshares between signers (D12): one-time keys, deals, and the sum that an operation stages and applies.
//!
//! A session lives in memory only, one for each coordinator: the one-time key from its opening to the preparation, the
//! polynomials within one call (D14). A crash abandons the session, and the operation gets a NO. From the vote on it is
//! an operation like any other: the sum is a staged tweak, applying it destroys the old share, a receipt says so.

use std::collections::BTreeMap;

use rand_core::OsRng;
use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    feldman::ZeroProofs,
    ids::{KeyshareId, LeafId, OperatorIndex},
    leaf::{LeafRecord, LeafStatus},
    operation::{Deal, Operation, OperationError, Refresh, deal_payload},
    point,
    transcript::Transcript,
    vote::Position,
};
use zeroize::Zeroizing;

use super::{
    EngineError, Shared, ledger,
    prepare::{keyshare_secret, leaf_resource, tweak_id},
    repair::{self, scalars},
};
use crate::{
    ecies,
    refresh::{self, RefreshError},
    secret::SecretScalar,
    vault::Txn,
};

/// Seconds after which an opened session is forgotten.
const SESSION_SECONDS: u64 = 600;
/// Most keyshares looked at for one page of what waits.
const MAX_PAGE: u32 = 1024;

const OPENING: &str = "refresh-opening/v1";

struct Session {
    leaves: Vec<LeafId>,
    encryption: SecretScalar,
    opening: wire::RefreshOpening,
    deal: Option<peer::RefreshDeal>,
    ends: u64,
}

/// Open sessions by coordinator: who coordinates opens one at a time, and can end no other's.
#[derive(Default)]
pub(super) struct Sessions(BTreeMap<OperatorIndex, Session>);

impl Sessions {
    fn find(&mut self, id: &[u8]) -> Option<&mut Session> {
        self.0.values_mut().find(|session| session.opening.session_id == id)
    }
}

fn opening_payload(m: &wire::RefreshOpening) -> Vec<u8> {
    let mut t = Transcript::new("spark/refresh/opening");
    t.bytes(&m.session_id).u64(m.sender.into()).u64(m.coordinator.into());
    t.bytes(&m.subject).bytes(&m.encryption_key);
    t.finish().to_vec()
}

fn openings_digest(openings: &BTreeMap<OperatorIndex, wire::RefreshOpening>) -> [u8; 32] {
    let mut t = Transcript::new("spark/refresh/openings");
    for opening in openings.values() {
        t.bytes(&opening_payload(opening));
    }
    t.finish()
}

impl Shared {
    /// A one-time key for what will be dealt for these leaves.
    pub(super) fn refresh_open(
        &mut self,
        txn: &Txn<'_>,
        request: &wire::RefreshOpenRequest,
    ) -> Result<wire::RefreshOpening, EngineError> {
        self.unlocked()?;
        let id: [u8; 16] =
            request.session_id.as_slice().try_into().map_err(|_| EngineError::Malformed("session_id"))?;
        let coordinator = OperatorIndex::from_wire(request.coordinator)?;
        if self.federation.member(coordinator).is_none() {
            return Err(EngineError::Malformed("coordinator"));
        }
        // No user asks for a refresh, so a person does, by having approved the repair that it follows: whoever else
        // could hold any leaf by it.
        if coordinator != self.me && !self.approved.contains_key(&coordinator) {
            return Err(EngineError::NotApproved(coordinator.get()));
        }
        let leaves = Refresh::leaves(&request.leaf_ids)?;
        let now = self.now;
        self.refreshes.0.retain(|_, session| now < session.ends);
        if let Some(session) = self.refreshes.find(&id) {
            let same = session.leaves == leaves && session.opening.coordinator == request.coordinator;
            return if same { Ok(session.opening.clone()) } else { Err(EngineError::Differs) };
        }
        if ledger::attempt(txn, &Refresh::operation_id(&id), 0)?.is_some() {
            return Err(EngineError::Refresh("session is over"));
        }
        let records = self.refreshable(txn, &leaves)?;
        let encryption = SecretScalar::random(&mut OsRng);
        let position = self.committed_position(txn);
        let mut opening = wire::RefreshOpening {
            session_id: id.to_vec(),
            sender: self.me.get().into(),
            coordinator: request.coordinator,
            subject: Refresh::subject(records.iter()).to_vec(),
            encryption_key: encryption.public_key().serialize().to_vec(),
            position: Some(position.to_wire()),
            signature: Vec::new(),
        };
        opening.signature = self.sign_statement(&position, OPENING, &opening_payload(&opening))?;
        let ends = now.saturating_add(SESSION_SECONDS);
        let session = Session { leaves, encryption, opening: opening.clone(), deal: None, ends };
        self.refreshes.0.insert(coordinator, session);
        Ok(opening)
    }

    /// Leaves that nothing holds, with a share here. The vote asks again; this saves the work.
    fn refreshable(&self, txn: &Txn<'_>, leaves: &[LeafId]) -> Result<Vec<LeafRecord>, EngineError> {
        let mut records = Vec::with_capacity(leaves.len());
        for leaf in leaves {
            let record = ledger::leaf(txn, leaf)?.ok_or(EngineError::Unknown("leaf"))?;
            if record.status != LeafStatus::Available || ledger::is_held(txn, &leaf_resource(leaf))? {
                return Err(OperationError::Unavailable(*leaf).into());
            }
            if self.repairs.locks(leaf, self.now) {
                return Err(EngineError::Repairing);
            }
            records.push(record);
        }
        Ok(records)
    }

    /// Deals to everybody who opened the session for the same leaves at the same versions.
    pub(super) fn refresh_deal(
        &mut self,
        txn: &Txn<'_>,
        set: wire::RefreshOpeningSet,
    ) -> Result<peer::RefreshDeal, EngineError> {
        self.unlocked()?;
        let unknown = || EngineError::Refresh("session is unknown");
        let session = self.refreshes.find(&set.session_id).ok_or_else(unknown)?;
        let (own, keys) = (session.opening.clone(), session.leaves.len());
        let openings = self.check_openings(&own, set.messages)?;
        let digest = openings_digest(&openings);
        let session = self.refreshes.find(&own.session_id).ok_or_else(unknown)?;
        if let Some(deal) = &session.deal {
            return if deal.openings == digest { Ok(deal.clone()) } else { Err(EngineError::Differs) };
        }
        let size = self.federation.size();
        let mut plain: Vec<Zeroizing<Vec<u8>>> =
            (0..size).map(|_| Zeroizing::new(Vec::with_capacity(keys.saturating_mul(32)))).collect();
        let mut commitments = Vec::new();
        for _ in 0..keys {
            let deal = refresh::deal(self.federation.threshold(), size, &mut OsRng)?;
            commitments.extend(deal.proofs.points().iter().map(|point| point.serialize().to_vec()));
            for (bytes, share) in plain.iter_mut().zip(&deal.shares) {
                bytes.extend_from_slice(&*share.to_bytes());
            }
        }
        let mut ciphertexts = BTreeMap::new();
        for ((to, opening), bytes) in openings.iter().zip(&plain) {
            let key = point::parse("encryption_key", &opening.encryption_key)?;
            ciphertexts.insert(u32::from(to.get()), ecies::seal(&key, bytes, &mut OsRng)?);
        }
        let position = self.committed_position(txn);
        let mut deal = peer::RefreshDeal {
            session_id: own.session_id.clone(),
            dealer: self.me.get().into(),
            openings: digest.to_vec(),
            commitments,
            ciphertexts,
            position: Some(position.to_wire()),
            signature: Vec::new(),
        };
        deal.signature = self.sign_statement(&position, Deal::DOMAIN, &deal_payload(&deal))?;
        self.refreshes.find(&own.session_id).ok_or_else(unknown)?.deal = Some(deal.clone());
        Ok(deal)
    }

    fn check_openings(
        &self,
        own: &wire::RefreshOpening,
        messages: Vec<wire::RefreshOpening>,
    ) -> Result<BTreeMap<OperatorIndex, wire::RefreshOpening>, EngineError> {
        if messages.len() > usize::from(self.federation.size()) {
            return Err(EngineError::Refresh("more messages than members"));
        }
        let mut by_sender = BTreeMap::new();
        for message in messages {
            let sender = OperatorIndex::from_wire(message.sender)?;
            let position = Position::parse(message.position.as_ref())?;
            if position.signer != sender
                || message.session_id != own.session_id
                || message.coordinator != own.coordinator
            {
                return Err(EngineError::Refresh("openings disagree"));
            }
            position.verify(&self.federation, OPENING, &opening_payload(&message), &message.signature)?;
            // Another version, keyshare or proof: somebody's ledger has moved on, or lags.
            if message.subject != own.subject {
                return Err(EngineError::Refresh("members hold different versions"));
            }
            by_sender.insert(sender, message);
        }
        if !self.federation.indices().eq(by_sender.keys().copied()) {
            return Err(EngineError::Refresh("openings are not complete"));
        }
        if by_sender.get(&self.me) != Some(own) {
            return Err(EngineError::Refresh("own opening was altered"));
        }
        Ok(by_sender)
    }

    /// Opens what everybody dealt, checks every value against its dealer's commitments, and stages the sums. Whatever
    /// comes of it, the session's one-time key dies here.
    pub(super) fn stage_refresh(
        &mut self,
        txn: &mut Txn<'_>,
        operation: &Operation,
    ) -> Result<(), EngineError> {
        let Some(refresh) = &operation.refresh else { return Ok(()) };
        refresh.verify(&self.federation)?;
        // Nobody waits for a refresh but who coordinates it. If it decided, too, what it leaves undecided would stay so.
        // Asked before a vote only: what was voted for otherwise must still come to its end.
        if operation.named.contains(&operation.coordinator) {
            return Err(OperationError::Named.into());
        }
        let session =
            self.refreshes.0.get(&operation.coordinator).filter(|session| {
                session.opening.session_id == refresh.session_id && self.now < session.ends
            });
        if session.is_none() {
            return Err(EngineError::Refresh("session is unknown"));
        }
        let session = self.refreshes.0.remove(&operation.coordinator);
        let session = session.ok_or(EngineError::Refresh("session is unknown"))?;
        let own = session.deal.ok_or(EngineError::Refresh("session is not that far"))?;
        let subject = Refresh::subject(operation.parts.iter().map(|part| &part.record));
        if session.opening.subject != subject {
            return Err(EngineError::Refresh("the leaves have moved on"));
        }
        let mine = refresh.deals.get(self.me.as_usize()).map(|deal| deal.payload);
        if mine != Some(deal_payload(&own)) {
            return Err(EngineError::Refresh("own deal was altered"));
        }
        let keys = operation.parts.len();
        let mut received: Vec<BTreeMap<OperatorIndex, SecretScalar>> =
            (0..keys).map(|_| BTreeMap::new()).collect();
        for deal in &refresh.deals {
            let culprit = deal.dealer;
            let wrong = |_: EngineError| EngineError::from(RefreshError::Share { culprit });
            if own.openings != deal.openings {
                return Err(EngineError::Refresh("members saw different openings"));
            }
            let ciphertext = deal.ciphertexts.get(self.me.as_usize());
            let ciphertext = ciphertext.ok_or(EngineError::Refresh("a deal is not complete"))?;
            let open = || Ok(ecies::Envelope::parse(ciphertext)?.open(&session.encryption)?);
            let plain = open().map_err(wrong)?;
            for (received, share) in received.iter_mut().zip(scalars(&plain, keys).map_err(wrong)?) {
                received.insert(deal.dealer, share);
            }
        }
        for (position, (part, received)) in operation.parts.iter().zip(&received).enumerate() {
            let share = keyshare_secret(&part.record.keyshare_id, part.record.version);
            if !txn.has_secret(&share)? {
                return Err(EngineError::Unknown("keyshare secret of this version"));
            }
            let proofs: BTreeMap<OperatorIndex, &ZeroProofs> = refresh
                .deals
                .iter()
                .filter_map(|deal| Some((deal.dealer, deal.proofs.get(position)?)))
                .collect();
            let sum = refresh::take(self.me, &proofs, received)?;
            let id = tweak_id(&operation.id, operation.attempt, position);
            txn.put_secret(id, Zeroizing::new(sum.to_bytes().to_vec()))?;
        }
        Ok(())
    }

    /// Leaves whose share here was repaired and has not been refreshed since (D12), page by page.
    pub(super) fn refresh_pending(
        &self,
        txn: &Txn<'_>,
        request: &wire::RefreshPendingRequest,
    ) -> Result<wire::RefreshPendingResponse, EngineError> {
        let limit = usize::try_from(request.limit.clamp(1, MAX_PAGE)).unwrap_or(1);
        let (found, through) = repair::unrefreshed(txn, &request.after, limit)?;
        let mut leaf_ids = Vec::new();
        for id in found {
            let id = KeyshareId::parse(&id)?;
            let Some(bound) = ledger::keyshare(txn, &id)?.and_then(|k| k.bound().transpose()).transpose()?
            else {
                continue;
            };
            // An unused key has no leaf yet, and a static address never has one.
            if ledger::leaf(txn, &bound.leaf_id)?.is_some() {
                leaf_ids.push(bound.leaf_id.to_string());
            }
        }
        Ok(wire::RefreshPendingResponse { leaf_ids, through })
    }
}
