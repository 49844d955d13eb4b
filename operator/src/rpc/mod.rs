//! The public API: `spark.SparkService` and `spark_token.SparkTokenService`.
//!
//! A handler parses within bounds, checks that the session is the identity that the request is about, runs a query or
//! an operation, and answers in the words that deployed wallets expect. Methods that are not offered answer
//! UNIMPLEMENTED. A session alone moves nothing (D18): what an operation may do is decided by its own signatures.

mod backend;
mod commitments;
mod coop_exit;
mod deposit;
mod htlc;
mod input;
mod invoices;
mod nodes;
mod package;
mod page;
mod refusal;
mod service;
mod settings;
mod static_deposit;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod token;
mod transfers;
mod write;

use std::{fmt, sync::Arc};

use secp256k1::PublicKey;
use spark_proto::{
    peer::v1::operation::Request,
    signer::v1::{
        CommitNoncesRequest, CommitNoncesResponse, RefundStaticDepositRequest, RefundStaticDepositResponse,
        StaticRefund,
    },
    spark::spark_service_server::SparkServiceServer,
    spark_token::spark_token_service_server::SparkTokenServiceServer,
};
use spark_rules::{
    address::Network,
    federation::Federation,
    ids::{LeafId, OperatorIndex},
};
use tonic::service::Routes;

use crate::{
    convert::{ConvertError, Converter},
    db::{Db, DbError, address::AddressRow, htlc::HtlcRow},
    events::Events,
    status::{Reason, Refused},
};

/// The operation engine as handlers use it.
#[tonic::async_trait]
pub trait Operations: Send + Sync + 'static {
    /// Runs an operation that `requester`'s session asks for, or attaches to the run of the same request. Returns
    /// when every operator has applied it (with q < n: the commit quorum), so that success may be told (D7).
    async fn run(&self, request: Request, requester: &PublicKey) -> Result<(), Refused>;

    /// Settles a pending transfer by its preimage, or goes on settling it. Returns when every operator has.
    async fn provide(&self, pending: &HtlcRow, preimage: &[u8; 32]) -> Result<(), Refused>;
}

/// Nonces of any operator's signer: the own one directly, others through their operators.
#[tonic::async_trait]
pub trait Nonces: Send + Sync + 'static {
    /// Fresh commitments of `operator`.
    async fn commit(
        &self,
        operator: OperatorIndex,
        request: CommitNoncesRequest,
    ) -> Result<CommitNoncesResponse, Refused>;
}

/// Deposit addresses, bound by every operator's signer.
#[tonic::async_trait]
pub trait DepositAddresses: Send + Sync + 'static {
    /// The address of (leaf id, user key, identity), complete with every operator's statement. The same three get
    /// the same address; a leaf id that is bound to others is refused.
    async fn generate(
        &self,
        leaf: LeafId,
        user_key: &PublicKey,
        identity: &PublicKey,
        network: Network,
    ) -> Result<AddressRow, Refused>;

    /// The static address of an identity, complete; the same until it is rotated.
    async fn generate_static(
        &self,
        user_key: &PublicKey,
        identity: &PublicKey,
        network: Network,
    ) -> Result<AddressRow, Refused>;

    /// Another static address in its place: (new, former).
    async fn rotate_static(
        &self,
        user_key: &PublicKey,
        identity: &PublicKey,
        network: Network,
    ) -> Result<(AddressRow, AddressRow), Refused>;
}

/// Refunds of static deposits.
#[tonic::async_trait]
pub trait Refunds: Send + Sync + 'static {
    /// The owner's statement, and whether the output is there, deep enough, and nobody else's.
    async fn check(&self, address: &AddressRow, refund: &StaticRefund) -> Result<(), Refused>;

    /// The share of `operator`'s signer, after the same checks by its operator.
    async fn share(
        &self,
        operator: OperatorIndex,
        request: RefundStaticDepositRequest,
    ) -> Result<RefundStaticDepositResponse, Refused>;
}

/// What the handlers work with.
#[derive(Clone)]
pub struct Parts {
    /// Who the operators are.
    pub federation: Arc<Federation>,
    /// Which of them this is.
    pub own: OperatorIndex,
    /// The network served.
    pub network: Network,
    /// Own tables.
    pub db: Db,
    /// Event streams.
    pub events: Events,
    /// Engine.
    pub operations: Arc<dyn Operations>,
    /// Signers.
    pub nonces: Arc<dyn Nonces>,
    /// Deposit addresses.
    pub addresses: Arc<dyn DepositAddresses>,
    /// Static deposits on their way back.
    pub refunds: Arc<dyn Refunds>,
    /// Whether transfers that a preimage completes are begun here.
    pub htlc: bool,
    /// Whether cooperative exits are begun here.
    pub coop_exit: bool,
    /// Whether identities are open to everybody unless their owners close them.
    pub open_reads: bool,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("own", &self.own)
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// The handlers. Clones share everything.
#[derive(Debug, Clone)]
pub struct Api {
    parts: Parts,
    converter: Converter,
}

impl Api {
    /// Handlers over these parts.
    pub fn new(parts: Parts) -> Self {
        let converter = Converter::new(&parts.federation);
        Self { parts, converter }
    }

    /// Both public services, to be put behind the checks of the public edge.
    pub fn routes(self) -> Routes {
        Routes::new(SparkServiceServer::new(self.clone())).add_service(SparkTokenServiceServer::new(self))
    }
}

impl From<DbError> for Refused {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Unavailable(_) | DbError::Serialization => {
                tracing::warn!(%error, "database");
                Self::new(Reason::DatabaseUnreachable, "the operator's database does not answer")
            }
            error => Self::internal(&error),
        }
    }
}

impl From<ConvertError> for Refused {
    fn from(error: ConvertError) -> Self {
        match error {
            ConvertError::Db(error) => error.into(),
            error => Self::internal(&error),
        }
    }
}
