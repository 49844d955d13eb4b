//! Cursors of streams of events.

use super::*;
use crate::db::{event, event_cursor, testing::database};

#[tokio::test]
async fn no_device_begins_later_than_it_ended() {
    let db = database().await;
    let pool = db.pool();
    let [me, other] = [key(1), key(2)];
    let id = |number: u8| Uuid::from_bytes([number; 16]);
    assert_eq!(event_cursor::open(pool, id(1), &me, 5).await.unwrap(), None);
    // The other one's connection may be broken.
    assert_eq!(event_cursor::open(pool, id(2), &me, 6).await.unwrap(), Some(5));
    assert_eq!(event_cursor::open(pool, id(3), &other, 6).await.unwrap(), None);
    event_cursor::advance(pool, id(1), 7).await.unwrap();
    event_cursor::advance(pool, id(1), 6).await.unwrap();
    event_cursor::end(pool, id(1), 0).await.unwrap();
    event_cursor::end(pool, id(2), 9).await.unwrap();
    // Whoever comes first begins at the earliest, and both get back.
    assert_eq!(event_cursor::open(pool, id(4), &me, 20).await.unwrap(), Some(7));
    assert_eq!(event_cursor::open(pool, id(5), &me, 20).await.unwrap(), Some(7));
    assert_eq!(event_cursor::open(pool, id(6), &me, 20).await.unwrap(), Some(7));
    // A stream that adopted begins there again if it heard nothing.
    event_cursor::end(pool, id(4), 0).await.unwrap();
    assert_eq!(event_cursor::open(pool, id(7), &me, 20).await.unwrap(), Some(7));
    // What was adopted is no more.
    event_cursor::end(pool, id(4), 30).await.unwrap();
    assert_eq!(event_cursor::open(pool, id(8), &other, 20).await.unwrap(), Some(6));

    event_cursor::end_all(pool).await.unwrap();
    assert_eq!(event_cursor::open(pool, id(9), &other, 20).await.unwrap(), Some(6));
    assert_eq!(event_cursor::trim(pool, 1).await.unwrap(), 0);
    sqlx::query("UPDATE event_cursor SET ended_at = now() - interval '2 days' WHERE ended_at IS NOT NULL")
        .execute(pool)
        .await
        .unwrap();
    assert_eq!(event_cursor::trim(pool, 1).await.unwrap(), 4);
    assert_eq!(event_cursor::open(pool, id(10), &me, 20).await.unwrap(), None);
}

#[tokio::test]
async fn ended_streams_of_an_identity_are_bounded() {
    let db = database().await;
    let pool = db.pool();
    for number in 0..40u8 {
        event_cursor::open(pool, Uuid::from_bytes([number; 16]), &key(1), 0).await.unwrap();
    }
    for number in 0..40u8 {
        event_cursor::end(pool, Uuid::from_bytes([number; 16]), i64::from(number)).await.unwrap();
    }
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM event_cursor").fetch_one(pool).await.unwrap();
    assert!(kept <= 17, "{kept}");
    assert_eq!(event_cursor::open(pool, Uuid::from_bytes([99; 16]), &key(1), 50).await.unwrap(), Some(0));
}

#[tokio::test]
async fn of_many_missed_events_the_newest_come_in_order() {
    let db = database().await;
    let mut seqs = Vec::new();
    for number in 0..5u8 {
        seqs.push(event::insert(db.pool(), &key(1), "DEPOSIT", &[number; 16]).await.unwrap());
    }
    let rows = event::after(db.pool(), &key(1), seqs[0], 3).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), seqs[2..]);
}
