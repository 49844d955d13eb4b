//! The follower's header table and the facts of blocks, in Postgres.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use bitcoin::{
    OutPoint, Transaction, Txid,
    block::Header,
    consensus::encode::{deserialize, serialize},
    hashes::Hash as _,
};
use spark_rules::tx::without_witnesses;
use sqlx::FromRow;

use super::{
    Db, DbError, address,
    chain::{self, PayingRow, SpendRow, WatchedRow},
    exit, in_transaction,
};
use crate::chain::{
    BlockConnected, BlockDisconnected, BlockId, BoxError, ChainSink, HeaderStore, StoredHeader,
};

/// Most outputs of one transaction to one address that are noticed, the largest ones: of more, somebody pays to fill our
/// tables (S13).
const MOST_OUTPUTS: usize = 64;

#[derive(FromRow)]
struct Row {
    height: i32,
    hash: Vec<u8>,
    raw: Vec<u8>,
}

impl Row {
    fn header(self) -> Result<StoredHeader, DbError> {
        let corrupt = |_| DbError::Corrupt("header");
        let header: Header = deserialize(&self.raw).map_err(|_| DbError::Corrupt("header.raw"))?;
        let id = BlockId {
            height: u32::try_from(self.height).map_err(|_| DbError::Corrupt("header.height"))?,
            hash: bitcoin::BlockHash::from_slice(&self.hash).map_err(corrupt)?,
        };
        Ok(StoredHeader { id, header })
    }
}

/// Headers and facts of this operator's database.
#[derive(Debug, Clone)]
pub struct ChainTables {
    db: Db,
}

impl ChainTables {
    /// Over a database.
    pub const fn new(db: Db) -> Self {
        Self { db }
    }

    async fn find(&self, sql: &'static str, height: i32) -> Result<Option<StoredHeader>, DbError> {
        let row: Option<Row> = sqlx::query_as(sql).bind(height).fetch_optional(self.db.pool()).await?;
        row.map(Row::header).transpose()
    }

    async fn connect(&self, event: &BlockConnected) -> Result<(), DbError> {
        let payments = self.payments(&event.block.txdata).await?;
        let watch: Vec<WatchedRow> = payments.iter().flat_map(Payment::watch).collect();
        let spends = self.spends(event.block.txdata.iter(), &watch).await?;
        let txids: Vec<Vec<u8>> =
            event.block.txdata.iter().map(|tx| tx.compute_txid().to_byte_array().to_vec()).collect();
        let exits = exit::among(self.db.pool(), &txids).await?;
        let place = (height(event.id)?, event.id.hash.to_byte_array().to_vec());
        in_transaction!(self.db, tx => {
            // What a crash loses of this is read from the chain again: a node that catches up need not wait for the disk
            // at every block.
            sqlx::query("SET LOCAL synchronous_commit = off").execute(&mut *tx).await?;
            insert_header(&mut tx, event.id, &event.block.header).await?;
            for payment in &payments {
                chain::upsert_deposits(&mut tx, &payment.row, Some(&place)).await?;
            }
            for outpoint in &watch {
                chain::watch(&mut *tx, outpoint).await?;
            }
            for spend in &spends {
                chain::insert_event(&mut *tx, spend, place.0, &place.1).await?;
            }
            if !exits.is_empty() {
                exit::mined(&mut tx, &exits, &place.1).await?;
            }
        })
    }

    /// Spends and outputs of static addresses that came are written, and those forgotten whose transaction left: into a
    /// block, replaced, or dropped.
    async fn look(&self, came: &[Transaction], held_txids: &HashSet<Txid>) -> Result<(), DbError> {
        let spends = self.spends(came.iter(), &[]).await?;
        let mut payments = self.payments(came).await?;
        payments.retain_mut(Payment::keep_static);
        let held = |spender: &[u8]| Txid::from_slice(spender).is_ok_and(|txid| held_txids.contains(&txid));
        let mut gone = chain::mempool_spenders(self.db.pool()).await?;
        gone.retain(|spender| !held(spender));
        let mut unpaid = chain::pending_deposits(self.db.pool()).await?;
        unpaid.retain(|txid| !held(txid));
        let exits = exit::changes(self.db.pool(), held_txids).await?;
        let none = spends.is_empty() && gone.is_empty() && payments.is_empty() && unpaid.is_empty();
        if none && exits.is_empty() {
            return Ok(());
        }
        in_transaction!(self.db, tx => {
            for payment in &payments {
                chain::upsert_deposits(&mut tx, &payment.row, None).await?;
            }
            chain::delete_pending_deposits(&mut tx, &unpaid).await?;
            for spend in &spends {
                chain::insert_mempool_spend(&mut *tx, spend).await?;
            }
            chain::delete_mempool_spends(&mut *tx, &gone).await?;
            exit::looked(&mut tx, &exits).await?;
        })
    }

