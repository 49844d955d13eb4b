//! What became of Spark invoices.

use spark_proto::spark::{self, InvoiceStatus, invoice_response::TransferType};
use spark_rules::address::SparkAddress;

use super::{Api, package::MAX_INVOICE};
use crate::{
    authn::Reader,
    db::{
        invoice,
        query_transfer::{self, Listing},
    },
    status::Refused,
};

/// Most invoices of one query.
const MAX_INVOICES: usize = 100;

impl Api {
    /// Status of each invoice, in the order asked for and in one answer, whatever the limit: clients do not page here.
    /// Payer and receiver hear of it, and everybody where both are open; to others an invoice is not found, however they
    /// came by it.
    pub(super) async fn invoices(
        &self,
        reader: &Reader,
        request: &spark::QuerySparkInvoicesRequest,
    ) -> Result<spark::QuerySparkInvoicesResponse, Refused> {
        if request.invoice.len() > MAX_INVOICES {
            return Err(Refused::field("invoice", format!("at most {MAX_INVOICES}")));
        }
        let mut statuses = Vec::with_capacity(request.invoice.len());
        for text in &request.invoice {
            statuses.push(self.invoice(reader, text).await?);
        }
        Ok(spark::QuerySparkInvoicesResponse { offset: -1, invoice_statuses: statuses })
    }

    async fn invoice(&self, reader: &Reader, text: &str) -> Result<spark::InvoiceResponse, Refused> {
        let none = || Refused::field("invoice", "must be a Spark invoice, signed by its receiver");
        if text.len() > MAX_INVOICE {
            return Err(none());
        }
        let address = SparkAddress::decode(text).map_err(|_| none())?;
        address.verify().map_err(|_| none())?;
        let (Some(hash), Some(asked)) = (address.invoice_hash(), &address.invoice) else {
            return Err(none());
        };
        let answer = |status: InvoiceStatus, transfer_type| spark::InvoiceResponse {
            invoice: text.to_owned(),
            status: status.into(),
            transfer_type,
        };
        let Some(id) = invoice::paying(self.parts.db.pool(), &hash, text).await? else {
            return Ok(answer(InvoiceStatus::NotFound, None));
        };
        let me = reader.identity.map(|key| key.serialize().to_vec());
        let own = Listing { sender: me.clone(), receiver: me, ids: vec![id], ..Listing::default() };
        let stranger = Some(reader.bytes());
        let open = Listing { ids: vec![id], stranger, open: true, ..Listing::default() };
        let listings = reader.identity.map(|_| own).into_iter().chain(self.parts.open_reads.then_some(open));
        for listing in listings {
            // What the listing hides is not everywhere yet (D7).
            if !query_transfer::page(self.parts.db.pool(), &listing, 1, 0).await?.is_empty() {
                let paid = spark::SatsTransfer { transfer_id: id.as_bytes().to_vec() };
                return Ok(answer(InvoiceStatus::Finalized, Some(TransferType::SatsTransfer(paid))));
            }
        }
        let concerns = reader
            .identity
            .is_some_and(|identity| address.identity == identity || asked.sender == Some(identity));
        Ok(answer(if concerns { InvoiceStatus::Pending } else { InvoiceStatus::NotFound }, None))
    }
}
