//! The search itself: it finds what is there, in whatever form.

use std::fs;

use anyhow::Context as _;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE},
};

use crate::support::search::{CHUNK, Needles};

/// A search that finds nothing proves nothing unless it finds what is there.
#[test]
fn needles_are_found_in_every_form() {
    let secret: Vec<u8> = (0..32).map(|i| 251 - 7 * (i as u8 % 36)).collect();
    let mut needles = Needles::default();
    needles.all_forms("secret", &secret);
    let finds = |hay: &[u8]| !needles.in_bytes(hay).is_empty();
    let mut reversed = secret.clone();
    reversed.reverse();
    for before in 0..4 {
        let surrounded = [&[1, 2, 3][..before.min(3)], &secret, &[9, 9, 9]].concat();
        assert!(finds(&surrounded));
        assert!(finds(hex::encode(&surrounded).as_bytes()));
        assert!(finds(hex::encode_upper(&surrounded).to_uppercase().as_bytes()));
        assert!(finds(STANDARD_NO_PAD.encode(&surrounded).as_bytes()), "base64 after {before} bytes");
        let url = URL_SAFE.encode(&surrounded);
        assert!(finds(url.as_bytes()), "base64url after {before} bytes");
        assert!(finds(format!("{surrounded:?}").as_bytes()));
    }
    assert!(finds(&reversed));
    assert!(finds(serde_json::to_string(&secret).unwrap_or_default().as_bytes()));
    let mut other = secret.clone();
    other[31] ^= 1;
    assert!(!finds(&other) && !finds(hex::encode(&other).as_bytes()));
}

/// Across the border of two reads.
#[test]
fn needles_are_found_where_they_straddle_two_reads() -> anyhow::Result<()> {
    let mut needles = Needles::default();
    needles.exact("secret", &[7; 32]);
    let dir = tempfile::tempdir()?;
    for offset in [0, CHUNK - 33, CHUNK - 31, CHUNK - 1, CHUNK, CHUNK + 5, 2 * CHUNK - 16] {
        let path = dir.path().join("file");
        let mut content = vec![0u8; 2 * CHUNK + 64];
        content.get_mut(offset..offset + 32).context("room")?.fill(7);
        fs::write(&path, content)?;
        assert_eq!(needles.in_file(&path)?.len(), 1, "offset {offset}");
    }
    Ok(())
}
