//! A whole federation on loopback: bitcoind, Postgres, tokens, signers, operators, certificates.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Serialize;
use spark_rules::federation::{FederationEntry, FederationFile};

use crate::{
    bitcoind::Bitcoind,
    certs::Authority,
    faucet::Faucet,
    member::{Member, Surroundings, write_private},
    ports::Port,
    postgres::{Cluster, Durability},
    process::Process,
    rpcfront::RpcFront,
    state::StateDir,
};

/// Identity keys that public SDKs expect of a local federation: development only, known to everybody.
pub const DEVELOPMENT_IDENTITIES: &[&str] = &[
    "5eaae81bcf1fd43fbb92432b82dbafc8273bb3287b42cb4cf3c851fcee2212a5",
    "bc0f5b9055c4a88b881d4bb48d95b409cd910fb27c088380f8ecda2150ee8faf",
    "d5043294f686bc1e3337ce4a44801b011adc67524175f27d7adc85d81d6a4545",
];

/// How a network is built.
#[derive(Debug, Clone)]
pub struct Options {
    /// n.
    pub operators: u16,
    /// t.
    pub threshold: u16,
    /// Confirmations of a deposit.
    pub deposit_depth: u32,
    /// Development identities on ports 8535 and up, bitcoind's front on 8332: what public SDK suites expect.
    pub sdk: bool,
    /// The development identities on free ports: a test can open what is sealed for operators. Implied by `sdk`.
    pub known_identities: bool,
    /// Signers as they ship, from the release profile, which must be built; they have no steps to die at.
    pub shipped_signers: bool,
    /// Where its state lies; a temporary folder if absent.
    pub dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            operators: 3,
            threshold: 2,
            deposit_depth: 1,
            sdk: false,
            known_identities: false,
            shipped_signers: false,
            dir: None,
        }
    }
}

/// Where everything listens.
#[derive(Debug, Clone, Serialize)]
pub struct Endpoints {
    /// Folder with all state.
    pub dir: PathBuf,
    /// Authority of all certificates, PEM.
    pub ca: PathBuf,
    /// A client certificate and its key, PEM.
    pub client_certificate: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
    /// Federation file.
    pub federation: PathBuf,
    /// Its hash.
    pub federation_hash: String,
    /// bitcoind's front: `http://127.0.0.1:port`.
    pub bitcoin_rpc: String,
    /// RPC user.
    pub bitcoin_user: String,
    /// RPC password.
    pub bitcoin_password: String,
    /// One per operator.
    pub operators: Vec<OperatorEndpoints>,
}

/// Where one operator listens.
#[derive(Debug, Clone, Serialize)]
pub struct OperatorEndpoints {
    /// Position in the federation.
    pub index: u16,
    /// secp256k1, hex.
    pub identity_public_key: String,
    /// Client certificate required.
    pub mutual_tls: String,
    /// No client certificate.
    pub open: String,
    /// Metrics and health of the operator.
    pub http: String,
    /// Metrics and health of the signer.
    pub signer_http: String,
}

/// A running network. Dropped, it leaves nothing running; a temporary folder is removed, too.
#[derive(Debug)]
pub struct Devnet {
    pub(crate) members: Vec<Member>,
    // Declared after what depends on them: fields are dropped in order.
    front: RpcFront,
    bitcoind: Bitcoind,
    cluster: Cluster,
    faucet: std::sync::Arc<Faucet>,
    pub(crate) authority: Authority,
    pub(crate) endpoints: Endpoints,
    options: Options,
    login: PathBuf,
    _state: StateDir,
}

/// User and password that public SDK suites use for bitcoind.
const RPC_LOGIN: (&str, &str) = ("testutil", "testutilpassword");

impl Devnet {
    /// Starts everything and waits until every operator is ready. `progress` hears of each step.
    ///
    /// A leased port may be taken by a stranger before its owner listens: a network with ports of its own choice
    /// is then built once more, with others.
    pub async fn start(options: Options, progress: impl Fn(&str)) -> anyhow::Result<Self> {
        match Self::start_once(options.clone(), &progress).await {
            Err(error) if !options.sdk && options.dir.is_none() => {
                progress(&format!("once more, since: {error:#}"));
                Self::start_once(options, &progress).await
            }
            result => result,
        }
    }

