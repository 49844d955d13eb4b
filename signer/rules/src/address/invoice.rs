use bitcoin::secp256k1::PublicKey;
use prost::encoding::{WireType, encode_key, encode_varint};
use sha2::{Digest as _, Sha256};
use spark_proto::spark::{self, spark_invoice_fields::PaymentType};

use super::{AddressError, Network};
use crate::point;

const VERSION: u32 = 1;
const MAX_MEMO: usize = 120;

/// What an invoice asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payment {
    /// Bitcoin.
    Sats {
        /// Satoshis; the payer chooses if there are none.
        amount: Option<u64>,
    },
    /// A token.
    Tokens {
        /// Which one.
        token: Option<[u8; 32]>,
        /// Up to 16 bytes, big-endian; the payer chooses if there are none.
        amount: Option<Vec<u8>>,
    },
}

/// A request for payment inside a Spark address, version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoice {
    /// UUID of the invoice.
    pub id: [u8; 16],
    /// What is asked for.
    pub payment: Payment,
    /// At most 120 bytes.
    pub memo: Option<String>,
    /// The only payer allowed.
    pub sender: Option<PublicKey>,
    /// End of validity: seconds since 1970 and nanoseconds.
    pub expiry: Option<(i64, i32)>,
}

impl Invoice {
    pub(super) fn from_wire(fields: spark::SparkInvoiceFields) -> Result<Self, AddressError> {
        if fields.version != VERSION {
            return Err(AddressError::Invoice("version"));
        }
        let payment = match fields.payment_type.ok_or(AddressError::Invoice("payment type"))? {
            PaymentType::SatsPayment(sats) => Payment::Sats { amount: sats.amount },
            PaymentType::TokensPayment(tokens) => Payment::Tokens {
                token: tokens.token_identifier.map(|id| fixed("token identifier", &id)).transpose()?,
                amount: tokens.amount,
            },
        };
        let invoice = Self {
            id: fixed("id", &fields.id)?,
            payment,
            memo: fields.memo,
            sender: fields
                .sender_public_key
                .map(|key| point::parse("sender key", &key).map_err(|_| AddressError::Invoice("sender key")))
                .transpose()?,
            expiry: fields.expiry_time.map(|time| (time.seconds, time.nanos)),
        };
        invoice.check()?;
        Ok(invoice)
    }

    pub(super) fn check(&self) -> Result<(), AddressError> {
        if self.memo.as_ref().is_some_and(|memo| memo.len() > MAX_MEMO) {
            return Err(AddressError::Invoice("memo"));
        }
        if matches!(&self.payment, Payment::Tokens { amount: Some(amount), .. } if amount.len() > 16) {
            return Err(AddressError::Invoice("amount"));
        }
        // The range of a protobuf Timestamp: years 1 to 9999.
        if self.expiry.is_some_and(|(seconds, nanos)| {
            !(-62_135_596_800..=253_402_300_799).contains(&seconds) || !(0..1_000_000_000).contains(&nanos)
        }) {
            return Err(AddressError::Invoice("expiry"));
        }
        Ok(())
    }

    /// Canonical protobuf: fields in order of their numbers, the payment last.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_int(&mut out, 1, u64::from(VERSION));
        put_bytes(&mut out, 2, &self.id);
        if let Some(memo) = &self.memo {
            put_bytes(&mut out, 5, memo.as_bytes());
        }
        if let Some(sender) = &self.sender {
            put_bytes(&mut out, 6, &sender.serialize());
        }
        if let Some((seconds, nanos)) = self.expiry {
            let mut time = Vec::new();
            if seconds != 0 {
                put_int(&mut time, 1, seconds.cast_unsigned());
            }
            if nanos != 0 {
                put_int(&mut time, 2, i64::from(nanos).cast_unsigned());
            }
            put_bytes(&mut out, 7, &time);
        }
        let mut payment = Vec::new();
        match &self.payment {
            Payment::Sats { amount } => {
                if let Some(amount) = amount {
                    put_int(&mut payment, 1, *amount);
                }
                put_bytes(&mut out, 4, &payment);
            }
            Payment::Tokens { token, amount } => {
                if let Some(token) = token {
                    put_bytes(&mut payment, 1, token);
                }
                if let Some(amount) = amount {
                    put_bytes(&mut payment, 2, amount);
                }
                put_bytes(&mut out, 3, &payment);
            }
        }
        out
    }

    /// The hash that the receiver signs: SHA-256 over the SHA-256 of each field.
    pub fn hash(&self, receiver: &PublicKey, network: Network) -> [u8; 32] {
        let mut hash = FieldHash(Sha256::new());
        hash.field(&VERSION.to_be_bytes());
        hash.field(&self.id);
        let mut magic = network.bitcoin().magic().to_bytes();
        magic.reverse();
        // The network alone is hashed twice.
        hash.field(&Sha256::digest(magic));
        hash.field(&receiver.serialize());
        match &self.payment {
            Payment::Tokens { token, amount } => {
                hash.field(&[1]);
                hash.field(&token.unwrap_or_default());
                hash.field(amount.as_deref().unwrap_or_default());
            }
            Payment::Sats { amount } => {
                hash.field(&[2]);
                hash.field(&amount.unwrap_or_default().to_be_bytes());
            }
        }
        hash.field(self.memo.as_deref().unwrap_or_default().as_bytes());
        hash.field(&self.sender.map_or([0; 33], |sender| sender.serialize()));
        let seconds = self.expiry.map_or(0, |(seconds, _)| u64::try_from(seconds).unwrap_or(0));
        hash.field(&seconds.to_be_bytes());
        hash.0.finalize().into()
    }
}

struct FieldHash(Sha256);

impl FieldHash {
    fn field(&mut self, bytes: &[u8]) {
        self.0.update(Sha256::digest(bytes));
    }
}

fn fixed<const N: usize>(name: &'static str, bytes: &[u8]) -> Result<[u8; N], AddressError> {
    bytes.try_into().map_err(|_| AddressError::Invoice(name))
}

fn put_int(out: &mut Vec<u8>, field: u32, value: u64) {
    encode_key(field, WireType::Varint, out);
    encode_varint(value, out);
}

pub(super) fn put_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}
