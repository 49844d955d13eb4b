//! What lies in the tokens, without secrets.

use std::collections::BTreeMap;
use std::path::Path;

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use serde::{Deserialize, Serialize};
use spark_signer::vault::TokenError;

use super::config::{DeviceConfig, KeysConfig, Security, TokenConfig, TokenRef};
use super::error::token_error;
use super::link::Link;
use super::module::Module;
use super::objects::{FEDERATION, IDENTITY, IDENTITY_IMPORTED, ROOT, SENTINEL, bare_point, read_flags};

/// A PKCS#11 library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibraryInfo {
    /// Who made it.
    pub manufacturer: String,
    /// What it calls itself.
    pub description: String,
    /// Its version.
    pub version: String,
    /// Version of PKCS#11.
    pub cryptoki: String,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Roots and nothing else.
    Roots,
    /// Identity and federation keys.
    Keys,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenInfo {
    /// Label.
    pub label: String,
    /// Who made it.
    pub manufacturer: String,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware.
    pub firmware: String,
}

/// An object of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectInfo {
    /// In which token.
    pub token: Purpose,
    /// Label.
    pub label: String,
    /// "secret", "private", "public" or "other".
    pub class: String,
    /// `CKA_ID`, hex.
    pub id: String,
    /// Attributes that the token reports.
    pub attributes: BTreeMap<String, bool>,
    /// Point of a public key, hex.
    pub point: Option<String>,
}

/// The keys token, the first one for roots, and further devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// The library of the first device's roots.
    pub library: LibraryInfo,
    /// Keys token and first device.
    pub tokens: BTreeMap<Purpose, TokenInfo>,
    /// Our objects there, sorted.
    pub objects: Vec<ObjectInfo>,
    /// Devices beyond the first.
    pub devices: Vec<DeviceInventory>,
}

/// A further device for roots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceInventory {
    /// Its number.
    pub id: u8,
    /// Its library.
    pub library: LibraryInfo,
    /// Its token.
    pub token: TokenInfo,
    /// Our objects there, sorted.
    pub objects: Vec<ObjectInfo>,
}

impl DeviceInventory {
    /// Logs in and reads what is there. Changes nothing.
    pub fn read(config: &DeviceConfig, security: Security) -> Result<Self, TokenError> {
        let (library, token, objects) = look(&config.module, &config.roots, security, Purpose::Roots)?;
        Ok(Self { id: config.id, library, token, objects })
    }
}

fn look(
    module: &Path,
    token: &TokenRef,
    security: Security,
    purpose: Purpose,
) -> Result<(LibraryInfo, TokenInfo, Vec<ObjectInfo>), TokenError> {
    let module = Module::load(module)?;
    let link = Link::new(&module, token, security)?;
    let mut objects = link.run(|_, session| ours(session, purpose))?;
    objects.sort();
    let context = module.context();
    Ok((LibraryInfo::read(&context)?, TokenInfo::read(&context, link.slot(&context)?)?, objects))
}

impl LibraryInfo {
    pub(super) fn read(context: &Pkcs11) -> Result<Self, TokenError> {
        let info = context.get_library_info().map_err(token_error)?;
        Ok(Self {
            manufacturer: info.manufacturer_id().to_owned(),
            description: info.library_description().to_owned(),
            version: info.library_version().to_string(),
            cryptoki: info.cryptoki_version().to_string(),
        })
    }
}

impl TokenInfo {
    /// Whether both speak of one token. Firmware may have been renewed.
    pub fn is_token(&self, other: &Self) -> bool {
        let names = |of: &Self| [&of.label, &of.manufacturer, &of.model, &of.serial].map(String::clone);
        names(self) == names(other)
    }

    pub(super) fn read(context: &Pkcs11, slot: Slot) -> Result<Self, TokenError> {
        let info = context.get_token_info(slot).map_err(token_error)?;
        Ok(Self {
            label: info.label().to_owned(),
            manufacturer: info.manufacturer_id().to_owned(),
            model: info.model().to_owned(),
            serial: info.serial_number().to_owned(),
            firmware: info.firmware_version().to_string(),
        })
    }
}

