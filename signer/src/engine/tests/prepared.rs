//! A send that every signer has voted YES for, and the calls that may follow.

use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
};

use super::{Wallet, deposit, derive, operation, quorum::Leaf, quorum::Quorum, send_request};
use crate::engine::{EngineError, Reply, Request};

pub(super) struct Prepared {
    pub(super) quorum: Quorum,
    pub(super) alice: Wallet,
    pub(super) bob: Wallet,
    pub(super) leaf: Leaf,
    pub(super) request: peer::Operation,
    pub(super) certificate: peer::Certificate,
    pub(super) opened: Vec<wire::OpenedLeaf>,
}

impl Prepared {
    /// Alice sends a fresh leaf to Bob; 2 of 3, named are members 0 and 1.
    pub(super) fn new() -> Self {
        let mut quorum = Quorum::new(2, 3);
        let (alice, bob) = (Wallet::new(), Wallet::new());
        let leaf = deposit(&mut quorum, &alice, 50_000);
        let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
        let request = operation(&mut quorum, Kind::Send(send));
        let (certificate, opened) = quorum.certify(&request).unwrap();
        Self { quorum, alice, bob, leaf, request, certificate, opened }
    }

    pub(super) fn release(
        &mut self,
        member: usize,
        stage: u32,
        certificate: Option<peer::Certificate>,
        signatures: Vec<peer::FinalSignature>,
    ) -> Result<wire::ReleaseResponse, EngineError> {
        let request = wire::ReleaseRequest {
            operation_id: self.request.operation_id.clone(),
            attempt: self.request.attempt,
            certificate,
            stage,
            signatures,
            commits: Vec::new(),
        };
        match self.quorum.call(member, Request::Release(request))? {
            Reply::Release(reply) => Ok(reply),
            _ => panic!(),
        }
    }

    pub(super) fn sign_abort(&mut self, member: usize) -> Result<peer::Vote, EngineError> {
        let request = wire::SignAbortRequest {
            operation_id: self.request.operation_id.clone(),
            attempt: self.request.attempt,
            aborts: Vec::new(),
        };
        match self.quorum.call(member, Request::SignAbort(request))? {
            Reply::SignAbort(reply) => Ok(reply.vote.unwrap()),
            _ => panic!(),
        }
    }

    pub(super) fn abort(&mut self, member: usize, votes: Vec<peer::Vote>) -> Result<(), EngineError> {
        let request = wire::AbortRequest {
            operation_id: self.request.operation_id.clone(),
            attempt: self.request.attempt,
            proof: Some(peer::ProofOfAbort { votes }),
        };
        self.quorum.call(member, Request::Abort(request)).map(drop)
    }

    pub(super) fn proof(&mut self) -> peer::ProofOfCommit {
        let derived = derive(&mut self.quorum, &self.request);
        self.quorum.proof(&self.request, &derived, &self.certificate, &self.opened)
    }

    pub(super) fn apply(&mut self, member: usize, proof: &peer::ProofOfCommit) -> Result<(), EngineError> {
        self.quorum.apply(member, &self.request, proof).map(drop)
    }

    /// Secrets that belong to the operation: staged tweaks and sealed shares.
    pub(super) fn staged(&self, member: usize) -> usize {
        let owner: [u8; 16] = self.request.operation_id.clone().try_into().unwrap();
        self.quorum.members[member].engine.vault().secrets_of(&owner).unwrap().len()
    }
}
