//! Steps at which a test may end the process: before and after the batch that holds a call.

use spark_signer::engine::Request;

/// Declares the calls whose batches may die.
macro_rules! calls {
    ($($name:ident,)*) => {
        /// A call that changes what the signer knows of an operation or a key.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Call {
            $(#[doc = concat!("`", stringify!($name), "`.")] $name,)*
        }

        impl Call {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            const fn of(request: &Request) -> Option<Self> {
                match request {
                    $(Request::$name(_) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

calls! {
    CommitNonces,
    BindKeyshare,
    ProvePossession,
    Prepare,
    Release,
    Apply,
    SignAbort,
    Abort,
    SignSettlement,
    Settle,
    DkgStart,
    DkgRespond,
    DkgFinish,
    DkgConfirm,
}

/// Where in the life of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The batch was taken from the queue; nothing happened.
    Received,
    /// The batch is durable and old roots are destroyed; nobody was told.
    Committed,
}

impl Step {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Received, Self::Committed];
}

/// Ends the process, once, if the file that `SPARK_FAIL_FILE` names holds call and step, for example
/// `PrepareCommitted`.
pub fn fail_point(requests: &[Call], step: Step) {
    let Some(path) = std::env::var_os("SPARK_FAIL_FILE") else { return };
    let Ok(text) = std::fs::read_to_string(&path) else { return };
    let armed = requests.iter().any(|call| text.trim() == format!("{call:?}{step:?}"));
    // Removed first: a process that is started again must not die at the same step.
    if armed && std::fs::remove_file(&path).is_ok() {
        std::process::abort();
    }
}

/// The calls of a batch that have a step here.
pub fn calls(requests: &[Request]) -> Vec<Call> {
    requests.iter().filter_map(Call::of).collect()
}
