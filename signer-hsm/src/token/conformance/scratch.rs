//! Objects of one run of the suite.

use std::sync::Arc;

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::Session;
use rand_core::{OsRng, RngCore as _};
use spark_signer::vault::TokenError;

use crate::token::error::token_error;
use crate::token::link::Link;
use crate::token::objects::{
    FEDERATION, IDENTITY, IDENTITY_IMPORTED, ROOT, SENTINEL, root_key, without_policies,
};
use crate::token::profile::RootMechanism;

/// Start of the label of everything that the suite makes.
const PREFIX: &str = "spark-conformance-";

/// A token that may be written to, and the label of this run's objects.
pub(super) struct Scratch {
    pub(super) link: Arc<Link>,
    label: String,
}

impl Scratch {
    pub(super) fn new(link: Arc<Link>) -> Result<Self, TokenError> {
        link.run(|_, session| {
            for label in [ROOT, SENTINEL, IDENTITY, IDENTITY_IMPORTED, FEDERATION] {
                let found = session.find_objects(&[Attribute::Label(label.into())]).map_err(token_error)?;
                if !found.is_empty() {
                    return Err(TokenError::Failed(format!(
                        "this token holds a signer's {label}: use a scratch token"
                    )));
                }
            }
            Ok(())
        })?;
        Ok(Self { link, label: format!("{PREFIX}{:016x}", OsRng.next_u64()) })
    }

    /// Label of one kind of object of this run.
    pub(super) fn label(&self, kind: &str) -> String {
        format!("{}-{kind}", self.label)
    }

    /// A writing session for one check; dropped with whatever is wrong with it.
    pub(super) fn session<T>(
        &self,
        body: impl FnOnce(&Session) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, TokenError> {
        self.link.fresh(body)
    }

    /// A root as the vault makes it; without the object policies if the token does not take them.
    pub(super) fn root(&self, session: &Session, label: &str) -> Result<(ObjectHandle, bool), Error> {
        let template = root_key(RootMechanism::HmacSha256, label, label.as_bytes());
        let make = |template: &[Attribute]| session.generate_key(&Mechanism::GenericSecretKeyGen, template);
        match make(&template) {
            Ok(handle) => Ok((handle, true)),
            Err(_) => make(&without_policies(&template)).map(|handle| (handle, false)),
        }
    }

    /// Handles of this run's objects with exactly this label.
    pub(super) fn find(session: &Session, label: &str) -> Result<Vec<ObjectHandle>, Error> {
        session.find_objects(&[Attribute::Label(label.into())])
    }

    /// Destroys all that this run made; returns how many objects were left over.
    pub(super) fn clean(&self) -> Result<usize, TokenError> {
        self.link
            .fresh(|session| {
                let mut count = 0usize;
                for handle in session.find_objects(&[Attribute::Token(true)])? {
                    let label = session.get_attributes(handle, &[cryptoki::object::AttributeType::Label])?;
                    let ours = label.iter().any(|label| {
                    matches!(label, Attribute::Label(label) if label.starts_with(self.label.as_bytes()))
                });
                    if ours {
                        session.destroy_object(handle)?;
                        count = count.saturating_add(1);
                    }
                }
                Ok(count)
            })?
            .map_err(token_error)
    }
}
