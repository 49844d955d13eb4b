//! Leaves and their history.

use spark_rules::{leaf::LeafStatus, vote::Kind};
use sqlx::{FromRow, PgExecutor};
use uuid::Uuid;

use super::{DbError, operation::AttemptId};

/// A leaf as recorded.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct LeafRow {
    /// Id.
    pub leaf_id: Uuid,
    /// Tree.
    pub tree_id: Uuid,
    /// Parent node, absent at the root.
    pub parent_id: Option<Uuid>,
    /// Version of the keyshare.
    pub version: i64,
    /// 33 bytes.
    pub owner_identity: Vec<u8>,
    /// Wire name without prefix, for example `AVAILABLE`.
    pub status: String,
    /// Satoshis.
    pub value: i64,
    /// 32 bytes, internal order.
    pub node_txid: Vec<u8>,
    /// Encoded leaf record.
    pub record: Vec<u8>,
    /// True while an undecided operation holds the current version.
    pub locked: bool,
    /// Microseconds since 1970.
    pub created_micros: i64,
    /// Microseconds since 1970.
    pub updated_micros: i64,
}

/// What an applied operation writes of a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafWrite {
    /// Id.
    pub leaf_id: Uuid,
    /// Tree.
    pub tree_id: Uuid,
    /// Parent node.
    pub parent_id: Option<Uuid>,
    /// New version.
    pub version: i64,
    /// New owner.
    pub owner_identity: Vec<u8>,
    /// New status.
    pub status: String,
    /// Satoshis.
    pub value: i64,
    /// 32 bytes, internal order.
    pub node_txid: Vec<u8>,
    /// Encoded leaf record.
    pub record: Vec<u8>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT l.leaf_id, l.tree_id, l.parent_id, l.version, l.owner_identity, l.status, l.value, l.node_txid, \
             l.record, EXISTS (SELECT 1 FROM leaf_claim c WHERE c.leaf_id = l.leaf_id AND c.leaf_version = l.version \
             AND c.state = 'LOCKED') AS locked, (extract(epoch FROM l.created_at) * 1000000)::bigint AS created_micros, \
             (extract(epoch FROM l.updated_at) * 1000000)::bigint AS updated_micros FROM leaf l ",
            $rest
        )
    };
}

/// One leaf.
pub async fn get(ex: impl PgExecutor<'_>, leaf_id: Uuid) -> Result<Option<LeafRow>, DbError> {
    Ok(sqlx::query_as(select!("WHERE l.leaf_id = $1")).bind(leaf_id).fetch_optional(ex).await?)
}

/// Several leaves, in no order; unknown ids are left out.
pub async fn by_ids(ex: impl PgExecutor<'_>, leaf_ids: &[Uuid]) -> Result<Vec<LeafRow>, DbError> {
    Ok(sqlx::query_as(select!("WHERE l.leaf_id = ANY($1)")).bind(leaf_ids).fetch_all(ex).await?)
}

/// Leaves of an identity, oldest first. An empty list of statuses means all.
pub async fn by_owner(
    ex: impl PgExecutor<'_>,
    owner: &[u8],
    statuses: &[String],
    limit: i64,
    offset: i64,
) -> Result<Vec<LeafRow>, DbError> {
    Ok(sqlx::query_as(select!(
        "WHERE l.owner_identity = $1 AND (cardinality($2::text[]) = 0 OR l.status = ANY($2)) \
         ORDER BY l.created_at, l.leaf_id LIMIT $3 OFFSET $4"
    ))
    .bind(owner)
    .bind(statuses)
    .bind(limit)
    .bind(offset)
    .fetch_all(ex)
    .await?)
}

/// These leaves and every ancestor of theirs.
pub async fn with_ancestors(ex: impl PgExecutor<'_>, leaf_ids: &[Uuid]) -> Result<Vec<LeafRow>, DbError> {
    Ok(sqlx::query_as(concat!(
        "WITH RECURSIVE path(id) AS (SELECT unnest($1::uuid[]) UNION \
         SELECT p.parent_id FROM leaf p JOIN path ON p.leaf_id = path.id WHERE p.parent_id IS NOT NULL) ",
        select!("WHERE l.leaf_id IN (SELECT id FROM path)")
    ))
    .bind(leaf_ids)
    .fetch_all(ex)
    .await?)
}