    async fn start_once(options: Options, progress: &impl Fn(&str)) -> anyhow::Result<Self> {
        let state = match &options.dir {
            Some(dir) => StateDir::at(dir)?,
            None => StateDir::temporary()?,
        };
        progress("certificates, bitcoind, Postgres");
        let private = state.private("secrets")?;
        let authority = Authority::new("Spark development network")?;
        let ca = private.join("ca.pem");
        authority.write(&ca)?;
        let client = authority.issue("wallet")?.write(&private, "wallet")?;
        let bitcoind = Bitcoind::start(&state.private("bitcoind")?).await?;
        let cluster = Cluster::create(&state.path().join("postgres"), Durability::Full).await?;
        let faucet = std::sync::Arc::new(Faucet::start(bitcoind.rpc().clone()).await?);
        let front = front(&options, &bitcoind, &faucet).await?;
        let (user, password) = bitcoind.credentials();
        let login = private.join("bitcoind-login");
        write_private(&login, format!("{user}:{password}").as_bytes())?;

        progress("key ceremonies");
        let mut members = Vec::new();
        for index in 0..options.operators {
            let dir = state.private(&format!("operator-{index}"))?;
            let open = if options.sdk { Port::fixed(8535 + index) } else { Port::lease()? };
            members.push(Member::new(index, dir, &authority, open, options.shipped_signers)?);
        }
        let mut entries = Vec::new();
        for (member, known) in members.iter().zip(development(&options)) {
            entries.push(member.ceremony(&ca, known)?.entry);
        }
        let identities: Vec<String> = entries.iter().map(|e| e.identity_public_key.clone()).collect();

        progress("federation file");
        let federation = private.join("federation.json");
        let entry = FederationEntry {
            epoch: 1,
            network: "regtest".into(),
            threshold: options.threshold,
            quorum: None,
            faults: None,
            members: entries,
        };
        let file = FederationFile { federation: entry, signatures: Vec::new() };
        fs::write(&federation, serde_json::to_string_pretty(&file)?)?;
        for member in &members {
            member.sign_federation(&federation)?;
        }
        let signed = FederationFile::parse(&fs::read_to_string(&federation)?)?;
        let federation_hash = hex::encode(signed.verify(None)?.hash());

        let endpoints = Endpoints {
            dir: state.path().to_owned(),
            ca,
            client_certificate: client.certificate,
            client_key: client.key,
            federation,
            federation_hash,
            bitcoin_rpc: format!("http://{}", front.address()),
            bitcoin_user: RPC_LOGIN.0.to_owned(),
            bitcoin_password: RPC_LOGIN.1.to_owned(),
            operators: members
                .iter()
                .zip(identities)
                .map(|(m, identity_public_key)| OperatorEndpoints {
                    index: m.index(),
                    identity_public_key,
                    mutual_tls: m.mutual_url(),
                    open: m.open_url(),
                    http: m.http_url(),
                    signer_http: m.signer_http_url(),
                })
                .collect(),
        };
        let mut this = Self {
            members,
            front,
            bitcoind,
            cluster,
            faucet,
            authority,
            endpoints,
            options,
            login,
            _state: state,
        };
        progress("signers");
        for index in 0..this.members.len() {
            this.start_signer(index).await?;
        }
        progress("operators");
        for index in 0..this.members.len() {
            let database = this.cluster.create_database(&format!("operator_{index}"))?;
            this.start_operator(index, &database)?;
        }
        this.wait_ready().await?;
        progress("ready");
        Ok(this)
    }

    /// Starts member `index`'s signer with its present tokens and store.
    pub async fn start_signer(&mut self, index: usize) -> anyhow::Result<()> {
        let bitcoind = format!("http://{}", self.bitcoind.address());
        let around = surroundings(&self.endpoints, &self.login, &bitcoind, &self.options);
        self.members.get_mut(index).context("no such operator")?.start_signer(&around).await
    }

    /// Starts member `index`'s operator against a database.
    pub fn start_operator(&mut self, index: usize, database: &str) -> anyhow::Result<()> {
        let bitcoind = format!("http://{}", self.bitcoind.address());
        let around = surroundings(&self.endpoints, &self.login, &bitcoind, &self.options);
        self.members.get_mut(index).context("no such operator")?.start_operator(&around, database)
    }

