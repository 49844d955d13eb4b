//! Key generation between signers: the pure runs of [`crate::dkg`] inside signed envelopes.
//!
//! (n, t) come from the federation file. Every round-1 message is echoed by everybody before a share leaves;
//! shares are sealed to one-time keys that die with the session; no key is usable before all members signed the
//! same transcript. A session lives in memory only: a crash abandons it.

use std::collections::{BTreeMap, VecDeque};

use prost::Message as _;
use rand_core::OsRng;
use spark_proto::signer::v1 as wire;
use spark_rules::{
    ids::{KeyshareId, OperatorIndex},
    point,
    transcript::Transcript,
    vote::Position,
};
use zeroize::Zeroizing;

use super::{EngineError, Shared, journal, ledger, prepare::keyshare_secret};
use crate::{
    dkg::{self, Round1Package, Round1Secret},
    ecies,
    secret::SecretScalar,
    vault::Txn,
};

/// Most keys of one batch.
const MAX_BATCH: u32 = 64;
/// Most unused keyshares of one operator's pool.
const MOST_FREE: usize = 4096;
/// Sessions kept in memory; the oldest goes.
const MOST_SESSIONS: usize = 16;

const ROUND_1: &str = "dkg-round-1/v1";
const ROUND_2: &str = "dkg-round-2/v1";
const TRANSCRIPT: &str = "dkg-transcript/v1";

/// One open session.
struct Session {
    secret: Round1Secret,
    encryption: SecretScalar,
    round_1: wire::DkgRound1,
    /// What all members sent, once this signer has seen it, and its own answer.
    responded: Option<(BTreeMap<OperatorIndex, wire::DkgRound1>, wire::DkgRound2)>,
}

/// Open sessions by id.
#[derive(Default)]
pub(super) struct Sessions {
    open: BTreeMap<[u8; 16], Session>,
    order: VecDeque<[u8; 16]>,
}

impl Sessions {
    fn insert(&mut self, id: [u8; 16], session: Session) {
        while self.order.len() >= MOST_SESSIONS {
            if let Some(oldest) = self.order.pop_front() {
                self.open.remove(&oldest);
            }
        }
        self.order.push_back(id);
        self.open.insert(id, session);
    }

    fn remove(&mut self, id: &[u8; 16]) -> Option<Session> {
        self.order.retain(|other| other != id);
        self.open.remove(id)
    }
}

fn session_id(bytes: &[u8]) -> Result<[u8; 16], EngineError> {
    bytes.try_into().map_err(|_| EngineError::Malformed("session_id"))
}

fn round_1_payload(m: &wire::DkgRound1) -> Vec<u8> {
    let mut t = Transcript::new("spark/dkg/round-1");
    t.bytes(&m.session_id)
        .u64(m.sender.into())
        .u64(m.initiator.into())
        .u64(m.count.into())
        .bytes(&m.encryption_key);
    t.u64(m.packages.len() as u64);
    for package in &m.packages {
        t.bytes(package);
    }
    t.finish().to_vec()
}

fn round_2_payload(m: &wire::DkgRound2) -> Vec<u8> {
    let mut t = Transcript::new("spark/dkg/round-2");
    t.bytes(&m.session_id).u64(m.sender.into()).bytes(&m.echo).u64(m.ciphertexts.len() as u64);
    for (recipient, ciphertext) in &m.ciphertexts {
        t.u64((*recipient).into()).bytes(ciphertext);
    }
    t.finish().to_vec()
}

fn echo(messages: &BTreeMap<OperatorIndex, wire::DkgRound1>) -> [u8; 32] {
    let mut t = Transcript::new("spark/dkg/echo");
    for message in messages.values() {
        t.bytes(&round_1_payload(message));
    }
    t.finish()
}

