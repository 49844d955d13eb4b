//! A coordinator alone makes no invoice paid.

use std::sync::{Arc, Mutex};

use spark_proto::spark::{
    InvoiceResponse, InvoiceStatus, QuerySparkInvoicesRequest, QuerySparkInvoicesResponse,
    QueryTransfersResponse, SatsTransfer, Transfer, TransferFilter, TransferStatus,
    invoice_response::TransferType,
};
use uuid::Uuid;

use super::wallet;
use crate::{
    flow::InvoiceTerms,
    testing::{Liar, Operators, TRANSFER_ID, keys},
};

/// State of an invoice of which the coordinator says that it is paid, while each operator shows a transfer or none.
async fn state(shown: impl Fn(usize, Transfer) -> Option<Transfer>) -> InvoiceStatus {
    let (operators, keys, payer) = (Operators::new(), keys(), keys());
    let receiver = keys.identity().public_key();
    let slots: Vec<Arc<Mutex<Option<Transfer>>>> = (0..3).map(|_| Arc::default()).collect();
    let servers = slots.iter().map(|slot| {
        let slot = slot.clone();
        Liar::default()
            .on("query_spark_invoices", |request: QuerySparkInvoicesRequest| {
                let id = Uuid::parse_str(TRANSFER_ID).unwrap();
                let of = |invoice| InvoiceResponse {
                    invoice,
                    status: InvoiceStatus::Finalized.into(),
                    transfer_type: Some(TransferType::SatsTransfer(SatsTransfer {
                        transfer_id: id.as_bytes().to_vec(),
                    })),
                };
                let invoice_statuses = request.invoice.into_iter().map(of).collect();
                Ok(QuerySparkInvoicesResponse { invoice_statuses, ..Default::default() })
            })
            .on("query_all_transfers", move |_: TransferFilter| {
                let transfers = slot.lock().unwrap().iter().cloned().collect();
                Ok(QueryTransfersResponse { transfers, offset: -1 })
            })
    });
    let (wallet, _dir) = wallet(&operators, keys, servers.collect());
    let terms = InvoiceTerms { amount: Some(1000), ..InvoiceTerms::default() };
    let invoice = wallet.invoice(terms).unwrap();
    let transfer = Transfer {
        id: TRANSFER_ID.into(),
        sender_identity_public_key: payer.identity().public_key().serialize().to_vec(),
        receiver_identity_public_key: receiver.serialize().to_vec(),
        total_value: 1000,
        status: TransferStatus::SenderKeyTweaked.into(),
        spark_invoice: invoice.clone(),
        ..Default::default()
    };
    for (index, slot) in slots.iter().enumerate() {
        *slot.lock().unwrap() = shown(index, transfer.clone());
    }
    wallet.invoice_states(&[invoice]).await.unwrap()[0].0
}

#[tokio::test]
async fn an_invoice_is_paid_when_the_quorum_shows_a_transfer_by_its_terms() {
    assert_eq!(state(|_, transfer| Some(transfer)).await, InvoiceStatus::Finalized);
    // The coordinator alone.
    assert_eq!(state(|index, transfer| (index == 0).then_some(transfer)).await, InvoiceStatus::Pending);
    assert_eq!(state(|_, _| None).await, InvoiceStatus::Pending);
    let with = |change: fn(&mut Transfer)| {
        state(move |_, mut transfer| {
            change(&mut transfer);
            Some(transfer)
        })
    };
    for change in [
        (|t| t.total_value = 999) as fn(&mut Transfer),
        |t| t.spark_invoice.clear(),
        |t| t.receiver_identity_public_key = vec![2; 33],
        |t| t.status = TransferStatus::Returned.into(),
        |t| t.status = TransferStatus::SenderInitiated.into(),
    ] {
        assert_eq!(with(change).await, InvoiceStatus::Pending);
    }
}
