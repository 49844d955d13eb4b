//! Sessions with one token.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use spark_signer::vault::TokenError;

use super::config::{Security, TokenRef};
use super::error::token_error;
use super::inventory::TokenInfo;
use super::module::Module;
use super::objects::Name;
use super::pin;
use super::separate::shared;

/// Idle sessions kept. Taken from the front and returned to the back, so consecutive calls differ.
const MAX_IDLE: usize = 16;
const MIN_IDLE: usize = 2;

/// A token and its sessions. Login holds for the whole application as long as any session is open, so one
/// is kept open and never used.
pub(super) struct Link {
    module: Arc<Module>,
    label: String,
    serial: Option<String>,
    pin: AuthPin,
    pin_refused: AtomicBool,
    never: OnceLock<TokenInfo>,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    anchor: Option<(Slot, Session)>,
    idle: VecDeque<Session>,
    mutator: Option<Session>,
    handles: HashMap<Name, ObjectHandle>,
}

impl Link {
    /// Finds the token and logs in.
    pub(super) fn new(
        module: &Arc<Module>,
        token: &TokenRef,
        security: Security,
    ) -> Result<Arc<Self>, TokenError> {
        let link = Self::later(module, token, security)?;
        let context = link.module.context();
        link.connect(&context, &mut link.sessions())?;
        drop(context);
        Ok(link)
    }

    /// Reads the PIN only: finds the token and logs in at the first call.
    pub(super) fn later(
        module: &Arc<Module>,
        token: &TokenRef,
        security: Security,
    ) -> Result<Arc<Self>, TokenError> {
        let link = Arc::new(Self {
            module: Arc::clone(module),
            label: token.label.clone(),
            serial: token.serial.clone(),
            pin: pin::read(token, security)?,
            pin_refused: AtomicBool::new(false),
            never: OnceLock::new(),
            sessions: Mutex::default(),
        });
        module.register(&link);
        Ok(link)
    }

    /// From now on this token is none of its own, whatever its label: a log-in to it is refused.
    pub(super) fn never(&self, token: TokenInfo) {
        let _ = self.never.set(token);
    }

