//! The machine: files, memory, clock, disk, certificates.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::process::{Resource, getrlimit};

use super::{Check, certificate};
use crate::{
    config::{Config, TlsKeySource},
    store::pages_path,
    token::{PinSource, Security},
};

/// Memory that the vault's keys and pages need to lock, bytes.
const LOCKED: u64 = 1 << 30;
/// Free space below which a store may soon not grow, bytes.
const FREE: u64 = 1 << 30;
/// 1 January 2026: no machine that runs this program has an earlier clock.
const EPOCH: u64 = 1_767_225_600;
/// A certificate that ends sooner must be renewed, seconds.
const RENEW: u64 = 21 * 86_400;

pub(super) fn run(config: &Config) -> Vec<Check> {
    let mut checks = vec![config_file(config)];
    checks.extend(config.token.devices.iter().map(|device| pin("pin-roots", &device.roots.pin)));
    checks.push(pin("pin-keys", &config.token.keys.token.pin));
    checks.push(private("store-file", &config.store, "chmod 600 the store"));
    checks.push(private("store-pages", &pages_path(&config.store), "chmod 600 the store's pages"));
    checks.push(memory(config));
    checks.push(clock(config));
    checks.push(disk(config));
    if let Some(tls) = &config.tls {
        match &tls.key {
            TlsKeySource::File(key) => checks.push(private("tls-key", key, "chmod 600 the key")),
            TlsKeySource::Token => checks.push(Check::ok("tls-key", "in the token")),
        }
        checks.push(expiry("tls-cert", &tls.cert));
        checks.push(expiry("tls-client-ca", &tls.client_ca));
    }
    checks
}

fn mode(path: &Path) -> Result<u32, String> {
    fs::metadata(path)
        .map(|file| file.mode() & 0o7777)
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn private(name: &'static str, path: &Path, hint: &'static str) -> Check {
    match mode(path) {
        Ok(mode) if mode & 0o077 == 0 => Check::ok(name, format!("{}, mode {mode:04o}", path.display())),
        Ok(mode) => Check::fail(name, format!("{}, mode {mode:04o}", path.display()), hint),
        Err(error) => Check::fail(name, error, "the file must exist; the store is made by the ceremony"),
    }
}

fn config_file(config: &Config) -> Check {
    match mode(&config.path) {
        Ok(mode) if mode & 0o022 == 0 => Check::ok("config-file", format!("mode {mode:04o}")),
        Ok(mode) => {
            Check::fail("config-file", format!("mode {mode:04o}"), "only its owner may write it: chmod go-w")
        }
        Err(error) => Check::fail("config-file", error, "where is it?"),
    }
}

fn pin(name: &'static str, source: &PinSource) -> Check {
    match source {
        PinSource::File(path) => private(name, path, "chmod 600 the file of the PIN"),
        PinSource::Inline(_) | PinSource::Environment(_) => Check::warn(
            name,
            format!("{source:?}"),
            "for development only; use a file, a descriptor or a prompt",
        ),
        PinSource::Descriptor(_) | PinSource::Prompt | PinSource::Held(_) => {
            Check::ok(name, format!("{source:?}"))
        }
    }
}

fn memory(config: &Config) -> Check {
    let limit = getrlimit(Resource::Memlock).current;
    let hint = "raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity in the unit)";
    match limit {
        None => Check::ok("locked-memory", "unlimited"),
        Some(bytes) if bytes >= LOCKED => Check::ok("locked-memory", format!("{} MiB", bytes >> 20)),
        Some(bytes) if config.profile == Security::Development => {
            Check::warn("locked-memory", format!("{} KiB", bytes >> 10), hint)
        }
        Some(bytes) => Check::fail("locked-memory", format!("{} KiB", bytes >> 10), hint),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// Without asking anybody: later than this program, and than the last write to the store.
fn clock(config: &Config) -> Check {
    let written = fs::metadata(&config.store).map_or(0, |file| u64::try_from(file.mtime()).unwrap_or(0));
    let now = now();
    let hint = "the clock is behind: set it, and keep it with NTP";
    if now < EPOCH {
        Check::fail("clock", format!("{now} s since 1970"), hint)
    } else if now < written {
        Check::fail(
            "clock",
            format!("{} s before the store's last change", written.saturating_sub(now)),
            hint,
        )
    } else {
        Check::ok("clock", format!("{now} s since 1970"))
    }
}

fn disk(config: &Config) -> Check {
    let folder = config.store.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let files = [config.store.clone(), pages_path(&config.store)];
    let size: u64 = files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum();
    let hint = "a commit that finds no space stops the signer: make room";
    match rustix::fs::statvfs(folder) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let detail = format!("{} MiB free, store {} MiB", free >> 20, size >> 20);
            if free < FREE { Check::fail("disk", detail, hint) } else { Check::ok("disk", detail) }
        }
        Err(error) => Check::fail("disk", format!("{}: {error}", folder.display()), hint),
    }
}

fn expiry(name: &'static str, path: &Path) -> Check {
    let hint = "renew it: runbook of rotation";
    match certificate::first_to_expire(path) {
        Err(error) => Check::fail(name, error, hint),
        Ok(end) => {
            let now = now();
            let days = end.saturating_sub(now) / 86_400;
            match () {
                () if end <= now => Check::fail(name, "expired", hint),
                () if end - now < RENEW => Check::warn(name, format!("ends in {days} days"), hint),
                () => Check::ok(name, format!("ends in {days} days")),
            }
        }
    }
}