    /// Waits until every operator is ready.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.wait_ready().await?;
        }
        Ok(())
    }

    /// Where everything listens.
    pub const fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The chain.
    pub const fn bitcoind(&self) -> &Bitcoind {
        &self.bitcoind
    }

    /// The chain, to stop and restart it.
    pub const fn bitcoind_mut(&mut self) -> &mut Bitcoind {
        &mut self.bitcoind
    }

    /// Coins.
    pub fn faucet(&self) -> &Faucet {
        &self.faucet
    }

    /// The databases.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// URL of an operator's database.
    pub fn database_url(&self, index: u16) -> String {
        self.cluster.url(&format!("operator_{index}"))
    }

    /// The members.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Names of all processes.
    pub fn process_names(&self) -> Vec<String> {
        self.members
            .iter()
            .flat_map(|m| [m.signer.as_ref(), m.operator.as_ref()])
            .flatten()
            .map(|p| p.name().to_owned())
            .chain(["bitcoind".into(), "postgres".into()])
            .collect()
    }

    /// One process by name: `signer-0`, `operator-2`, `bitcoind`, `postgres`.
    pub fn process(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        match name {
            "bitcoind" => return Ok(self.bitcoind.process_mut()),
            "postgres" => return Ok(self.cluster.process_mut()),
            _ => {}
        }
        self.members
            .iter_mut()
            .flat_map(|m| [m.signer.as_mut(), m.operator.as_mut()])
            .flatten()
            .find(|p| p.name() == name)
            .with_context(|| format!("no process {name}"))
    }

    /// Writes `wallet.toml` for a new wallet in `dir`, coordinated by `coordinator`, over mutual TLS.
    pub fn write_wallet_config(&self, dir: &Path, coordinator: u16) -> anyhow::Result<()> {
        fs::create_dir_all(dir)?;
        let password = dir.join("bitcoind-password");
        write_private(&password, self.endpoints.bitcoin_password.as_bytes())?;
        let e = &self.endpoints;
        let text = format!(
            r#"network = "regtest"

[federation]
file = {file:?}
hash = "{hash}"
coordinator = {coordinator}

[tls]
ca = {ca:?}
certificate = {certificate:?}
key = {key:?}

[bitcoind]
url = "{rpc}"
user = "{user}"
password_file = {password:?}
"#,
            file = e.federation.display().to_string(),
            hash = e.federation_hash,
            ca = e.ca.display().to_string(),
            certificate = e.client_certificate.display().to_string(),
            key = e.client_key.display().to_string(),
            rpc = e.bitcoin_rpc,
            user = e.bitcoin_user,
            password = password.display().to_string(),
        );
        fs::write(dir.join("wallet.toml"), text)?;
        Ok(())
    }

    /// The front before bitcoind.
    pub const fn front(&self) -> &RpcFront {
        &self.front
    }
}

/// A leased port may be taken by a stranger before it is used: then another one serves.
async fn front(
    options: &Options,
    bitcoind: &Bitcoind,
    faucet: &std::sync::Arc<Faucet>,
) -> anyhow::Result<RpcFront> {
    let mut tries = 0;
    loop {
        let port = if options.sdk { Port::fixed(8332) } else { Port::lease()? };
        let started =
            RpcFront::start(port, RPC_LOGIN, bitcoind.rpc().clone(), std::sync::Arc::clone(faucet)).await;
        match started {
            Ok(front) => return Ok(front),
            Err(error) if options.sdk || tries >= 5 => return Err(error.into()),
            Err(_) => tries += 1,
        }
    }
}

fn development(options: &Options) -> impl Iterator<Item = Option<&'static str>> {
    let known =
        if options.sdk || options.known_identities { DEVELOPMENT_IDENTITIES.to_vec() } else { Vec::new() };
    known.into_iter().map(Some).chain(std::iter::repeat(None))
}

fn surroundings<'a>(
    endpoints: &'a Endpoints,
    login: &'a Path,
    bitcoind: &'a str,
    options: &Options,
) -> Surroundings<'a> {
    Surroundings {
        ca: &endpoints.ca,
        federation: &endpoints.federation,
        federation_hash: &endpoints.federation_hash,
        bitcoind,
        bitcoind_login: login,
        deposit_depth: options.deposit_depth,
        sdk: options.sdk,
    }
}
