//! GET and POST over plain HTTP on loopback.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Uri, body::Bytes};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(5);

/// Body of a 200 answer to GET.
pub async fn get(url: &str) -> anyhow::Result<String> {
    call("GET", url).await
}

/// Body of a 200 answer to POST without content.
pub async fn post(url: &str) -> anyhow::Result<String> {
    call("POST", url).await
}

async fn call(method: &str, url: &str) -> anyhow::Result<String> {
    tokio::time::timeout(DEADLINE, exchange(method, url)).await.context("no answer in time")?
}

async fn exchange(method: &str, url: &str) -> anyhow::Result<String> {
    let uri: Uri = url.parse()?;
    let authority = uri.authority().context("address")?.clone();
    let stream = TcpStream::connect(authority.as_str()).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let task = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(uri.path_and_query().map_or("/", |p| p.as_str()))
        .header("host", authority.as_str())
        .body(Full::new(Bytes::new()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    task.abort();
    let text = String::from_utf8_lossy(&body).into_owned();
    if !status.is_success() {
        bail!("{status}: {text}");
    }
    Ok(text)
}
