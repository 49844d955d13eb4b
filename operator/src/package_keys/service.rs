use prost::Message as _;
use spark_proto::{
    packages::v1::{ReserveKeyRequest, ReserveKeyResponse, package_keys_server::PackageKeys},
    signer::v1::PackageKey,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{MOST_HELD, RESERVED_SECONDS};
use crate::{
    authn::Session,
    db::{Db, DbError, package_key},
    status::{Reason, Refused},
};

/// When to ask again where a limit or the stock is exhausted.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Answers from the own tables.
#[derive(Debug, Clone)]
pub struct PackageKeyService {
    db: Db,
}

impl PackageKeyService {
    /// Over the own tables.
    pub const fn new(db: Db) -> Self {
        Self { db }
    }

    async fn reserve(&self, identity: &[u8], request_id: Uuid) -> Result<package_key::Reserved, Refused> {
        let pool = self.db.pool();
        if let Some(before) = package_key::reserved(pool, identity, request_id).await? {
            return Ok(before);
        }
        match package_key::reserve(pool, identity, request_id, RESERVED_SECONDS, MOST_HELD).await {
            Ok(Some(reserved)) => Ok(reserved),
            Ok(None) if package_key::held(pool, identity).await? >= MOST_HELD => {
                Err(Refused::quota("package keys held", AGAIN))
            }
            Ok(None) => {
                Err(Refused::new(Reason::PackageKeysExhausted, "no one-time package key is ready; try again")
                    .retry_after(AGAIN))
            }
            // The same request at the same time.
            Err(DbError::Exists(_)) => package_key::reserved(pool, identity, request_id)
                .await?
                .ok_or_else(|| Refused::new(Reason::OperationInProgress, "the same request is under way")),
            Err(error) => Err(error.into()),
        }
    }
}

#[tonic::async_trait]
impl PackageKeys for PackageKeyService {
    async fn reserve_key(
        &self,
        request: Request<ReserveKeyRequest>,
    ) -> Result<Response<ReserveKeyResponse>, Status> {
        let session = Session::of(&request)?;
        let request_id = Uuid::from_slice(&request.into_inner().request_id)
            .map_err(|_| Refused::field("request_id", "must have 16 bytes"))?;
        let reserved = self.reserve(&session.identity.serialize(), request_id).await?;
        let key = PackageKey::decode(reserved.statement.as_slice())
            .map_err(|_| Refused::from(DbError::Corrupt("package_key.statement")))?;
        let reserved_until = u64::try_from(reserved.reserved_until).unwrap_or_default();
        Ok(Response::new(ReserveKeyResponse { key: Some(key), reserved_until }))
    }
}
