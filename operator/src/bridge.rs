//! The engine, the signers and the deposit addresses, as the public handlers use them.

use secp256k1::PublicKey;
use spark_proto::{
    peer::v1::operation::Request,
    signer::v1::{CommitNoncesRequest, CommitNoncesResponse},
};
use spark_rules::{
    address::Network,
    ids::{LeafId, OperatorIndex},
    operation::OperationError,
    vote::Kind,
};

use crate::{
    call::CallError,
    db::address::AddressRow,
    deposit_address::{AddressError, DepositAddresses},
    op::{Engine, EngineError, Outcome, Refusal},
    peer::Signers,
    rpc,
    status::{Reason, Refused},
};

#[tonic::async_trait]
impl rpc::Operations for Engine {
    async fn run(&self, request: Request, requester: &PublicKey) -> Result<(), Refused> {
        match Self::run(self, request, requester).await {
            Ok(Outcome::Applied(_)) => Ok(()),
            Ok(Outcome::Invalid(error)) => Err(invalid(&error)),
            Ok(Outcome::Refused(refusal)) => Err(refused(&refusal)),
            Ok(Outcome::NotRequester(_)) => Err(Refused::not_owner()),
            Ok(Outcome::Conflict(id)) => {
                Err(Refused::new(Reason::OperationDiffers, "another request under this id is undecided")
                    .with("operation", id))
            }
            Ok(Outcome::Exists(id)) => {
                Err(Refused::new(Reason::AlreadyDone, "another request under this id was carried out")
                    .with("operation", id))
            }
            Ok(Outcome::Undecided(id)) => Err(Refused::new(
                Reason::QuorumShort,
                "not yet carried out by all operators; send the same request again",
            )
            .with("operation", id)),
            Err(error) => Err(failed(&error)),
        }
    }
}

/// A rule of the request, before anything was written.
fn invalid(error: &OperationError) -> Refused {
    match error {
        OperationError::Malformed(field) => Refused::field(*field, "is missing or malformed"),
        OperationError::Point(_) => Refused::new(Reason::FieldInvalid, error.to_string()),
        OperationError::Unavailable(leaf) => Refused::leaf_unavailable(leaf),
        OperationError::NotOwner(_) => Refused::not_owner(),
        OperationError::Unknown("transfer") => Refused::new(Reason::TransferUnknown, error.to_string()),
        OperationError::Unknown("deposit address") => Refused::new(Reason::AddressUnknown, error.to_string()),
        OperationError::Unknown(_) => Refused::new(Reason::LeafUnknown, error.to_string()),
        _ => Refused::rule(error.reason(), error.to_string()),
    }
}

/// An attempt that ended by a proof of abort, or never began. Public wallets then fetch fresh commitments (D7).
fn refused(refusal: &Refusal) -> Refused {
    match (refusal.kind, refusal.reason.as_str()) {
        (Kind::Send, _) => Refused::leaf_unavailable(refusal.id).with("cause", &refusal.reason),
        (_, "LEAF_UNAVAILABLE") if refusal.kind == Kind::Deposit => {
            Refused::new(Reason::AlreadyDone, "the output is already used").with("operation", refusal.id)
        }
        _ => Refused::new(
            Reason::OperationAborted,
            "operators ended the attempt; try again with fresh commitments",
        )
        .with("cause", &refusal.reason),
    }
}

fn failed(error: &EngineError) -> Refused {
    tracing::error!(%error, "operation");
    match error {
        EngineError::Db(_) => Refused::new(Reason::DatabaseUnreachable, "database does not answer"),
        EngineError::Call(_) => Refused::new(Reason::SignerUnreachable, "signer does not answer"),
        _ => Refused::new(Reason::OperationAborted, "operation did not run"),
    }
}

#[tonic::async_trait]
impl rpc::Nonces for Signers {
    async fn commit(
        &self,
        operator: OperatorIndex,
        request: CommitNoncesRequest,
    ) -> Result<CommitNoncesResponse, Refused> {
        self.commit_nonces(operator, request).await.map_err(|error| match error {
            CallError::Status(status) if status.code() == tonic::Code::ResourceExhausted => {
                Refused::new(Reason::Quota, status.message())
            }
            error => {
                tracing::warn!(operator = operator.get(), %error, "no nonces");
                Refused::new(Reason::SignerUnreachable, "an operator's signer does not answer")
            }
        })
    }
}

#[tonic::async_trait]
impl rpc::DepositAddresses for DepositAddresses {
    async fn generate(
        &self,
        leaf: LeafId,
        user_key: &PublicKey,
        identity: &PublicKey,
    ) -> Result<AddressRow, Refused> {
        self.issue(leaf, identity, user_key, self.network()).await.map_err(|error| {
            let text = error.to_string();
            match error {
                AddressError::PoolEmpty => Refused::new(Reason::KeysExhausted, text),
                AddressError::LeafIdTaken => Refused::field("leaf_id", "belongs to another request"),
                AddressError::Network => Refused::field("network", "is not this federation's"),
                AddressError::Point(_) => Refused::new(Reason::FieldInvalid, text),
                AddressError::Db(_) => Refused::new(Reason::DatabaseUnreachable, "database does not answer"),
                AddressError::Call(_) => {
                    Refused::new(Reason::QuorumShort, "an operator's signer does not answer")
                }
                AddressError::Answer { .. } | AddressError::Package(_) | AddressError::Aggregate(_) => {
                    tracing::error!(%text, "deposit address");
                    Refused::new(Reason::QuorumShort, "operators disagree about the address")
                }
            }
        })
    }
}

impl DepositAddresses {
    fn network(&self) -> Network {
        match self.federation().network() {
            bitcoin::Network::Bitcoin => Network::Mainnet,
            bitcoin::Network::Regtest => Network::Regtest,
            bitcoin::Network::Signet => Network::Signet,
            bitcoin::Network::Testnet | bitcoin::Network::Testnet4 => Network::Testnet,
        }
    }
}
