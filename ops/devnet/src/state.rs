//! The folder that everything of one devnet lives in.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("folder {path} cannot be made")]
    Create { path: PathBuf, source: std::io::Error },
}

/// State of one devnet. Other users may traverse it (mode 0711) but not list it: Postgres runs as one of them
/// when we are root.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Removes the folder when dropped; absent for a folder that the caller named.
    _temporary: Option<TempDir>,
}

impl StateDir {
    /// A fresh folder below the system's temporary folder, removed with this value.
    pub fn temporary() -> Result<Self, StateError> {
        let parent = std::env::temp_dir();
        let failed = |source| StateError::Create { path: parent.clone(), source };
        let made = tempfile::Builder::new()
            .prefix("spark-devnet-")
            .permissions(Permissions::from_mode(0o711))
            .tempdir_in(&parent)
            .map_err(failed)?;
        // The umask may have taken bits away.
        fs::set_permissions(made.path(), Permissions::from_mode(0o711)).map_err(failed)?;
        Ok(Self { path: made.path().to_owned(), _temporary: Some(made) })
    }

    /// The given folder, made if absent and kept afterwards.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        let failed = |source| StateError::Create { path: path.clone(), source };
        fs::create_dir_all(&path).map_err(failed)?;
        fs::set_permissions(&path, Permissions::from_mode(0o711)).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        Ok(Self { path, _temporary: None })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A subfolder that only we may enter.
    pub fn private(&self, name: &str) -> Result<PathBuf, StateError> {
        let path = self.path.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| StateError::Create { path: path.clone(), source })?;
        Ok(path)
    }
}
