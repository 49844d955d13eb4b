use super::*;

const GOOD: &str = r#"
network = "regtest"
operator = 1
federation = "federation.toml"
federation_hash = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"
peers_ca = "/etc/spark/peers.pem"

[listen]
public = [
    { address = "127.0.0.1:8535", client_auth = "off" },
    { address = "127.0.0.1:9535" },
]
peer = "127.0.0.1:7535"
http = "127.0.0.1:9464"

[tls]
cert = "operator.pem"
key = "operator.key"
client_ca = "clients.pem"

[signer]
address = "127.0.0.1:6535"
ca = "signer-ca.pem"
cert = "operator.pem"
key = "operator.key"
spki = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

[database]
url = "file:database-url"

[bitcoind]
url = "http://127.0.0.1:18443"
auth = { cookie = "/run/bitcoind/.cookie" }
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/conf"))
}

/// The faults of the good file after a change, one per line.
fn faults(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    match parse(&GOOD.replace(from, to)).unwrap_err() {
        ConfigError::Faults(faults) => faults.iter().map(|fault| format!("{fault}\n")).collect(),
        other => panic!("{other}"),
    }
}

const HASH: &str = "federation_hash = \"ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100\"\n";

#[test]
fn good_file_and_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.network, Network::Regtest);
    assert_eq!(config.operator.get(), 1);
    assert_eq!(config.federation, Path::new("/conf/federation.toml"));
    assert_eq!(config.federation_hash[..2], [0xff, 0xee]);
    assert_eq!(config.peers_ca, Path::new("/etc/spark/peers.pem"));
    assert_eq!(config.listen.public[0].client_auth, ClientCertificates::Off);
    assert_eq!(config.listen.public[1].client_auth, ClientCertificates::Required);
    assert_eq!(config.listen.admin, None);
    assert_eq!(config.signer.server_name, "127.0.0.1");
    assert_eq!((config.chain.deposit_depth.get(), config.chain.exit_depth.get()), (3, 6));
    assert_eq!(config.chain.max_reorg.get(), 100);
    assert_eq!(config.session_ttl, Duration::from_secs(900));
    assert_eq!(config.event_retention_days, 7);
    assert!(config.refresh_after_repair && !config.htlc && !config.coop_exit && !config.open_reads);
    assert_eq!(config.database.url, SecretRef::File("/conf/database-url".into()));
    assert_eq!(config.database.max_connections.get(), 20);
    assert!(config.providers.is_empty());
}

#[test]
fn every_section_can_be_set() {
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let more = format!(
        "{GOOD}\n[chain]\ndeposit_depth = 1\nexit_depth = 2\nmax_reorg = 10\nstart_height = 7\npoll = \"500ms\"\nmax_tip_age = \"24h\"\n\
         [limits]\naddress_per_second = 9\naddress_burst = 10\nidentity_per_second = 11\nidentity_burst = 12\n\
         [providers]\nidentity_keys = [\"{key}\"]\n[sessions]\nttl = \"5m\"\n\
         [events]\nretention_days = 30\n[repair]\nrefresh = false\n[privacy]\nopen_by_default = true\n[htlc]\noffered = true\n[coop_exit]\noffered = true\n\
         [log]\nformat = \"json\"\nfilter = \"debug\"\n"
    );
    let config = parse(&more).unwrap();
    assert_eq!(config.chain.poll, Duration::from_millis(500));
    assert_eq!(config.chain.start_height, Some(7));
    assert_eq!(config.limits.address_burst.get(), 10);
    assert_eq!(config.providers[0].to_string(), key);
    assert_eq!(config.session_ttl, Duration::from_secs(300));
    assert_eq!(config.event_retention_days, 30);
    assert!(!config.refresh_after_repair && config.htlc && config.coop_exit && config.open_reads);
    assert_eq!(config.chain.exit_depth.get(), 2);
    assert_eq!(config.log_format, LogFormat::Json);
}

