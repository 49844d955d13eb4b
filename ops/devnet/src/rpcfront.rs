//! JSON-RPC front before bitcoind.
//!
//! Our bitcoind has no wallet, yet public test suites fund themselves by `sendtoaddress`. The front answers the
//! handful of wallet calls they make from the [`Faucet`] and hands everything else to the node, byte by byte.
//! Wallet paths (`/wallet/<name>`) are accepted; there is one purse behind all names.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, Amount, Denomination, Network};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::faucet::{Faucet, FaucetError};
use crate::ports::Port;
use crate::rpc::{RpcClient, RpcError, basic_authorization};

/// Error codes of Bitcoin Core's `rpc/protocol.h`.
mod code {
    pub(super) const MISC: i64 = -1;
    pub(super) const INVALID_AMOUNT: i64 = -3;
    pub(super) const WALLET: i64 = -4;
    pub(super) const INVALID_ADDRESS: i64 = -5;
    pub(super) const INSUFFICIENT_FUNDS: i64 = -6;
    pub(super) const WALLET_NOT_FOUND: i64 = -18;
    pub(super) const WALLET_ALREADY_LOADED: i64 = -35;
    pub(super) const INVALID_PARAMS: i64 = -32602;
    pub(super) const INTERNAL: i64 = -32603;
    pub(super) const PARSE: i64 = -32700;
}

#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    #[error("port {0} cannot be listened on")]
    Listen(SocketAddr, #[source] std::io::Error),
}

/// A running front; stops when dropped.
#[derive(Debug)]
pub struct RpcFront {
    address: SocketAddr,
    task: JoinHandle<()>,
    _port: Port,
}

#[derive(Debug)]
struct Front {
    authorization: String,
    node: RpcClient,
    faucet: Arc<Faucet>,
    wallets: Mutex<Wallets>,
}

#[derive(Debug, Default)]
struct Wallets {
    created: BTreeSet<String>,
    loaded: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Call {
    jsonrpc: Option<String>,
    #[serde(default)]
    id: Value,
    method: String,
    #[serde(default)]
    params: Value,
}

#[derive(Debug, Serialize)]
struct Refusal {
    code: i64,
    message: String,
}

impl RpcFront {
    /// Listens on `port` and lets in who knows `user` and `password`.
    pub async fn start(
        port: Port,
        (user, password): (&str, &str),
        node: RpcClient,
        faucet: Arc<Faucet>,
    ) -> Result<Self, FrontError> {
        let address = port.address();
        let listener =
            TcpListener::bind(address).await.map_err(|source| FrontError::Listen(address, source))?;
        let front = Arc::new(Front {
            authorization: basic_authorization(user, password),
            node,
            faucet,
            wallets: Mutex::default(),
        });
        let router = Router::new().fallback(serve).with_state(front);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "RPC front ended");
            }
        });
        Ok(Self { address, task, _port: port })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RpcFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(State(front): State<Arc<Front>>, method: Method, headers: HeaderMap, body: Bytes) -> Response {
    if method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "JSONRPC server handles only POST requests").into_response();
    }
    if headers.get(AUTHORIZATION).map(|value| value.as_bytes()) != Some(front.authorization.as_bytes()) {
        return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Basic realm=\"jsonrpc\"")]).into_response();
    }
    match serde_json::from_slice::<Value>(&body) {
        // The node refuses an empty batch better than we could.
        Ok(Value::Array(calls)) if !calls.is_empty() => {
            let mut replies = Vec::with_capacity(calls.len());
            for call in calls {
                replies.extend(front.one_of_batch(call).await);
            }
            json_response(StatusCode::OK, &Value::Array(replies))
        }
        Ok(single) => match front.answer(&single).await {
            Some((status, reply)) => json_response(status, &reply),
            None => front.pass_through(body).await,
        },
        Err(error) => {
            let refusal = Refusal { code: code::PARSE, message: error.to_string() };
            let reply = json!({"result": null, "error": refusal, "id": null});
            json_response(StatusCode::INTERNAL_SERVER_ERROR, &reply)
        }
    }
}

impl Front {
    async fn pass_through(&self, body: Bytes) -> Response {
        match self.node.post(body).await {
            Ok(reply) => (reply.status, [(CONTENT_TYPE, "application/json")], reply.body).into_response(),
            Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
        }
    }

    /// A part of a batch goes to the node alone, so that the order of effects is the order of the batch.
    /// Notifications have no reply.
    async fn one_of_batch(&self, call: Value) -> Option<Value> {
        if let Some((_, reply)) = self.answer(&call).await {
            return Some(reply);
        }
        let id = call.get("id").cloned().unwrap_or(Value::Null);
        let failed = |message: String| {
            Some(json!({"result": null, "error": Refusal { code: code::INTERNAL, message }, "id": id}))
        };
        match self.node.post(Bytes::from(call.to_string())).await {
            Ok(reply) if reply.body.is_empty() => None,
            Ok(reply) => {
                serde_json::from_slice(&reply.body).map_or_else(|error| failed(error.to_string()), Some)
            }
            Err(error) => failed(error.to_string()),
        }
    }

