//! Bitcoin Core over JSON-RPC.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bitcoin::{
    Amount, Block, BlockHash, Network, OutPoint, ScriptBuf, Transaction, TxOut, Txid, consensus::encode,
};
use corepc_client::{Auth, Client, GetBlockCountError};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{BlockId, BoxError, ChainError, ChainSource, NodeInfo, OutputState, Spent};
use crate::config::{Bitcoind, BitcoindAuth};

/// Core's codes for "no such thing" and "parameter out of range".
const NOT_FOUND: i64 = -5;
const OUT_OF_RANGE: i64 = -8;
/// Below the 60 s after which the client gives up.
const LONGEST_WAIT: Duration = Duration::from_secs(45);

/// A bitcoind. Logs in anew whenever the connection failed, since its cookie changes when it restarts.
pub struct BitcoindSource {
    config: Bitcoind,
    client: Mutex<Option<Arc<Client>>>,
}

impl std::fmt::Debug for BitcoindSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BitcoindSource").field("url", &self.config.url).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct BlockchainInfo {
    chain: String,
    blocks: u32,
    bestblockhash: BlockHash,
    initialblockdownload: bool,
}

#[derive(Deserialize)]
struct NetworkInfo {
    version: i64,
}

#[derive(Deserialize)]
struct UnspentOutput {
    bestblock: BlockHash,
    confirmations: u32,
    #[serde(with = "bitcoin::amount::serde::as_btc")]
    value: Amount,
    #[serde(rename = "scriptPubKey")]
    script: Script,
}

#[derive(Deserialize)]
struct Script {
    hex: ScriptBuf,
}

#[derive(Deserialize)]
struct RawTransaction {
    hex: String,
    blockhash: Option<BlockHash>,
    confirmations: Option<i64>,
}

#[derive(Deserialize)]
struct Header {
    height: u32,
    confirmations: i64,
}

impl BitcoindSource {
    /// Connects and makes sure that the node is on `network` and fit for it.
    pub async fn connect(config: &Bitcoind, network: Network) -> Result<Self, ChainError> {
        let source = Self { config: config.clone(), client: Mutex::default() };
        let info: BlockchainInfo = source.call("getblockchaininfo", &[]).await?;
        let expected = network.to_core_arg();
        if info.chain != expected {
            return Err(ChainError::WrongNetwork { expected, found: info.chain });
        }
        let NetworkInfo { version } = source.call("getnetworkinfo", &[]).await?;
        refuse_snapshot(network, version)?;
        Ok(source)
    }

    fn client(&self) -> Result<Arc<Client>, ChainError> {
        let mut slot = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let unreachable = |error: BoxError| ChainError::Unreachable(error);
        let auth = match &self.config.auth {
            BitcoindAuth::Cookie(path) => Auth::CookieFile(path.clone()),
            BitcoindAuth::UserPassword(secret) => {
                let text = secret.read().map_err(|error| unreachable(error.into()))?;
                let (user, password) = text.split_once(':').ok_or_else(|| {
                    unreachable(format!("{secret} is not of the form user:password").into())
                })?;
                Auth::UserPass(user.to_owned(), password.to_owned())
            }
        };
        let client =
            Client::new_with_auth(&self.config.url, auth).map_err(|error| unreachable(error.into()))?;
        Ok(slot.insert(Arc::new(client)).clone())
    }

