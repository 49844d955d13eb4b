//! The second decision of a transfer that a preimage or an exit transaction completes (D8): who hears of a preimage passes
//! it on, who sees the exit at its depth, or the expiry, asks for the end; the words of all deciders decide, and every
//! operator ends it the same way.

use futures::future::join_all;
use prost::Message as _;
use spark_proto::{peer::v1 as wire, signer::v1 as signer, spark};
use spark_rules::{
    ids::OperatorIndex,
    leaf::{LeafRecord, LeafStatus},
    operation::{Operation, OperationError},
    settlement::{Completion, ProofOfSettlement, Ruling, expiry_height},
    vote::{Kind, VoteError},
};

use super::{
    engine::{Engine, EngineError, unix_seconds},
    fail::{Point, fail_point},
    outcome,
    participate::attempt_id,
};
use crate::db::{
    DbError,
    exit::{self, Place},
    htlc::{self, HtlcRow, HtlcState},
    leaf,
    operation::AttemptId,
    transfer,
    work::{self, AppliedWrite},
};

/// Told to wallets when operators do not agree on the height of an expiry.
pub(super) const EXPIRY_HEIGHT: &str = "EXPIRY_HEIGHT";
/// The same, where an operator takes no part in such transfers.
pub(super) const HTLC_NOT_OFFERED: &str = "HTLC_NOT_OFFERED";
/// The same of cooperative exits.
pub(super) const EXIT_NOT_OFFERED: &str = "EXIT_NOT_OFFERED";
/// An exit would be settled after fewer confirmations than an operator demands.
pub(super) const EXIT_DEPTH: &str = "EXIT_DEPTH";
/// Of those that are due, worked on in one round.
const BATCH: i64 = 32;

/// The part of the request that names the transfer.
pub(super) fn htlc_transfer(htlc: &wire::Htlc) -> Option<&spark::StartTransferRequest> {
    htlc.request.as_ref().and_then(|request| request.transfer_request.as_ref())
}

/// The same of a cooperative exit.
pub(super) fn exit_transfer(exit: &wire::CoopExit) -> Option<&spark::StartTransferRequest> {
    exit.request.as_ref().and_then(|request| request.transfer.as_ref())
}

/// A preimage, unless the transfer has returned: then it is nobody's reason for anything.
fn known_preimage(row: &HtlcRow) -> Option<[u8; 32]> {
    row.preimage.filter(|_| row.state != HtlcState::Returned)
}

const fn end_by(ruling: &Ruling) -> HtlcState {
    match ruling {
        Ruling::Commit { .. } | Ruling::Confirmed { .. } => HtlcState::Settled,
        Ruling::Abort { .. } => HtlcState::Returned,
    }
}

/// What became of a preimage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Provided {
    /// Every operator has settled it.
    Settled,
    /// It came too late.
    Expired,
    /// Not settled everywhere in time: the same call again goes on.
    Undecided,
}

impl Engine {
    /// Fixes what a coordinator adds to a client's words: the height of the expiry by the own tip and clock, and the
    /// depth of an exit. Of a repeat nobody looks at it: it was fixed by the first.
    pub(super) fn fix_terms(&self, request: &mut wire::operation::Request) {
        let height = |transfer: Option<&spark::StartTransferRequest>| {
            let time = transfer.and_then(|request| request.expiry_time.as_ref())?;
            expiry_height(self.tip().ok()?, unix_seconds(), time.seconds)
        };
        match request {
            wire::operation::Request::Htlc(htlc) => {
                htlc.expiry_height = height(htlc_transfer(htlc)).unwrap_or(1);
            }
            wire::operation::Request::CoopExit(exit) => {
                exit.expiry_height = height(exit_transfer(exit)).unwrap_or(1);
                exit.depth = self.inner.settings.exit_depth;
            }
            _ => {}
        }
    }

