//! What a hardened process can still do, and that it does not run when it cannot be hardened. Every test that gives up
//! rights does so in a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::{
        fs::{MetadataExt as _, OpenOptionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use rustix::{
    fs::MemfdFlags,
    process::{DumpableBehavior, Resource, Rlimit},
};
use seccompiler::apply_filter;
use spark_rules::ids::Incarnation;
use spark_signer::vault::{SecretId, SecretKind, Token as _, Vault};
use spark_signer_hsm::{
    config::Config,
    hardening::{Places, Role},
    starter::Starter,
    store::RedbStore,
    token::{IdentitySource, Pkcs11Token, generate_keys},
};
use spark_softhsm::{TokenDir, isolated};
use zeroize::Zeroizing;

/// A configuration beside the tokens, with fresh tokens, for the given profile and table of measures.
fn configuration(dir: &TokenDir, profile: &str, hardening: &str) -> PathBuf {
    let path = dir.conf_path().with_file_name("signer.toml");
    let pin = path.with_file_name("pin");
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&pin).unwrap();
    file.write_all(common::PIN.as_bytes()).unwrap();
    let module = spark_softhsm::module_path().unwrap();
    let text = format!(
        "profile = {profile:?}\noperator = 0\nstore = {:?}\nlisten = \"127.0.0.1:0\"\n\
         [token]\nmodule = {module:?}\nprofile = \"softhsm\"\n\
         roots = {{ label = \"roots\", pin = {{ file = {pin:?} }} }}\n\
         keys = {{ label = \"keys\", pin = {{ file = {pin:?} }} }}\n[hardening]\n{hardening}\n",
        path.with_file_name("store.redb"),
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn refused<T: std::fmt::Debug>(what: &str, result: std::io::Result<T>) {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
}

#[test]
fn a_hardened_process_serves_its_token_and_does_nothing_else() {
    isolated("a_hardened_process_serves_its_token_and_does_nothing_else", |dir| {
        common::config(dir);
        let path = configuration(dir, "production", "");
        let config = Config::load(&path).unwrap();
        let (listener, private) = (TcpListener::bind("127.0.0.1:0").unwrap(), path.with_file_name("pin"));
        let address = listener.local_addr().unwrap();
        let beside = UnixStream::pair().unwrap();
        {
            let token = Arc::new(generate_keys(&config.token, &IdentitySource::Generate).unwrap());
            let store = RedbStore::create(&config.store).unwrap();
            Vault::create(token, Box::new(store), Incarnation::from_bytes([3; 16])).unwrap();
        }

        let hardening = config.hardening();
        hardening.basics().unwrap();
        hardening.confine(&Places::signer(&config).unwrap()).unwrap();
        // Files and ports, by Landlock.
        for path in ["/etc/passwd", "/proc/1/environ", "/bin/true", "/tmp"] {
            refused(path, File::open(path));
        }
        refused("write beside", std::fs::write(path.with_file_name("new"), "x"));
        refused("write over", File::options().write(true).open(&private));
        refused("connect", TcpStream::connect(address));
        refused("bind", TcpListener::bind("127.0.0.1:0"));
        refused("another program", Command::new("/bin/true").spawn());
        std::fs::read_to_string(&path).unwrap();

        // Token and store open as in a signer that starts, and then the calls are closed.
        let token = Arc::new(Pkcs11Token::open(&config.token).unwrap());
        let mut vault =
            Vault::open(Arc::clone(&token), Box::new(RedbStore::open(&config.store).unwrap())).unwrap();
        let parent = rustix::process::getppid().unwrap();
        hardening.filter(Role::Signer).unwrap();
        refused("socket", UdpSocket::bind("127.0.0.1:0"));
        refused("unix socket", UnixStream::connect("/run/nothing"));
        refused("this program", Command::new("/proc/self/exe").spawn());
        refused("starter", Starter::launch(&path));
        refused("signal", rustix::process::test_kill_process(parent).map_err(std::io::Error::from));
        refused(
            "memory file",
            rustix::fs::memfd_create("x", MemfdFlags::empty()).map_err(std::io::Error::from),
        );
        refused("root folder", rustix::process::chroot("/").map_err(std::io::Error::from));
        refused("attributes", rustix::thread::set_no_new_privs(true).map_err(std::io::Error::from));
        refused(
            "mode",
            std::fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o644)),
        );

        // Work goes on: token, store, library started afresh, threads, a runtime with sockets and signals.
        let id = SecretId::new([1; 16], SecretKind::Keyshare, 1);
        vault.confirm_witnessed().unwrap();
        for _ in 0..2 {
            let mut txn = vault.begin();
            txn.put_secret(id, Zeroizing::new(b"share".to_vec())).unwrap();
            txn.commit().unwrap();
            assert_eq!(&**vault.get_secret(&id).unwrap().unwrap(), b"share");
            let epoch = vault.epoch();
            let mut txn = vault.begin();
            assert!(txn.delete_secret(&id).unwrap());
            txn.commit().unwrap();
            assert!(vault.epoch() > epoch, "a root was made and one destroyed");
            token.reconnect().unwrap();
        }
        token.sign_identity(&[9; 32]).unwrap();
        token.sign_federation(b"x").unwrap();
        std::thread::spawn(|| ()).join().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            beside.0.set_nonblocking(true).unwrap();
            listener.set_nonblocking(true).unwrap();
            let _listener = tokio::net::TcpListener::from_std(listener).unwrap();
            tokio::net::UnixStream::from_std(beside.0.try_clone().unwrap()).unwrap();
            let _hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).unwrap();
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        });
    })
    .unwrap();
}

