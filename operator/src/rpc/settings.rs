//! Wallet settings, and what they let others read.
//!
//! What concerns an identity is its owner's alone, unless the owner opens it: to everybody with a session, or to one
//! master identity. Where the operator's configuration opens reads, it is the other way round, as on the public network:
//! open to everybody, also without a session, unless the owner closes it. An operator opens or closes what its own
//! session of the owner says, and nothing that another operator says.

use secp256k1::PublicKey;
use spark_proto::spark::{self, update_wallet_setting_request::MasterIdentityPublicKey as Master};

use super::{Api, input};
use crate::{
    authn::{Reader, Session},
    db::wallet_setting::{self, SettingRow},
    status::Refused,
};

/// An identity whose data a session may read, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Readable {
    /// Whose.
    pub(super) owner: PublicKey,
    /// Only what is open to everybody: where others take part, they must have opened theirs, too.
    pub(super) as_stranger: bool,
}

impl Api {
    /// The identity that a query names, if the reader may read about it. Where reads are open, a closed identity looks
    /// like one that has nothing: `None`.
    pub(super) async fn readable(
        &self,
        field: &'static str,
        identity: &[u8],
        reader: &Reader,
    ) -> Result<Option<Readable>, Refused> {
        let owner = input::key(field, identity)?;
        if Some(owner) == reader.identity {
            return Ok(Some(Readable { owner, as_stranger: false }));
        }
        let open = self.parts.open_reads;
        let setting = wallet_setting::get(self.parts.db.pool(), &owner.serialize(), !open).await?;
        let is_master = setting.master == reader.identity.map(|key| key.serialize().to_vec());
        let is_master = is_master && reader.identity.is_some();
        if !is_master && setting.private {
            return if open { Ok(None) } else { Err(Refused::not_owner()) };
        }
        Ok(Some(Readable { owner, as_stranger: !is_master }))
    }

    pub(super) async fn update_setting(
        &self,
        session: &Session,
        request: spark::UpdateWalletSettingRequest,
    ) -> Result<spark::UpdateWalletSettingResponse, Refused> {
        let master = match &request.master_identity_public_key {
            None => None,
            Some(Master::SetMasterIdentityPublicKey(key)) => {
                let master = input::key("set_master_identity_public_key", key)?;
                if master == session.identity {
                    return Err(Refused::field("set_master_identity_public_key", "must be another identity"));
                }
                Some(Some(master.serialize()))
            }
            Some(Master::ClearMasterIdentityPublicKey(true)) => Some(None),
            Some(Master::ClearMasterIdentityPublicKey(false)) => {
                return Err(Refused::field("clear_master_identity_public_key", "must be true"));
            }
        };
        let master = master.as_ref().map(|key| key.as_ref().map(<[u8; 33]>::as_slice));
        if request.private_enabled.is_none() && master.is_none() {
            return Err(Refused::field("private_enabled", "nothing is to be changed"));
        }
        let (pool, closed) = (self.parts.db.pool(), !self.parts.open_reads);
        let identity = session.identity.serialize();
        let row = wallet_setting::update(pool, &identity, request.private_enabled, master, closed).await?;
        Ok(spark::UpdateWalletSettingResponse { wallet_setting: Some(shown(session, row)) })
    }

    pub(super) async fn setting(
        &self,
        session: &Session,
    ) -> Result<spark::QueryWalletSettingResponse, Refused> {
        let identity = session.identity.serialize();
        let row = wallet_setting::get(self.parts.db.pool(), &identity, !self.parts.open_reads).await?;
        Ok(spark::QueryWalletSettingResponse { wallet_setting: Some(shown(session, row)) })
    }
}

fn shown(session: &Session, row: SettingRow) -> spark::WalletSetting {
    spark::WalletSetting {
        owner_identity_public_key: session.identity.serialize().to_vec(),
        private_enabled: row.private,
        master_identity_public_key: row.master,
    }
}
