//! One-time keys for packages (OPERATION.md D14): the statement of a signer, and the envelope sealed to such a key.
//!
//! A signer makes keys in batches and signs the root of a tree (RFC 6962) over each batch with the operator's identity
//! key. Envelope: kind (1 byte, never the 04 of public wallets) ‖ key id (16) ‖ ephemeral key (33) ‖ tag (16) ‖
//! ciphertext. The public half of the key is in no envelope.

use bitcoin::secp256k1::{Message, PublicKey, SECP256K1, ecdsa::Signature};
use spark_proto::signer::v1 as wire;
use tlog_tiles::{Error as LogError, Hash, HashReader};

use crate::{
    federation::Federation,
    ids::{Incarnation, OperatorIndex, TransferId},
    point::{self, PointError},
    transcript::Transcript,
    vote::Kind,
};

/// First byte of an envelope sealed to a one-time key.
pub const ONE_TIME: u8 = 0x01;
/// What a receipt says of a package that was sealed to a one-time key.
pub const KIND_ONE_TIME: &str = "one-time";
/// What a receipt says of a package that was sealed to the identity key, and where there was no package.
pub const KIND_IDENTITY: &str = "identity";
/// Most keys of one batch.
pub const MAX_BATCH: usize = 128;

const ID: usize = 16;
const POINT: usize = 33;
const TAG: usize = 16;
/// Bytes before the ciphertext.
pub const OVERHEAD: usize = 1 + ID + POINT + TAG;

/// Name of a key.
pub type KeyId = [u8; ID];

/// Hashes that lead from a key to the root, 32 bytes each.
pub type Path = Vec<Vec<u8>>;

/// A statement or an envelope that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackageKeyError {
    /// A field is missing or has no legal value.
    #[error("package key: {0} is missing or malformed")]
    Malformed(&'static str),
    /// Another operator's.
    #[error("package key is of another operator")]
    Operator,
    /// Its time is over, or nearly.
    #[error("package key has expired")]
    Expired,
    /// Not among the keys that were signed.
    #[error("package key is not in the batch that was signed")]
    Inclusion,
    /// Not signed by the operator's identity key.
    #[error("package key is not signed by the operator's identity key")]
    Signature,
    /// An envelope that is shorter than an empty one.
    #[error("envelope has {0} bytes, fewer than an empty one")]
    Short(usize),
    /// An envelope of another kind.
    #[error("envelope of kind {0} is not sealed to a one-time key")]
    Kind(u8),
    /// The ephemeral key is not on the curve.
    #[error("envelope has an invalid ephemeral key")]
    Ephemeral,
}

impl From<PointError> for PackageKeyError {
    fn from(error: PointError) -> Self {
        Self::Malformed(error.0)
    }
}

/// A key that its operator's identity key vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageKey {
    /// Name.
    pub id: KeyId,
    /// To seal to.
    pub key: PublicKey,
    /// The signer's.
    pub incarnation: Incarnation,
    /// Unix seconds.
    pub expires: u64,
}

impl PackageKey {
    /// Verifies that `operator` of the federation stated this key and that it is good after `until` (Unix seconds).
    pub fn verify(
        statement: &wire::PackageKey,
        federation: &Federation,
        operator: OperatorIndex,
        until: u64,
    ) -> Result<Self, PackageKeyError> {
        let malformed = PackageKeyError::Malformed;
        let batch = statement.batch.as_ref().ok_or(malformed("batch"))?;
        let member = federation.member(operator).ok_or(PackageKeyError::Operator)?;
        if batch.operator != u32::from(operator.get()) {
            return Err(PackageKeyError::Operator);
        }
        let root: [u8; 32] = batch.tree_root.as_slice().try_into().map_err(|_| malformed("tree_root"))?;
        let signature = Signature::from_compact(&batch.signature).map_err(|_| PackageKeyError::Signature)?;
        let message = Message::from_digest(digest(batch, federation));
        SECP256K1
            .verify_ecdsa(&message, &signature, &member.identity)
            .map_err(|_| PackageKeyError::Signature)?;
        if batch.size > MAX_BATCH as u64 {
            return Err(malformed("size"));
        }
        let id = statement.key_id.as_slice().try_into().map_err(|_| malformed("key_id"))?;
        let key = point::parse("public_key", &statement.public_key)?;
        let path: Vec<Hash> = statement
            .path
            .iter()
            .map(|hash| hash.as_slice().try_into().map(Hash))
            .collect::<Result<_, _>>()
            .map_err(|_| malformed("path"))?;
        tlog_tiles::check_record(&path, batch.size, Hash(root), statement.index, record(&id, &key))
            .map_err(|_| PackageKeyError::Inclusion)?;
        let incarnation = Incarnation::parse(&batch.incarnation).map_err(|_| malformed("incarnation"))?;
        if batch.expires <= until {
            return Err(PackageKeyError::Expired);
        }
        Ok(Self { id, key, incarnation, expires: batch.expires })
    }
}

