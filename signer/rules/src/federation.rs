//! The federation file: who the operators are, and how many must agree.
//!
//! It is proposed after the key ceremonies and signed by every member's federation key. Signers and
//! operators pin its hash; n and t come from nowhere else (DESIGN section 4).

use std::collections::BTreeSet;

use bitcoin::secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use crate::{federation_key::FederationKey, ids::OperatorIndex, point, transcript::Transcript};

/// Most operators a federation may have.
pub const MAX_MEMBERS: usize = 15;

/// Why a federation file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FederationError {
    /// Not JSON of the expected form.
    #[error("federation file: {0}")]
    Format(String),
    /// A field has no legal value.
    #[error("federation file: {0}")]
    Field(String),
    /// t, n or q are outside of what is safe.
    #[error("unsafe federation: {0}")]
    Unsafe(&'static str),
    /// A member's signature is missing or wrong.
    #[error("federation file is not signed by operator {0}")]
    Signature(u16),
    /// The file is not the pinned one.
    #[error("federation hash {actual} is not the pinned {pinned}")]
    Hash {
        /// From configuration.
        pinned: String,
        /// Of the file.
        actual: String,
    },
}

impl FederationError {
    /// Stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Format(_) | Self::Field(_) => "FEDERATION_MALFORMED",
            Self::Unsafe(_) => "FEDERATION_UNSAFE",
            Self::Signature(_) => "FEDERATION_UNSIGNED",
            Self::Hash { .. } => "FEDERATION_DIFFERS",
        }
    }
}

/// One member as written in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberEntry {
    /// secp256k1 identity key, 33 bytes hex: what wallets verify.
    pub identity_public_key: String,
    /// One per device (D13), hex: 32 bytes are an Ed25519 key, 33 a compressed P-256 key.
    pub federation_public_keys: Vec<String>,
    /// SHA-256 of the SubjectPublicKeyInfo of each TLS key that peers may show.
    pub tls_spki_sha256: Vec<String>,
    /// Peer listener, `host:port`.
    pub peer_address: String,
    /// Public listener, `https://host:port`.
    pub public_address: String,
}

/// The unsigned content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FederationEntry {
    /// Version of the membership.
    pub epoch: u64,
    /// "mainnet", "testnet", "signet" or "regtest".
    pub network: String,
    /// t: signature shares needed.
    pub threshold: u16,
    /// q: operators that must vote YES; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<u16>,
    /// f: operators assumed to lie, for q < n.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<u16>,
    /// In index order.
    pub members: Vec<MemberEntry>,
}

/// The file: content and one signature per member, hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FederationFile {
    /// What is signed.
    pub federation: FederationEntry,
    /// Signatures of 64 bytes over the hash, by member.
    #[serde(default)]
    pub signatures: Vec<String>,
}

/// A member, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Position.
    pub index: OperatorIndex,
    /// What wallets verify.
    pub identity: PublicKey,
    /// Keys for votes and statements.
    pub federation_keys: Vec<FederationKey>,
    /// Pinned TLS keys.
    pub tls_spki: Vec<[u8; 32]>,
    /// Peer listener, `host:port`.
    pub peer_address: String,
    /// Public listener.
    pub public_address: String,
}

/// A checked federation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Federation {
    epoch: u64,
    network: bitcoin::Network,
    threshold: u16,
    quorum: u16,
    members: Vec<Member>,
    hash: [u8; 32],
}

impl FederationEntry {
    /// SHA-256 over the length-prefixed content: what members sign and programs pin.
    pub fn hash(&self) -> [u8; 32] {
        let mut t = Transcript::new("spark/federation/v1");
        t.u64(self.epoch).bytes(self.network.as_bytes()).u64(self.threshold.into());
        t.u64(self.quorum.unwrap_or(0).into()).u64(self.faults.unwrap_or(0).into());
        t.u64(self.members.len() as u64);
        for m in &self.members {
            t.bytes(m.identity_public_key.as_bytes());
            for list in [&m.federation_public_keys, &m.tls_spki_sha256] {
                t.u64(list.len() as u64);
                for item in list {
                    t.bytes(item.as_bytes());
                }
            }
            t.bytes(m.peer_address.as_bytes()).bytes(m.public_address.as_bytes());
        }
        t.finish()
    }

    /// What a member's federation key signs.
    pub fn signing_message(&self) -> Vec<u8> {
        [b"spark/federation/sign/v1".as_slice(), &self.hash()].concat()
    }

