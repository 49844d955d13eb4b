//! References to secrets.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

/// Where a secret lies. Printing it shows the place, never the secret.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// `file:PATH`: the content of a file, without a final line break.
    File(PathBuf),
    /// `env:NAME`: an environment variable. Refused on mainnet: other processes can read it.
    Env(String),
}

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The variable is not set, or not UTF-8.
    #[error("environment variable {0} is not set")]
    Env(String),
    /// Nothing in it.
    #[error("{0} is empty")]
    Empty(SecretRef),
}

impl SecretRef {
    /// Parses `file:PATH` or `env:NAME`; relative paths are taken from `folder`.
    pub(super) fn parse(text: &str, folder: &Path) -> Option<Self> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Some(Self::File(folder.join(path))),
            Some(("env", name)) if !name.is_empty() => Some(Self::Env(name.to_owned())),
            _ => None,
        }
    }

    /// Fetches the secret.
    pub fn read(&self) -> Result<String, SecretError> {
        let value = match self {
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|source| SecretError::File { path: path.clone(), source })?
                .trim_end_matches(['\r', '\n'])
                .to_owned(),
            Self::Env(name) => env::var(name).map_err(|_| SecretError::Env(name.clone()))?,
        };
        if value.is_empty() { Err(SecretError::Empty(self.clone())) } else { Ok(value) }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Env(name) => write!(f, "env:{name}"),
        }
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
