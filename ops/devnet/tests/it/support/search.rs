//! Looking for known bytes in files and in the memory of processes, in every form that programs give them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};

/// Read at a time.
pub(crate) const CHUNK: usize = 4 << 20;
/// Every needle has at least so many bytes, so that none is found by chance.
const LEAST: usize = 12;
/// Bytes by which candidates are found.
const HEAD: usize = 8;

/// What is looked for.
#[derive(Default)]
pub(crate) struct Needles {
    needles: Vec<(String, Vec<u8>)>,
    by_head: HashMap<[u8; HEAD], Vec<usize>>,
    /// A bit for each hash of a head: most positions need one look at it.
    filter: Vec<u64>,
    longest: usize,
}

impl std::fmt::Debug for Needles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Needles({})", self.needles.len())
    }
}

/// Words of 64 bits in the filter.
const FILTER: usize = 1 << 16;

/// Word and bit of a head.
fn slot(head: [u8; HEAD]) -> (usize, u32) {
    let hash = u64::from_ne_bytes(head).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 42;
    ((hash >> 6) as usize, (hash & 63) as u32)
}

impl Needles {
    /// Adds these very bytes.
    pub(crate) fn exact(&mut self, name: &str, bytes: &[u8]) {
        assert!(bytes.len() >= LEAST, "{name}: {} bytes could be found by chance", bytes.len());
        let head = *bytes.first_chunk::<HEAD>().unwrap_or(&[0; HEAD]);
        self.by_head.entry(head).or_default().push(self.needles.len());
        self.filter.resize(FILTER, 0);
        let (word, bit) = slot(head);
        if let Some(word) = self.filter.get_mut(word) {
            *word |= 1 << bit;
        }
        self.longest = self.longest.max(bytes.len());
        self.needles.push((name.to_owned(), bytes.to_vec()));
    }

    /// Adds bytes in every form in which a program may hold or print them: as they are and reversed (limbs of
    /// big integers), hex, base64 at each of its three alignments, and a list of numbers as `{:?}` prints it.
    pub(crate) fn all_forms(&mut self, name: &str, bytes: &[u8]) {
        let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
        self.exact(&format!("{name}, raw"), bytes);
        self.exact(&format!("{name}, reversed"), &reversed);
        self.exact(&format!("{name}, hex"), hex::encode(bytes).as_bytes());
        self.exact(&format!("{name}, HEX"), hex::encode_upper(bytes).as_bytes());
        self.exact(&format!("{name}, reversed hex"), hex::encode(&reversed).as_bytes());
        for skipped in 0..3 {
            // The first and last letters of base64 depend on what stands before and after.
            let padded = [&[0; 2][..skipped], bytes].concat();
            let text = STANDARD_NO_PAD.encode(padded);
            let (start, end) = ((skipped * 8).div_ceil(6), (skipped + bytes.len()) * 8 / 6);
            if let Some(inner) = text.as_bytes().get(start..end) {
                self.exact(&format!("{name}, base64 at {skipped}"), inner);
                let url = String::from_utf8_lossy(inner).replace('+', "-").replace('/', "_");
                if url.as_bytes() != inner {
                    self.exact(&format!("{name}, base64url at {skipped}"), url.as_bytes());
                }
            }
        }
        for separator in [", ", ","] {
            let list: Vec<String> = bytes.iter().map(u8::to_string).collect();
            self.exact(&format!("{name}, list"), list.join(separator).as_bytes());
        }
    }

    /// Adds a text.
    pub(crate) fn text(&mut self, name: &str, text: &str) {
        self.exact(name, text.as_bytes());
    }

    /// Names of what is in there.
    fn within(&self, hay: &[u8], found: &mut BTreeSet<String>) {
        for (position, head) in hay.array_windows::<HEAD>().enumerate() {
            let (word, bit) = slot(*head);
            if self.filter.get(word).is_none_or(|word| word >> bit & 1 == 0) {
                continue;
            }
            let rest = hay.get(position..).unwrap_or_default();
            for index in self.by_head.get(head).into_iter().flatten() {
                if let Some((name, needle)) = self.needles.get(*index)
                    && rest.starts_with(needle)
                {
                    found.insert(name.clone());
                }
            }
        }
    }

    /// Names of what a text holds.
    pub(crate) fn in_bytes(&self, hay: &[u8]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        self.within(hay, &mut found);
        found
    }