    /// The reply to a call that is ours, with its HTTP status; `None` for calls of the node.
    async fn answer(&self, call: &Value) -> Option<(StatusCode, Value)> {
        let Ok(call) = Call::deserialize(call) else { return None };
        let outcome = match call.method.as_str() {
            "sendtoaddress" => self.send_to_address(&call.params).await,
            "getnewaddress" => Ok(json!(self.faucet.address().to_string())),
            "getbalance" => self.balance().await,
            "createwallet" => self.create_wallet(&call.params),
            "loadwallet" => self.load_wallet(&call.params),
            "listwallets" => Ok(json!(self.wallets().loaded)),
            _ => return None,
        };
        // JSON-RPC 2.0 has errors in the body only; before, the HTTP status told as well.
        let modern = call.jsonrpc.as_deref() == Some("2.0");
        Some(match outcome {
            Ok(result) if modern => {
                (StatusCode::OK, json!({"jsonrpc": "2.0", "result": result, "id": call.id}))
            }
            Ok(result) => (StatusCode::OK, json!({"result": result, "error": null, "id": call.id})),
            Err(error) if modern => {
                (StatusCode::OK, json!({"jsonrpc": "2.0", "error": error, "id": call.id}))
            }
            Err(error) => {
                (StatusCode::INTERNAL_SERVER_ERROR, json!({"result": null, "error": error, "id": call.id}))
            }
        })
    }

    async fn send_to_address(&self, params: &Value) -> Result<Value, Refusal> {
        let address = text_param(params, 0, "address")?;
        let address = Address::<NetworkUnchecked>::from_str(address)
            .ok()
            .and_then(|address| address.require_network(Network::Regtest).ok())
            .ok_or_else(|| refusal(code::INVALID_ADDRESS, "Invalid address"))?;
        let amount = param(params, 1, "amount")
            .and_then(btc_amount)
            .filter(|amount| *amount > Amount::ZERO)
            .ok_or_else(|| refusal(code::INVALID_AMOUNT, "Invalid amount"))?;
        let transaction = self.faucet.send(&address, amount).await.map_err(Refusal::from)?;
        let txid = transaction.compute_txid();
        if param(params, 9, "verbose").and_then(Value::as_bool) == Some(true) {
            return Ok(json!({"txid": txid, "fee_reason": "Fixed"}));
        }
        Ok(json!(txid))
    }

    async fn balance(&self) -> Result<Value, Refusal> {
        Ok(json!(self.faucet.balance().await.map_err(Refusal::from)?.to_btc()))
    }

    fn create_wallet(&self, params: &Value) -> Result<Value, Refusal> {
        let name = text_param(params, 0, "wallet_name")?;
        let mut wallets = self.wallets();
        if !wallets.created.insert(name.to_owned()) {
            return Err(refusal(code::WALLET, "Wallet file verification failed. Database already exists."));
        }
        wallets.loaded.insert(name.to_owned());
        Ok(json!({"name": name}))
    }

    fn load_wallet(&self, params: &Value) -> Result<Value, Refusal> {
        let name = text_param(params, 0, "filename")?;
        let mut wallets = self.wallets();
        if !wallets.created.contains(name) {
            return Err(refusal(
                code::WALLET_NOT_FOUND,
                "Wallet file verification failed. Path does not exist.",
            ));
        }
        if !wallets.loaded.insert(name.to_owned()) {
            return Err(refusal(
                code::WALLET_ALREADY_LOADED,
                format!("Wallet \"{name}\" is already loaded."),
            ));
        }
        Ok(json!({"name": name}))
    }

    fn wallets(&self) -> std::sync::MutexGuard<'_, Wallets> {
        self.wallets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<FaucetError> for Refusal {
    fn from(error: FaucetError) -> Self {
        match error {
            FaucetError::Poor { .. } => refusal(code::INSUFFICIENT_FUNDS, "Insufficient funds"),
            FaucetError::Amount => refusal(code::INVALID_AMOUNT, "Amount out of range"),
            FaucetError::Rpc(RpcError::Refused { code, message, .. }) => refusal(code, message),
            other => refusal(code::MISC, other.to_string()),
        }
    }
}

fn refusal(code: i64, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into() }
}

/// A parameter by position or by name.
fn param<'a>(params: &'a Value, position: usize, name: &str) -> Option<&'a Value> {
    match params {
        Value::Array(list) => list.get(position),
        Value::Object(named) => named.get(name),
        _ => None,
    }
}

fn text_param<'a>(params: &'a Value, position: usize, name: &str) -> Result<&'a str, Refusal> {
    param(params, position, name)
        .and_then(Value::as_str)
        .ok_or_else(|| refusal(code::INVALID_PARAMS, format!("{name} is missing or not a string")))
}

/// An amount in BTC, as a JSON number or a decimal string.
fn btc_amount(value: &Value) -> Option<Amount> {
    match value {
        Value::String(text) => Amount::from_str_in(text, Denomination::Bitcoin).ok(),
        Value::Number(number) => Amount::from_btc(number.as_f64()?).ok(),
        _ => None,
    }
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_in_every_notation() {
        let sat = |value| btc_amount(&value).map(Amount::to_sat);
        assert_eq!(sat(json!(0.0001)), Some(10_000));
        assert_eq!(sat(json!(1)), Some(100_000_000));
        assert_eq!(sat(json!("0.00000001")), Some(1));
        assert_eq!(sat(json!(1e-8)), Some(1));
        assert_eq!(sat(json!(-1)), None);
        assert_eq!(sat(json!("0.000000001")), None);
        assert_eq!(sat(json!(null)), None);
    }
}
