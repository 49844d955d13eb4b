use std::{future::Future, time::Duration};

use crate::db::{Db, DbError, event, event_cursor};

/// How often old rows are looked for.
const EVERY: Duration = Duration::from_secs(3600);

/// Forgets events, and streams that ended, after some days; until `shutdown`.
pub async fn retain(db: Db, days: u16, shutdown: impl Future<Output = ()>) {
    tokio::pin!(shutdown);
    loop {
        match forget(&db, days.into()).await {
            Ok((0, 0)) => {}
            Ok((events, streams)) => tracing::info!(events, streams, days, "old events are forgotten"),
            Err(error) => tracing::warn!(%error, "old events are not forgotten"),
        }
        tokio::select! {
            () = &mut shutdown => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn forget(db: &Db, days: i32) -> Result<(u64, u64), DbError> {
    Ok((event::trim(db.pool(), days).await?, event_cursor::trim(db.pool(), days).await?))
}
