//! Steps at which a test may end the process.

/// Declares the steps, and with the feature `failpoints` the list of them, so that a test cannot miss one.
macro_rules! points {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A step of an operation on one operator, after which it may die.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(dead_code, unreachable_pub, reason = "read, and by others, only with the feature `failpoints`")]
        pub enum Point {
            $($(#[$doc])* $name,)*
        }

        #[cfg(feature = "failpoints")]
        impl Point {
            /// All of them, in the order of a run.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

points! {
    /// Intent and claims are written.
    Proposed,
    /// The own signer voted; Postgres does not know.
    SignerPrepared,
    /// The own vote is written.
    Prepared,
    /// All votes are in; nothing is written of them.
    Voted,
    /// The certificate is written.
    Certified,
    /// Shares of one stage were released.
    Released,
    /// All signatures are complete; nothing is written of them.
    Signed,
    /// The proof of commit is written.
    Committed,
    /// The own signer applied; Postgres does not know.
    SignerApplied,
    /// Own tables show it.
    Applied,
    /// Every operator applied it; nothing is written of that.
    Everywhere,
    /// Finished; the caller was not told.
    Done,
    /// The own signer said NO or ABORT; Postgres does not know.
    SignerRefused,
    /// The own signer took a proof of abort; Postgres does not know.
    SignerAborted,
    /// The proof of abort is written; peers were not told.
    Aborted,
    /// A preimage is kept; nobody was told.
    SettlePreimage,
    /// The words of all deciders are kept; peers were not told.
    SettleProof,
    /// The own signer ended a conditional transfer; Postgres does not know.
    SettleSigner,
    /// Own tables show the end; nobody was told.
    SettleEnded,
}

/// Ends the process, once, if the file that `SPARK_FAIL_FILE` names holds the name of this step.
#[cfg(feature = "failpoints")]
pub(crate) fn fail_point(point: Point) {
    let Some(path) = std::env::var_os("SPARK_FAIL_FILE") else { return };
    let armed = std::fs::read_to_string(&path).is_ok_and(|text| text.trim() == format!("{point:?}"));
    // Removed first: a process that is started again must not die at the same step.
    if armed && std::fs::remove_file(&path).is_ok() {
        std::process::abort();
    }
}

/// Nothing, in programs that people run.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn fail_point(_: Point) {}