/// What the identity key signs for a batch.
pub fn digest(batch: &wire::PackageKeyBatch, federation: &Federation) -> [u8; 32] {
    let mut t = Transcript::new("spark/package-keys/v1");
    t.bytes(federation.hash()).u64(batch.operator.into()).bytes(&batch.incarnation);
    t.u64(batch.expires).u64(batch.size).bytes(&batch.tree_root);
    t.finish()
}

fn record(id: &KeyId, key: &PublicKey) -> Hash {
    let mut t = Transcript::new("spark/package-key/v1");
    t.bytes(id).bytes(&key.serialize());
    tlog_tiles::record_hash(&t.finish())
}

struct Hashes(Vec<Hash>);

impl HashReader for Hashes {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, LogError> {
        let at = |index: &u64| usize::try_from(*index).ok().and_then(|index| self.0.get(index));
        indexes.iter().map(|index| at(index).copied().ok_or(LogError::IndexesNotInTree)).collect()
    }
}

/// Root over a batch, and every key's path to it.
pub fn tree(keys: &[(KeyId, PublicKey)]) -> Result<([u8; 32], Vec<Path>), PackageKeyError> {
    let malformed = |_: LogError| PackageKeyError::Malformed("batch");
    let size = keys.len() as u64;
    let mut hashes = Hashes(Vec::new());
    for (index, (id, key)) in (0u64..).zip(keys) {
        let more =
            tlog_tiles::stored_hashes_for_record_hash(index, record(id, key), &hashes).map_err(malformed)?;
        hashes.0.extend(more);
    }
    let root = tlog_tiles::tree_hash(size, &hashes).map_err(malformed)?;
    let path = |index| -> Result<Path, PackageKeyError> {
        let proof = tlog_tiles::prove_record(size, index, &hashes).map_err(malformed)?;
        Ok(proof.iter().map(|hash| hash.0.to_vec()).collect())
    };
    Ok((root.0, (0..size).map(path).collect::<Result<_, _>>()?))
}

/// What an envelope is sealed for: it opens in no other operation, for no other owner, at no other operator.
pub fn binding(
    federation: &Federation,
    operator: OperatorIndex,
    kind: Kind,
    transfer: &TransferId,
    owner: &PublicKey,
) -> [u8; 32] {
    let mut t = Transcript::new("spark/package/one-time/v1");
    t.bytes(federation.hash()).u64(operator.get().into()).u64(kind.code().into());
    t.bytes(transfer.as_bytes()).bytes(&owner.serialize());
    t.finish()
}

