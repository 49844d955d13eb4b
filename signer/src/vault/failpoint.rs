//! Places where a commit can be cut off.

/// A step of the commit order whose effect may outlive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Nothing has happened yet.
    Start,
    /// The next epoch's root exists in the token.
    RootCreated,
    /// The header's key was derived twice and agreed.
    KeyDerived,
    /// The token's storage was synced.
    TokenSynced,
    /// Everything is sealed; the pages are written next.
    Sealed,
    /// Pages and nodes lie in free slots, durable; the store transaction comes next.
    PagesWritten,
    /// The store transaction is durable: the commit has happened.
    StoreCommitted,
    /// The old root is destroyed.
    RootDestroyed,
}

impl Step {
    /// All steps in order.
    pub const ALL: [Self; 8] = [
        Self::Start,
        Self::RootCreated,
        Self::KeyDerived,
        Self::TokenSynced,
        Self::Sealed,
        Self::PagesWritten,
        Self::StoreCommitted,
        Self::RootDestroyed,
    ];
}

/// Called at each step. A `false` cuts the commit off there, as a crash would: the vault is then
/// unusable and must be opened again. A real crash is a hook that does not return.
pub trait FailPoint: Send {
    /// Whether to go on.
    fn reached(&mut self, step: Step) -> bool;
}

impl<F: FnMut(Step) -> bool + Send> FailPoint for F {
    fn reached(&mut self, step: Step) -> bool {
        self(step)
    }
}
