//! Replays the fuzzing corpus: `corpus/<entry point>/*`, any bytes. Each file is also cut and bent a little.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{fs, path::Path};

use proptest::prelude::*;
use spark_rules::fuzz;

type Entry = (&'static str, fn(&[u8]));

const ENTRIES: [Entry; 6] = [
    ("spark_address", fuzz::spark_address),
    ("template", fuzz::template),
    ("challenge", fuzz::challenge),
    ("packages", fuzz::packages),
    ("maturity", fuzz::maturity),
    ("envelope", fuzz::envelope),
];

#[test]
fn the_corpus_passes() {
    for (name, run) in ENTRIES {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
        let mut files = 0;
        for file in fs::read_dir(&folder).unwrap() {
            let data = fs::read(file.unwrap().path()).unwrap();
            run(&data);
            for cut in 0..data.len() {
                run(&data[..cut]);
                let mut bent = data.clone();
                bent[cut] ^= 1 << (cut % 8);
                run(&bent);
            }
            files += 1;
        }
        assert!(files > 0, "{name} has a corpus");
    }
}

proptest! {
    #[test]
    fn any_bytes_pass(data: Vec<u8>) {
        for (_, run) in ENTRIES {
            run(&data);
        }
    }
}
