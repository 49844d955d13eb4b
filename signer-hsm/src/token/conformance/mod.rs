//! Tries a token: what it can do, what it refuses, what a destruction looks like from another process.
//!
//! For a scratch token. Everything made here bears a label of this run, is the only thing used, and is
//! destroyed at the end; a token that holds a signer's objects is refused.

mod checks;
mod cmac;
mod destroy;
mod fit;
mod report;
mod scratch;
mod timing;

use std::path::PathBuf;
use std::sync::Arc;

use spark_signer::vault::TokenError;

pub use destroy::look;
pub use fit::{CellFit, Fit, Verdict};
pub use report::{Finding, Growth, Latency, Outcome, Report};

use super::config::{Security, TokenRef};
use super::link::Link;
use super::module::Module;
use scratch::Scratch;

/// What to try, and how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// PKCS#11 library.
    pub module: PathBuf,
    /// The scratch token.
    pub token: TokenRef,
    /// Calls per measured operation. Every root cycle writes to the device's flash.
    pub runs: u16,
    /// Objects to add for the measurement of their effect.
    pub objects: u16,
    /// This program, for a look from another process. Without it that finding is "unknown".
    pub program: Option<PathBuf>,
}

/// Runs everything.
///
/// # Errors
/// The token cannot be reached or holds a signer's objects. What the token refuses is in the report.
pub fn run(options: &Options) -> Result<Report, TokenError> {
    let module = Module::load(&options.module)?;
    let link = Link::new(&module, &options.token, Security::Production)?;
    let scratch = Scratch::new(Arc::clone(&link))?;
    let mut report = report::describe(&module, &link)?;
    let result = (|| {
        checks::root(&scratch, &mut report)?;
        checks::keys(&scratch, &mut report)?;
        destroy::check(&scratch, options, &mut report)?;
        timing::measure(&scratch, options, &mut report)
    })();
    // Also after a failure: nothing of ours stays.
    let left = scratch.clean();
    result?;
    report.add(
        "clean",
        left.map_or_else(|e| Outcome::No(e.to_string()), |n| Outcome::Yes(format!("{n} objects removed"))),
    );
    // Last: it closes all sessions.
    destroy::session_loss(&module, &scratch, &mut report);
    report.fits = fit::all(&report);
    Ok(report)
}
