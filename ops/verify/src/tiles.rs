//! Tiles and entry bundles (C2SP tlog-tiles): where they are and what is in them.

use std::fmt;

use crate::merkle::{self, Hash};

/// Hashes in a full tile: a subtree of height 8.
pub const WIDTH: u64 = 256;
/// Bytes of a hash, and of a record: records are salted hashes.
pub const HASH: usize = 32;
/// A record and its length.
const ITEM: usize = HASH + 2;
/// Longest tile or bundle, in bytes.
pub const MAX_TILE: usize = 256 * ITEM;

/// What a tile holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Hashes of subtrees of 256^level records.
    Hashes(u8),
    /// Records.
    Entries,
}

/// One tile or bundle of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// What it holds.
    pub kind: Kind,
    /// Place within its level.
    pub index: u64,
    /// Hashes or records, 1 to 256.
    pub width: u64,
}

impl Tile {
    /// The full tile in the same place, if this one is partial.
    pub fn full(self) -> Option<Self> {
        (self.width < WIDTH).then_some(Self { width: WIDTH, ..self })
    }
}

/// Path below the log's prefix.
impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Hashes(level) => write!(f, "tile/{level}/")?,
            Kind::Entries => f.write_str("tile/entries/")?,
        }
        let mut groups = vec![self.index % 1000];
        let mut rest = self.index / 1000;
        while rest > 0 {
            groups.push(rest % 1000);
            rest /= 1000;
        }
        for (left, group) in (0..groups.len()).zip(&groups).rev() {
            match left {
                0 => write!(f, "{group:03}")?,
                _ => write!(f, "x{group:03}/")?,
            }
        }
        if self.width < WIDTH {
            write!(f, ".p/{}", self.width)?;
        }
        Ok(())
    }
}

/// Tiles of one kind that hold `count` hashes or records, the last of them partial unless it is full.
pub fn of_level(kind: Kind, count: u64) -> impl Iterator<Item = Tile> {
    let full = (0..count / WIDTH).map(move |index| Tile { kind, index, width: WIDTH });
    let rest = count % WIDTH;
    full.chain((rest > 0).then_some(Tile { kind, index: count / WIDTH, width: rest }))
}

/// Hashes of the level above: of every 256 hashes that are complete.
pub fn level_above(hashes: &[Hash]) -> Vec<Hash> {
    hashes.chunks_exact(256).map(merkle::root).collect()
}

/// Records of a bundle that must have `width` of them, 32 bytes each.
pub fn parse_bundle(bytes: &[u8], width: u64) -> Result<Vec<Hash>, String> {
    let (items, rest) = bytes.as_chunks::<ITEM>();
    if !rest.is_empty() || items.len() as u64 != width {
        return Err(format!("{} bytes are not {width} records of {HASH} bytes", bytes.len()));
    }
    items
        .iter()
        .map(|[high, low, record @ ..]| match u16::from_be_bytes([*high, *low]) {
            32 => Ok(*record),
            other => Err(format!("a record has {other} bytes")),
        })
        .collect()
}

/// Hashes of a tile that must have `width` of them.
pub fn parse_hashes(bytes: &[u8], width: u64) -> Result<Vec<Hash>, String> {
    match bytes.as_chunks::<HASH>() {
        (hashes, []) if hashes.len() as u64 == width => Ok(hashes.to_vec()),
        _ => Err(format!("{} bytes are not {width} hashes", bytes.len())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hashes(level: u8, index: u64, width: u64) -> Tile {
        Tile { kind: Kind::Hashes(level), index, width }
    }

    #[test]
    fn paths_of_the_specification() {
        for (tile, path) in [
            (hashes(0, 0, 256), "tile/0/000"),
            (hashes(0, 1_234_067, 256), "tile/0/x001/x234/067"),
            (hashes(63, 1000, 7), "tile/63/x001/000.p/7"),
            (Tile { kind: Kind::Entries, index: 273, width: 112 }, "tile/entries/273.p/112"),
        ] {
            assert_eq!(tile.to_string(), path);
        }
    }

    #[test]
    fn tiles_of_70000_records_are_those_of_the_specification() {
        let count = |kind, count| of_level(kind, count).map(|t| t.width).collect::<Vec<_>>();
        let level0 = count(Kind::Hashes(0), 70_000);
        assert_eq!((level0.len(), level0.last()), (274, Some(&112)));
        assert_eq!(count(Kind::Hashes(1), 70_000 / 256), [256, 17]);
        assert_eq!(count(Kind::Hashes(2), 70_000 / 65_536), [1]);
        assert_eq!(count(Kind::Hashes(0), 256), [256]);
        assert_eq!(count(Kind::Entries, 0), [0u64; 0]);
    }

    #[test]
    fn bundles_are_read_strictly() {
        let item = |length: u16, bytes: usize| [&length.to_be_bytes()[..], &vec![7; bytes]].concat();
        let good = [item(32, 32), item(32, 32)].concat();
        assert_eq!(parse_bundle(&good, 2), Ok(vec![[7; 32]; 2]));
        for (bad, width) in [
            (good.clone(), 1),
            (good.clone(), 3),
            ([good.clone(), vec![0]].concat(), 2),
            (good[..67].to_vec(), 2),
            ([item(31, 31), item(33, 33)].concat(), 2),
            (Vec::new(), 1),
        ] {
            assert!(parse_bundle(&bad, width).is_err(), "{width} {bad:?}");
        }
        assert!(parse_hashes(&[0; 64], 2).is_ok());
        assert!(parse_hashes(&[0; 64], 1).is_err());
        assert!(parse_hashes(&[0; 65], 2).is_err());
    }

    proptest! {
        #[test]
        fn a_path_names_its_index(index: u64, width in 1u64..=256) {
            let path = hashes(3, index, width).to_string();
            let rest = path.strip_prefix("tile/3/").unwrap();
            let (number, partial) = rest.split_once(".p/").map_or((rest, None), |(n, p)| (n, Some(p)));
            prop_assert_eq!(partial.map(|p| p.parse::<u64>().unwrap()), (width < 256).then_some(width));
            let groups: Vec<&str> = number.split('/').collect();
            let (last, first) = groups.split_last().unwrap();
            prop_assert!(first.iter().all(|g| g.len() == 4 && g.starts_with('x')));
            prop_assert_eq!(last.len(), 3);
            prop_assert!(first.first().is_none_or(|g| *g != "x000"), "no empty group leads");
            let digits: String = groups.iter().map(|g| g.trim_start_matches('x')).collect();
            prop_assert_eq!(digits.parse::<u64>().unwrap(), index);
        }
    }
}