    /// Any RPC of the node.
    ///
    /// # Errors
    /// [`ChainError::Refused`] carries the node's own code.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        args: &[Value],
    ) -> Result<T, ChainError> {
        let client = self.client()?;
        let error = match client.call(method, args).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if let corepc_client::Error::Json(error) = error {
            return Err(ChainError::Malformed { method, source: error.into() });
        }
        // The client's own classification hangs on the errors of its typed calls.
        let error = GetBlockCountError::from(error);
        if let Some(code) = error.rpc_code() {
            return Err(ChainError::Refused { method, code, source: error.into() });
        }
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Err(ChainError::Unreachable(error.into()))
    }

    /// As [`call`](Self::call); `None` if the node answers with one of the codes.
    async fn call_unless<T: DeserializeOwned>(
        &self,
        method: &'static str,
        args: &[Value],
        codes: &[i64],
    ) -> Result<Option<T>, ChainError> {
        match self.call(method, args).await {
            Ok(answer) => Ok(Some(answer)),
            Err(ChainError::Refused { code, .. }) if codes.contains(&code) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An output that the set of unspent ones does not hold: spent in a block, in the mempool only, or unknown.
    async fn other_output(&self, outpoint: &OutPoint) -> Result<OutputState, ChainError> {
        const METHOD: &str = "getrawtransaction";
        let found: Option<RawTransaction> =
            self.call_unless(METHOD, &[json!(outpoint.txid), json!(1)], &[NOT_FOUND]).await?;
        let Some(found) = found else { return Ok(OutputState::Unknown) };
        let transaction: Transaction = decode(METHOD, &found.hex)?;
        let output =
            usize::try_from(outpoint.vout).ok().and_then(|vout| transaction.output.get(vout)).cloned();
        let Some(output) = output else { return Ok(OutputState::Unknown) };
        let Some(hash) = found.blockhash else { return Ok(OutputState::Unconfirmed { output }) };
        let header: Header = self.call("getblockheader", &[json!(hash)]).await?;
        // Negative outside the best chain: a block that was reorganised away, with its transaction nowhere else.
        let depth = found.confirmations.and_then(|seen| u32::try_from(seen.min(header.confirmations)).ok());
        let Some(depth) = depth.filter(|depth| *depth > 0) else { return Ok(OutputState::Unknown) };
        let tip = self.info().await?.best.hash;
        let block = BlockId { height: header.height, hash };
        Ok(OutputState::Confirmed { output, block, depth, spent: Spent::InChain, tip })
    }
}

#[async_trait]
impl ChainSource for BitcoindSource {
    async fn info(&self) -> Result<NodeInfo, ChainError> {
        let info: BlockchainInfo = self.call("getblockchaininfo", &[]).await?;
        let best = BlockId { height: info.blocks, hash: info.bestblockhash };
        Ok(NodeInfo { best, initial_download: info.initialblockdownload })
    }

    async fn hash_at(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        self.call_unless("getblockhash", &[json!(height)], &[OUT_OF_RANGE]).await
    }

    async fn block(&self, hash: &BlockHash) -> Result<Block, ChainError> {
        const METHOD: &str = "getblock";
        let hex: String = self.call(METHOD, &[json!(hash), json!(0)]).await?;
        decode(METHOD, &hex)
    }

    async fn wait_for_new_block(&self, known: &BlockHash, at_most: Duration) -> Result<(), ChainError> {
        const METHOD: &str = "waitfornewblock";
        let millis = u64::try_from(at_most.min(LONGEST_WAIT).as_millis()).unwrap_or(u64::MAX);
        // With the second argument a block that came since our last look ends the wait at once. Nodes before 30
        // do not know it and answer with their help text.
        match self.call::<Value>(METHOD, &[json!(millis), json!(known)]).await {
            Err(ChainError::Refused { code: -1, .. }) => {
                self.call::<Value>(METHOD, &[json!(millis)]).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    async fn output(&self, outpoint: &OutPoint) -> Result<OutputState, ChainError> {
        let args = |mempool: bool| [json!(outpoint.txid), json!(outpoint.vout), json!(mempool)];
        let found: Option<UnspentOutput> = self.call("gettxout", &args(false)).await?;
        let Some(found) = found else { return self.other_output(outpoint).await };
        let unspent: Option<UnspentOutput> = self.call("gettxout", &args(true)).await?;
        let tip: Header = self.call("getblockheader", &[json!(found.bestblock)]).await?;
        let malformed =
            || ChainError::Malformed { method: "gettxout", source: "confirmations exceed the height".into() };
        let height = (tip.height + 1).checked_sub(found.confirmations).ok_or_else(malformed)?;
        // If the tip moved since, this asks about another chain; the caller sees it by `tip`.
        let hash = self.hash_at(height).await?.ok_or_else(malformed)?;
        Ok(OutputState::Confirmed {
            output: TxOut { value: found.value, script_pubkey: found.script.hex },
            block: BlockId { height, hash },
            depth: found.confirmations,
            spent: if unspent.is_some() { Spent::No } else { Spent::InMempool },
            tip: found.bestblock,
        })
    }

    async fn mempool_txids(&self) -> Result<Vec<Txid>, ChainError> {
        self.call("getrawmempool", &[json!(false)]).await
    }

    async fn broadcast(&self, transaction: &Transaction) -> Result<(), ChainError> {
        let hex = encode::serialize_hex(transaction);
        // Its fee was fixed when it was signed: the node shall not find it too high.
        self.call::<Txid>("sendrawtransaction", &[json!(hex), json!(0)]).await.map(drop)
    }

    async fn mempool_transaction(&self, txid: &Txid) -> Result<Option<Transaction>, ChainError> {
        const METHOD: &str = "getrawtransaction";
        let found: Option<RawTransaction> =
            self.call_unless(METHOD, &[json!(txid), json!(1)], &[NOT_FOUND]).await?;
        match found {
            Some(found) if found.blockhash.is_none() => decode(METHOD, &found.hex).map(Some),
            _ => Ok(None),
        }
    }
}

fn decode<T: encode::Decodable>(method: &'static str, hex: &str) -> Result<T, ChainError> {
    encode::deserialize_hex(hex).map_err(|error| ChainError::Malformed { method, source: error.into() })
}

/// Core numbers 29.99.0 as 299900: the third and fourth digits from the end are the minor version.
fn refuse_snapshot(network: Network, version: i64) -> Result<(), ChainError> {
    if network == Network::Bitcoin && version / 100 % 100 == 99 {
        return Err(ChainError::Snapshot { version });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_refused_on_mainnet_only() {
        assert!(refuse_snapshot(Network::Bitcoin, 299_900).is_err());
        assert!(refuse_snapshot(Network::Bitcoin, 290_100).is_ok());
        assert!(refuse_snapshot(Network::Regtest, 299_900).is_ok());
    }
}
