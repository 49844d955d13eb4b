//! What a sender agrees to and no signature of his covers: the invoice that he pays, and until when (D5). Both are
//! in the digest and shown to the receiver.

use bitcoin::secp256k1::PublicKey;

use super::{OperationError, Part, Resource};
use crate::address::{Payment, SparkAddress};

/// Terms of a transfer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// Seconds since 1970 until which the transfer must be voted for; 0 is no limit. What was decided does not
    /// expire.
    pub expiry_seconds: i64,
    /// The invoice that the transfer pays, checked against it.
    pub invoice: Option<PaidInvoice>,
}

/// A Spark invoice that a transfer pays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaidInvoice {
    /// As the receiver wrote it.
    pub text: String,
    /// What the receiver signed: two texts with one hash are one invoice.
    pub hash: [u8; 32],
    /// Seconds since 1970 from which nobody may pay it.
    pub expires: Option<i64>,
}

/// The claim by which an invoice is paid once.
pub fn invoice_key(hash: &[u8; 32]) -> Resource {
    Resource { kind: "invoice", key: hash.to_vec() }
}

impl Terms {
    /// Reads the terms and holds the invoice against what is paid: signature, network, receiver, sender, amount.
    pub(super) fn of(
        invoice: &str,
        expiry: Option<&prost_types::Timestamp>,
        sender: &PublicKey,
        parts: &[Part],
    ) -> Result<Self, OperationError> {
        let expiry_seconds = match expiry {
            Some(time) if time.seconds > 0 => time.seconds,
            Some(_) => return Err(OperationError::Malformed("expiry_time")),
            None => 0,
        };
        let invoice = if invoice.is_empty() { None } else { Some(paid(invoice, sender, parts)?) };
        Ok(Self { expiry_seconds, invoice })
    }

    pub(super) fn resource(&self) -> Option<Resource> {
        self.invoice.as_ref().map(|paid| invoice_key(&paid.hash))
    }

    /// Asked before a vote, never after: a decision stands, whatever the clock says later (D1).
    pub fn at(&self, unix_seconds: i64) -> Result<(), OperationError> {
        if self.expiry_seconds != 0 && unix_seconds >= self.expiry_seconds {
            return Err(OperationError::Expired("transfer"));
        }
        match self.invoice.as_ref().and_then(|paid| paid.expires) {
            Some(expires) if unix_seconds >= expires => Err(OperationError::Expired("spark invoice")),
            _ => Ok(()),
        }
    }
}

fn paid(text: &str, sender: &PublicKey, parts: &[Part]) -> Result<PaidInvoice, OperationError> {
    let address = SparkAddress::decode(text).map_err(|_| OperationError::Invoice("malformed"))?;
    let invoice = address.invoice.as_ref().ok_or(OperationError::Invoice("an address without an invoice"))?;
    address.verify().map_err(|_| OperationError::Invoice("not signed by its receiver"))?;
    if parts.iter().any(|part| part.record.network != address.network) {
        return Err(OperationError::Invoice("for another network"));
    }
    if parts.iter().any(|part| part.receiver != address.identity) {
        return Err(OperationError::Invoice("of another receiver"));
    }
    if invoice.sender.is_some_and(|payer| payer != *sender) {
        return Err(OperationError::Invoice("for another sender"));
    }
    let total = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.record.value));
    match &invoice.payment {
        // The hash tells no amount from zero as little.
        Payment::Sats { amount: None | Some(0) } => {}
        Payment::Sats { amount } if *amount == total => {}
        Payment::Sats { .. } => return Err(OperationError::Invoice("of another amount")),
        Payment::Tokens { .. } => return Err(OperationError::Invoice("for tokens")),
    }
    let hash = address.invoice_hash().ok_or(OperationError::Invoice("an address without an invoice"))?;
    Ok(PaidInvoice { text: text.to_owned(), hash, expires: invoice.expiry.map(|(seconds, _)| seconds) })
}
