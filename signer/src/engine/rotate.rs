//! What a person asks the running signer for besides alarms and devices: a new root without a deletion, and where
//! everything stands.

use prost::Message as _;
use spark_proto::signer::v1 as wire;
use spark_rules::vote::Position;

use super::{Engine, EngineError, deletion_log, journal};
use crate::vault::{CommitError, TokenError};

/// Epochs before and after a rotation; equal if it was not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotated {
    /// Before.
    pub before: u64,
    /// After: every root before it is to be gone.
    pub after: u64,
}

/// The highest statement of a peer that this signer remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Where the peer stood.
    pub position: Position,
}

/// Where the signer stands, in numbers that only grow, and the head of its log: what may not be forgotten of a signer
/// that is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// This signer.
    pub position: Position,
    /// Last entry of the journal.
    pub journal: u64,
    /// Every root of an earlier epoch is confirmed to be destroyed.
    pub destroyed_before: u64,
    /// Entries of the log.
    pub log_size: u64,
    /// Signed head of the log.
    pub checkpoint: String,
    /// What peers were seen to say.
    pub seen: Vec<Mark>,
}

impl Engine {
    /// Seals the store under a new root and destroys the old one, if the present epoch is still `epoch`: a repeated
    /// call rotates once.
    pub fn rotate_root(&mut self, epoch: u64) -> Result<Rotated, EngineError> {
        self.shared.heard()?;
        let before = self.vault.epoch();
        if epoch > before {
            return Err(EngineError::Malformed("epoch"));
        }
        if epoch == before {
            match self.vault.renew_root() {
                Ok(_) => {}
                // It is done without that device, which is away now and shows as unconfirmed.
                Err(CommitError::Token(TokenError::DeviceAway(_))) if self.vault.epoch() > before => {}
                Err(error) => {
                    self.shared.alarm("commit_failed");
                    return Err(EngineError::Commit(error.to_string()));
                }
            }
            if !self.vault.destroy_pending().is_empty() {
                self.shared.alarm("destroy_pending");
            }
            self.note_devices();
        }
        Ok(Rotated { before: epoch, after: self.vault.epoch() })
    }

    /// Where everything stands, in one moment.
    pub fn marks(&mut self) -> Result<Marks, EngineError> {
        let txn = self.vault.begin();
        let mut seen = Vec::new();
        for (_, value) in txn.scan_records(b"seen/")? {
            let statement = wire::SeenStatement::decode(value.as_slice())?;
            seen.push(Mark { position: Position::parse(statement.position.as_ref())? });
        }
        Ok(Marks {
            position: self.shared.committed_position(&txn),
            journal: journal::head(&txn)?,
            destroyed_before: deletion_log::destroyed_before(&txn)?,
            log_size: deletion_log::size(&txn)?,
            checkpoint: self.shared.checkpoint(&txn)?.checkpoint,
            seen,
        })
    }
}
