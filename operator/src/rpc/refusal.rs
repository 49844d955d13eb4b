//! The engine's refusals in the words that public wallets act on (OPERATION.md D7).

use tonic::Code;

use crate::status::{Reason, Refused};

/// A send: after a lost nonce or an abort the wallet must fetch fresh commitments and choose its leaves anew, which
/// it does for "leaf is not available to transfer".
pub(super) fn of_send(refused: Refused, leaf: &str) -> Refused {
    match refused.reason {
        Reason::NonceUnknown
        | Reason::NonceSpent
        | Reason::PackageKey
        | Reason::OperationAborted
        | Reason::StaleVersion => {
            let cause = refused.reason.name();
            Refused::leaf_unavailable(leaf).with("cause", cause)
        }
        _ => refused,
    }
}

/// A claim, a renewal or a deposit: the same causes are worth a retry with fresh commitments.
pub(super) fn of_retryable(mut refused: Refused) -> Refused {
    if matches!(
        refused.reason,
        Reason::NonceUnknown
            | Reason::NonceSpent
            | Reason::PackageKey
            | Reason::OperationAborted
            | Reason::StaleVersion
            | Reason::LeafUnavailable
    ) {
        refused.code = Code::Unavailable;
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::text;

    #[test]
    fn sends_are_failed_preconditions_with_the_text_wallets_search() {
        for reason in
            [Reason::NonceUnknown, Reason::OperationAborted, Reason::NonceSpent, Reason::StaleVersion]
        {
            let refused = of_send(Refused::new(reason, "x"), "leaf");
            assert_eq!((refused.code, refused.reason), (Code::FailedPrecondition, Reason::LeafUnavailable));
            assert_eq!(refused.text, text::LEAF_UNAVAILABLE);
        }
        let undecided = of_send(Refused::new(Reason::OperationDiffers, "x"), "leaf");
        assert_eq!(undecided.code, Code::Aborted);
        assert_eq!(of_send(Refused::new(Reason::AlreadyDone, "x"), "leaf").code, Code::AlreadyExists);
    }

    #[test]
    fn claims_and_renewals_are_worth_a_retry() {
        for reason in
            [Reason::NonceUnknown, Reason::OperationAborted, Reason::NonceSpent, Reason::LeafUnavailable]
        {
            let refused = of_retryable(Refused::new(reason, "x"));
            assert_eq!((refused.code, refused.reason), (Code::Unavailable, reason));
        }
        assert_eq!(of_retryable(Refused::new(Reason::NotOwner, "x")).code, Code::PermissionDenied);
        assert_eq!(of_retryable(Refused::new(Reason::AlreadyDone, "x")).code, Code::AlreadyExists);
    }
}
