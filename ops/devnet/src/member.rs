//! One member of the federation: a signer with its tokens and store, an operator with its database.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use spark_rules::federation::MemberEntry;
use spark_softhsm::TokenDir;

use crate::{
    certs::{Authority, PemFiles},
    ports::Port,
    process::{Process, Program},
    stamp,
};

/// Names the file that says at which step a program built with the feature `failpoints` dies.
const FAIL_FILE: &str = "SPARK_FAIL_FILE";
/// The member whose roots live on two devices.
pub const OF_TWO_DEVICES: u16 = 1;
/// The operator whose federation key is a P-256 key.
const OF_P256: u16 = 2;
/// Label of its second device.
pub const SECOND: &str = "second";
/// Lines of an operator's configuration.
const DEVELOPMENT: &str = "\n[development]\nsdk_suites = true\n";
/// Longest wait for a process to be ready.
const START: Duration = Duration::from_secs(60);

/// Everything of one member that exists before the federation file does.
#[derive(Debug)]
pub struct Member {
    index: u16,
    signer_program: PathBuf,
    readable: bool,
    dir: PathBuf,
    pub(crate) tokens: TokenDir,
    operator_tls: PemFiles,
    operator_spki: [u8; 32],
    signer_tls: PemFiles,
    pub(crate) signer_certificate: PathBuf,
    pub(crate) signer_spki: [u8; 32],
    /// Repairs that people here approved: lines of the signer's configuration.
    pub(crate) approved: String,
    /// Its operator refreshes by itself what a repair brought back.
    pub(crate) refreshes: bool,
    signer_port: Port,
    signer_http: Port,
    peer_port: Port,
    http_port: Port,
    /// Client certificates required.
    mutual_port: Port,
    /// No client certificates: public SDKs cannot present one.
    open_port: Port,
    pub(crate) signer: Option<Process>,
    pub(crate) operator: Option<Process>,
}

/// What a ceremony made, as its transcript says it.
#[derive(Debug, Clone)]
pub struct Made {
    /// For the federation file.
    pub entry: MemberEntry,
    /// Of the signer, 16 bytes hex.
    pub incarnation: String,
    /// 32 bytes hex.
    pub federation_key: String,
}

/// What the operator of a member connects to.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// Authority of all certificates.
    pub ca: &'a Path,
    /// Federation file.
    pub federation: &'a Path,
    /// Its hash.
    pub federation_hash: &'a str,
    /// `http://host:port` of bitcoind.
    pub bitcoind: &'a str,
    /// File with `user:password` of its RPC.
    pub bitcoind_login: &'a Path,
    /// Confirmations of a deposit.
    pub deposit_depth: u32,
    /// As public SDKs' own test suites expect it: identities are open to everybody unless their owners close them, and,
    /// in a build with the feature `development`, what only those suites call is answered.
    pub sdk: bool,
}

/// Files and ports are confined wherever the kernel can do it (Landlock, Linux 6.7). Elsewhere a signer of the
/// development profile says what is missing and goes on.
fn confinement() -> &'static str {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) >= (Some(6), Some(7)) {
        "filesystem = \"enforce\"\nnetwork = \"enforce\"\n"
    } else {
        ""
    }
}

impl Member {
    /// Tokens, certificates and ports for member `index`, in `dir`; its signer is the shipped one if so wished.
    pub fn new(
        index: u16,
        dir: PathBuf,
        authority: &Authority,
        open_port: Port,
        shipped: bool,
    ) -> anyhow::Result<Self> {
        let tokens = new_tokens(index, &dir.join("tokens"))?;
        write_private(&dir.join("pin"), b"12345678")?;
        let operator = authority.issue(&format!("operator-{index}"))?;
        let signer = authority.issue(&format!("signer-{index}"))?;
        let signer_program =
            if shipped { stamp::shipped("spark-signer")? } else { stamp::program("spark-signer")? };
        let mut member = Self {
            signer_program,
            readable: shipped,
            index,
            tokens,
            operator_tls: operator.write(&dir, "operator")?,
            operator_spki: operator.spki_sha256(),
            signer_tls: signer.write(&dir, "signer")?,
            signer_certificate: dir.join("signer-token.pem"),
            signer_spki: [0; 32],
            approved: String::new(),
            refreshes: true,
            signer_port: Port::lease()?,
            signer_http: Port::lease()?,
            peer_port: Port::lease()?,
            http_port: Port::lease()?,
            mutual_port: Port::lease()?,
            open_port,
            signer: None,
            operator: None,
            dir,
        };
        member.make_tls_key(authority)?;
        Ok(member)
    }

