//! The keys token is none that holds roots (D13). The configuration cannot say so: a serial number may be left out, and a
//! library may have two paths. The tokens themselves do.

use cryptoki::object::Attribute;
use spark_signer::vault::TokenError;

use super::{
    config::DeviceConfig,
    error::token_error,
    inventory::TokenInfo,
    link::{Link, find_slots},
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
        // What cannot be loaded holds no roots of this signer now.
        let Ok(module) = Module::load(&device.module) else { continue };
        let context = module.context();
        for slot in find_slots(&context, &device.roots.label, device.roots.serial.as_deref())? {
            if TokenInfo::read(&context, slot)?.is_token(info) {
                return Err(shared(&format!("the keys token is device {}", device.id)));
            }
        }
    }
    Ok(())
}
