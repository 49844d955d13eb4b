//! Rows of the operation engine.

use std::{collections::BTreeSet, fmt, str::FromStr};

use spark_rules::ids::{OperationId, OperatorIndex};
use sqlx::{FromRow, PgExecutor, postgres::PgRow};
use uuid::Uuid;

use super::DbError;

/// Name of one attempt of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId {
    /// Operation.
    pub op: OperationId,
    /// From 0.
    pub attempt: u32,
}

impl AttemptId {
    pub(crate) fn attempt_column(self) -> Result<i32, DbError> {
        i32::try_from(self.attempt).map_err(|_| DbError::Corrupt("attempt"))
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.op, self.attempt)
    }
}

/// How far an attempt came on this operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Intent and claims are written; the own signer has not answered.
    Proposed,
    /// The own signer voted YES.
    Prepared,
    /// YES of the quorum is known.
    Certified,
    /// A proof of commit is known.
    Committed,
    /// Own signer and own tables applied it.
    Applied,
    /// Every operator applied it.
    Done,
    /// The own signer said NO; no claim is held, the attempt is not decided.
    Refused,
    /// A proof of abort is known, or nobody was asked.
    Aborted,
}

impl State {
    /// In storage, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proposed => "PROPOSED",
            Self::Prepared => "PREPARED",
            Self::Certified => "CERTIFIED",
            Self::Committed => "COMMITTED",
            Self::Applied => "APPLIED",
            Self::Done => "DONE",
            Self::Refused => "REFUSED",
            Self::Aborted => "ABORTED",
        }
    }

    /// True when a proof of commit is known.
    pub const fn committed(self) -> bool {
        matches!(self, Self::Committed | Self::Applied | Self::Done)
    }

    /// True when neither proof is known.
    pub const fn undecided(self) -> bool {
        matches!(self, Self::Proposed | Self::Prepared | Self::Certified | Self::Refused)
    }
}

impl FromStr for State {
    type Err = DbError;

    fn from_str(text: &str) -> Result<Self, DbError> {
        Ok(match text {
            "PROPOSED" => Self::Proposed,
            "PREPARED" => Self::Prepared,
            "CERTIFIED" => Self::Certified,
            "COMMITTED" => Self::Committed,
            "APPLIED" => Self::Applied,
            "DONE" => Self::Done,
            "REFUSED" => Self::Refused,
            "ABORTED" => Self::Aborted,
            _ => return Err(DbError::Corrupt("operation.state")),
        })
    }
}

/// What is known before anybody was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOperation {
    /// Which attempt.
    pub id: AttemptId,
    /// Wire code of the kind.
    pub kind: u32,
    /// True where this operator coordinates.
    pub coordinates: bool,
    /// Who coordinates.
    pub coordinator: OperatorIndex,
    /// Encoded `peer.v1.Operation`.
    pub request: Vec<u8>,
    /// Over the client's words, without attempt and coordinator.
    pub request_digest: [u8; 32],
    /// Operators whose nonces the package names.
    pub named: BTreeSet<OperatorIndex>,
}

/// An attempt as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationRow {
    /// Which attempt.
    pub id: AttemptId,
    /// Wire code of the kind.
    pub kind: u32,
    /// True where this operator coordinates.
    pub coordinates: bool,
    /// Who coordinates.
    pub coordinator: OperatorIndex,
    /// How far.
    pub state: State,
    /// Encoded `peer.v1.Operation`; dropped after [`State::Done`] because it holds ciphertexts of tweaks.
    pub request: Option<Vec<u8>>,
    /// Over the client's words.
    pub request_digest: [u8; 32],
    /// Named signers.
    pub named: BTreeSet<OperatorIndex>,
    /// Encoded `peer.v1.Vote` of the own signer.
    pub own_vote: Option<Vec<u8>>,
    /// Encoded `peer.v1.Certificate`.
    pub certificate: Option<Vec<u8>>,
    /// Encoded `peer.v1.ProofOfCommit`.
    pub proof: Option<Vec<u8>>,
    /// Encoded `peer.v1.ProofOfAbort`.
    pub abort_proof: Option<Vec<u8>>,
    /// Encoded `signer.v1.PrepareResponse` without the vote: public parts of the opened package.
    pub opened: Option<Vec<u8>>,
    /// Stable reason of a refusal.
    pub reason: String,
    /// Seconds since the attempt was written.
    pub age_seconds: i64,
}

#[derive(FromRow)]
struct Raw {
    op_id: Uuid,
    attempt: i32,
    kind: i16,
    role: String,
    coordinator: i16,
    state: String,
    request: Option<Vec<u8>>,
    request_digest: Vec<u8>,
    named: Vec<i16>,
    own_vote: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    proof: Option<Vec<u8>>,
    abort_proof: Option<Vec<u8>>,
    opened: Option<Vec<u8>>,
    reason: String,
    age_seconds: i64,
}

