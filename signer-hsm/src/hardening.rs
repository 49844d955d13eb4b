//! What the process gives up before it touches a secret (rule S1): core dumps, being traced, new privileges,
//! swap.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit},
};

/// A restriction that could not be set.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct HardeningError {
    what: &'static str,
    source: rustix::io::Errno,
}

/// Sets all restrictions. Locking memory needs RLIMIT_MEMLOCK; without it the error says so, and a development
/// profile may go on.
pub fn harden() -> Result<(), HardeningError> {
    let failed = |what| move |source| HardeningError { what, source };
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(failed("no core dumps"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("not dumpable"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("no new privileges"))?;
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    mlockall(flags).map_err(failed("memory cannot be locked; raise RLIMIT_MEMLOCK"))
}
