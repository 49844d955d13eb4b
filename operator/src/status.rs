//! From refusals inside to gRPC status outside: the only place that builds a [`tonic::Status`].
//!
//! Public wallets act on codes, on `google.rpc.ErrorInfo.reason` and on a few texts, so all three are API:
//! reasons are never renamed, and the texts in [`text`] never change.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

/// `domain` of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "spark.operator";

/// Texts that public wallets search for.
pub mod text {
    /// Wallets synchronise their leaves and try again.
    pub const LEAF_UNAVAILABLE: &str = "leaf is not available to transfer";
    /// Wallets log in again.
    pub const TOKEN_EXPIRED: &str = "token has expired";
    /// Wallets ask for another challenge.
    pub const CHALLENGE_EXPIRED: &str = "challenge expired";
    /// Nothing of the inside leaves the process.
    pub const INTERNAL: &str = "internal error";
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal => $code:ident,)*) => {
        /// Why a call is refused. The names are API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// Every reason, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name in `ErrorInfo.reason`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The gRPC code that goes with it.
            pub const fn code(self) -> Code {
                match self { $(Self::$variant => Code::$code,)* }
            }
        }
    };
}

reasons! {
    /// A field is missing or malformed.
    FieldInvalid = "FIELD_INVALID" => InvalidArgument,
    /// A message is larger than allowed.
    MessageTooLarge = "MESSAGE_TOO_LARGE" => ResourceExhausted,
    /// A rule forbids it; the metadata `rule` names it.
    RuleViolated = "RULE_VIOLATED" => FailedPrecondition,
    /// The leaf is locked, spent, exiting or elsewhere.
    LeafUnavailable = "LEAF_UNAVAILABLE" => FailedPrecondition,
    /// The Spark invoice is paid, or is being paid by another transfer.
    InvoicePaid = "INVOICE_PAID" => FailedPrecondition,
    /// The transfer or its invoice has expired.
    Expired = "EXPIRED" => FailedPrecondition,
    /// The deposit is not confirmed deeply enough.
    DepositUnconfirmed = "DEPOSIT_UNCONFIRMED" => FailedPrecondition,
    /// No output on chain pays this address.
    DepositUnknown = "DEPOSIT_UNKNOWN" => FailedPrecondition,
    /// The output on chain is not what the request says.
    DepositDiffers = "DEPOSIT_DIFFERS" => FailedPrecondition,
    /// The output on chain is spent, or credited to somebody.
    DepositClaimed = "DEPOSIT_CLAIMED" => FailedPrecondition,
    /// The operation is not in a state that allows this.
    InvalidState = "INVALID_STATE" => FailedPrecondition,
    /// The id is in use, undecided, for other content.
    OperationDiffers = "OPERATION_DIFFERS" => Aborted,
    /// The same thing is being worked on.
    OperationInProgress = "OPERATION_IN_PROGRESS" => Aborted,
    /// The key version has moved on.
    StaleVersion = "STALE_VERSION" => Aborted,
    /// The nonce commitments were spent by another package.
    NonceSpent = "NONCE_SPENT" => Aborted,
    /// The id is committed, or the thing is finished.
    AlreadyDone = "DUPLICATE_OPERATION" => AlreadyExists,
    /// The leaf is not known, or not to this caller.
    LeafUnknown = "LEAF_UNKNOWN" => NotFound,
    /// The transfer is not known, or not to this caller.
    TransferUnknown = "TRANSFER_UNKNOWN" => NotFound,
    /// The deposit address is not known, or not to this caller.
    AddressUnknown = "ADDRESS_UNKNOWN" => NotFound,
    /// The operation is not known here.
    OperationUnknown = "OPERATION_UNKNOWN" => NotFound,
    /// No session came with the call.
    SessionMissing = "SESSION_MISSING" => Unauthenticated,
    /// The session is over, or from before a restart.
    SessionExpired = "SESSION_EXPIRED" => Unauthenticated,
    /// The challenge is over, or not ours.
    ChallengeExpired = "CHALLENGE_EXPIRED" => Unauthenticated,
    /// The challenge was answered before.
    ChallengeUsed = "CHALLENGE_USED" => Unauthenticated,
    /// A signature does not verify.
    SignatureInvalid = "SIGNATURE_INVALID" => Unauthenticated,
    /// The session's identity is not the owner.
    NotOwner = "NOT_OWNER" => PermissionDenied,
    /// The peer's certificate is not that of the operator it claims to be.
    PeerForbidden = "PEER_FORBIDDEN" => PermissionDenied,
    /// The nonce commitments are gone: expired, or from before a restart. Fetch fresh ones.
    NonceUnknown = "NONCE_UNKNOWN" => Unavailable,
    /// An attempt was given up; a new one may succeed.
    OperationAborted = "OPERATION_ABORTED" => Unavailable,
    /// Too few operators answer.
    QuorumShort = "QUORUM_SHORT" => Unavailable,
    /// The own signer does not answer.
    SignerUnreachable = "SIGNER_UNREACHABLE" => Unavailable,
    /// The signer refuses all work until a person has looked.
    SignerSealed = "SIGNER_SEALED" => Unavailable,
    /// The database does not answer.
    DatabaseUnreachable = "DATABASE_UNREACHABLE" => Unavailable,
    /// The own bitcoind does not answer, or its tip is old.
    ChainStale = "CHAIN_STALE" => Unavailable,
    /// No unused keyshare is left.
    KeysExhausted = "KEYS_EXHAUSTED" => Unavailable,
    /// No one-time package key is ready.
    PackageKeysExhausted = "PACKAGE_KEYS_EXHAUSTED" => Unavailable,
    /// A package is sealed to a one-time key that does not serve (any more). Reserve fresh ones.
    PackageKey = "PACKAGE_KEY" => Unavailable,
    /// The process is shutting down.
    Draining = "DRAINING" => Unavailable,
    /// Too many calls.
    Quota = "QUOTA" => ResourceExhausted,
    /// The work did not begin in time.
    DeadlineExceeded = "DEADLINE_EXCEEDED" => DeadlineExceeded,
    /// Not offered here.
    Unimplemented = "UNIMPLEMENTED" => Unimplemented,
    /// A defect. The metadata carries a correlation id, the log the cause.
    Internal = "INTERNAL" => Internal,
}

