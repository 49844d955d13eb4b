//! The user's own bitcoind: funding, confirmations, packages.

use std::{collections::BTreeMap, fs, time::Duration};

use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid, consensus::encode};
use corepc_client::{Auth, Client, GetBlockError};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{Bitcoind, Login};

/// bitcoind cannot be asked, or says no.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// No `[bitcoind]` in the configuration.
    #[error("this needs a bitcoind: add [bitcoind] to wallet.toml")]
    NotConfigured,
    /// The password or cookie file cannot be read.
    #[error("bitcoind login: {0}")]
    Login(String),
    /// The call failed.
    #[error("bitcoind {method}: {reason}")]
    Call {
        /// RPC name.
        method: &'static str,
        /// What went wrong.
        reason: String,
        /// bitcoind's error code, if it answered.
        code: Option<i32>,
    },
    /// The package was refused by policy or consensus.
    #[error("bitcoind refuses {txid}: {reason}")]
    Refused {
        /// Of the transaction.
        txid: Txid,
        /// bitcoind's reason.
        reason: String,
    },
    /// The answer is malformed.
    #[error("bitcoind {0}: malformed answer")]
    Answer(&'static str),
}

/// An unspent output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unspent {
    /// Where.
    pub outpoint: OutPoint,
    /// What.
    pub txout: TxOut,
    /// 0 while in the mempool.
    pub confirmations: u32,
}

/// A connection to bitcoind.
#[derive(Debug)]
pub struct Chain(Client);

#[derive(Deserialize)]
struct TxOutAnswer {
    confirmations: u32,
    value: Value,
    #[serde(rename = "scriptPubKey")]
    script: ScriptAnswer,
}

#[derive(Deserialize)]
struct ScriptAnswer {
    hex: String,
}

#[derive(Deserialize)]
struct ScanAnswer {
    height: u32,
    unspents: Vec<ScanEntry>,
}

#[derive(Deserialize)]
struct ScanEntry {
    txid: Txid,
    vout: u32,
    #[serde(rename = "scriptPubKey")]
    script: String,
    amount: Value,
    height: u32,
}

#[derive(Deserialize)]
struct PackageAnswer {
    package_msg: String,
    #[serde(rename = "tx-results")]
    results: BTreeMap<String, PackageResult>,
}

#[derive(Deserialize)]
struct PackageResult {
    txid: Txid,
    #[serde(default)]
    error: Option<String>,
}

impl Chain {
    /// Prepares a connection; nothing is asked yet.
    pub fn new(config: &Bitcoind) -> Result<Self, ChainError> {
        let auth = match &config.login {
            Login::Cookie(path) => Auth::CookieFile(path.clone()),
            Login::Password { user, file } => {
                let text = fs::read_to_string(file)
                    .map_err(|e| ChainError::Login(format!("{}: {e}", file.display())))?;
                Auth::UserPass(user.clone(), text.lines().next().unwrap_or_default().to_owned())
            }
        };
        Client::new_with_auth(&config.url, auth).map(Self).map_err(|e| ChainError::Login(e.to_string()))
    }

    async fn call<T: for<'a> Deserialize<'a>>(
        &self,
        method: &'static str,
        args: &[Value],
    ) -> Result<T, ChainError> {
        self.0.call(method, args).await.map_err(|error| {
            let reason = error.to_string();
            // Only the wrappers of single methods tell the code.
            let code = GetBlockError::Rpc(error).rpc_code().and_then(|code| code.try_into().ok());
            ChainError::Call { method, reason, code }
        })
    }

    /// Height of the best block.
    pub async fn height(&self) -> Result<u32, ChainError> {
        self.call("getblockcount", &[]).await
    }

    /// Name of the chain: "main", "test", "signet" or "regtest".
    pub async fn network(&self) -> Result<String, ChainError> {
        let info: Value = self.call("getblockchaininfo", &[]).await?;
        let name = info.get("chain").and_then(Value::as_str);
        name.map(ToOwned::to_owned).ok_or(ChainError::Answer("getblockchaininfo"))
    }

