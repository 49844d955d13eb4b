//! One network for the tests of a binary that leave each other alone. The last one to end stops it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use spark_devnet::network::{Devnet, Options};
use tokio::runtime::Runtime;

static SHARED: Mutex<Weak<World>> = Mutex::new(Weak::new());

struct World {
    /// None once it stops.
    devnet: Option<Devnet>,
    runtime: Runtime,
}

impl Drop for World {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.devnet.take());
    }
}

fn world() -> anyhow::Result<Arc<World>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(world) = shared.upgrade() {
        return Ok(world);
    }
    let runtime = Runtime::new()?;
    let devnet = Some(runtime.block_on(Devnet::start(Options::default(), |_| {}))?);
    let world = Arc::new(World { devnet, runtime });
    *shared = Arc::downgrade(&world);
    Ok(world)
}

/// Runs a test on the shared network.
pub(crate) fn with(test: impl AsyncFnOnce(&Devnet) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let world = world()?;
    let devnet = world.devnet.as_ref().ok_or_else(|| anyhow::anyhow!("network is gone"))?;
    world.runtime.block_on(test(devnet))
}
