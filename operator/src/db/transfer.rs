//! Transfers and their leaves.

use sqlx::{FromRow, PgConnection, PgExecutor};
use uuid::Uuid;

use super::DbError;

/// Wire code: a preimage is still missing.
pub const SENDER_KEY_TWEAK_PENDING: i16 = 1;
/// Wire code: the sender's part is applied, the receiver may claim.
pub const SENDER_KEY_TWEAKED: i16 = 2;
/// Wire code: claimed.
pub const COMPLETED: i16 = 5;
/// Wire code: the leaves went back to the sender.
pub const RETURNED: i16 = 7;

/// A transfer.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct TransferRow {
    /// Id, also the operation's.
    pub transfer_id: Uuid,
    /// 33 bytes.
    pub sender: Vec<u8>,
    /// 33 bytes; the first of several.
    pub receiver: Vec<u8>,
    /// Satoshis, of all receivers.
    pub total: i64,
    /// Wire code: complete when every receiver has claimed.
    pub status: i16,
    /// Wire code of the type.
    pub kind: i16,
    /// Microseconds since 1970, as the sender named it.
    pub expiry: Option<i64>,
    /// Spark invoice or empty.
    pub invoice: String,
    /// Microseconds since 1970.
    pub created_micros: i64,
    /// Microseconds since 1970.
    pub updated_micros: i64,
    /// Microseconds since 1970.
    pub completed_micros: Option<i64>,
}

/// What one receiver of a transfer gets.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct ShareRow {
    /// Of which transfer.
    pub transfer_id: Uuid,
    /// 33 bytes.
    pub receiver: Vec<u8>,
    /// Order in the package.
    pub position: i16,
    /// Satoshis.
    pub total: i64,
    /// Wire code of a transfer's status, for this receiver.
    pub status: i16,
    /// Microseconds since 1970.
    pub completed_micros: Option<i64>,
}

/// One leaf of a transfer, as its receiver sees it.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct TransferLeafRow {
    /// Transfer.
    pub transfer_id: Uuid,
    /// Leaf.
    pub leaf_id: Uuid,
    /// Who claims it, 33 bytes.
    pub receiver: Vec<u8>,
    /// Order in the package.
    pub position: i32,
    /// Version after the send.
    pub leaf_version: i64,
    /// Satoshis.
    pub value: i64,
    /// ECIES to the receiver.
    pub secret_cipher: Vec<u8>,
    /// The sender's, over leaf id, transfer id and cipher.
    pub signature: Vec<u8>,
    /// Signed refund for the receiver.
    pub intermediate_refund_tx: Vec<u8>,
    /// Or empty.
    pub intermediate_direct_refund_tx: Vec<u8>,
    /// Or empty.
    pub intermediate_direct_from_cpfp_refund_tx: Vec<u8>,
    /// Encoded leaf record after the send.
    pub record: Vec<u8>,
}

/// Which transfers to list. `None` and empty lists do not filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Sender's identity.
    pub sender: Option<Vec<u8>>,
    /// Receiver's identity.
    pub receiver: Option<Vec<u8>>,
    /// Either's identity.
    pub either: Option<Vec<u8>>,
    /// Ids.
    pub ids: Vec<Uuid>,
    /// Wire codes.
    pub kinds: Vec<i16>,
    /// Wire codes.
    pub statuses: Vec<i16>,
    /// Microseconds since 1970, exclusive.
    pub created_after: Option<i64>,
    /// Microseconds since 1970, exclusive.
    pub created_before: Option<i64>,
    /// Oldest first instead of newest first.
    pub ascending: bool,
    /// Page size.
    pub limit: i64,
    /// Rows to skip.
    pub offset: i64,
}

/// Writes a transfer; a repeat changes nothing.
pub async fn insert(ex: impl PgExecutor<'_>, t: &TransferRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO transfer (transfer_id, sender, receiver, total, status, kind, expiry, invoice) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
    )
    .bind(t.transfer_id)
    .bind(&t.sender)
    .bind(&t.receiver)
    .bind(t.total)
    .bind(t.status)
    .bind(t.kind)
    .bind(t.expiry)
    .bind(&t.invoice)
    .execute(ex)
    .await?;
    Ok(())
}