    /// What the token says of itself.
    pub(super) fn info(&self) -> Result<TokenInfo, TokenError> {
        let context = self.module.context();
        TokenInfo::read(&context, self.slot(&context)?)
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an operation that may safely run twice: once more with fresh sessions if the token was
    /// unavailable. The session is kept only after success.
    pub(super) fn run<T>(
        &self,
        operation: impl Fn(&Self, &Session) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        let context = self.module.context();
        let attempt = || {
            let session = self.checkout(&context)?;
            let result = operation(self, &session)?;
            self.checkin(session);
            Ok(result)
        };
        match attempt() {
            Err(TokenError::Unavailable(_)) => {
                self.reset();
                attempt()
            }
            result => result,
        }
    }

    /// Runs an operation that changes objects, once, on the one writing session.
    pub(super) fn mutate<T>(
        &self,
        operation: impl FnOnce(&Self, &Session) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        let context = self.module.context();
        let session = {
            let mut sessions = self.sessions();
            let slot = self.connect(&context, &mut sessions)?;
            match sessions.mutator.take() {
                Some(session) => session,
                None => context.open_rw_session(slot).map_err(token_error)?,
            }
        };
        let result = operation(self, &session)?;
        self.sessions().mutator = Some(session);
        Ok(result)
    }

    /// A writing session of its own for one use: whatever goes wrong with it goes with it. The inner result is
    /// the device's own.
    pub(super) fn fresh<T>(
        &self,
        body: impl FnOnce(&Session) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, TokenError> {
        let context = self.module.context();
        let slot = self.slot(&context)?;
        let session = context.open_rw_session(slot).map_err(token_error)?;
        Ok(body(&session))
    }

    /// The token's slot; logged in from then on.
    pub(super) fn slot(&self, context: &Pkcs11) -> Result<Slot, TokenError> {
        self.connect(context, &mut self.sessions())
    }

    /// Handle of a named object, remembered until something fails. `check` runs whenever it is looked up.
    pub(super) fn handle(
        &self,
        session: &Session,
        name: &Name,
        check: impl FnOnce(ObjectHandle) -> Result<(), TokenError>,
    ) -> Result<Option<ObjectHandle>, TokenError> {
        if let Some(handle) = self.sessions().handles.get(name) {
            return Ok(Some(*handle));
        }
        let found = session.find_objects(&name.template()).map_err(token_error)?;
        match found.as_slice() {
            [] => Ok(None),
            [handle] => {
                check(*handle)?;
                self.sessions().handles.insert(name.clone(), *handle);
                Ok(Some(*handle))
            }
            _ => Err(TokenError::WrongAnswer("a key exists twice")),
        }
    }

    /// The handle of an object that was made just now, and checked.
    pub(super) fn remember(&self, name: Name, handle: ObjectHandle) {
        self.sessions().handles.insert(name, handle);
    }

    /// Its handle, if it was known.
    pub(super) fn forget(&self, name: &Name) -> Option<ObjectHandle> {
        self.sessions().handles.remove(name)
    }

    /// Closes all idle sessions and forgets all handles.
    pub(super) fn reset(&self) {
        *self.sessions() = Sessions::default();
    }

    fn checkout(&self, context: &Pkcs11) -> Result<Session, TokenError> {
        let mut sessions = self.sessions();
        let slot = self.connect(context, &mut sessions)?;
        match sessions.idle.pop_front() {
            Some(session) => Ok(session),
            None => context.open_ro_session(slot).map_err(token_error),
        }
    }

    fn checkin(&self, session: Session) {
        let mut sessions = self.sessions();
        if sessions.idle.len() < MAX_IDLE {
            sessions.idle.push_back(session);
        }
    }

    fn connect(&self, context: &Pkcs11, sessions: &mut Sessions) -> Result<Slot, TokenError> {
        if let Some((slot, _)) = &sessions.anchor {
            return Ok(*slot);
        }
        // Another try would bring the PIN nearer to being locked.
        if self.pin_refused.load(Ordering::Relaxed) {
            return Err(TokenError::PinRefused);
        }
        let slot = self.find_slot(context)?;
        if let Some(never) = self.never.get()
            && TokenInfo::read(context, slot)?.is_token(never)
        {
            return Err(shared("the keys token was named as a device with roots"));
        }
        let anchor = context.open_ro_session(slot).map_err(token_error)?;
        match anchor.login(UserType::User, Some(&self.pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => {
                let error = token_error(error);
                if matches!(error, TokenError::PinRefused | TokenError::PinLocked) {
                    self.pin_refused.store(true, Ordering::Relaxed);
                }
                return Err(error);
            }
        }
        while sessions.idle.len() < MIN_IDLE {
            sessions.idle.push_back(context.open_ro_session(slot).map_err(token_error)?);
        }
        sessions.anchor = Some((slot, anchor));
        Ok(slot)
    }

    fn find_slot(&self, context: &Pkcs11) -> Result<Slot, TokenError> {
        match find_slots(context, &self.label, self.serial.as_deref())?.as_slice() {
            [slot] => Ok(*slot),
            [] => Err(TokenError::Unavailable(format!("no token with label {}", self.label))),
            _ => {
                Err(TokenError::Failed(format!("several tokens with label {}: name the serial", self.label)))
            }
        }
    }
}

/// Where tokens of this label are, and of this serial number, if one is given.
fn find_slots(context: &Pkcs11, label: &str, serial: Option<&str>) -> Result<Vec<Slot>, TokenError> {
    let mut found = Vec::new();
    for slot in context.get_slots_with_initialized_token().map_err(token_error)? {
        let info = context.get_token_info(slot).map_err(token_error)?;
        if info.label() == label && serial.is_none_or(|serial| info.serial_number() == serial) {
            found.push(slot);
        }
    }
    Ok(found)
}
