//! Steps at which a test may end the process.

/// A step of an operation on one operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "names are read only with the feature `failpoints`")]
pub(crate) enum Point {
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
}

/// Ends the process if `SPARK_FAIL_POINT` names this step, for example `Certified`.
#[cfg(feature = "failpoints")]
pub(crate) fn fail_point(point: Point) {
    if std::env::var("SPARK_FAIL_POINT").is_ok_and(|name| name == format!("{point:?}")) {
        std::process::abort();
    }
}

/// Nothing, in programs that people run.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn fail_point(_: Point) {}
