//! The double-spend barrier, and the states of an operation.

use super::*;
use crate::db::{
    DbError, claim,
    operation::{self, State},
    testing, vote,
    work::{self, AppliedWrite, Claims, VoteWrite},
};

fn claims(leaf: Uuid, version: i64) -> Claims {
    Claims { leaves: vec![(leaf, version)], resources: vec![("transfer", vec![1, 2])] }
}

fn own_vote(choice: &'static str) -> VoteWrite {
    VoteWrite { signer: OperatorIndex::new(0), choice, body: vec![4] }
}

/// S9: forty sessions claim one version of one leaf at the same moment; exactly one wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn forty_races_have_one_winner() {
    let db = testing::database().await;
    let leaf = with_leaf(&db, 1).await;
    for round in 0..3 {
        let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(40));
        let tasks: Vec<_> = (0..40u8)
            .map(|i| {
                let (db, barrier) = (db.clone(), barrier.clone());
                tokio::spawn(async move {
                    let mut new = new_operation(attempt(i + 100, round));
                    new.request = vec![i];
                    barrier.wait().await;
                    work::propose(
                        &db,
                        &new,
                        &Claims { leaves: vec![(leaf, i64::from(round))], resources: vec![] },
                    )
                    .await
                })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(()) => won += 1,
                Err(DbError::LeafClaimed | DbError::AttemptLive) => {}
                Err(e) => panic!("{e}"),
            }
        }
        assert_eq!(won, 1);
        let live = claim::of_leaf(db.pool(), leaf).await.unwrap();
        assert_eq!(live.iter().filter(|(version, ..)| *version == i64::from(round)).count(), 1);
    }
}

#[tokio::test]
async fn a_claim_is_released_by_an_abort_only() {
    let db = testing::database().await;
    let leaf = with_leaf(&db, 1).await;
    let first = new_operation(attempt(1, 0));
    work::propose(&db, &first, &claims(leaf, 0)).await.unwrap();
    assert!(leaf::get(db.pool(), leaf).await.unwrap().unwrap().locked);
    let second = new_operation(attempt(2, 0));
    assert!(matches!(work::propose(&db, &second, &claims(leaf, 0)).await, Err(DbError::LeafClaimed)));
    assert!(operation::get(db.pool(), second.id).await.unwrap().is_none(), "nothing of the loser stays");
    let resource = Claims { leaves: vec![], resources: vec![("transfer", vec![1, 2])] };
    assert!(matches!(work::propose(&db, &second, &resource).await, Err(DbError::ResourceClaimed)));

    work::prepared(&db, first.id, &own_vote("YES"), &[3; 32], &[5]).await.unwrap();
    assert!(matches!(claim::release_leaves(db.pool(), first.id).await, Err(DbError::Constraint(_))));
    assert!(matches!(claim::spend_leaves(db.pool(), first.id).await, Err(DbError::Constraint(_))));
    assert!(matches!(claim::release_resources(db.pool(), first.id).await, Err(DbError::Constraint(_))));
    let own = own_vote("ABORT");
    work::keep_votes(&db, first.id, &[own.clone(), own]).await.unwrap();
    assert_eq!(vote::of_attempt(db.pool(), first.id).await.unwrap().len(), 2);

    let peers = [OperatorIndex::new(1)];
    assert!(work::aborted(&db, first.id, &[6], &peers).await.unwrap());
    assert!(!work::aborted(&db, first.id, &[6], &peers).await.unwrap(), "a repeat ends nothing");
    let row = operation::get(db.pool(), first.id).await.unwrap().unwrap();
    assert_eq!(
        (row.state, row.abort_proof.as_deref(), row.request),
        (State::Aborted, Some(&[6u8][..]), None)
    );
    assert!(!leaf::get(db.pool(), leaf).await.unwrap().unwrap().locked);
    work::propose(&db, &second, &claims(leaf, 0)).await.unwrap();
}

#[tokio::test]
async fn a_no_without_a_yes_frees_at_once_and_a_no_after_a_yes_does_not() {
    let db = testing::database().await;
    let leaf = with_leaf(&db, 1).await;
    let first = new_operation(attempt(1, 0));
    work::propose(&db, &first, &claims(leaf, 0)).await.unwrap();
    assert!(work::refused(&db, first.id, &own_vote("NO"), "LEAF_UNAVAILABLE").await.unwrap());
    let row = operation::get(db.pool(), first.id).await.unwrap().unwrap();
    assert_eq!((row.state, row.reason.as_str()), (State::Refused, "LEAF_UNAVAILABLE"));
    assert!(!leaf::get(db.pool(), leaf).await.unwrap().unwrap().locked);

    let second = new_operation(attempt(2, 0));
    work::propose(&db, &second, &claims(leaf, 0)).await.unwrap();
    work::prepared(&db, second.id, &own_vote("YES"), &[3; 32], &[5]).await.unwrap();
    work::refused(&db, second.id, &own_vote("ABORT"), "DEADLINE").await.unwrap();
    assert_eq!(operation::get(db.pool(), second.id).await.unwrap().unwrap().state, State::Prepared);
    assert!(leaf::get(db.pool(), leaf).await.unwrap().unwrap().locked);
    operation::set_reason(db.pool(), second.id, "LATER").await.unwrap();
    assert_eq!(operation::get(db.pool(), second.id).await.unwrap().unwrap().reason, "DEADLINE");
    work::refuse_new(&db, &new_operation(attempt(3, 0)), "UNKNOWN").await.unwrap();
}

