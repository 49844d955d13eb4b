//! Mechanisms, attributes and refusals.

use bitcoin::secp256k1::{Message, PublicKey, SECP256K1, SecretKey, ecdh, ecdsa};
use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;
use rand_core::{OsRng, RngCore as _};
use sha2::{Digest as _, Sha256};
use spark_rules::federation_key::low_s;
use spark_signer::vault::TokenError;

use super::cmac;
use super::report::{Outcome, Report};
use super::scratch::Scratch;
use crate::token::keys::federation_key;
use crate::token::objects::{
    ED25519, SECP256K1 as SECP256K1_OID, bare_point, confined, read_flags, without_policies,
};

/// DER of the object identifier 1.2.840.10045.3.1.7, P-256 (RFC 5480).
const P256_OID: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
pub(super) const CONTEXT: &[u8] = b"spark/conformance/v1";
/// Signatures made to see whether the token normalises S.
const SIGNATURES: usize = 16;

/// What a key made in the token must report (name, wanted).
const BORN_HERE: [(&str, bool); 6] = [
    ("CKA_TOKEN", true),
    ("CKA_SENSITIVE", true),
    ("CKA_EXTRACTABLE", false),
    ("CKA_LOCAL", true),
    ("CKA_NEVER_EXTRACTABLE", true),
    ("CKA_ALWAYS_SENSITIVE", true),
];
const POLICIES: [(&str, bool); 3] =
    [("CKA_COPYABLE", false), ("CKA_MODIFIABLE", false), ("CKA_DESTROYABLE", true)];

fn attributes(session: &Session, key: ObjectHandle, wanted: &[(&str, bool)]) -> Outcome {
    match read_flags(session, key) {
        Err(error) => Outcome::No(error.to_string()),
        Ok(flags) => {
            let wrong: Vec<_> = wanted
                .iter()
                .filter(|(name, value)| flags.get(*name) != Some(value))
                .map(|(name, _)| match flags.get(*name) {
                    Some(value) => format!("{name} is {value}"),
                    None => format!("{name} is not reported"),
                })
                .collect();
            if wrong.is_empty() {
                Outcome::Yes(
                    wanted
                        .iter()
                        .map(|(name, value)| format!("{name}={value}"))
                        .collect::<Vec<_>>()
                        .join(" "),
                )
            } else {
                Outcome::No(wrong.join(", "))
            }
        }
    }
}

/// A root, as the vault uses it.
pub(super) fn root(scratch: &Scratch, report: &mut Report) -> Result<(), TokenError> {
    let label = scratch.label("root");
    let made = scratch.session(|session| scratch.root(session, &label))?;
    let policies = match &made {
        Ok((_, policies)) => *policies,
        Err(_) => false,
    };
    report.add("hmac-root", Outcome::of(made.map(|_| "generated in the token".into())));
    if !report.is_yes("hmac-root") {
        return cmac::check(scratch, report);
    }
    // The key is looked up anew in each session, as after a restart.
    let with = |body: &dyn Fn(&Session, ObjectHandle) -> Outcome| {
        scratch
            .session(|session| {
                let found = Scratch::find(session, &label)?;
                Ok(match found.as_slice() {
                    [key] => body(session, *key),
                    other => Outcome::No(format!("{} objects found", other.len())),
                })
            })
            .map(|result| result.unwrap_or_else(|error| Outcome::No(error.to_string())))
    };
    let mac = || {
        scratch.session(|session| {
            let key = Scratch::find(session, &label)?;
            let key = key.first().ok_or(Error::InvalidValue)?;
            session.sign(&Mechanism::Sha256Hmac, *key, CONTEXT)
        })
    };
    report.add(
        "hmac-repeats",
        match (mac()?, mac()?) {
            (Ok(one), Ok(two)) if one == two && one.len() == 32 => {
                Outcome::Yes("32 bytes, the same from two sessions".into())
            }
            (Ok(one), Ok(_)) => Outcome::No(format!("{} bytes, or different from two sessions", one.len())),
            (Err(error), _) | (_, Err(error)) => Outcome::No(error.to_string()),
        },
    );
    report.add("attributes", with(&|session, key| attributes(session, key, &BORN_HERE))?);
    report.add(
        "policies",
        if policies {
            with(&|session, key| attributes(session, key, &POLICIES))?
        } else {
            Outcome::No("not accepted in the template".into())
        },
    );
    report.add(
        "unique-id",
        with(&|session, key| match session.get_attributes(key, &[AttributeType::UniqueId]) {
            Ok(found) if !found.is_empty() => Outcome::Yes("CKA_UNIQUE_ID is reported".into()),
            _ => Outcome::No("not reported; optional".into()),
        })?,
    );
    report.add(
        "value-hidden",
        with(&|session, key| {
            let value = session.get_attributes(key, &[AttributeType::Value]);
            let shown =
                value.map(|found| found.iter().any(|a| matches!(a, Attribute::Value(v) if !v.is_empty())));
            match shown {
                Ok(true) => Outcome::No("CKA_VALUE can be read".into()),
                Ok(false) => Outcome::Yes("CKA_VALUE is not given".into()),
                Err(error) => Outcome::Yes(format!("refused: {error}")),
            }
        })?,
    );
    report.add(
        "copy-refused",
        with(&|session, key| {
            let copy = [Attribute::Label(scratch.label("copy").into_bytes())];
            Outcome::refused(session.copy_object(key, &copy), "C_CopyObject makes a second root")
        })?,
    );
    report.add(
        "change-refused",
        with(&|session, key| {
            let change = session.update_attributes(key, &[Attribute::Extractable(true)]);
            Outcome::refused(change, "CKA_EXTRACTABLE can be set afterwards")
        })?,
    );
    report.add("wrap-refused", with(&|session, key| wrap(session, key))?);
    cmac::check(scratch, report)
}