#[test]
fn unknown_and_missing_fields_are_named() {
    for (from, to, part) in [
        ("[tls]\n", "[tls]\ncretificate = \"x\"\n", "unknown field `cretificate`"),
        ("network =", "netwrok =", "unknown field `netwrok`"),
        ("peer = \"127.0.0.1:7535\"\n", "", "missing field `peer`"),
        (HASH, "", "missing field `federation_hash`"),
        ("client_auth = \"off\"", "client_auth = \"maybe\"", "unknown variant `maybe`"),
        ("127.0.0.1:9464", "nowhere", "invalid socket address"),
        ("operator = 1", "operator = \"one\"", "invalid type"),
    ] {
        let message = parse(&GOOD.replace(from, to)).unwrap_err().to_string();
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn bad_values_are_explained() {
    for (from, to, expected) in [
        ("\"regtest\"", "\"main\"", "network: must be one of mainnet"),
        ("operator = 1", "operator = 15", "operator: must be the position"),
        ("federation_hash = \"ff", "federation_hash = \"f", "federation_hash: must be 64 hex digits"),
        ("spki = \"00", "spki = \"0", "signer.spki: must be 64 hex digits"),
        ("127.0.0.1:6535", "localhost", "signer.address: must be host:port"),
        ("http://127.0.0.1:18443", "127.0.0.1:18443", "bitcoind.url: must be http://host:port"),
        ("http://127", "http://u:p@127", "bitcoind.url: must not contain a password"),
        ("127.0.0.1:7535", "127.0.0.1:9464", "listen: 127.0.0.1:9464 is used twice"),
        ("client_ca = \"clients.pem\"", "", "tls.client_ca: is needed"),
        (
            "peer = ",
            "admin = { address = \"127.0.0.1:1\", allow = [] }\npeer = ",
            "listen.admin.allow: must name at least one TLS key",
        ),
        ("[tls]", "[chain]\npoll = \"0s\"\n[tls]", "chain.poll: must be between"),
        ("[tls]", "[chain]\ndeposit_depth = 0\n[tls]", "chain.deposit_depth: must be at least 1"),
        ("[tls]", "[chain]\ndeposit_depth = 101\n[tls]", "chain.deposit_depth: must not exceed"),
        ("[tls]", "[chain]\nexit_depth = 101\nmax_reorg = 200\n[tls]", "chain.exit_depth: must not exceed"),
        ("[tls]", "[sessions]\nttl = \"1m\"\n[tls]", "sessions.ttl: must be between"),
        ("[tls]", "[events]\nretention_days = 0\n[tls]", "events.retention_days: must be between"),
        ("[tls]", "[limits]\nidentity_burst = 3\n[tls]", "limits.identity_burst: must be at least"),
        ("[tls]", "[providers]\nidentity_keys = [\"02ff\"]\n[tls]", "providers.identity_keys[0]: must be"),
    ] {
        let faults = faults(from, to);
        assert!(faults.contains(expected), "{expected}: {faults}");
    }
}

#[test]
fn secrets_are_references_and_never_repeated() {
    let faults = faults("file:database-url", "postgres://user:hunter2@db/spark");
    assert_eq!(faults, "database.url: must be file:PATH or env:NAME\n");
    let env = GOOD.replace("file:database-url", "env:DATABASE_URL");
    assert_eq!(parse(&env).unwrap().database.url, SecretRef::Env("DATABASE_URL".to_owned()));
    let message = parse(&env.replace("\"regtest\"", "\"mainnet\"")).unwrap_err().to_string();
    assert!(message.contains("database.url: env: is refused on mainnet"), "{message}");
}

#[test]
fn all_faults_come_at_once() {
    let text = GOOD.replace("\"regtest\"", "\"x\"").replace("operator = 1", "operator = 99");
    let ConfigError::Faults(faults) = parse(&text).unwrap_err() else { panic!() };
    assert_eq!(faults.len(), 2);
}

#[test]
fn check_opens_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("operator.toml");
    let text = GOOD.replace("/etc/spark/", "").replace("/run/bitcoind/", "");
    std::fs::write(&path, text).unwrap();
    let ConfigError::Faults(faults) = Config::check(&path).unwrap_err() else { panic!() };
    assert_eq!(faults.len(), 10, "{faults:?}");
    for file in [
        "federation.toml",
        "peers.pem",
        "operator.pem",
        "operator.key",
        "clients.pem",
        "signer-ca.pem",
        ".cookie",
    ] {
        std::fs::write(folder.path().join(file), "x").unwrap();
    }
    std::fs::write(folder.path().join("database-url"), "postgres://db\n").unwrap();
    let config = Config::check(&path).unwrap();
    assert_eq!(config.database.url.read().unwrap(), "postgres://db");
}
