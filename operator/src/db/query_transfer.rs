//! Transfers as queries of wallets see them.

use sqlx::{FromRow, PgExecutor};
use uuid::Uuid;

use super::{DbError, query_node::unsettled, transfer::TransferRow};

/// Which transfers. An identity limits them: sent by it, received by it, or both; without any, the ids do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Transfers that this identity sent, 33 bytes.
    pub sender: Option<Vec<u8>>,
    /// Transfers that this identity receives, 33 bytes.
    pub receiver: Option<Vec<u8>>,
    /// Statuses of sent ones; empty: all.
    pub sender_statuses: Vec<i16>,
    /// Statuses of received ones; empty: all.
    pub receiver_statuses: Vec<i16>,
    /// Only these; empty: all.
    pub ids: Vec<Uuid>,
    /// Types; empty: all.
    pub kinds: Vec<i16>,
    /// Microseconds since 1970, exclusive.
    pub created_after: Option<i64>,
    /// Microseconds since 1970, exclusive.
    pub created_before: Option<i64>,
    /// Oldest first.
    pub ascending: bool,
    /// Who reads as a stranger, 33 bytes or, if nobody says who, none: only transfers whose sides are all open to it.
    pub stranger: Option<Vec<u8>>,
    /// A side without a setting is open.
    pub open: bool,
}

/// A leaf of a transfer: as the receiver of the transfer must see it, and as it is now.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct TransferNodeRow {
    /// Of which transfer.
    pub transfer_id: Uuid,
    /// The leaf.
    pub leaf_id: Uuid,
    /// Who claims it, 33 bytes.
    pub receiver: Vec<u8>,
    /// ECIES to the receiver.
    pub secret_cipher: Vec<u8>,
    /// By the sender, over leaf, transfer and cipher.
    pub signature: Vec<u8>,
    /// Signed, consensus encoding.
    pub intermediate_refund_tx: Vec<u8>,
    /// Signed, consensus encoding; empty if there is none.
    pub intermediate_direct_refund_tx: Vec<u8>,
    /// Signed, consensus encoding.
    pub intermediate_direct_from_cpfp_refund_tx: Vec<u8>,
    /// The leaf's record at this transfer.
    pub record: Vec<u8>,
    /// Version in `record`.
    pub leaf_version: i64,
    /// Version now.
    pub current_version: i64,
    /// Record now.
    pub current_record: Vec<u8>,
    /// Status now, by its wire name.
    pub status: String,
    /// Microseconds since 1970, of the leaf.
    pub created_micros: i64,
    /// Microseconds since 1970, of the leaf.
    pub updated_micros: i64,
}

macro_rules! page {
    ($order:literal) => {
        concat!(
            "SELECT transfer_id, sender, receiver, total, status, kind, expiry, invoice, \
             (extract(epoch FROM created_at) * 1000000)::bigint AS created_micros, \
             (extract(epoch FROM updated_at) * 1000000)::bigint AS updated_micros, \
             (extract(epoch FROM completed_at) * 1000000)::bigint AS completed_micros FROM transfer \
             WHERE transfer_id IN ( \
                 SELECT transfer_id FROM transfer \
                 WHERE sender = $1 AND (cardinality($3::smallint[]) = 0 OR status = ANY($3)) \
                 UNION SELECT transfer_id FROM transfer_receiver \
                 WHERE receiver = $2 AND (cardinality($4::smallint[]) = 0 OR status = ANY($4)) \
                 UNION SELECT transfer_id FROM transfer \
                 WHERE $1::bytea IS NULL AND $2::bytea IS NULL AND transfer_id = ANY($5)) \
             AND (cardinality($5::uuid[]) = 0 OR transfer_id = ANY($5)) \
             AND (cardinality($6::smallint[]) = 0 OR kind = ANY($6)) \
             AND ($7::bigint IS NULL OR created_at > timestamptz 'epoch' + $7 * interval '1 microsecond') \
             AND ($8::bigint IS NULL OR created_at < timestamptz 'epoch' + $8 * interval '1 microsecond') \
             AND ($11::bytea IS NULL OR NOT EXISTS ( \
                 SELECT 1 FROM (SELECT sender UNION SELECT r.receiver FROM transfer_receiver r \
                     WHERE r.transfer_id = transfer.transfer_id) AS side (identity) WHERE side.identity <> $11 \
                 AND NOT coalesce((SELECT NOT s.private OR s.master IS NOT DISTINCT FROM $11 FROM wallet_setting s \
                     WHERE s.identity = side.identity), $12))) \
             AND NOT EXISTS (SELECT 1 FROM transfer_leaf tl JOIN leaf l USING (leaf_id) \
                 WHERE tl.transfer_id = transfer.transfer_id AND ($1::bytea IS NULL AND $2::bytea IS NULL OR transfer.sender = $1 OR tl.receiver = $2) AND ",
            unsettled!("l"),
            ") ORDER BY ",
            $order,
            " LIMIT $9 OFFSET $10"
        )
    };
}

/// Transfers by creation time and id, without those whose last step this operator still brings to the others.
pub async fn page(
    ex: impl PgExecutor<'_>,
    listing: &Listing,
    limit: i64,
    offset: i64,
) -> Result<Vec<TransferRow>, DbError> {
    let sql = if listing.ascending {
        page!("created_at ASC, transfer_id ASC")
    } else {
        page!("created_at DESC, transfer_id DESC")
    };
    Ok(sqlx::query_as(sql)
        .bind(&listing.sender)
        .bind(&listing.receiver)
        .bind(&listing.sender_statuses)
        .bind(&listing.receiver_statuses)
        .bind(&listing.ids)
        .bind(&listing.kinds)
        .bind(listing.created_after)
        .bind(listing.created_before)
        .bind(limit)
        .bind(offset)
        .bind(&listing.stranger)
        .bind(listing.open)
        .fetch_all(ex)
        .await?)
}

/// Leaves of these transfers, each transfer's in its own order.
pub async fn leaves(ex: impl PgExecutor<'_>, transfer_ids: &[Uuid]) -> Result<Vec<TransferNodeRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT tl.transfer_id, tl.leaf_id, tl.receiver, tl.secret_cipher, tl.signature, tl.intermediate_refund_tx, \
         tl.intermediate_direct_refund_tx, tl.intermediate_direct_from_cpfp_refund_tx, tl.record, tl.leaf_version, \
         l.version AS current_version, l.record AS current_record, l.status, \
         (extract(epoch FROM l.created_at) * 1000000)::bigint AS created_micros, \
         (extract(epoch FROM l.updated_at) * 1000000)::bigint AS updated_micros \
         FROM transfer_leaf tl JOIN leaf l USING (leaf_id) WHERE tl.transfer_id = ANY($1) \
         ORDER BY tl.transfer_id, tl.position",
    )
    .bind(transfer_ids)
    .fetch_all(ex)
    .await?)
}
