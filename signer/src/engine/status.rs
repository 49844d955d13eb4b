//! Where the signer stands.

use spark_proto::signer::v1 as wire;
use spark_rules::vote::Position;

use super::{EngineError, Shared, ledger};
use crate::vault::Txn;

impl Shared {
    /// Where the last commit ended: for statements that change nothing.
    pub(super) fn committed_position(&self, txn: &Txn<'_>) -> Position {
        let vault = txn.committed();
        Position {
            federation_epoch: self.federation.epoch(),
            signer: self.me,
            incarnation: self.incarnation,
            root_epoch: vault.epoch(),
            sequence: vault.sequence(),
        }
    }

    pub(super) fn status(&self, txn: &Txn<'_>) -> Result<wire::GetStatusResponse, EngineError> {
        Ok(wire::GetStatusResponse {
            position: Some(self.committed_position(txn).to_wire()),
            locked: self.gate.is_locked(),
            identity_public_key: self.token.identity_public_key().serialize().to_vec(),
            federation_public_key: self.token.federation_public_key().as_bytes().to_vec(),
            federation_hash: self.federation.hash().to_vec(),
            keyshares_available: ledger::free_keyshares(txn, self.me)? as u64,
            nonces_open: self.nonces.len() as u64,
            alarms: self.alarms.kinds().map(str::to_owned).collect(),
            repair: Some(self.repair_status(txn)?),
        })
    }
}
