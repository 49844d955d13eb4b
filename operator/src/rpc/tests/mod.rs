//! Handlers over a real database, with an engine and signers that only take note.

mod coop_exit;
mod htlc;
mod queries;
mod settings;
mod static_deposits;
mod writes;

use std::sync::{Arc, Mutex};

use secp256k1::PublicKey;
use spark_proto::{
    peer::v1::operation::Request as Operation,
    signer::v1::{
        CommitNoncesRequest, CommitNoncesResponse, RefundStaticDepositRequest, RefundStaticDepositResponse,
        StaticRefund,
    },
    spark,
};
use spark_rules::{
    address::Network,
    ids::{LeafId, OperatorIndex},
};
use tonic::Request;

use super::{Api, DepositAddresses, Nonces, Operations, Parts, Refunds, testing};
use crate::{
    convert::Converter,
    db::{Db, address::AddressRow, htlc::HtlcRow, testing::database},
    events::Events,
    status::{Reason, Refused},
};

/// Takes note of operations; succeeds unless told otherwise.
#[derive(Default)]
struct Engine {
    seen: Mutex<Vec<Operation>>,
    provided: Mutex<Vec<[u8; 32]>>,
    refuse: Mutex<Option<Refused>>,
}

#[tonic::async_trait]
impl Operations for Engine {
    async fn run(&self, request: Operation, _: &PublicKey) -> Result<(), Refused> {
        self.seen.lock().unwrap().push(request);
        self.refuse.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    async fn provide(&self, _: &HtlcRow, preimage: &[u8; 32]) -> Result<(), Refused> {
        self.provided.lock().unwrap().push(*preimage);
        self.refuse.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

/// Signers that are not there.
struct Unreachable;

#[tonic::async_trait]
impl Nonces for Unreachable {
    async fn commit(
        &self,
        _: OperatorIndex,
        _: CommitNoncesRequest,
    ) -> Result<CommitNoncesResponse, Refused> {
        Err(Refused::new(Reason::SignerUnreachable, "not there"))
    }
}

#[tonic::async_trait]
impl DepositAddresses for Unreachable {
    async fn generate(
        &self,
        leaf_id: LeafId,
        _: &PublicKey,
        _: &PublicKey,
        _: Network,
    ) -> Result<AddressRow, Refused> {
        Ok(AddressRow {
            keyshare_id: leaf_id.uuid(),
            leaf_id: leaf_id.uuid(),
            address: "bcrt1p".into(),
            script: Vec::new(),
            network: "regtest".into(),
            identity: Vec::new(),
            user_key: Vec::new(),
            verifying_key: testing::key(5).serialize().to_vec(),
            coordinator: 0,
            address_signatures: format!("{{\"{:064x}\":\"3006\"}}", 1),
            possession_signature: Some(vec![7; 64]),
            state: "READY".into(),
            created_micros: 0,
            is_static: false,
        })
    }

    async fn generate_static(
        &self,
        user_key: &PublicKey,
        identity: &PublicKey,
        network: Network,
    ) -> Result<AddressRow, Refused> {
        let row = self.generate(testing::leaf_id(1), user_key, identity, network).await?;
        Ok(AddressRow { is_static: true, ..row })
    }

    async fn rotate_static(
        &self,
        user_key: &PublicKey,
        identity: &PublicKey,
        network: Network,
    ) -> Result<(AddressRow, AddressRow), Refused> {
        let row = self.generate_static(user_key, identity, network).await?;
        Ok((row.clone(), row))
    }
}

#[tonic::async_trait]
impl Refunds for Unreachable {
    async fn check(&self, _: &AddressRow, _: &StaticRefund) -> Result<(), Refused> {
        Err(Refused::new(Reason::DepositUnconfirmed, "not yet"))
    }

    async fn share(
        &self,
        _: OperatorIndex,
        _: RefundStaticDepositRequest,
    ) -> Result<RefundStaticDepositResponse, Refused> {
        Err(Refused::new(Reason::SignerUnreachable, "not there"))
    }
}

struct Bench {
    api: Api,
    db: Db,
    engine: Arc<Engine>,
}

async fn bench() -> Bench {
    bench_of(Arc::new(Unreachable), Arc::new(Unreachable), false).await
}

/// Where identities are open unless closed.
async fn open_bench() -> Bench {
    bench_of(Arc::new(Unreachable), Arc::new(Unreachable), true).await
}

/// With signers that answer something.
async fn bench_with(nonces: Arc<dyn Nonces>, refunds: Arc<dyn Refunds>) -> Bench {
    bench_of(nonces, refunds, false).await
}

async fn bench_of(nonces: Arc<dyn Nonces>, refunds: Arc<dyn Refunds>, open_reads: bool) -> Bench {
    let db = database().await;
    let federation = Arc::new(testing::federation(3, 2));
    let engine = Arc::new(Engine::default());
    let events =
        Events::start(db.clone(), Converter::new(&federation), spark::Network::Regtest).await.unwrap();
    let api = Api::new(Parts {
        federation,
        own: OperatorIndex::new(0),
        network: Network::Regtest,
        db: db.clone(),
        events,
        operations: engine.clone(),
        nonces,
        addresses: Arc::new(Unreachable),
        refunds,
        htlc: true,
        coop_exit: true,
        open_reads,
    });
    Bench { api, db, engine }
}

/// A request as the public edge hands it on for the session of an identity.
fn from<T>(identity: u8, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(testing::session(identity));
    request
}
