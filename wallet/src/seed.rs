//! The file with the words: readable by its owner only, never overwritten.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::keys::{KeyError, Phrase};

const FILE: &str = "seed";

/// A seed file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// There is a wallet already.
    #[error("{0} exists: this directory already holds a wallet")]
    Exists(PathBuf),
    /// No wallet here.
    #[error("no wallet in this directory: use create or restore first")]
    Missing,
    /// Others may read it.
    #[error("{0} is readable by others: chmod 600 it")]
    Mode(PathBuf),
    /// The file system fails.
    #[error("seed file")]
    Io(#[from] io::Error),
    /// The words are wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Writes the words of a new wallet; they are on disk when this returns.
pub(crate) fn write(dir: &Path, phrase: &Phrase) -> Result<(), SeedError> {
    fs::create_dir_all(dir)?;
    let path = dir.join(FILE);
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(SeedError::Exists(path)),
        other => other?,
    };
    file.write_all(phrase.reveal().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::File::open(dir)?.sync_all()?;
    Ok(())
}

/// Reads the words.
pub(crate) fn read(dir: &Path) -> Result<Phrase, SeedError> {
    let path = dir.join(FILE);
    let metadata = match fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(SeedError::Missing),
        other => other?,
    };
    if metadata.mode() & 0o077 != 0 {
        return Err(SeedError::Mode(path));
    }
    let text = Zeroizing::new(fs::read_to_string(&path)?);
    Ok(Phrase::parse(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_file_is_private_and_written_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Err(SeedError::Missing)));
        let phrase = Phrase::generate(crate::keys::Words::Twelve, &mut rand::rngs::OsRng).unwrap();
        write(dir.path(), &phrase).unwrap();
        assert!(matches!(write(dir.path(), &phrase), Err(SeedError::Exists(_))));
        assert_eq!(read(dir.path()).unwrap().reveal(), phrase.reveal());
        let path = dir.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(dir.path()), Err(SeedError::Mode(_))));
    }
}
