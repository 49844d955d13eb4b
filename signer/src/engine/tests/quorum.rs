//! A federation of engines and the coordinator's part.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use spark_proto::{peer::v1 as peer, signer::v1 as wire, spark};
use spark_rules::{
    federation::{Federation, FederationEntry, MemberEntry},
    frost::{SignatureShare, SigningPackage},
    ids::{Incarnation, KeyshareId, LeafId, OperatorIndex, TransferId},
    leaf::LeafRecord,
    operation::{Keys, Operation, parse_commitments},
    package,
    package_key::{self, PackageKey},
    point,
    vote::Kind,
};

use super::{derive, operation};
use crate::{
    ecies,
    engine::{Engine, EngineError, Reply, Request, Settings, ledger},
    feldman::Split,
    one_time,
    secret::SecretScalar,
    vault::{
        Token as _, Txn, Vault,
        memory::{MemoryStore, MemoryToken},
    },
};

/// A leaf that a wallet holds.
pub(super) struct Leaf {
    pub(super) id: LeafId,
    pub(super) key: SecretScalar,
}

pub(super) struct Member {
    pub(super) engine: Engine,
    pub(super) token: MemoryToken,
    pub(super) store: MemoryStore,
}

/// What packages are sealed to instead of identity keys.
pub(super) struct OneTime {
    pub(super) kind: Kind,
    pub(super) transfer: TransferId,
    pub(super) owner: PublicKey,
    /// One per signer.
    pub(super) keys: Vec<wire::PackageKey>,
}

pub(super) struct Quorum {
    pub(super) federation: Federation,
    entry: FederationEntry,
    pub(super) members: Vec<Member>,
    keyshares: Vec<wire::PublicKeyshare>,
    next: usize,
    pub(super) one_time: Option<OneTime>,
}

pub(super) const NOW: u64 = 1_000_000;

impl Quorum {
    /// n signers, t of which sign, unlocked, with a batch of keyshares for operator 0. Their HSMs differ: operators 0, 2
    /// and 4 have P-256 federation keys.
    pub(super) fn new(t: u16, n: u16) -> Self {
        let token = |i: u16| match i % 2 {
            0 => MemoryToken::p256(i as u8 + 1),
            _ => MemoryToken::new(i as u8 + 1),
        };
        let tokens: Vec<_> = (0..n).map(token).collect();
        let members = tokens
            .iter()
            .enumerate()
            .map(|(i, token)| MemberEntry {
                identity_public_key: hex::encode(token.identity_public_key().serialize()),
                federation_public_keys: vec![
                    hex::encode(token.federation_public_key()),
                    hex::encode(MemoryToken::spare(i as u8 + 1).federation_public_key()),
                ],
                tls_spki_sha256: vec![hex::encode([i as u8; 32])],
                peer_address: format!("peer{i}:1"),
                public_address: format!("https://peer{i}:2"),
            })
            .collect();
        let entry = FederationEntry {
            epoch: 1,
            network: "regtest".into(),
            threshold: t,
            quorum: None,
            faults: None,
            members,
        };
        let federation = entry.check().unwrap();
        let members = tokens
            .into_iter()
            .enumerate()
            .map(|(i, token)| {
                let store = MemoryStore::default();
                let incarnation = Incarnation::from_bytes([i as u8 + 1; 16]);
                drop(
                    Vault::create(std::sync::Arc::new(token.clone()), Box::new(store.clone()), incarnation)
                        .unwrap(),
                );
                let engine = open(&federation, i, &token, &store);
                Member { engine, token, store }
            })
            .collect();
        let mut this = Self { federation, entry, members, keyshares: Vec::new(), next: 0, one_time: None };
        this.unlock();
        this.generate(8);
        this
    }

    pub(super) fn size(&self) -> u16 {
        self.federation.size()
    }

    pub(super) fn threshold(&self) -> u16 {
        self.federation.threshold()
    }