impl Inventory {
    /// Logs in to all tokens and reads what is there. Changes nothing.
    pub fn read(config: &TokenConfig) -> Result<Self, TokenError> {
        let [first, others @ ..] = &*config.devices else { return Err(TokenError::NoObjects) };
        let security = config.security;
        let (library, roots, mut objects) = look(&first.module, &first.roots, security, Purpose::Roots)?;
        let KeysConfig { module, token, .. } = &config.keys;
        let (_, keys, held) = look(module, token, security, Purpose::Keys)?;
        objects.extend(held);
        objects.sort();
        let devices = others.iter().map(|device| DeviceInventory::read(device, security));
        Ok(Self {
            library,
            tokens: BTreeMap::from([(Purpose::Roots, roots), (Purpose::Keys, keys)]),
            objects,
            devices: devices.collect::<Result<_, _>>()?,
        })
    }
}

fn ours(session: &Session, purpose: Purpose) -> Result<Vec<ObjectInfo>, TokenError> {
    let mut objects = Vec::new();
    for label in [ROOT, SENTINEL, IDENTITY, IDENTITY_IMPORTED, FEDERATION] {
        for handle in session.find_objects(&[Attribute::Label(label.into())]).map_err(token_error)? {
            let read = |kind| session.get_attributes(handle, &[kind]).map(|found| found.into_iter().next());
            let class = match read(AttributeType::Class).map_err(token_error)? {
                Some(Attribute::Class(ObjectClass::SECRET_KEY)) => "secret",
                Some(Attribute::Class(ObjectClass::PRIVATE_KEY)) => "private",
                Some(Attribute::Class(ObjectClass::PUBLIC_KEY)) => "public",
                _ => "other",
            };
            let id = match read(AttributeType::Id).map_err(token_error)? {
                Some(Attribute::Id(id)) => hex::encode(id),
                _ => String::new(),
            };
            let point = match (class, read(AttributeType::EcPoint)) {
                ("public", Ok(Some(Attribute::EcPoint(point)))) => Some(hex::encode(bare_point(point))),
                _ => None,
            };
            objects.push(ObjectInfo {
                token: purpose,
                label: label.to_owned(),
                class: class.to_owned(),
                id,
                attributes: read_flags(session, handle).map_err(token_error)?,
                point,
            });
        }
    }
    Ok(objects)
}

/// Whether the attributes are those of a key that was made in the token and cannot leave it, or that was
/// imported and cannot be read.
pub fn bears_attributes(attributes: &BTreeMap<String, bool>, imported: bool) -> bool {
    let wanted: &[(&str, bool)] = &[
        ("CKA_TOKEN", true),
        ("CKA_SENSITIVE", true),
        ("CKA_EXTRACTABLE", false),
        ("CKA_LOCAL", true),
        ("CKA_NEVER_EXTRACTABLE", true),
        ("CKA_ALWAYS_SENSITIVE", true),
    ];
    let wanted = if imported { wanted.get(..3).unwrap_or_default() } else { wanted };
    wanted.iter().all(|(name, value)| attributes.get(*name) == Some(value))
}

/// Every initialised token that the library shows, with its mechanisms. Needs no PIN.
pub fn slots(module: &Path) -> Result<Vec<(u64, TokenInfo, Vec<String>)>, TokenError> {
    let module = Module::load(module)?;
    let context = module.context();
    let mut slots = Vec::new();
    for slot in context.get_slots_with_initialized_token().map_err(token_error)? {
        let mechanisms = context.get_mechanism_list(slot).map_err(token_error)?;
        let mechanisms = mechanisms.iter().map(MechanismType::to_string).collect();
        slots.push((slot.id(), TokenInfo::read(&context, slot)?, mechanisms));
    }
    Ok(slots)
}

impl TokenRef {
    /// A token by label, with its PIN in a file.
    pub fn with_pin_file(label: String, serial: Option<String>, pin: std::path::PathBuf) -> Self {
        Self { label, serial, pin: super::config::PinSource::File(pin) }
    }
}
