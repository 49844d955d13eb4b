//! The keys token is none that holds roots (D13). The configuration cannot say so: a serial number may be left out, and a
//! library may have two paths. The tokens themselves do.

use cryptoki::object::Attribute;
use spark_signer::vault::TokenError;

use super::{
    config::DeviceConfig,
    error::token_error,
    inventory::TokenInfo,
    link::Link,
    module::Module,
    objects::{ROOT, SENTINEL},
};

pub(super) fn shared(what: &str) -> TokenError {
    TokenError::Failed(format!("KEYS_NOT_APART: {what}"))
}

/// Refuses a keys token in which roots lie or lay, or that is the token of one of the devices. One that is not there
/// now says so when it comes: [`Link::never`].
pub(super) fn assert_apart(
    keys: &Link,
    info: &TokenInfo,
    devices: &[DeviceConfig],
) -> Result<(), TokenError> {
    keys.run(|_, session| {
        for label in [ROOT, SENTINEL] {
            if !session.find_objects(&[Attribute::Label(label.into())]).map_err(token_error)?.is_empty() {
                return Err(shared("the keys token has objects of a device with roots"));
            }
        }
        Ok(())
    })?;
    for device in devices {
        // What cannot be loaded or asked holds no roots of this signer now, and the signer may be told to start without it.
        let Ok(module) = Module::load(&device.module) else { continue };
        let context = module.context();
        let slots = match context.get_slots_with_initialized_token() {
            Ok(slots) => slots,
            Err(error) => {
                tracing::warn!(%error, device = device.id, "whether it is the keys token is asked when it comes");
                continue;
            }
        };
        for other in slots.into_iter().filter_map(|slot| TokenInfo::read(&context, slot).ok()) {
            let serial = device.roots.serial.as_ref().is_none_or(|serial| *serial == other.serial);
            if other.label == device.roots.label && serial && other.is_token(info) {
                return Err(shared(&format!("the keys token is device {}", device.id)));
            }
        }
    }
    Ok(())
}
