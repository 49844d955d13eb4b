use spark_proto::spark::subscribe_to_events_response::Event as Wire;
use spark_rules::leaf::LeafStatus;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;

use super::*;
use crate::{db::testing::database, rpc::testing};

type Heard = ReceiverStream<Message>;

impl Stream {
    /// One that nobody reads, not opened yet.
    fn waiting(shared: &Arc<Shared>, identity: [u8; 33]) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            db: shared.db.clone(),
            id: Uuid::new_v4(),
            identity,
            inbox: mpsc::channel(1).1,
            ahead: VecDeque::new(),
            out: mpsc::channel(4).0,
            marks: Marks::from(0),
            replayed: HashSet::new(),
        }
    }
}

async fn events(db: &Db) -> Events {
    let converter = Converter::new(&testing::federation(3, 2));
    Events::start(db.clone(), converter, spark::Network::Regtest).await.unwrap()
}

async fn next(stream: &mut Heard) -> Wire {
    let message = timeout(Duration::from_secs(10), stream.next()).await.expect("in time").expect("open");
    message.unwrap().event.unwrap()
}

async fn connected(events: &Events, identity: u8) -> Heard {
    let mut stream = events.subscribe(testing::key(identity).serialize()).await.unwrap();
    assert!(matches!(next(&mut stream).await, Wire::Connected(_)));
    stream
}

/// Waits until all streams have ended.
async fn quiet(events: &Events) {
    timeout(Duration::from_secs(10), async {
        while events.streams() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("streams end");
}

/// Ids of the transfers that are said before the next heartbeat.
async fn transfers(stream: &mut Heard) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        match next(stream).await {
            Wire::ReceiverTransfer(event) | Wire::SenderTransfer(event) => {
                ids.push(event.transfer.unwrap().id)
            }
            Wire::Heartbeat(_) => return ids,
            other => panic!("{other:?}"),
        }
    }
}

