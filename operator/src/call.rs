//! Calls to the signer and to peers: every one has a deadline.

use std::{future::Future, time::Duration};

use tonic::{Code, Request, Response, Status};

/// A call without a result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer in time; it may have been carried out.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// Answered with an error, or not reached.
    #[error("{} ({})", .0.message(), .0.code())]
    Status(#[source] Box<Status>),
    /// Not a member of the federation.
    #[error("operator {0} is not in the federation")]
    Stranger(u16),
}

impl CallError {
    /// True when the other side answered and said no; false when it may not have been reached.
    pub fn refused(&self) -> bool {
        matches!(self, Self::Status(s) if !matches!(
            s.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
                | Code::ResourceExhausted | Code::Unauthenticated | Code::PermissionDenied
        ))
    }

    /// The code that the call ended with.
    pub fn code(&self) -> Code {
        match self {
            Self::Deadline(_) => Code::DeadlineExceeded,
            Self::Status(status) => status.code(),
            Self::Stranger(_) => Code::FailedPrecondition,
        }
    }

    /// The other side knows nothing of it.
    pub fn not_found(&self) -> bool {
        matches!(self, Self::Status(s) if s.code() == Code::NotFound)
    }
}

/// Runs one unary call with a gRPC timeout and, should the transport ignore it, one of our own.
pub(crate) async fn unary<M, T, F>(
    deadline: Duration,
    message: M,
    call: impl FnOnce(Request<M>) -> F,
) -> Result<T, CallError>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    match tokio::time::timeout(deadline + Duration::from_millis(250), call(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(CallError::Status(Box::new(status))),
        Err(_) => Err(CallError::Deadline(deadline)),
    }
}

/// Largest message that operators and signers exchange: a package of 256 leaves with all its transactions.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;
