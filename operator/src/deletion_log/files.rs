//! The log as static files over HTTP GET, for everybody (C2SP tlog-tiles): `/log/checkpoint`, hash tiles and records.
//!
//! Records are salted hashes of receipts (D16): who reads them learns how much is destroyed and when, not whose.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use moka::future::Cache;
use spark_proto::signer::v1::ReadTileRequest;
use tonic::body::Body;
use tower::{Layer, Service};

use super::publish::Published;
use crate::signer_client::SignerClient;

/// Where the files are.
pub const FILES: &str = "/log/";
/// Records or hashes in a full tile.
const FULL: u64 = 256;
/// Most bytes of tiles kept.
const CACHE_BYTES: u64 = 64 << 20;

/// Serves the files of one log; as a layer it passes on everything else. Clones share the cache.
#[derive(Debug, Clone)]
pub struct LogFiles {
    published: Published,
    signer: SignerClient,
    tiles: Cache<Tile, Bytes>,
}

/// A tile by name. A partial one never changes either: it is the beginning of the full one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    /// None: records.
    level: Option<u8>,
    index: u64,
    width: u16,
}

impl Tile {
    /// `<L>/<N>[.p/<W>]` or `entries/<N>[.p/<W>]`, where N is written in groups of three digits, all but the last
    /// marked with an `x`.
    fn parse(path: &str) -> Option<Self> {
        let (level, rest) = path.split_once('/')?;
        let level = match level {
            "entries" => None,
            level => Some(number(level)?.try_into().ok().filter(|level: &u8| *level < 8)?),
        };
        let (name, width) = match rest.split_once(".p/") {
            Some((name, width)) => (name, number(width).filter(|width| (1..FULL).contains(width))?),
            None => (rest, FULL),
        };
        let mut index = 0u64;
        let mut groups = name.split('/').peekable();
        let mut first = true;
        while let Some(group) = groups.next() {
            let digits = match (group.strip_prefix('x'), groups.peek().is_some()) {
                (Some(digits), true) => digits,
                (None, false) => group,
                _ => return None,
            };
            let three = digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
            // One name for each tile: none begins with an empty group.
            if !three || (first && digits == "000" && groups.peek().is_some()) {
                return None;
            }
            first = false;
            index = index.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
        }
        Some(Self { level, index, width: width.try_into().ok()? })
    }

    /// Records that the log must have for it.
    fn records(&self) -> Option<u64> {
        let last = self.index.checked_mul(FULL)?.checked_add(self.width.into())?;
        last.checked_mul(FULL.checked_pow(self.level.unwrap_or(0).into())?)
    }
}

/// Decimal without leading zeros.
fn number(text: &str) -> Option<u64> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    canonical.then(|| text.parse().ok()).flatten()
}

impl LogFiles {
    /// Files of what `published` says, from the own signer.
    pub fn new(published: Published, signer: SignerClient) -> Self {
        let tiles = Cache::builder()
            .weigher(|_, tile: &Bytes| tile.len().try_into().unwrap_or(u32::MAX))
            .max_capacity(CACHE_BYTES)
            .build();
        Self { published, signer, tiles }
    }

    async fn answer(&self, path: &str) -> Response<Body> {
        let Some(head) = self.published.newest() else { return plain(StatusCode::SERVICE_UNAVAILABLE) };
        if path == "checkpoint" {
            return file(Bytes::from(head.note.clone()), "text/plain; charset=utf-8", "no-cache");
        }
        let tile = path.strip_prefix("tile/").and_then(Tile::parse);
        let tile = tile.filter(|tile| tile.records().is_some_and(|needed| needed <= head.checkpoint.size));
        let Some(tile) = tile else { return plain(StatusCode::NOT_FOUND) };
        // Many that want one tile ask the signer once.
        match self.tiles.try_get_with(tile, self.read(tile)).await {
            Ok(data) => file(data, "application/octet-stream", "public, max-age=31536000, immutable"),
            Err(error) => {
                tracing::warn!(%error, "tile is not read");
                plain(StatusCode::SERVICE_UNAVAILABLE)
            }
        }
    }

    async fn read(&self, tile: Tile) -> Result<Bytes, crate::call::CallError> {
        let request = ReadTileRequest {
            level: tile.level.unwrap_or(0).into(),
            index: tile.index,
            width: tile.width.into(),
            records: tile.level.is_none(),
        };
        Ok(self.signer.read_tile(request).await?.data.into())
    }
}

fn file(data: Bytes, kind: &'static str, cache: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(data)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}

fn plain(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    response
}

impl<S> Layer<S> for LogFiles {
    type Service = WithLogFiles<S>;

    fn layer(&self, inner: S) -> WithLogFiles<S> {
        WithLogFiles { inner, files: self.clone() }
    }
}

/// See [`LogFiles`].
#[derive(Debug, Clone)]
pub struct WithLogFiles<S> {
    inner: S,
    files: LogFiles,
}

impl<S, B> Service<Request<B>> for WithLogFiles<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match request.uri().path().strip_prefix(FILES) {
            Some(path) if request.method() == Method::GET => {
                let (files, path) = (self.files.clone(), path.to_owned());
                Box::pin(async move { Ok(files.answer(&path).await) })
            }
            _ => Box::pin(self.inner.call(request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_has_one_name() {
        let tile = |level, index, width| Some(Tile { level, index, width });
        for (path, found) in [
            ("0/000", tile(Some(0), 0, 256)),
            ("7/x001/234", tile(Some(7), 1234, 256)),
            ("1/x001/x234/067.p/255", tile(Some(1), 1_234_067, 255)),
            ("entries/005.p/1", tile(None, 5, 1)),
            ("8/000", None),
            ("00/000", None),
            ("-1/000", None),
            ("0/0", None),
            ("0/1000", None),
            ("0/x000/001", None),
            ("0/001/002", None),
            ("0/x001", None),
            ("0/", None),
            ("0/000.p/0", None),
            ("0/000.p/256", None),
            ("0/000.p/01", None),
            ("0/000.p/", None),
            ("0/00\u{661}", None),
            ("0/../000", None),
            ("0/x999/x999/x999/x999/x999/x999/999", None),
        ] {
            assert_eq!(Tile::parse(path), found, "{path}");
        }
    }

    #[test]
    fn a_tile_needs_its_records() {
        let needs = |level, index, width| Tile { level, index, width }.records();
        assert_eq!(needs(None, 0, 1), Some(1));
        assert_eq!(needs(Some(0), 1, 256), Some(512));
        assert_eq!(needs(Some(1), 0, 3), Some(768));
        assert_eq!(needs(Some(7), u64::MAX / 256, 1), None);
    }
}