    /// A key for the signer's listener in its token, and a certificate for it.
    pub(crate) fn make_tls_key(&mut self, authority: &Authority) -> anyhow::Result<()> {
        fs::write(self.dir.join("signer.toml"), self.signer_config(None, Path::new("")))?;
        let output = self.signer_command()?.args(["tls", "generate", "--name", "localhost"]).output()?;
        if !output.status.success() {
            bail!("TLS key of signer {}: {}", self.index, String::from_utf8_lossy(&output.stderr));
        }
        let made: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let field = |name: &str| hex::decode(made.get(name).and_then(|v| v.as_str()).unwrap_or_default());
        let point = field("point")?.as_slice().try_into().context("point")?;
        self.signer_spki = field("spki_sha256")?.as_slice().try_into().context("spki")?;
        let certificate = authority.certify(&format!("signer-{}", self.index), point)?;
        fs::write(&self.signer_certificate, certificate)?;
        Ok(())
    }

    /// Position in the federation.
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Folder with configuration, store and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `https://127.0.0.1:port` where wallets need a client certificate.
    pub fn mutual_url(&self) -> String {
        format!("https://{}", self.mutual_port.address())
    }

    /// `https://127.0.0.1:port` where they need none.
    pub fn open_url(&self) -> String {
        format!("https://localhost:{}", self.open_port.number())
    }

    /// `host:port` of the peer listener.
    pub fn peer_address(&self) -> String {
        self.peer_port.address().to_string()
    }