/// One line of a file of the kernel about this thread, which is what privileges belong to, and its process.
fn told(file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/thread-self/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Locked memory in KiB.
fn locked() -> usize {
    told("status", "VmLck:").trim_end_matches(" kB").parse().unwrap()
}

/// What comes before all else: no core file, no other process that reads the memory, no new rights, no swap.
#[test]
fn memory_stays_in_memory_and_in_this_process() {
    isolated("memory_stays_in_memory_and_in_this_process", |dir| {
        let now = || {
            let dumpable = rustix::process::dumpable_behavior().unwrap();
            (told("limits", "Max core file size"), dumpable, told("status", "NoNewPrivs:"))
        };
        let off = "core_dumps = \"off\"\nprivileges = \"off\"\nmemory = \"off\"";
        let config = Config::load(&configuration(dir, "production", off)).unwrap();
        let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Core);
        rustix::process::setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).unwrap();
        config.hardening().basics().unwrap();
        // What shows below is not so by itself.
        assert_ne!(now().0, "0 0 bytes");
        assert_eq!((now().1, locked()), (DumpableBehavior::Dumpable, 0));

        let config = Config::load(&configuration(dir, "production", "")).unwrap();
        config.hardening().basics().unwrap();
        assert_eq!(now(), ("0 0 bytes".into(), DumpableBehavior::NotDumpable, "1".into()));
        // Not dumpable: the files by which others of the same user could read it belong to root.
        assert_eq!(std::fs::metadata("/proc/self/mem").unwrap().uid(), 0);
        // What is there, and what comes.
        let then = locked();
        assert!(then > 0);
        let more = vec![7u8; 32 << 20];
        assert!(locked() >= then + (more.len() >> 10), "{then} KiB, then {} KiB", locked());
    })
    .unwrap();
}

/// Makes a system call fail in this thread and in all that it starts, as on a kernel that does not know it.
fn without(call: &str) {
    let filter = format!(
        r#"{{"f": {{"mismatch_action": "allow", "match_action": {{"errno": 38}}, "filter": [{{"syscall": "{call}"}}]}}}}"#
    );
    let mut filters =
        seccompiler::compile_from_json(filter.as_bytes(), std::env::consts::ARCH.try_into().unwrap())
            .unwrap();
    apply_filter(&filters.remove("f").unwrap()).unwrap();
}

fn signer(path: &Path, command: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spark-signer"))
        .arg("--config")
        .arg(path)
        .arg(command)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn refuses(path: &Path, command: &str, why: &str) {
    let output = signer(path, command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command} runs: {said}");
    assert!(said.contains(why), "{command}: {said}");
}

#[test]
fn the_signer_does_not_start_when_a_measure_cannot_be_applied() {
    isolated("the_signer_does_not_start_when_a_measure_cannot_be_applied", |dir| {
        common::config(dir);
        let missing = "read = [\"/nonexistent\"]";
        for profile in ["production", "development"] {
            let path = configuration(dir, profile, &format!("filesystem = \"enforce\"\n{missing}"));
            for command in ["start", "confirmer", "starter"] {
                refuses(&path, command, "hardening.filesystem: /nonexistent");
            }
        }
        let path = configuration(dir, "production", "extra_syscalls = [\"warp\"]");
        refuses(&path, "confirmer", "hardening.syscalls");
        // Development without a word about it goes on and says so.
        let path = configuration(dir, "development", missing);
        let output = signer(&path, "confirmer");
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).is_empty());

        // Kernels that lack something. Each thread loses one call, and so do the programs that it starts.
        let no_landlock = "filesystem = \"off\"";
        for (call, measure, already) in [
            ("prctl", "core_dumps", ""),
            ("prctl", "privileges", "core_dumps = \"off\""),
            ("mlockall", "memory", ""),
            ("landlock_create_ruleset", "filesystem", ""),
            ("landlock_restrict_self", "filesystem", ""),
            ("landlock_create_ruleset", "network", no_landlock),
            ("seccomp", "syscalls", ""),
        ] {
            let kernel = |profile: &str, hardening: &str, judge: &(dyn Fn(&Path) + Sync)| {
                let path = configuration(dir, profile, hardening);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        without(call);
                        judge(&path);
                    });
                });
            };
            let why = format!("hardening.{measure}");
            let refuse = |path: &Path| refuses(path, "confirmer", &why);
            kernel("production", already, &refuse);
            kernel("development", &format!("{already}\n{measure} = \"enforce\""), &refuse);
            // The last one is applied when all else of a start is there.
            if measure != "syscalls" {
                kernel("production", already, &|path| refuses(path, "start", &why));
            }
            let runs = |path: &Path| {
                let output = signer(path, "confirmer");
                assert!(output.status.success(), "{call}: {}", String::from_utf8_lossy(&output.stderr));
            };
            kernel("development", "", &runs);
            let off = match measure {
                "filesystem" | "network" => "filesystem = \"off\"\nnetwork = \"off\"".into(),
                // By the same call Landlock and seccomp begin.
                "core_dumps" | "privileges" => {
                    ["core_dumps", "privileges", "filesystem", "network", "syscalls"]
                        .map(|measure| format!("{measure} = \"off\"\n"))
                        .concat()
                }
                _ => format!("{measure} = \"off\""),
            };
            kernel("production", &off, &runs);
        }
    })
    .unwrap();
}