impl Shared {
    pub(super) fn dkg_start(
        &mut self,
        txn: &Txn<'_>,
        request: &wire::DkgStartRequest,
    ) -> Result<wire::DkgRound1, EngineError> {
        self.unlocked()?;
        let id = session_id(&request.session_id)?;
        let initiator = OperatorIndex::from_wire(request.initiator)?;
        if request.count == 0 || request.count > MAX_BATCH || self.federation.member(initiator).is_none() {
            return Err(EngineError::Malformed("count"));
        }
        if let Some(session) = self.generation.open.get(&id) {
            let same =
                session.round_1.count == request.count && session.round_1.initiator == request.initiator;
            return if same { Ok(session.round_1.clone()) } else { Err(EngineError::Differs) };
        }
        if txn.record(&batch_key(&id))?.is_some() {
            return Err(EngineError::Generation("session is finished"));
        }
        if ledger::free_keyshares(txn, initiator)?.saturating_add(request.count as usize) > MOST_FREE {
            return Err(EngineError::Generation("the initiator's pool is full"));
        }
        let (secret, packages) = dkg::round1(
            &mut OsRng,
            &id,
            self.me,
            self.federation.size(),
            self.federation.threshold(),
            request.count as usize,
        )?;
        let encryption = SecretScalar::random(&mut OsRng);
        let position = self.committed_position(txn);
        let mut message = wire::DkgRound1 {
            session_id: id.to_vec(),
            sender: self.me.get().into(),
            initiator: request.initiator,
            count: request.count,
            encryption_key: encryption.public_key().serialize().to_vec(),
            packages: packages.iter().map(Round1Package::to_bytes).collect(),
            position: Some(position.to_wire()),
            signature: Vec::new(),
        };
        message.signature = self.sign_statement(&position, ROUND_1, &round_1_payload(&message))?;
        let session = Session { secret, encryption, round_1: message.clone(), responded: None };
        self.generation.insert(id, session);
        Ok(message)
    }

    pub(super) fn dkg_respond(
        &mut self,
        txn: &Txn<'_>,
        set: wire::DkgRound1Set,
    ) -> Result<wire::DkgRound2, EngineError> {
        self.unlocked()?;
        let id = session_id(&set.session_id)?;
        let messages = self.check_round_1(&id, set.messages)?;
        let position = self.committed_position(txn);
        let digest = echo(&messages);
        let session = self.generation.open.get(&id).ok_or(EngineError::Generation("session is unknown"))?;
        if let Some((_, answer)) = &session.responded {
            return if answer.echo == digest { Ok(answer.clone()) } else { Err(EngineError::Differs) };
        }
        if messages.get(&self.me) != Some(&session.round_1) {
            return Err(EngineError::Generation("own message was altered"));
        }
        let mut ciphertexts = BTreeMap::new();
        for (peer, message) in messages.iter().filter(|(peer, _)| **peer != self.me) {
            let key = point::parse("encryption_key", &message.encryption_key)?;
            let shares = session.secret.shares_for(*peer)?;
            ciphertexts.insert(u32::from(peer.get()), ecies::seal(&key, &shares, &mut OsRng)?);
        }
        let mut answer = wire::DkgRound2 {
            session_id: id.to_vec(),
            sender: self.me.get().into(),
            echo: digest.to_vec(),
            ciphertexts,
            position: Some(position.to_wire()),
            signature: Vec::new(),
        };
        answer.signature = self.sign_statement(&position, ROUND_2, &round_2_payload(&answer))?;
        if let Some(session) = self.generation.open.get_mut(&id) {
            session.responded = Some((messages, answer.clone()));
        }
        Ok(answer)
    }

    /// Counted before anything is verified.
    fn at_most_one_each(&self, messages: usize) -> Result<(), EngineError> {
        if messages > usize::from(self.federation.size()) {
            return Err(EngineError::Generation("more messages than members"));
        }
        Ok(())
    }

