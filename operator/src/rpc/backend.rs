//! The engine, the signers and the address issuer as the handlers' parts, and their failures as refusals.

use secp256k1::PublicKey;
use spark_proto::{
    peer::v1::operation::Request,
    signer::v1::{
        CommitNoncesRequest, CommitNoncesResponse, RefundStaticDepositRequest, RefundStaticDepositResponse,
        StaticRefund,
    },
};
use spark_rules::{
    address::Network,
    ids::{LeafId, OperatorIndex},
    operation::OperationError,
};
use tonic::Code;

use super::{DepositAddresses, Nonces, Operations, Refunds};
use crate::{
    call::CallError,
    db::{address::AddressRow, htlc::HtlcRow},
    deposit_address::{self, AddressError},
    op::{Engine, EngineError, INVOICE_PAID, Outcome, Provided},
    peer::Signers,
    static_deposit::{RefundError, StaticDeposits},
    status::{Reason, Refused},
};

#[tonic::async_trait]
impl Operations for Engine {
    async fn run(&self, request: Request, requester: &PublicKey) -> Result<(), Refused> {
        match Self::run(self, request, requester).await? {
            Outcome::Applied(_) => Ok(()),
            Outcome::Invalid(error) => Err(of_rule(&error)),
            Outcome::Refused(refusal) => Err(of_vote(&refusal.reason)),
            Outcome::NotRequester(_) => Err(Refused::not_owner()),
            Outcome::Conflict(id) => {
                Err(Refused::new(Reason::OperationDiffers, "another request under this id is being decided")
                    .with("operation", id))
            }
            Outcome::Exists(id) => {
                Err(Refused::new(Reason::AlreadyDone, "another request under this id is done")
                    .with("operation", id))
            }
            Outcome::Undecided(id) => {
                Err(Refused::new(Reason::QuorumShort, "not decided in time; send the same request again")
                    .with("operation", id))
            }
        }
    }

    async fn provide(&self, pending: &HtlcRow, preimage: &[u8; 32]) -> Result<(), Refused> {
        match Self::provide(self, pending, preimage).await? {
            Provided::Settled => Ok(()),
            Provided::Expired => Err(Refused::new(
                Reason::Expired,
                "the transfer has expired: its leaves go back to the sender",
            )),
            Provided::Undecided => {
                Err(Refused::new(Reason::QuorumShort, "not settled in time; provide the preimage again"))
            }
        }
    }
}

#[tonic::async_trait]
impl Nonces for Signers {
    async fn commit(
        &self,
        operator: OperatorIndex,
        request: CommitNoncesRequest,
    ) -> Result<CommitNoncesResponse, Refused> {
        self.commit_nonces(operator, request).await.map_err(|error| match &error {
            CallError::Status(status) if status.code() == Code::ResourceExhausted => {
                Refused::new(Reason::Quota, "too many open nonce commitments")
            }
            _ => of_call(&error),
        })
    }
}

#[tonic::async_trait]
impl DepositAddresses for deposit_address::DepositAddresses {
    async fn generate(
        &self,
        leaf: LeafId,
        user_key: &PublicKey,
        identity: &PublicKey,
        network: Network,
    ) -> Result<AddressRow, Refused> {
        Ok(self.issue(leaf, identity, user_key, network).await?)
    }

    async fn generate_static(
        &self,
        user_key: &PublicKey,
        identity: &PublicKey,
        network: Network,
    ) -> Result<AddressRow, Refused> {
        Ok(self.issue_static(identity, user_key, network).await?)
    }

    async fn rotate_static(
        &self,
        user_key: &PublicKey,
        identity: &PublicKey,
        network: Network,
    ) -> Result<(AddressRow, AddressRow), Refused> {
        Ok(Self::rotate_static(self, identity, user_key, network).await?)
    }
}

#[tonic::async_trait]
impl Refunds for StaticDeposits {
    async fn check(&self, address: &AddressRow, refund: &StaticRefund) -> Result<(), Refused> {
        Ok(Self::check(self, address, refund).await?)
    }

    async fn share(
        &self,
        operator: OperatorIndex,
        request: RefundStaticDepositRequest,
    ) -> Result<RefundStaticDepositResponse, Refused> {
        Ok(Self::share(self, operator, request).await?)
    }
}

impl From<RefundError> for Refused {
    fn from(error: RefundError) -> Self {
        let text = error.to_string();
        match error {
            RefundError::Malformed(field) => Self::field(field, "is malformed"),
            RefundError::Address | RefundError::Output => Self::new(Reason::DepositUnknown, text),
            RefundError::Unconfirmed => Self::new(Reason::DepositUnconfirmed, text),
            RefundError::Claimed => Self::new(Reason::DepositClaimed, text),
            RefundError::ChainStale(why) => Self::new(Reason::ChainStale, why),
            RefundError::Template(error) => Self::rule("TEMPLATE", text).with("tag", error.rule.tag()),
            RefundError::Statement(_) => Self::rule("static-refund.signature", text),
            RefundError::Point(error) => Self::internal(&error),
            RefundError::Call(error) => match &error {
                // Held for somebody else, in the own signer's ledger.
                CallError::Status(status) if status.message().contains("is held by") => {
                    Self::new(Reason::DepositClaimed, "the deposit is spent or credited")
                }
                _ => of_call(&error),
            },
            RefundError::Db(error) => error.into(),
        }
    }
}

impl From<EngineError> for Refused {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Db(error) => error.into(),
            EngineError::Call(error) => of_call(&error),
            EngineError::ChainStale(why) => Refused::new(Reason::ChainStale, why),
            EngineError::Operation(error) => of_rule(&error),
            error => Self::internal(&error),
        }
    }
}

