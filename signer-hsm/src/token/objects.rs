//! Names, templates and attributes of our objects.

use std::collections::BTreeMap;

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;
use spark_signer::vault::TokenError;

use super::error::token_error;
use super::profile::{Policies, Profile, RootMechanism};

/// Label of roots.
pub(super) const ROOT: &str = "spark-root";
/// Label of the object that shows that the roots token can be listed.
pub(super) const SENTINEL: &str = "spark-sentinel";
/// Label of an identity key made in the token.
pub(super) const IDENTITY: &str = "spark-identity";
/// Label of an identity key that was brought in: its method of birth, on record in the token.
pub(super) const IDENTITY_IMPORTED: &str = "spark-identity-imported";
/// Label of the federation key.
pub(super) const FEDERATION: &str = "spark-federation";
/// Label of keys for TLS; their ids differ.
pub(super) const TLS: &str = "spark-tls";

/// DER of the object identifier 1.2.840.10045.3.1.7, P-256 (RFC 5480).
pub(super) const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// DER of the object identifier 1.3.132.0.10, secp256k1 (SEC 2).
pub(super) const SECP256K1: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a];
/// DER of the object identifier 1.3.101.112, Ed25519 (RFC 8410).
pub(super) const ED25519: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];

/// What an object is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) kind: Kind,
    pub(super) label: &'static str,
    pub(super) id: Option<[u8; 16]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Secret,
    Private,
    Public,
}

impl Name {
    pub(super) fn new(kind: Kind, label: &'static str) -> Self {
        Self { kind, label, id: None }
    }

    pub(super) fn template(&self) -> Vec<Attribute> {
        let class = match self.kind {
            Kind::Secret => ObjectClass::SECRET_KEY,
            Kind::Private => ObjectClass::PRIVATE_KEY,
            Kind::Public => ObjectClass::PUBLIC_KEY,
        };
        // What tells objects apart first: a token compares until something differs.
        let mut template: Vec<_> = self.id.map(|id| Attribute::Id(id.to_vec())).into_iter().collect();
        template.push(Attribute::Label(self.label.into()));
        template.extend([Attribute::Class(class), Attribute::Token(true)]);
        template
    }
}

/// What every key of ours that must stay in the token has.
pub(super) fn confined(label: &str) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Label(label.into()),
    ];
    template.extend([Attribute::Copyable(false), Attribute::Modifiable(false), Attribute::Destroyable(true)]);
    template
}

/// Makes objects with a template; without the object policies where the profile allows that and the token
/// does not take them.
pub(super) fn with_policies<T>(
    profile: &Profile,
    template: &[Attribute],
    make: impl Fn(&[Attribute]) -> Result<T, Error>,
) -> Result<T, TokenError> {
    match make(template) {
        Err(Error::Pkcs11(
            RvError::AttributeTypeInvalid | RvError::AttributeValueInvalid | RvError::TemplateInconsistent,
            _,
        )) if profile.policies == Policies::Optional => {
            let mut plain = without_policies(template);
            let result = make(&plain).map_err(token_error);
            for attribute in &mut plain {
                // An imported key.
                if let Attribute::Value(value) = attribute {
                    zeroize::Zeroize::zeroize(value);
                }
            }
            result
        }
        result => result.map_err(token_error),
    }
}

/// The template without object policies.
pub(super) fn without_policies(template: &[Attribute]) -> Vec<Attribute> {
    let policy = |attribute: &Attribute| {
        matches!(attribute, Attribute::Copyable(_) | Attribute::Modifiable(_) | Attribute::Destroyable(_))
    };
    template.iter().filter(|attribute| !policy(attribute)).cloned().collect()
}

/// The attributes that are true or false, by name, as far as the token reports them.
pub(super) fn read_flags(session: &Session, handle: ObjectHandle) -> Result<BTreeMap<String, bool>, Error> {
    let types: Vec<_> = FLAGS.iter().map(|(kind, _)| *kind).collect();
    let found = session.get_attributes(handle, &types)?;
    Ok(FLAGS
        .iter()
        .filter_map(|(kind, name)| {
            let value = found.iter().find(|found| found.attribute_type() == *kind).and_then(truth)?;
            Some(((*name).to_owned(), value))
        })
        .collect())
}

