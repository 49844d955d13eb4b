//! Connections to the operators, sessions, and calls that renew them.

mod authn;

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bitcoin::secp256k1::PublicKey;
use futures::future::join_all;
use spark_proto::{
    log::v1::deletion_log_client::DeletionLogClient,
    packages::v1::package_keys_client::PackageKeysClient,
    spark::spark_service_client::SparkServiceClient,
    transport::{self, ClientTls, Deadlines, Identity, Spki, TransportError, TrustRoots},
};
use spark_rules::ids::OperatorIndex;
use tonic::{Code, Request, Response, Status, metadata::MetadataValue, transport::Channel};

pub use authn::AuthError;

use crate::{config::Config, keys::SigningKey};

/// A session is renewed this long before it ends.
const MARGIN: Duration = Duration::from_secs(30);
/// Most bytes of one answer; the largest page of nodes has less.
const MAX_ANSWER: usize = 20 << 20;

/// A call that gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// TLS cannot be set up.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The operator did not let this wallet in.
    #[error("operator {}: login failed", operator.get())]
    Auth {
        /// Which.
        operator: OperatorIndex,
        /// Why.
        #[source]
        source: AuthError,
    },
    /// The operator answered with an error.
    #[error("operator {}: {} ({:?})", operator.get(), status.message(), status.code())]
    Status {
        /// Which.
        operator: OperatorIndex,
        /// Its answer.
        status: Box<Status>,
    },
    /// The operator sends more than any wallet needs, or never comes to an end.
    #[error("operator {}: its list does not end", operator.get())]
    Endless {
        /// Which.
        operator: OperatorIndex,
    },
}

impl ClientError {
    /// The gRPC code, if an operator answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status { status, .. } => Some(status.code()),
            Self::Auth { source: AuthError::Call(status), .. } => Some(status.code()),
            _ => None,
        }
    }

    /// The operator's stable reason (`google.rpc.ErrorInfo`), if it gave one.
    pub fn reason(&self) -> Option<String> {
        use tonic_types::StatusExt as _;
        match self {
            Self::Status { status, .. } => status.get_details_error_info().map(|info| info.reason),
            _ => None,
        }
    }

    /// The operator could not be reached, or cannot serve now.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.code(), Some(Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled))
    }
}

struct Session {
    token: MetadataValue<tonic::metadata::Ascii>,
    expires: SystemTime,
}

/// One operator.
pub struct Operator {
    index: OperatorIndex,
    identity: PublicKey,
    channel: Channel,
    /// For one call, to the last byte of its answer.
    deadline: Duration,
    session: Mutex<Option<Session>>,
    login: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operator").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Operator {
    pub(crate) fn over(
        index: OperatorIndex,
        identity: PublicKey,
        channel: Channel,
        deadline: Duration,
    ) -> Self {
        let (session, login) = (Mutex::new(None), tokio::sync::Mutex::new(()));
        Self { index, identity, channel, deadline, session, login }
    }

    /// With a session that never ends.
    #[cfg(test)]
    pub(crate) fn let_in(self) -> Self {
        let expires = SystemTime::now() + Duration::from_secs(86_400);
        let session = Session { token: MetadataValue::from_static("Bearer test"), expires };
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        self
    }

    /// Its position.
    pub const fn index(&self) -> OperatorIndex {
        self.index
    }

    /// Longest time of one call.
    pub const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The identity key that the federation file states.
    pub const fn identity(&self) -> &PublicKey {
        &self.identity
    }

    /// Calls the Spark service with a session, which is opened when there is none and once again when the
    /// operator does not know it.
    pub async fn spark<Q, A, F, R>(&self, key: &SigningKey, request: Q, call: F) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Fn(SparkServiceClient<Channel>, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let client = SparkServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        self.with_session(key, request, |request| call(client.clone(), request)).await
    }

    /// Calls the deletion log with a session.
    pub async fn log<Q, A, F, R>(&self, key: &SigningKey, request: Q, call: F) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Fn(DeletionLogClient<Channel>, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let client = DeletionLogClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        self.with_session(key, request, |request| call(client.clone(), request)).await
    }

    /// Calls the service of one-time package keys with a session.
    pub async fn packages<Q, A, F, R>(&self, key: &SigningKey, request: Q, call: F) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Fn(PackageKeysClient<Channel>, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let client = PackageKeysClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        self.with_session(key, request, |request| call(client.clone(), request)).await
    }

