//! TCP ports on loopback that nobody else has.
//!
//! Binding port 0 and letting go again is a race twice over: another devnet may be told the same number, and
//! the kernel hands the same range to outgoing connections. So ports come from below the ephemeral range and
//! each is guarded by a locked file for as long as its [`Port`] lives.

use std::fs::{self, File, OpenOptions, Permissions};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use rand::Rng;

/// Below Linux's default `net.ipv4.ip_local_port_range` (32768 and up), above the ports that services like.
const RANGE: std::ops::Range<u16> = 16_384..32_768;
const ATTEMPTS: usize = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("the folder for port locks {folder} cannot be used")]
    Folder { folder: PathBuf, source: std::io::Error },
    #[error("no free port after {ATTEMPTS} attempts")]
    Exhausted,
}

/// A port on 127.0.0.1 that no other devnet on this machine uses while this value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// The lock lives as long as the file is open. A port fixed by the caller has none.
    _lease: Option<File>,
}

impl Port {
    /// Takes a free port.
    pub fn lease() -> Result<Self, PortError> {
        let folder = lock_folder()?;
        let mut rng = rand::thread_rng();
        for _ in 0..ATTEMPTS {
            let number = rng.gen_range(RANGE);
            let opened = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o666)
                .open(folder.join(number.to_string()));
            // A file of another user counts as taken.
            let Ok(lease) = opened else { continue };
            if lease.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self { number, _lease: Some(lease) });
            }
        }
        Err(PortError::Exhausted)
    }

    /// A port that the caller insists on, because a foreign program expects it. Nothing is checked.
    pub fn fixed(number: u16) -> Self {
        Self { number, _lease: None }
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.number))
    }
}

fn lock_folder() -> Result<PathBuf, PortError> {
    let folder = std::env::temp_dir().join("spark-devnet-ports");
    let failed = |source| PortError::Folder { folder: folder.clone(), source };
    match fs::create_dir(&folder) {
        // Like /tmp itself: everyone may add files, nobody may remove those of others.
        Ok(()) => fs::set_permissions(&folder, Permissions::from_mode(0o1777)).map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(folder)
}
