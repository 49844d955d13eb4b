//! What the operators' databases say, table by table.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use spark_devnet::network::Devnet;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::eventually;

/// Tables that say what was decided: no refused call may change them.
const DECIDED: &[&str] = &[
    "address_request",
    "deposit_address",
    "event_log",
    "htlc",
    "leaf",
    "leaf_claim",
    "leaf_history",
    "operation",
    "receipt",
    "resource_claim",
    "signed_tx",
    "static_address",
    "static_refund",
    "transfer",
    "transfer_leaf",
    "transfer_receiver",
    "utxo_claim",
    "vote",
    "wallet_setting",
];
/// Tables that move by themselves: chain, key pool, messages under way, sqlx's own.
const MOVING: &[&str] = &[
    "_sqlx_migrations",
    "chain_event",
    "deposit_output",
    "deposit_tx",
    "event_cursor",
    "exit_seen",
    "header",
    "inbox",
    "keyshare",
    "mempool_spend",
    "outbox",
    "package_key",
    "projection",
    "unrepaired_leaf",
    "watched_outpoint",
];

/// Rows and their digest by operator and table.
pub(crate) type Rows = BTreeMap<(usize, &'static str), (i64, String)>;

/// A connection to one operator's database.
pub(crate) async fn connect(devnet: &Devnet, operator: usize) -> anyhow::Result<PgConnection> {
    Ok(PgConnection::connect(&devnet.database_url(u16::try_from(operator)?)).await?)
}

async fn one(database: &mut PgConnection, sql: String) -> anyhow::Result<i64> {
    Ok(sqlx::query(AssertSqlSafe(sql)).fetch_one(database).await?.try_get(0)?)
}

/// Waits until nothing is under way, then reads every table that tells what was decided.
pub(crate) async fn settled(devnet: &Devnet) -> anyhow::Result<Rows> {
    let mut rows = Rows::new();
    for operator in 0..devnet.members().len() {
        eventually("all operations are done", || async {
            let mut database = connect(devnet, operator).await?;
            let open = "SELECT count(*) FROM operation WHERE state NOT IN ('DONE', 'REFUSED', 'ABORTED')";
            let waiting = "SELECT count(*) FROM outbox";
            let ending = "SELECT count(*) FROM htlc WHERE state <> 'PENDING' AND NOT announced";
            let mut left = 0;
            for sql in [open, waiting, ending] {
                left += one(&mut database, sql.into()).await?;
            }
            Ok(left == 0)
        })
        .await
        .with_context(|| format!("operator {operator}"))?;
        let mut database = connect(devnet, operator).await?;
        for table in DECIDED {
            let sql = format!(
                "SELECT count(*), md5(coalesce(string_agg(t::text, '/' ORDER BY t::text), '')) FROM {table} t"
            );
            let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut database).await?;
            rows.insert((operator, *table), (row.try_get(0)?, row.try_get(1)?));
        }
        let bound = one(&mut database, "SELECT count(*) FROM keyshare WHERE state = 'BOUND'".into()).await?;
        rows.insert((operator, "keyshare bound"), (bound, String::new()));
    }
    Ok(rows)
}

/// Waits until every operator shows the same leaves and nobody holds anything open.
pub(crate) async fn agree(devnet: &Devnet) -> anyhow::Result<()> {
    eventually("operators agree and hold nothing open", || async {
        let mut views = Vec::new();
        for operator in 0..devnet.members().len() {
            let mut database = connect(devnet, operator).await?;
            let (open, locked): (i64, i64) = sqlx::query_as(
                "SELECT (SELECT count(*) FROM operation WHERE state NOT IN ('DONE', 'ABORTED')),
                    (SELECT count(*) FROM leaf_claim WHERE state = 'LOCKED')",
            )
            .fetch_one(&mut database)
            .await?;
            let view: Option<String> = sqlx::query_scalar(
                "SELECT string_agg(concat_ws(' ', leaf_id, version, value, encode(record, 'hex'), status), E'\\n'
                    ORDER BY leaf_id) FROM leaf",
            )
            .fetch_one(&mut database)
            .await?;
            ensure!((open, locked) == (0, 0), "operator {operator}: {open} open, {locked} locked");
            views.push(view);
        }
        ensure!(views.windows(2).all(|pair| pair[0] == pair[1]), "operators differ: {views:#?}");
        Ok(true)
    })
    .await
}

/// A table that is in neither list was added without asking whether refused calls may change it.
pub(crate) async fn every_table_is_known(devnet: &Devnet) -> anyhow::Result<()> {
    let mut database = connect(devnet, 0).await?;
    let sql = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'";
    let found: BTreeSet<String> =
        sqlx::query_scalar(sql).fetch_all(&mut database).await?.into_iter().collect();
    let known = DECIDED.iter().chain(MOVING).map(|name| (*name).to_owned()).collect();
    ensure!(found == known, "tables {:?}", found.symmetric_difference(&known).collect::<Vec<_>>());
    Ok(())
}

/// Fails where two readings differ, and says in which tables.
pub(crate) fn same(what: &str, before: &Rows, after: &Rows) -> anyhow::Result<()> {
    let changed: Vec<_> = before.keys().filter(|key| before.get(key) != after.get(key)).collect();
    ensure!(changed.is_empty(), "{what}: changed rows of {changed:?}");
    Ok(())
}
