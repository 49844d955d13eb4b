//! Places where a commit can be cut off.

/// A step of the commit order whose effect may outlive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Nothing has happened yet.
    Start,
    /// The devices are asked next.
    DevicesAsked,
    /// The next epoch's root exists in the token.
    RootCreated,
    /// The header's key was derived twice and agreed.
    KeyDerived,
    /// The token's storage was synced.
    TokenSynced,
    /// Pages and nodes are laid out, sealed and written next.
    PagesBegun,
    /// Pages and nodes lie in free slots, durable.
    PagesWritten,
    /// The header is sealed; the store transaction comes next.
    Sealed,
    /// The store transaction is durable: the commit has happened.
    StoreCommitted,
    /// The old root is destroyed.
    RootDestroyed,
}

impl Step {
    /// All steps. Up to [`Self::Start`] and from [`Self::Sealed`] on they come in this order; those between lie on two
    /// lines, [`Self::DEVICES`] and [`Self::PAGES`], that a commit which destroys something goes at the same time.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::DevicesAsked,
        Self::RootCreated,
        Self::KeyDerived,
        Self::TokenSynced,
        Self::PagesBegun,
        Self::PagesWritten,
        Self::Sealed,
        Self::StoreCommitted,
        Self::RootDestroyed,
    ];
    /// What is done on the devices.
    pub const DEVICES: [Self; 4] =
        [Self::DevicesAsked, Self::RootCreated, Self::KeyDerived, Self::TokenSynced];
    /// What is done to the pages.
    pub const PAGES: [Self; 2] = [Self::PagesBegun, Self::PagesWritten];

    /// The line that is gone at the same time as this step's, if there is one.
    pub fn beside(self) -> &'static [Self] {
        if Self::DEVICES.contains(&self) {
            &Self::PAGES
        } else if Self::PAGES.contains(&self) {
            &Self::DEVICES
        } else {
            &[]
        }
    }
}

/// Called at each step, from two threads where two lines are gone. A `false` cuts the commit off there, as a crash
/// would; the other line may go on. The vault is then unusable and must be opened again. A real crash is a hook that
/// does not return.
pub trait FailPoint: Send + Sync {
    /// Whether to go on.
    fn reached(&self, step: Step) -> bool;
}

impl<F: Fn(Step) -> bool + Send + Sync> FailPoint for F {
    fn reached(&self, step: Step) -> bool {
        self(step)
    }
}
