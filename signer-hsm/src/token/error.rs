//! PKCS#11 return values in the vault's words.

use cryptoki::error::{Error, RvError};
use spark_signer::vault::TokenError;

/// What a failed call means. `Unavailable` is what a new session or a reconnect may cure.
pub(super) fn token_error(error: Error) -> TokenError {
    let Error::Pkcs11(value, _) = &error else {
        return TokenError::Failed(error.to_string());
    };
    match value {
        RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange | RvError::PinExpired => {
            TokenError::PinRefused
        }
        RvError::PinLocked => TokenError::PinLocked,
        RvError::GeneralError
        | RvError::FunctionFailed
        | RvError::HostMemory
        | RvError::DeviceError
        | RvError::DeviceMemory
        | RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::SlotIdInvalid
        | RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::SessionCount
        | RvError::OperationActive
        | RvError::UserNotLoggedIn
        | RvError::CryptokiNotInitialized
        | RvError::ObjectHandleInvalid
        | RvError::KeyHandleInvalid => TokenError::Unavailable(error.to_string()),
        RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::FunctionNotSupported
        | RvError::CurveNotSupported
        | RvError::ActionProhibited
        | RvError::AttributeTypeInvalid
        | RvError::AttributeValueInvalid
        | RvError::TemplateInconsistent
        | RvError::TemplateIncomplete
        | RvError::TokenWriteProtected => TokenError::Unsupported(error.to_string()),
        _ => TokenError::Failed(error.to_string()),
    }
}
