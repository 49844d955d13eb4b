//! A federation for tests.

use bitcoin::hashes::{Hash as _, sha256};
use secp256k1::{PublicKey, SecretKey};
use spark_rules::federation::{Federation, FederationEntry, MemberEntry};

/// n operators, t of which sign. Keys follow from their index.
pub(crate) fn federation(n: u16, threshold: u16) -> Federation {
    let members = (0..n)
        .map(|index| {
            let tag = |what: &str| sha256::Hash::hash(format!("{what} {index}").as_bytes()).to_byte_array();
            let identity = PublicKey::from_secret_key_global(&SecretKey::from_slice(&tag("identity")).unwrap());
            MemberEntry {
                identity_public_key: identity.to_string(),
                federation_public_keys: vec![ed25519(index)],
                tls_spki_sha256: vec![hex::encode(tag("tls"))],
                peer_address: format!("127.0.0.1:{}", 9000 + index),
                public_address: format!("https://localhost:{}", 8535 + index),
            }
        })
        .collect();
    FederationEntry { epoch: 1, network: "regtest".into(), threshold, quorum: None, faults: None, members }
        .check()
        .unwrap()
}

/// Public keys of the first tests of RFC 8032, section 7.1.
fn ed25519(index: u16) -> String {
    const KEYS: [&str; 3] = [
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
    ];
    KEYS[usize::from(index)].to_owned()
}
