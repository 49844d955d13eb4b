//! Are the programs we are about to start built from the sources we see?
//!
//! A test that starts yesterday's operator proves nothing. Next to each program cargo leaves a `.d` file that
//! lists all sources it was built from; the program is current when none of them is younger. That covers edits
//! nobody has committed, which a stamp compiled in from the Git commit would not, and costs no rebuild.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs, io};

#[derive(Debug, thiserror::Error)]
pub enum StampError {
    #[error("our own executable is unknown")]
    Ourselves(#[source] io::Error),
    #[error("{path} is not built; run {build}")]
    Missing { path: PathBuf, build: &'static str },
    #[error("{path} cannot be read")]
    Read { path: PathBuf, source: io::Error },
    #[error("{program} is older than {source_file}; run {build}")]
    Stale { program: PathBuf, source_file: PathBuf, build: &'static str },
}

/// The program of that name beside our own executable, refused when a source of it has changed since.
pub fn program(name: &str) -> Result<PathBuf, StampError> {
    current(folder()?.join(name), "cargo build --workspace --bins")
}

/// The program of that name as it ships, from the release profile; refused as above.
pub fn shipped(name: &str) -> Result<PathBuf, StampError> {
    current(folder()?.with_file_name("release").join(name), "cargo build --release --bins of its package")
}

fn folder() -> Result<PathBuf, StampError> {
    let ours = env::current_exe().map_err(StampError::Ourselves)?;
    let mut folder = ours.parent().unwrap_or(Path::new("/")).to_owned();
    // Tests and examples lie one folder below the programs.
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder.pop();
    }
    Ok(folder)
}

fn current(path: PathBuf, build: &'static str) -> Result<PathBuf, StampError> {
    if !path.is_file() {
        return Err(StampError::Missing { path, build });
    }
    check(&path).map_err(|error| match error {
        StampError::Stale { program, source_file, .. } => StampError::Stale { program, source_file, build },
        other => other,
    })?;
    Ok(path)
}

/// Fails when a source that `program` was built from is gone or younger than it.
pub fn check(program: &Path) -> Result<(), StampError> {
    let built = modified(program)?;
    let list = program.with_extension("d");
    let text = fs::read_to_string(&list).map_err(|source| StampError::Read { path: list.clone(), source })?;
    for source_file in sources(&text) {
        // A folder's time changes with every file made in it, editors' temporary ones too.
        if !source_file.is_dir() && modified(&source_file).map_or(true, |changed| changed > built) {
            let program = program.to_owned();
            return Err(StampError::Stale { program, source_file, build: "cargo build" });
        }
    }
    Ok(())
}

fn modified(path: &Path) -> Result<SystemTime, StampError> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .map_err(|source| StampError::Read { path: path.to_owned(), source })
}

/// The paths of a make rule `program: source source…`, in which spaces are escaped.
fn sources(rule: &str) -> Vec<PathBuf> {
    let Some((_, list)) = rule.lines().next().and_then(|line| line.split_once(": ")) else {
        return Vec::new();
    };
    let mut paths = Vec::new();
    let mut path = String::new();
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if letters.peek() == Some(&' ') => path.extend(letters.next()),
            ' ' if path.is_empty() => {}
            ' ' => paths.push(PathBuf::from(std::mem::take(&mut path))),
            _ => path.push(letter),
        }
    }
    if !path.is_empty() {
        paths.push(PathBuf::from(path));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_make_rules() {
        let rule = "/t/a\\ b/spark: /s/x.rs /s/y\\ z.rs\n";
        assert_eq!(sources(rule), [PathBuf::from("/s/x.rs"), PathBuf::from("/s/y z.rs")]);
        assert!(sources("").is_empty());
    }

    #[test]
    fn a_program_older_than_its_source_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (program, source) = (dir.path().join("spark"), dir.path().join("main.rs"));
        for path in [&program, &source] {
            fs::write(path, "").unwrap();
        }
        fs::write(dir.path().join("spark.d"), format!("{}: {}\n", program.display(), source.display()))
            .unwrap();
        let set_time = |path: &Path, seconds| {
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        };
        set_time(&source, 1_000);
        set_time(&program, 2_000);
        check(&program).unwrap();
        set_time(&source, 3_000);
        assert!(matches!(check(&program), Err(StampError::Stale { .. })));
        fs::remove_file(&source).unwrap();
        assert!(matches!(check(&program), Err(StampError::Stale { .. })));
    }
}