const FLAGS: [(AttributeType, &str); 12] = [
    (AttributeType::Token, "CKA_TOKEN"),
    (AttributeType::Private, "CKA_PRIVATE"),
    (AttributeType::Sensitive, "CKA_SENSITIVE"),
    (AttributeType::Extractable, "CKA_EXTRACTABLE"),
    (AttributeType::Local, "CKA_LOCAL"),
    (AttributeType::NeverExtractable, "CKA_NEVER_EXTRACTABLE"),
    (AttributeType::AlwaysSensitive, "CKA_ALWAYS_SENSITIVE"),
    (AttributeType::Copyable, "CKA_COPYABLE"),
    (AttributeType::Modifiable, "CKA_MODIFIABLE"),
    (AttributeType::Destroyable, "CKA_DESTROYABLE"),
    (AttributeType::Sign, "CKA_SIGN"),
    (AttributeType::Derive, "CKA_DERIVE"),
];

/// `CKA_EC_POINT` is a DER octet string, or the bare point.
pub(super) fn bare_point(encoded: Vec<u8>) -> Vec<u8> {
    match encoded.as_slice() {
        // An uncompressed point of 65 bytes begins with 04, too, and its second byte may be any.
        [0x04, length, point @ ..] if point.len() != 63 && usize::from(*length) == point.len() => {
            point.to_vec()
        }
        _ => encoded,
    }
}

/// A 32-byte key of a root's kind.
pub(super) fn root_key(kind: RootMechanism, label: &str, id: &[u8]) -> Vec<Attribute> {
    let mut template = confined(label);
    template.extend([
        Attribute::KeyType(match kind {
            RootMechanism::HmacSha256 => KeyType::GENERIC_SECRET,
            RootMechanism::AesCmac => KeyType::AES,
        }),
        Attribute::ValueLen(Ulong::new(32)),
        Attribute::Sign(true),
        Attribute::Id(id.to_vec()),
    ]);
    template
}

/// How such a key is made.
pub(super) const fn root_generation(kind: RootMechanism) -> Mechanism<'static> {
    match kind {
        RootMechanism::HmacSha256 => Mechanism::GenericSecretKeyGen,
        RootMechanism::AesCmac => Mechanism::AesKeyGen,
    }
}

/// How a key came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Birth {
    /// Generated in the token.
    Local,
    /// Brought in from outside.
    Imported,
}

/// Checks the attributes that our claims rest on. One that the token does not report at all counts as
/// wrong. The object policies are asserted only where the profile requires them.
pub(super) fn assert_confined(
    session: &Session,
    profile: &Profile,
    handle: ObjectHandle,
    key: &'static str,
    birth: Birth,
) -> Result<(), TokenError> {
    use AttributeType as Type;
    let mut wanted: Vec<(Type, bool, &'static str)> = vec![
        (Type::Token, true, "CKA_TOKEN"),
        (Type::Sensitive, true, "CKA_SENSITIVE"),
        (Type::Extractable, false, "CKA_EXTRACTABLE"),
    ];
    if birth == Birth::Local {
        wanted.extend([
            (Type::Local, true, "CKA_LOCAL"),
            (Type::NeverExtractable, true, "CKA_NEVER_EXTRACTABLE"),
            (Type::AlwaysSensitive, true, "CKA_ALWAYS_SENSITIVE"),
        ]);
    }
    if profile.policies == Policies::Required {
        wanted.extend([
            (Type::Copyable, false, "CKA_COPYABLE"),
            (Type::Modifiable, false, "CKA_MODIFIABLE"),
            (Type::Destroyable, true, "CKA_DESTROYABLE"),
        ]);
    }
    let types: Vec<Type> = wanted.iter().map(|(kind, ..)| *kind).collect();
    let found = session.get_attributes(handle, &types).map_err(token_error)?;
    for (kind, value, attribute) in wanted {
        let actual = found.iter().find(|found| found.attribute_type() == kind).and_then(truth);
        if actual != Some(value) {
            return Err(TokenError::Attribute { key, attribute });
        }
    }
    Ok(())
}

fn truth(attribute: &Attribute) -> Option<bool> {
    match attribute {
        Attribute::Token(value)
        | Attribute::Private(value)
        | Attribute::Sign(value)
        | Attribute::Derive(value)
        | Attribute::Sensitive(value)
        | Attribute::Extractable(value)
        | Attribute::Local(value)
        | Attribute::NeverExtractable(value)
        | Attribute::AlwaysSensitive(value)
        | Attribute::Copyable(value)
        | Attribute::Modifiable(value)
        | Attribute::Destroyable(value) => Some(*value),
        _ => None,
    }
}