    /// Opens a session now, to see whether the operator lets this wallet in.
    pub async fn login(&self, key: &SigningKey) -> Result<(), ClientError> {
        self.token(key).await.map(|_| ())
    }

    async fn with_session<Q, A, F, R>(&self, key: &SigningKey, request: Q, call: F) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Fn(Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let mut renewed = false;
        loop {
            let mut attempt = Request::new(request.clone());
            attempt.metadata_mut().insert("authorization", self.token(key).await?);
            // The channel's own deadline ends with the headers: a body may trickle for ever.
            let answer = tokio::time::timeout(self.deadline, call(attempt)).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no complete answer in time"))) {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if status.code() == Code::Unauthenticated && !renewed => {
                    renewed = true;
                    *self.session.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Err(status) => {
                    return Err(ClientError::Status { operator: self.index, status: Box::new(status) });
                }
            }
        }
    }

    fn current(&self) -> Option<MetadataValue<tonic::metadata::Ascii>> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.as_ref().filter(|s| s.expires > SystemTime::now() + MARGIN).map(|s| s.token.clone())
    }

    async fn token(&self, key: &SigningKey) -> Result<MetadataValue<tonic::metadata::Ascii>, ClientError> {
        if let Some(token) = self.current() {
            return Ok(token);
        }
        // Parallel calls share one login.
        let _guard = self.login.lock().await;
        if let Some(token) = self.current() {
            return Ok(token);
        }
        let refuse = |source| ClientError::Auth { operator: self.index, source };
        let login = authn::login(self.channel.clone(), &self.identity, key);
        let (token, expires) = tokio::time::timeout(self.deadline, login)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no complete answer in time").into()))
            .map_err(refuse)?;
        let mut token: MetadataValue<tonic::metadata::Ascii> =
            format!("Bearer {token}").parse().map_err(|_| refuse(AuthError::Answer("session token")))?;
        token.set_sensitive(true);
        let seconds = u64::try_from(expires).map_err(|_| refuse(AuthError::Answer("expiry")))?;
        // A far expiry must not overflow the clock type; a session is never used for longer than a day.
        let day = SystemTime::now() + Duration::from_secs(86_400);
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).map_or(day, |e| e.min(day));
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Session { token: token.clone(), expires });
        Ok(token)
    }
}

/// All operators of the federation.
#[derive(Debug)]
pub struct Operators {
    all: Vec<Operator>,
    coordinator: usize,
}

impl Operators {
    /// One lazily opened channel per operator.
    pub fn new(config: &Config) -> Result<Self, ClientError> {
        let roots = TrustRoots::from_pem_file(&config.tls.ca)?;
        let identity = match &config.tls.identity {
            Some((certificate, key)) => Some(Identity::from_pem_files(certificate, key)?),
            None => None,
        };
        let deadlines = Deadlines { request: config.deadline, ..Deadlines::default() };
        let mut all = Vec::with_capacity(config.endpoints.len());
        for (endpoint, member) in config.endpoints.iter().zip(config.federation.members()) {
            let tls = ClientTls {
                roots: roots.clone(),
                identity: identity.clone(),
                server_name: endpoint.host.clone(),
                pinned: endpoint.pinned.map(Spki::from_bytes),
            };
            let host = if endpoint.host.contains(':') {
                format!("[{}]", endpoint.host)
            } else {
                endpoint.host.clone()
            };
            let channel = transport::channel(&format!("{host}:{}", endpoint.port), &tls, deadlines)?;
            all.push(Operator::over(member.index, member.identity, channel, config.deadline));
        }
        Ok(Self { all, coordinator: config.coordinator.as_usize() })
    }

    /// Over given operators, the first of which coordinates.
    #[cfg(test)]
    pub(crate) const fn of(all: Vec<Operator>) -> Self {
        Self { all, coordinator: 0 }
    }

    /// All, in index order.
    pub fn all(&self) -> &[Operator] {
        &self.all
    }

    /// The one that coordinates this wallet's requests.
    #[expect(clippy::indexing_slicing, reason = "the configuration is checked against the federation")]
    pub fn coordinator(&self) -> &Operator {
        &self.all[self.coordinator]
    }

    /// The same call to every operator, in parallel; answers in index order.
    pub async fn each<'a, A, E, F, R>(&'a self, call: F) -> Vec<(OperatorIndex, Result<A, E>)>
    where
        F: Fn(&'a Operator) -> R,
        R: Future<Output = Result<A, E>>,
    {
        join_all(self.all.iter().map(|o| {
            let answer = call(o);
            async move { (o.index, answer.await) }
        }))
        .await
    }
}