    /// Names of what a file holds.
    pub(crate) fn in_file(&self, path: &Path) -> anyhow::Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let mut file = File::open(path)?;
        self.stream(&mut file, u64::MAX, &mut found)?;
        Ok(found)
    }

    /// Reads through up to `limit` bytes; needles that straddle two reads are found, too.
    fn stream(
        &self,
        source: &mut impl std::io::Read,
        mut limit: u64,
        found: &mut BTreeSet<String>,
    ) -> std::io::Result<u64> {
        let mut hay = Vec::new();
        let mut total = 0;
        while limit > 0 {
            let kept = hay.len().min(self.longest);
            hay.drain(..hay.len().saturating_sub(kept));
            let wanted = limit.min(CHUNK as u64);
            let before = hay.len();
            let outcome = source.by_ref().take(wanted).read_to_end(&mut hay);
            // What was read before an error counts.
            let read = (hay.len() - before) as u64;
            self.within(&hay, found);
            outcome?;
            if read == 0 {
                break;
            }
            total += read;
            limit = limit.saturating_sub(read);
        }
        Ok(total)
    }

    /// Names of what each file below a folder holds, but for the folders to be left out.
    pub(crate) fn in_tree(
        &self,
        root: &Path,
        leave_out: &[PathBuf],
    ) -> anyhow::Result<BTreeMap<PathBuf, BTreeSet<String>>> {
        let mut all = BTreeMap::new();
        let mut open = vec![root.to_owned()];
        while let Some(path) = open.pop() {
            if leave_out.contains(&path) {
                continue;
            }
            let kind = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata.file_type(),
                // Gone since it was listed: Postgres recycles.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            };
            if kind.is_dir() {
                for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
                    open.push(entry?.path());
                }
            } else if kind.is_file() {
                match self.in_file(&path) {
                    Ok(found) => drop(all.insert(path, found)),
                    Err(_) if !path.exists() => {}
                    Err(error) => return Err(error.context(path.display().to_string())),
                }
            }
        }
        Ok(all)
    }

    /// Names of what a process has in its readable memory, and how many bytes were read.
    pub(crate) fn in_memory(&self, process: u32) -> anyhow::Result<(BTreeSet<String>, u64)> {
        let mut memory = memory(process)?;
        let mut found = BTreeSet::new();
        let mut total = 0;
        for (start, end) in regions(process)? {
            memory.seek(SeekFrom::Start(start))?;
            // A region may be unmapped while we read it.
            total += self.stream(&mut memory, end.saturating_sub(start), &mut found).unwrap_or_default();
        }
        Ok((found, total))
    }

    /// Adds both halves of a secret as the machine holds it, in either order of bytes: what is freed and not wiped
    /// loses its beginning to the allocator.
    pub(crate) fn halves(&mut self, name: &str, secret: &[u8]) {
        let reversed: Vec<u8> = secret.iter().rev().copied().collect();
        for (order, bytes) in [("", secret), (" reversed", &reversed)] {
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            self.exact(&format!("{name}{order}, head"), head);
            self.exact(&format!("{name}{order}, tail"), tail);
        }
    }
}

fn memory(process: u32) -> anyhow::Result<File> {
    File::open(format!("/proc/{process}/mem")).context("memory of another process")
}

/// Readable memory that is no device's.
fn regions(process: u32) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut regions = Vec::new();
    for line in BufReader::new(File::open(format!("/proc/{process}/maps"))?).lines() {
        let line = line?;
        let mut fields = line.split_whitespace();
        let (range, mode) = (fields.next().context("range")?, fields.next().context("mode")?);
        let device = line.ends_with("[vvar]") || line.ends_with("[vsyscall]") || line.contains("/dev/");
        if !mode.starts_with('r') || device {
            continue;
        }
        let (start, end) = range.split_once('-').context("range")?;
        regions.push((u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?));
    }
    Ok(regions)
}

/// Copies the readable memory of a process, for a search when its secrets are known. Pages of zeros are left out.
pub(crate) fn snapshot(process: u32, path: &Path) -> anyhow::Result<u64> {
    let mut memory = memory(process)?;
    let mut copy = std::io::BufWriter::new(File::create_new(path)?);
    let mut total = 0;
    let mut page = [0u8; 4096];
    for (start, end) in regions(process)? {
        memory.seek(SeekFrom::Start(start))?;
        let mut left = end.saturating_sub(start);
        while left > 0 && memory.read_exact(&mut page).is_ok() {
            left = left.saturating_sub(page.len() as u64);
            if page.iter().any(|byte| *byte != 0) {
                std::io::Write::write_all(&mut copy, &page)?;
                total += page.len() as u64;
            }
        }
    }
    std::io::Write::flush(&mut copy)?;
    Ok(total)
}
