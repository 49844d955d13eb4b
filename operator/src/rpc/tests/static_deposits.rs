//! Static addresses and what they got, over a real database.

use std::{sync::Arc, time::Duration};

use bitcoin::hashes::Hash as _;
use spark_proto::{
    common,
    signer::v1::{
        CommitNoncesRequest, CommitNoncesResponse, RefundStaticDepositRequest, RefundStaticDepositResponse,
        StaticRefund,
    },
    spark::{self, spark_service_server::SparkService as _},
};
use spark_rules::{
    address::Network,
    ids::OperatorIndex,
    tx::{Spend, StaticRefund as StaticRefundTx, p2tr_script},
};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use super::{Bench, bench, bench_with, from};
use crate::{
    db::{
        address::{self, AddressRow},
        chain::{self, DepositRow, SpendRow},
        headers::{self, HeaderRow},
        keyshare::{self, KeyshareRow},
        query_utxo, static_deposit,
    },
    rpc::{Nonces, Refunds, testing::key},
    status::Refused,
};

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// A static address of the identity of a number, or a one-time one.
async fn put_address(bench: &Bench, id: u8, identity: u8, is_static: bool) -> AddressRow {
    let verifying_key = key(id);
    let row = AddressRow {
        keyshare_id: Uuid::from_bytes([id; 16]),
        leaf_id: Uuid::from_bytes([id; 16]),
        address: spark_rules::address::deposit_address(&verifying_key, Network::Regtest),
        script: p2tr_script(&verifying_key).to_bytes(),
        network: "regtest".to_owned(),
        identity: key(identity).serialize().to_vec(),
        user_key: key(200).serialize().to_vec(),
        verifying_key: verifying_key.serialize().to_vec(),
        coordinator: 0,
        address_signatures: "{}".to_owned(),
        possession_signature: Some(vec![7; 64]),
        state: "READY".to_owned(),
        created_micros: 0,
        is_static,
    };
    let keyshare = KeyshareRow {
        keyshare_id: row.keyshare_id,
        owner_index: 0,
        state: "AVAILABLE".to_owned(),
        group_key: key(id).serialize().to_vec(),
        public_shares: [key(101), key(102), key(103)].map(|k| k.serialize().to_vec()).concat(),
        dkg_session: Uuid::nil(),
    };
    keyshare::insert(bench.db.pool(), &keyshare).await.unwrap();
    address::insert(bench.db.pool(), &row).await.unwrap();
    row
}

async fn put_block(bench: &Bench, height: i32) -> Vec<u8> {
    let hash = [vec![9; 28], height.to_be_bytes().to_vec()].concat();
    let row = HeaderRow { height, hash: hash.clone(), prev_hash: vec![9; 32], block_time: 1_700_000_000 };
    headers::insert(bench.db.pool(), &row).await.unwrap();
    hash
}

async fn put_output(bench: &Bench, to: &AddressRow, n: u8, block: Option<(i32, Vec<u8>)>) {
    put_output_of(bench, to, n, block, 100).await;
}

/// An output whose transaction has so many bytes.
async fn put_output_of(bench: &Bench, to: &AddressRow, n: u8, block: Option<(i32, Vec<u8>)>, bytes: usize) {
    let (height, block_hash) = block.unzip();
    let row = DepositRow {
        txid: [vec![n], vec![5; 31]].concat(),
        vout: i64::from(n),
        script: to.script.clone(),
        amount: 10_000,
        height,
        block_hash,
        raw_tx: vec![n; bytes],
    };
    chain::upsert_deposit(bench.db.pool(), &row).await.unwrap();
}

fn of_identity(identity: u8) -> spark::GetUtxosForIdentityRequest {
    spark::GetUtxosForIdentityRequest {
        identity_public_key: key(identity).serialize().to_vec(),
        network: spark::Network::Regtest as i32,
        ..Default::default()
    }
}

fn of_address(row: &AddressRow) -> spark::GetUtxosForAddressRequest {
    spark::GetUtxosForAddressRequest { address: row.address.clone(), ..Default::default() }
}

