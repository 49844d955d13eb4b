//! Entry points for fuzzers: each takes any bytes, must not panic, and checks what must hold of what it accepts.

use bitcoin::consensus::encode;
use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, TxOut, Txid};
use prost::Message as _;
use spark_proto::spark::{ClaimPackage, TransferPackage};
use spark_proto::spark_authn::Challenge;
use uuid::Uuid;

use crate::address::SparkAddress;
use crate::tx::{INITIAL_TIMELOCK, Maturity, Spend, Template, p2tr_script};
use crate::{package, package_key, point};

/// The generator of secp256k1: a key that is always valid.
const GENERATOR: [u8; 33] = [
    0x02, 0x79, 0xbe, 0x66, 0x7e, 0xf9, 0xdc, 0xbb, 0xac, 0x55, 0xa0, 0x62, 0x95, 0xce, 0x87, 0x0b, 0x07,
    0x02, 0x9b, 0xfc, 0xdb, 0x2d, 0xce, 0x28, 0xd9, 0x59, 0xf2, 0x81, 0x5b, 0x16, 0xf8, 0x17, 0x98,
];

fn key() -> Option<PublicKey> {
    point::parse("generator", &GENERATOR).ok()
}

/// A Spark address: what decodes encodes to an address of the same content.
pub fn spark_address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(address) = SparkAddress::decode(text) else { return };
    let _ = address.verify();
    let again = address.encode().and_then(|text| SparkAddress::decode(&text));
    assert_eq!(again.as_ref(), Ok(&address), "an address decodes to what was encoded");
}

/// A client's refund: what passes is the template, byte by byte.
pub fn template(data: &[u8]) {
    let Some(key) = key() else { return };
    let txout = TxOut { value: Amount::from_sat(100_000), script_pubkey: p2tr_script(&key) };
    let node = Spend { outpoint: OutPoint { txid: Txid::all_zeros(), vout: 0 }, txout };
    let Ok(template) = Template::refund(node, &key, INITIAL_TIMELOCK) else { return };
    let _ = Template::peek_timelock(data);
    if let Ok(tx) = template.check(data) {
        assert_eq!(encode::serialize(&tx), data, "what passes is what was given");
    }
}

/// A challenge and its nonce.
pub fn challenge(data: &[u8]) {
    let Some(key) = key() else { return };
    assert!(!package::challenge_nonce_is_for(data, &key) || data.len() == 32, "nonces have 32 bytes");
    if let Ok(challenge) = Challenge::decode(data) {
        assert!(package::verify_challenge(&challenge, data, &key).is_err(), "no signature by chance");
    }
}

/// Transfer and claim packages, and signatures.
pub fn packages(data: &[u8]) {
    let Some(key) = key() else { return };
    if let Ok(package) = TransferPackage::decode(data) {
        assert!(
            package::verify_transfer_package(&Uuid::nil(), &package, &key).is_err(),
            "no signature by chance"
        );
    }
    if let Ok(package) = ClaimPackage::decode(data) {
        assert!(
            package::verify_claim_package(&Uuid::nil(), &package, &key).is_err(),
            "no signature by chance"
        );
    }
    let _ = package::verify_compact_or_der(&[1; 32], data, &key);
}

/// A storage key of the ledger.
pub fn maturity(data: &[u8]) {
    if let Some(bytes) = data.first_chunk::<39>()
        && let Ok(maturity) = Maturity::from_bytes(bytes)
    {
        assert_eq!(&maturity.to_bytes(), bytes, "maturities round trip");
    }
}

/// An envelope sealed to a one-time key: what is taken apart is all of it, in order.
pub fn envelope(data: &[u8]) {
    let Ok(envelope) = package_key::Envelope::parse(data) else { return };
    let whole = [envelope.header, envelope.tag.as_slice(), envelope.ciphertext].concat();
    assert_eq!(whole, data, "nothing is skipped");
    assert_eq!(whole.get(1..17), Some(envelope.key_id.as_slice()), "the key that is named");
}
