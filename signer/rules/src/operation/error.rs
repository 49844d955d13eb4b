//! Refusals.

use crate::{
    feldman::FeldmanError,
    frost::{PackageError, ShareError},
    ids::LeafId,
    leaf::LeafError,
    package::PackageError as ClientPackageError,
    point::PointError,
    tx::TemplateError,
};

/// Why an operation is refused. [`OperationError::reason`] is stable.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OperationError {
    /// A field is missing or has no legal value.
    #[error("{0} is missing or malformed")]
    Malformed(&'static str),
    /// Another federation.
    #[error("operation names federation epoch {actual}, not {expected}")]
    Epoch {
        /// Ours.
        expected: u64,
        /// Found.
        actual: u64,
    },
    /// More than is done at once.
    #[error("{what}: at most {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        most: usize,
    },
    /// Not in one's records.
    #[error("{0} is unknown")]
    Unknown(&'static str),
    /// The leaf is not in the state that the operation needs.
    #[error("leaf {0} is not available to transfer")]
    Unavailable(LeafId),
    /// The requester does not own the leaf.
    #[error("leaf {0} is not owned by the requester")]
    NotOwner(LeafId),
    /// A static deposit address makes no leaf.
    #[error("a static deposit address makes no leaf")]
    StaticAddress,
    /// A leaf twice, a transaction for a leaf that is not part, or one missing.
    #[error("transactions of leaf {0} are incomplete, doubled or out of place")]
    Incomplete(LeafId),
    /// A signing key that is not the leaf's.
    #[error("signing key for leaf {0} is not the expected one")]
    SigningKey(LeafId),
    /// All inputs must name the same operators.
    #[error("signing commitments must name one set of operators")]
    Named,
    /// One commitment in two places.
    #[error("a signing commitment is used twice")]
    NonceTwice,
    /// A feature of the wire that this operator does not serve.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The Spark invoice is none, or does not admit this payment.
    #[error("spark invoice: {0}")]
    Invoice(&'static str),
    /// Too late: the transfer or the invoice has expired.
    #[error("{0} has expired")]
    Expired(&'static str),
    /// A dealer's part of a refresh is none of this session, incomplete, or not signed by it.
    #[error("operator {0} dealt something else than this refresh asks for")]
    Deal(u16),
    /// The opened packages do not belong to the operation.
    #[error("opened package does not fit the operation: {0}")]
    Opened(&'static str),
    /// The number of final signatures is wrong, or one is invalid.
    #[error("final signature of job {0} is missing or invalid")]
    Final(usize),
    /// A transaction breaks its template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The leaf does not admit it.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// A user's signature share is invalid.
    #[error("user signature share of job {job} is invalid: {source}")]
    UserShare {
        /// Index of the job.
        job: usize,
        /// Why.
        source: ShareError,
    },
    /// The signing package cannot be used.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The owner's signature over the package.
    #[error(transparent)]
    Signature(#[from] ClientPackageError),
    /// A point of a request.
    #[error(transparent)]
    Point(#[from] PointError),
    /// Feldman commitments.
    #[error(transparent)]
    Feldman(#[from] FeldmanError),
}

impl OperationError {
    /// Stable reason for votes, errors and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Point(_) => "FIELD_INVALID",
            Self::Epoch { .. } => "FEDERATION_EPOCH",
            Self::TooMany { .. } => "TOO_MANY",
            Self::Unknown(_) => "UNKNOWN",
            Self::Unavailable(_) => "LEAF_UNAVAILABLE",
            Self::NotOwner(_) => "NOT_OWNER",
            Self::StaticAddress => "STATIC_ADDRESS",
            Self::Incomplete(_) => "PACKAGE_INCOMPLETE",
            Self::SigningKey(_) => "SIGNING_KEY",
            Self::Named => "SIGNER_SET",
            Self::NonceTwice => "NONCE_TWICE",
            Self::Unsupported(_) => "UNSUPPORTED",
            Self::Invoice(_) => "INVOICE_INVALID",
            Self::Expired(_) => "EXPIRED",
            Self::Deal(_) => "REFRESH_DEAL",
            Self::Opened(_) => "PACKAGE_CONTENT",
            Self::Final(_) => "FINAL_SIGNATURE",
            Self::Template(_) | Self::Leaf(LeafError::Template(_)) => "TEMPLATE",
            Self::Leaf(_) => "LEAF_STATE",
            Self::UserShare { .. } => "USER_SHARE",
            Self::Package(_) => "SIGNING_PACKAGE",
            Self::Signature(_) => "PACKAGE_SIGNATURE",
            Self::Feldman(_) => "TWEAK_PROOF",
        }
    }
}
