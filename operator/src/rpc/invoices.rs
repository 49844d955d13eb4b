//! What became of Spark invoices.

use spark_proto::spark::{self, InvoiceStatus, invoice_response::TransferType};
use spark_rules::address::SparkAddress;

use super::{Api, package::MAX_INVOICE, page::Page};
use crate::{
    authn::Session,
    db::{
        invoice,
        query_transfer::{self, Listing},
    },
    status::Refused,
};

/// Most invoices of one query.
const MAX_INVOICES: usize = 100;

impl Api {
    /// Status of each invoice, in the order asked for. Payer and receiver hear of it; to everybody else an invoice is
    /// not found, however they came by it.
    pub(super) async fn invoices(
        &self,
        session: &Session,
        request: &spark::QuerySparkInvoicesRequest,
    ) -> Result<spark::QuerySparkInvoicesResponse, Refused> {
        if request.invoice.len() > MAX_INVOICES {
            return Err(Refused::field("invoice", format!("at most {MAX_INVOICES}")));
        }
        let page = Page::parse(request.limit, request.offset)?;
        let skip = usize::try_from(page.offset()).unwrap_or(usize::MAX);
        let fetch = usize::try_from(page.fetch()).unwrap_or(0);
        let (asked, offset) = page.cut(request.invoice.iter().skip(skip).take(fetch).collect());
        let mut statuses = Vec::with_capacity(asked.len());
        for text in asked {
            statuses.push(self.invoice(session, text).await?);
        }
        Ok(spark::QuerySparkInvoicesResponse { offset, invoice_statuses: statuses })
    }

    async fn invoice(&self, session: &Session, text: &str) -> Result<spark::InvoiceResponse, Refused> {
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
        let me = Some(session.identity.serialize().to_vec());
        let listing = Listing { sender: me.clone(), receiver: me, ids: vec![id], ..Listing::default() };
        // What the listing hides is not everywhere yet (D7).
        if !query_transfer::page(self.parts.db.pool(), &listing, 1, 0).await?.is_empty() {
            let paid = spark::SatsTransfer { transfer_id: id.as_bytes().to_vec() };
            return Ok(answer(InvoiceStatus::Finalized, Some(TransferType::SatsTransfer(paid))));
        }
        let concerns = address.identity == session.identity || asked.sender == Some(session.identity);
        Ok(answer(if concerns { InvoiceStatus::Pending } else { InvoiceStatus::NotFound }, None))
    }
}
