//! One-time keys for packages (D14): made in batches, each opens one package of one operation, and its secret half dies
//! in the batch that applies or aborts that operation.
//!
//! The operator decides who gets a key; this ledger decides what it is used for. A key that nobody uses dies when the
//! operator discards it or when it expires.

use std::collections::BTreeSet;

use bitcoin::secp256k1::PublicKey;
use prost::Message as _;
use rand_core::OsRng;
use spark_proto::{peer::v1::Receipt, signer::v1 as wire};
use spark_rules::{
    operation::{Operation, Sealed},
    package_key::{self, Envelope, KIND_IDENTITY, KIND_ONE_TIME, KeyId, MAX_BATCH, ONE_TIME},
    receipt::{MAX_PACKAGE_KEYS, UNUSED},
};
use zeroize::Zeroizing;

use super::{
    EngineError, Shared,
    ledger::{Holder, PackageKey},
    prepare::read_scalar,
};
use crate::{
    one_time,
    secret::SecretScalar,
    vault::{SecretId, SecretKind, Txn},
};

/// Most unused keys.
const MOST_UNUSED: usize = 8192;
/// Most keys that one request discards.
const MOST_DISCARDED: usize = 4096;
/// How long a key lives unused.
const LIFE_SECONDS: u64 = 24 * 3600;
/// The last answer, for a caller that did not get it.
const LAST: &[u8] = b"package-keys-last";

/// Names of one batch begin alike: its secrets lie in one page of the vault, which many operations then share.
fn key_id(prefix: &[u8; 14], number: u16) -> KeyId {
    let mut id = [0; 16];
    let (head, tail) = id.split_at_mut(14);
    head.copy_from_slice(prefix);
    tail.copy_from_slice(&number.to_be_bytes());
    id
}

fn secret_id(id: &KeyId) -> SecretId {
    SecretId::new(*id, SecretKind::PackageKey, 0)
}

fn destroy(txn: &mut Txn<'_>, id: &KeyId) -> Result<(), EngineError> {
    txn.delete_secret(&secret_id(id))?;
    PackageKey::delete(txn, id);
    Ok(())
}

/// This signer's part of a package that is sealed to a one-time key.
fn one_time_part(sealed: &Sealed, me: usize) -> Option<&[u8]> {
    sealed.ciphertexts.get(me).map(Vec::as_slice).filter(|bytes| bytes.first() == Some(&ONE_TIME))
}

fn last_answer(
    txn: &Txn<'_>,
    request_id: &[u8],
) -> Result<Option<wire::IssuePackageKeysResponse>, EngineError> {
    let Some(bytes) = txn.record(LAST)? else { return Ok(None) };
    match bytes.strip_prefix(request_id) {
        Some(answer) => Ok(Some(wire::IssuePackageKeysResponse::decode(answer)?)),
        None => Ok(None),
    }
}

impl Shared {
    pub(super) fn issue_package_keys(
        &self,
        txn: &mut Txn<'_>,
        request: &wire::IssuePackageKeysRequest,
    ) -> Result<wire::IssuePackageKeysResponse, EngineError> {
        self.unlocked()?;
        if request.request_id.len() != 16 {
            return Err(EngineError::Malformed("request_id"));
        }
        let count = usize::try_from(request.count).ok().filter(|count| *count <= MAX_BATCH);
        let count = count.ok_or(EngineError::Malformed("count"))?;
        if let Some(last) = last_answer(txn, &request.request_id)? {
            return if last.keys.len() == count { Ok(last) } else { Err(EngineError::Differs) };
        }
        let (destroyed, unused) = self.sweep(txn, &request.discard)?;
        let stock = unused.saturating_add(count);
        if count > 0 && stock > MOST_UNUSED {
            return Err(EngineError::PackageKey("too many are unused"));
        }
        let keys = self.make_keys(txn, count)?;
        let answer =
            wire::IssuePackageKeysResponse { keys, destroyed: destroyed as u64, stock: stock as u64 };
        if count > 0 || destroyed > 0 {
            txn.put_record(LAST, [request.request_id.as_slice(), &answer.encode_to_vec()].concat());
        }
        Ok(answer)
    }

    /// Destroys what is discarded or expired, unless an operation holds it. Returns how many died and how many stay
    /// unused.
    fn sweep(&self, txn: &mut Txn<'_>, discard: &[Vec<u8>]) -> Result<(usize, usize), EngineError> {
        if discard.len() > MOST_DISCARDED || discard.iter().any(|id| id.len() != 16) {
            return Err(EngineError::Malformed("discard"));
        }
        let discard: BTreeSet<&[u8]> = discard.iter().map(Vec::as_slice).collect();
        let (mut dying, mut unused) = (Vec::new(), 0usize);
        for (id, key) in PackageKey::all(txn)? {
            if key.holder.is_some() {
                continue;
            }
            if key.expires <= self.now || discard.contains(id.as_slice()) {
                dying.push(id);
            } else {
                unused = unused.saturating_add(1);
            }
        }
        for id in &dying {
            destroy(txn, id)?;
        }
        self.receipts_of_unused(txn, &mut dying)?;
        Ok((dying.len(), unused))
    }