    /// Transactions that pay deposit addresses.
    async fn payments(&self, transactions: &[Transaction]) -> Result<Vec<Payment>, DbError> {
        let scripts: HashSet<&[u8]> = transactions
            .iter()
            .flat_map(|tx| tx.output.iter().map(|o| o.script_pubkey.as_bytes()))
            .filter(|s| s.len() == 34)
            .collect();
        if scripts.is_empty() {
            return Ok(Vec::new());
        }
        let scripts: Vec<Vec<u8>> = scripts.into_iter().map(<[u8]>::to_vec).collect();
        let ours: HashMap<Vec<u8>, bool> = address::by_scripts(self.db.pool(), &scripts)
            .await?
            .into_iter()
            .map(|a| (a.script, a.is_static))
            .collect();
        Ok(transactions.iter().filter_map(|tx| Payment::of(tx, &ours)).collect())
    }

    /// Spends of watched outpoints, and of those in `new`, which are watched from now on; each classified (D21).
    pub async fn spends<'a>(
        &self,
        transactions: impl Iterator<Item = &'a Transaction>,
        new: &[WatchedRow],
    ) -> Result<Vec<SpendRow>, DbError> {
        let inputs: Vec<(OutPoint, Vec<u8>)> = transactions
            .filter(|tx| !tx.is_coinbase())
            .flat_map(|tx| {
                let spender = tx.compute_txid().to_byte_array().to_vec();
                tx.input.iter().map(move |i| (i.previous_output, spender.clone()))
            })
            .collect();
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let txids: Vec<Vec<u8>> = inputs.iter().map(|(o, _)| o.txid.to_byte_array().to_vec()).collect();
        let vouts: Vec<i64> = inputs.iter().map(|(o, _)| i64::from(o.vout)).collect();
        let mut watched = chain::watched(self.db.pool(), &txids, &vouts).await?;
        let spent: HashSet<(&[u8], i64)> =
            txids.iter().map(Vec::as_slice).zip(vouts.iter().copied()).collect();
        let known: HashSet<(Vec<u8>, i64)> = watched.iter().map(|w| (w.txid.clone(), w.vout)).collect();
        let new = new.iter().filter(|w| spent.contains(&(w.txid.as_slice(), w.vout)));
        watched.extend(new.filter(|w| !known.contains(&(w.txid.clone(), w.vout))).cloned());
        let mut spends = Vec::new();
        for watched in watched {
            let spender = inputs
                .iter()
                .find(|(o, _)| {
                    o.txid.to_byte_array().as_slice() == watched.txid && i64::from(o.vout) == watched.vout
                })
                .map(|(_, spender)| spender.clone())
                .ok_or(DbError::Missing("spender"))?;
            let kind = self.classify(&watched, &spender).await?;
            spends.push(SpendRow {
                txid: watched.txid,
                vout: watched.vout,
                spender_txid: spender,
                kind: kind.to_owned(),
                leaf_id: watched.leaf_id,
            });
        }
        Ok(spends)
    }

    /// The node tx of an inner node only moves the tree on chain. A leaf's own node tx starts the clock of its
    /// refund and freezes it, as does any other spend of a leaf's outputs.
    async fn classify(&self, watched: &WatchedRow, spender: &[u8]) -> Result<&'static str, DbError> {
        let node: Option<String> = sqlx::query_scalar("SELECT status FROM leaf WHERE node_txid = $1")
            .bind(spender)
            .fetch_optional(self.db.pool())
            .await?;
        Ok(match (node.as_deref(), watched.kind.as_str()) {
            (Some("SPLITTED"), _) => "MOVE",
            (Some(_), _) => "NODE",
            (None, "REFUND") => "REFUND",
            (None, _) => "FOREIGN",
        })
    }
}

/// A transaction that pays deposit addresses.
struct Payment {
    row: PayingRow,
    /// Those of its outputs that pay static ones.
    to_static: HashSet<i64>,
}