/// Tries to carry the root out under a key that wraps. Another key that may leave is wrapped first: a token
/// that cannot wrap at all refuses for another reason.
fn wrap(session: &Session, root: ObjectHandle) -> Outcome {
    let wrapping = [
        Attribute::Token(false),
        Attribute::ValueLen(Ulong::new(32)),
        Attribute::Wrap(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
    ];
    let free = [Attribute::Token(false), Attribute::ValueLen(Ulong::new(32)), Attribute::Extractable(true)];
    let mut control = "the token wraps nothing";
    let wrapping = match session.generate_key(&Mechanism::AesKeyGen, &wrapping) {
        Ok(key) => key,
        Err(error) => return Outcome::Yes(format!("{control}: {error}")),
    };
    if let Ok(key) = session.generate_key(&Mechanism::AesKeyGen, &free)
        && session.wrap_key(&Mechanism::AesKeyWrap, wrapping, key).is_ok()
    {
        control = "an extractable key is wrapped, the root";
    }
    match session.wrap_key(&Mechanism::AesKeyWrap, wrapping, root) {
        Ok(_) => Outcome::No("C_WrapKey carries the root out".into()),
        Err(error) => Outcome::Yes(format!("{control}: refused: {error}")),
    }
}

struct Pair {
    public: ObjectHandle,
    private: ObjectHandle,
    point: Vec<u8>,
}

fn pair(
    session: &Session,
    label: &str,
    mechanism: &Mechanism<'_>,
    curve: &[u8],
    derive: bool,
) -> Result<Pair, Error> {
    let public = [
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::Label(label.into()),
        Attribute::EcParams(curve.to_vec()),
    ];
    let mut private = confined(label);
    private.push(Attribute::Sign(true));
    if derive {
        private.push(Attribute::Derive(true));
    }
    let make = |private: &[Attribute]| session.generate_key_pair(mechanism, &public, private);
    let (public, private) = make(&private).or_else(|_| make(&without_policies(&private)))?;
    let point = match session.get_attributes(public, &[AttributeType::EcPoint])?.into_iter().next() {
        Some(Attribute::EcPoint(encoded)) => bare_point(encoded),
        _ => return Err(Error::InvalidValue),
    };
    Ok(Pair { public, private, point })
}

fn forget(session: &Session, pair: &Pair) {
    // What stays is swept at the end of the run.
    let _ = session.destroy_object(pair.private);
    let _ = session.destroy_object(pair.public);
}

/// The identity and federation keys.
pub(super) fn keys(scratch: &Scratch, report: &mut Report) -> Result<(), TokenError> {
    let label = scratch.label("identity");
    let made = scratch.session(|session| {
        let pair = pair(session, &label, &Mechanism::EccKeyPairGen, &SECP256K1_OID, true)?;
        let signed = secp256k1(session, &pair);
        let flags = attributes(session, pair.private, &BORN_HERE);
        let raw = exchange(session, &pair, false);
        let wrapped = exchange(session, &pair, true);
        forget(session, &pair);
        Ok((signed, flags, raw, wrapped))
    })?;
    let [signed, flags, raw, wrapped] = match made {
        Ok((signed, flags, raw, wrapped)) => [signed, flags, raw, wrapped],
        Err(error) => std::array::from_fn(|_| Outcome::No(error.to_string())),
    };
    report.add("ecdsa-secp256k1", signed);
    report.add("key-attributes", flags);
    report.add("ecdh-raw", raw);
    report.add("ecdh-der", wrapped);

    let label = scratch.label("p256");
    let result = scratch.session(|session| {
        let pair = pair(session, &label, &Mechanism::EccKeyPairGen, &P256_OID, false)?;
        let signature = session.sign(&Mechanism::Ecdsa, pair.private, &Sha256::digest(CONTEXT))?;
        let (key, signature) = (federation_key(&pair.point), low_s(&signature));
        forget(session, &pair);
        Ok(key.zip(signature).is_some_and(|(key, signature)| key.verifies(CONTEXT, &signature)))
    })?;
    report.add("ecdsa-p256", in_software(result));

    let label = scratch.label("ed25519");
    let result = scratch.session(|session| {
        let pair = pair(session, &label, &Mechanism::EccEdwardsKeyPairGen, &ED25519, false)?;
        let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
        let signature = session.sign(&mechanism, pair.private, CONTEXT)?;
        let key = federation_key(&pair.point);
        forget(session, &pair);
        Ok(key.is_some_and(|key| key.verifies(CONTEXT, &signature)))
    })?;
    report.add("ed25519", in_software(result));
    report.add(
        "federation-key",
        match (report.is_yes("ed25519"), report.is_yes("ecdsa-p256")) {
            (true, true) => Outcome::Yes("ed25519 or ecdsa-p256".into()),
            (true, false) => Outcome::Yes("ed25519".into()),
            (false, true) => Outcome::Yes("ecdsa-p256; no EdDSA: set token.keys.federation_key".into()),
            (false, false) => Outcome::No("neither ed25519 nor ecdsa-p256".into()),
        },
    );
    Ok(())
}

fn in_software(result: Result<bool, Error>) -> Outcome {
    match result {
        Ok(true) => Outcome::Yes("verifies in software".into()),
        Ok(false) => Outcome::No("does not verify in software".into()),
        Err(error) => Outcome::No(error.to_string()),
    }
}

fn secp256k1(session: &Session, pair: &Pair) -> Outcome {
    let Ok(key) = PublicKey::from_slice(&pair.point) else {
        return Outcome::No("public key is not a point".into());
    };
    let mut high = 0usize;
    for number in 0..SIGNATURES {
        let digest = [u8::try_from(number).unwrap_or(0); 32];
        let bytes = match session.sign(&Mechanism::Ecdsa, pair.private, &digest) {
            Ok(bytes) => bytes,
            Err(error) => return Outcome::No(error.to_string()),
        };
        let Ok(mut signature) = ecdsa::Signature::from_compact(&bytes) else {
            return Outcome::No(format!("signature of {} bytes is malformed", bytes.len()));
        };
        let before = signature;
        signature.normalize_s();
        high = high.saturating_add(usize::from(before != signature));
        if SECP256K1.verify_ecdsa(&Message::from_digest(digest), &signature, &key).is_err() {
            return Outcome::No("does not verify in software".into());
        }
    }
    Outcome::Yes(format!("verifies in software; high S in {high} of {SIGNATURES}, normalised by us"))
}

/// ECDH with a point in its raw form, or wrapped into a DER octet string, against software.
fn exchange(session: &Session, pair: &Pair, der: bool) -> Outcome {
    let mut bytes = [0u8; 32];
    OsRng.fill_bytes(&mut bytes);
    let (Ok(secret), Ok(ours)) = (SecretKey::from_slice(&bytes), PublicKey::from_slice(&pair.point)) else {
        return Outcome::No("public key is not a point".into());
    };
    let raw = PublicKey::from_secret_key(SECP256K1, &secret).serialize_uncompressed();
    let mut point = if der { vec![0x04, 65] } else { Vec::new() };
    point.extend_from_slice(&raw);
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(Ulong::new(32)),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), &point));
    let value = session.derive_key(&mechanism, pair.private, &template).and_then(|shared| {
        let value = session.get_attributes(shared, &[AttributeType::Value]);
        session.destroy_object(shared)?;
        value
    });
    let expected = ecdh::shared_secret_point(&ours, &secret);
    match value.map(|found| found.into_iter().next()) {
        Ok(Some(Attribute::Value(value))) if expected.get(..32) == Some(value.as_slice()) => {
            Outcome::Yes("x coordinate, as in software, readable".into())
        }
        Ok(_) => Outcome::No("result is not the x coordinate".into()),
        Err(error) => Outcome::No(error.to_string()),
    }
}
