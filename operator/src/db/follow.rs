//! The follower's header table and the facts of blocks, in Postgres.

use std::collections::{HashMap, HashSet};

use bitcoin::{
    Block, OutPoint, Transaction, Txid,
    block::Header,
    consensus::encode::{deserialize, serialize},
    hashes::Hash as _,
};
use sqlx::FromRow;

use super::{
    Db, DbError, address,
    chain::{self, DepositRow, SpendRow},
    in_transaction,
};
use crate::chain::{
    BlockConnected, BlockDisconnected, BlockId, BoxError, ChainSink, HeaderStore, StoredHeader,
};

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
        let facts = self.facts(event.id, &event.block).await?;
        let (height, hash) = (height(event.id)?, event.id.hash.to_byte_array().to_vec());
        in_transaction!(self.db, tx => {
            insert_header(&mut tx, event.id, &event.block.header).await?;
            for deposit in &facts.deposits {
                chain::upsert_deposit(&mut *tx, deposit).await?;
            }
            for outpoint in &facts.watch {
                chain::watch(&mut *tx, outpoint).await?;
            }
            for spend in &facts.spends {
                chain::insert_event(&mut *tx, spend, height, &hash).await?;
            }
        })
    }

    /// Spends and outputs of static addresses that came are written, and those forgotten whose transaction left: into a
    /// block, replaced, or dropped.
    async fn look(&self, came: &[Transaction], held: &HashSet<Txid>) -> Result<(), DbError> {
        let spends = self.spends(came.iter()).await?;
        let mut deposits = self.deposits(came, None).await?;
        deposits.retain(|(_, is_static)| *is_static);
        let held = |spender: &[u8]| Txid::from_slice(spender).is_ok_and(|txid| held.contains(&txid));
        let mut gone = chain::mempool_spenders(self.db.pool()).await?;
        gone.retain(|spender| !held(spender));
        let mut unpaid = chain::pending_deposits(self.db.pool()).await?;
        unpaid.retain(|txid| !held(txid));
        if spends.is_empty() && gone.is_empty() && deposits.is_empty() && unpaid.is_empty() {
            return Ok(());
        }
        in_transaction!(self.db, tx => {
            for (deposit, _) in &deposits {
                chain::upsert_deposit(&mut *tx, deposit).await?;
            }
            chain::delete_pending_deposits(&mut *tx, &unpaid).await?;
            for spend in &spends {
                chain::insert_mempool_spend(&mut *tx, spend).await?;
            }
            chain::delete_mempool_spends(&mut *tx, &gone).await?;
        })
    }

    async fn facts(&self, id: BlockId, block: &Block) -> Result<Facts, DbError> {
        let place = (height(id)?, id.hash.to_byte_array().to_vec());
        let mut facts = Facts::default();
        for (deposit, is_static) in self.deposits(&block.txdata, Some(place)).await? {
            if is_static {
                facts.watch.push(chain::WatchedRow {
                    txid: deposit.txid.clone(),
                    vout: deposit.vout,
                    kind: "DEPOSIT".to_owned(),
                    leaf_id: None,
                });
            }
            facts.deposits.push(deposit);
        }
        facts.spends = self.spends(block.txdata.iter()).await?;
        Ok(facts)
    }

    /// Outputs that pay a deposit address, in the block at `place` or in the mempool, and whether the address is static.
    async fn deposits(
        &self,
        transactions: &[Transaction],
        place: Option<(i32, Vec<u8>)>,
    ) -> Result<Vec<(DepositRow, bool)>, DbError> {
        let scripts: Vec<Vec<u8>> = transactions
            .iter()
            .flat_map(|tx| tx.output.iter().map(|o| o.script_pubkey.to_bytes()))
            .filter(|s| s.len() == 34)
            .collect();
        if scripts.is_empty() {
            return Ok(Vec::new());
        }
        let ours: HashMap<Vec<u8>, bool> = address::by_scripts(self.db.pool(), &scripts)
            .await?
            .into_iter()
            .map(|a| (a.script, a.is_static))
            .collect();
        let mut deposits = Vec::new();
        for tx in transactions {
            let mut txid = None;
            for (vout, output) in (0i64..).zip(&tx.output) {
                let Some(is_static) = ours.get(output.script_pubkey.as_bytes()) else { continue };
                let txid = txid.get_or_insert_with(|| tx.compute_txid().to_byte_array().to_vec());
                let row = DepositRow {
                    txid: txid.clone(),
                    vout,
                    script: output.script_pubkey.to_bytes(),
                    amount: output.value.to_sat().cast_signed(),
                    height: place.as_ref().map(|(height, _)| *height),
                    block_hash: place.as_ref().map(|(_, hash)| hash.clone()),
                    raw_tx: serialize(tx),
                };
                deposits.push((row, *is_static));
            }
        }
        Ok(deposits)
    }

    /// Spends of watched outpoints, each classified (D21).
    pub async fn spends<'a>(
        &self,
        transactions: impl Iterator<Item = &'a Transaction>,
    ) -> Result<Vec<SpendRow>, DbError> {
        let inputs: Vec<(OutPoint, Vec<u8>)> = transactions
            .filter(|tx| !tx.is_coinbase())
            .flat_map(|tx| {
                let spender = tx.compute_txid().to_byte_array().to_vec();
                tx.input.iter().map(move |i| (i.previous_output, spender.clone()))
            })
            .collect();
        let txids: Vec<Vec<u8>> = inputs.iter().map(|(o, _)| o.txid.to_byte_array().to_vec()).collect();
        let vouts: Vec<i64> = inputs.iter().map(|(o, _)| i64::from(o.vout)).collect();
        let mut spends = Vec::new();
        for watched in chain::watched(self.db.pool(), &txids, &vouts).await? {
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
    async fn classify(&self, watched: &chain::WatchedRow, spender: &[u8]) -> Result<&'static str, DbError> {
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

#[derive(Default)]
struct Facts {
    deposits: Vec<DepositRow>,
    watch: Vec<chain::WatchedRow>,
    spends: Vec<SpendRow>,
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
        Ok(())
    }
}

#[async_trait::async_trait]
impl ChainSink for ChainTables {
    async fn connected(&self, event: &BlockConnected) -> Result<(), BoxError> {
        Ok(self.connect(event).await?)
    }

    /// Facts disappear with their header, which the header table removes.
    async fn disconnected(&self, _event: &BlockDisconnected) -> Result<(), BoxError> {
        Ok(())
    }

    async fn mempool(&self, came: &[Transaction], held: &HashSet<Txid>) -> Result<(), BoxError> {
        Ok(self.look(came, held).await?)
    }
}