#[tokio::test]
async fn addresses_are_for_their_owner_and_have_one_form_of_proof() {
    let bench = bench().await;
    let generate = |identity: u8| spark::GenerateStaticDepositAddressRequest {
        signing_public_key: key(1).serialize().to_vec(),
        identity_public_key: key(identity).serialize().to_vec(),
        network: spark::Network::Regtest as i32,
        hash_variant: spark::HashVariant::V2 as i32,
    };
    let answer = bench.api.generate_static_deposit_address(from(1, generate(1))).await.unwrap().into_inner();
    let address = answer.deposit_address.unwrap();
    assert!(address.is_static && address.deposit_address_proof.is_some());
    let refused = bench.api.generate_static_deposit_address(from(2, generate(1))).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "NOT_OWNER"));
    let refused = bench.api.generate_static_deposit_address(Request::new(generate(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let legacy = spark::GenerateStaticDepositAddressRequest { hash_variant: 0, ..generate(1) };
    let refused = bench.api.generate_static_deposit_address(from(1, legacy)).await.unwrap_err();
    assert_eq!(reason(&refused), "FIELD_INVALID");
    let elsewhere = spark::RotateStaticDepositAddressRequest {
        signing_public_key: key(1).serialize().to_vec(),
        network: spark::Network::Mainnet as i32,
        hash_variant: spark::HashVariant::V2 as i32,
    };
    let refused = bench.api.rotate_static_deposit_address(from(1, elsewhere)).await.unwrap_err();
    assert_eq!(reason(&refused), "FIELD_INVALID");

    let mine = put_address(&bench, 40, 1, true).await;
    put_address(&bench, 41, 1, false).await;
    put_address(&bench, 42, 2, true).await;
    let query = |identity: u8| spark::QueryStaticDepositAddressesRequest {
        identity_public_key: key(identity).serialize().to_vec(),
        ..Default::default()
    };
    let listed = bench.api.query_static_deposit_addresses(from(1, query(1))).await.unwrap().into_inner();
    let listed: Vec<_> = listed.deposit_addresses.into_iter().map(|a| a.deposit_address).collect();
    assert_eq!(listed, std::slice::from_ref(&mine.address));
    let refused = bench.api.query_static_deposit_addresses(from(1, query(2))).await.unwrap_err();
    assert_eq!(reason(&refused), "NOT_OWNER");
    let unused = spark::QueryUnusedDepositAddressesRequest {
        identity_public_key: key(1).serialize().to_vec(),
        ..Default::default()
    };
    let unused = bench.api.query_unused_deposit_addresses(from(1, unused)).await.unwrap().into_inner();
    assert_eq!(unused.deposit_addresses.len(), 1, "static ones are not used up");
}

#[tokio::test]
async fn outputs_are_paged_and_say_whether_they_count() {
    let bench = bench().await;
    let mine = put_address(&bench, 40, 1, true).await;
    let also_mine = put_address(&bench, 41, 1, true).await;
    let foreign = put_address(&bench, 42, 2, true).await;
    let block = (10, put_block(&bench, 10).await);
    for n in 1..=4 {
        put_output(&bench, &mine, n, Some(block.clone())).await;
    }
    put_output(&bench, &also_mine, 5, Some(block.clone())).await;
    put_output(&bench, &mine, 6, None).await;
    put_output(&bench, &foreign, 7, Some(block.clone())).await;

    // Limit and offset, of one address: only what counts.
    let (mut offset, mut seen) = (0, Vec::new());
    loop {
        let mut request = of_address(&mine);
        (request.limit, request.offset) = (3, offset);
        let page = bench.api.get_utxos_for_address(from(1, request)).await.unwrap().into_inner();
        if page.utxos.is_empty() {
            break;
        }
        seen.extend(page.utxos.iter().map(|utxo| utxo.vout));
        // As people read it.
        assert!(page.utxos.iter().all(|utxo| utxo.txid[0] == 5 && utxo.txid[31] != 5));
        offset = page.offset;
    }
    assert_eq!(seen, [1, 2, 3, 4]);
    for foreign in [of_address(&foreign), spark::GetUtxosForAddressRequest::default()] {
        let refused = bench.api.get_utxos_for_address(from(1, foreign)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::NotFound, "ADDRESS_UNKNOWN"));
    }

    // Cursors, of all addresses of an identity.
    for (pending, expected) in [(false, vec![1, 2, 3, 4, 5]), (true, vec![1, 2, 3, 4, 5, 6])] {
        let (mut cursor, mut seen) = (String::new(), Vec::new());
        loop {
            let page = Some(spark::PageRequest { page_size: 2, cursor, ..Default::default() });
            let request =
                spark::GetUtxosForIdentityRequest { include_pending: pending, page, ..of_identity(1) };
            let answer = bench.api.get_utxos_for_identity(from(1, request)).await.unwrap().into_inner();
            for utxo in answer.utxos {
                let vout = utxo.utxo.unwrap().vout;
                assert_eq!(utxo.is_confirmed, vout != 6);
                assert_eq!(utxo.address == also_mine.address, vout == 5);
                seen.push(vout);
            }
            let page = answer.page.unwrap();
            if !page.has_next_page {
                break;
            }
            cursor = page.next_cursor;
        }
        assert_eq!(seen, expected);
    }
    let refused = bench.api.get_utxos_for_identity(from(1, of_identity(2))).await.unwrap_err();
    assert_eq!(reason(&refused), "NOT_OWNER");
    let page = spark::PageRequest { direction: spark::Direction::Previous as i32, ..Default::default() };
    let backwards = spark::GetUtxosForIdentityRequest { page: Some(page), ..of_identity(1) };
    let refused = bench.api.get_utxos_for_identity(from(1, backwards)).await.unwrap_err();
    assert_eq!(reason(&refused), "FIELD_INVALID");

    // Claimed, credited or spent ones can be left out.
    let txid = |n: u8| [vec![n], vec![5; 31]].concat();
    assert!(static_deposit::claim_for_owner(&bench.db, &txid(1), 1).await.unwrap());
    assert!(static_deposit::claim_for_owner(&bench.db, &txid(1), 1).await.unwrap(), "again");
    sqlx::query("INSERT INTO utxo_claim (txid, vout, claimant) VALUES ($1, 2, 'PROVIDER')")
        .bind(txid(2))
        .execute(bench.db.pool())
        .await
        .unwrap();
    assert!(!static_deposit::claim_for_owner(&bench.db, &txid(2), 2).await.unwrap(), "two claimants");
    let spend = SpendRow {
        txid: txid(3),
        vout: 3,
        spender_txid: vec![8; 32],
        kind: "FOREIGN".to_owned(),
        leaf_id: None,
    };
    chain::insert_event(bench.db.pool(), &spend, 10, &block.1).await.unwrap();
    let request = spark::GetUtxosForIdentityRequest { exclude_claimed: true, ..of_identity(1) };
    let left = bench.api.get_utxos_for_identity(from(1, request)).await.unwrap().into_inner().utxos;
    assert_eq!(left.into_iter().map(|utxo| utxo.utxo.unwrap().vout).collect::<Vec<_>>(), [4, 5]);
    assert_eq!(query_utxo::standing(bench.db.pool(), &txid(3), 3, 1).await.unwrap(), Some((true, true)));
    assert_eq!(query_utxo::standing(bench.db.pool(), &txid(4), 4, 2).await.unwrap(), Some((false, false)));

    // S12: with the block, its outputs go.
    headers::delete_above(bench.db.pool(), 9).await.unwrap();
    let gone = bench.api.get_utxos_for_identity(from(1, of_identity(1))).await.unwrap().into_inner();
    assert!(gone.utxos.is_empty());
    assert_eq!(query_utxo::standing(bench.db.pool(), &txid(4), 4, 1).await.unwrap(), None);
}

#[tokio::test]
async fn refunds_are_bounded_and_for_the_owner_of_the_output() {
    let bench = bench().await;
    let mine = put_address(&bench, 40, 1, true).await;
    let block = (10, put_block(&bench, 10).await);
    put_output(&bench, &mine, 1, Some(block)).await;
    let mut txid = [vec![1], vec![5; 31]].concat();
    txid.reverse();
    let good = spark::InitiateStaticDepositUtxoRefundRequest {
        on_chain_utxo: Some(spark::Utxo {
            raw_tx: Vec::new(),
            vout: 1,
            network: spark::Network::Regtest as i32,
            txid,
        }),
        refund_tx_signing_job: Some(spark::SigningJob {
            signing_public_key: mine.user_key.clone(),
            raw_tx: vec![1; 100],
            signing_nonce_commitment: Some(common::SigningCommitment {
                hiding: key(1).serialize().to_vec(),
                binding: key(2).serialize().to_vec(),
            }),
        }),
        user_signature: vec![0; 70],
        hash_variant: 0,
    };
    let with = |change: &dyn Fn(&mut spark::InitiateStaticDepositUtxoRefundRequest)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed
    };
    let job =
        |r: &mut spark::InitiateStaticDepositUtxoRefundRequest| r.refund_tx_signing_job.clone().unwrap();
    for (identity, request, expected) in [
        (1, good.clone(), "DEPOSIT_UNCONFIRMED"),
        (2, good.clone(), "DEPOSIT_UNKNOWN"),
        (1, with(&|r| r.on_chain_utxo = None), "FIELD_INVALID"),
        (1, with(&|r| r.refund_tx_signing_job = None), "FIELD_INVALID"),
        (1, with(&|r| r.hash_variant = 1), "FIELD_INVALID"),
        (1, with(&|r| r.on_chain_utxo.as_mut().unwrap().vout = 2), "DEPOSIT_UNKNOWN"),
        (1, with(&|r| r.on_chain_utxo.as_mut().unwrap().txid.reverse()), "DEPOSIT_UNKNOWN"),
        (1, with(&|r| r.on_chain_utxo.as_mut().unwrap().txid.clear()), "FIELD_INVALID"),
        (1, with(&|r| r.on_chain_utxo.as_mut().unwrap().network = 1), "FIELD_INVALID"),
        (
            1,
            with(&|r| {
                r.refund_tx_signing_job = Some(spark::SigningJob { raw_tx: vec![1; 1025], ..job(r) });
            }),
            "FIELD_INVALID",
        ),
        (
            1,
            with(&|r| {
                let signing_nonce_commitment = None;
                r.refund_tx_signing_job = Some(spark::SigningJob { signing_nonce_commitment, ..job(r) });
            }),
            "FIELD_INVALID",
        ),
        (
            1,
            with(&|r| {
                let signing_public_key = key(3).serialize().to_vec();
                r.refund_tx_signing_job = Some(spark::SigningJob { signing_public_key, ..job(r) });
            }),
            "RULE_VIOLATED",
        ),
    ] {
        let refused =
            bench.api.initiate_static_deposit_utxo_refund(from(identity, request)).await.unwrap_err();
        assert_eq!(reason(&refused), expected);
    }
}

