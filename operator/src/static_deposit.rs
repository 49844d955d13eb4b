//! Refunds of static deposits (D17, D6 (d)): each operator looks at its own view of the chain and its own claims, and
//! then asks its signer, which believes the owner's statement and nothing else.

use std::time::Duration;

use bitcoin::hashes::Hash as _;
use spark_proto::signer::v1 as wire;
use spark_rules::{
    address::Network,
    ids::{KeyshareId, OperatorIndex},
    package,
    point::{self, PointError},
    tx::{Spend, StaticRefund, TemplateError},
};
use tokio::sync::watch;
use tonic::Status;

use crate::{
    call::CallError,
    chain::ChainStatus,
    db::{
        Db, DbError,
        address::{self, AddressRow},
        chain, query_utxo, static_deposit,
    },
    peer::Signers,
};

/// Why a refund gets no share here.
#[derive(Debug, thiserror::Error)]
pub enum RefundError {
    /// A field has no legal value.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// Not a static address, or not known here.
    #[error("no such static deposit address")]
    Address,
    /// No such output of the address.
    #[error("no such output of the address is known")]
    Output,
    /// Not deep enough in one's own chain.
    #[error("the deposit is not confirmed deeply enough")]
    Unconfirmed,
    /// Spent in a block, or credited by a provider.
    #[error("the deposit is spent or credited")]
    Claimed,
    /// One's own view of the chain is old.
    #[error("{0}")]
    ChainStale(String),
    /// The transaction breaks its template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The owner did not sign this.
    #[error(transparent)]
    Statement(#[from] package::PackageError),
    /// A stored key.
    #[error(transparent)]
    Point(#[from] PointError),
    /// Signer or peer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Database.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<RefundError> for Status {
    fn from(error: RefundError) -> Self {
        let text = error.to_string();
        match error {
            RefundError::Malformed(_) | RefundError::Point(_) => Self::invalid_argument(text),
            RefundError::Address | RefundError::Output => Self::not_found(text),
            RefundError::Unconfirmed
            | RefundError::Claimed
            | RefundError::Template(_)
            | RefundError::Statement(_) => Self::failed_precondition(text),
            RefundError::ChainStale(_) => Self::unavailable(text),
            RefundError::Call(error) => crate::peer::call_status(error),
            RefundError::Db(_) => {
                tracing::error!(%text, "database");
                Self::unavailable("database")
            }
        }
    }
}

/// Refunds of static deposits; clones share everything.
#[derive(Debug, Clone)]
pub struct StaticDeposits {
    db: Db,
    network: Network,
    signers: Signers,
    chain: watch::Receiver<ChainStatus>,
    max_tip_age: Duration,
}

/// The output that is to go back.
fn spend(refund: &wire::StaticRefund) -> Result<Spend, RefundError> {
    Spend::of_funding(&refund.funding_tx, refund.vout).ok_or(RefundError::Malformed("funding_tx"))
}

impl StaticDeposits {
    /// Over one database, the members' signers and a view of the chain that counts while it is younger than
    /// `max_tip_age`.
    pub const fn new(
        db: Db,
        network: Network,
        signers: Signers,
        chain: watch::Receiver<ChainStatus>,
        max_tip_age: Duration,
    ) -> Self {
        Self { db, network, signers, chain, max_tip_age }
    }

    /// The share of any member: the own signer's after the own checks, another's after those of its operator.
    pub async fn share(
        &self,
        operator: OperatorIndex,
        request: wire::RefundStaticDepositRequest,
    ) -> Result<wire::RefundStaticDepositResponse, RefundError> {
        if operator == self.signers.own_index() {
            self.on_refund(request).await
        } else {
            Ok(self.signers.peer(operator)?.refund_static_deposit(request).await?)
        }
    }

    /// Asks the own signer for its share, if the output is there, deep enough, and nobody else's.
    pub(crate) async fn on_refund(
        &self,
        request: wire::RefundStaticDepositRequest,
    ) -> Result<wire::RefundStaticDepositResponse, RefundError> {
        let refund = request.refund.as_ref().ok_or(RefundError::Malformed("refund"))?;
        let id = KeyshareId::parse(&refund.keyshare_id).map_err(|_| RefundError::Malformed("keyshare_id"))?;
        let row = address::by_keyshare(self.db.pool(), id.uuid()).await?;
        let row = row.filter(|row| row.is_static).ok_or(RefundError::Address)?;
        self.check(&row, refund).await?;
        let txid = spend(refund)?.outpoint.txid;
        // Before any share leaves: what the owner can spend, nobody here credits.
        if !static_deposit::claim_for_owner(&self.db, txid.as_byte_array(), refund.vout.into()).await? {
            return Err(RefundError::Claimed);
        }
        Ok(self.signers.own().refund_static_deposit(request).await?)
    }

    /// The owner's statement, and how the output stands in the own view of the chain.
    pub async fn check(&self, row: &AddressRow, refund: &wire::StaticRefund) -> Result<(), RefundError> {
        let spend = spend(refund)?;
        if spend.txout.script_pubkey.as_bytes() != row.script {
            return Err(RefundError::Output);
        }
        let txid = spend.outpoint.txid.to_byte_array();
        let wanted = StaticRefund::check(&refund.refund_tx, spend, self.network)?;
        let owner = point::parse("identity", &row.identity)?;
        package::verify_static_refund(self.network, &wanted, &refund.user_signature, &owner)?;
        self.chain.borrow().fresh(self.max_tip_age).map_err(RefundError::ChainStale)?;
        let (pool, vout) = (self.db.pool(), i64::from(refund.vout));
        chain::deposit(pool, &txid, vout).await?.ok_or(RefundError::Output)?;
        match query_utxo::standing(pool, &txid, vout, self.db.deposit_depth()).await? {
            Some((_, true)) => Err(RefundError::Claimed),
            Some((true, false)) => match static_deposit::claimant(pool, &txid, vout).await?.as_deref() {
                Some("PROVIDER") => Err(RefundError::Claimed),
                _ => Ok(()),
            },
            Some((false, false)) | None => Err(RefundError::Unconfirmed),
        }
    }
}
