use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use spark_proto::spark::TreeNodeStatus;

/// Not the name of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown leaf status")]
pub struct StatusError;

macro_rules! statuses {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $wire:ident;)*) => {
        /// State of a node, named as wallets expect it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum LeafStatus {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl LeafStatus {
            /// The name on the public wire.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The enumeration on the public wire.
            pub const fn to_wire(self) -> TreeNodeStatus {
                match self { $(Self::$variant => TreeNodeStatus::$wire,)* }
            }

            /// From the enumeration on the public wire.
            pub const fn from_wire(status: TreeNodeStatus) -> Self {
                match status { $(TreeNodeStatus::$wire => Self::$variant,)* }
            }
        }

        impl FromStr for LeafStatus {
            type Err = StatusError;

            fn from_str(name: &str) -> Result<Self, StatusError> {
                match name { $($name => Ok(Self::$variant),)* _ => Err(StatusError) }
            }
        }
    };
}

statuses! {
    /// Deposited, not confirmed.
    Creating = "CREATING", Creating;
    /// Spendable by its owner.
    Available = "AVAILABLE", Available;
    /// Stopped by an issuer.
    FrozenByIssuer = "FROZEN_BY_ISSUER", FrozenByIssuer;
    /// In a transfer.
    TransferLocked = "TRANSFER_LOCKED", TransferLocked;
    /// Being split.
    SplitLocked = "SPLIT_LOCKED", SplitLocked;
    /// Has a node below.
    Splitted = "SPLITTED", Splitted;
    /// Merged into its parent.
    Aggregated = "AGGREGATED", Aggregated;
    /// Its node tx is on chain.
    OnChain = "ON_CHAIN", OnChain;
    /// Being merged.
    AggregateLock = "AGGREGATE_LOCK", AggregateLock;
    /// Its refund is on chain.
    Exited = "EXITED", Exited;
    /// Being renewed.
    RenewLocked = "RENEW_LOCKED", RenewLocked;
    /// Not usable for now.
    Unavailable = "UNAVAILABLE", Unavailable;
    /// A node above left the tree.
    ParentExited = "PARENT_EXITED", ParentExited;
}

impl fmt::Display for LeafStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
