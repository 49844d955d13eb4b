//! Stored forms: transactions as hex of their consensus encoding, ids as UUIDs.

use bitcoin::Transaction;
use bitcoin::consensus::encode;
use serde::{Deserialize, Deserializer, Serializer, de::Error as _};
use uuid::Uuid;

use crate::ids::{KeyshareId, LeafId};

macro_rules! stored {
    ($name:ident, $optional:ident, $type:ty, $stored:ty, $to:expr, $from:expr) => {
        pub(super) mod $name {
            use super::*;

            pub(in crate::leaf) fn serialize<S: Serializer>(value: &$type, to: S) -> Result<S::Ok, S::Error> {
                serde::Serialize::serialize(&$to(value), to)
            }

            pub(in crate::leaf) fn deserialize<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<$type, D::Error> {
                $from(<$stored>::deserialize(from)?).map_err(D::Error::custom)
            }
        }

        pub(super) mod $optional {
            use super::*;

            pub(in crate::leaf) fn serialize<S: Serializer>(
                value: &Option<$type>,
                to: S,
            ) -> Result<S::Ok, S::Error> {
                serde::Serialize::serialize(&value.as_ref().map($to), to)
            }

            pub(in crate::leaf) fn deserialize<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<Option<$type>, D::Error> {
                Option::<$stored>::deserialize(from)?.map($from).transpose().map_err(D::Error::custom)
            }
        }
    };
}

type Infallible<T> = Result<T, std::convert::Infallible>;

stored!(tx, optional_tx, Transaction, String, encode::serialize_hex, |hex: String| {
    encode::deserialize_hex::<Transaction>(&hex)
});
stored!(leaf_id, optional_leaf_id, LeafId, Uuid, LeafId::uuid, |id: Uuid| -> Infallible<LeafId> {
    Ok(id.into())
});

pub(super) mod keyshare_id {
    use super::*;

    pub(in crate::leaf) fn serialize<S: Serializer>(id: &KeyshareId, to: S) -> Result<S::Ok, S::Error> {
        serde::Serialize::serialize(&id.uuid(), to)
    }

    pub(in crate::leaf) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<KeyshareId, D::Error> {
        Uuid::deserialize(from).map(KeyshareId::from)
    }
}