    /// A transaction by id, from the mempool or (with `-txindex`) from any block.
    pub async fn transaction(&self, txid: &Txid) -> Result<Option<Transaction>, ChainError> {
        let answer: Result<String, _> = self.call("getrawtransaction", &[json!(txid.to_string())]).await;
        match answer {
            Ok(hex) => {
                encode::deserialize_hex(&hex).map(Some).map_err(|_| ChainError::Answer("getrawtransaction"))
            }
            Err(ChainError::Call { code: Some(-5), .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Confirmations of a transaction, 0 in the mempool; none if bitcoind does not know it. Without `-txindex`
    /// only transactions in the mempool are known.
    pub async fn confirmations(&self, txid: &Txid) -> Result<Option<u32>, ChainError> {
        let answer: Result<Value, _> =
            self.call("getrawtransaction", &[json!(txid.to_string()), json!(1)]).await;
        match answer {
            Ok(tx) => {
                let confirmations = tx.get("confirmations").and_then(Value::as_u64).unwrap_or(0);
                Ok(Some(confirmations.try_into().unwrap_or(u32::MAX)))
            }
            Err(ChainError::Call { code: Some(-5), .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An output, if it is unspent on the chain and in the mempool.
    pub async fn unspent(&self, outpoint: &OutPoint) -> Result<Option<Unspent>, ChainError> {
        self.output(outpoint, true).await
    }

    /// An output, if it is unspent on the chain, whatever the mempool says.
    pub async fn unspent_in_blocks(&self, outpoint: &OutPoint) -> Result<Option<Unspent>, ChainError> {
        self.output(outpoint, false).await
    }

    async fn output(&self, outpoint: &OutPoint, mempool: bool) -> Result<Option<Unspent>, ChainError> {
        let args = [json!(outpoint.txid.to_string()), json!(outpoint.vout), json!(mempool)];
        let answer: Option<TxOutAnswer> = self.call("gettxout", &args).await?;
        let Some(answer) = answer else { return Ok(None) };
        let txout = TxOut {
            value: amount("gettxout", &answer.value)?,
            script_pubkey: script("gettxout", &answer.script.hex)?,
        };
        Ok(Some(Unspent { outpoint: *outpoint, txout, confirmations: answer.confirmations }))
    }

    /// Confirmed unspent outputs of an address. Scans the set of unspent outputs, which takes a while on mainnet.
    pub async fn scan(&self, address: &str) -> Result<Vec<Unspent>, ChainError> {
        let args = [json!("start"), json!([format!("addr({address})")])];
        let mut patience = 40u32;
        let answer: ScanAnswer = loop {
            match self.call("scantxoutset", &args).await {
                // bitcoind runs one scan at a time, whoever asks.
                Err(ChainError::Call { code: Some(-8), .. }) if patience > 0 => {
                    patience = patience.saturating_sub(1);
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                other => break other?,
            }
        };
        answer
            .unspents
            .iter()
            .map(|entry| {
                Ok(Unspent {
                    outpoint: OutPoint { txid: entry.txid, vout: entry.vout },
                    txout: TxOut {
                        value: amount("scantxoutset", &entry.amount)?,
                        script_pubkey: script("scantxoutset", &entry.script)?,
                    },
                    confirmations: answer.height.saturating_sub(entry.height).saturating_add(1),
                })
            })
            .collect()
    }

    /// Fee rate for confirmation within a few blocks, sat/vB, rounded up; none where bitcoind has no estimate.
    pub async fn fee_rate(&self) -> Result<Option<u64>, ChainError> {
        let answer: Value = self.call("estimatesmartfee", &[json!(3)]).await?;
        let Some(rate) = answer.get("feerate") else { return Ok(None) };
        let per_kvb = amount("estimatesmartfee", rate)?.to_sat();
        Ok(Some(per_kvb.div_ceil(1000).max(1)))
    }

    /// Broadcasts parent and child together. Repeating it is harmless.
    pub async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError> {
        let hex = [encode::serialize_hex(parent), encode::serialize_hex(child)];
        let answer: PackageAnswer = self.call("submitpackage", &[json!(hex)]).await?;
        if answer.package_msg == "success" {
            return Ok(());
        }
        let refused = answer.results.values().find_map(|r| r.error.as_ref().map(|e| (r.txid, e.clone())));
        let (txid, reason) = refused.unwrap_or((child.compute_txid(), answer.package_msg));
        Err(ChainError::Refused { txid, reason })
    }

    /// Broadcasts one transaction. One that is known already is no error.
    pub async fn broadcast(&self, tx: &Transaction) -> Result<(), ChainError> {
        let answer: Result<String, _> =
            self.call("sendrawtransaction", &[json!(encode::serialize_hex(tx))]).await;
        match answer {
            Ok(_) | Err(ChainError::Call { code: Some(-27), .. }) => Ok(()),
            Err(ChainError::Call { code: Some(-25 | -26), reason, .. }) => {
                Err(ChainError::Refused { txid: tx.compute_txid(), reason })
            }
            Err(error) => Err(error),
        }
    }

    /// Returns after a new block, or after `seconds`.
    pub async fn wait_for_block(&self, seconds: u64) -> Result<(), ChainError> {
        let _block: Value = self.call("waitfornewblock", &[json!(seconds.saturating_mul(1000))]).await?;
        Ok(())
    }
}

/// Bitcoins as JSON number, without rounding.
fn amount(method: &'static str, value: &Value) -> Result<Amount, ChainError> {
    let bitcoins = value.as_f64().ok_or(ChainError::Answer(method))?;
    Amount::from_btc(bitcoins).map_err(|_| ChainError::Answer(method))
}

fn script(method: &'static str, hex: &str) -> Result<ScriptBuf, ChainError> {
    ScriptBuf::from_hex(hex).map_err(|_| ChainError::Answer(method))
}