pub(crate) fn index(column: i16) -> Result<OperatorIndex, DbError> {
    u32::try_from(column)
        .ok()
        .and_then(|i| OperatorIndex::from_wire(i).ok())
        .ok_or(DbError::Corrupt("operator index"))
}

pub(crate) fn index_column(index: OperatorIndex) -> i16 {
    // An index is below 15 wherever it was parsed.
    i16::try_from(index.get()).unwrap_or(i16::MAX)
}

impl Raw {
    fn parse(self) -> Result<OperationRow, DbError> {
        Ok(OperationRow {
            id: AttemptId {
                op: self.op_id.into(),
                attempt: u32::try_from(self.attempt).map_err(|_| DbError::Corrupt("attempt"))?,
            },
            kind: u32::try_from(self.kind).map_err(|_| DbError::Corrupt("kind"))?,
            coordinates: self.role == "COORDINATOR",
            coordinator: index(self.coordinator)?,
            state: self.state.parse()?,
            request: self.request,
            request_digest: super::fixed("request_digest", self.request_digest)?,
            named: self.named.into_iter().map(index).collect::<Result<_, _>>()?,
            own_vote: self.own_vote,
            certificate: self.certificate,
            proof: self.proof,
            abort_proof: self.abort_proof,
            opened: self.opened,
            reason: self.reason,
            age_seconds: self.age_seconds,
        })
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT op_id, attempt, kind, role, coordinator, state, request, request_digest, named, own_vote, \
             certificate, proof, abort_proof, opened, reason, \
             extract(epoch FROM now() - created_at)::bigint AS age_seconds FROM operation ",
            $rest
        )
    };
}

fn parse_one(row: Option<PgRow>) -> Result<Option<OperationRow>, DbError> {
    row.map(|row| Raw::from_row(&row)?.parse()).transpose()
}

