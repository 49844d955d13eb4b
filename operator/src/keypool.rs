//! Distributed key generation: keeps a pool of unused keyshares. Operators relay; signers encrypt and sign.

use std::{future::Future, time::Duration};

use futures::future::try_join_all;
use spark_proto::signer::v1 as wire;
use spark_rules::{
    federation::Federation,
    ids::{IdError, KeyshareId, OperatorIndex},
    point::{self, PointError},
};
use uuid::Uuid;

use crate::{
    call::CallError,
    db::{
        Db, DbError,
        keyshare::{self, KeyshareRow},
        operation::index_column,
    },
    peer::Signers,
};

/// Most keys of one batch.
pub const MAX_BATCH: u32 = 64;
/// How often a full pool is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The first pause after a failure; the peers of an operator that just started are often a moment behind.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause is reached by then.
const MOST_DOUBLINGS: u32 = 8;

/// A batch that gave no keys. It is abandoned; the next one starts anew.
#[derive(Debug, thiserror::Error)]
pub enum KeypoolError {
    /// A signer was not reached or refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A keyshare of the result has no legal id.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A key of the result is no point.
    #[error(transparent)]
    Point(#[from] PointError),
    /// The result does not fit the federation.
    #[error("{0}")]
    Result(&'static str),
}

/// Records what a confirmed batch made; a repeat changes nothing.
pub async fn record(
    db: &Db,
    federation: &Federation,
    session_id: &[u8],
    confirmed: &wire::DkgConfirmResponse,
) -> Result<(), KeypoolError> {
    let session =
        Uuid::from_slice(session_id).map_err(|_| KeypoolError::Result("session id must have 16 bytes"))?;
    for key in &confirmed.keyshares {
        if key.public_shares.len() != usize::from(federation.size()) {
            return Err(KeypoolError::Result("one public share per operator expected"));
        }
        point::parse("group key", &key.group_key)?;
        for share in &key.public_shares {
            point::parse("public share", share)?;
        }
        let owner = OperatorIndex::from_wire(key.owner)?;
        let row = KeyshareRow {
            keyshare_id: KeyshareId::parse(&key.keyshare_id)?.uuid(),
            owner_index: index_column(owner),
            state: "AVAILABLE".to_owned(),
            group_key: key.group_key.clone(),
            public_shares: key.public_shares.concat(),
            dkg_session: session,
        };
        keyshare::insert(db.pool(), &row).await?;
    }
    Ok(())
}

/// The pool of one operator.
#[derive(Debug, Clone)]
pub struct Keypool {
    db: Db,
    federation: std::sync::Arc<Federation>,
    signers: Signers,
    target: u32,
}

impl Keypool {
    /// Keeps `target` unused keyshares.
    pub const fn new(db: Db, federation: std::sync::Arc<Federation>, signers: Signers, target: u32) -> Self {
        Self { db, federation, signers, target }
    }

    /// Unused keyshares of this operator.
    pub async fn available(&self) -> Result<u32, DbError> {
        let count = keyshare::available(self.db.pool(), index_column(self.signers.own_index())).await?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Fills the pool until `shutdown`.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        let mut failures: u32 = 0;
        loop {
            let pause = match self.fill_once().await {
                Ok(0) => {
                    failures = 0;
                    LOOK
                }
                Ok(made) => {
                    tracing::info!(made, "keyshares generated");
                    failures = 0;
                    Duration::ZERO
                }
                Err(error) => {
                    let pause = SHORTEST_PAUSE.saturating_mul(1 << failures).min(LONGEST_PAUSE);
                    failures = (failures + 1).min(MOST_DOUBLINGS);
                    tracing::warn!(%error, retry_in = ?pause, "key generation failed");
                    pause
                }
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One batch, if the pool is short. Returns how many keys it made.
    pub async fn fill_once(&self) -> Result<u32, KeypoolError> {
        let missing = self.target.saturating_sub(self.available().await?).min(MAX_BATCH);
        if missing == 0 {
            return Ok(0);
        }
        self.generate(missing).await.map(|()| missing)
    }

    async fn generate(&self, count: u32) -> Result<(), KeypoolError> {
        let session_id = Uuid::new_v4().as_bytes().to_vec();
        let (signers, members) = (&self.signers, self.signers.members());
        let start = wire::DkgStartRequest {
            session_id: session_id.clone(),
            initiator: signers.own_index().get().into(),
            count,
        };
        let messages = try_join_all(members.iter().map(|i| signers.dkg_start(*i, start.clone()))).await?;
        let round1 = wire::DkgRound1Set { session_id: session_id.clone(), messages };
        let messages = try_join_all(members.iter().map(|i| signers.dkg_respond(*i, round1.clone()))).await?;
        let round2 = wire::DkgRound2Set { session_id: session_id.clone(), messages };
        let messages = try_join_all(members.iter().map(|i| signers.dkg_finish(*i, round2.clone()))).await?;
        let transcripts = wire::DkgTranscriptSet { session_id: session_id.clone(), messages };
        // Peers record their keys before we may use ours.
        let peers = members.iter().filter(|i| **i != signers.own_index());
        let theirs = try_join_all(peers.map(|i| signers.dkg_confirm(*i, transcripts.clone()))).await?;
        let ours = signers.own().dkg_confirm(transcripts).await?;
        if theirs.iter().any(|t| t.keyshares != ours.keyshares) {
            return Err(KeypoolError::Result("signers report different keys"));
        }
        record(&self.db, &self.federation, &session_id, &ours).await
    }
}
