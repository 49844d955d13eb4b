//! A private PostgreSQL cluster: made, filled, killed, recovered.

use std::time::Duration;

use anyhow::Result;
use spark_devnet::postgres::{Cluster, Durability};
use spark_devnet::state::StateDir;
use sqlx::{Connection, Executor, PgConnection};

async fn count(url: &str) -> Result<i64> {
    let mut connection = PgConnection::connect(url).await?;
    Ok(sqlx::query_scalar("select count(*) from t").fetch_one(&mut connection).await?)
}

#[tokio::test]
async fn committed_rows_survive_a_kill() -> Result<()> {
    let state = StateDir::temporary()?;
    let mut cluster = Cluster::create(&state.path().join("pg"), Durability::Full).await?;
    let url = cluster.create_database("operator_0")?;
    let mut connection = PgConnection::connect(&url).await?;
    let fsync: String = sqlx::query_scalar("show fsync").fetch_one(&mut connection).await?;
    assert_eq!(fsync, "on");
    connection.execute("create table t (n int)").await?;
    connection.execute("insert into t values (1), (2), (3)").await?;

    cluster.kill()?;
    assert!(count(&url).await.is_err());
    cluster.restart().await?;
    assert_eq!(count(&url).await?, 3);

    cluster.stop().await?;
    cluster.restart().await?;
    assert_eq!(count(&url).await?, 3);
    Ok(())
}

#[tokio::test]
async fn databases_are_copied_and_dropped() -> Result<()> {
    let state = StateDir::temporary()?;
    let cluster = Cluster::create(&state.path().join("pg"), Durability::ProcessOnly).await?;
    let url = cluster.create_database("operator_0")?;
    {
        let mut connection = PgConnection::connect(&url).await?;
        connection.execute("create table t (n int)").await?;
        connection.execute("insert into t values (1)").await?;
        connection.close().await?;
    }
    let copy = cluster.copy_database("operator_0", "backup")?;
    PgConnection::connect(&url).await?.execute("insert into t values (2)").await?;
    assert_eq!((count(&url).await?, count(&copy).await?), (2, 1));

    let _open = PgConnection::connect(&url).await?;
    cluster.drop_database("operator_0")?;
    assert!(count(&url).await.is_err());
    assert!(cluster.create_database("backup").is_err());
    assert!(cluster.socket_dir().join(format!(".s.PGSQL.{}", cluster.port())).exists());
    Ok(())
}

#[tokio::test]
async fn a_paused_server_answers_after_it_is_resumed() -> Result<()> {
    let state = StateDir::temporary()?;
    let mut cluster = Cluster::create(&state.path().join("pg"), Durability::ProcessOnly).await?;
    let url = cluster.create_database("d")?;
    PgConnection::connect(&url).await?.execute("create table t (n int)").await?;
    cluster.process_mut().pause()?;
    let waiting = tokio::spawn(async move { count(&url).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    cluster.process_mut().resume()?;
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), waiting).await???, 0);
    Ok(())
}

#[tokio::test]
async fn two_clusters_do_not_meet() -> Result<()> {
    let state = StateDir::temporary()?;
    let (one, two) = (state.path().join("1"), state.path().join("2"));
    let (one, two) = tokio::try_join!(
        Cluster::create(&one, Durability::ProcessOnly),
        Cluster::create(&two, Durability::ProcessOnly)
    )?;
    assert_ne!(one.port(), two.port());
    let url = one.create_database("here")?;
    assert!(PgConnection::connect(&url).await.is_ok());
    assert!(PgConnection::connect(&two.url("here")).await.is_err());
    // The password of one does not open the other.
    let crossed = url.replace(&one.port().to_string(), &two.port().to_string()).replace("here", "postgres");
    assert!(PgConnection::connect(&crossed).await.is_err());
    Ok(())
}