/// Writes the shares of a transfer's receivers: those of its leaves, in order. A repeat changes nothing.
pub async fn insert_shares(
    ex: impl PgExecutor<'_>,
    t: &TransferRow,
    leaves: &[TransferLeafRow],
) -> Result<(), DbError> {
    let mut shares: Vec<(&[u8], i64)> = Vec::new();
    for leaf in leaves {
        match shares.iter_mut().find(|(receiver, _)| *receiver == leaf.receiver.as_slice()) {
            Some((_, total)) => *total = total.saturating_add(leaf.value),
            None => shares.push((&leaf.receiver, leaf.value)),
        }
    }
    let (receivers, totals): (Vec<&[u8]>, Vec<i64>) = shares.into_iter().unzip();
    sqlx::query(
        "INSERT INTO transfer_receiver (transfer_id, receiver, position, total, status) \
         SELECT $1, s.receiver, s.ordinal - 1, s.total, $4 \
         FROM unnest($2::bytea[], $3::bigint[]) WITH ORDINALITY AS s (receiver, total, ordinal) ON CONFLICT DO NOTHING",
    )
    .bind(t.transfer_id)
    .bind(receivers)
    .bind(totals)
    .bind(t.status)
    .execute(ex)
    .await?;
    Ok(())
}

/// Writes one leaf of a transfer; a repeat changes nothing.
pub async fn insert_leaf(ex: impl PgExecutor<'_>, l: &TransferLeafRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO transfer_leaf (transfer_id, leaf_id, position, leaf_version, value, secret_cipher, signature, \
         intermediate_refund_tx, intermediate_direct_refund_tx, intermediate_direct_from_cpfp_refund_tx, record, \
         receiver) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING",
    )
    .bind(l.transfer_id)
    .bind(l.leaf_id)
    .bind(l.position)
    .bind(l.leaf_version)
    .bind(l.value)
    .bind(&l.secret_cipher)
    .bind(&l.signature)
    .bind(&l.intermediate_refund_tx)
    .bind(&l.intermediate_direct_refund_tx)
    .bind(&l.intermediate_direct_from_cpfp_refund_tx)
    .bind(&l.record)
    .bind(&l.receiver)
    .execute(ex)
    .await?;
    Ok(())
}

/// A receiver has claimed; with the last one the transfer is complete. A repeat changes nothing.
pub async fn complete(
    connection: &mut PgConnection,
    transfer_id: Uuid,
    receiver: &[u8],
) -> Result<(), DbError> {
    // Of two receivers that claim at once the later one must see the other's claim.
    sqlx::query("SELECT 1 FROM transfer WHERE transfer_id = $1 FOR UPDATE")
        .bind(transfer_id)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "WITH claimed AS ( \
             UPDATE transfer_receiver SET status = $3, completed_at = now() \
             WHERE transfer_id = $1 AND receiver = $2 AND status <> $3 RETURNING 1), \
         others AS ( \
             SELECT 1 FROM transfer_receiver WHERE transfer_id = $1 AND receiver <> $2 AND status <> $3) \
         UPDATE transfer SET updated_at = now(), \
             status = CASE WHEN EXISTS (SELECT 1 FROM others) THEN status ELSE $3 END, \
             completed_at = CASE WHEN EXISTS (SELECT 1 FROM others) THEN NULL ELSE now() END \
         WHERE transfer_id = $1 AND EXISTS (SELECT 1 FROM claimed)",
    )
    .bind(transfer_id)
    .bind(receiver)
    .bind(COMPLETED)
    .execute(connection)
    .await?;
    Ok(())
}

/// A conditional transfer ended, for its sender and all receivers. One that has gone on since stays as it is.
pub async fn set_status(
    connection: &mut PgConnection,
    transfer_id: Uuid,
    status: i16,
) -> Result<(), DbError> {
    for sql in [
        "UPDATE transfer SET status = $2, updated_at = now() WHERE transfer_id = $1 AND status = $3",
        "UPDATE transfer_receiver SET status = $2 WHERE transfer_id = $1 AND status = $3",
    ] {
        sqlx::query(sql)
            .bind(transfer_id)
            .bind(status)
            .bind(SENDER_KEY_TWEAK_PENDING)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// The receivers of several transfers, each transfer's in the order of its package.
pub async fn shares(ex: impl PgExecutor<'_>, transfer_ids: &[Uuid]) -> Result<Vec<ShareRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT transfer_id, receiver, position, total, status, \
         (extract(epoch FROM completed_at) * 1000000)::bigint AS completed_micros FROM transfer_receiver \
         WHERE transfer_id = ANY($1) ORDER BY transfer_id, position",
    )
    .bind(transfer_ids)
    .fetch_all(ex)
    .await?)
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT transfer_id, sender, receiver, total, status, kind, expiry, invoice, \
             (extract(epoch FROM created_at) * 1000000)::bigint AS created_micros, \
             (extract(epoch FROM updated_at) * 1000000)::bigint AS updated_micros, \
             (extract(epoch FROM completed_at) * 1000000)::bigint AS completed_micros FROM transfer ",
            $rest
        )
    };
}

