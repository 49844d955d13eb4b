//! The tree rebuilt from the records, and every tile compared with it.

use std::collections::HashMap;

use crate::{
    Error,
    checkpoint::Checkpoint,
    failure::{Failures, Reason},
    merkle::{self, Hash},
    report::Tree,
    source::Source,
    tiles::{self, Kind, MAX_TILE, Tile},
};

/// Most records of a log; the hashes of so many fill 2 GiB.
const MAX_RECORDS: u64 = 1 << 26;

/// What stands in a tile's place: the tile, or where it is partial and gone, the full one, which holds more.
async fn fetch(source: &Source, tile: Tile) -> Result<Option<(Vec<u8>, u64)>, Error> {
    if let Some(bytes) = source.read(&tile.to_string(), MAX_TILE).await? {
        return Ok(Some((bytes, tile.width)));
    }
    let Some(full) = tile.full() else { return Ok(None) };
    Ok(source.read(&full.to_string(), MAX_TILE).await?.map(|bytes| (bytes, full.width)))
}

/// Leaf hashes of a bundle.
async fn bundle(source: &Source, tile: Tile, failures: &mut Failures) -> Result<Option<Vec<Hash>>, Error> {
    let Some((bytes, width)) = fetch(source, tile).await? else {
        failures.add(Reason::BundleMissing, format!("{tile} is not there"));
        return Ok(None);
    };
    match tiles::parse_bundle(&bytes, width) {
        Ok(records) => {
            let wanted = (0..tile.width).zip(records);
            Ok(Some(wanted.map(|(_, record)| merkle::leaf(&record)).collect()))
        }
        Err(what) => {
            failures.add(Reason::BundleMalformed, format!("{tile}: {what}"));
            Ok(None)
        }
    }
}

/// Hashes of a tile.
async fn hashes(source: &Source, tile: Tile, failures: &mut Failures) -> Result<Option<Vec<Hash>>, Error> {
    let Some((bytes, width)) = fetch(source, tile).await? else {
        failures.add(Reason::TileMissing, format!("{tile} is not there"));
        return Ok(None);
    };
    match tiles::parse_hashes(&bytes, width) {
        Ok(hashes) => Ok(Some((0..tile.width).zip(hashes).map(|(_, hash)| hash).collect())),
        Err(what) => {
            failures.add(Reason::TileDiffers, format!("{tile}: {what}"));
            Ok(None)
        }
    }
}

/// Leaf hashes of all tiles of one kind; `None` if one of them is missing.
#[derive(Default)]
struct Leaves {
    all: Vec<Hash>,
    incomplete: bool,
}

impl Leaves {
    fn take(&mut self, part: Option<&[Hash]>) {
        match part {
            Some(part) if !self.incomplete => self.all.extend_from_slice(part),
            _ => self.incomplete = true,
        }
    }

    fn of_root(self, root: &Hash) -> Option<Vec<Hash>> {
        (!self.incomplete && merkle::root(&self.all) == *root).then_some(self.all)
    }
}

/// Reads all bundles and tiles. Gives the leaf hashes of the tree that the checkpoint states, if records or tiles have
/// them.
pub(crate) async fn rebuild(
    source: &Source,
    checkpoint: &Checkpoint,
    failures: &mut Failures,
) -> Result<(Tree, Option<Vec<Hash>>), Error> {
    let size = checkpoint.size;
    if size > MAX_RECORDS {
        return Err(Error::TooLarge(size));
    }
    let mut seen = Tree::default();
    let (mut records, mut tiled) = (Leaves::default(), Leaves::default());
    let mut differing = Vec::new();
    let places = tiles::of_level(Kind::Entries, size).zip(tiles::of_level(Kind::Hashes(0), size));
    for (bundle_place, tile_place) in places {
        if failures.is_full() {
            (records.incomplete, tiled.incomplete) = (true, true);
            break;
        }
        let of_bundle = bundle(source, bundle_place, failures).await?;
        let of_tile = hashes(source, tile_place, failures).await?;
        if of_bundle.is_some() && of_tile.is_some() && of_bundle != of_tile {
            differing.push((bundle_place, tile_place));
        }
        seen.bundles = seen.bundles.saturating_add(1);
        seen.tiles = seen.tiles.saturating_add(1);
        records.take(of_bundle.as_deref());
        tiled.take(of_tile.as_deref());
    }
    let complete = !records.incomplete || !tiled.incomplete;
    // Who of the two tells what was signed?
    let (leaves, by_records) = match records.of_root(&checkpoint.root) {
        Some(leaves) => (Some(leaves), true),
        None => (tiled.of_root(&checkpoint.root), false),
    };
    for (bundle, tile) in differing {
        match (&leaves, by_records) {
            (Some(_), false) => failures.add(
                Reason::BundleDiffers,
                format!("{bundle} holds other records than the signed tree, which the tiles have"),
            ),
            _ => failures.add(Reason::TileDiffers, format!("{tile} is not what the records hash to")),
        }
    }
    if leaves.is_none() && complete {
        failures.add(
            Reason::RootDiffers,
            format!("neither records nor tiles lead to the signed root {}", hex::encode(checkpoint.root)),
        );
    }
    if let Some(leaves) = &leaves {
        seen.rebuilt = by_records;
        seen.records = leaves.len() as u64;
        upper_tiles(source, leaves, &mut seen, failures).await?;
        repeated(leaves, failures);
    }
    Ok((seen, leaves))
}

async fn upper_tiles(
    source: &Source,
    leaves: &[Hash],
    seen: &mut Tree,
    failures: &mut Failures,
) -> Result<(), Error> {
    let mut level = tiles::level_above(leaves);
    for number in 1u8.. {
        let places = tiles::of_level(Kind::Hashes(number), level.len() as u64);
        for (place, expected) in places.zip(level.chunks(256)) {
            if failures.is_full() {
                return Ok(());
            }
            if hashes(source, place, failures).await?.is_some_and(|found| found != expected) {
                failures.add(Reason::TileDiffers, format!("{place} is not what the records hash to"));
            }
            seen.tiles = seen.tiles.saturating_add(1);
        }
        if level.is_empty() {
            break;
        }
        level = tiles::level_above(&level);
    }
    Ok(())
}

/// Each record has a salt of its own: one that stands in the log twice was copied.
fn repeated(leaves: &[Hash], failures: &mut Failures) {
    let mut first: HashMap<&Hash, u64> = HashMap::with_capacity(leaves.len());
    for (index, leaf) in (0u64..).zip(leaves) {
        if let Some(before) = first.insert(leaf, index) {
            failures.add(Reason::RecordRepeated, format!("records {before} and {index} are the same"));
        }
    }
}
