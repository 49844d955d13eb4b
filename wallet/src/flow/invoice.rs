use bitcoin::secp256k1::PublicKey;
use rand::rngs::OsRng;
use spark_proto::spark::{
    InvoiceStatus, QuerySparkInvoicesRequest, Transfer, TransferStatus, transfer_filter::Participant,
};
use spark_rules::address::{Invoice, Payment, SparkAddress};
use uuid::Uuid;

use crate::{Wallet, WalletError, wallet::now};

/// What an invoice of this wallet asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InvoiceTerms {
    /// Satoshis; the payer chooses if there are none.
    pub amount: Option<u64>,
    /// At most 120 bytes.
    pub memo: Option<String>,
    /// Seconds from now until which it may be paid; for ever if there are none.
    pub expires_in: Option<u64>,
    /// The only payer allowed.
    pub sender: Option<SparkAddress>,
}

impl Wallet {
    /// A signed invoice: others pay to its text, once.
    pub fn invoice(&self, terms: InvoiceTerms) -> Result<String, WalletError> {
        let expiry = terms
            .expires_in
            .map(|seconds| (i64::try_from(now().saturating_add(seconds)).unwrap_or(i64::MAX), 0));
        let mut address = SparkAddress {
            network: self.config().network,
            identity: self.keys().identity().public_key(),
            invoice: Some(Invoice {
                id: *Uuid::now_v7().as_bytes(),
                payment: Payment::Sats { amount: terms.amount },
                memo: terms.memo,
                sender: terms.sender.map(|sender| sender.identity),
                expiry,
            }),
            signature: None,
        };
        if let Some(hash) = address.invoice_hash() {
            address.signature = Some(self.keys().identity().sign_schnorr(hash, &mut OsRng)?);
        }
        Ok(address.encode()?)
    }

    /// What the coordinator says of invoices that this wallet wrote or pays: their states, and the transfers that
    /// paid them, in the order asked for. Paid (`Finalized`) is only one whose transfer the commit quorum shows, too.
    pub async fn invoice_states(
        &self,
        invoices: &[String],
    ) -> Result<Vec<(InvoiceStatus, Option<Uuid>)>, WalletError> {
        use spark_proto::spark::invoice_response::TransferType;
        let request = QuerySparkInvoicesRequest { limit: 0, offset: 0, invoice: invoices.to_vec() };
        let answer = self
            .operators()
            .coordinator()
            .spark(self.keys().identity(), request, |mut c, r| async move { c.query_spark_invoices(r).await })
            .await?;
        let same = answer.invoice_statuses.iter().map(|s| &s.invoice).eq(invoices);
        if !same {
            return Err(WalletError::Answer("the invoices asked for"));
        }
        let mut states = Vec::with_capacity(invoices.len());
        for found in &answer.invoice_statuses {
            let id = match &found.transfer_type {
                Some(TransferType::SatsTransfer(paid)) => Uuid::from_slice(&paid.transfer_id).ok(),
                _ => None,
            };
            let mut status = found.status();
            if status == InvoiceStatus::Finalized && !self.is_paid(&found.invoice, id).await? {
                status = InvoiceStatus::Pending;
            }
            states.push((status, id));
        }
        Ok(states)
    }

    /// Whether the commit quorum shows the transfer that is said to have paid an invoice.
    async fn is_paid(&self, invoice: &str, id: Option<Uuid>) -> Result<bool, WalletError> {
        let Some(id) = id else { return Ok(false) };
        let to = SparkAddress::decode(invoice)?;
        let own = self.keys().identity().public_key().serialize().to_vec();
        let either = Participant::SenderOrReceiverIdentityPublicKey(own);
        let answers = self.transfer_everywhere(&id.as_hyphenated().to_string(), &either).await;
        let shown = answers.iter().filter(|(_, answer)| {
            answer.as_ref().is_ok_and(|found| found.as_ref().is_some_and(|t| pays(t, invoice, &to)))
        });
        Ok(shown.count() >= usize::from(self.config().federation.quorum()))
    }
}

/// Whether a transfer is committed and pays this invoice by its terms.
fn pays(transfer: &Transfer, text: &str, to: &SparkAddress) -> bool {
    let asked = to.invoice.as_ref().map(|invoice| &invoice.payment);
    let enough = match asked {
        Some(Payment::Sats { amount: None | Some(0) }) => transfer.total_value > 0,
        Some(Payment::Sats { amount: Some(sats) }) => transfer.total_value == *sats,
        Some(Payment::Tokens { .. }) | None => false,
    };
    enough
        && transfer.spark_invoice == text
        && transfer.receiver_identity_public_key == to.identity.serialize()
        && !matches!(
            transfer.status(),
            TransferStatus::SenderInitiated
                | TransferStatus::SenderInitiatedCoordinator
                | TransferStatus::SenderKeyTweakPending
                | TransferStatus::ApplyingSenderKeyTweak
                | TransferStatus::Expired
                | TransferStatus::Returned
        )
}

/// What to pay for an invoice, or why it is not paid. Operators check the same.
pub(super) fn payable(
    to: &SparkAddress,
    amount: Option<u64>,
    payer: &PublicKey,
    now: u64,
) -> Result<u64, &'static str> {
    let invoice = to.invoice.as_ref().ok_or("this is an address: say how much to send")?;
    if invoice.sender.is_some_and(|sender| sender != *payer) {
        return Err("the invoice is for another sender");
    }
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    if invoice.expiry.is_some_and(|(seconds, _)| seconds <= now) {
        return Err("the invoice has expired");
    }
    match (&invoice.payment, amount) {
        (Payment::Tokens { .. }, _) => Err("the invoice is for tokens"),
        (Payment::Sats { amount: None | Some(0) }, Some(amount)) => Ok(amount),
        (Payment::Sats { amount: None | Some(0) }, None) => Err("the invoice leaves the amount open: say it"),
        (Payment::Sats { amount: Some(asked) }, None) => Ok(*asked),
        (Payment::Sats { amount: Some(asked) }, Some(amount)) if amount == *asked => Ok(amount),
        (Payment::Sats { .. }, Some(_)) => Err("the invoice asks for another amount"),
    }
}

#[cfg(test)]
mod tests {
    use spark_rules::address::Network;

    use super::*;
    use crate::testing::keys;

    #[test]
    fn an_invoice_is_paid_as_it_says_or_not_at_all() {
        let (me, other) = (keys().identity().public_key(), keys().identity().public_key());
        let address = |payment, sender, expiry| SparkAddress {
            network: Network::Regtest,
            identity: other,
            invoice: Some(Invoice { id: [1; 16], payment, memo: None, sender, expiry }),
            signature: None,
        };
        let sats = |amount| Payment::Sats { amount };
        let pay = |address: &SparkAddress, amount| payable(address, amount, &me, 100);
        let fixed = address(sats(Some(5)), Some(me), Some((101, 0)));
        assert_eq!(pay(&fixed, None), Ok(5));
        assert_eq!(pay(&fixed, Some(5)), Ok(5));
        assert!(pay(&fixed, Some(6)).is_err());
        let open = address(sats(None), None, None);
        assert_eq!(pay(&open, Some(7)), Ok(7));
        assert!(pay(&open, None).is_err());
        assert!(pay(&address(sats(Some(5)), Some(other), None), None).is_err());
        assert!(pay(&address(sats(Some(5)), None, Some((100, 999))), None).is_err());
        assert!(pay(&address(Payment::Tokens { token: None, amount: None }, None, None), Some(1)).is_err());
        assert!(pay(&SparkAddress::new(Network::Regtest, other), Some(1)).is_err());
    }
}
