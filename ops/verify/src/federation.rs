//! The federation file: who the operators are. Its hash is computed anew and every member's signature verified.

use std::collections::BTreeSet;

use secp256k1::PublicKey;
use serde::Deserialize;

use crate::{failure::Reason, key::Key, transcript::Transcript};

/// Most members of a federation.
const MAX_MEMBERS: usize = 15;
/// Longest federation file, in bytes.
pub const MAX_FILE: u64 = 1024 * 1024;

/// The file has not the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("federation file: {0}")]
pub struct Malformed(String);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    federation: Content,
    #[serde(default)]
    signatures: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    epoch: u64,
    network: String,
    threshold: u16,
    #[serde(default)]
    quorum: Option<u16>,
    #[serde(default)]
    faults: Option<u16>,
    members: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    identity_public_key: String,
    federation_public_keys: Vec<String>,
    tls_spki_sha256: Vec<String>,
    peer_address: String,
    public_address: String,
}

/// The members' keys, and what the file says about their number.
#[derive(Debug, Clone)]
pub struct Federation {
    hash: [u8; 32],
    epoch: u64,
    network: String,
    threshold: usize,
    members: Vec<Vec<Key>>,
}

/// Why a well-formed file is not to be relied on.
pub type Refusal = (Reason, String);

impl Federation {
    /// Reads the file. The inner error tells that its content is unsafe or not signed by all members.
    pub fn read(text: &str) -> Result<Result<Self, Refusal>, Malformed> {
        let file: File = serde_json::from_str(text).map_err(|e| Malformed(e.to_string()))?;
        let mut seen = BTreeSet::new();
        let mut members = Vec::new();
        for (index, entry) in file.federation.members.iter().enumerate() {
            members.push(entry.parse(index, &mut seen)?);
        }
        let content = &file.federation;
        if let Some(what) = content.unsafe_numbers() {
            return Ok(Err((Reason::FederationUnsafe, what.to_owned())));
        }
        let named: usize = content.members.iter().map(Entry::names).sum();
        if named != seen.len() {
            return Ok(Err((Reason::FederationUnsafe, "a key stands in the file twice".to_owned())));
        }
        let hash = content.hash();
        let message = [b"spark/federation/sign/v1".as_slice(), &hash].concat();
        for (index, keys) in members.iter().enumerate() {
            let signature = file.signatures.get(index).and_then(|s| hex::decode(s).ok()).unwrap_or_default();
            if !keys.iter().any(|key| key.signed(&message, &signature)) {
                let what = format!("the federation file is not signed by operator {index}");
                return Ok(Err((Reason::FederationUnsigned, what)));
            }
        }
        let Content { epoch, network, threshold, .. } = file.federation;
        Ok(Ok(Self { hash, epoch, network, threshold: threshold.into(), members }))
    }

    /// SHA-256 over the content: what members sign.
    pub const fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Version of the membership.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bitcoin network.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// t: shares that sign.
    pub const fn threshold(&self) -> usize {
        self.threshold
    }

    /// n.
    pub const fn size(&self) -> usize {
        self.members.len()
    }

    /// All operators' indices.
    pub fn indices(&self) -> impl Iterator<Item = u16> {
        (0u16..).take(self.members.len())
    }

    /// Keys of an operator; none if there is no such operator.
    pub fn keys(&self, operator: u16) -> &[Key] {
        self.members.get(usize::from(operator)).map_or(&[], Vec::as_slice)
    }

    fn prefix(&self) -> String {
        let [a, b, c, d, e, f, g, h, ..] = self.hash;
        format!("spark-operator.invalid/{}", hex::encode([a, b, c, d, e, f, g, h]))
    }

    /// Origin line of an operator's log, and name of its keys.
    pub fn origin(&self, operator: u16) -> String {
        format!("{}/{operator}", self.prefix())
    }

    /// Name under which an operator cosigns the logs of others.
    pub fn witness(&self, operator: u16) -> String {
        format!("{}/witness/{operator}", self.prefix())
    }

    /// Cosignatures after which no two forks of a log can both have as many: ⌈(n + t − 2) / 2⌉ of the n − 1 others,
    /// where t − 1 operators may lie, the log's own among them.
    pub const fn witnesses_needed(&self) -> usize {
        self.members.len().saturating_add(self.threshold).saturating_sub(2).div_ceil(2)
    }
}

impl Content {
    fn unsafe_numbers(&self) -> Option<&'static str> {
        let n = self.members.len();
        let t = usize::from(self.threshold);
        let q = self.quorum.map_or(n, usize::from);
        let f = self.faults.map_or(1, usize::from);
        let least = ((n + f) / 2 + 1).max((n + 1 + f).saturating_sub(t)).max(t + f);
        if !(2..n).contains(&t) || n > MAX_MEMBERS {
            Some("threshold or number of members is not 2 <= t < n <= 15")
        } else if q > n {
            Some("the quorum exceeds the number of members")
        } else if q < n && (f == 0 || f >= t || q < least) {
            Some("the quorum is too small for its faults")
        } else if !["mainnet", "testnet", "signet", "regtest"].contains(&self.network.as_str()) {
            Some("the network is unknown")
        } else {
            None
        }
    }

    fn hash(&self) -> [u8; 32] {
        let list = |transcript: Transcript, items: &[String]| {
            items.iter().fold(transcript.number(items.len() as u64), |t, item| t.part(item.as_bytes()))
        };
        let head = Transcript::new("spark/federation/v1")
            .number(self.epoch)
            .part(self.network.as_bytes())
            .number(self.threshold.into())
            .number(self.quorum.unwrap_or(0).into())
            .number(self.faults.unwrap_or(0).into())
            .number(self.members.len() as u64);
        self.members
            .iter()
            .fold(head, |t, member| {
                let t = list(t.part(member.identity_public_key.as_bytes()), &member.federation_public_keys);
                list(t, &member.tls_spki_sha256)
                    .part(member.peer_address.as_bytes())
                    .part(member.public_address.as_bytes())
            })
            .finish()
    }
}

impl Entry {
    /// Keys that the entry names.
    const fn names(&self) -> usize {
        self.federation_public_keys.len() + self.tls_spki_sha256.len() + 1
    }

    fn parse(&self, index: usize, seen: &mut BTreeSet<Vec<u8>>) -> Result<Vec<Key>, Malformed> {
        let bad = |what: &str| Malformed(format!("operator {index}: {what}"));
        let identity = hex::decode(&self.identity_public_key)
            .ok()
            .filter(|bytes| bytes.len() == 33 && PublicKey::from_slice(bytes).is_ok())
            .ok_or_else(|| bad("identity_public_key is no key of 33 bytes"))?;
        seen.insert(identity);
        for text in &self.tls_spki_sha256 {
            let hash = hex::decode(text).ok().filter(|hash| hash.len() == 32);
            seen.insert(hash.ok_or_else(|| bad("tls_spki_sha256 is not 32 bytes"))?);
        }
        if self.federation_public_keys.is_empty() || self.tls_spki_sha256.is_empty() {
            return Err(bad("a list of keys is empty"));
        }
        let mut keys = Vec::new();
        for text in &self.federation_public_keys {
            let key = Key::parse(text)
                .ok_or_else(|| bad("federation_public_keys has what is no key on Ed25519 or P-256"))?;
            seen.insert(key.bytes());
            keys.push(key);
        }
        Ok(keys)
    }
}
