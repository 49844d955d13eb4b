//! Transfers that a preimage completes, or a transaction on chain: what the first decision left open, and how the second
//! one ended it.

use bitcoin::{Txid, hashes::Hash as _};
use spark_rules::settlement::{Completion, Condition, Pending, RETURN_MARGIN};
use sqlx::{FromRow, PgExecutor};
use uuid::Uuid;

use super::{
    DbError, fixed,
    operation::{AttemptId, index, index_column},
};

/// Most transfers that one preimage completes at once. Each locks somebody's money; of more the largest count.
const MOST_SENDERS: i64 = 32;

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HtlcState {
    /// Between the decisions.
    Pending,
    /// The leaves are the receiver's to claim.
    Settled,
    /// The leaves are the sender's again.
    Returned,
}

impl HtlcState {
    /// In storage.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Settled => "SETTLED",
            Self::Returned => "RETURNED",
        }
    }

    fn parse(text: &str) -> Result<Self, DbError> {
        [Self::Pending, Self::Settled, Self::Returned]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or(DbError::Corrupt("htlc.state"))
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HtlcRow {
    /// What the deciders decide about.
    pub pending: Pending,
    /// The transfer that completes or returns.
    pub transfer_id: Uuid,
    /// 33 bytes.
    pub sender: Vec<u8>,
    /// 33 bytes.
    pub receiver: Vec<u8>,
    /// How far it came.
    pub state: HtlcState,
    /// Once a receiver has provided it.
    pub preimage: Option<[u8; 32]>,
    /// Encoded `peer.v1.ProofOfSettlement`, once it is known.
    pub proof: Option<Vec<u8>>,
    /// Every operator has ended it, and events went out.
    pub announced: bool,
    /// Microseconds since 1970.
    pub created_micros: i64,
}

impl HtlcRow {
    /// The operation's attempt.
    pub const fn id(&self) -> AttemptId {
        AttemptId { op: self.pending.operation, attempt: self.pending.attempt }
    }
}

#[derive(FromRow)]
struct Raw {
    op_id: Uuid,
    attempt: i32,
    transfer_id: Uuid,
    payment_hash: Option<Vec<u8>>,
    exit_txid: Option<Vec<u8>>,
    exit_depth: Option<i32>,
    sender: Vec<u8>,
    receiver: Vec<u8>,
    expiry_height: i64,
    digest: Vec<u8>,
    deciders: Vec<i16>,
    state: String,
    preimage: Option<Vec<u8>>,
    proof: Option<Vec<u8>>,
    announced: bool,
    created_micros: i64,
}

impl TryFrom<Raw> for HtlcRow {
    type Error = DbError;

    fn try_from(raw: Raw) -> Result<Self, DbError> {
        let completes = match (raw.payment_hash, raw.exit_txid, raw.exit_depth) {
            (Some(hash), None, None) => {
                Completion::Preimage { payment_hash: fixed("htlc.payment_hash", hash)? }
            }
            (None, Some(txid), Some(depth)) => Completion::Exit {
                txid: Txid::from_slice(&txid).map_err(|_| DbError::Corrupt("htlc.exit_txid"))?,
                depth: u32::try_from(depth).map_err(|_| DbError::Corrupt("htlc.exit_depth"))?,
            },
            _ => return Err(DbError::Corrupt("htlc.payment_hash")),
        };
        let condition = Condition {
            completes,
            expiry_height: u32::try_from(raw.expiry_height)
                .map_err(|_| DbError::Corrupt("htlc.expiry_height"))?,
        };
        Ok(Self {
            pending: Pending {
                operation: raw.op_id.into(),
                attempt: u32::try_from(raw.attempt).map_err(|_| DbError::Corrupt("attempt"))?,
                digest: fixed("htlc.digest", raw.digest)?,
                condition,
                deciders: raw.deciders.into_iter().map(index).collect::<Result<_, _>>()?,
            },
            transfer_id: raw.transfer_id,
            sender: raw.sender,
            receiver: raw.receiver,
            state: HtlcState::parse(&raw.state)?,
            preimage: raw.preimage.map(|bytes| fixed("htlc.preimage", bytes)).transpose()?,
            proof: raw.proof,
            announced: raw.announced,
            created_micros: raw.created_micros,
        })
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT op_id, attempt, transfer_id, payment_hash, exit_txid, exit_depth, sender, receiver, expiry_height, digest, \
             deciders, state, preimage, proof, announced, (extract(epoch FROM created_at) * 1000000)::bigint AS created_micros FROM htlc ",
            $rest
        )
    };
}