    fn check_round_1(
        &self,
        id: &[u8; 16],
        messages: Vec<wire::DkgRound1>,
    ) -> Result<BTreeMap<OperatorIndex, wire::DkgRound1>, EngineError> {
        let own = &self.generation.open.get(id).ok_or(EngineError::Generation("session is unknown"))?.round_1;
        let mut by_sender = BTreeMap::new();
        self.at_most_one_each(messages.len())?;
        for message in messages {
            let sender = OperatorIndex::from_wire(message.sender)?;
            let position = Position::parse(message.position.as_ref())?;
            if position.signer != sender
                || message.session_id != id
                || message.count != own.count
                || message.initiator != own.initiator
                || message.packages.len() != own.count as usize
            {
                return Err(EngineError::Generation("round-1 messages disagree"));
            }
            position.verify(&self.federation, ROUND_1, &round_1_payload(&message), &message.signature)?;
            by_sender.insert(sender, message);
        }
        if !self.federation.indices().eq(by_sender.keys().copied()) {
            return Err(EngineError::Generation("round-1 messages are not complete"));
        }
        Ok(by_sender)
    }

    pub(super) fn dkg_finish(
        &mut self,
        txn: &mut Txn<'_>,
        set: wire::DkgRound2Set,
    ) -> Result<wire::DkgTranscript, EngineError> {
        self.unlocked()?;
        let id = session_id(&set.session_id)?;
        if let Some(bytes) = txn.record(&batch_key(&id))? {
            return self.transcript(txn, &id, &wire::DkgConfirmResponse::decode(bytes.as_slice())?);
        }
        let answers = self.check_round_2(&id, set.messages)?;
        // From here on the session is over, whatever happens: its secrets die.
        let session = self.generation.remove(&id).ok_or(EngineError::Generation("session is unknown"))?;
        let (messages, _) = session.responded.ok_or(EngineError::Generation("session is not that far"))?;
        let initiator = OperatorIndex::from_wire(session.round_1.initiator)?;
        let mut packages = BTreeMap::new();
        for (sender, message) in &messages {
            let parsed =
                message.packages.iter().map(|p| Round1Package::parse(p, self.federation.threshold()));
            let parsed =
                parsed.collect::<Option<Vec<_>>>().ok_or(EngineError::Generation("round-1 package"))?;
            packages.insert(*sender, parsed);
        }
        let mut shares = BTreeMap::new();
        for (sender, answer) in answers.iter().filter(|(sender, _)| **sender != self.me) {
            let ciphertext = answer.ciphertexts.get(&u32::from(self.me.get()));
            let ciphertext = ciphertext.ok_or(EngineError::Generation("a share is missing"))?;
            shares.insert(*sender, ecies::Envelope::parse(ciphertext)?.open(&session.encryption)?);
        }
        let outputs = dkg::finish(session.secret, &packages, &shares)?;
        let mut batch = wire::DkgConfirmResponse::default();
        for (number, output) in (0u32..).zip(outputs) {
            let keyshare = KeyshareId::derive("spark/keyshare", &[&id, &number.to_be_bytes()]);
            let public = wire::PublicKeyshare {
                keyshare_id: keyshare.as_bytes().to_vec(),
                group_key: output.group_key.serialize().to_vec(),
                public_shares: output.public_shares.iter().map(|p| p.serialize().to_vec()).collect(),
                owner: initiator.get().into(),
            };
            txn.put_secret(keyshare_secret(&keyshare, 0), Zeroizing::new(output.share.to_bytes().to_vec()))?;
            ledger::put_keyshare(txn, &keyshare, &public);
            batch.keyshares.push(public);
        }
        txn.put_record(&batch_key(&id), batch.encode_to_vec());
        self.transcript(txn, &id, &batch)
    }

    fn check_round_2(
        &self,
        id: &[u8; 16],
        answers: Vec<wire::DkgRound2>,
    ) -> Result<BTreeMap<OperatorIndex, wire::DkgRound2>, EngineError> {
        let session = self.generation.open.get(id).ok_or(EngineError::Generation("session is unknown"))?;
        let (_, own) =
            session.responded.as_ref().ok_or(EngineError::Generation("session is not that far"))?;
        let mut by_sender = BTreeMap::new();
        self.at_most_one_each(answers.len())?;
        for answer in answers {
            let sender = OperatorIndex::from_wire(answer.sender)?;
            let position = Position::parse(answer.position.as_ref())?;
            if position.signer != sender || answer.session_id != id {
                return Err(EngineError::Generation("round-2 messages disagree"));
            }
            position.verify(&self.federation, ROUND_2, &round_2_payload(&answer), &answer.signature)?;
            // Everybody saw the same round 1, or nobody gets a key.
            if answer.echo != own.echo {
                return Err(EngineError::Generation("members saw different round-1 messages"));
            }
            by_sender.insert(sender, answer);
        }
        if !self.federation.indices().eq(by_sender.keys().copied()) {
            return Err(EngineError::Generation("round-2 messages are not complete"));
        }
        Ok(by_sender)
    }

