//! What makes this operator ready.

use std::time::Duration;

use spark_proto::signer::v1::GetStatusRequest;
use spark_rules::ids::OperatorIndex;
use tokio::sync::watch;

use crate::{
    chain::ChainStatus,
    db::{Db, keyshare, operation::index_column},
    health::Health,
    signer_client::SignerClient,
};

/// The signer's alarms that wallets and peers raise by what they send. A person looks at them; were the operator not
/// ready with one, any wallet could switch it off.
const RAISED_BY_OTHERS: [&str; 4] = ["log_distrusted", "nonce_replayed", "prepare_differs", "rebind"];

/// The checks, and the switch that says when recovery is done.
pub(crate) fn health(
    own: OperatorIndex,
    db: &Db,
    signer: &SignerClient,
    chain: &watch::Receiver<ChainStatus>,
    max_tip_age: Duration,
) -> (Health, watch::Sender<bool>) {
    let (ready, recovered) = watch::channel(false);
    let own = index_column(own);
    let (db, keys, signer, chain) = (db.clone(), db.clone(), signer.clone(), chain.clone());
    let health = Health::default()
        .with("database", move || {
            let db = db.clone();
            async move { db.ping().await.map(|()| "answers".to_owned()).map_err(|e| e.to_string()) }
        })
        .with("signer", move || {
            let signer = signer.clone();
            async move {
                let status = signer.get_status(GetStatusRequest {}).await.map_err(|e| e.to_string())?;
                if status.locked {
                    return Err("locked: the peers' memory was not heard yet".to_owned());
                }
                let repair = status.repair.unwrap_or_default();
                if repair.waiting {
                    return Err(format!("under repair: {} items taken so far", repair.taken));
                }
                let (others, own): (Vec<String>, Vec<String>) =
                    status.alarms.into_iter().partition(|alarm| RAISED_BY_OTHERS.contains(&alarm.as_str()));
                if !own.is_empty() {
                    return Err(format!("alarms: {}", own.join(", ")));
                }
                let mut keyshares = format!("{} keyshares", status.keyshares_available);
                if repair.skipped > 0 {
                    keyshares.push_str(&format!("; {} items are not repaired yet", repair.skipped));
                }
                Ok(if others.is_empty() {
                    keyshares
                } else {
                    format!("{keyshares}; alarms: {}", others.join(", "))
                })
            }
        })
        .with("keyshares", move || {
            let db = keys.clone();
            async move {
                match keyshare::available(db.pool(), own).await {
                    Ok(0) => Err("none unused; the pool is being filled".to_owned()),
                    Ok(unused) => Ok(format!("{unused} unused")),
                    Err(error) => Err(error.to_string()),
                }
            }
        })
        .with("chain", move || {
            let status = chain.borrow().fresh(max_tip_age);
            async move { status }
        })
        .with("recovery", move || {
            let done = *recovered.borrow();
            async move { if done { Ok("done".to_owned()) } else { Err("not finished".to_owned()) } }
        });
    (health, ready)
}
