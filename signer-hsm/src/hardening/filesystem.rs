//! Landlock: the files and TCP ports that a process keeps.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath,
    PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, Scope,
    make_bitflags,
};

use super::{HardeningConfig, HardeningError};
use crate::{config::Config, store::pages_path};

/// The least that counts as confined to files: truncation, Linux 6.2.
const FILES: ABI = ABI::V3;
/// The least that counts as confined to ports, Linux 6.7.
const PORTS: ABI = ABI::V4;
/// Device ioctls and scopes, where the kernel has them.
const WISHED: ABI = ABI::V6;

/// Shared libraries, and what they read when they are loaded.
const LIBRARIES: [&str; 8] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/ssl/openssl.cnf",
    "/etc/crypto-policies",
];
/// What the C library and the process's own metrics read.
const SYSTEM: [&str; 4] = ["/proc/self", "/proc/stat", "/sys/devices/system/cpu", "/dev/urandom"];
/// Loaders of dynamically linked programs; the kernel executes them along with the program.
const LOADERS: [&str; 3] =
    ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1"];

/// The places in the file system that a process keeps. Those it was told of must exist; the system's need not.
#[derive(Debug, Clone, Default)]
pub struct Places {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    remove: Vec<PathBuf>,
    execute: bool,
}

impl Places {
    /// The signer: token files, the store's files, and for reloading the folders of configuration and certificates (a
    /// file that is replaced by another one is not the file that a rule was made for).
    pub fn signer(config: &Config) -> Result<Self, HardeningError> {
        let mut places = Self::confirmer(config)?;
        let keys = &config.token.keys;
        places.read.push(folder(&keys.module));
        let files = keys.profile.host_files().map_err(HardeningError::of("filesystem"))?;
        if let Some((configuration, tokens)) = files {
            places.read.push(configuration);
            places.write.push(tokens);
        }
        places.write.extend([config.store.clone(), pages_path(&config.store)]);
        if let Some(tls) = &config.tls {
            places.read.extend(tls.files().map(folder));
        }
        places.read.extend(config.federation.as_deref().map(folder));
        #[cfg(feature = "failpoints")]
        if let Some(file) = std::env::var_os("SPARK_FAIL_FILE") {
            places.read.push(folder(Path::new(&file)));
            places.remove.push(folder(Path::new(&file)));
        }
        Ok(places)
    }

    /// Who looks at the roots: the token's files and the configuration.
    pub fn confirmer(config: &Config) -> Result<Self, HardeningError> {
        let token = &config.token;
        let mut places = Self::default();
        places.read.push(folder(&config.path));
        places.read.extend(config.hardening.read.iter().cloned());
        places.write.extend(config.hardening.write.iter().cloned());
        places.read.extend(token.preload.iter().map(|module| folder(module)));
        for device in &token.devices {
            let module = folder(&device.module);
            if token.may_be_missing(device.id) && !module.exists() {
                continue;
            }
            places.read.push(module);
            let files = device.profile.host_files().map_err(HardeningError::of("filesystem"))?;
            if let Some((configuration, tokens)) = files {
                places.read.push(configuration);
                places.write.push(tokens);
            }
        }
        Ok(places)
    }

    /// Who starts that process: the same, and this very program.
    pub fn starter(config: &Config) -> Result<Self, HardeningError> {
        Ok(Self { execute: true, ..Self::confirmer(config)? })
    }
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Confines the calling thread and what it starts.
pub(super) fn confine(
    places: &Places,
    config: &HardeningConfig,
    files: bool,
    network: bool,
) -> Result<(), HardeningError> {
    let measure = if files { "filesystem" } else { "network" };
    let failed = HardeningError::of(measure);
    let mut rules = Ruleset::default();
    if files {
        rules = rules
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(FILES))
            .and_then(|rules| {
                rules.set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(WISHED))
            })
            .map_err(&failed)?;
    }
    if network {
        rules = rules
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessNet::from_all(PORTS))
            .map_err(HardeningError::of("network"))?;
    }
    let mut rules = rules
        .set_compatibility(CompatLevel::BestEffort)
        .scope(Scope::from_all(WISHED))
        .and_then(Ruleset::create)
        .map_err(&failed)?;
    if files {
        rules = open_places(rules, places)?;
    }
    if network {
        for port in &config.connect_ports {
            rules = rules
                .add_rule(NetPort::new(*port, AccessNet::ConnectTcp))
                .map_err(HardeningError::of("network"))?;
        }
    }
    let status = rules.restrict_self().map_err(&failed)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(HardeningError::new(measure, "the kernel has no Landlock"));
    }
    Ok(())
}

fn open_places(mut rules: RulesetCreated, places: &Places) -> Result<RulesetCreated, HardeningError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = read
        | make_bitflags!(AccessFs::{WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir | Refer});
    for (paths, access) in [
        (&places.read, read),
        (&places.write, write),
        (&places.remove, make_bitflags!(AccessFs::{RemoveFile})),
    ] {
        for path in paths {
            rules = add(rules, path, access)?;
        }
    }
    for path in LIBRARIES.iter().chain(&SYSTEM).map(Path::new).filter(|path| path.exists()) {
        rules = add(rules, path, read)?;
    }
    rules = add(rules, Path::new("/dev/null"), make_bitflags!(AccessFs::{ReadFile | WriteFile}))?;
    if places.execute {
        let program = Path::new("/proc/self/exe");
        let execute = make_bitflags!(AccessFs::{Execute | ReadFile});
        for path in LOADERS.iter().map(Path::new).chain([program]).filter(|path| path.exists()) {
            rules = add(rules, path, execute)?;
        }
    }
    Ok(rules)
}

fn add(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, HardeningError> {
    let failed =
        |why: &dyn std::fmt::Display| HardeningError::new("filesystem", format!("{}: {why}", path.display()));
    let open = PathFd::new(path).map_err(|error| failed(&error))?;
    // What makes sense for folders only is refused for files.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(FILES) };
    rules.add_rule(PathBeneath::new(open, access)).map_err(|error| failed(&error))
}
