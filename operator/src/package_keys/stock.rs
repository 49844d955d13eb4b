//! Keeps the stock of one-time keys.

use std::{future::Future, sync::Arc, time::Duration};

use prost::Message as _;
use spark_proto::signer::v1::IssuePackageKeysRequest;
use spark_rules::{
    federation::Federation,
    ids::OperatorIndex,
    package_key::{MAX_BATCH, PackageKey, PackageKeyError},
};
use uuid::Uuid;

use super::{GRACE_SECONDS, RESERVED_SECONDS};
use crate::{
    call::CallError,
    db::{
        Db, DbError,
        package_key::{self, NewKey},
    },
    signer_client::SignerClient,
};

/// Free keys kept ready.
const TARGET: usize = 512;
/// Most keys that are discarded at once.
const MOST_DISCARDED: i64 = 1024;
/// Keys that nobody will use are discarded together, not one by one: each time costs the signer a new root.
const DISCARD_EVERY: Duration = Duration::from_secs(60);
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A batch that gave no keys.
#[derive(Debug, thiserror::Error)]
pub enum StockError {
    /// The signer was not reached or refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The signer states what wallets would refuse.
    #[error(transparent)]
    Key(#[from] PackageKeyError),
    /// A stated expiry is no time.
    #[error("expiry of a package key")]
    Expiry,
}

/// The stock of one operator.
#[derive(Debug)]
pub struct Stock {
    db: Db,
    signer: SignerClient,
    federation: Arc<Federation>,
    own: OperatorIndex,
    /// A request whose answer may have been lost: repeated as it was.
    asked: Option<IssuePackageKeysRequest>,
    /// Tables that were restored show keys as free that were used since: what an earlier process left is not given.
    left_over: bool,
}

impl Stock {
    /// Of the own signer.
    pub const fn new(db: Db, signer: SignerClient, federation: Arc<Federation>, own: OperatorIndex) -> Self {
        Self { db, signer, federation, own, asked: None, left_over: true }
    }

    /// Fills the stock, and lets what nobody will use be destroyed, until `shutdown`.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        let mut pause = SHORTEST_PAUSE;
        let mut discarded = tokio::time::Instant::now();
        loop {
            let discard = discarded.elapsed() >= DISCARD_EVERY;
            match self.once(discard).await {
                Ok(made) => pause = if made > 0 { Duration::ZERO } else { SHORTEST_PAUSE },
                Err(error) => {
                    pause = (pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
                    tracing::warn!(%error, retry_in = ?pause, "no one-time package keys");
                }
            }
            if discard {
                discarded = tokio::time::Instant::now();
            }
            tokio::select! {
                () = &mut shutdown => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One batch, if the stock is short, and the end of what is over, if asked. Returns how many keys it made.
    async fn once(&mut self, discard: bool) -> Result<usize, StockError> {
        let request = match self.asked.take() {
            Some(request) => request,
            None => self.next(discard).await?,
        };
        if request.count == 0 && request.discard.is_empty() {
            return Ok(0);
        }
        self.asked = Some(request.clone());
        let answer = match self.signer.issue_package_keys(request.clone()).await {
            Ok(answer) => answer,
            Err(error) => {
                // What it refused it will refuse again.
                if error.refused() {
                    self.asked = None;
                }
                return Err(error.into());
            }
        };
        let mut keys = Vec::with_capacity(answer.keys.len());
        for statement in &answer.keys {
            let key = PackageKey::verify(statement, &self.federation, self.own, 0)?;
            keys.push(NewKey {
                key_id: Uuid::from_bytes(key.id),
                statement: statement.encode_to_vec(),
                expires: i64::try_from(key.expires).map_err(|_| StockError::Expiry)?,
            });
        }
        package_key::insert(self.db.pool(), &keys).await?;
        let gone: Vec<Uuid> = request.discard.iter().filter_map(|id| Uuid::from_slice(id).ok()).collect();
        package_key::remove(self.db.pool(), &gone).await?;
        self.asked = None;
        Ok(keys.len())
    }

    async fn next(&mut self, discard: bool) -> Result<IssuePackageKeysRequest, StockError> {
        let mut over = Vec::new();
        if self.left_over {
            over = package_key::take_free(self.db.pool(), MOST_DISCARDED).await?;
            self.left_over = over.len() as u64 >= MOST_DISCARDED.unsigned_abs();
        } else if discard {
            over = package_key::over(self.db.pool(), RESERVED_SECONDS, GRACE_SECONDS, MOST_DISCARDED).await?;
        }
        let available = usize::try_from(super::available(&self.db).await?).unwrap_or_default();
        let missing = TARGET.saturating_sub(available);
        // Whole batches only: one costs one signature, whatever its size.
        let count = if missing >= MAX_BATCH { MAX_BATCH } else { 0 };
        Ok(IssuePackageKeysRequest {
            request_id: Uuid::new_v4().as_bytes().to_vec(),
            count: u32::try_from(count).unwrap_or_default(),
            discard: over.iter().map(|id| id.as_bytes().to_vec()).collect(),
        })
    }
}