/// Of these leaves some that nothing holds: spendable, claimed by no open operation, and backed by the own signer.
pub async fn idle(ex: impl PgExecutor<'_>, leaf_ids: &[Uuid], limit: i64) -> Result<Vec<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT l.leaf_id FROM leaf l WHERE l.leaf_id = ANY($1) AND l.status = 'AVAILABLE' \
         AND NOT EXISTS (SELECT 1 FROM leaf_claim c WHERE c.leaf_id = l.leaf_id AND c.leaf_version = l.version \
             AND c.state = 'LOCKED') \
         AND NOT EXISTS (SELECT 1 FROM unrepaired_leaf u WHERE u.leaf_id = l.leaf_id) ORDER BY random() LIMIT $2",
    )
    .bind(leaf_ids)
    .bind(limit)
    .fetch_all(ex)
    .await?)
}

/// Satoshis of an identity's available leaves, and of those among them that an undecided operation holds.
pub async fn balance(ex: impl PgExecutor<'_>, owner: &[u8]) -> Result<(i64, i64), DbError> {
    Ok(sqlx::query_as(
        "SELECT coalesce(sum(l.value), 0)::bigint, coalesce(sum(l.value) FILTER (WHERE EXISTS ( \
             SELECT 1 FROM leaf_claim c WHERE c.leaf_id = l.leaf_id AND c.leaf_version = l.version \
             AND c.state = 'LOCKED')), 0)::bigint \
         FROM leaf l WHERE l.owner_identity = $1 AND l.status = 'AVAILABLE'",
    )
    .bind(owner)
    .fetch_one(ex)
    .await?)
}

/// Number and satoshis of leaves by status: for metrics. What an undecided operation holds counts as locked, what the
/// chain forbids to spend (D21) as `UNAVAILABLE`. Held leaves are found from the few open operations.
pub async fn gauges(ex: impl PgExecutor<'_>) -> Result<Vec<(LeafStatus, i64, i64)>, DbError> {
    let renewal = i16::try_from(Kind::Renew.code()).map_err(|_| DbError::Corrupt("kind"))?;
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(
        "WITH held AS (SELECT c.leaf_id, c.leaf_version, o.kind FROM operation o JOIN leaf_claim c USING (op_id, attempt) \
             WHERE o.state IN ('PROPOSED', 'PREPARED', 'CERTIFIED', 'COMMITTED') AND c.state = 'LOCKED'), \
         frozen AS (SELECT leaf_id FROM chain_event WHERE kind <> 'MOVE' \
             UNION SELECT leaf_id FROM mempool_spend WHERE kind <> 'MOVE' \
             UNION SELECT t.leaf_id FROM exit_seen s JOIN htlc x ON x.exit_txid = s.txid AND x.state = 'SETTLED' \
             JOIN transfer_leaf t ON t.transfer_id = x.transfer_id WHERE s.block_hash IS NULL) \
         SELECT CASE WHEN l.status <> 'AVAILABLE' THEN l.status WHEN f.leaf_id IS NOT NULL THEN 'UNAVAILABLE' \
             WHEN h.kind = $1 THEN 'RENEW_LOCKED' WHEN h.kind IS NOT NULL THEN 'TRANSFER_LOCKED' \
             ELSE l.status END AS shown, count(*), coalesce(sum(l.value), 0)::bigint \
         FROM leaf l LEFT JOIN held h ON h.leaf_id = l.leaf_id AND h.leaf_version = l.version \
         LEFT JOIN frozen f ON f.leaf_id = l.leaf_id GROUP BY shown",
    )
    .bind(renewal)
    .fetch_all(ex)
    .await?;
    let status = |text: &str| text.parse().map_err(|_| DbError::Corrupt("leaf.status"));
    rows.into_iter().map(|(text, count, value)| Ok((status(&text)?, count, value))).collect()
}

/// Writes the state of a leaf after an operation; a later version stays.
pub async fn upsert(ex: impl PgExecutor<'_>, leaf: &LeafWrite) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO leaf (leaf_id, tree_id, parent_id, version, owner_identity, status, value, node_txid, record) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (leaf_id) DO UPDATE \
         SET tree_id = EXCLUDED.tree_id, parent_id = EXCLUDED.parent_id, version = EXCLUDED.version, \
             owner_identity = EXCLUDED.owner_identity, status = EXCLUDED.status, value = EXCLUDED.value, \
             node_txid = EXCLUDED.node_txid, record = EXCLUDED.record, updated_at = now() \
         WHERE leaf.version <= EXCLUDED.version",
    )
    .bind(leaf.leaf_id)
    .bind(leaf.tree_id)
    .bind(leaf.parent_id)
    .bind(leaf.version)
    .bind(&leaf.owner_identity)
    .bind(&leaf.status)
    .bind(leaf.value)
    .bind(&leaf.node_txid)
    .bind(&leaf.record)
    .execute(ex)
    .await?;
    Ok(())
}