    /// `http://127.0.0.1:port` of the operator's metrics and health.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http_port.address())
    }

    /// `http://127.0.0.1:port` of the signer's metrics and health.
    pub fn signer_http_url(&self) -> String {
        format!("http://{}", self.signer_http.address())
    }

    /// `host:port` where the signer listens for its operator.
    pub fn signer_address(&self) -> String {
        self.signer_port.address().to_string()
    }

    /// Certificate and key of the operator: towards wallets, peers and its signer.
    pub const fn operator_tls(&self) -> &PemFiles {
        &self.operator_tls
    }

    /// A certificate in the signer's name whose key is in a file. The one that it serves with has its key in the token.
    pub const fn signer_tls(&self) -> &PemFiles {
        &self.signer_tls
    }

    /// The token directory.
    pub const fn tokens(&self) -> &TokenDir {
        &self.tokens
    }

    /// Where a test writes the step at which `program` (signer, operator) shall die. Programs built without the
    /// feature `failpoints` never look.
    pub fn fail_file(&self, program: &str) -> PathBuf {
        self.dir.join(format!("{program}.fail"))
    }

    fn signer_config(&self, federation: Option<(&Path, &str)>, ca: &Path) -> String {
        let federation = federation.map_or_else(String::new, |(path, hash)| {
            format!("federation = {:?}\nfederation_hash = {hash:?}\n", path.display().to_string())
        });
        let pin = self.dir.join("pin");
        format!(
            r#"profile = "development"
operator = {index}
store = {store:?}
{federation}listen = "{listen}"
http = "{http}"

[tls]
cert = {cert:?}
key = {{ token = true }}
client_ca = {ca:?}
allow = ["{allow}"]

[token]
module = {module:?}
profile = "softhsm"
roots = {{ label = "roots", pin = {{ file = {pin:?} }} }}
keys = {{ label = "keys", pin = {{ file = {pin:?} }}{kind} }}
{second}
[hardening]
core_dumps = "{core_dumps}"
privileges = "enforce"
syscalls = "enforce"
{confinement}
{approved}"#,
            approved = self.approved,
            confinement = confinement(),
            second = self.second_device(),
            // As if its HSM lacked EdDSA.
            kind = if self.index == OF_P256 { ", federation_key = \"ecdsa-p256\"" } else { "" },
            index = self.index,
            store = self.dir.join("signer.redb").display().to_string(),
            listen = self.signer_port.address(),
            http = self.signer_http.address(),
            // A test that reads a signer's memory needs to be root, or this.
            core_dumps =
                if self.readable && !rustix::process::geteuid().is_root() { "off" } else { "enforce" },
            cert = self.signer_certificate.display().to_string(),
            ca = ca.display().to_string(),
            allow = hex::encode(self.operator_spki),
            module = spark_softhsm::module_path().map(|p| p.display().to_string()).unwrap_or_default(),
            pin = pin.display().to_string(),
        )
    }

    fn second_device(&self) -> String {
        if self.index != OF_TWO_DEVICES {
            return String::new();
        }
        self.device(1, SECOND)
    }

    fn device(&self, id: u8, label: &str) -> String {
        format!(
            "[[token.devices]]\nid = {id}\nmodule = {:?}\nprofile = \"softhsm\"\nroots = {{ label = {label:?}, pin = {{ file = {:?} }} }}\n",
            spark_softhsm::module_path().map(|path| path.display().to_string()).unwrap_or_default(),
            self.dir.join("pin").display().to_string(),
        )
    }

    fn signer_command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.signer_program);
        let (key, value) = self.tokens.env();
        command.env(key, value).arg("--config").arg(self.dir.join("signer.toml"));
        Ok(command)
    }

    /// Runs a command of the signer's program on the member's host, as a person does; what it prints.
    pub fn administer(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.signer_command()?.args(arguments).env("SPARK_LOG", "warn").output()?;
        if !output.status.success() {
            let (said, why) = (&output.stdout, &output.stderr);
            bail!("{arguments:?}: {}{}", String::from_utf8_lossy(said), String::from_utf8_lossy(why));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Makes a token for a further device of the signer, names it in the configuration and prepares it; the signer runs
    /// on, and hears of it when it is told.
    pub fn buy_device(&self, id: u8, label: &str) -> anyhow::Result<()> {
        self.tokens.init_token(label, "87654321", "12345678")?;
        let path = self.dir.join("signer.toml");
        let text = fs::read_to_string(&path)?;
        let entry = self.device(id, label);
        fs::write(&path, text.replace("[hardening]", &format!("{entry}[hardening]")))?;
        let output = self.signer_command()?.args(["device", "prepare", &id.to_string()]).output()?;
        if !output.status.success() {
            bail!("device {id}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Keys in the tokens and an empty vault; `identity` is imported if given (development keys of public suites).
    pub fn ceremony(&self, ca: &Path, identity: Option<&str>) -> anyhow::Result<Made> {
        fs::write(self.dir.join("signer.toml"), self.signer_config(None, ca))?;
        let mut command = self.signer_command()?;
        command.arg("ceremony");
        if identity.is_some() {
            command.arg("--import-identity");
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let (Some(mut stdin), Some(identity)) = (child.stdin.take(), identity) {
            stdin.write_all(identity.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ceremony of signer {}: {}", self.index, String::from_utf8_lossy(&output.stderr));
        }
        let transcript: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let field = |name: &str| -> anyhow::Result<String> {
            Ok(transcript.get(name).and_then(|v| v.as_str()).context("ceremony's transcript")?.to_owned())
        };
        let entry = MemberEntry {
            identity_public_key: field("identity_public_key")?,
            federation_public_keys: vec![field("federation_public_key")?],
            tls_spki_sha256: vec![hex::encode(self.operator_spki)],
            peer_address: self.peer_address(),
            public_address: self.mutual_url(),
        };
        let federation_key = field("federation_public_key")?;
        Ok(Made { entry, incarnation: field("incarnation")?, federation_key })
    }

    /// Signs the federation file with this member's HSM.
    pub fn sign_federation(&self, file: &Path) -> anyhow::Result<()> {
        let output = self.signer_command()?.args(["federation", "sign"]).arg(file).output()?;
        if !output.status.success() {
            bail!("signer {} does not sign: {}", self.index, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Starts the signer; it stays locked until all operators run.
    pub async fn start_signer(&mut self, around: &Surroundings<'_>) -> anyhow::Result<()> {
        let config = self.signer_config(Some((around.federation, around.federation_hash)), around.ca);
        fs::write(self.dir.join("signer.toml"), config)?;
        let (key, value) = self.tokens.env();
        let program =
            Program::new(format!("signer-{}", self.index), &self.signer_program, self.dir.join("signer.log"))
                .env(key, value)
                .env(FAIL_FILE, self.fail_file("signer"))
                .arg("--config")
                .arg(self.dir.join("signer.toml"))
                .arg("start");
        let mut process = Process::start(program)?;
        let url = format!("{}/healthz", self.signer_http_url());
        process.wait_ready(START, || answers(url.clone())).await?;
        self.signer = Some(process);
        Ok(())
    }

    /// Starts the operator; does not wait until it is ready, since that needs the others.
    pub fn start_operator(&mut self, around: &Surroundings<'_>, database: &str) -> anyhow::Result<()> {
        let url = self.dir.join("database-url");
        write_private(&url, database.as_bytes())?;
        fs::write(self.dir.join("operator.toml"), self.operator_config(around, &url))?;
        let program = Program::new(
            format!("operator-{}", self.index),
            stamp::program("spark-operator")?,
            self.dir.join("operator.log"),
        )
        .env(FAIL_FILE, self.fail_file("operator"))
        .arg("--config")
        .arg(self.dir.join("operator.toml"))
        .arg("start");
        self.operator = Some(Process::start(program)?);
        Ok(())
    }

    fn operator_config(&self, around: &Surroundings<'_>, database_url: &Path) -> String {
        format!(
            r#"network = "regtest"
operator = {index}
federation = {federation:?}
federation_hash = "{hash}"
peers_ca = {ca:?}

[listen]
public = [
    {{ address = "{mutual}", client_auth = "required" }},
    {{ address = "{open}", client_auth = "off" }},
]
peer = "{peer}"
http = "{http}"

[tls]
cert = {cert:?}
key = {key:?}
client_ca = {ca:?}

[signer]
address = "{signer}"
server_name = "localhost"
ca = {ca:?}
cert = {cert:?}
key = {key:?}
spki = "{signer_spki}"

[database]
url = "file:{url}"

[bitcoind]
url = "{bitcoind}"
auth = {{ user_password = "file:{login}" }}

[chain]
deposit_depth = {depth}
exit_depth = 3
start_height = 0
poll = "500ms"
max_tip_age = "10000h"

[limits]
address_per_second = 100000
address_burst = 100000
identity_per_second = 100000
identity_burst = 100000

[repair]
refresh = {refreshes}

[htlc]
offered = true

[coop_exit]
offered = true

[privacy]
open_by_default = {open_reads}
{development}
"#,
            index = self.index,
            federation = around.federation.display().to_string(),
            hash = around.federation_hash,
            ca = around.ca.display().to_string(),
            mutual = self.mutual_port.address(),
            open = self.open_port.address(),
            peer = self.peer_port.address(),
            http = self.http_port.address(),
            cert = self.operator_tls.certificate.display().to_string(),
            key = self.operator_tls.key.display().to_string(),
            signer = self.signer_port.address(),
            signer_spki = hex::encode(self.signer_spki),
            url = database_url.display(),
            bitcoind = around.bitcoind,
            login = around.bitcoind_login.display(),
            depth = around.deposit_depth,
            open_reads = around.sdk,
            development = if around.sdk && cfg!(feature = "development") { DEVELOPMENT } else { "" },
            refreshes = self.refreshes,
        )
    }

    /// Waits until the operator says that it is ready.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.http_url());
        let process = self.operator.as_mut().context("operator is not started")?;
        process.wait_ready(START, || answers(url.clone())).await?;
        Ok(())
    }
}

/// Fresh tokens for member `index`, in `dir`.
pub(crate) fn new_tokens(index: u16, dir: &Path) -> anyhow::Result<TokenDir> {
    let tokens = TokenDir::create(dir)?;
    let labels = ["roots", "keys"].into_iter().chain((index == OF_TWO_DEVICES).then_some(SECOND));
    for label in labels {
        tokens.init_token(label, "87654321", "12345678")?;
    }
    Ok(tokens)
}

/// True if a GET is answered with 200.
async fn answers(url: String) -> bool {
    crate::http::get(&url).await.is_ok()
}

pub(crate) fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(content)
}
