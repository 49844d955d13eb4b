//! What operators say, checked. Everything here is pure: it takes messages and gives verdicts.

mod agree;
mod deposit;
mod lineage;
mod node;
mod refunds;
mod static_deposit;
mod transfer;

pub use agree::{Agreement, Disagreement, Verdict, compare};
pub use deposit::{DepositAddress, deposit_address};
pub use lineage::{Lineage, MAX_DEPTH};
pub use node::Node;
pub use refunds::{To, check_claimed, check_refunds, intermediate_refunds};
pub use static_deposit::static_output;
pub use transfer::{Incoming, incoming};

#[cfg(test)]
mod tests;

use spark_rules::{
    ids::IdError,
    package::PackageError,
    point::PointError,
    tx::{SighashError, TemplateError, TimelockError},
};

/// A statement of an operator that proofs do not support.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A field is missing or malformed.
    #[error("{0} is missing or malformed")]
    Field(&'static str),
    /// A key is no point.
    #[error(transparent)]
    Point(#[from] PointError),
    /// An id is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// P ≠ S + D: the leaf is not this wallet's.
    #[error("the operators' key and this wallet's key do not make the leaf's key")]
    KeySum,
    /// The address is not P2TR of the verifying key on this network.
    #[error("the address does not belong to its key")]
    Address,
    /// An operator has not vouched for the address.
    #[error("operator {0} has not signed the address")]
    AddressSignature(u16),
    /// The operators have not proven that they hold their key.
    #[error("proof of possession is invalid")]
    Possession,
    /// A transaction has another shape than its template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A transaction is not validly signed.
    #[error("{what}: {source}")]
    Signature {
        /// Which transaction.
        what: &'static str,
        /// What is wrong.
        source: SighashError,
    },
    /// A timelock is outside of what templates use.
    #[error(transparent)]
    Timelock(#[from] TimelockError),
    /// The chain of parents is broken.
    #[error("chain of parents: {0}")]
    Lineage(&'static str),
    /// A user statement is not signed by whom it should be.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// What the sender left does not open the leaf (D23).
    #[error("paid, not claimable, exit available: {0}")]
    Garbage(&'static str),
    /// The leaf is worth something else than said.
    #[error("value of the leaf is not that of its transaction")]
    Value,
}
