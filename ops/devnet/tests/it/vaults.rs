//! What a signer's vault holds, for tests that look for it elsewhere.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use spark_devnet::network::Devnet;
use spark_signer::vault::{SecretId, SecretKind, Vault};
use spark_signer_hsm::{config::Config, metrics::HsmMetrics, server};
use spark_softhsm::{isolated, passed, run_test};
use uuid::Uuid;

const CONFIG: &str = "SECRETS_TEST_CONFIG";
const KEYS: &str = "SECRETS_TEST_KEYS";
const OUT: &str = "SECRETS_TEST_OUT";
/// The test that is run in a process of its own.
const CHILD: &str = "vaults::child_reads_a_vault";

/// A share as it lies in a vault, or the secret half of a package key.
pub(crate) struct Share {
    pub(crate) keyshare: Vec<u8>,
    pub(crate) version: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Stops a signer and opens its vault, in a process of its own: a PKCS#11 module knows one token directory. Gives all
/// versions of these keyshares and package keys.
pub(crate) async fn secrets_of_stopped_signer(
    devnet: &mut Devnet,
    index: usize,
    ids: &[Uuid],
) -> anyhow::Result<Vec<Share>> {
    let process = devnet.process(&format!("signer-{index}"))?;
    ensure!(process.stop(Signal::TERM, Duration::from_secs(20)).await?, "the signer had to be killed");
    // Outside of the folders that are searched.
    let dir = tempfile::tempdir()?;
    let (keys, out) = (dir.path().join("keys"), dir.path().join("shares"));
    fs::write(&keys, ids.iter().map(|id| format!("{}\n", hex::encode(id.as_bytes()))).collect::<String>())?;
    let member = devnet.members().get(index).context("member")?;
    let path = |path: &Path| path.display().to_string();
    let environment =
        [(CONFIG, path(&member.dir().join("signer.toml"))), (KEYS, path(&keys)), (OUT, path(&out))];
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(key, value)| (*key, value.as_str())).collect();
    passed(&run_test(CHILD, member.tokens(), &environment)?)?;
    let text = fs::read_to_string(&out)?;
    text.lines()
        .map(|line| {
            let mut fields = line.split(' ');
            let mut next = || fields.next().context("field");
            let keyshare = hex::decode(next()?)?;
            Ok(Share { keyshare, version: next()?.parse()?, bytes: hex::decode(next()?)? })
        })
        .collect()
}

/// Not a test by itself: writes the shares of a stopped signer where the environment says.
#[test]
fn child_reads_a_vault() -> anyhow::Result<()> {
    let Ok(config) = std::env::var(CONFIG) else { return Ok(()) };
    let mut result = Ok(());
    isolated(CHILD, |_| result = read_vault(Path::new(&config)))?;
    result
}

fn read_vault(config: &Path) -> anyhow::Result<()> {
    let engine = server::open(&Config::load(config)?, &HsmMetrics::new()?)?;
    let vault: &Vault = engine.vault();
    let mut text = String::new();
    for line in fs::read_to_string(std::env::var(KEYS)?)?.lines() {
        let keyshare: [u8; 16] = hex::decode(line)?.as_slice().try_into()?;
        let shown = |id: &SecretId| matches!(id.kind, SecretKind::Keyshare | SecretKind::PackageKey);
        for id in vault.secrets_of(&keyshare)?.into_iter().filter(shown) {
            let share = vault.get_secret(&id)?.context("share")?;
            text.push_str(&format!("{line} {} {}\n", id.version, hex::encode(&*share)));
        }
    }
    Ok(fs::write(std::env::var(OUT)?, text)?)
}
