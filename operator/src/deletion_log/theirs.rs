use spark_proto::peer::v1::Receipt;
use spark_rules::ids::LeafId;

use crate::{
    db::{Db, leaf},
    status::Refused,
};

/// Which receipts of a leaf an identity may see: what became of it afterwards is for its later owners only (D16).
#[derive(Debug, Clone, Copy)]
pub(super) struct Theirs {
    last: u64,
}

impl Theirs {
    /// Of an identity that owns the leaf, owned it, or is to own it; others are refused.
    pub(super) async fn of(db: &Db, leaf: &LeafId, identity: &[u8; 33]) -> Result<Self, Refused> {
        let last = leaf::last_owned_version(db.pool(), leaf.uuid(), identity).await?;
        let last = last.and_then(|version| u64::try_from(version).ok()).ok_or_else(Refused::not_owner)?;
        Ok(Self { last })
    }

    pub(super) const fn includes(self, receipt: &Receipt) -> bool {
        receipt.retired_version <= self.last
    }
}