/// Writes an attempt in a first state.
pub async fn insert(
    ex: impl PgExecutor<'_>,
    new: &NewOperation,
    state: State,
    reason: &str,
) -> Result<(), DbError> {
    let named: Vec<i16> = new.named.iter().copied().map(index_column).collect();
    sqlx::query(
        "INSERT INTO operation (op_id, attempt, kind, role, coordinator, state, request, request_digest, named, reason) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(new.id.op.uuid())
    .bind(new.id.attempt_column()?)
    .bind(i16::try_from(new.kind).map_err(|_| DbError::Corrupt("kind"))?)
    .bind(if new.coordinates { "COORDINATOR" } else { "PARTICIPANT" })
    .bind(index_column(new.coordinator))
    .bind(state.as_str())
    .bind(&new.request)
    .bind(new.request_digest.as_slice())
    .bind(named)
    .bind(reason)
    .execute(ex)
    .await?;
    Ok(())
}

/// One attempt.
pub async fn get(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<Option<OperationRow>, DbError> {
    parse_one(
        sqlx::query(select!("WHERE op_id = $1 AND attempt = $2"))
            .bind(id.op.uuid())
            .bind(id.attempt_column()?)
            .fetch_optional(ex)
            .await?,
    )
}

/// The newest attempt of an operation.
pub async fn latest(ex: impl PgExecutor<'_>, op: OperationId) -> Result<Option<OperationRow>, DbError> {
    parse_one(
        sqlx::query(select!("WHERE op_id = $1 ORDER BY attempt DESC LIMIT 1"))
            .bind(op.uuid())
            .fetch_optional(ex)
            .await?,
    )
}

/// The newest operation that the same words of a client asked for.
pub async fn by_request_digest(
    ex: impl PgExecutor<'_>,
    digest: &[u8; 32],
) -> Result<Option<OperationRow>, DbError> {
    parse_one(
        sqlx::query(select!("WHERE request_digest = $1 ORDER BY created_at DESC LIMIT 1"))
            .bind(digest.as_slice())
            .fetch_optional(ex)
            .await?,
    )
}

/// Attempts of an operation that lack a proof or are not applied everywhere, the oldest first.
pub async fn open(
    ex: impl PgExecutor<'_>,
    older_than_seconds: i64,
    limit: i64,
) -> Result<Vec<OperationRow>, DbError> {
    let rows = sqlx::query(select!(
        "WHERE state IN ('PROPOSED', 'PREPARED', 'CERTIFIED', 'COMMITTED', 'APPLIED', 'REFUSED') \
         AND updated_at <= now() - make_interval(secs => $1::bigint) ORDER BY updated_at LIMIT $2"
    ))
    .bind(older_than_seconds)
    .bind(limit)
    .fetch_all(ex)
    .await?;
    rows.iter().map(|row| Raw::from_row(row)?.parse()).collect()
}

/// Takes an attempt for `seconds`, so that one replica at a time works on it. False: somebody else has it.
pub async fn lease(ex: impl PgExecutor<'_>, id: AttemptId, seconds: i64) -> Result<bool, DbError> {
    Ok(sqlx::query(
        "UPDATE operation SET lease_until = now() + make_interval(secs => $3::bigint) \
         WHERE op_id = $1 AND attempt = $2 AND lease_until <= now()",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(seconds)
    .execute(ex)
    .await?
    .rows_affected()
        == 1)
}

/// Puts an open attempt behind the others.
pub async fn touch(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<(), DbError> {
    sqlx::query("UPDATE operation SET updated_at = now() WHERE op_id = $1 AND attempt = $2")
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .execute(ex)
        .await?;
    Ok(())
}

/// Gives a lease back.
pub async fn unlease(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<(), DbError> {
    sqlx::query("UPDATE operation SET lease_until = now() WHERE op_id = $1 AND attempt = $2")
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .execute(ex)
        .await?;
    Ok(())
}

/// Moves an attempt; the schema refuses steps backwards. Returns false when it is not in one of `from`.
pub async fn advance(
    ex: impl PgExecutor<'_>,
    id: AttemptId,
    from: &[State],
    to: State,
) -> Result<bool, DbError> {
    let from: Vec<&str> = from.iter().map(|s| s.as_str()).collect();
    Ok(sqlx::query(
        "UPDATE operation SET state = $4, updated_at = now() WHERE op_id = $1 AND attempt = $2 AND state = ANY($3)",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(from)
    .bind(to.as_str())
    .execute(ex)
    .await?
    .rows_affected()
        == 1)
}

/// Stores the own signer's vote and what it opened.
pub async fn set_vote(
    ex: impl PgExecutor<'_>,
    id: AttemptId,
    vote: &[u8],
    digest: Option<&[u8; 32]>,
    opened: Option<&[u8]>,
    reason: &str,
) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE operation SET own_vote = $3, digest = coalesce($4, digest), opened = coalesce($5, opened), \
         reason = $6, updated_at = now() WHERE op_id = $1 AND attempt = $2",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(vote)
    .bind(digest.map(<[u8; 32]>::as_slice))
    .bind(opened)
    .bind(reason)
    .execute(ex)
    .await?;
    Ok(())
}

/// Notes why an attempt ends; the first reason stays.
pub async fn set_reason(ex: impl PgExecutor<'_>, id: AttemptId, reason: &str) -> Result<(), DbError> {
    sqlx::query("UPDATE operation SET reason = $3 WHERE op_id = $1 AND attempt = $2 AND reason = ''")
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .bind(reason)
        .execute(ex)
        .await?;
    Ok(())
}

/// Stores a certificate.
pub async fn set_certificate(
    ex: impl PgExecutor<'_>,
    id: AttemptId,
    certificate: &[u8],
) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE operation SET certificate = $3, updated_at = now() WHERE op_id = $1 AND attempt = $2",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(certificate)
    .execute(ex)
    .await?;
    Ok(())
}

/// Stores a proof of commit; the first one stays.
pub async fn set_proof(ex: impl PgExecutor<'_>, id: AttemptId, proof: &[u8]) -> Result<(), DbError> {
    sqlx::query("UPDATE operation SET proof = coalesce(proof, $3) WHERE op_id = $1 AND attempt = $2")
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .bind(proof)
        .execute(ex)
        .await?;
    Ok(())
}

/// Stores a proof of abort; the first one stays.
pub async fn set_abort_proof(ex: impl PgExecutor<'_>, id: AttemptId, proof: &[u8]) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE operation SET abort_proof = coalesce(abort_proof, $3) WHERE op_id = $1 AND attempt = $2",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(proof)
    .execute(ex)
    .await?;
    Ok(())
}

/// Drops the request, which holds the ciphertexts of the tweaks, once all operators have applied (DESIGN section 4).
pub async fn drop_request(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<(), DbError> {
    sqlx::query("UPDATE operation SET request = NULL WHERE op_id = $1 AND attempt = $2 AND state IN ('DONE', 'ABORTED')")
        .bind(id.op.uuid())
        .bind(id.attempt_column()?)
        .execute(ex)
        .await?;
    Ok(())
}

/// Open attempts by state, and the age of the oldest of each in seconds: for metrics.
pub async fn gauges(ex: impl PgExecutor<'_>) -> Result<Vec<(State, i64, i64)>, DbError> {
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(
        "SELECT state, count(*), coalesce(max(extract(epoch FROM now() - created_at)), 0)::bigint FROM operation \
         WHERE state IN ('PROPOSED', 'PREPARED', 'CERTIFIED', 'COMMITTED', 'APPLIED', 'REFUSED') GROUP BY state",
    )
    .fetch_all(ex)
    .await?;
    rows.into_iter().map(|(state, count, age)| Ok((state.parse()?, count, age))).collect()
}
