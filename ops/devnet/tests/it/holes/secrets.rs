//! X17: no secret lies in a database, a write-ahead log, a log file or a store.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use spark_devnet::wallet::WalletCommand;
use sqlx::{Executor as _, PgPool};
use tonic::Request;

use crate::support::{deposit, rogue::Rogue, world::with};

/// Byte strings to look for.
struct Needles {
    by_head: HashMap<[u8; 8], Vec<(String, Vec<u8>)>>,
    /// Which pairs of first bytes occur: most places are passed by with one look.
    pairs: Vec<bool>,
}

fn pair(head: &[u8; 8]) -> usize {
    usize::from(u16::from_be_bytes([head[0], head[1]]))
}

impl Needles {
    fn new() -> Self {
        Self { by_head: HashMap::new(), pairs: vec![false; 1 << 16] }
    }

    fn add(&mut self, name: &str, bytes: &[u8]) {
        for (form, bytes) in [
            ("raw", bytes.to_vec()),
            ("hex", hex::encode(bytes).into_bytes()),
            ("HEX", hex::encode_upper(bytes).into_bytes()),
        ] {
            if let Some(head) = bytes.first_chunk::<8>() {
                self.pairs[pair(head)] = true;
                self.by_head.entry(*head).or_default().push((format!("{name} ({form})"), bytes.clone()));
            }
        }
    }

    fn found_in(&self, hay: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for (at, head) in hay.windows(8).enumerate() {
            let Ok(head) = <&[u8; 8]>::try_from(head) else { continue };
            if !self.pairs[pair(head)] {
                continue;
            }
            if let Some(candidates) = self.by_head.get(head) {
                let rest = hay.get(at..).unwrap_or_default();
                found.extend(
                    candidates.iter().filter(|(_, n)| rest.starts_with(n)).map(|(name, _)| name.clone()),
                );
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

fn files(dir: &Path, all: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files(&entry.path(), all)?;
        } else if kind.is_file() {
            all.push(entry.path());
        }
    }
    Ok(())
}

/// Every row of every table, as text.
async fn dump(pool: &PgPool) -> anyhow::Result<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1",
    )
    .fetch_all(pool)
    .await?;
    ensure!(tables.len() > 15, "tables: {tables:?}");
    let mut text = String::new();
    for table in tables {
        let rows: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT t::text FROM \"{table}\" t")))
                .fetch_all(pool)
                .await?;
        for row in rows {
            text.push_str(&row);
            text.push('\n');
        }
    }
    Ok(text)
}

/// X17: a whole change of hands by a client that remembers every secret it made; then everything that the operators
/// keep is searched for them: rows, data files and write-ahead log of Postgres, logs, configuration, the signers'
/// stores. Old share = new share − tweak, so a tweak that stays is as bad as a share that stays.
///
/// The client cannot know the operators' shares; those are sealed in the same pages as the tweaks
/// (`s6_old_share_and_tweak_die_with_apply`, `keys_cannot_be_read_copied_or_planted`).
#[test]
fn x17_no_secret_reaches_a_disk() -> anyhow::Result<()> {
    with(async |devnet| {
        let alice = WalletCommand::create(devnet, "x17-alice", 0).await?;
        let bob = WalletCommand::create(devnet, "x17-bob", 1).await?;
        let leaf = deposit(devnet, &alice, 67_000).await?;
        let (sender, receiver) = (Rogue::of(&alice)?, Rogue::of(&bob)?);
        let id = spark_rules::ids::LeafId::parse(&leaf)?;
        let mut needles = Needles::new();
        needles.add("sender's key", sender.wallet.keys().leaf(&id)?.secret().to_bytes().as_slice());
        needles.add("identity key", receiver.wallet.keys().identity().secret().to_bytes().as_slice());

        let sent = sender.next_send(&leaf, &receiver.id()).await?;
        let transfer = sent.request.transfer_id.clone();
        sender.start(sent.request.clone()).await?;
        let claim = receiver.claim(&transfer, &leaf, &sent.next).await?;
        receiver
            .call(claim.request.clone(), |mut c, r: Request<_>| async move { c.claim_transfer(r).await })
            .await?;
        ensure!(receiver.statuses(&leaf).await? == ["AVAILABLE"; 3], "not claimed");
        needles.add("key between", sent.next.to_bytes().as_slice());
        needles.add("receiver's key", claim.next.to_bytes().as_slice());
        for (what, secrets) in [("send", &sent.secrets), ("claim", &claim.secrets)] {
            for (operator, secret) in secrets.iter().enumerate() {
                needles.add(&format!("{what} tweak of operator {operator}"), secret);
            }
        }

        // What is public about this transfer must be found, or the search finds nothing at all.
        let mut known = Needles::new();
        known.add("leaf id", id.as_bytes());
        known.add("leaf text", leaf.as_bytes());
        let mut seen_rows = 0;
        for index in 0..3u16 {
            let pool = PgPool::connect(&devnet.database_url(index)).await?;
            // Everything that is still in memory goes to the files.
            pool.execute("CHECKPOINT").await?;
            let rows = dump(&pool).await?;
            let found = needles.found_in(rows.as_bytes());
            ensure!(found.is_empty(), "rows of operator {index}: {found:?}");
            seen_rows += usize::from(!known.found_in(rows.as_bytes()).is_empty());
            pool.close().await;
        }
        ensure!(seen_rows == 3, "the dump of rows does not show the leaf");

        let dir = &devnet.endpoints().dir;
        let mut all = Vec::new();
        for member in devnet.members() {
            files(member.dir(), &mut all)?;
        }
        let operators = all.len();
        files(&dir.join("postgres"), &mut all)?;
        ensure!(operators > 10 && all.len() > operators + 100, "{operators} of {} files", all.len());
        let mut seen_files = 0;
        for path in all {
            // Files of a running server come and go.
            let Ok(bytes) = fs::read(&path) else { continue };
            let found = needles.found_in(&bytes);
            ensure!(found.is_empty(), "{}: {found:?}", path.display());
            seen_files += usize::from(!known.found_in(&bytes).is_empty());
        }
        // Heap, index and write-ahead log of three databases.
        ensure!(seen_files > 6, "the search saw the leaf in {seen_files} files only");
        let store = devnet.members().first().context("member")?.dir().join("signer.redb.pages");
        ensure!(fs::metadata(store)?.len() > 0, "the signer's store is elsewhere");
        Ok(())
    })
}