#[tokio::test]
async fn commit_applies_once_and_spends_for_ever() {
    let db = testing::database().await;
    let leaf = with_leaf(&db, 1).await;
    let new = new_operation(attempt(1, 0));
    work::propose(&db, &new, &claims(leaf, 0)).await.unwrap();
    assert!(matches!(work::propose(&db, &new, &claims(leaf, 0)).await, Err(DbError::Exists(_))));
    assert!(matches!(
        work::propose(&db, &new_operation(attempt(1, 1)), &Claims::default()).await,
        Err(DbError::AttemptLive)
    ));
    work::prepared(&db, new.id, &own_vote("YES"), &[3; 32], &[5]).await.unwrap();
    work::certified(&db, new.id, &[8], &[]).await.unwrap();
    assert!(
        !operation::advance(db.pool(), new.id, &[State::Applied], State::Done).await.unwrap(),
        "not applied yet"
    );
    assert!(matches!(
        operation::advance(db.pool(), new.id, &[State::Certified], State::Applied).await,
        Err(DbError::Constraint(_))
    ));
    let peers = [OperatorIndex::new(1), OperatorIndex::new(2)];
    work::committed(&db, new.id, &[9], &[8], &peers).await.unwrap();
    work::committed(&db, new.id, &[10], &[8], &peers).await.unwrap();
    assert!(matches!(
        operation::advance(db.pool(), new.id, &[State::Committed], State::Aborted).await,
        Err(DbError::Constraint(_))
    ));
    let write = AppliedWrite { leaves: vec![a_leaf(1, 1, 2)], ..AppliedWrite::default() };
    assert!(work::applied(&db, new.id, &write).await.unwrap());
    assert!(!work::applied(&db, new.id, &write).await.unwrap(), "a repeat applies nothing");
    let row = leaf::get(db.pool(), leaf).await.unwrap().unwrap();
    assert_eq!((row.version, row.owner_identity, row.locked), (1, key(2), false));
    assert!(matches!(
        work::propose(&db, &new_operation(attempt(2, 0)), &claims(leaf, 0)).await,
        Err(DbError::LeafClaimed)
    ));
    let events = [(key(2), "TRANSFER", vec![1u8; 16])];
    assert!(work::done(&db, new.id, &events, true).await.unwrap());
    assert!(!work::done(&db, new.id, &events, true).await.unwrap());
    let row = operation::latest(db.pool(), new.id.op).await.unwrap().unwrap();
    assert_eq!((row.state, row.request, row.proof.as_deref()), (State::Done, None, Some(&[9u8][..])));
    assert_eq!(row.named, new.named);
    assert!(!work::restore(&db, &new, &claims(leaf, 0)).await.unwrap());
    let live = sqlx::query("DELETE FROM leaf_claim").execute(db.pool()).await.map_err(DbError::from);
    assert!(matches!(live, Err(DbError::Constraint(_))));
}

#[tokio::test]
async fn open_attempts_are_leased_to_one_replica() {
    let db = testing::database().await;
    let new = new_operation(attempt(1, 0));
    assert!(work::restore(&db, &new, &Claims::default()).await.unwrap());
    assert_eq!(operation::open(db.pool(), 0, 10).await.unwrap().len(), 1);
    assert!(operation::open(db.pool(), 3600, 10).await.unwrap().is_empty());
    assert!(
        !operation::lease(db.pool(), new.id, 30).await.unwrap(),
        "a fresh attempt is with its own session"
    );
    operation::unlease(db.pool(), new.id).await.unwrap();
    operation::touch(db.pool(), new.id).await.unwrap();
    assert!(operation::lease(db.pool(), new.id, 30).await.unwrap());
    assert!(!operation::lease(db.pool(), new.id, 30).await.unwrap());
    operation::unlease(db.pool(), new.id).await.unwrap();
    assert!(operation::lease(db.pool(), new.id, 30).await.unwrap());
    let found = operation::by_request_digest(db.pool(), &[7; 32]).await.unwrap().unwrap();
    assert_eq!(found.id, new.id);
    assert_eq!(operation::gauges(db.pool()).await.unwrap(), vec![(State::Proposed, 1, 0)]);
}