/// One transfer.
pub async fn get(ex: impl PgExecutor<'_>, transfer_id: Uuid) -> Result<Option<TransferRow>, DbError> {
    Ok(sqlx::query_as(select!("WHERE transfer_id = $1")).bind(transfer_id).fetch_optional(ex).await?)
}

/// Those of these transfers that there are.
pub async fn by_ids(ex: impl PgExecutor<'_>, transfer_ids: &[Uuid]) -> Result<Vec<TransferRow>, DbError> {
    Ok(sqlx::query_as(select!("WHERE transfer_id = ANY($1)")).bind(transfer_ids).fetch_all(ex).await?)
}

/// Transfers that a filter names.
pub async fn list(ex: impl PgExecutor<'_>, filter: &Filter) -> Result<Vec<TransferRow>, DbError> {
    const WHERE_DESC: &str = select!(
        "WHERE ($1::bytea IS NULL OR sender = $1) AND ($2::bytea IS NULL OR receiver = $2) \
         AND ($3::bytea IS NULL OR sender = $3 OR receiver = $3) \
         AND (cardinality($4::uuid[]) = 0 OR transfer_id = ANY($4)) \
         AND (cardinality($5::smallint[]) = 0 OR kind = ANY($5)) \
         AND (cardinality($6::smallint[]) = 0 OR status = ANY($6)) \
         AND ($7::bigint IS NULL OR created_at > to_timestamp($7::float8 / 1000000)) \
         AND ($8::bigint IS NULL OR created_at < to_timestamp($8::float8 / 1000000)) \
         ORDER BY created_at DESC, transfer_id DESC LIMIT $9 OFFSET $10"
    );
    const WHERE_ASC: &str = select!(
        "WHERE ($1::bytea IS NULL OR sender = $1) AND ($2::bytea IS NULL OR receiver = $2) \
         AND ($3::bytea IS NULL OR sender = $3 OR receiver = $3) \
         AND (cardinality($4::uuid[]) = 0 OR transfer_id = ANY($4)) \
         AND (cardinality($5::smallint[]) = 0 OR kind = ANY($5)) \
         AND (cardinality($6::smallint[]) = 0 OR status = ANY($6)) \
         AND ($7::bigint IS NULL OR created_at > to_timestamp($7::float8 / 1000000)) \
         AND ($8::bigint IS NULL OR created_at < to_timestamp($8::float8 / 1000000)) \
         ORDER BY created_at, transfer_id LIMIT $9 OFFSET $10"
    );
    Ok(sqlx::query_as(if filter.ascending { WHERE_ASC } else { WHERE_DESC })
        .bind(&filter.sender)
        .bind(&filter.receiver)
        .bind(&filter.either)
        .bind(&filter.ids)
        .bind(&filter.kinds)
        .bind(&filter.statuses)
        .bind(filter.created_after)
        .bind(filter.created_before)
        .bind(filter.limit)
        .bind(filter.offset)
        .fetch_all(ex)
        .await?)
}

/// Leaves of several transfers in the order of their packages.
pub async fn leaves(ex: impl PgExecutor<'_>, transfer_ids: &[Uuid]) -> Result<Vec<TransferLeafRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT transfer_id, leaf_id, position, leaf_version, value, secret_cipher, signature, intermediate_refund_tx, \
         intermediate_direct_refund_tx, intermediate_direct_from_cpfp_refund_tx, record, receiver FROM transfer_leaf \
         WHERE transfer_id = ANY($1) ORDER BY transfer_id, position",
    )
    .bind(transfer_ids)
    .fetch_all(ex)
    .await?)
}

/// Satoshis on the way to an identity: sent, not yet claimed.
pub async fn incoming(ex: impl PgExecutor<'_>, receiver: &[u8]) -> Result<i64, DbError> {
    Ok(sqlx::query_scalar(
        "SELECT coalesce(sum(total), 0)::bigint FROM transfer_receiver WHERE receiver = $1 AND status = $2",
    )
    .bind(receiver)
    .bind(SENDER_KEY_TWEAKED)
    .fetch_one(ex)
    .await?)
}
