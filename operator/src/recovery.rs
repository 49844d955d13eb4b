//! Start and failover: the signer's journal is the truth, Postgres follows it (D10), and the peers' memory decides
//! whether the signer may work at all (D11).

use futures::future::join_all;
use prost::Message as _;
use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    ids::OperationId,
    leaf::LeafRecord,
    vote::{Position, VoteError},
};
use uuid::Uuid;

use crate::{
    call::CallError,
    db::{DbError, operation::AttemptId, projection, signed},
    deposit_address::{AddressError, DepositAddresses},
    keypool::{self, KeypoolError},
    op::{Engine, EngineError},
    repair::RepairError,
};

/// Entries read in one call.
const PAGE: u32 = 256;

/// Why recovery did not finish; nothing is served then.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Signer or peer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A keyshare of the journal.
    #[error(transparent)]
    Keys(#[from] KeypoolError),
    /// An address of the journal.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An entry of the journal does not decode.
    #[error("signer's journal is malformed: {0}")]
    Journal(#[from] prost::DecodeError),
    /// The signer's position is malformed.
    #[error(transparent)]
    Position(#[from] VoteError),
    /// The own signer's repair is interrupted.
    #[error("repair of the own signer: {0}")]
    Repair(#[from] RepairError),
    /// These tables followed another life of the signer, and this one was not repaired from the others.
    #[error("these tables followed another signer of this operator, and nobody repaired this one")]
    OtherLife,
    /// The signer's journal is behind what these tables have seen: one of the two was restored.
    #[error("signer's journal ends at {head}, but these tables followed it to {seen}")]
    Behind {
        /// Last entry of the journal.
        head: u64,
        /// Last entry projected.
        seen: u64,
    },
}

/// What recovery found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Attempts written again.
    pub restored: u32,
    /// Attempts applied again.
    pub applied: u32,
    /// Attempts that these tables cannot follow: their leaves must not be served.
    pub unresolved: Vec<(OperationId, u32)>,
}

/// Unlocks the signer with the peers' memory: asks, carries the question to every peer, hands over the answers.
/// Does nothing when the signer is already unlocked. Whose answer it can do without is the signer's to say: it does not
/// wait for a peer that a person approved for repair.
pub async fn unlock(engine: &Engine) -> Result<wire::GetStatusResponse, RecoveryError> {
    let signers = engine.signers();
    let status = signers.own().get_status(wire::GetStatusRequest {}).await?;
    if !status.locked {
        return Ok(status);
    }
    let question = signers.own().ask_witness(wire::AskWitnessRequest {}).await?;
    let asked = signers.peers().map(|(index, peer)| {
        let question = question.clone();
        async move { (index, peer.answer_witness(question).await) }
    });
    let mut answers = Vec::new();
    for (index, answer) in join_all(asked).await {
        match answer {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                tracing::info!(peer = index.get(), %error, "did not say what it remembers of the own signer");
            }
        }
    }
    Ok(signers.own().accept_witness(wire::AcceptWitnessRequest { answers }).await?)
}

/// Follows the signer's journal from where these tables stand.
pub async fn follow_journal(
    engine: &Engine,
    addresses: &DepositAddresses,
) -> Result<Recovered, RecoveryError> {
    let own = engine.signers().own();
    let status = own.get_status(wire::GetStatusRequest {}).await?;
    let position = Position::parse(status.position.as_ref())?;
    let incarnation = *position.incarnation.as_bytes();
    let mut after = match projection::get(engine.db().pool()).await? {
        Some((seen, sequence)) if seen == incarnation => sequence,
        Some(_) if status.repair.as_ref().is_some_and(|repair| repair.repaired) => {
            tracing::warn!("the own signer was repaired: its journal is followed from its beginning");
            projection::begin_life(engine.db(), &incarnation).await?;
            0
        }
        Some(_) => return Err(RecoveryError::OtherLife),
        None => 0,
    };
    let mut recovered = Recovered::default();
    loop {
        let page = own.read_journal(wire::ReadJournalRequest { after, limit: PAGE }).await?;
        if page.head < after {
            return Err(RecoveryError::Behind { head: page.head, seen: after });
        }
        let Some(last) = page.entries.last().map(|e| e.sequence) else { return Ok(recovered) };
        for entry in &page.entries {
            match entry.kind.as_str() {
                "keys" => keys(engine, entry).await?,
                "bound" => bound(addresses, entry).await?,
                "repaired" => repaired(engine, addresses, entry).await?,
                _ => project(engine, entry, &mut recovered).await?,
            }
        }
        if last <= after {
            return Ok(recovered);
        }
        projection::set(engine.db().pool(), &incarnation, last).await?;
        after = last;
    }
}

/// What a later run of the own signer's repair brought, after this entry of its journal; moves on with what is followed.
pub async fn follow_repaired(
    engine: &Engine,
    addresses: &DepositAddresses,
    after: &mut u64,
) -> Result<(), RecoveryError> {
    loop {
        let request = wire::ReadJournalRequest { after: *after, limit: PAGE };
        let page = engine.signers().own().read_journal(request).await?;
        let Some(last) = page.entries.last().map(|e| e.sequence) else { return Ok(()) };
        for entry in page.entries.iter().filter(|entry| entry.kind == "repaired") {
            repaired(engine, addresses, entry).await?;
        }
        *after = last;
    }
}

/// A keyshare that the signer got back, with its address and its leaf. The leaf's row is served again if it says the same
/// as the signer.
async fn repaired(
    engine: &Engine,
    addresses: &DepositAddresses,
    entry: &wire::JournalEntry,
) -> Result<(), RecoveryError> {
    let content = wire::RepairKeyshare::decode(entry.operation.as_slice())?;
    let batch = wire::DkgConfirmResponse { keyshares: content.keyshare.into_iter().collect() };
    keypool::record(engine.db(), engine.federation(), Uuid::nil().as_bytes(), &batch).await?;
    if let Some(binding) = &content.binding {
        addresses.adopt(binding).await?;
    }
    match engine.adopt(entry).await {
        Ok(()) => {}
        Err(EngineError::Db(error)) => return Err(error.into()),
        Err(error) => tracing::error!(%error, "a repaired leaf cannot be followed"),
    }
    for bytes in &entry.leaves {
        let leaf = LeafRecord::decode(bytes).map_err(|_| DbError::Corrupt("journal.leaves"))?;
        let version = signed("leaf.version", leaf.version)?;
        projection::has_leaf(engine.db().pool(), leaf.leaf_id.uuid(), version).await?;
    }
    Ok(())
}

/// Keyshares of a batch. They are unused until an entry binds them.
async fn keys(engine: &Engine, entry: &wire::JournalEntry) -> Result<(), RecoveryError> {
    let batch = wire::DkgConfirmResponse::decode(entry.operation.as_slice())?;
    // The journal does not name the session; nothing depends on it.
    Ok(keypool::record(engine.db(), engine.federation(), Uuid::nil().as_bytes(), &batch).await?)
}

/// A deposit address, which a wallet may have paid.
async fn bound(addresses: &DepositAddresses, entry: &wire::JournalEntry) -> Result<(), RecoveryError> {
    let binding = wire::Binding::decode(entry.operation.as_slice())?;
    Ok(addresses.adopt(&binding).await?)
}

async fn applied(
    engine: &Engine,
    id: AttemptId,
    entry: &wire::JournalEntry,
    recovered: &mut Recovered,
) -> Result<(), EngineError> {
    let Some(proof) = &entry.proof else { return Ok(()) };
    // The request may be gone everywhere: then the journal's own record of the outcome serves.
    match engine.reapply(id, proof.clone()).await {
        Ok(written) => recovered.applied += u32::from(written),
        Err(EngineError::Unknown) => {
            tracing::info!(operation = %id, "adopting the signer's record of the outcome");
            engine.adopt(entry).await?;
            recovered.applied += 1;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// An entry that cannot be followed now is followed at the next try; one that never can is told.
async fn project(
    engine: &Engine,
    entry: &wire::JournalEntry,
    recovered: &mut Recovered,
) -> Result<(), RecoveryError> {
    let Ok(op) = OperationId::parse(&entry.operation_id) else { return Ok(()) };
    let id = AttemptId { op, attempt: entry.attempt };
    let outcome = match entry.kind.as_str() {
        "prepared" if !entry.operation.is_empty() => {
            match peer::Operation::decode(entry.operation.as_slice()) {
                Ok(request) => {
                    engine.restore(request).await.map(|written| recovered.restored += u32::from(written))
                }
                Err(error) => Err(EngineError::Stored(error)),
            }
        }
        // How a conditional operation ended, where these tables have its first decision.
        "applied" | "returned" if entry.ended.is_some() => match engine.adopt_end(id, entry).await {
            Ok(true) => Ok(()),
            Ok(false) if entry.kind == "returned" => engine.adopt_return(entry).await,
            Ok(false) => applied(engine, id, entry, recovered).await,
            Err(error) => Err(error),
        },
        "applied" => applied(engine, id, entry, recovered).await,
        // The first decision of a conditional operation. One that these tables lost with its request has ended since.
        "pending" => match &entry.proof {
            Some(proof) => match engine.reapply(id, proof.clone()).await {
                Ok(written) => {
                    recovered.applied += u32::from(written);
                    Ok(())
                }
                Err(EngineError::Unknown) => Ok(()),
                Err(error) => Err(error),
            },
            None => Ok(()),
        },
        "ruled" => engine.adopt_word(id, entry).await,
        "returned" => engine.adopt_return(entry).await,
        _ => Ok(()),
    };
    match outcome {
        Ok(()) => {}
        Err(EngineError::Db(error)) => return Err(error.into()),
        // A refusal stays one: it must not keep the operator from starting.
        Err(EngineError::Call(error)) if !error.refused() => return Err(error.into()),
        Err(error) => {
            tracing::error!(%error, operation = %id, kind = %entry.kind, "signer's journal entry cannot be followed");
            recovered.unresolved.push((op, entry.attempt));
        }
    }
    Ok(())
}