impl From<AddressError> for Refused {
    fn from(error: AddressError) -> Self {
        match error {
            AddressError::PoolEmpty => {
                Self::new(Reason::KeysExhausted, "no unused keyshare; try again later")
            }
            error @ (AddressError::TooManyUnused | AddressError::TooManyStatic) => {
                Self::new(Reason::Quota, error.to_string())
            }
            AddressError::LeafIdTaken => Self::field("leaf_id", "is taken"),
            error @ AddressError::OtherKey => Self::field("signing_public_key", error.to_string()),
            error @ AddressError::NoStatic => Self::new(Reason::AddressUnknown, error.to_string()),
            AddressError::Network => Self::field("network", "is not this operator's"),
            error @ AddressError::Answer { .. } => {
                tracing::warn!(%error, "deposit address");
                Self::new(Reason::QuorumShort, "an operator's answer does not fit; try again later")
            }
            error => {
                tracing::warn!(%error, "deposit address");
                Self::new(Reason::QuorumShort, "not every operator answers; try again later")
            }
        }
    }
}

/// A request that one's own records refuse.
fn of_rule(error: &OperationError) -> Refused {
    let text = error.to_string();
    match error {
        OperationError::Malformed(field) => Refused::field(*field, text),
        OperationError::Point(point) => Refused::field(point.0, text),
        OperationError::TooMany { what, .. } => Refused::field(*what, text),
        OperationError::Unavailable(leaf) => Refused::leaf_unavailable(leaf),
        OperationError::NotOwner(leaf) => Refused::new(Reason::NotOwner, text).with("leaf", leaf),
        OperationError::Unknown(_) => Refused::new(Reason::OperationUnknown, text),
        OperationError::Unsupported(_) => Refused::new(Reason::Unimplemented, text),
        OperationError::Expired(_) => Refused::new(Reason::Expired, text),
        OperationError::Invoice(_) => Refused::rule("invoice", text),
        OperationError::Signature(_) => Refused::rule("package.signature", text),
        error => Refused::rule(error.reason(), text),
    }
}

/// An attempt that the operators gave up: the first reason among their votes.
fn of_vote(reason: &str) -> Refused {
    match reason {
        "LEAF_UNAVAILABLE" | "MATURITY_USED" => {
            Refused::new(Reason::LeafUnavailable, crate::status::text::LEAF_UNAVAILABLE).with("cause", reason)
        }
        INVOICE_PAID => Refused::new(Reason::InvoicePaid, "the invoice is paid, or is being paid"),
        "EXPIRY_HEIGHT" => {
            Refused::new(Reason::OperationAborted, "operators see different heights; try again")
        }
        "HTLC_NOT_OFFERED" => {
            Refused::new(Reason::Unimplemented, "an operator takes no part in transfers for a preimage")
        }
        "EXIT_NOT_OFFERED" => {
            Refused::new(Reason::Unimplemented, "an operator takes no part in cooperative exits")
        }
        "EXPIRED" => Refused::new(Reason::Expired, "the transfer or its invoice has expired"),
        "NONCE_UNKNOWN" => Refused::new(Reason::NonceUnknown, "nonce commitments are gone; fetch fresh ones"),
        "PACKAGE_KEY" => {
            Refused::new(Reason::PackageKey, "a one-time package key does not serve; reserve fresh ones")
        }
        "TEMPLATE" | "PACKAGE_CONTENT" | "PACKAGE_SIGNATURE" | "PACKAGE_INCOMPLETE" | "TWEAK_PROOF"
        | "USER_SHARE" | "SIGNING_PACKAGE" | "SIGNING_KEY" | "SIGNER_SET" | "NOT_OWNER" | "FIELD_INVALID"
        | "NONCE_TWICE" | "INVOICE_INVALID" | "EXIT_DEPTH" => {
            Refused::new(Reason::RuleViolated, "the operators refuse the request").with("cause", reason)
        }
        _ => Refused::new(
            Reason::OperationAborted,
            "the attempt was given up; try again with fresh commitments",
        )
        .with("cause", reason),
    }
}

fn of_call(error: &CallError) -> Refused {
    tracing::warn!(%error, "signer or peer");
    Refused::new(Reason::SignerUnreachable, "an operator or its signer does not answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_become_reasons_that_wallets_act_on() {
        let cases = [
            ("LEAF_UNAVAILABLE", Reason::LeafUnavailable),
            ("NONCE_UNKNOWN", Reason::NonceUnknown),
            ("PACKAGE_KEY", Reason::PackageKey),
            ("TEMPLATE", Reason::RuleViolated),
            ("INVOICE_PAID", Reason::InvoicePaid),
            ("EXPIRED", Reason::Expired),
            ("HTLC_NOT_OFFERED", Reason::Unimplemented),
            ("EXIT_NOT_OFFERED", Reason::Unimplemented),
            ("EXIT_DEPTH", Reason::RuleViolated),
            ("PEER_UNREACHABLE", Reason::OperationAborted),
            ("", Reason::OperationAborted),
        ];
        for (reason, expected) in cases {
            assert_eq!(of_vote(reason).reason, expected, "{reason}");
        }
    }

    #[test]
    fn rules_become_typed_refusals() {
        let leaf = LeafId::from_bytes([1; 16]);
        assert_eq!(of_rule(&OperationError::Unavailable(leaf)).text, crate::status::text::LEAF_UNAVAILABLE);
        assert_eq!(of_rule(&OperationError::Malformed("raw_tx")).reason, Reason::FieldInvalid);
        assert!(of_rule(&OperationError::NotOwner(leaf)).text.contains("not owned by"));
        assert_eq!(of_rule(&OperationError::Named).reason, Reason::RuleViolated);
    }
}
