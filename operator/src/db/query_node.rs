//! Leaves as queries of wallets see them.

use sqlx::{FromRow, PgExecutor};
use uuid::Uuid;

use super::DbError;

/// A leaf, or a node above one.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct NodeRow {
    /// Id.
    pub leaf_id: Uuid,
    /// Status by its wire name.
    pub status: String,
    /// The whole record.
    pub record: Vec<u8>,
    /// Microseconds since 1970.
    pub created_micros: i64,
    /// Microseconds since 1970.
    pub updated_micros: i64,
}

/// An AVAILABLE leaf and its value in satoshis.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct BalanceRow {
    /// Id.
    pub leaf_id: Uuid,
    /// Satoshis.
    pub value: i64,
}

/// True while this operator coordinates the operation that wrote the leaf's present state and has not heard from all
/// others that they applied it: the coordinator shows an outcome last (OPERATION.md D7). Also while the own signer,
/// repaired, lacks the leaf (D10).
macro_rules! unsettled {
    ($leaf:literal) => {
        concat!(
            "(EXISTS (SELECT 1 FROM unrepaired_leaf u WHERE u.leaf_id = ",
            $leaf,
            ".leaf_id) OR EXISTS (SELECT 1 FROM leaf_history h JOIN operation o ON o.op_id = h.op_id AND o.attempt = h.attempt \
             WHERE h.leaf_id = ",
            $leaf,
            ".leaf_id AND h.version = ",
            $leaf,
            ".version AND o.role = 'COORDINATOR' AND o.state = 'APPLIED'))"
        )
    };
}
pub(super) use unsettled;

macro_rules! select {
    ($($rest:expr),+) => {
        concat!(
            "SELECT l.leaf_id, l.status, l.record, (extract(epoch FROM l.created_at) * 1000000)::bigint AS created_micros, \
             (extract(epoch FROM l.updated_at) * 1000000)::bigint AS updated_micros FROM leaf l ",
            $($rest),+
        )
    };
}

/// Leaves of an owner in order of creation. Without statuses: all but the nodes that have another below them, which
/// keep the name of whoever owned the leaf when it was renewed.
pub async fn owned(
    ex: impl PgExecutor<'_>,
    owner: &[u8],
    statuses: &[String],
    limit: i64,
    offset: i64,
) -> Result<Vec<NodeRow>, DbError> {
    Ok(sqlx::query_as(select!(
        "WHERE l.owner_identity = $1 AND (l.status = ANY($2) OR (cardinality($2) = 0 AND l.status <> 'SPLITTED')) \
         AND NOT ",
        unsettled!("l"),
        " ORDER BY l.created_at, l.leaf_id LIMIT $3 OFFSET $4"
    ))
    .bind(owner)
    .bind(statuses)
    .bind(limit)
    .bind(offset)
    .fetch_all(ex)
    .await?)
}

/// Those of the named nodes that concern an identity: a leaf of the same tree is its own, or on its way to it.
pub async fn visible(
    ex: impl PgExecutor<'_>,
    ids: &[Uuid],
    identity: &[u8],
    statuses: &[String],
) -> Result<Vec<NodeRow>, DbError> {
    Ok(sqlx::query_as(select!(
        "WHERE l.leaf_id = ANY($1) AND (l.status = ANY($3) OR cardinality($3) = 0) AND EXISTS ( \
             SELECT 1 FROM leaf o WHERE o.tree_id = l.tree_id AND o.status <> 'SPLITTED' AND ( \
                 o.owner_identity = $2 OR EXISTS ( \
                     SELECT 1 FROM transfer_leaf tl JOIN transfer_receiver t USING (transfer_id, receiver) \
                     WHERE tl.leaf_id = o.leaf_id AND t.receiver = $2 AND t.status IN (1, 2, 3, 4, 9, 10)))) \
         AND NOT ",
        unsettled!("l"),
        " ORDER BY l.created_at, l.leaf_id"
    ))
    .bind(ids)
    .bind(identity)
    .bind(statuses)
    .fetch_all(ex)
    .await?)
}

/// The nodes between these and the roots of their trees, without these. Exits need every one.
pub async fn ancestors(ex: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<Vec<NodeRow>, DbError> {
    Ok(sqlx::query_as(concat!(
        "WITH RECURSIVE up (leaf_id) AS ( \
             SELECT parent_id FROM leaf WHERE leaf_id = ANY($1) AND parent_id IS NOT NULL \
             UNION \
             SELECT p.parent_id FROM up JOIN leaf p ON p.leaf_id = up.leaf_id WHERE p.parent_id IS NOT NULL) ",
        select!("JOIN up ON up.leaf_id = l.leaf_id WHERE l.leaf_id <> ALL($1) ORDER BY l.created_at, l.leaf_id")
    ))
    .bind(ids)
    .fetch_all(ex)
    .await?)
}

/// Which of these leaves an identity owns.
pub async fn owned_among(ex: impl PgExecutor<'_>, ids: &[Uuid], owner: &[u8]) -> Result<Vec<Uuid>, DbError> {
    Ok(sqlx::query_scalar("SELECT leaf_id FROM leaf WHERE leaf_id = ANY($1) AND owner_identity = $2")
        .bind(ids)
        .bind(owner)
        .fetch_all(ex)
        .await?)
}

/// What an identity can spend.
pub async fn balance(ex: impl PgExecutor<'_>, owner: &[u8]) -> Result<Vec<BalanceRow>, DbError> {
    Ok(sqlx::query_as(concat!(
            "SELECT l.leaf_id, l.value FROM leaf l WHERE l.owner_identity = $1 AND l.status = 'AVAILABLE' AND NOT ",
            unsettled!("l"),
            " ORDER BY l.leaf_id"
    ))
    .bind(owner)
    .fetch_all(ex)
    .await?)
}
