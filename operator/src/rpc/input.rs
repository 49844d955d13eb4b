//! Fields of requests: parsed once, at the edge, within bounds (S13).

use secp256k1::PublicKey;
use spark_proto::spark;
use spark_rules::{
    address::Network,
    ids::{LeafId, TransferId},
    point,
};

use crate::{authn::Session, status::Refused};

/// Most leaves, node ids or transfer ids in one request.
pub(super) const MAX_IDS: usize = 300;

/// A 33-byte public key.
pub(super) fn key(field: &'static str, bytes: &[u8]) -> Result<PublicKey, Refused> {
    point::parse(field, bytes)
        .map_err(|_| Refused::field(field, "must be a compressed secp256k1 point of 33 bytes"))
}

/// The identity key that a request names; it must be the session's.
pub(super) fn own_identity(
    field: &'static str,
    bytes: &[u8],
    session: &Session,
) -> Result<PublicKey, Refused> {
    let identity = key(field, bytes)?;
    if identity == session.identity { Ok(identity) } else { Err(Refused::not_owner()) }
}

/// The network a write is for: it must be named, and be this operator's.
pub(super) fn network(field: &'static str, wire: i32, ours: Network) -> Result<(), Refused> {
    match Network::from_wire(wire) {
        Ok(network) if network == ours => Ok(()),
        Ok(network) => Err(Refused::field(field, format!("this operator serves {ours}, not {network}"))),
        Err(error) => Err(Refused::field(field, error.to_string())),
    }
}

/// The network of a query. Public wallets leave it out in some queries; there is only one here anyway.
pub(super) fn network_if_named(field: &'static str, wire: i32, ours: Network) -> Result<(), Refused> {
    if wire == spark::Network::Unspecified as i32 { Ok(()) } else { network(field, wire, ours) }
}

/// A leaf id: lower-case UUID text, since the text is key material for wallets.
pub(super) fn leaf_id(field: impl Into<String>, text: &str) -> Result<LeafId, Refused> {
    LeafId::parse(text).map_err(|error| Refused::field(field, error.to_string()))
}

/// A transfer id: the same form as a leaf id.
pub(super) fn transfer_id(field: &'static str, text: &str) -> Result<TransferId, Refused> {
    let id = LeafId::parse(text).map_err(|_| Refused::field(field, "must be a lower-case uuid"))?;
    Ok(TransferId::from_bytes(*id.as_bytes()))
}

/// Distinct leaf ids in the order of the request.
pub(super) fn leaf_ids(field: &'static str, texts: &[String]) -> Result<Vec<LeafId>, Refused> {
    distinct(field, texts, leaf_id)
}

/// Distinct transfer ids in the order of the request.
pub(super) fn transfer_ids(texts: &[String]) -> Result<Vec<TransferId>, Refused> {
    distinct("transfer_ids", texts, |_, text| transfer_id("transfer_ids", text))
}

fn distinct<T: Ord + Copy>(
    field: &'static str,
    texts: &[String],
    parse: impl Fn(String, &str) -> Result<T, Refused>,
) -> Result<Vec<T>, Refused> {
    if texts.len() > MAX_IDS {
        return Err(Refused::field(field, format!("at most {MAX_IDS}")));
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut ids = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        let id = parse(format!("{field}[{i}]"), text)?;
        if !seen.insert(id) {
            return Err(Refused::field(format!("{field}[{i}]"), "is there twice"));
        }
        ids.push(id);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Reason;

    const ID: &str = "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2c";

    #[test]
    fn networks() {
        let (regtest, mainnet) = (spark::Network::Regtest as i32, spark::Network::Mainnet as i32);
        assert!(network("network", regtest, Network::Regtest).is_ok());
        for wire in [0, mainnet, 5, -1] {
            assert_eq!(network("network", wire, Network::Regtest).unwrap_err().reason, Reason::FieldInvalid);
        }
        assert!(network_if_named("network", 0, Network::Regtest).is_ok());
        assert!(network_if_named("network", mainnet, Network::Regtest).is_err());
    }

    #[test]
    fn ids_are_distinct_canonical_and_bounded() {
        assert_eq!(leaf_ids("node_ids", &[ID.into()]).unwrap().len(), 1);
        assert!(leaf_ids("node_ids", &[ID.into(), ID.into()]).is_err());
        assert!(leaf_ids("node_ids", &[ID.to_uppercase()]).is_err());
        assert!(leaf_ids("node_ids", &["x".into()]).is_err());
        let many: Vec<_> = (0..=MAX_IDS).map(|_| uuid::Uuid::new_v4().to_string()).collect();
        assert!(leaf_ids("node_ids", &many).is_err());
        assert!(leaf_ids("node_ids", &many[1..]).is_ok());
    }

    #[test]
    fn keys_are_compressed_points_of_the_session() {
        let secret = secp256k1::SecretKey::from_slice(&[7; 32]).unwrap();
        let session = Session { identity: PublicKey::from_secret_key_global(&secret) };
        let bytes = session.identity.serialize();
        assert!(own_identity("identity_public_key", &bytes, &session).is_ok());
        assert!(
            own_identity("identity_public_key", &session.identity.serialize_uncompressed(), &session)
                .is_err()
        );
        let other = PublicKey::from_secret_key_global(&secp256k1::SecretKey::from_slice(&[8; 32]).unwrap());
        let refused = own_identity("identity_public_key", &other.serialize(), &session).unwrap_err();
        assert_eq!(refused.reason, Reason::NotOwner);
    }
}