    fn transcript(
        &self,
        txn: &Txn<'_>,
        id: &[u8; 16],
        batch: &wire::DkgConfirmResponse,
    ) -> Result<wire::DkgTranscript, EngineError> {
        let digest = self.batch_digest(id, batch);
        let position = if txn.is_empty() { self.committed_position(txn) } else { self.position(txn) };
        let signature = self.sign_statement(&position, TRANSCRIPT, &digest)?;
        Ok(wire::DkgTranscript {
            session_id: id.to_vec(),
            sender: self.me.get().into(),
            digest: digest.to_vec(),
            position: Some(position.to_wire()),
            signature,
        })
    }

    fn batch_digest(&self, id: &[u8; 16], batch: &wire::DkgConfirmResponse) -> [u8; 32] {
        let mut t = Transcript::new("spark/dkg/transcript");
        t.bytes(self.federation.hash()).bytes(id).u64(batch.keyshares.len() as u64);
        for keyshare in &batch.keyshares {
            t.bytes(&keyshare.keyshare_id).bytes(&keyshare.group_key).u64(keyshare.owner.into());
            for share in &keyshare.public_shares {
                t.bytes(share);
            }
        }
        t.finish()
    }

    pub(super) fn dkg_confirm(
        &mut self,
        txn: &mut Txn<'_>,
        set: &wire::DkgTranscriptSet,
    ) -> Result<wire::DkgConfirmResponse, EngineError> {
        self.unlocked()?;
        let id = session_id(&set.session_id)?;
        let bytes = txn.record(&batch_key(&id))?.ok_or(EngineError::Generation("session is unknown"))?;
        let batch = wire::DkgConfirmResponse::decode(bytes.as_slice())?;
        let digest = self.batch_digest(&id, &batch);
        let mut signed = Vec::new();
        self.at_most_one_each(set.messages.len())?;
        for message in &set.messages {
            let position = Position::parse(message.position.as_ref())?;
            if message.session_id != id || message.digest != digest {
                return Err(EngineError::Generation("members hold different keys"));
            }
            position.verify(&self.federation, TRANSCRIPT, &message.digest, &message.signature)?;
            let statement = position.statement(&self.federation, TRANSCRIPT, &message.digest);
            self.remember(txn, &position, statement, &message.signature)?;
            signed.push(position.signer);
        }
        signed.sort_unstable();
        signed.dedup();
        if !self.federation.indices().eq(signed.iter().copied()) {
            return Err(EngineError::Generation("transcripts are not complete"));
        }
        for keyshare in &batch.keyshares {
            let keyshare_id = KeyshareId::parse(&keyshare.keyshare_id)?;
            if ledger::keyshare(txn, &keyshare_id)?.is_some_and(|k| k.confirmed) {
                continue;
            }
            ledger::confirm_keyshare(txn, &keyshare_id, OperatorIndex::from_wire(keyshare.owner)?);
        }
        let entry = wire::JournalEntry {
            kind: "keys".to_owned(),
            operation: batch.encode_to_vec(),
            ..wire::JournalEntry::default()
        };
        if txn.record(&confirmed_key(&id))?.is_none() {
            txn.put_record(&confirmed_key(&id), vec![1]);
            journal::append(txn, entry)?;
        }
        Ok(batch)
    }
}

fn batch_key(id: &[u8; 16]) -> Vec<u8> {
    [b"batch/".as_slice(), id].concat()
}

fn confirmed_key(id: &[u8; 16]) -> Vec<u8> {
    [b"batch-usable/".as_slice(), id].concat()
}