    /// Why this operator votes for no such conditional transfer, if it does not.
    pub(super) fn declined(&self, operation: &Operation) -> Option<&'static str> {
        let settings = &self.inner.settings;
        match (operation.kind, operation.condition.as_ref().map(|condition| &condition.completes)) {
            (Kind::Htlc, _) if !settings.htlc => Some(HTLC_NOT_OFFERED),
            (Kind::CoopExit, _) if !settings.coop_exit => Some(EXIT_NOT_OFFERED),
            (_, Some(Completion::Exit { depth, .. })) if *depth < settings.exit_depth => Some(EXIT_DEPTH),
            _ => None,
        }
    }

    /// Whether the coordinator's height is what this operator sees (D18: one view alone decides nothing).
    pub(super) fn expiry_fits(&self, operation: &Operation) -> Result<bool, EngineError> {
        let Some(condition) = &operation.condition else { return Ok(true) };
        let own = expiry_height(self.tip()?, unix_seconds(), operation.terms.expiry_seconds);
        Ok(own.is_some_and(|own| condition.fits(own)))
    }

    /// A receiver provides the preimage of a pending transfer. It must fit the payment hash.
    pub async fn provide(&self, row: &HtlcRow, preimage: &[u8; 32]) -> Result<Provided, EngineError> {
        row.pending.condition.check(&Ruling::Commit { preimage: *preimage })?;
        // Known from somebody already: then it goes on, whatever the height is now.
        if row.state == HtlcState::Pending && row.preimage.is_none() {
            if self.tip()? >= row.pending.condition.expiry_height {
                return Ok(Provided::Expired);
            }
            htlc::set_preimage(self.db().pool(), row.id(), preimage).await?;
            fail_point(Point::SettlePreimage);
        }
        for tried in 0..self.inner.settings.tries {
            self.pause(tried).await;
            let row = htlc::get(self.db().pool(), row.id()).await?.ok_or(EngineError::Unknown)?;
            match row.state {
                HtlcState::Returned => return Ok(Provided::Expired),
                HtlcState::Settled if row.announced => return Ok(Provided::Settled),
                _ => {}
            }
            match self.end(&row).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    tracing::warn!(%error, operation = %row.id(), "transfer is not settled yet");
                    continue;
                }
            }
            let row = htlc::get(self.db().pool(), row.id()).await?.ok_or(EngineError::Unknown)?;
            return Ok(match row.state {
                HtlcState::Settled => Provided::Settled,
                HtlcState::Returned => Provided::Expired,
                HtlcState::Pending => Provided::Undecided,
            });
        }
        Ok(Provided::Undecided)
    }

    /// Carries on what is known to end, or may return at the own tip.
    pub(super) async fn settle_due(&self) -> Result<(), EngineError> {
        let tip = self.tip().unwrap_or_default();
        let rows = htlc::due(self.db().pool(), tip, BATCH).await?;
        join_all(rows.iter().map(|row| async move {
            match self.end(row).await {
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, operation = %row.id(), "conditional transfer stays open");
                }
            }
        }))
        .await;
        Ok(())
    }

    /// True when every operator has ended it. The own tables show it last (D7).
    async fn end(&self, row: &HtlcRow) -> Result<bool, EngineError> {
        let proof = match self.stored_proof(row)? {
            Some(proof) => proof,
            None => match self.words(row).await? {
                Some(proof) => proof,
                None => return Ok(false),
            },
        };
        htlc::set_proof(self.db().pool(), row.id(), &proof.encode_to_vec()).await?;
        fail_point(Point::SettleProof);
        let request = wire::SettleRequest {
            operation_id: row.pending.operation.as_bytes().to_vec(),
            attempt: row.pending.attempt,
            proof: Some(proof),
            everywhere: false,
        };
        // Each peer answers for itself; nobody's word that all have ended it is taken.
        let mut left = false;
        let calls = self.inner.signers.peers().map(|(index, peer)| {
            let request = request.clone();
            async move { (index, peer.settle(request).await) }
        });
        for (index, reply) in join_all(calls).await {
            if let Err(error) = reply {
                tracing::warn!(peer = index.get(), %error, operation = %row.id(), "peer has not settled");
                left = true;
            }
        }
        if left {
            return Ok(false);
        }
        // Read again: a peer may have brought it meanwhile.
        let ended = self.htlc(&request.operation_id, request.attempt).await?;
        if let Some(proof) = &request.proof {
            let ruling = ProofOfSettlement::verify(proof, self.federation(), &ended.pending)?.ruling;
            self.settle_own(&ended, proof, &ruling).await?;
        }
        if !ended.announced {
            self.announce(&ended).await?;
        }
        let request = wire::SettleRequest { everywhere: true, ..request };
        let engine = self.clone();
        tokio::spawn(async move {
            let calls = engine.inner.signers.peers().map(|(_, peer)| peer.settle(request.clone()));
            for error in join_all(calls).await.into_iter().filter_map(Result::err) {
                // The peer finds out by itself a little later.
                tracing::debug!(%error, "end was not heard");
            }
        });
        Ok(true)
    }

    /// The words of all deciders, if they are stored and of this federation file: those of an earlier one count no more,
    /// and deciders give them again.
    fn stored_proof(&self, row: &HtlcRow) -> Result<Option<wire::ProofOfSettlement>, EngineError> {
        let Some(bytes) = &row.proof else { return Ok(None) };
        let proof = wire::ProofOfSettlement::decode(bytes.as_slice())?;
        match ProofOfSettlement::verify(&proof, self.federation(), &row.pending) {
            Ok(_) => Ok(Some(proof)),
            Err(error) => {
                tracing::info!(%error, operation = %row.id(), "stored words do not count, deciders are asked anew");
                Ok(None)
            }
        }
    }

    /// The same word of every decider; none while one is missing.
    async fn words(&self, row: &HtlcRow) -> Result<Option<wire::ProofOfSettlement>, EngineError> {
        let mut preimage = known_preimage(row);
        // A second round where a decider knows a preimage that was not known here.
        for _ in 0..2 {
            let question = wire::SettlementQuestion {
                operation_id: row.pending.operation.as_bytes().to_vec(),
                attempt: row.pending.attempt,
                preimage: preimage.map(|preimage| preimage.to_vec()).unwrap_or_default(),
            };
            let (mut commits, mut aborts) = (Vec::new(), Vec::new());
            let mut learned = None;
            for (index, answer) in self.ask_deciders(row, &question).await {
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(error) => {
                        tracing::info!(decider = index.get(), %error, operation = %row.id(), "no word");
                        continue;
                    }
                };
                if let Some(proof) = answer.proof {
                    match ProofOfSettlement::verify(&proof, self.federation(), &row.pending) {
                        Ok(_) => return Ok(Some(proof)),
                        Err(error) => {
                            tracing::warn!(decider = index.get(), %error, "decider sent a proof that does not hold");
                            continue;
                        }
                    }
                }
                let Some(vote) = answer.vote else { continue };
                match row.pending.word(&vote, self.federation()) {
                    Ok(word) if word.position.signer == index => match word.ruling {
                        Ruling::Commit { preimage: shown } => {
                            learned = Some(shown).filter(|_| preimage.is_none());
                            commits.push(vote);
                        }
                        Ruling::Confirmed { .. } => commits.push(vote),
                        Ruling::Abort { .. } => aborts.push(vote),
                    },
                    Ok(_) => tracing::warn!(decider = index.get(), "decider sent a word of somebody else"),
                    Err(error) => {
                        tracing::warn!(decider = index.get(), %error, "decider sent a word that does not hold")
                    }
                }
            }
            let all = row.pending.deciders.len();
            if let Some(votes) = [commits, aborts].into_iter().find(|votes| votes.len() == all) {
                return Ok(Some(wire::ProofOfSettlement { votes }));
            }
            let Some(known) = learned else { return Ok(None) };
            htlc::set_preimage(self.db().pool(), row.id(), &known).await?;
            preimage = Some(known);
        }
        Ok(None)
    }

    async fn ask_deciders(
        &self,
        row: &HtlcRow,
        question: &wire::SettlementQuestion,
    ) -> Vec<(OperatorIndex, Result<wire::SettlementAnswer, EngineError>)> {
        join_all(row.pending.deciders.iter().map(|index| async move {
            if *index == self.own() {
                return (*index, self.on_ask_settlement(question).await);
            }
            let answer = match self.inner.signers.peer(*index) {
                Ok(peer) => peer.ask_settlement(question.clone()).await,
                Err(error) => Err(error),
            };
            (*index, answer.map_err(EngineError::from))
        }))
        .await
    }

    async fn htlc(&self, operation_id: &[u8], attempt: u32) -> Result<HtlcRow, EngineError> {
        let id: AttemptId = attempt_id(operation_id, attempt)?;
        htlc::get(self.db().pool(), id).await?.ok_or(EngineError::Unknown)
    }

    /// Somebody asks how it ends. A preimage that fits is kept, and makes every later word a COMMIT; a return needs the
    /// own tip, whatever height the asker sees.
    pub async fn on_ask_settlement(
        &self,
        question: &wire::SettlementQuestion,
    ) -> Result<wire::SettlementAnswer, EngineError> {
        let row = self.htlc(&question.operation_id, question.attempt).await?;
        if row.state != HtlcState::Pending {
            return self.how_it_ended(&row).await;
        }
        let asked = Ruling::asked(&question.preimage, 0)?;
        if let Ruling::Commit { .. } = asked {
            row.pending.condition.check(&asked)?;
        }
        let preimage = match asked {
            Ruling::Commit { preimage } => Some(preimage),
            Ruling::Confirmed { .. } | Ruling::Abort { .. } => row.preimage,
        };
        let decides = row.pending.deciders.contains(&self.own());
        if let Some(preimage) = &preimage {
            let word = if decides {
                Some(self.own_word(&row, &Ruling::Commit { preimage: *preimage }).await)
            } else {
                None
            };
            match word {
                // The own signer had said ABORT before, and keeps to it.
                Some(Err(EngineError::Call(error))) if error.refused() => {}
                Some(Err(error)) => return Err(error),
                Some(Ok(vote)) => {
                    htlc::set_preimage(self.db().pool(), row.id(), preimage).await?;
                    return Ok(wire::SettlementAnswer { vote: Some(vote), proof: None });
                }
                None => htlc::set_preimage(self.db().pool(), row.id(), preimage).await?,
            }
        }
        if !decides {
            return Ok(wire::SettlementAnswer::default());
        }
        let vote = self.chain_word(&row).await?;
        Ok(wire::SettlementAnswer { vote: Some(vote), proof: None })
    }

    /// The word that the own chain permits. An exit transaction that may still come forbids a return.
    async fn chain_word(&self, row: &HtlcRow) -> Result<wire::SettlementVote, EngineError> {
        let (condition, tip) = (&row.pending.condition, self.tip()?);
        if let Completion::Exit { txid, .. } = &condition.completes {
            match exit::place(self.db().pool(), txid).await? {
                Place::Mined(block) => {
                    let ruling = Ruling::Confirmed { tip, block };
                    if condition.check(&ruling).is_err() {
                        return Err(EngineError::State("the exit is not deep enough"));
                    }
                    match self.own_word(row, &ruling).await {
                        // The own signer had said ABORT before, and keeps to it.
                        Err(EngineError::Call(error)) if error.refused() => {}
                        word => return word,
                    }
                }
                Place::Near => return Err(EngineError::State("the exit transaction is on its way")),
                Place::Nowhere => {}
            }
        }
        let ruling = Ruling::Abort { height: tip };
        if condition.check(&ruling).is_err() {
            return Err(EngineError::State("not expired"));
        }
        self.own_word(row, &ruling).await
    }

    /// What ended it here; where that was said under an earlier federation file, the own word for it again.
    async fn how_it_ended(&self, row: &HtlcRow) -> Result<wire::SettlementAnswer, EngineError> {
        if let Some(proof) = self.stored_proof(row)? {
            return Ok(wire::SettlementAnswer { vote: None, proof: Some(proof) });
        }
        if !row.pending.deciders.contains(&self.own()) {
            return Ok(wire::SettlementAnswer::default());
        }
        let ruling = match known_preimage(row) {
            Some(preimage) => Ruling::Commit { preimage },
            None if row.state == HtlcState::Settled => self.confirmation(row).await?,
            None => Ruling::Abort { height: self.tip()? },
        };
        let vote = self.own_word(row, &ruling).await?;
        Ok(wire::SettlementAnswer { vote: Some(vote), proof: None })
    }

    /// Where the own chain has the exit transaction of a settled exit.
    async fn confirmation(&self, row: &HtlcRow) -> Result<Ruling, EngineError> {
        let nowhere = EngineError::State("the exit transaction is in no block");
        let Completion::Exit { txid, .. } = &row.pending.condition.completes else { return Err(nowhere) };
        match exit::place(self.db().pool(), txid).await? {
            Place::Mined(block) => Ok(Ruling::Confirmed { tip: self.tip()?, block }),
            Place::Near | Place::Nowhere => Err(nowhere),
        }
    }

    async fn own_word(&self, row: &HtlcRow, ruling: &Ruling) -> Result<wire::SettlementVote, EngineError> {
        let (preimage, tip_height, block) = match ruling {
            Ruling::Commit { preimage } => (preimage.to_vec(), 0, None),
            Ruling::Confirmed { tip, block } => (Vec::new(), *tip, Some(block)),
            Ruling::Abort { height } => (Vec::new(), *height, None),
        };
        let request = signer::SignSettlementRequest {
            operation_id: row.pending.operation.as_bytes().to_vec(),
            attempt: row.pending.attempt,
            preimage,
            tip_height,
            block_height: block.map_or(0, |block| block.height),
            block_hash: block.map(|block| block.hash.to_vec()).unwrap_or_default(),
        };
        let answer = self.inner.signers.own().sign_settlement(request).await?;
        answer.vote.ok_or(EngineError::State("signer gave no word"))
    }

    /// Somebody hands over the words of all deciders. Idempotent.
    pub async fn on_settle(&self, request: wire::SettleRequest) -> Result<Vec<wire::Receipt>, EngineError> {
        let id = attempt_id(&request.operation_id, request.attempt)?;
        let Some(row) = htlc::get(self.db().pool(), id).await? else {
            // Tables that were lost hold nobody up: a repaired signer knows what was pending, and checks the proof.
            let request = signer::SettleRequest {
                operation_id: request.operation_id,
                attempt: request.attempt,
                proof: request.proof,
            };
            return Ok(self.inner.signers.own().settle(request).await?.receipts);
        };
        let proof = request.proof.ok_or(VoteError::Malformed("proof"))?;
        let ruling = ProofOfSettlement::verify(&proof, self.federation(), &row.pending)?.ruling;
        // Nothing new, where it has ended so and events went out. What contradicts that the own signer must see.
        if row.announced && row.state == end_by(&ruling) {
            return Ok(Vec::new());
        }
        let receipts = self.settle_own(&row, &proof, &ruling).await?;
        if request.everywhere {
            // A reason to ask all of them, and no more: any peer may say so.
            let engine = self.clone();
            tokio::spawn(async move {
                if let Err(error) = engine.look_everywhere(&row).await {
                    tracing::debug!(%error, operation = %row.id(), "end is not everywhere");
                }
            });
        }
        Ok(receipts)
    }

    async fn look_everywhere(&self, row: &HtlcRow) -> Result<(), EngineError> {
        let row = htlc::get(self.db().pool(), row.id()).await?.ok_or(EngineError::Unknown)?;
        if !row.announced {
            self.end(&row).await?;
        }
        Ok(())
    }

    /// Own signer, then own tables.
    async fn settle_own(
        &self,
        row: &HtlcRow,
        proof: &wire::ProofOfSettlement,
        ruling: &Ruling,
    ) -> Result<Vec<wire::Receipt>, EngineError> {
        let ended = end_by(ruling);
        let request = signer::SettleRequest {
            operation_id: row.pending.operation.as_bytes().to_vec(),
            attempt: row.pending.attempt,
            proof: Some(proof.clone()),
        };
        // Also where it has ended otherwise: the signer raises the alarm.
        let receipts = self.inner.signers.own().settle(request).await;
        if row.state != HtlcState::Pending && row.state != ended {
            tracing::error!(operation = %row.id(), "both ends of a conditional transfer are proven");
            return Err(EngineError::State("it has ended otherwise"));
        }
        let receipts = receipts?.receipts;
        fail_point(Point::SettleSigner);
        let pool = self.db().pool();
        htlc::set_proof(pool, row.id(), &proof.encode_to_vec()).await?;
        if let Ruling::Commit { preimage } = ruling {
            htlc::set_preimage(pool, row.id(), preimage).await?;
        }
        let mut write = AppliedWrite {
            receipts: outcome::receipts(self.own(), &receipts).map_err(EngineError::from)?,
            ..AppliedWrite::default()
        };
        for record in self.records_after(row, ended).await? {
            write.leaves.push(outcome::leaf_write(&record)?);
            write.watched.extend(outcome::watched(&record));
        }
        work::ended(self.db(), row, ended, &write).await?;
        fail_point(Point::SettleEnded);
        Ok(receipts)
    }

    /// The leaves as the end leaves them: the receiver's, as the first decision made them, or the sender's again.
    async fn records_after(&self, row: &HtlcRow, ended: HtlcState) -> Result<Vec<LeafRecord>, EngineError> {
        let corrupt = |_| DbError::Corrupt("leaf.record");
        let pool = self.db().pool();
        let sent = transfer::leaves(pool, &[row.transfer_id]).await?;
        let mut records = Vec::with_capacity(sent.len());
        for leaf in &sent {
            if ended == HtlcState::Settled {
                records.push(LeafRecord::decode(&leaf.record).map_err(corrupt)?);
                continue;
            }
            let now = leaf::get(pool, leaf.leaf_id).await?.ok_or(DbError::Missing("leaf"))?;
            let record = LeafRecord::decode(&now.record).map_err(corrupt)?;
            records.push(LeafRecord {
                last_proof: row.pending.return_hash(),
                status: LeafStatus::Available,
                ..record
            });
        }
        Ok(records)
    }

    /// Every operator has ended it: both sides hear of it.
    async fn announce(&self, row: &HtlcRow) -> Result<(), EngineError> {
        let shown = transfer::get(self.db().pool(), row.transfer_id).await?;
        let shown = shown.ok_or(OperationError::Unknown("transfer"))?;
        let settled = shown.status != transfer::RETURNED;
        let receivers = if settled { vec![row.receiver.clone()] } else { Vec::new() };
        Ok(work::announced(self.db(), row.id(), &outcome::events(&shown, receivers)).await?)
    }

    /// Takes over from the signer's journal the preimage for which it gave its word (D10).
    pub(crate) async fn adopt_word(
        &self,
        id: AttemptId,
        entry: &signer::JournalEntry,
    ) -> Result<(), EngineError> {
        let word = entry.settlement.as_ref().map(|word| word.preimage.as_slice());
        if let Some(preimage) = word.and_then(|bytes| bytes.try_into().ok()) {
            htlc::set_preimage(self.db().pool(), id, &preimage).await?;
        }
        Ok(())
    }

    /// Takes over from the signer's journal how it ended, where these tables have it as pending (D10). False where they do
    /// not have it at all, or the journal is from before it told.
    pub(crate) async fn adopt_end(
        &self,
        id: AttemptId,
        entry: &signer::JournalEntry,
    ) -> Result<bool, EngineError> {
        let Some(row) = htlc::get(self.db().pool(), id).await? else { return Ok(false) };
        if row.state != HtlcState::Pending {
            return Ok(true);
        }
        let Some(proof) = &entry.ended else { return Ok(false) };
        let preimage = proof.votes.iter().find_map(|vote| vote.preimage.as_slice().try_into().ok());
        let pool = self.db().pool();
        htlc::set_proof(pool, id, &proof.encode_to_vec()).await?;
        if let Some(preimage) = &preimage {
            htlc::set_preimage(pool, id, preimage).await?;
        }
        // An exit is settled without a preimage.
        let ended = if entry.kind == "returned" { HtlcState::Returned } else { HtlcState::Settled };
        let mut write = AppliedWrite::default();
        for bytes in &entry.leaves {
            let mut record = LeafRecord::decode(bytes).map_err(|_| DbError::Corrupt("journal.leaves"))?;
            if ended == HtlcState::Returned {
                record.status = LeafStatus::Available;
            }
            write.leaves.push(outcome::leaf_write(&record)?);
            write.watched.extend(outcome::watched(&record));
        }
        work::ended(self.db(), &row, ended, &write).await?;
        Ok(true)
    }

    /// Takes over from the signer's journal that leaves came back, where these tables have them as they were (D10).
    pub(crate) async fn adopt_return(&self, entry: &signer::JournalEntry) -> Result<(), EngineError> {
        for bytes in &entry.leaves {
            let record = LeafRecord::decode(bytes).map_err(|_| DbError::Corrupt("journal.leaves"))?;
            let write = outcome::leaf_write(&record)?;
            leaf::set_status(self.db().pool(), write.leaf_id, write.version, &write.status, &write.record)
                .await?;
        }
        Ok(())
    }
}
