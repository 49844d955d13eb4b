//! gRPC calls by path and bytes, over real TLS, with whatever certificate and session a test likes.

use std::path::{Path, PathBuf};

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use spark_devnet::{certs::PemFiles, network::Devnet};
use spark_proto::transport::{ClientTls, Deadlines, Identity, TrustRoots, channel};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataValue,
    transport::Channel,
};
use tonic_types::StatusExt as _;

/// Messages as they are on the wire.
#[derive(Debug, Clone, Copy)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

/// A listener and what a client needs to recognise it.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    /// `host:port`.
    pub(crate) address: String,
    /// Authority of its certificate.
    pub(crate) ca: PathBuf,
}

impl Door {
    /// A listener of a network, by `host:port` or `https://host:port`.
    pub(crate) fn of(devnet: &Devnet, address: &str) -> Self {
        let address = address.trim_start_matches("https://").to_owned();
        Self { address, ca: devnet.endpoints().ca.clone() }
    }

    /// The name that its certificate must carry.
    pub(crate) fn host(&self) -> &str {
        self.address.split(':').next().unwrap_or_default()
    }

    /// A channel that shows this certificate, or none.
    pub(crate) fn open(&self, card: Option<&PemFiles>) -> anyhow::Result<Channel> {
        let identity =
            card.map(|files| Identity::from_pem_files(&files.certificate, &files.key)).transpose()?;
        let tls = ClientTls {
            roots: TrustRoots::from_pem_file(&self.ca)?,
            identity,
            server_name: self.host().to_owned(),
            pinned: None,
        };
        Ok(channel(&self.address, &tls, Deadlines::default())?)
    }
}

/// The certificate that wallets of a network show.
pub(crate) fn wallet_card(devnet: &Devnet) -> PemFiles {
    let endpoints = devnet.endpoints();
    PemFiles { certificate: endpoints.client_certificate.clone(), key: endpoints.client_key.clone() }
}

/// A certificate by an authority that nobody here trusts.
pub(crate) fn strangers_card(dir: &Path, name: &str) -> anyhow::Result<PemFiles> {
    let authority = spark_devnet::certs::Authority::new("Spark development network")?;
    Ok(authority.issue(name)?.write(dir, &format!("stranger-{name}"))?)
}

/// The answer to one call; of a stream, its first message.
pub(crate) async fn call(
    channel: &Channel,
    path: &str,
    message: Vec<u8>,
    authorization: Option<&[u8]>,
) -> Result<Bytes, Status> {
    let mut client = Grpc::new(channel.clone()).max_decoding_message_size(32 << 20);
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let mut request = Request::new(message);
    if let Some(value) = authorization {
        let value = MetadataValue::try_from(value).map_err(|_| Status::internal("no header value"))?;
        request.metadata_mut().insert("authorization", value);
    }
    let path = PathAndQuery::try_from(path).map_err(|_| Status::internal("no path"))?;
    // A unary answer is a stream of one message, so one way of calling serves both.
    let mut stream = client.server_streaming(request, path, Plain).await?.into_inner();
    stream.message().await?.ok_or_else(|| Status::data_loss("no message"))
}

/// The stable reason that an operator gives.
pub(crate) fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// No server answered: the connection itself was refused.
pub(crate) fn refused_by_tls(status: &Status) -> bool {
    std::error::Error::source(status).is_some() && status.metadata().is_empty()
}
