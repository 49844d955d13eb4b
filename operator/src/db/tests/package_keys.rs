//! One-time package keys: given once, to one request.

use super::*;
use crate::db::{
    DbError,
    package_key::{self, NewKey},
    testing,
};

const SECONDS: i64 = 900;
const MOST: i64 = 3;

fn request(byte: u8) -> Uuid {
    Uuid::from_bytes([byte; 16])
}

fn new_key(byte: u8, expires: i64) -> NewKey {
    NewKey { key_id: Uuid::from_bytes([byte; 16]), statement: vec![byte], expires }
}

async fn database(keys: u8) -> Db {
    let db = testing::database().await;
    let far = 4_000_000_000;
    let keys: Vec<_> = (1..=keys).map(|byte| new_key(byte, far + i64::from(byte))).collect();
    package_key::insert(db.pool(), &keys).await.unwrap();
    package_key::insert(db.pool(), &keys).await.unwrap();
    db
}

#[tokio::test]
async fn a_key_is_given_once_and_to_one_request() {
    let db = database(5).await;
    let reserve = |identity, id| package_key::reserve(db.pool(), identity, request(id), SECONDS, MOST);
    let (alice, bob) = (key(1), key(2));
    let first = reserve(&alice, 1).await.unwrap().unwrap();
    assert!(matches!(reserve(&alice, 1).await, Err(DbError::Exists(name)) if name == "one_key_per_request"));
    assert_eq!(package_key::reserved(db.pool(), &alice, request(1)).await.unwrap(), Some(first.clone()));
    assert_eq!(package_key::reserved(db.pool(), &bob, request(1)).await.unwrap(), None);
    let second = reserve(&bob, 1).await.unwrap().unwrap();
    assert_ne!(first.statement, second.statement);
    // No identity takes the whole stock.
    reserve(&alice, 2).await.unwrap().unwrap();
    reserve(&alice, 3).await.unwrap().unwrap();
    assert_eq!(reserve(&alice, 4).await.unwrap(), None);
    assert_eq!(package_key::held(db.pool(), &alice).await.unwrap(), MOST);
    assert_eq!(package_key::available(db.pool(), SECONDS).await.unwrap(), 1);
    // Used ones do not count.
    let used = Uuid::from_bytes([first.statement[0]; 16]);
    package_key::remove(db.pool(), &[used]).await.unwrap();
    reserve(&alice, 4).await.unwrap().unwrap();
    assert_eq!(reserve(&bob, 2).await.unwrap(), None, "the stock is empty");
}

#[tokio::test]
async fn races_for_the_last_keys_have_different_winners() {
    let db = database(8).await;
    let tasks: Vec<_> = (0..16u8)
        .map(|i| {
            let db = db.clone();
            tokio::spawn(async move {
                package_key::reserve(db.pool(), &key(i), request(i), SECONDS, MOST).await.unwrap()
            })
        })
        .collect();
    let mut given = Vec::new();
    for task in tasks {
        given.extend(task.await.unwrap().map(|reserved| reserved.statement));
    }
    let count = given.len();
    given.sort();
    given.dedup();
    assert_eq!(given.len(), count, "a key was given twice");
    assert!(count <= 8);
}

#[tokio::test]
async fn what_nobody_will_use_is_found() {
    let db = database(1).await;
    let soon = sqlx::query_scalar::<_, i64>("SELECT extract(epoch FROM now())::bigint + 60")
        .fetch_one(db.pool())
        .await
        .unwrap();
    package_key::insert(db.pool(), &[new_key(9, soon)]).await.unwrap();
    assert_eq!(package_key::available(db.pool(), SECONDS).await.unwrap(), 1, "too short to be given");
    let over = package_key::over(db.pool(), SECONDS, 0, 10).await.unwrap();
    assert_eq!(over, [Uuid::from_bytes([9; 16])]);
    package_key::remove(db.pool(), &over).await.unwrap();
    package_key::reserve(db.pool(), &key(1), request(1), -10, MOST).await.unwrap().unwrap();
    let over = package_key::over(db.pool(), SECONDS, 0, 10).await.unwrap();
    assert_eq!(over, [Uuid::from_bytes([1; 16])], "its time ran out");
    assert!(package_key::over(db.pool(), SECONDS, 60, 10).await.unwrap().is_empty(), "a package may be late");
    package_key::insert(db.pool(), &[new_key(2, soon), new_key(3, soon)]).await.unwrap();
    assert_eq!(package_key::take_free(db.pool(), 1).await.unwrap().len(), 1);
    assert_eq!(package_key::take_free(db.pool(), 9).await.unwrap().len(), 1);
    assert!(package_key::take_free(db.pool(), 9).await.unwrap().is_empty(), "given ones stay");
    package_key::remove(db.pool(), &over).await.unwrap();
    assert!(package_key::over(db.pool(), SECONDS, 0, 10).await.unwrap().is_empty());
}