/// Changes status and record without a new version: chain facts only.
pub async fn set_status(
    ex: impl PgExecutor<'_>,
    leaf_id: Uuid,
    version: i64,
    status: &str,
    record: &[u8],
) -> Result<bool, DbError> {
    Ok(sqlx::query(
        "UPDATE leaf SET status = $3, record = $4, updated_at = now() WHERE leaf_id = $1 AND version = $2",
    )
    .bind(leaf_id)
    .bind(version)
    .bind(status)
    .bind(record)
    .execute(ex)
    .await?
    .rows_affected()
        == 1)
}

/// Changes what wallets are shown of a leaf that an operation holds; its record stays.
pub async fn show(ex: impl PgExecutor<'_>, leaf_id: Uuid, status: &str) -> Result<(), DbError> {
    sqlx::query("UPDATE leaf SET status = $2, updated_at = now() WHERE leaf_id = $1")
        .bind(leaf_id)
        .bind(status)
        .execute(ex)
        .await?;
    Ok(())
}

/// Leaves that wait for their deposit to confirm.
pub async fn creating(ex: impl PgExecutor<'_>, limit: i64) -> Result<Vec<LeafRow>, DbError> {
    Ok(sqlx::query_as(select!("WHERE l.status = 'CREATING' ORDER BY l.created_at LIMIT $1"))
        .bind(limit)
        .fetch_all(ex)
        .await?)
}

/// Keeps a version of a leaf for ever; a repeat changes nothing.
pub async fn insert_history(ex: impl PgExecutor<'_>, id: AttemptId, leaf: &LeafWrite) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO leaf_history (leaf_id, version, op_id, attempt, owner_identity, status, record) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(leaf.leaf_id)
    .bind(leaf.version)
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(&leaf.owner_identity)
    .bind(&leaf.status)
    .bind(&leaf.record)
    .execute(ex)
    .await?;
    Ok(())
}

/// A signed transaction.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct SignedTxRow {
    /// Index in the operation's order of transactions.
    pub job: i32,
    /// Leaf.
    pub leaf_id: Uuid,
    /// Version after the operation.
    pub leaf_version: i64,
    /// Role of the transaction in its template.
    pub purpose: String,
    /// 32 bytes, internal order.
    pub txid: Vec<u8>,
    /// With witness.
    pub raw: Vec<u8>,
}

/// Keeps a signed transaction for ever; a repeat changes nothing.
pub async fn insert_signed(ex: impl PgExecutor<'_>, id: AttemptId, tx: &SignedTxRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO signed_tx (op_id, attempt, job, leaf_id, leaf_version, purpose, txid, raw) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .bind(tx.job)
    .bind(tx.leaf_id)
    .bind(tx.leaf_version)
    .bind(&tx.purpose)
    .bind(&tx.txid)
    .bind(&tx.raw)
    .execute(ex)
    .await?;
    Ok(())
}

/// Everything ever signed of a leaf.
pub async fn signed(ex: impl PgExecutor<'_>, leaf_id: Uuid) -> Result<Vec<SignedTxRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT job, leaf_id, leaf_version, purpose, txid, raw FROM signed_tx WHERE leaf_id = $1 \
         ORDER BY leaf_version, created_at, job",
    )
    .bind(leaf_id)
    .fetch_all(ex)
    .await?)
}

/// The last version of a leaf at which an identity owned it or was sent it; `None` if it never did.
pub async fn last_owned_version(
    ex: impl PgExecutor<'_>,
    leaf_id: Uuid,
    identity: &[u8],
) -> Result<Option<i64>, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT max(version) FROM ( \
             SELECT version FROM leaf_history WHERE leaf_id = $1 AND owner_identity = $2 \
             UNION ALL SELECT version FROM leaf WHERE leaf_id = $1 AND owner_identity = $2 \
             UNION ALL SELECT s.leaf_version FROM transfer_leaf s JOIN transfer t ON t.transfer_id = s.transfer_id \
             WHERE s.leaf_id = $1 AND s.receiver = $2 AND t.status <> $3) AS owned",
    )
    .bind(leaf_id)
    .bind(identity)
    // What came back was never theirs.
    .bind(super::transfer::RETURNED)
    .fetch_one(ex)
    .await?)
}

/// New leaves that an operation made and whose deposits are not confirmed.
pub async fn creating_of(ex: impl PgExecutor<'_>, id: AttemptId) -> Result<Vec<Uuid>, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT l.leaf_id FROM leaf l JOIN leaf_history h ON h.leaf_id = l.leaf_id AND h.version = l.version \
         WHERE h.op_id = $1 AND h.attempt = $2 AND l.status = 'CREATING'",
    )
    .bind(id.op.uuid())
    .bind(id.attempt_column()?)
    .fetch_all(ex)
    .await?)
}