    pub(super) fn call(&mut self, member: usize, request: Request) -> Result<Reply, EngineError> {
        self.members[member].engine.run(vec![request], NOW).remove(0)
    }

    /// Reads one signer's ledger.
    pub(super) fn read<T>(&mut self, member: usize, read: impl FnOnce(&Txn<'_>) -> T) -> T {
        read(&self.members[member].engine.vault.begin())
    }

    pub(super) fn leaf(&mut self, member: usize, id: &LeafId) -> LeafRecord {
        self.read(member, |txn| ledger::leaf(txn, id).unwrap().unwrap())
    }

    /// Puts a leaf's record into every ledger, as if it had come to be: for states that take long to reach.
    pub(super) fn plant(&mut self, record: &LeafRecord) {
        for member in &mut self.members {
            let mut txn = member.engine.vault.begin();
            ledger::put_leaf(&mut txn, record);
            txn.commit().unwrap();
        }
    }

    /// Stops a signer and starts it again over what its token and store hold now. It stays locked.
    pub(super) fn restart(&mut self, member: usize) {
        let Member { token, store, .. } = &self.members[member];
        let engine = open(&self.federation, member, token, store);
        self.members[member].engine = engine;
    }

    /// All members take the next epoch of the federation file: restarted, and locked.
    pub(super) fn next_epoch(&mut self) {
        self.entry.epoch += 1;
        self.federation = self.entry.check().unwrap();
        (0..self.members.len()).for_each(|member| self.restart(member));
    }

    /// A member's store and device are lost; a new signer on its spare device takes its place, empty and locked. Returns
    /// what was lost.
    pub(super) fn lose(&mut self, member: usize) -> Member {
        let (token, store) = (MemoryToken::spare(member as u8 + 1), MemoryStore::default());
        let incarnation = Incarnation::from_bytes([0x40 + member as u8; 16]);
        drop(
            Vault::create(std::sync::Arc::new(token.clone()), Box::new(store.clone()), incarnation).unwrap(),
        );
        let engine = open(&self.federation, member, &token, &store);
        std::mem::replace(&mut self.members[member], Member { engine, token, store })
    }

    /// The signer over a copy of its disk, beside the running one, over the same token.
    pub(super) fn copy(&self, member: usize) -> Engine {
        let Member { token, store, .. } = &self.members[member];
        let copy = MemoryStore::default();
        copy.restore(store.snapshot());
        open(&self.federation, member, token, &copy)
    }

    pub(super) fn question(&mut self, member: usize) -> wire::WitnessQuestion {
        match self.call(member, Request::AskWitness(wire::AskWitnessRequest {})).unwrap() {
            Reply::WitnessQuestion(question) => question,
            _ => panic!(),
        }
    }

    pub(super) fn witness(&mut self, member: usize) -> Result<(), EngineError> {
        let question = self.question(member);
        let others: Vec<_> = (0..self.members.len()).filter(|m| *m != member).collect();
        let mut answers = Vec::new();
        for other in others {
            match self.call(other, Request::AnswerWitness(question.clone()))? {
                Reply::WitnessAnswer(answer) => answers.push(answer),
                _ => panic!(),
            }
        }
        self.call(member, Request::AcceptWitness(wire::AcceptWitnessRequest { answers })).map(|_| ())
    }

    fn unlock(&mut self) {
        for member in 0..self.members.len() {
            self.witness(member).unwrap();
        }
    }

    /// One DKG batch for operator 0's pool.
    pub(super) fn generate(&mut self, count: u32) {
        let id = rand::random::<[u8; 16]>().to_vec();
        let all = 0..self.members.len();
        let start = wire::DkgStartRequest { session_id: id.clone(), initiator: 0, count };
        let round_1: Vec<_> = all
            .clone()
            .map(|m| match self.call(m, Request::DkgStart(start.clone())).unwrap() {
                Reply::DkgRound1(r) => r,
                _ => panic!(),
            })
            .collect();
        let set = wire::DkgRound1Set { session_id: id.clone(), messages: round_1 };
        let round_2: Vec<_> = all
            .clone()
            .map(|m| match self.call(m, Request::DkgRespond(set.clone())).unwrap() {
                Reply::DkgRound2(r) => r,
                _ => panic!(),
            })
            .collect();
        let set = wire::DkgRound2Set { session_id: id.clone(), messages: round_2 };
        let transcripts: Vec<_> = all
            .clone()
            .map(|m| match self.call(m, Request::DkgFinish(set.clone())).unwrap() {
                Reply::DkgTranscript(r) => r,
                _ => panic!(),
            })
            .collect();
        let set = wire::DkgTranscriptSet { session_id: id, messages: transcripts };
        for m in all {
            match self.call(m, Request::DkgConfirm(set.clone())).unwrap() {
                Reply::DkgConfirm(r) if m == 0 => self.keyshares.extend(r.keyshares),
                Reply::DkgConfirm(_) => {}
                _ => panic!(),
            }
        }
    }

    /// The next keyshare of the pool, unbound.
    pub(super) fn next_keyshare(&self) -> wire::PublicKeyshare {
        self.keyshares[self.next].clone()
    }

    /// Binds the next keyshare everywhere, checks statements and the proof of possession; returns P.
    pub(super) fn bind(&mut self, leaf: LeafId, user_key: PublicKey, identity: PublicKey) -> PublicKey {
        self.bind_as(leaf, user_key, identity, false)
    }

    /// The same for a static address; its id follows from the keyshare.
    pub(super) fn bind_static(&mut self, user_key: PublicKey, identity: PublicKey) -> PublicKey {
        let id = KeyshareId::parse(&self.next_keyshare().keyshare_id).unwrap();
        self.bind_as(LeafId::of_static_address(&id), user_key, identity, true)
    }

    fn bind_as(
        &mut self,
        leaf: LeafId,
        user_key: PublicKey,
        identity: PublicKey,
        is_static: bool,
    ) -> PublicKey {
        let keyshare = self.keyshares[self.next].clone();
        self.next += 1;
        let binding = wire::Binding {
            keyshare_id: keyshare.keyshare_id.clone(),
            leaf_id: leaf.to_string(),
            user_public_key: user_key.serialize().to_vec(),
            identity_public_key: identity.serialize().to_vec(),
            network: 2,
            coordinator: 0,
            is_static,
        };
        let mut request =
            wire::BindKeyshareRequest { binding: Some(binding), position: None, signature: Vec::new() };
        let mut replies = Vec::new();
        for m in 0..self.members.len() {
            match self.call(m, Request::BindKeyshare(request.clone())).unwrap() {
                Reply::BindKeyshare(reply) => {
                    if m == 0 {
                        request.position.clone_from(&reply.position);
                        request.signature.clone_from(&reply.signature);
                    }
                    replies.push(reply);
                }
                _ => panic!(),
            }
        }
        for (member, reply) in self.federation.members().iter().zip(&replies) {
            assert_eq!(reply.address, replies[0].address);
            package::verify_address(&reply.address, &reply.address_signature, &member.identity).unwrap();
        }
        self.prove_possession(&keyshare, identity, &replies);
        point::parse("verifying_key", &replies[0].verifying_key).unwrap()
    }

    fn prove_possession(
        &mut self,
        keyshare: &wire::PublicKeyshare,
        identity: PublicKey,
        replies: &[wire::BindKeyshareResponse],
    ) {
        let named: Vec<_> = (0..self.threshold()).map(OperatorIndex::new).collect();
        let commitments = spark::SigningCommitments {
            signing_commitments: named
                .iter()
                .map(|i| (i.identifier_hex(), replies[i.as_usize()].possession_commitment.clone().unwrap()))
                .collect(),
        };
        let group = point::parse("group_key", &keyshare.group_key).unwrap();
        let message = package::proof_of_possession(&identity, &group, &replies[0].address);
        let parsed = parse_commitments(Some(&commitments)).unwrap();
        let package =
            SigningPackage::new(group, message, parsed, None, None, self.threshold(), self.size()).unwrap();
        let mut shares = BTreeMap::new();
        for index in named {
            let request = wire::ProvePossessionRequest {
                keyshare_id: keyshare.keyshare_id.clone(),
                commitments: Some(commitments.clone()),
            };
            match self.call(index.as_usize(), Request::ProvePossession(request)).unwrap() {
                Reply::ProvePossession(r) => shares.insert(index, SignatureShare::parse(&r.share).unwrap()),
                _ => panic!(),
            };
        }
        let public = |i: OperatorIndex| point::parse("share", &keyshare.public_shares[i.as_usize()]).ok();
        package.session().unwrap().aggregate(&shares, None, public, None).unwrap();
    }

    /// `count` sets of commitments from the first t signers.
    pub(super) fn commitments(
        &mut self,
        identity: PublicKey,
        count: u32,
        leaves: &[LeafId],
    ) -> Vec<spark::SigningCommitments> {
        let mut sets: Vec<spark::SigningCommitments> = Vec::new();
        for index in (0..self.threshold()).map(OperatorIndex::new) {
            let request = wire::CommitNoncesRequest {
                count,
                identity: identity.serialize().to_vec(),
                leaf_ids: leaves.iter().map(ToString::to_string).collect(),
            };
            match self.call(index.as_usize(), Request::CommitNonces(request)).unwrap() {
                Reply::CommitNonces(r) => {
                    sets.resize_with(r.commitments.len(), Default::default);
                    for (set, pair) in sets.iter_mut().zip(r.commitments) {
                        set.signing_commitments.insert(index.identifier_hex(), pair);
                    }
                }
                _ => panic!(),
            }
        }
        sets
    }

    /// Seals one message per operator.
    pub(super) fn seal(
        &self,
        split: &Split,
        message: impl Fn(usize, (spark::SecretShare, BTreeMap<String, Vec<u8>>)) -> Vec<u8>,
    ) -> BTreeMap<String, Vec<u8>> {
        let proofs: Vec<Vec<u8>> = split.proofs.iter().map(|p| p.serialize().to_vec()).collect();
        let public: BTreeMap<_, _> = self
            .federation
            .indices()
            .zip(&split.shares)
            .map(|(i, share)| (i.identifier_hex(), share.public_key().serialize().to_vec()))
            .collect();
        self.federation
            .members()
            .iter()
            .zip(&split.shares)
            .map(|(member, share)| {
                let share =
                    spark::SecretShare { secret_share: share.to_bytes().to_vec(), proofs: proofs.clone() };
                let plaintext = message(member.index.as_usize(), (share, public.clone()));
                let sealed = match &self.one_time {
                    Some(one_time) => self.seal_one_time(one_time, member.index, &plaintext),
                    None => ecies::seal(&member.identity, &plaintext, &mut rand::rngs::OsRng).unwrap(),
                };
                (member.index.identifier_hex(), sealed)
            })
            .collect()
    }

    fn seal_one_time(&self, to: &OneTime, operator: OperatorIndex, plaintext: &[u8]) -> Vec<u8> {
        let statement = &to.keys[operator.as_usize()];
        let key = PackageKey::verify(statement, &self.federation, operator, NOW).unwrap();
        let binding = package_key::binding(&self.federation, operator, to.kind, &to.transfer, &to.owner);
        one_time::seal(&key.id, &key.key, &binding, plaintext, &mut rand::rngs::OsRng).unwrap()
    }

    pub(super) fn prepare(&mut self, member: usize, operation: &peer::Operation) -> wire::PrepareResponse {
        let request = wire::PrepareRequest { operation: Some(operation.clone()) };
        match self.call(member, Request::Prepare(request)).unwrap() {
            Reply::Prepare(reply) => reply,
            _ => panic!(),
        }
    }

    /// Prepares everywhere; the certificate, or the first reason of a NO.
    pub(super) fn certify(
        &mut self,
        operation: &peer::Operation,
    ) -> Result<(peer::Certificate, Vec<wire::OpenedLeaf>), String> {
        let mut votes = Vec::new();
        let mut opened = Vec::new();
        for member in 0..self.members.len() {
            let reply = self.prepare(member, operation);
            let vote = reply.vote.unwrap();
            if vote.choice() != peer::Choice::Yes {
                return Err(vote.reason);
            }
            votes.push(vote);
            opened = reply.opened;
        }
        Ok((peer::Certificate { votes }, opened))
    }

    /// Releases and aggregates stage by stage.
    pub(super) fn proof(
        &mut self,
        request: &peer::Operation,
        operation: &Operation,
        certificate: &peer::Certificate,
        opened: &[wire::OpenedLeaf],
    ) -> peer::ProofOfCommit {
        let keys = Keys::derive(operation, opened).unwrap();
        let mut signatures: Vec<peer::FinalSignature> = Vec::new();
        let mut commits = Vec::new();
        for stage in 0..operation.stages() {
            let mut shares: BTreeMap<u32, BTreeMap<OperatorIndex, SignatureShare>> = BTreeMap::new();
            for index in operation.named.clone() {
                let release = wire::ReleaseRequest {
                    operation_id: request.operation_id.clone(),
                    attempt: request.attempt,
                    certificate: Some(certificate.clone()),
                    stage: stage.into(),
                    signatures: signatures.clone(),
                    commits: commits.clone(),
                };
                match self.call(index.as_usize(), Request::Release(release)).unwrap() {
                    Reply::Release(reply) => {
                        commits.extend(reply.commit);
                        for share in reply.shares {
                            let parsed = SignatureShare::parse(&share.share).unwrap();
                            shares.entry(share.job).or_default().insert(index, parsed);
                        }
                    }
                    _ => panic!(),
                }
            }
            for (job, found) in operation.jobs_of_stage(stage) {
                let public = operation.signing_shares(&found.leaf, &keys).unwrap();
                let signature = found.aggregate(&shares[&(job as u32)], public).unwrap();
                signatures.push(peer::FinalSignature { job: job as u32, signature: signature.to_vec() });
            }
        }
        peer::ProofOfCommit { certificate: Some(certificate.clone()), signatures, commits }
    }

    pub(super) fn apply(
        &mut self,
        member: usize,
        request: &peer::Operation,
        proof: &peer::ProofOfCommit,
    ) -> Result<wire::ApplyResponse, EngineError> {
        let apply = wire::ApplyRequest {
            operation_id: request.operation_id.clone(),
            attempt: request.attempt,
            proof: Some(proof.clone()),
        };
        match self.call(member, Request::Apply(apply))? {
            Reply::Apply(reply) => Ok(reply),
            _ => panic!(),
        }
    }

    /// A whole operation: prepare, certify, release, apply everywhere.
    pub(super) fn run(
        &mut self,
        request: peer::operation::Request,
    ) -> Result<Vec<wire::ApplyResponse>, String> {
        let request = operation(self, request);
        let (certificate, opened) = self.certify(&request)?;
        let derived = derive(self, &request);
        let proof = self.proof(&request, &derived, &certificate, &opened);
        Ok((0..self.members.len()).map(|m| self.apply(m, &request, &proof).unwrap()).collect())
    }
}

fn open(federation: &Federation, index: usize, token: &MemoryToken, store: &MemoryStore) -> Engine {
    let vault = Vault::open(std::sync::Arc::new(token.clone()), Box::new(store.clone())).unwrap();
    Engine::new(
        vault,
        Settings {
            federation: federation.clone(),
            me: OperatorIndex::new(index as u16),
            delete_claim: "none".into(),
            approved_repairs: BTreeMap::new(),
        },
    )
}
