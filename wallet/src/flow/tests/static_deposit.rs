//! What an operator lists of static deposits: it may be much, large, or always the same.

use std::sync::{Arc, Mutex};

use bitcoin::{
    Amount, Transaction, TxIn, TxOut, absolute::LockTime, consensus::encode, transaction::Version,
};
use spark_proto::spark::{
    AddressedUtxo, DepositAddressQueryResult, GetUtxosForIdentityRequest, GetUtxosForIdentityResponse,
    PageResponse, QueryStaticDepositAddressesRequest, QueryStaticDepositAddressesResponse, Utxo,
};
use spark_rules::tx::p2tr_script;
use tonic::Status;

use super::wallet;
use crate::{
    Wallet, WalletError,
    flow::static_deposit::displayed,
    testing::{Liar, Operators, keys},
};

type Asked = Arc<Mutex<Vec<u32>>>;

/// A wallet with one static address, and the sizes of the pages of outputs that it asks for.
fn owner(
    page: impl Fn(&[AddressedUtxo], &GetUtxosForIdentityRequest) -> Result<GetUtxosForIdentityResponse, Status>
    + Send
    + Sync
    + 'static,
) -> (Wallet, Vec<Transaction>, Asked, tempfile::TempDir) {
    let (operators, keys, asked) = (Operators::new(), keys(), Asked::default());
    let (address, verifying_key, proof) = operators.static_address(&keys);
    let transactions: Vec<Transaction> = (1..=30)
        .map(|n| Transaction {
            version: Version::TWO,
            lock_time: LockTime::from_consensus(n),
            input: vec![TxIn::default()],
            output: vec![TxOut { value: Amount::from_sat(1000), script_pubkey: p2tr_script(&verifying_key) }],
        })
        .collect();
    let listed: Vec<AddressedUtxo> = transactions
        .iter()
        .map(|tx| AddressedUtxo {
            address: address.clone(),
            utxo: Some(Utxo {
                raw_tx: encode::serialize(tx),
                vout: 0,
                network: 2,
                txid: displayed(&tx.compute_txid()),
            }),
            is_confirmed: true,
        })
        .collect();
    let shown = DepositAddressQueryResult {
        deposit_address: address,
        verifying_public_key: verifying_key.serialize().to_vec(),
        proof_of_possession: Some(proof),
        ..Default::default()
    };
    let noted = asked.clone();
    let server = Liar::default()
        .on("query_static_deposit_addresses", move |request: QueryStaticDepositAddressesRequest| {
            // The same address for ever.
            let deposit_addresses = vec![shown.clone(); usize::try_from(request.limit).unwrap()];
            Ok(QueryStaticDepositAddressesResponse { deposit_addresses })
        })
        .on("get_utxos_for_identity", move |request: GetUtxosForIdentityRequest| {
            noted.lock().unwrap().push(request.page.as_ref().unwrap().page_size);
            page(&listed, &request)
        });
    let (wallet, dir) = wallet(&operators, keys, vec![server]);
    (wallet, transactions, asked, dir)
}

/// The page that is asked for; the cursor is a position.
fn honest(all: &[AddressedUtxo], request: &GetUtxosForIdentityRequest) -> GetUtxosForIdentityResponse {
    let page = request.page.as_ref().unwrap();
    let from: usize = page.cursor.parse().unwrap_or(0);
    let to = (from + page.page_size as usize).min(all.len());
    GetUtxosForIdentityResponse {
        utxos: all[from..to].to_vec(),
        page: Some(PageResponse {
            has_next_page: to < all.len(),
            next_cursor: to.to_string(),
            ..Default::default()
        }),
    }
}

#[tokio::test]
async fn s14_pages_that_are_too_large_are_asked_for_again_in_smaller_ones() {
    let (wallet, transactions, asked, _dir) = owner(|all, request| {
        // What the own decoder says of an answer that it does not take.
        let large = request.page.as_ref().unwrap().page_size > 5;
        if large {
            Err(Status::out_of_range("decoded message length too large"))
        } else {
            Ok(honest(all, request))
        }
    });
    assert_eq!(wallet.static_outputs().await.unwrap().len(), transactions.len());
    assert_eq!(*asked.lock().unwrap(), [20, 10, 5, 5, 5, 5, 5, 5]);
}

#[tokio::test]
async fn a_refund_looks_no_further_than_its_output() {
    let (wallet, transactions, asked, _dir) = owner(|all, request| Ok(honest(all, request)));
    let outpoint = |index: usize| bitcoin::OutPoint { txid: transactions[index].compute_txid(), vout: 0 };
    let to =
        bitcoin::Address::from_script(&transactions[0].output[0].script_pubkey, bitcoin::Network::Regtest);
    let to = to.unwrap().to_string();
    // This operator refunds nothing; what counts is what was asked before.
    let refused = wallet.refund_static(&outpoint(3), &to, Some(1)).await.unwrap_err();
    assert!(matches!(refused, WalletError::Client(_)), "{refused:?}");
    assert_eq!(*asked.lock().unwrap(), [20]);
    wallet.refund_static(&outpoint(25), &to, Some(1)).await.unwrap_err();
    assert_eq!(*asked.lock().unwrap(), [20, 20, 20]);
}

#[tokio::test]
async fn s13_the_same_rows_again_are_no_news() {
    let (wallet, _, asked, _dir) = owner(|all, request| {
        let from: u32 = request.page.as_ref().unwrap().cursor.parse().unwrap_or(0);
        let next_cursor = (from + 1).to_string();
        // The same output three times, on every page.
        Ok(GetUtxosForIdentityResponse {
            utxos: vec![all[0].clone(); 3],
            page: Some(PageResponse { has_next_page: true, next_cursor, ..Default::default() }),
        })
    });
    assert_eq!(wallet.static_addresses().await.unwrap().len(), 1);
    assert_eq!(wallet.static_outputs().await.unwrap().len(), 1);
    assert_eq!(asked.lock().unwrap().len(), 2);
}
