//! Making a signer's keys. Only the ceremony calls this.

use bitcoin::secp256k1::{PublicKey, SECP256K1, SecretKey};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::Session;
use spark_signer::vault::{RootToken as _, TokenError};
use zeroize::Zeroizing;

use super::Pkcs11Token;
use super::config::{DeviceConfig, Security, TokenConfig};
use super::error::token_error;
use super::keys::IdentityMethod;
use super::link::Link;
use super::module::Module;
use super::objects::{
    ED25519, FEDERATION, IDENTITY, IDENTITY_IMPORTED, P256, SECP256K1 as SECP256K1_OID, confined,
    with_policies,
};
use super::profile::{LogSignature, Profile};
use super::roots;
use super::separate;

/// Where the identity key comes from.
pub enum IdentitySource {
    /// Generated in the token.
    Generate,
    /// This private key (32 bytes, big-endian); development only.
    Import(Zeroizing<[u8; 32]>),
}

impl std::fmt::Debug for IdentitySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Generate => "generate",
            Self::Import(_) => "import",
        })
    }
}

/// Prepares a further device to hold roots. Refuses when it has been prepared before.
pub fn prepare_device(config: &DeviceConfig, security: Security) -> Result<(), TokenError> {
    let module = Module::load(&config.module)?;
    let link = Link::new(&module, &config.roots, security)?;
    roots::create_sentinel(&link, &config.profile)
}

/// Makes the identity and federation keys and prepares the roots token. Refuses when any of it exists.
pub fn generate_keys(config: &TokenConfig, identity: &IdentitySource) -> Result<Pkcs11Token, TokenError> {
    if matches!(identity, IdentitySource::Import(_)) && config.security != Security::Development {
        return Err(TokenError::Unsupported("imported identity keys are for development only".into()));
    }
    let profile = config.keys.profile;
    let first = config.first().ok_or(TokenError::NoObjects)?;
    let roots = Link::new(&Module::load(&first.module)?, &first.roots, config.security)?;
    let keys = Link::new(&Module::load(&config.keys.module)?, &config.keys.token, config.security)?;
    if config.security == Security::Production {
        separate::assert_apart(&keys, &keys.info()?, &config.devices)?;
    }
    keys.mutate(|_, session| {
        for label in [IDENTITY, IDENTITY_IMPORTED, FEDERATION] {
            if !session.find_objects(&[Attribute::Label(label.into())]).map_err(token_error)?.is_empty() {
                return Err(TokenError::Failed("keys token has been set up before".into()));
            }
        }
        Ok(())
    })?;
    roots::create_sentinel(&roots, &first.profile)?;
    keys.mutate(|_, session| {
        match identity {
            IdentitySource::Generate => generate_identity(session, &profile)?,
            IdentitySource::Import(secret) => import_identity(session, &profile, secret)?,
        }
        generate_federation(session, &profile)
    })?;
    let token = Pkcs11Token::open(config)?;
    token.sync()?;
    Ok(token)
}

fn public(label: &str) -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::Label(label.into()),
    ]
}

fn generate_identity(session: &Session, profile: &Profile) -> Result<(), TokenError> {
    let label = IdentityMethod::Generated.label();
    let mut public = public(label);
    public.push(Attribute::EcParams(SECP256K1_OID.to_vec()));
    let mut private = confined(label);
    private.extend([Attribute::Sign(true), Attribute::Derive(true)]);
    with_policies(profile, &private, |private| {
        session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, private)
    })?;
    Ok(())
}

fn generate_federation(session: &Session, profile: &Profile) -> Result<(), TokenError> {
    let mut public = public(FEDERATION);
    let (mechanism, curve) = match profile.log_signature {
        LogSignature::Ed25519 => (Mechanism::EccEdwardsKeyPairGen, ED25519.as_slice()),
        LogSignature::EcdsaP256 => (Mechanism::EccKeyPairGen, P256.as_slice()),
    };
    public.push(Attribute::EcParams(curve.to_vec()));
    let mut private = confined(FEDERATION);
    private.push(Attribute::Sign(true));
    with_policies(profile, &private, |private| session.generate_key_pair(&mechanism, &public, private))?;
    Ok(())
}

fn import_identity(session: &Session, profile: &Profile, secret: &[u8; 32]) -> Result<(), TokenError> {
    let label = IdentityMethod::Imported.label();
    let mut key =
        SecretKey::from_slice(secret).map_err(|_| TokenError::WrongAnswer("identity key is out of range"))?;
    let point = PublicKey::from_secret_key(SECP256K1, &key).serialize_uncompressed();
    key.non_secure_erase();
    let mut encoded = vec![0x04, 65];
    encoded.extend_from_slice(&point);
    let mut public = public(label);
    public.extend([
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::EcParams(SECP256K1_OID.to_vec()),
        Attribute::EcPoint(encoded),
    ]);
    let mut private = confined(label);
    private.extend([
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::EcParams(SECP256K1_OID.to_vec()),
        Attribute::Value(secret.to_vec()),
        Attribute::Sign(true),
        Attribute::Derive(true),
    ]);
    let created = with_policies(profile, &private, |private| session.create_object(private));
    for attribute in &mut private {
        if let Attribute::Value(value) = attribute {
            zeroize::Zeroize::zeroize(value);
        }
    }
    created?;
    session.create_object(&public).map_err(token_error)?;
    Ok(())
}