    /// They open nothing that was sent, and an auditor shall not need to believe that.
    fn receipts_of_unused(&self, txn: &mut Txn<'_>, dead: &mut [KeyId]) -> Result<(), EngineError> {
        dead.sort_unstable();
        for ids in dead.chunks(MAX_PACKAGE_KEYS) {
            let receipt = Receipt {
                phase: UNUSED.to_owned(),
                package_kind: KIND_ONE_TIME.to_owned(),
                package_keys: ids.iter().map(|id| id.to_vec()).collect(),
                ..Receipt::default()
            };
            self.append_receipt(txn, receipt)?;
        }
        Ok(())
    }

    fn make_keys(&self, txn: &mut Txn<'_>, count: usize) -> Result<Vec<wire::PackageKey>, EngineError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let expires = self.now.saturating_add(LIFE_SECONDS);
        let prefix = Self::random::<14>();
        let mut keys: Vec<(KeyId, PublicKey)> = Vec::with_capacity(count);
        for number in (0u16..).take(count) {
            let secret = SecretScalar::random(&mut OsRng);
            let id = key_id(&prefix, number);
            txn.put_secret(secret_id(&id), Zeroizing::new(secret.to_bytes().to_vec()))?;
            PackageKey { expires, holder: None }.put(txn, &id);
            keys.push((id, secret.public_key()));
        }
        let (root, paths) = package_key::tree(&keys)?;
        let mut batch = wire::PackageKeyBatch {
            operator: self.me.get().into(),
            incarnation: self.incarnation.as_bytes().to_vec(),
            expires,
            size: count as u64,
            tree_root: root.to_vec(),
            signature: Vec::new(),
        };
        let digest = package_key::digest(&batch, &self.federation);
        batch.signature = self.token.sign_identity(&digest)?.serialize_compact().to_vec();
        Ok((0u64..)
            .zip(keys.iter().zip(paths))
            .map(|(index, ((id, key), path))| wire::PackageKey {
                key_id: id.to_vec(),
                public_key: key.serialize().to_vec(),
                index,
                path,
                batch: Some(batch.clone()),
            })
            .collect())
    }

    /// Opens this signer's part of a package with the one-time key that it names, and binds the key to the operation.
    /// None: it is sealed to the identity key.
    pub(super) fn open_one_time(
        &self,
        txn: &mut Txn<'_>,
        operation: &Operation,
        sealed: &Sealed,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, EngineError> {
        let Some(bytes) = one_time_part(sealed, self.me.as_usize()) else { return Ok(None) };
        let envelope = Envelope::parse(bytes)?;
        let id = envelope.key_id;
        let gone = EngineError::PackageKey("it is unknown here, or it was used before");
        let Some(key) = PackageKey::get(txn, &id)?.filter(|key| key.holder.is_none()) else {
            return Err(gone);
        };
        if key.expires <= self.now {
            return Err(EngineError::PackageKey("it has expired"));
        }
        if !txn.has_secret(&secret_id(&id))? {
            return Err(gone);
        }
        let secret = read_scalar(txn, &secret_id(&id))?;
        let binding = package_key::binding(
            &self.federation,
            self.me,
            operation.kind,
            &sealed.transfer,
            &operation.requester,
        );
        let plaintext = one_time::open(&envelope, &secret, &binding)?;
        let holder = Holder { operation: operation.id, attempt: operation.attempt };
        PackageKey { holder: Some(holder), ..key }.put(txn, &id);
        Ok(Some(plaintext))
    }

    /// Destroys the key that an operation holds, which is over.
    pub(super) fn end_package_key(
        &self,
        txn: &mut Txn<'_>,
        operation: &Operation,
    ) -> Result<(), EngineError> {
        let sealed = operation.sealed.as_ref().and_then(|sealed| one_time_part(sealed, self.me.as_usize()));
        let Some(bytes) = sealed else { return Ok(()) };
        let id = Envelope::parse(bytes)?.key_id;
        let holder = Holder { operation: operation.id, attempt: operation.attempt };
        if PackageKey::get(txn, &id)?.is_some_and(|key| key.holder == Some(holder)) {
            destroy(txn, &id)?;
        }
        Ok(())
    }

    /// What a receipt says of the key to which the operation's package for this signer was sealed.
    pub(super) fn package_kind(&self, operation: &Operation) -> &'static str {
        let sealed = operation.sealed.as_ref().and_then(|sealed| one_time_part(sealed, self.me.as_usize()));
        // What a refresh deals is encrypted to one-time keys always.
        if sealed.is_some() || operation.refresh.is_some() { KIND_ONE_TIME } else { KIND_IDENTITY }
    }
}
