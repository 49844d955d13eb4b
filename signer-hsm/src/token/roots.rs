//! Roots: made, listed, used and destroyed.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::Session;
use spark_signer::vault::{RootId, TokenError};
use zeroize::Zeroizing;

use super::error::token_error;
use super::link::Link;
use super::objects::{Birth, Kind, Name, ROOT, SENTINEL, assert_confined, hmac_key, with_policies};
use super::profile::{Profile, RootMechanism};

const FINGERPRINT_CONTEXT: &[u8] = b"spark/token/fingerprint/v1";
const SENTINEL_CONTEXT: &[u8] = b"spark/token/sentinel/v1";

fn name(root: &RootId) -> Name {
    Name { kind: Kind::Secret, label: ROOT, id: Some(root.to_bytes()) }
}

fn mac(profile: RootMechanism) -> Mechanism<'static> {
    match profile {
        RootMechanism::HmacSha256 => Mechanism::Sha256Hmac,
    }
}

/// The sentinel is found and computes: an empty list of roots means what it says. A library whose token
/// went away answers every search with "nothing", without an error.
fn sentinel(session: &Session) -> Result<(), TokenError> {
    let found = session.find_objects(&Name::new(Kind::Secret, SENTINEL).template()).map_err(token_error)?;
    let sentinel = found.first().ok_or(TokenError::NoObjects)?;
    session.sign(&mac(RootMechanism::HmacSha256), *sentinel, SENTINEL_CONTEXT).map_err(token_error)?;
    Ok(())
}

/// What the sentinel, made with the token and never anywhere else, computes of a constant.
pub(super) fn fingerprint(link: &Link) -> Result<[u8; 32], TokenError> {
    link.run(|_, session| {
        let found =
            session.find_objects(&Name::new(Kind::Secret, SENTINEL).template()).map_err(token_error)?;
        let sentinel = found.first().ok_or(TokenError::NoObjects)?;
        let output = session
            .sign(&mac(RootMechanism::HmacSha256), *sentinel, FINGERPRINT_CONTEXT)
            .map_err(token_error)?;
        output.try_into().map_err(|_| TokenError::WrongAnswer("HMAC output has a wrong length"))
    })
}

/// Checks that the token can list its objects.
pub(super) fn assert_listable(link: &Link) -> Result<(), TokenError> {
    link.run(|_, session| sentinel(session))
}

/// Makes the sentinel; refuses when there is one or there are roots.
pub(super) fn create_sentinel(link: &Link, profile: &Profile) -> Result<(), TokenError> {
    link.mutate(|_, session| {
        let any = [Attribute::Label(SENTINEL.into())];
        let roots = [Attribute::Label(ROOT.into())];
        if !session.find_objects(&any).map_err(token_error)?.is_empty()
            || !session.find_objects(&roots).map_err(token_error)?.is_empty()
        {
            return Err(TokenError::Failed("roots token has been set up before".into()));
        }
        let template = hmac_key(SENTINEL, b"sentinel");
        let handle = with_policies(profile, &template, |template| {
            session.generate_key(&Mechanism::GenericSecretKeyGen, template)
        })?;
        assert_confined(session, profile, handle, SENTINEL, Birth::Local)
    })
}

/// Roots by name, and objects that a crash inside the library left without one.
fn survey(session: &Session) -> Result<(Vec<RootId>, Vec<ObjectHandle>), TokenError> {
    let (mut roots, mut broken) = (Vec::new(), Vec::new());
    for handle in session.find_objects(&[Attribute::Label(ROOT.into())]).map_err(token_error)? {
        let id = session.get_attributes(handle, &[AttributeType::Id]).map_err(token_error)?;
        match id.first() {
            Some(Attribute::Id(id)) if id.len() == 16 => roots.extend(RootId::from_bytes(id)),
            _ => broken.push(handle),
        }
    }
    sentinel(session)?;
    Ok((roots, broken))
}

pub(super) fn list(link: &Link) -> Result<Vec<RootId>, TokenError> {
    link.run(|_, session| Ok(survey(session)?.0))
}

pub(super) fn create(link: &Link, profile: &Profile, root: &RootId) -> Result<(), TokenError> {
    link.mutate(|_, session| {
        let (present, broken) = survey(session)?;
        if present.contains(root) {
            return Err(TokenError::RootExists(*root));
        }
        for handle in broken {
            session.destroy_object(handle).map_err(token_error)?;
        }
        let template = hmac_key(ROOT, &root.to_bytes());
        let handle = with_policies(profile, &template, |template| {
            session.generate_key(&Mechanism::GenericSecretKeyGen, template)
        })?;
        assert_confined(session, profile, handle, ROOT, Birth::Local)
    })
}

pub(super) fn derive(
    link: &Link,
    profile: &Profile,
    root: &RootId,
    context: &[u8],
) -> Result<Zeroizing<[u8; 32]>, TokenError> {
    let name = name(root);
    link.run(|link, session| {
        let check = |handle| assert_confined(session, profile, handle, ROOT, Birth::Local);
        let Some(handle) = link.handle(session, &name, check)? else {
            // Only a token that can be listed may say that a root is missing.
            sentinel(session)?;
            return Err(TokenError::RootMissing(*root));
        };
        let output = session.sign(&mac(profile.root_mechanism), handle, context).map_err(|error| {
            // A retired handle fails in many ways; look it up again next time.
            link.forget(&name);
            token_error(error)
        })?;
        let output = Zeroizing::new(output);
        let mut key = Zeroizing::new([0u8; 32]);
        if output.len() != key.len() {
            return Err(TokenError::WrongAnswer("HMAC output has a wrong length"));
        }
        key.copy_from_slice(&output);
        Ok(key)
    })
}

/// Destroys, then checks that the handle is dead, that a search finds nothing, and that searches work.
pub(super) fn destroy(link: &Link, root: &RootId) -> Result<(), TokenError> {
    let name = name(root);
    link.mutate(|link, session| {
        link.forget(&name);
        let found = session.find_objects(&name.template()).map_err(token_error)?;
        if found.is_empty() {
            sentinel(session)?;
            return Err(TokenError::RootMissing(*root));
        }
        for handle in &found {
            session.destroy_object(*handle).map_err(|_| TokenError::NotDestroyed(*root))?;
        }
        let alive = |handle: &ObjectHandle| session.get_attributes(*handle, &[AttributeType::Id]).is_ok();
        let left = session.find_objects(&name.template()).map_err(|_| TokenError::NotDestroyed(*root))?;
        if !left.is_empty() || found.iter().any(alive) || sentinel(session).is_err() {
            return Err(TokenError::NotDestroyed(*root));
        }
        Ok(())
    })
}