/// The first decision was applied. A repeat changes nothing.
pub async fn insert(ex: impl PgExecutor<'_>, row: &HtlcRow) -> Result<(), DbError> {
    let exit = match &row.pending.condition.completes {
        Completion::Exit { txid, depth } => {
            let depth = i32::try_from(*depth).map_err(|_| DbError::Corrupt("htlc.exit_depth"))?;
            Some((txid.to_byte_array().to_vec(), depth))
        }
        Completion::Preimage { .. } => None,
    };
    let deciders: Vec<i16> = row.pending.deciders.iter().map(|index| index_column(*index)).collect();
    sqlx::query(
        "INSERT INTO htlc (op_id, attempt, transfer_id, payment_hash, sender, receiver, expiry_height, digest, deciders, \
         exit_txid, exit_depth) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (op_id, attempt) DO NOTHING",
    )
    .bind(row.pending.operation.uuid())
    .bind(row.id().attempt_column()?)
    .bind(row.transfer_id)
    .bind(row.pending.condition.payment_hash().map(|hash| hash.to_vec()))
    .bind(&row.sender)
    .bind(&row.receiver)
    .bind(i64::from(row.pending.condition.expiry_height))
    .bind(row.pending.digest.as_slice())
    .bind(deciders)
    .bind(exit.as_ref().map(|(txid, _)| txid.as_slice()))
    .bind(exit.as_ref().map(|(_, depth)| *depth))
    .execute(ex)
    .await?;
    Ok(())
}

/// One of them.
pub async fn get(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<Option<HtlcRow>, DbError> {
    let raw: Option<Raw> = sqlx::query_as(select!("WHERE op_id = $1 AND attempt = $2"))
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .fetch_optional(ex)
        .await?;
    raw.map(HtlcRow::try_from).transpose()
}

/// Those that this receiver's preimage completes, one from each sender at most: the largest first, after them one that
/// was returned.
pub async fn of_payment(
    ex: impl PgExecutor<'_>,
    payment_hash: &[u8; 32],
    receiver: &[u8],
) -> Result<Vec<HtlcRow>, DbError> {
    let rows: Vec<Raw> = sqlx::query_as(select!(
        "WHERE payment_hash = $1 AND receiver = $2 ORDER BY state = 'RETURNED', \
         (SELECT t.total FROM transfer t WHERE t.transfer_id = htlc.transfer_id) DESC, created_at DESC LIMIT $3"
    ))
    .bind(payment_hash.as_slice())
    .bind(receiver)
    .bind(MOST_SENDERS)
    .fetch_all(ex)
    .await?;
    let mut rows = rows.into_iter().map(HtlcRow::try_from).collect::<Result<Vec<_>, _>>()?;
    let live = rows.iter().filter(|row| row.state != HtlcState::Returned).count();
    rows.truncate(live.max(1));
    Ok(rows)
}

/// Takes those on which something can be done at this tip, and puts them off for some seconds.
pub async fn due(ex: impl PgExecutor<'_>, tip: u32, limit: i64) -> Result<Vec<HtlcRow>, DbError> {
    let rows: Vec<Raw> = sqlx::query_as(
        "UPDATE htlc SET next_at = now() + interval '5 seconds' WHERE (op_id, attempt) IN ( \
             SELECT op_id, attempt FROM htlc WHERE NOT announced AND next_at <= now() \
             AND (preimage IS NOT NULL OR proof IS NOT NULL OR expiry_height <= $1 \
                 OR EXISTS (SELECT 1 FROM exit_seen s JOIN header h ON h.hash = s.block_hash \
                     WHERE s.txid = exit_txid AND h.height + exit_depth - 1 <= $3)) \
             ORDER BY next_at LIMIT $2 FOR UPDATE SKIP LOCKED) \
         RETURNING op_id, attempt, transfer_id, payment_hash, exit_txid, exit_depth, sender, receiver, expiry_height, digest, \
         deciders, state, preimage, proof, announced, (extract(epoch FROM created_at) * 1000000)::bigint AS created_micros",
    )
    .bind(i64::from(tip).saturating_sub(i64::from(RETURN_MARGIN)))
    .bind(limit)
    .bind(i64::from(tip))
    .fetch_all(ex)
    .await?;
    rows.into_iter().map(HtlcRow::try_from).collect()
}

/// Which of them to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Sent by this identity.
    pub sender: Option<Vec<u8>>,
    /// For this identity.
    pub receiver: Option<Vec<u8>>,
    /// Only these; empty: all.
    pub payment_hashes: Vec<Vec<u8>>,
    /// Only these; empty: all.
    pub transfers: Vec<Uuid>,
    /// Only this.
    pub state: Option<HtlcState>,
}

