//! Long computations leave the thread that serves calls.

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
};

/// Most leaves whose curve operations are done where the call is served: a few milliseconds.
const FEW: usize = 8;

/// Computes something over so many leaves. With many, the thread's other tasks move to another thread first.
pub(super) fn heavy<T>(leaves: usize, work: impl FnOnce() -> T) -> T {
    let threads = Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
    if leaves > FEW && threads { block_in_place(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_thread_computes_where_it_is() {
        assert_eq!(heavy(FEW + 1, || 1), 1);
    }

    /// With one worker thread, a task runs while another computes for longer than it takes.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn other_tasks_go_on() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let other = tokio::spawn(async move {
            tokio::task::yield_now().await;
            sender.send(7).is_ok()
        });
        let computed = tokio::spawn(async move { heavy(FEW + 1, || receiver.recv()) });
        assert_eq!(computed.await.unwrap(), Ok(7));
        assert!(other.await.unwrap());
    }
}