/// A call that is not carried out, as the caller will see it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {text}", reason.name())]
pub struct Refused {
    /// gRPC code; that of the reason unless a flow needs another.
    pub code: Code,
    /// Stable reason.
    pub reason: Reason,
    /// For people, or for wallets that search it.
    pub text: String,
    /// Stable keys with details, for instance `rule`, `field`, `leaf`.
    pub metadata: Vec<(&'static str, String)>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

impl Refused {
    /// A refusal with the code of its reason.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { code: reason.code(), reason, text: text.into(), metadata: Vec::new(), retry_after: None }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// `field` (its path in the request) is not what `expected` says.
    pub fn field(field: impl Into<String>, expected: impl Into<String>) -> Self {
        let (field, expected) = (field.into(), expected.into());
        Self::new(Reason::FieldInvalid, format!("{field}: {expected}")).with("field", field)
    }

    /// A rule forbids it; `rule` is the rule's tag.
    pub fn rule(rule: &'static str, text: impl Into<String>) -> Self {
        Self::new(Reason::RuleViolated, text).with("rule", rule)
    }

    /// The leaf cannot be spent now. Wallets synchronise and try again with others.
    pub fn leaf_unavailable(leaf: impl ToString) -> Self {
        Self::new(Reason::LeafUnavailable, text::LEAF_UNAVAILABLE).with("leaf", leaf)
    }

    /// The session does not belong to the owner of what the call names.
    pub fn not_owner() -> Self {
        Self::new(Reason::NotOwner, "session identity is not the owner")
    }

    /// No session came with a call that needs one.
    pub fn no_session() -> Self {
        Self::new(Reason::SessionMissing, "this call needs a session")
    }

    /// The session is over or unknown: log in again.
    pub fn session_expired() -> Self {
        Self::new(Reason::SessionExpired, text::TOKEN_EXPIRED)
    }

    /// Not offered here.
    pub fn unimplemented(method: &str) -> Self {
        Self::new(Reason::Unimplemented, format!("{method} is not offered by this operator"))
    }

    /// Too many calls against the limit called `limit`.
    pub fn quota(limit: &'static str, retry_after: Duration) -> Self {
        Self::new(Reason::Quota, "too many requests").with("limit", limit).retry_after(retry_after)
    }

    /// A defect: the whole chain of causes goes to the log, the caller gets a correlation id only.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let id = Uuid::new_v4();
        let chain: Vec<String> =
            std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
        tracing::error!(correlation_id = %id, error = chain.join(": "), "internal error");
        Self::new(Reason::Internal, text::INTERNAL).with("correlation_id", id)
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let mut details = ErrorDetails::new();
        if refused.reason == Reason::FieldInvalid {
            let field =
                refused.metadata.iter().find(|(key, _)| *key == "field").map(|(_, value)| value.clone());
            details.add_bad_request_violation(field.unwrap_or_default(), refused.text.clone());
        }
        if refused.reason == Reason::RuleViolated {
            for (_, rule) in refused.metadata.iter().filter(|(key, _)| *key == "rule") {
                details.add_precondition_failure_violation(rule.clone(), DOMAIN, refused.text.clone());
            }
        }
        if let Some(delay) = refused.retry_after {
            details.set_retry_info(Some(delay));
        }
        details.set_error_info(
            refused.reason.name(),
            DOMAIN,
            refused
                .metadata
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect::<std::collections::HashMap<_, _>>(),
        );
        Self::with_error_details(refused.code, refused.text, details)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_upper_snake() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for name in names {
            assert!(name.chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{name}");
        }
    }

    #[test]
    fn table() {
        let cases = [
            (
                Refused::leaf_unavailable("x"),
                Code::FailedPrecondition,
                "LEAF_UNAVAILABLE",
                "not available to transfer",
            ),
            (Refused::session_expired(), Code::Unauthenticated, "SESSION_EXPIRED", "token has expired"),
            (Refused::no_session(), Code::Unauthenticated, "SESSION_MISSING", "session"),
            (Refused::not_owner(), Code::PermissionDenied, "NOT_OWNER", "owner"),
            (
                Refused::field("leaves[0]", "must be a uuid"),
                Code::InvalidArgument,
                "FIELD_INVALID",
                "leaves[0]",
            ),
            (
                Refused::rule("refund.timelock.step", "must fall by 100"),
                Code::FailedPrecondition,
                "RULE_VIOLATED",
                "100",
            ),
            (Refused::unimplemented("m"), Code::Unimplemented, "UNIMPLEMENTED", "not offered"),
            (Refused::quota("per_ip", Duration::from_secs(2)), Code::ResourceExhausted, "QUOTA", "too many"),
            (Refused::new(Reason::AlreadyDone, "done"), Code::AlreadyExists, "DUPLICATE_OPERATION", "done"),
            (Refused::new(Reason::OperationDiffers, "other"), Code::Aborted, "OPERATION_DIFFERS", "other"),
            (Refused::new(Reason::NonceUnknown, "gone"), Code::Unavailable, "NONCE_UNKNOWN", "gone"),
        ];
        for (refused, code, reason, part) in cases {
            let status = Status::from(refused);
            assert_eq!(status.code(), code, "{reason}");
            assert!(status.message().contains(part), "{reason}: {}", status.message());
            let info = status.get_error_details().error_info().cloned().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, DOMAIN));
        }
    }

    #[test]
    fn details_for_machines() {
        let details = Status::from(Refused::field("amount", "positive")).get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "amount");
        let details = Status::from(Refused::quota("per_ip", Duration::from_secs(2))).get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(2)));
        assert_eq!(details.error_info().unwrap().metadata["limit"], "per_ip");
        let details = Status::from(Refused::rule("a.b", "no")).get_error_details();
        assert_eq!(details.precondition_failure().unwrap().violations[0].r#type, "a.b");
    }

    #[test]
    fn internal_errors_stay_inside() {
        let status = Status::from(Refused::internal(&std::io::Error::other("password=hunter2")));
        assert_eq!((status.code(), status.message()), (Code::Internal, "internal error"));
        let info = status.get_error_details().error_info().cloned().unwrap();
        assert!(info.metadata["correlation_id"].parse::<Uuid>().is_ok());
        assert!(!String::from_utf8_lossy(status.details()).contains("hunter2"));
    }
}