#[tokio::test]
async fn s14_a_page_is_bounded_by_the_bytes_of_its_transactions() {
    let bench = bench().await;
    let mine = put_address(&bench, 40, 1, true).await;
    let block = (10, put_block(&bench, 10).await);
    // One alone is more than a page may have.
    for (n, bytes) in [(1, 1_500_000), (2, 1_500_000), (3, 1_500_000), (4, 5_000_000), (5, 100), (6, 100)] {
        put_output_of(&bench, &mine, n, Some(block.clone()), bytes).await;
    }
    let expected = [vec![1, 2], vec![3], vec![4], vec![5, 6]];
    let vouts = |utxos: Vec<spark::Utxo>| utxos.into_iter().map(|utxo| utxo.vout).collect::<Vec<u32>>();
    let (mut cursor, mut pages) = (String::new(), Vec::new());
    loop {
        let page = Some(spark::PageRequest { cursor, ..Default::default() });
        let request = spark::GetUtxosForIdentityRequest { page, ..of_identity(1) };
        let answer = bench.api.get_utxos_for_identity(from(1, request)).await.unwrap().into_inner();
        pages.push(vouts(answer.utxos.into_iter().filter_map(|listed| listed.utxo).collect()));
        let page = answer.page.unwrap();
        if !page.has_next_page {
            break;
        }
        cursor = page.next_cursor;
    }
    assert_eq!(pages, expected);
    let (mut offset, mut pages) = (0, Vec::new());
    loop {
        let request = spark::GetUtxosForAddressRequest { offset, ..of_address(&mine) };
        let answer = bench.api.get_utxos_for_address(from(1, request)).await.unwrap().into_inner();
        if answer.utxos.is_empty() {
            break;
        }
        offset = answer.offset;
        pages.push(vouts(answer.utxos));
    }
    assert_eq!(pages, expected);
}

