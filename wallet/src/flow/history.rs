use serde::{Deserialize, Serialize};

use crate::{
    Wallet, WalletError,
    state::{
        ClaimRecord, DepositRecord, DepositState, ExitRecord, ExitState, SendRecord, SendState, StoredLeaf,
    },
};

/// Which way the money went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the chain.
    Deposit,
    /// To another wallet.
    Sent,
    /// From another wallet.
    Received,
    /// To the chain.
    Exit,
}

/// One event of this wallet, from its own records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Unix seconds of its beginning.
    pub time: u64,
    /// Which way.
    pub direction: Direction,
    /// Transfer or leaf id.
    pub id: String,
    /// Satoshis, where known.
    pub amount_sats: Option<u64>,
    /// Identity key or address on the other side.
    pub counterparty: Option<String>,
    /// "pending", "done", "doubtful", "failed", or what went wrong. Of what came from another wallet: "received", then
    /// "claimed", then "final, …" as far as the operators were asked (D15).
    pub status: String,
}

/// How far an incoming transfer is: with several leaves, the one that is the least final counts.
fn received(claim: &ClaimRecord) -> String {
    let of = |leaf: &String| claim.finals.iter().find(|is_final| is_final.leaf_id == *leaf);
    let finals: Option<Vec<_>> = claim.leaves.iter().map(of).collect();
    match finals.and_then(|finals| finals.into_iter().min_by_key(|is_final| is_final.clean)) {
        _ if !claim.done => "received".to_owned(),
        Some(least) => least.statement.clone(),
        None => "claimed".to_owned(),
    }
}

impl Wallet {
    /// Everything this wallet did, oldest first.
    pub fn history(&self) -> Result<Vec<Entry>, WalletError> {
        let mut entries = Vec::new();
        for d in self.state().all::<DepositRecord>()? {
            if d.amount.is_some() || d.state == DepositState::Claimed {
                let status = if d.state == DepositState::Claimed { "done" } else { "pending" };
                entries.push(Entry {
                    time: d.created,
                    direction: Direction::Deposit,
                    id: d.leaf_id,
                    amount_sats: d.amount,
                    counterparty: Some(d.address),
                    status: status.into(),
                });
            }
        }
        for s in self.state().all::<SendRecord>()? {
            let status = match s.state {
                SendState::Pending => "pending",
                SendState::Done => "done",
                SendState::Doubtful => "doubtful",
                SendState::Failed => "failed",
            };
            entries.push(Entry {
                time: s.created,
                direction: Direction::Sent,
                id: s.transfer_id,
                amount_sats: Some(s.amount),
                counterparty: Some(s.receiver),
                status: status.into(),
            });
        }
        for c in self.state().all::<ClaimRecord>()? {
            let status = c.problem.clone().unwrap_or_else(|| received(&c));
            entries.push(Entry {
                time: c.created,
                direction: Direction::Received,
                id: c.transfer_id,
                amount_sats: Some(c.amount),
                counterparty: Some(c.sender),
                status,
            });
        }
        for e in self.state().all::<ExitRecord>()? {
            let value = self.state().get::<StoredLeaf>(&e.leaf_id)?.map(|l| l.value);
            entries.push(Entry {
                time: e.created,
                direction: Direction::Exit,
                id: e.leaf_id,
                amount_sats: value,
                counterparty: Some(e.destination),
                status: if e.state == ExitState::Done { "done" } else { "pending" }.into(),
            });
        }
        entries.sort_by_key(|e| e.time);
        Ok(entries)
    }
}
