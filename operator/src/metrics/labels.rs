//! Values of labels. Each set is closed: what is not here cannot appear in an exposition.

use spark_rules::{leaf::LeafStatus as Status, vote::Kind};

use crate::db::operation::State;

macro_rules! label_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The label's text.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

label_enum! {
    /// Kinds of operations.
    OperationKind {
        /// A deposit becomes a leaf.
        Deposit = "deposit",
        /// A leaf is sent.
        Transfer = "transfer",
        /// A transfer is received.
        Claim = "claim",
        /// Timelocks are raised.
        Renewal = "renewal",
        /// Shares are refreshed.
        Refresh = "refresh",
        /// A leaf is sent for a preimage.
        Htlc = "htlc",
        /// A leaf is sent for a payment on chain.
        CoopExit = "coop_exit",
    }
}
label_enum! {
    /// Steps of an operation that were done, each with its writes to the database.
    Phase {
        /// Checked against one's own records and proposed, in either role.
        Propose = "propose",
        /// The own signer votes, in either role.
        Prepare = "prepare",
        /// Everybody's votes become a certificate; the coordinator's.
        Certify = "certify",
        /// Signature shares of all stages are collected and aggregated; the coordinator's.
        Release = "release",
        /// Signer and database change over; the coordinator's includes the peers'.
        Apply = "apply",
    }
}
label_enum! {
    /// How an attempt ended on this operator, whatever its role.
    Outcome {
        /// Applied.
        Committed = "committed",
        /// Given up, with proof, after the own signer had or may have voted YES.
        Aborted = "aborted",
        /// Never prepared here.
        Refused = "refused",
    }
}
label_enum! {
    /// States of operations that have not ended.
    OpenState {
        /// Waiting for votes.
        Proposed = "proposed",
        /// Voted for here, undecided.
        Prepared = "prepared",
        /// Decided, not applied everywhere.
        Decided = "decided",
        /// Refused here, undecided.
        Refused = "refused",
    }
}
label_enum! {
    /// What a repair did with items of the others' ledgers.
    RepairItems {
        /// Stored in the own signer.
        Taken = "taken",
        /// Busy, or too few agree on it.
        LeftOut = "left_out",
        /// Leaves among those taken whose shares were not refreshed since.
        Unrefreshed = "unrefreshed",
        /// Leaves of the tables that are put aside, since the own signer does not stand behind them.
        Unserved = "unserved",
    }
}
label_enum! {
    /// States of leaves.
    LeafStatus {
        /// Deposit not final.
        Creating = "creating",
        /// Spendable.
        Available = "available",
        /// In a transfer.
        TransferLocked = "transfer_locked",
        /// Being renewed.
        RenewLocked = "renew_locked",
        /// Replaced by children.
        Split = "split",
        /// Frozen by what the chain shows.
        Frozen = "frozen",
        /// Left to the chain.
        Exited = "exited",
    }
}
label_enum! {
    /// States of database connections.
    PoolState {
        /// In use.
        Busy = "busy",
        /// Waiting for work.
        Idle = "idle",
    }
}

impl From<Kind> for OperationKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Deposit => Self::Deposit,
            Kind::Send => Self::Transfer,
            Kind::Claim => Self::Claim,
            Kind::Renew => Self::Renewal,
            Kind::Refresh => Self::Refresh,
            Kind::Htlc => Self::Htlc,
            Kind::CoopExit => Self::CoopExit,
        }
    }
}

impl OpenState {
    /// `None` for attempts that have ended.
    pub const fn of(state: State) -> Option<Self> {
        match state {
            State::Proposed => Some(Self::Proposed),
            // The own signer has voted; a certificate alone decides nothing.
            State::Prepared | State::Certified => Some(Self::Prepared),
            State::Committed | State::Applied => Some(Self::Decided),
            State::Refused => Some(Self::Refused),
            State::Done | State::Aborted => None,
        }
    }
}

impl From<Status> for LeafStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Creating => Self::Creating,
            Status::Available => Self::Available,
            Status::TransferLocked => Self::TransferLocked,
            Status::RenewLocked => Self::RenewLocked,
            Status::SplitLocked | Status::Splitted | Status::Aggregated | Status::AggregateLock => {
                Self::Split
            }
            Status::FrozenByIssuer | Status::Unavailable => Self::Frozen,
            Status::OnChain | Status::Exited | Status::ParentExited => Self::Exited,
        }
    }
}
