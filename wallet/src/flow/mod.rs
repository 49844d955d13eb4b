//! What a wallet does with the operators. Each flow stores what it sends before it sends it, and verifies what
//! comes back.

mod deposit;
mod history;
mod query;
mod receive;
mod renew;
mod send;
mod sync;

pub use deposit::{ClaimedDeposit, Funding};
pub use history::{Direction, Entry};
pub use receive::{Claimed, Notice};
pub use renew::Renewed;
pub use send::Sent;
pub use sync::{Balance, LeafView};
