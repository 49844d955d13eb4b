//! The account that Postgres runs under when we are root, since it refuses to be root itself.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixUser {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("/etc/passwd cannot be read")]
    Passwd(#[source] std::io::Error),
    #[error("neither postgres nor nobody is a user of this machine")]
    NoneFits,
}

impl UnixUser {
    /// `None` when we are an ordinary user and need no other; else `postgres`, else `nobody`.
    pub fn for_postgres() -> Result<Option<Self>, UserError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").map_err(UserError::Passwd)?;
        let found = ["postgres", "nobody"].into_iter().find_map(|name| Self::find(&passwd, name));
        found.map(Some).ok_or(UserError::NoneFits)
    }

    /// Gives a file or folder to this user.
    pub fn own(&self, path: &Path) -> std::io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }

    fn find(passwd: &str, wanted: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| *name == wanted)?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Self { name: name.to_owned(), uid, gid })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_passwd_lines() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533:nobody:/:/usr/sbin/nologin\n";
        let user = UnixUser::find(passwd, "nobody").unwrap();
        assert_eq!((user.uid, user.gid), (65534, 65533));
        assert_eq!(UnixUser::find(passwd, "postgres"), None);
    }
}