async fn insert(db: &Db, identity: u8, kind: &str, id: Uuid) {
    event::insert(db.pool(), &testing::key(identity).serialize(), kind, id.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn connected_comes_first_and_heartbeats_follow() {
    let db = database().await;
    let events = events(&db).await;
    let started = Instant::now();
    let mut stream = events.subscribe(testing::key(1).serialize()).await.unwrap();
    assert!(matches!(next(&mut stream).await, Wire::Connected(_)));
    assert!(started.elapsed() < Duration::from_secs(1));
    assert!(matches!(next(&mut stream).await, Wire::Heartbeat(_)));
    assert!(started.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn every_stream_of_an_identity_hears_and_no_other() {
    let db = database().await;
    let events = events(&db).await;
    let mut receivers = Vec::new();
    for identity in [2, 2, 1, 3] {
        receivers.push(connected(&events, identity).await);
    }
    let id = testing::put_transfer(&db, 9, 7, 1, 2).await;
    insert(&db, 2, "TRANSFER", id).await;
    insert(&db, 1, "SENDER_TRANSFER", id).await;
    events.wake();
    let [first, second, sender, stranger] = receivers.as_mut_slice() else { panic!() };
    for stream in [first, second] {
        let Wire::ReceiverTransfer(event) = next(stream).await else { panic!("receiver_transfer") };
        let transfer = event.transfer.unwrap();
        assert_eq!((transfer.id, transfer.leaves.len()), (id.to_string(), 1));
        assert_eq!(transfer.status, spark::TransferStatus::SenderKeyTweaked as i32);
    }
    assert!(matches!(next(sender).await, Wire::SenderTransfer(_)));
    assert!(matches!(next(stranger).await, Wire::Heartbeat(_)), "nothing but a heartbeat");
}

#[tokio::test]
async fn an_identity_has_a_few_streams_and_its_oldest_ends() {
    let db = database().await;
    let events = events(&db).await;
    let key = testing::key(1).serialize();
    let mut oldest = events.subscribe(key).await.unwrap();
    assert!(matches!(next(&mut oldest).await, Wire::Connected(_)));
    let mut others = Vec::new();
    for _ in 0..PER_IDENTITY {
        others.push(events.subscribe(key).await.unwrap());
    }
    assert_eq!(events.streams(), PER_IDENTITY);
    let ended = timeout(Duration::from_secs(10), oldest.next()).await.expect("in time").expect("a reason");
    assert_eq!(ended.unwrap_err().code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn what_is_no_longer_so_is_not_said() {
    let db = database().await;
    let events = events(&db).await;
    let mut stream = events.subscribe(testing::key(2).serialize()).await.unwrap();
    assert!(matches!(next(&mut stream).await, Wire::Connected(_)));
    // A transfer that is claimed, and a deposit that is not confirmed.
    let id = testing::put_transfer(&db, 9, 7, 1, 2).await;
    testing::put_claim(&db, id, 7, 2).await;
    insert(&db, 2, "TRANSFER", id).await;
    let creating = testing::record(8, 2, 0, LeafStatus::Creating);
    testing::put_leaf(&db, &creating).await;
    insert(&db, 2, "DEPOSIT", creating.leaf_id.uuid()).await;
    // One that is.
    let available = testing::record(6, 2, 0, LeafStatus::Available);
    testing::put_leaf(&db, &available).await;
    insert(&db, 2, "DEPOSIT", available.leaf_id.uuid()).await;
    events.wake();
    let Wire::Deposit(event) = next(&mut stream).await else { panic!("deposit") };
    let node = event.deposit.unwrap();
    assert_eq!((node.id, node.status.as_str()), (available.leaf_id.to_string(), "AVAILABLE"));
}

#[tokio::test]
async fn another_replicas_rows_are_found_without_a_wake_and_closed_streams_are_forgotten() {
    let db = database().await;
    let events = events(&db).await;
    let mut stream = events.subscribe(testing::key(2).serialize()).await.unwrap();
    assert!(matches!(next(&mut stream).await, Wire::Connected(_)));
    let id = testing::put_transfer(&db, 9, 7, 1, 2).await;
    insert(&db, 2, "TRANSFER", id).await;
    assert!(matches!(next(&mut stream).await, Wire::ReceiverTransfer(_)));
    assert_eq!(events.streams(), 1);
    drop(stream);
    quiet(&events).await;
}

#[tokio::test]
async fn who_comes_back_hears_what_it_missed() {
    let db = database().await;
    let first = events(&db).await;
    // A newcomer hears nothing old.
    let old = testing::put_transfer(&db, 9, 7, 1, 2).await;
    insert(&db, 2, "TRANSFER", old).await;
    let other = connected(&first, 1).await;
    timeout(Duration::from_secs(10), async {
        while first.shared.settled() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("read");
    let mut stream = connected(&first, 2).await;
    assert!(transfers(&mut stream).await.is_empty());
    drop((stream, other));
    quiet(&first).await;
    let missed = testing::put_transfer(&db, 10, 8, 1, 2).await;
    insert(&db, 2, "TRANSFER", missed).await;
    insert(&db, 1, "SENDER_TRANSFER", missed).await;
    let mut stream = connected(&first, 2).await;
    assert_eq!(transfers(&mut stream).await, [missed.to_string()], "once");

    // The process dies with the stream open.
    drop(first);
    drop(stream);
    let missed_too = testing::put_transfer(&db, 11, 6, 1, 2).await;
    insert(&db, 2, "TRANSFER", missed_too).await;
    let second = events(&db).await;
    let mut stream = connected(&second, 2).await;
    let said = transfers(&mut stream).await;
    assert_eq!(said.last(), Some(&missed_too.to_string()));
    // What was said right before the end may have been lost on the way.
    assert!(said.contains(&missed.to_string()), "{said:?}");
}

#[tokio::test]
async fn what_was_undone_is_not_said_again() {
    let db = database().await;
    let events = events(&db).await;
    drop(connected(&events, 1).await);
    quiet(&events).await;
    let gone = testing::put_transfer(&db, 9, 7, 1, 2).await;
    let back = testing::put_transfer(&db, 10, 8, 1, 2).await;
    for id in [gone, back] {
        insert(&db, 1, "SENDER_TRANSFER", id).await;
    }
    // Its leaf came back to the sender.
    testing::put_leaf(&db, &testing::record(8, 1, 5, LeafStatus::Available)).await;
    let mut stream = connected(&events, 1).await;
    assert_eq!(transfers(&mut stream).await, [gone.to_string()]);
}

#[tokio::test]
async fn what_is_old_is_forgotten_while_the_operator_runs() {
    let db = database().await;
    for kind in ["DEPOSIT", "TRANSFER"] {
        insert(&db, 1, kind, Uuid::from_bytes([1; 16])).await;
    }
    sqlx::query("UPDATE event_log SET created_at = now() - interval '3 days' WHERE kind = 'DEPOSIT'")
        .execute(db.pool())
        .await
        .unwrap();
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(retain(db.clone(), 2, async {
        let _ = stopping.await;
    }));
    let kinds = || async {
        let all: Vec<String> =
            sqlx::query_scalar("SELECT kind FROM event_log").fetch_all(db.pool()).await.unwrap();
        all
    };
    timeout(Duration::from_secs(10), async {
        while kinds().await != ["TRANSFER"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("forgotten");
    stop.send(()).unwrap();
    running.await.unwrap();
}

/// Waits until the reader has handed over what stands in the table.
async fn handed_over(db: &Db, events: &Events) {
    let head = event::head(db.pool()).await.unwrap();
    events.wake();
    timeout(Duration::from_secs(10), async {
        while events.shared.settled() < head {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("read");
}

#[tokio::test]
async fn events_that_come_while_missed_ones_are_told_do_not_close_the_stream() {
    let db = database().await;
    let events = events(&db).await;
    drop(connected(&events, 2).await);
    quiet(&events).await;
    let id = testing::put_transfer(&db, 9, 7, 1, 2).await;
    let many = async |count: i32| {
        sqlx::query(
            "INSERT INTO event_log (identity, kind, body) SELECT $1, 'TRANSFER', $2 FROM generate_series(1, $3)",
        )
        .bind(testing::key(2).serialize().as_slice())
        .bind(id.as_bytes().as_slice())
        .bind(count)
        .execute(db.pool())
        .await
        .unwrap();
        handed_over(&db, &events).await;
    };
    many(600).await;
    let mut stream = connected(&events, 2).await;
    // Together they are more than the inbox holds.
    for _ in 0..2 {
        many(200).await;
        for _ in 0..300 {
            assert!(matches!(next(&mut stream).await, Wire::ReceiverTransfer(_)));
        }
    }
    let mut rest = 0;
    loop {
        match next(&mut stream).await {
            Wire::ReceiverTransfer(_) => rest += 1,
            Wire::Heartbeat(_) if rest >= 400 => break,
            Wire::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rest, 400, "each once");
}

/// Cursors of streams that are not ended.
async fn open_cursors(db: &Db) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM event_cursor WHERE ended_at IS NULL")
        .fetch_one(db.pool())
        .await
        .unwrap()
}

async fn all_cursors_ended(db: &Db) {
    timeout(Duration::from_secs(10), async {
        while open_cursors(db).await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("ended");
}

#[tokio::test]
async fn a_cursor_ends_though_its_wallet_leaves_while_it_is_opened() {
    let db = database().await;
    let events = events(&db).await;
    let mut lock = db.pool().begin().await.unwrap();
    sqlx::query("LOCK TABLE event_cursor IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let key = testing::key(1).serialize();
    let given_up = timeout(Duration::from_millis(500), async {
        let _stream = events.subscribe(key).await;
        std::future::pending::<()>().await;
    });
    given_up.await.unwrap_err();
    lock.commit().await.unwrap();
    let known = || async {
        let rows: i64 =
            sqlx::query_scalar("SELECT count(*) FROM event_cursor").fetch_one(db.pool()).await.unwrap();
        rows
    };
    timeout(Duration::from_secs(10), async {
        while known().await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("opened");
    all_cursors_ended(&db).await;
}

#[tokio::test]
async fn a_cursor_ends_though_the_database_did_not_answer_when_its_stream_ended() {
    let db = database().await;
    let events = events(&db).await;
    let stream = connected(&events, 1).await;
    let other = connected(&events, 2).await;
    let rename = async |sql: &'static str| sqlx::query(sql).execute(db.pool()).await.unwrap();
    rename("ALTER TABLE event_cursor RENAME TO away").await;
    drop(stream);
    timeout(Duration::from_secs(10), async {
        while events.streams() > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("ended");
    // What a stream opens of which the reader does not know yet.
    let new = Uuid::new_v4();
    sqlx::query("INSERT INTO away (stream, identity, seq) VALUES ($1, $2, 0)")
        .bind(new)
        .bind(testing::key(3).serialize().as_slice())
        .execute(db.pool())
        .await
        .unwrap();
    rename("ALTER TABLE away RENAME TO event_cursor").await;
    timeout(Duration::from_secs(10), async {
        while open_cursors(&db).await > 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("noted later");
    // A second look ends no more.
    insert(&db, 2, "TRANSFER", new).await;
    handed_over(&db, &events).await;
    assert_eq!(open_cursors(&db).await, 2, "the others' stay");
    event_cursor::end(db.pool(), new, 0).await.unwrap();
    drop(other);
    all_cursors_ended(&db).await;
}

/// A stream loses its place while the database opens its cursor: the end must not come first.
#[tokio::test]
async fn a_cursor_that_is_opened_late_is_ended_all_the_same() {
    let db = database().await;
    let events = events(&db).await;
    let waits = "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END $$";
    sqlx::query(waits).execute(db.pool()).await.unwrap();
    sqlx::query("CREATE TRIGGER waits BEFORE INSERT ON event_cursor FOR EACH ROW EXECUTE FUNCTION waits()")
        .execute(db.pool())
        .await
        .unwrap();
    let mut lock = db.pool().begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(7)").execute(&mut *lock).await.unwrap();
    let key = testing::key(1).serialize();
    let mut place = events.shared.places.take(key).unwrap();
    let stream = Stream::waiting(&events.shared, key);
    let running = tokio::spawn(stream.run(events.shared.places.take(key).unwrap(), 0));
    // All places go to newer ones.
    let newer: Vec<_> = (0..PER_IDENTITY).map(|_| events.shared.places.take(key).unwrap()).collect();
    place.gone().await;
    let opening = || async {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND wait_event_type = 'Lock' AND query LIKE '%event_cursor%'",
        )
        .fetch_one(db.pool())
        .await
        .unwrap();
        waiting
    };
    timeout(Duration::from_secs(10), async {
        while opening().await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it opens");
    // Whoever does not wait would end what is not there yet.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!running.is_finished());
    lock.commit().await.unwrap();
    running.await.unwrap();
    assert_eq!(open_cursors(&db).await, 0);
    drop(newer);
}

/// A stream that fell behind got no row since: that its inbox is empty does not mean that all was handed over.
#[tokio::test]
async fn a_stream_that_fell_behind_is_not_up_to_date() {
    let db = database().await;
    let events = events(&db).await;
    let key = testing::key(1).serialize();
    let (sender, inbox) = mpsc::channel(BACKLOG);
    let mut stream = Stream { inbox, ..Stream::waiting(&events.shared, key) };
    let later = || Instant::now() + Duration::from_secs(60);
    events.shared.settled.store(5, Ordering::Release);
    stream.mark();
    assert_eq!(stream.marks.heard(later()), 5);
    drop(sender);
    events.shared.settled.store(9, Ordering::Release);
    stream.mark();
    assert_eq!(stream.marks.heard(later()), 5);
}

/// A row that was told out of the table may come into the inbox after others did.
#[tokio::test]
async fn what_was_told_out_of_the_table_is_not_told_again() {
    let db = database().await;
    let events = events(&db).await;
    let (_sender, inbox) = mpsc::channel(BACKLOG);
    let mut stream = Stream { inbox, ..Stream::waiting(&events.shared, testing::key(1).serialize()) };
    stream.replayed.extend([4, 7]);
    events.shared.settled.store(5, Ordering::Release);
    stream.mark();
    assert_eq!(stream.replayed, HashSet::from([7]));
}
