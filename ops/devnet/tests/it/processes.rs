//! Supervision of child processes, on real ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use spark_devnet::ports::Port;
use spark_devnet::process::{Process, ProcessError, Program};

/// Appends a letter to `beat` every 20 ms, and has a child of its own that does the same in `beat.child`.
fn heart(dir: &Path) -> Program {
    let script = r#"
        (while :; do printf x >> "$1.child"; sleep 0.02; done) &
        while :; do printf x >> "$1"; sleep 0.02; done"#;
    Program::new("heart", "/bin/sh", dir.join("log")).args(["-c", script, "heart"]).arg(dir.join("beat"))
}

/// The same without a child.
fn lonely_heart(dir: &Path) -> Program {
    let script = r#"while :; do printf x >> "$1"; sleep 0.02; done"#;
    Program::new("heart", "/bin/sh", dir.join("log")).args(["-c", script, "heart"]).arg(dir.join("beat"))
}

fn beats(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

async fn beats_on(path: PathBuf) -> bool {
    let before = beats(&path);
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(30)).await;
        if beats(&path) > before {
            return true;
        }
    }
    false
}

async fn is_still(path: &Path) -> bool {
    // What was under way when the signal came.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = beats(path);
    tokio::time::sleep(Duration::from_millis(300)).await;
    beats(path) == before
}

#[tokio::test]
async fn pause_resume_kill_and_restart_reach_the_whole_group() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (beat, child) = (dir.path().join("beat"), dir.path().join("beat.child"));
    let mut heart = Process::start(heart(dir.path()))?;
    heart.wait_ready(Duration::from_secs(10), || async { beats(&beat) > 0 && beats(&child) > 0 }).await?;

    heart.pause()?;
    assert!(is_still(&beat).await && is_still(&child).await);
    assert!(heart.is_running());
    heart.resume()?;
    assert!(beats_on(beat.clone()).await && beats_on(child.clone()).await);

    heart.kill()?;
    assert!(!heart.is_running());
    assert!(is_still(&beat).await && is_still(&child).await);

    heart.restart()?;
    assert!(beats_on(beat.clone()).await && beats_on(child.clone()).await);
    drop(heart);
    assert!(is_still(&beat).await && is_still(&child).await);
    Ok(())
}

#[tokio::test]
async fn stop_asks_first_and_kills_who_does_not_listen() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let script = |name: &str, text: &str| {
        Program::new(name, "/bin/sh", dir.path().join(format!("{name}.log"))).args(["-c", text])
    };
    let ready = |process: &Process| {
        let log = process.log_path().to_owned();
        move || {
            let log = log.clone();
            async move { beats(&log) > 0 }
        }
    };

    let mut polite =
        Process::start(script("polite", "trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done"))?;
    polite.wait_ready(Duration::from_secs(10), ready(&polite)).await?;
    assert!(polite.stop(Signal::TERM, Duration::from_secs(10)).await?);

    let mut deaf = Process::start(script("deaf", "trap '' TERM; echo up; while :; do sleep 0.02; done"))?;
    deaf.wait_ready(Duration::from_secs(10), ready(&deaf)).await?;
    assert!(!deaf.stop(Signal::TERM, Duration::from_millis(300)).await?);
    assert!(!deaf.is_running());
    // A second time there is nobody to ask.
    assert!(deaf.stop(Signal::TERM, Duration::from_millis(300)).await?);
    Ok(())
}

#[tokio::test]
async fn what_does_not_come_up_is_reported_with_its_log() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = |text: &str| Program::new("p", "/bin/sh", dir.path().join("log")).args(["-c", text]);
    let never = || async { false };

    let mut broken = Process::start(program("echo cannot bind; exit 3"))?;
    match broken.wait_ready(Duration::from_secs(10), never).await {
        Err(ProcessError::Ended { status, log, .. }) => {
            assert_eq!(status.code(), Some(3));
            assert!(log.contains("cannot bind"));
        }
        other => panic!("{other:?}"),
    }
    let mut slow = Process::start(program("sleep 60"))?;
    let outcome = slow.wait_ready(Duration::from_millis(100), never).await;
    assert!(matches!(outcome, Err(ProcessError::NotReady { .. })));

    let mut absent = Process::start(Program::new("absent", "/no/such/program", dir.path().join("log")))?;
    assert!(absent.wait_ready(Duration::from_secs(10), never).await.is_err());
    Ok(())
}

/// Not a test of its own: run by the next one in a process that is then killed.
#[test]
fn orphan_maker() {
    let Some(dir) = std::env::var_os("SPARK_DEVNET_ORPHAN_DIR").map(PathBuf::from) else { return };
    // From a thread that ends: the death signal must follow the process, not the thread that asked.
    let child = std::thread::spawn(move || Process::start(lonely_heart(&dir)).unwrap()).join().unwrap();
    std::thread::sleep(Duration::from_secs(60));
    drop(child);
}

#[tokio::test]
async fn children_die_with_a_parent_that_is_killed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let beat = dir.path().join("beat");
    let mut parent = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "processes::orphan_maker", "--nocapture"])
        .env("SPARK_DEVNET_ORPHAN_DIR", dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    assert!(beats_on(beat.clone()).await);
    // Long enough for the thread that asked to be gone.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(beats_on(beat.clone()).await);
    parent.kill()?;
    parent.wait()?;
    assert!(is_still(&beat).await);
    Ok(())
}

#[test]
fn leased_ports_are_distinct_and_free() -> Result<()> {
    let ports = (0..50).map(|_| Port::lease()).collect::<Result<Vec<_>, _>>()?;
    let distinct: std::collections::BTreeSet<u16> = ports.iter().map(Port::number).collect();
    assert_eq!(distinct.len(), ports.len());
    for port in &ports {
        std::net::TcpListener::bind(port.address()).context("bind a leased port")?;
    }
    Ok(())
}
