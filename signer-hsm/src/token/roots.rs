//! Roots: made, listed, used and destroyed.

use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::Session;
use spark_signer::vault::{RootId, TokenError};
use zeroize::Zeroizing;

use super::error::token_error;
use super::kdf;
use super::link::Link;
use super::objects::{
    Birth, Kind, Name, ROOT, SENTINEL, assert_confined, root_generation, root_key, with_policies,
};
use super::profile::{Profile, RootMechanism};

const FINGERPRINT_CONTEXT: &[u8] = b"spark/token/fingerprint/v1";
const SENTINEL_CONTEXT: &[u8] = b"spark/token/sentinel/v1";

fn name(root: &RootId) -> Name {
    Name { kind: Kind::Secret, label: ROOT, id: Some(root.to_bytes()) }
}

/// The sentinel is found and computes: an empty list of roots means what it says. A library whose token
/// went away answers every search with "nothing", without an error.
fn sentinel(
    session: &Session,
    mechanism: RootMechanism,
    context: &[u8],
) -> Result<Zeroizing<[u8; 32]>, TokenError> {
    let found = session.find_objects(&Name::new(Kind::Secret, SENTINEL).template()).map_err(token_error)?;
    let sentinel = found.first().ok_or(TokenError::NoObjects)?;
    kdf::derive(session, mechanism, *sentinel, context)
}

fn listable(session: &Session, mechanism: RootMechanism) -> Result<(), TokenError> {
    sentinel(session, mechanism, SENTINEL_CONTEXT).map(drop)
}

/// What the sentinel, made with the token and never anywhere else, computes of a constant.
pub(super) fn fingerprint(link: &Link, mechanism: RootMechanism) -> Result<[u8; 32], TokenError> {
    link.run(|_, session| sentinel(session, mechanism, FINGERPRINT_CONTEXT).map(|print| *print))
}

/// Checks that the token can list its objects.
pub(super) fn assert_listable(link: &Link, mechanism: RootMechanism) -> Result<(), TokenError> {
    link.run(|_, session| listable(session, mechanism))
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
        let kind = profile.root_mechanism;
        let template = root_key(kind, SENTINEL, b"sentinel");
        let handle = with_policies(profile, &template, |template| {
            session.generate_key(&root_generation(kind), template)
        })?;
        assert_confined(session, profile, handle, SENTINEL, Birth::Local)
    })
}

/// Roots by name, and objects that a crash inside the library left without one.
fn survey(
    session: &Session,
    mechanism: RootMechanism,
) -> Result<(Vec<RootId>, Vec<ObjectHandle>), TokenError> {
    let (mut roots, mut broken) = (Vec::new(), Vec::new());
    for handle in session.find_objects(&[Attribute::Label(ROOT.into())]).map_err(token_error)? {
        let id = session.get_attributes(handle, &[AttributeType::Id]).map_err(token_error)?;
        match id.first() {
            Some(Attribute::Id(id)) if id.len() == 16 => roots.extend(RootId::from_bytes(id)),
            _ => broken.push(handle),
        }
    }
    listable(session, mechanism)?;
    Ok((roots, broken))
}

pub(super) fn list(link: &Link, mechanism: RootMechanism) -> Result<Vec<RootId>, TokenError> {
    link.run(|_, session| Ok(survey(session, mechanism)?.0))
}

pub(super) fn create(link: &Link, profile: &Profile, root: &RootId) -> Result<(), TokenError> {
    link.mutate(|link, session| {
        let (present, broken) = survey(session, profile.root_mechanism)?;
        if present.contains(root) {
            return Err(TokenError::RootExists(*root));
        }
        for handle in broken {
            session.destroy_object(handle).map_err(token_error)?;
        }
        let kind = profile.root_mechanism;
        let template = root_key(kind, ROOT, &root.to_bytes());
        let handle = with_policies(profile, &template, |template| {
            session.generate_key(&root_generation(kind), template)
        })?;
        assert_confined(session, profile, handle, ROOT, Birth::Local)?;
        // Searching for it, and asking for its attributes again, costs a token more than using it.
        link.remember(name(root), handle);
        Ok(())
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
            listable(session, profile.root_mechanism)?;
            return Err(TokenError::RootMissing(*root));
        };
        // A retired handle fails in many ways; look it up again next time.
        kdf::derive(session, profile.root_mechanism, handle, context).inspect_err(|_| {
            link.forget(&name);
        })
    })
}

/// Destroys, then checks that the handle is dead, that a search finds nothing, and that searches work.
pub(super) fn destroy(link: &Link, mechanism: RootMechanism, root: &RootId) -> Result<(), TokenError> {
    let name = name(root);
    link.mutate(|link, session| {
        let not_destroyed = |_| TokenError::NotDestroyed(*root);
        let search = || session.find_objects(&name.template());
        // A handle that does not serve any more says nothing about the root.
        let mut gone: Vec<_> =
            link.forget(&name).into_iter().filter(|handle| is_named(session, *handle, &name)).collect();
        for handle in &gone {
            session.destroy_object(*handle).map_err(not_destroyed)?;
        }
        let mut left = search().map_err(|error| match gone.as_slice() {
            [] => token_error(error),
            _ => TokenError::NotDestroyed(*root),
        })?;
        if left.is_empty() && gone.is_empty() {
            listable(session, mechanism)?;
            return Err(TokenError::RootMissing(*root));
        }
        if !left.is_empty() {
            for handle in &left {
                session.destroy_object(*handle).map_err(not_destroyed)?;
            }
            gone.append(&mut left);
            left = search().map_err(not_destroyed)?;
        }
        let alive = |handle: &ObjectHandle| session.get_attributes(*handle, &[AttributeType::Id]).is_ok();
        if !left.is_empty() || gone.iter().any(alive) || listable(session, mechanism).is_err() {
            return Err(TokenError::NotDestroyed(*root));
        }
        Ok(())
    })
}

/// Whether a handle leads to the object of this name.
fn is_named(session: &Session, handle: ObjectHandle, name: &Name) -> bool {
    let found = session.get_attributes(handle, &[AttributeType::Label, AttributeType::Id]);
    let mut wanted = vec![Attribute::Label(name.label.into())];
    wanted.extend(name.id.map(|id| Attribute::Id(id.to_vec())));
    found.is_ok_and(|found| found == wanted)
}
