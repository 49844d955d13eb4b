//! Merkle trees (RFC 6962, section 2.1) over SHA-256.

use sha2::{Digest as _, Sha256};

/// SHA-256.
pub type Hash = [u8; 32];

/// Hash of a record: SHA-256(0x00 ‖ record).
pub fn leaf(record: &[u8]) -> Hash {
    Sha256::new_with_prefix([0]).chain_update(record).finalize().into()
}

/// Hash of two subtrees: SHA-256(0x01 ‖ left ‖ right).
pub fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new_with_prefix([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Root of the tree over these leaf hashes. The empty tree's is SHA-256 of nothing.
pub fn root(leaves: &[Hash]) -> Hash {
    // Complete subtrees from left to right, each of a smaller height than the one before.
    let mut complete: Vec<(u32, Hash)> = Vec::new();
    for leaf in leaves {
        let (mut height, mut hash) = (0u32, *leaf);
        while let Some((_, left)) = complete.pop_if(|(other, _)| *other == height) {
            hash = node(&left, &hash);
            height = height.saturating_add(1);
        }
        complete.push((height, hash));
    }
    let mut from_right = complete.into_iter().rev().map(|(_, hash)| hash);
    match from_right.next() {
        None => Sha256::digest([]).into(),
        Some(last) => from_right.fold(last, |right, left| node(&left, &right)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, word for word: k is the largest power of two smaller than n.
    fn naive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [one] => *one,
            many => {
                let k = 1 << (many.len() - 1).ilog2();
                node(&naive(&many[..k]), &naive(&many[k..]))
            }
        }
    }

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count as u64).map(|i| leaf(&i.to_be_bytes())).collect()
    }

    /// Roots that the implementations of Certificate Transparency test themselves with.
    #[test]
    fn known_roots() {
        let records: [&[u8]; 8] = [
            b"",
            &[0x00],
            &[0x10],
            &[0x20, 0x21],
            &[0x30, 0x31],
            &[0x40, 0x41, 0x42, 0x43],
            &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
            &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
        ];
        let expected = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let hashes: Vec<Hash> = records.iter().map(|r| leaf(r)).collect();
        for (size, text) in expected.iter().enumerate() {
            assert_eq!(hex::encode(root(&hashes[..size])), *text, "{size}");
        }
    }

    #[test]
    fn sizes_around_tiles() {
        for size in [0, 1, 2, 255, 256, 257, 1000, 70_000] {
            let leaves = leaves(size);
            assert_eq!(root(&leaves), naive(&leaves), "{size}");
        }
    }

    proptest! {
        #[test]
        fn any_size(size in 0usize..2000) {
            let leaves = leaves(size);
            prop_assert_eq!(root(&leaves), naive(&leaves));
        }
    }
}
