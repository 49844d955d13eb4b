//! Entry points for fuzzers: each takes any bytes, must not panic, and checks what must hold of what it accepts.

use crate::{
    checkpoint::Checkpoint,
    entries::Receipt,
    failure::Failures,
    federation::Federation,
    history::History,
    note::Note,
    tiles::{parse_bundle, parse_hashes},
};

/// A signed note: what is read is written the same.
pub fn fuzz_note(data: &[u8]) {
    if let Ok(note) = Note::parse(data) {
        assert_eq!(note.to_string().as_bytes(), data, "a note has one form");
        let _ = Checkpoint::parse(note.text());
    }
}

/// The text of a checkpoint.
pub fn fuzz_checkpoint(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(checkpoint) = Checkpoint::parse(text) {
        assert!(checkpoint.log_size() >= checkpoint.size, "a head is no larger than its log");
        assert!(
            text.starts_with(&format!("{}\n{}\n", checkpoint.origin, checkpoint.size)),
            "sizes have one form"
        );
    }
}

/// Bundles and tiles of any width.
pub fn fuzz_tile(data: &[u8]) {
    for width in 0..=256 {
        if let Ok(records) = parse_bundle(data, width) {
            assert_eq!(records.len() as u64, width, "as many as asked for");
        }
        if let Ok(hashes) = parse_hashes(data, width) {
            assert_eq!(hashes.concat(), data, "hashes have one form");
        }
    }
}

/// Lines of entries, followed as a history.
pub fn fuzz_entries(data: &[u8]) {
    let (mut history, mut failures) = (History::default(), Failures::default());
    let mut read = 0;
    for receipt in data.split(|b| *b == b'\n').filter_map(|line| Receipt::parse(line).ok()) {
        let _ = receipt.record();
        history.take(&receipt, 3, &mut failures);
        read += 1;
    }
    let totals = history.totals();
    assert_eq!(
        (totals.read, totals.confirmed.saturating_add(totals.pending)),
        (read, read),
        "each is counted"
    );
}

/// A federation file.
pub fn fuzz_federation(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(Ok(federation)) = Federation::read(text) {
        assert!(federation.witnesses_needed() < federation.size(), "the others suffice");
    }
}
