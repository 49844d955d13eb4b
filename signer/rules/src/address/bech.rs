use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32m, Checksum, Hrp};
use bitcoin::secp256k1::PublicKey;
use prost::Message as _;
use spark_proto::spark;

use super::Network;
use super::invoice::{self, Invoice};
use crate::point;

/// Text that is no Spark address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Bech32m is broken, or the text is longer than 1024 characters.
    #[error("spark address is not bech32m of at most 1024 characters")]
    Encoding,
    /// The prefix belongs to no network.
    #[error("unknown spark address prefix")]
    Prefix,
    /// The payload is no protobuf message of the expected form.
    #[error("spark address has a malformed payload")]
    Payload,
    /// The identity key is no compressed point.
    #[error("spark address holds no valid identity key")]
    IdentityKey,
    /// A field of the invoice is out of range.
    #[error("spark invoice has an invalid {0}")]
    Invoice(&'static str),
    /// The same content in another encoding: invoices are compared as text.
    #[error("spark address is not canonical")]
    NotCanonical,
    /// The signature is absent or does not verify under the receiver's identity key.
    #[error("spark invoice is not validly signed")]
    Signature,
}

/// Bech32m (BIP 350) beyond the length for which its error correction is proven, as Spark addresses need it.
enum LongBech32m {}

impl Checksum for LongBech32m {
    type MidstateRepr = u32;
    const CODE_LENGTH: usize = 1024;
    const CHECKSUM_LENGTH: usize = Bech32m::CHECKSUM_LENGTH;
    const GENERATOR_SH: [u32; 5] = Bech32m::GENERATOR_SH;
    const TARGET_RESIDUE: u32 = Bech32m::TARGET_RESIDUE;
}

/// Prefix written, prefix of old addresses.
const PREFIXES: [(Network, &str, &str); 4] = [
    (Network::Mainnet, "spark", "sp"),
    (Network::Testnet, "sparkt", "spt"),
    (Network::Regtest, "sparkrt", "sprt"),
    (Network::Signet, "sparks", "sps"),
];
/// Prefixes that the JavaScript SDK gives to a private regtest.
const LOCAL: [&str; 2] = ["sparkl", "spl"];

/// Who is paid, and perhaps what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparkAddress {
    /// Where.
    pub network: Network,
    /// The receiver.
    pub identity: PublicKey,
    /// What the receiver asks for.
    pub invoice: Option<Invoice>,
    /// The receiver's BIP340 signature over the invoice's hash.
    pub signature: Option<[u8; 64]>,
}

impl SparkAddress {
    /// An address without an invoice.
    pub const fn new(network: Network, identity: PublicKey) -> Self {
        Self { network, identity, invoice: None, signature: None }
    }

    /// The text, with the network's own prefix.
    pub fn encode(&self) -> Result<String, AddressError> {
        let hrp = PREFIXES
            .iter()
            .find(|(network, ..)| *network == self.network)
            .map(|(_, hrp, _)| *hrp)
            .ok_or(AddressError::Prefix)?;
        let hrp = Hrp::parse(hrp).map_err(|_| AddressError::Prefix)?;
        if let Some(invoice) = &self.invoice {
            invoice.check()?;
        }
        bech32::encode::<LongBech32m>(hrp, &self.payload()).map_err(|_| AddressError::Encoding)
    }

    /// Reads an address. Old and local prefixes are accepted, other encodings of the same payload are not.
    pub fn decode(text: &str) -> Result<Self, AddressError> {
        if text.len() > LongBech32m::CODE_LENGTH {
            return Err(AddressError::Encoding);
        }
        let checked = CheckedHrpstring::new::<LongBech32m>(text).map_err(|_| AddressError::Encoding)?;
        let network = network_of(checked.hrp().to_lowercase().as_str())?;
        checked.validate_segwit_padding().map_err(|_| AddressError::Encoding)?;
        let payload: Vec<u8> = checked.byte_iter().collect();
        let message = spark::SparkAddress::decode(payload.as_slice()).map_err(|_| AddressError::Payload)?;
        let identity = point::parse("identity key", &message.identity_public_key)
            .map_err(|_| AddressError::IdentityKey)?;
        let address = Self {
            network,
            identity,
            invoice: message.spark_invoice_fields.map(Invoice::from_wire).transpose()?,
            signature: message
                .signature
                .map(|bytes| bytes.as_slice().try_into().map_err(|_| AddressError::Payload))
                .transpose()?,
        };
        if address.payload() == payload { Ok(address) } else { Err(AddressError::NotCanonical) }
    }

    /// The hash that the receiver signs; none without an invoice.
    pub fn invoice_hash(&self) -> Option<[u8; 32]> {
        self.invoice.as_ref().map(|invoice| invoice.hash(&self.identity, self.network))
    }

    /// Verifies the receiver's signature over the invoice, BIP340 under its x-only identity key. An address
    /// without an invoice needs none; an invoice without a signature is refused.
    pub fn verify(&self) -> Result<(), AddressError> {
        use bitcoin::secp256k1::{Message, SECP256K1, schnorr::Signature};
        match (self.invoice_hash(), self.signature) {
            (None, None) => Ok(()),
            (Some(hash), Some(signature)) => {
                let signature = Signature::from_slice(&signature).map_err(|_| AddressError::Signature)?;
                let (key, _) = self.identity.x_only_public_key();
                SECP256K1
                    .verify_schnorr(&signature, &Message::from_digest(hash), &key)
                    .map_err(|_| AddressError::Signature)
            }
            _ => Err(AddressError::Signature),
        }
    }

    fn payload(&self) -> Vec<u8> {
        let mut out = Vec::new();
        invoice::put_bytes(&mut out, 1, &self.identity.serialize());
        if let Some(invoice) = &self.invoice {
            invoice::put_bytes(&mut out, 2, &invoice.encode());
        }
        if let Some(signature) = &self.signature {
            invoice::put_bytes(&mut out, 3, signature);
        }
        out
    }
}

fn network_of(hrp: &str) -> Result<Network, AddressError> {
    PREFIXES
        .iter()
        .find(|(_, new, old)| hrp == *new || hrp == *old)
        .map(|(network, ..)| *network)
        .or_else(|| LOCAL.contains(&hrp).then_some(Network::Regtest))
        .ok_or(AddressError::Prefix)
}
