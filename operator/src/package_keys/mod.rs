//! One-time keys for packages (D14): a stock of what the own signer made, given to wallets that ask, one for each package.
//!
//! Who has which key stands in Postgres. What a key is used for decides the signer: a table that was lost or restored
//! may give a key twice, and then the second package is refused.

mod service;
mod stock;

pub use service::PackageKeyService;
pub use stock::{Stock, StockError};

/// How long a reserved key may be used: as long as nonces live, and a little more.
const RESERVED_SECONDS: i64 = 15 * 60;
/// How much later it is destroyed: a package may be on its way.
const GRACE_SECONDS: i64 = 60;
/// Most keys that one identity holds unused.
const MOST_HELD: i64 = 128;

/// Free keys that can be given now.
pub async fn available(db: &crate::db::Db) -> Result<i64, crate::db::DbError> {
    crate::db::package_key::available(db.pool(), RESERVED_SECONDS).await
}
