//! Commands to a running network: a small HTTP service on loopback whose address lies in the network's folder.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Notify},
};

use crate::{http, network::Devnet};

const FILE: &str = "control.json";

#[derive(Clone)]
struct Shared {
    devnet: Arc<Mutex<Devnet>>,
    down: Arc<Notify>,
}

type Answer = Result<Json<Value>, (StatusCode, String)>;

fn failed(error: impl Into<anyhow::Error>) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, format!("{:#}\n", error.into()))
}

/// Serves until `down` is asked for or Ctrl-C comes.
pub async fn serve(devnet: Devnet) -> anyhow::Result<()> {
    let dir = devnet.endpoints().dir.clone();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    std::fs::write(dir.join(FILE), json!({ "url": format!("http://{address}") }).to_string())?;
    let shared = Shared { devnet: Arc::new(Mutex::new(devnet)), down: Arc::default() };
    let down = Arc::clone(&shared.down);
    let router = Router::new()
        .route("/status", get(status))
        .route("/process/{name}/{action}", post(act))
        .route("/down", post(go_down))
        .with_state(shared);
    let ended = async move {
        tokio::select! {
            () = down.notified() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    axum::serve(listener, router).with_graceful_shutdown(ended).await?;
    let _ = std::fs::remove_file(dir.join(FILE));
    Ok(())
}

async fn status(State(shared): State<Shared>) -> Answer {
    let mut devnet = shared.devnet.lock().await;
    let mut processes = serde_json::Map::new();
    for name in devnet.process_names() {
        let running = devnet.process(&name).map_err(failed)?.is_running();
        processes.insert(name, json!(if running { "running" } else { "stopped" }));
    }
    let mut ready = Vec::new();
    for operator in &devnet.endpoints().operators {
        ready.push(http::get(&format!("{}/readyz", operator.http)).await.is_ok());
    }
    let tip = devnet.bitcoind().tip().await.map(|t| t.height).ok();
    Ok(Json(
        json!({ "processes": processes, "ready": ready, "height": tip, "endpoints": devnet.endpoints() }),
    ))
}

async fn act(State(shared): State<Shared>, UrlPath((name, action)): UrlPath<(String, String)>) -> Answer {
    let mut devnet = shared.devnet.lock().await;
    let process = devnet.process(&name).map_err(failed)?;
    match action.as_str() {
        "kill" => process.kill().map_err(failed)?,
        "restart" => {
            process.kill().map_err(failed)?;
            process.restart().map_err(failed)?;
        }
        "pause" => process.pause().map_err(failed)?,
        "resume" => process.resume().map_err(failed)?,
        _ => return Err((StatusCode::NOT_FOUND, "kill, restart, pause or resume\n".into())),
    }
    Ok(Json(json!({ "process": name, "action": action })))
}

async fn go_down(State(shared): State<Shared>) -> Answer {
    shared.down.notify_one();
    Ok(Json(json!({ "down": true })))
}

/// Address of the service of the network in `dir`.
pub fn url(dir: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(dir.join(FILE))
        .with_context(|| format!("no network runs in {}", dir.display()))?;
    let value: Value = serde_json::from_str(&text)?;
    Ok(value.get("url").and_then(Value::as_str).context("control file")?.to_owned())
}
