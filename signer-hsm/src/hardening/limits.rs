//! Core dumps, tracing, privileges, swap.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit},
};

use super::HardeningError;

/// No core file, and no other process of this user reads the memory.
pub(super) fn core_dumps() -> Result<(), HardeningError> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(HardeningError::of("core_dumps"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(HardeningError::of("core_dumps"))
}

/// No program started from here gains rights by its owner or its capabilities.
pub(super) fn privileges() -> Result<(), HardeningError> {
    rustix::thread::set_no_new_privs(true).map_err(HardeningError::of("privileges"))
}

/// Nothing goes to swap.
pub(super) fn memory() -> Result<(), HardeningError> {
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    mlockall(flags).map_err(|error| {
        HardeningError::new(
            "memory",
            format!("memory cannot be locked; raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity): {error}"),
        )
    })
}