/// Those that a preimage completes, newest first.
pub async fn list(
    ex: impl PgExecutor<'_>,
    filter: &Filter,
    limit: i64,
    offset: i64,
) -> Result<Vec<HtlcRow>, DbError> {
    let rows: Vec<Raw> = sqlx::query_as(select!(
        "WHERE (sender = $1 OR receiver = $2) AND payment_hash IS NOT NULL AND (cardinality($3::bytea[]) = 0 OR payment_hash = ANY($3)) \
         AND (cardinality($4::uuid[]) = 0 OR transfer_id = ANY($4)) AND ($5::text IS NULL OR state = $5) \
         ORDER BY created_at DESC, transfer_id DESC LIMIT $6 OFFSET $7"
    ))
    .bind(&filter.sender)
    .bind(&filter.receiver)
    .bind(&filter.payment_hashes)
    .bind(&filter.transfers)
    .bind(filter.state.map(HtlcState::as_str))
    .bind(limit)
    .bind(offset)
    .fetch_all(ex)
    .await?;
    rows.into_iter().map(HtlcRow::try_from).collect()
}

/// A receiver's preimage, or a peer's, is known from now on. It fits the payment hash, or the schema refuses it.
pub async fn set_preimage(
    ex: impl PgExecutor<'_>,
    id: AttemptId,
    preimage: &[u8; 32],
) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE htlc SET preimage = $3, next_at = now() + interval '5 seconds' \
         WHERE op_id = $1 AND attempt = $2 AND preimage IS NULL AND state = 'PENDING'",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(preimage.as_slice())
    .execute(ex)
    .await?;
    Ok(())
}

/// The words of all deciders are known, and hold under the present federation file.
pub async fn set_proof(ex: impl PgExecutor<'_>, id: AttemptId, proof: &[u8]) -> Result<(), DbError> {
    sqlx::query("UPDATE htlc SET proof = $3 WHERE op_id = $1 AND attempt = $2")
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .bind(proof)
        .execute(ex)
        .await?;
    Ok(())
}

/// True the first time.
pub(super) async fn end(ex: impl PgExecutor<'_>, id: AttemptId, state: HtlcState) -> Result<bool, DbError> {
    let done =
        sqlx::query("UPDATE htlc SET state = $3 WHERE op_id = $1 AND attempt = $2 AND state = 'PENDING'")
            .bind(id.op.uuid())
            .bind(id.attempt_column()?)
            .bind(state.as_str())
            .execute(ex)
            .await?;
    Ok(done.rows_affected() == 1)
}

/// Every operator has ended it. True the first time.
pub(super) async fn announce(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<bool, DbError> {
    let done = sqlx::query(
        "UPDATE htlc SET announced = true \
         WHERE op_id = $1 AND attempt = $2 AND NOT announced AND state <> 'PENDING'",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .execute(ex)
    .await?;
    Ok(done.rows_affected() == 1)
}