/// An envelope taken apart; its ephemeral key is valid.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// Kind, key id and ephemeral key: authenticated, not encrypted.
    pub header: &'a [u8],
    /// Which key opens it.
    pub key_id: KeyId,
    /// The sender's ephemeral key.
    pub ephemeral: PublicKey,
    /// Of the AEAD.
    pub tag: &'a [u8; TAG],
    /// As long as the plaintext.
    pub ciphertext: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Takes an envelope apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PackageKeyError> {
        let short = || PackageKeyError::Short(bytes.len());
        let (kind, rest) = bytes.split_first().ok_or_else(short)?;
        if *kind != ONE_TIME {
            return Err(PackageKeyError::Kind(*kind));
        }
        let (header, _) = bytes.split_at_checked(1 + ID + POINT).ok_or_else(short)?;
        let (key_id, rest) = rest.split_first_chunk::<ID>().ok_or_else(short)?;
        let (ephemeral, rest) = rest.split_first_chunk::<POINT>().ok_or_else(short)?;
        let (tag, ciphertext) = rest.split_first_chunk::<TAG>().ok_or_else(short)?;
        let ephemeral = point::parse("ephemeral", ephemeral).map_err(|_| PackageKeyError::Ephemeral)?;
        Ok(Self { header, key_id: *key_id, ephemeral, tag, ciphertext })
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::SecretKey;

    use super::*;
    use crate::federation::{FederationEntry, MemberEntry};

    const UNTIL: u64 = 1_000;

    fn secret(byte: u8) -> SecretKey {
        SecretKey::from_slice(&[byte; 32]).unwrap()
    }

    fn federation(epoch: u64) -> Federation {
        let members = (1..=3u8)
            .map(|i| MemberEntry {
                identity_public_key: hex::encode(secret(i).public_key(SECP256K1).serialize()),
                federation_public_keys: vec![hex::encode(
                    ed25519_dalek::SigningKey::from_bytes(&[i; 32]).verifying_key().to_bytes(),
                )],
                tls_spki_sha256: vec![hex::encode([i; 32])],
                peer_address: format!("peer{i}:1"),
                public_address: format!("https://peer{i}:2"),
            })
            .collect();
        let entry = FederationEntry {
            epoch,
            network: "regtest".into(),
            threshold: 2,
            quorum: None,
            faults: None,
            members,
        };
        entry.check().unwrap()
    }

    fn statements(count: u8) -> Vec<wire::PackageKey> {
        let keys: Vec<_> = (1..=count).map(|i| ([i; 16], secret(i + 100).public_key(SECP256K1))).collect();
        let (root, paths) = tree(&keys).unwrap();
        let mut batch = wire::PackageKeyBatch {
            operator: 0,
            incarnation: vec![9; 16],
            expires: UNTIL + 1,
            size: count.into(),
            tree_root: root.to_vec(),
            signature: Vec::new(),
        };
        let message = Message::from_digest(digest(&batch, &federation(1)));
        batch.signature = SECP256K1.sign_ecdsa(&message, &secret(1)).serialize_compact().to_vec();
        (0u64..)
            .zip(keys.iter().zip(paths))
            .map(|(index, ((id, key), path))| wire::PackageKey {
                key_id: id.to_vec(),
                public_key: key.serialize().to_vec(),
                index,
                path,
                batch: Some(batch.clone()),
            })
            .collect()
    }

    fn verify(statement: &wire::PackageKey) -> Result<PackageKey, PackageKeyError> {
        PackageKey::verify(statement, &federation(1), OperatorIndex::new(0), UNTIL)
    }

    #[test]
    fn every_key_of_a_batch_verifies() {
        for count in [1, 2, 5, 64, 128] {
            for (statement, i) in statements(count).iter().zip(1u8..) {
                assert_eq!(verify(statement).unwrap().id, [i; 16]);
            }
        }
    }

    type Change = fn(&mut wire::PackageKey);

    #[test]
    fn a_changed_statement_is_refused() {
        use PackageKeyError::{Expired, Inclusion, Malformed, Operator, Signature};
        fn batch(statement: &mut wire::PackageKey) -> &mut wire::PackageKeyBatch {
            statement.batch.as_mut().unwrap()
        }
        let foreign = |s: &mut wire::PackageKey| {
            s.public_key =
                SecretKey::from_slice(&[50; 32]).unwrap().public_key(SECP256K1).serialize().to_vec();
        };
        let cases: &[(Change, PackageKeyError)] = &[
            (foreign, Inclusion),
            (|s| s.key_id[0] ^= 1, Inclusion),
            (|s| s.index = 3, Inclusion),
            (|s| s.index = 99, Inclusion),
            (|s| s.path[1][0] ^= 1, Inclusion),
            (|s| drop(s.path.pop()), Inclusion),
            (|s| s.path[0].truncate(31), Malformed("path")),
            (|s| s.key_id.truncate(15), Malformed("key_id")),
            (|s| s.public_key[0] = 4, Malformed("public_key")),
            (|s| s.batch = None, Malformed("batch")),
            (|s| batch(s).operator = 1, Operator),
            (|s| batch(s).expires += 1, Signature),
            (|s| batch(s).size += 1, Signature),
            (|s| batch(s).incarnation[0] ^= 1, Signature),
            (|s| batch(s).tree_root[0] ^= 1, Signature),
            (|s| batch(s).signature[40] ^= 1, Signature),
        ];
        for (number, (change, expected)) in cases.iter().enumerate() {
            let mut statement = statements(5).swap_remove(2);
            change(&mut statement);
            assert_eq!(verify(&statement), Err(*expected), "case {number}");
        }
        let statement = statements(5).swap_remove(2);
        let late = PackageKey::verify(&statement, &federation(1), OperatorIndex::new(0), UNTIL + 1);
        assert_eq!(late, Err(Expired));
        // Of the same operator, in another federation.
        let elsewhere = PackageKey::verify(&statement, &federation(2), OperatorIndex::new(0), UNTIL);
        assert_eq!(elsewhere, Err(Signature));
    }

    #[test]
    fn bindings_differ_in_every_part() {
        let at = |epoch, operator, kind, transfer, owner| {
            let owner = secret(owner).public_key(SECP256K1);
            let transfer = TransferId::from_bytes([transfer; 16]);
            binding(&federation(epoch), OperatorIndex::new(operator), kind, &transfer, &owner)
        };
        let base = at(1, 0, Kind::Send, 1, 1);
        for other in [
            at(2, 0, Kind::Send, 1, 1),
            at(1, 1, Kind::Send, 1, 1),
            at(1, 0, Kind::Claim, 1, 1),
            at(1, 0, Kind::Send, 2, 1),
            at(1, 0, Kind::Send, 1, 2),
        ] {
            assert_ne!(base, other);
        }
    }
}