/// Signers whose commitments are sound and whose shares are not. They keep what they were asked.
#[derive(Default)]
struct Wrong(std::sync::Mutex<Vec<StaticRefund>>);

#[tonic::async_trait]
impl Nonces for Wrong {
    async fn commit(
        &self,
        operator: OperatorIndex,
        _: CommitNoncesRequest,
    ) -> Result<CommitNoncesResponse, Refused> {
        let number = 150 + 2 * u8::try_from(operator.get()).unwrap();
        let pair = common::SigningCommitment {
            hiding: key(number).serialize().to_vec(),
            binding: key(number + 1).serialize().to_vec(),
        };
        Ok(CommitNoncesResponse { commitments: vec![pair] })
    }
}

#[tonic::async_trait]
impl Refunds for Wrong {
    async fn check(&self, _: &AddressRow, _: &StaticRefund) -> Result<(), Refused> {
        Ok(())
    }

    async fn share(
        &self,
        _: OperatorIndex,
        request: RefundStaticDepositRequest,
    ) -> Result<RefundStaticDepositResponse, Refused> {
        self.0.lock().unwrap().extend(request.refund);
        Ok(RefundStaticDepositResponse { share: vec![1; 32] })
    }
}

#[tokio::test]
async fn an_own_signer_whose_share_is_wrong_ends_a_refund_at_once() {
    let signers = Arc::new(Wrong::default());
    let bench = bench_with(signers.clone(), signers.clone()).await;
    let mine = put_address(&bench, 40, 1, true).await;
    let (height, block_hash) = (10, put_block(&bench, 10).await);
    // S14: larger than anything that is relayed, by what its id does not cover.
    let funding = bitcoin::Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![bitcoin::TxIn {
            witness: bitcoin::Witness::from_slice(&[vec![7; 500_000]]),
            ..Default::default()
        }],
        output: vec![
            bitcoin::TxOut {
                value: bitcoin::Amount::from_sat(10_000),
                script_pubkey: bitcoin::ScriptBuf::from_bytes(mine.script.clone()),
            };
            2
        ],
    };
    let spend = Spend::of(&funding, 1).unwrap();
    let txid = spend.outpoint.txid.to_byte_array().to_vec();
    let row = DepositRow {
        txid: txid.clone(),
        vout: 1,
        script: mine.script.clone(),
        amount: 10_000,
        height: Some(height),
        block_hash: Some(block_hash),
        raw_tx: bitcoin::consensus::serialize(&funding),
    };
    chain::upsert_deposit(bench.db.pool(), &row).await.unwrap();
    let spend_of = spend.outpoint;
    let (to, value) = (p2tr_script(&key(3)), bitcoin::Amount::from_sat(9_000));
    let refund = StaticRefundTx::new(spend, to, value, Network::Regtest).unwrap().build();
    let request = spark::InitiateStaticDepositUtxoRefundRequest {
        on_chain_utxo: Some(spark::Utxo {
            raw_tx: Vec::new(),
            vout: 1,
            network: spark::Network::Regtest as i32,
            txid: txid.into_iter().rev().collect(),
        }),
        refund_tx_signing_job: Some(spark::SigningJob {
            signing_public_key: mine.user_key.clone(),
            raw_tx: bitcoin::consensus::serialize(&refund),
            signing_nonce_commitment: Some(common::SigningCommitment {
                hiding: key(1).serialize().to_vec(),
                binding: key(2).serialize().to_vec(),
            }),
        }),
        user_signature: vec![0; 70],
        hash_variant: 0,
    };
    let refused = bench.api.initiate_static_deposit_utxo_refund(from(1, request));
    let refused = tokio::time::timeout(Duration::from_secs(20), refused).await.expect("it ends").unwrap_err();
    assert_eq!(reason(&refused), "INTERNAL");
    let asked = signers.0.lock().unwrap();
    let whole = |refund: &StaticRefund| Spend::of_funding(&refund.funding_tx, 1).map(|spend| spend.outpoint);
    assert!(!asked.is_empty(), "its share was asked for");
    assert!(asked.iter().all(|refund| refund.funding_tx.len() < 1000 && whole(refund) == Some(spend_of)));
}
