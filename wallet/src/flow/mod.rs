//! What a wallet does with the operators. Each flow stores what it sends before it sends it, and verifies what
//! comes back.

mod addresses;
mod anchor;
mod certain;
mod deposit;
mod funding;
mod history;
mod htlc;
mod htlc_exit;
mod invoice;
mod offer;
mod order;
mod package;
mod paging;
mod preimage;
mod query;
mod receive;
mod remember;
mod renew;
mod resume;
mod returned;
mod send;
mod static_deposit;
mod sync;
#[cfg(test)]
mod tests;
mod withdraw;

pub use addresses::Restored;
pub use deposit::ClaimedDeposit;
pub use funding::Funding;
pub use history::{Direction, Entry};
pub use htlc::{HtlcView, SentHtlc};
pub use htlc_exit::HtlcExitStep;
pub use invoice::InvoiceTerms;
pub use receive::{Claimed, Notice};
pub use renew::Renewed;
pub use send::Sent;
pub use static_deposit::{RefundedDeposit, StaticOutput};
pub use sync::{Balance, LeafView};
pub use withdraw::{ExitOffer, Withdrawal};