    /// Checks the content, not the signatures.
    pub fn check(&self) -> Result<Federation, FederationError> {
        let n = self.members.len();
        let t = usize::from(self.threshold);
        if n > MAX_MEMBERS || t < 2 || t >= n {
            return Err(FederationError::Unsafe("need 2 <= t < n <= 15"));
        }
        let (n, t) = (self.members.len() as u16, self.threshold);
        let quorum = self.quorum.unwrap_or(n);
        if quorum > n {
            return Err(FederationError::Unsafe("quorum exceeds the number of members"));
        }
        if quorum < n {
            let f = self.faults.unwrap_or(1);
            let least = ((n + f) / 2 + 1).max(n - t + 1 + f).max(t + f);
            if f == 0 || f >= t || quorum < least {
                return Err(FederationError::Unsafe("quorum is below max((n+f)/2+1, n-t+1+f, t+f)"));
            }
        }
        let network = match self.network.as_str() {
            "mainnet" => bitcoin::Network::Bitcoin,
            "testnet" => bitcoin::Network::Testnet,
            "signet" => bitcoin::Network::Signet,
            "regtest" => bitcoin::Network::Regtest,
            other => return Err(FederationError::Field(format!("unknown network {other:?}"))),
        };
        let mut members = Vec::with_capacity(self.members.len());
        let mut seen = BTreeSet::new();
        for (i, entry) in self.members.iter().enumerate() {
            let member = entry.parse(OperatorIndex::new(i as u16))?;
            let keys = member.federation_keys.iter().map(|key| key.as_bytes().to_vec());
            let keys = keys.chain(member.tls_spki.iter().map(|key| key.to_vec()));
            for key in keys.chain([member.identity.serialize().to_vec()]) {
                if !seen.insert(key) {
                    return Err(FederationError::Field(format!("operator {i} repeats a key of the file")));
                }
            }
            members.push(member);
        }
        Ok(Federation { epoch: self.epoch, network, threshold: t, quorum, members, hash: self.hash() })
    }
}

impl MemberEntry {
    fn parse(&self, index: OperatorIndex) -> Result<Member, FederationError> {
        let field = |what: &str| FederationError::Field(format!("operator {}: {what}", index.get()));
        let identity = hex::decode(&self.identity_public_key)
            .ok()
            .and_then(|b| point::parse("identity_public_key", &b).ok())
            .ok_or_else(|| field("identity_public_key must be 33 bytes hex"))?;
        for (list, what) in [
            (&self.federation_public_keys, "federation_public_keys"),
            (&self.tls_spki_sha256, "tls_spki_sha256"),
        ] {
            if list.is_empty() {
                return Err(field(&format!("{what} is empty")));
            }
        }
        let federation_keys = self.federation_public_keys.iter().map(|text| text.parse::<FederationKey>());
        let federation_keys = federation_keys
            .collect::<Result<_, _>>()
            .map_err(|error| field(&format!("federation_public_keys: {error}")))?;
        let spki = |text: &String| {
            let mut hash = [0u8; 32];
            hex::decode_to_slice(text, &mut hash)
                .map_err(|_| field("tls_spki_sha256 must be 32 bytes hex"))?;
            Ok(hash)
        };
        Ok(Member {
            index,
            identity,
            federation_keys,
            tls_spki: self.tls_spki_sha256.iter().map(spki).collect::<Result<_, _>>()?,
            peer_address: self.peer_address.clone(),
            public_address: self.public_address.clone(),
        })
    }
}

impl FederationFile {
    /// Reads the file's text; nothing is checked yet.
    pub fn parse(text: &str) -> Result<Self, FederationError> {
        serde_json::from_str(text).map_err(|e| FederationError::Format(e.to_string()))
    }

    /// Checks content, every member's signature, and the pinned hash.
    pub fn verify(&self, pinned: Option<&[u8; 32]>) -> Result<Federation, FederationError> {
        let federation = self.federation.check()?;
        if let Some(pinned) = pinned.filter(|p| **p != federation.hash) {
            return Err(FederationError::Hash {
                pinned: hex::encode(pinned),
                actual: hex::encode(federation.hash),
            });
        }
        let message = self.federation.signing_message();
        for member in &federation.members {
            let signature = self.signatures.get(member.index.as_usize()).and_then(|s| hex::decode(s).ok());
            let valid = signature.is_some_and(|s| federation.verify(member.index, &message, &s));
            if !valid {
                return Err(FederationError::Signature(member.index.get()));
            }
        }
        Ok(federation)
    }
}

impl Federation {
    /// Version of the membership.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bitcoin network.
    pub const fn network(&self) -> bitcoin::Network {
        self.network
    }

    /// t.
    pub const fn threshold(&self) -> u16 {
        self.threshold
    }

    /// n.
    pub fn size(&self) -> u16 {
        self.members.len() as u16
    }

    /// q: YES votes that make a certificate.
    pub const fn quorum(&self) -> u16 {
        self.quorum
    }

    /// Pinned by signers and operators.
    pub const fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// All members in index order.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// One member.
    pub fn member(&self, index: OperatorIndex) -> Option<&Member> {
        self.members.get(index.as_usize())
    }

    /// All indices.
    pub fn indices(&self) -> impl Iterator<Item = OperatorIndex> + '_ {
        self.members.iter().map(|m| m.index)
    }

    /// Verifies a signature by any of a member's federation keys, in its only form ([`FederationKey::verifies`]).
    pub fn verify(&self, signer: OperatorIndex, message: &[u8], signature: &[u8]) -> bool {
        self.member(signer).is_some_and(|m| m.federation_keys.iter().any(|k| k.verifies(message, signature)))
    }

    /// As [`Self::verify`], by one of the member's keys alone: a person named that one.
    pub fn verify_by(
        &self,
        signer: OperatorIndex,
        key: &FederationKey,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        self.member(signer).is_some_and(|m| m.federation_keys.contains(key))
            && key.verifies(message, signature)
    }
}