impl Payment {
    /// `ours`: scripts of deposit addresses, and whether each is static.
    fn of(tx: &Transaction, ours: &HashMap<Vec<u8>, bool>) -> Option<Self> {
        let mut paid: HashMap<&[u8], Vec<(i64, i64)>> = HashMap::new();
        for (vout, output) in (0i64..).zip(&tx.output) {
            let script = output.script_pubkey.as_bytes();
            if ours.contains_key(script) {
                paid.entry(script).or_default().push((vout, output.value.to_sat().cast_signed()));
            }
        }
        if paid.is_empty() {
            return None;
        }
        let (mut outputs, mut to_static) = (Vec::new(), HashSet::new());
        for (script, mut of_one) in paid {
            // The sort is stable: every operator keeps the same ones.
            of_one.sort_by_key(|(_, amount)| Reverse(*amount));
            of_one.truncate(MOST_OUTPUTS);
            if ours.get(script).copied().unwrap_or_default() {
                to_static.extend(of_one.iter().map(|(vout, _)| *vout));
            }
            outputs.extend(of_one.into_iter().map(|(vout, amount)| (vout, script.to_vec(), amount)));
        }
        let txid = tx.compute_txid().to_byte_array().to_vec();
        Some(Self { row: PayingRow { txid, raw: without_witnesses(tx), outputs }, to_static })
    }

    /// Forgets other outputs than those to static addresses; whether any is left.
    fn keep_static(&mut self) -> bool {
        let to_static = &self.to_static;
        self.row.outputs.retain(|(vout, ..)| to_static.contains(vout));
        !self.row.outputs.is_empty()
    }

    /// Static addresses have no leaf whose creation would begin to watch what they got.
    fn watch(&self) -> impl Iterator<Item = WatchedRow> {
        self.to_static.iter().map(|vout| WatchedRow {
            txid: self.row.txid.clone(),
            vout: *vout,
            kind: "DEPOSIT".to_owned(),
            leaf_id: None,
        })
    }
}

fn height(id: BlockId) -> Result<i32, DbError> {
    i32::try_from(id.height).map_err(|_| DbError::Corrupt("height"))
}

async fn insert_header(tx: &mut sqlx::PgConnection, id: BlockId, header: &Header) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO header (height, hash, prev_hash, block_time, raw) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (hash) DO NOTHING",
    )
    .bind(height(id)?)
    .bind(id.hash.to_byte_array().as_slice())
    .bind(header.prev_blockhash.to_byte_array().as_slice())
    .bind(i64::from(header.time))
    .bind(serialize(header))
    .execute(tx)
    .await?;
    Ok(())
}

#[async_trait::async_trait]
impl HeaderStore for ChainTables {
    async fn tip(&self) -> Result<Option<StoredHeader>, BoxError> {
        let sql = "SELECT height, hash, raw FROM header WHERE height >= $1 ORDER BY height DESC LIMIT 1";
        Ok(self.find(sql, 0).await?)
    }

    async fn at(&self, height: u32) -> Result<Option<StoredHeader>, BoxError> {
        let Ok(height) = i32::try_from(height) else { return Ok(None) };
        Ok(self.find("SELECT height, hash, raw FROM header WHERE height = $1", height).await?)
    }

    /// The sink has written it already, together with the block's facts.
    async fn push(&self, header: StoredHeader) -> Result<(), BoxError> {
        let mut connection = self.db.pool().acquire().await.map_err(DbError::from)?;
        Ok(insert_header(&mut connection, header.id, &header.header).await?)
    }

    async fn pop(&self, tip: BlockId) -> Result<(), BoxError> {
        let above = height(tip)?.saturating_sub(1);
        super::headers::delete_above(self.db.pool(), above).await?;
        chain::delete_unpaying(self.db.pool()).await?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl ChainSink for ChainTables {
    async fn connected(&self, event: &BlockConnected) -> Result<(), BoxError> {
        Ok(self.connect(event).await?)
    }

    /// Facts disappear with their header, which the header table removes. That an exit was there is kept.
    async fn disconnected(&self, event: &BlockDisconnected) -> Result<(), BoxError> {
        for txid in exit::unmined(self.db.pool(), &event.id.hash).await? {
            let txid = Txid::from_slice(&txid).map_or_else(|_| String::new(), |txid| txid.to_string());
            tracing::error!(%txid, "a settled exit is in no block any more: its leaves are held until it is");
        }
        Ok(())
    }

    async fn mempool(&self, came: &[Transaction], held: &HashSet<Txid>) -> Result<(), BoxError> {
        Ok(self.look(came, held).await?)
    }
}
