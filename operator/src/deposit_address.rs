//! Deposit addresses: a keyshare is bound once to (leaf id, user key, identity, address) by every signer before
//! any of them signs the address or proves that it holds the key (D20).

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::secp256k1::PublicKey;
use futures::future::{join_all, try_join_all};
use spark_proto::{signer::v1 as wire, spark};
use spark_rules::{
    address::{Network, deposit_address},
    federation::Federation,
    frost::{AggregateError, Commitment, PackageError, SignatureShare, SigningPackage},
    ids::{KeyshareId, LeafId, OperatorIndex},
    package::{proof_of_possession, verify_address},
    point::{self, PointError},
    tx::p2tr_script,
};
use tonic::Status;

use crate::{
    call::CallError,
    db::{
        Db, DbError,
        address::{self, AddressRow, RequestRow},
        keyshare::{self, KeyshareRow},
        operation::index_column,
        static_deposit::{self, MOST_STATIC, Reserved, StaticRow},
    },
    op::records,
    peer::Signers,
};

/// Most unused addresses of one identity: each holds a keyshare for ever.
pub const MOST_UNUSED: i64 = 256;

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The pool is empty; it is being filled.
    #[error("no unused keyshare")]
    PoolEmpty,
    /// The identity holds as many unused addresses as it may.
    #[error("at most {MOST_UNUSED} unused deposit addresses per identity")]
    TooManyUnused,
    /// The leaf id belongs to another request.
    #[error("leaf id is taken")]
    LeafIdTaken,
    /// The identity has as many static addresses as it may.
    #[error("at most {MOST_STATIC} static deposit addresses per identity")]
    TooManyStatic,
    /// The identity's static address was made with another key.
    #[error("the static deposit address has another signing key")]
    OtherKey,
    /// There is no static address to rotate.
    #[error("no static deposit address")]
    NoStatic,
    /// Not the federation's network.
    #[error("another network")]
    Network,
    /// A signer's answer does not fit.
    #[error("operator {operator}: {what}")]
    Answer {
        /// Who.
        operator: u16,
        /// What is wrong.
        what: &'static str,
    },
    /// A point is malformed.
    #[error(transparent)]
    Point(#[from] PointError),
    /// The proof of possession cannot be put together.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A share of it is invalid.
    #[error(transparent)]
    Aggregate(#[from] AggregateError),
    /// Signer or peer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Database.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<AddressError> for Status {
    fn from(error: AddressError) -> Self {
        let text = error.to_string();
        match error {
            AddressError::PoolEmpty | AddressError::TooManyUnused | AddressError::TooManyStatic => {
                Self::resource_exhausted(text)
            }
            AddressError::LeafIdTaken => Self::already_exists(text),
            AddressError::OtherKey | AddressError::NoStatic => Self::failed_precondition(text),
            AddressError::Network | AddressError::Point(_) => Self::invalid_argument(text),
            AddressError::Call(error) => crate::peer::call_status(error),
            AddressError::Db(_) => {
                tracing::error!(%text, "database");
                Self::unavailable("database")
            }
            AddressError::Answer { .. } | AddressError::Package(_) | AddressError::Aggregate(_) => {
                tracing::error!(%text, "deposit address");
                Self::unavailable("operators disagree about the address")
            }
        }
    }
}

/// Issues and binds addresses; clones share everything.
#[derive(Debug, Clone)]
pub struct DepositAddresses {
    db: Db,
    federation: Arc<Federation>,
    signers: Signers,
}

fn reserved(reserved: Reserved) -> Result<StaticRow, AddressError> {
    match reserved {
        Reserved::Row(row) => Ok(row),
        Reserved::PoolEmpty => Err(AddressError::PoolEmpty),
        Reserved::TooMany => Err(AddressError::TooManyStatic),
    }
}

struct Terms {
    key: KeyshareRow,
    group_key: PublicKey,
    verifying_key: PublicKey,
    address: String,
    network: Network,
    identity: PublicKey,
}

impl DepositAddresses {
    /// Over one database, one federation and the members' signers.
    pub const fn new(db: Db, federation: Arc<Federation>, signers: Signers) -> Self {
        Self { db, federation, signers }
    }

    /// A complete address for a leaf id (state `READY` or `USED`), the same for the same request. Each call goes on from where the last one stopped.
    pub async fn issue(
        &self,
        leaf_id: LeafId,
        identity: &PublicKey,
        user_key: &PublicKey,
        network: Network,
    ) -> Result<AddressRow, AddressError> {
        if network.bitcoin() != self.federation.network() {
            return Err(AddressError::Network);
        }
        let own = self.signers.own_index();
        let (identity_bytes, user_bytes) = (identity.serialize(), user_key.serialize());
        if address::request(self.db.pool(), leaf_id.uuid()).await?.is_none()
            && address::unused_count(self.db.pool(), &identity_bytes).await? >= MOST_UNUSED
        {
            return Err(AddressError::TooManyUnused);
        }
        let request =
            address::reserve(&self.db, index_column(own), leaf_id.uuid(), &identity_bytes, &user_bytes)
                .await?
                .ok_or(AddressError::PoolEmpty)?;
        if request.identity != identity_bytes || request.user_key != user_bytes {
            return Err(AddressError::LeafIdTaken);
        }
        if let Some(row) = address::by_leaf(self.db.pool(), leaf_id.uuid()).await?
            && row.possession_signature.is_some()
        {
            return Ok(row);
        }
        let binding = wire::Binding {
            keyshare_id: request.keyshare_id.as_bytes().to_vec(),
            leaf_id: leaf_id.to_string(),
            user_public_key: user_bytes.to_vec(),
            identity_public_key: identity_bytes.to_vec(),
            network: network.to_wire().into(),
            coordinator: own.get().into(),
            is_static: false,
        };
        self.bind(&binding).await
    }

    /// The identity's static address, complete; the same until it is rotated.
    pub async fn issue_static(
        &self,
        identity: &PublicKey,
        user_key: &PublicKey,
        network: Network,
    ) -> Result<AddressRow, AddressError> {
        if network.bitcoin() != self.federation.network() {
            return Err(AddressError::Network);
        }
        let (identity_bytes, user_bytes) = (identity.serialize(), user_key.serialize());
        let own = index_column(self.signers.own_index());
        let row = static_deposit::reserve(&self.db, own, &identity_bytes, &user_bytes).await?;
        let row = reserved(row)?;
        if row.user_key != user_bytes {
            return Err(AddressError::OtherKey);
        }
        self.complete_static(&row, identity, network).await
    }

    /// Another static address in the place of the present one: (new, former). The former one stays watched, and what it
    /// gets can be taken back.
    pub async fn rotate_static(
        &self,
        identity: &PublicKey,
        user_key: &PublicKey,
        network: Network,
    ) -> Result<(AddressRow, AddressRow), AddressError> {
        if network.bitcoin() != self.federation.network() {
            return Err(AddressError::Network);
        }
        let (identity_bytes, user_bytes) = (identity.serialize(), user_key.serialize());
        let own = index_column(self.signers.own_index());
        let former = static_deposit::current(self.db.pool(), &identity_bytes).await?;
        let former = former.ok_or(AddressError::NoStatic)?;
        // One that was never shown to its owner is completed first: it may be the answer to a lost call.
        let archived = self.complete_static(&former, identity, network).await?;
        let next =
            static_deposit::rotate(&self.db, own, &identity_bytes, former.generation, &user_bytes).await?;
        let next = reserved(next)?;
        if next.user_key != user_bytes {
            return Err(AddressError::OtherKey);
        }
        Ok((self.complete_static(&next, identity, network).await?, archived))
    }

    async fn complete_static(
        &self,
        row: &StaticRow,
        identity: &PublicKey,
        network: Network,
    ) -> Result<AddressRow, AddressError> {
        if let Some(row) = address::by_keyshare(self.db.pool(), row.keyshare_id).await?
            && row.possession_signature.is_some()
        {
            return Ok(row);
        }
        let keyshare = KeyshareId::from(row.keyshare_id);
        let binding = wire::Binding {
            keyshare_id: keyshare.as_bytes().to_vec(),
            leaf_id: LeafId::of_static_address(&keyshare).to_string(),
            user_public_key: row.user_key.clone(),
            identity_public_key: identity.serialize().to_vec(),
            network: network.to_wire().into(),
            coordinator: self.signers.own_index().get().into(),
            is_static: true,
        };
        self.bind(&binding).await
    }

    /// Binds everywhere, collects every operator's statement, and proves that the operators hold the key.
    async fn bind(&self, binding: &wire::Binding) -> Result<AddressRow, AddressError> {
        let own = self.signers.own_index();
        let terms = self.terms(binding).await?;
        let first = wire::BindKeyshareRequest {
            binding: Some(binding.clone()),
            position: None,
            signature: Vec::new(),
        };
        let ours = self.signers.own().bind_keyshare(first).await?;
        self.check(own, binding, &terms, &ours)?;
        self.store(binding, &terms, "BINDING").await?;
        let next = wire::BindKeyshareRequest {
            binding: Some(binding.clone()),
            position: ours.position.clone(),
            signature: ours.signature.clone(),
        };
        let peers = self.signers.members().into_iter().filter(|i| *i != own);
        let theirs = try_join_all(peers.map(|index| {
            let next = next.clone();
            async move { self.signers.bind_keyshare(index, next).await.map(|answer| (index, answer)) }
        }))
        .await?;
        let mut answers = BTreeMap::from([(own, ours)]);
        for (index, answer) in theirs {
            self.check(index, binding, &terms, &answer)?;
            answers.insert(index, answer);
        }
        let possession = self.prove(&terms.key.keyshare_id, &terms, &answers).await?;
        let signatures =
            answers.iter().map(|(index, a)| (index.identifier_hex(), a.address_signature.clone())).collect();
        address::complete(self.db.pool(), terms.key.keyshare_id, &signatures, &possession).await?;
        Ok(address::by_keyshare(self.db.pool(), terms.key.keyshare_id)
            .await?
            .ok_or(DbError::Missing("deposit_address"))?)
    }

    /// A coordinator asks our signer to bind.
    pub(crate) async fn on_bind(
        &self,
        request: wire::BindKeyshareRequest,
    ) -> Result<wire::BindKeyshareResponse, AddressError> {
        let own = self.signers.own_index();
        let answer = |what| AddressError::Answer { operator: own.get(), what };
        let binding = request.binding.clone().ok_or_else(|| answer("no binding"))?;
        let terms = self.terms(&binding).await?;
        let response = self.signers.own().bind_keyshare(request).await?;
        self.check(own, &binding, &terms, &response)?;
        keyshare::mark_bound(self.db.pool(), terms.key.keyshare_id).await?;
        self.store(&binding, &terms, "BOUND").await?;
        Ok(response)
    }

    /// Takes over a binding that the own signer's journal has and these tables lost. An address of one's own is
    /// completed when its wallet asks for it again.
    pub(crate) async fn adopt(&self, binding: &wire::Binding) -> Result<(), AddressError> {
        let terms = self.terms(binding).await?;
        keyshare::mark_bound(self.db.pool(), terms.key.keyshare_id).await?;
        let own = binding.coordinator == u32::from(self.signers.own_index().get());
        if own && binding.is_static {
            let (identity, user_key) = (&binding.identity_public_key, &binding.user_public_key);
            static_deposit::restore(&self.db, identity, terms.key.keyshare_id, user_key).await?;
        } else if own {
            let leaf = self.leaf_id(binding)?;
            let row = RequestRow {
                leaf_id: leaf.uuid(),
                keyshare_id: terms.key.keyshare_id,
                identity: binding.identity_public_key.clone(),
                user_key: binding.user_public_key.clone(),
            };
            address::restore_request(self.db.pool(), &row).await?;
        }
        self.store(binding, &terms, if own { "BINDING" } else { "BOUND" }).await
    }

    fn leaf_id(&self, binding: &wire::Binding) -> Result<LeafId, AddressError> {
        LeafId::parse(&binding.leaf_id)
            .map_err(|_| AddressError::Answer { operator: self.signers.own_index().get(), what: "leaf id" })
    }

    /// What the address must be by one's own records.
    async fn terms(&self, binding: &wire::Binding) -> Result<Terms, AddressError> {
        let coordinator = u16::try_from(binding.coordinator).unwrap_or(u16::MAX);
        let answer = |what| AddressError::Answer { operator: coordinator, what };
        let id = KeyshareId::parse(&binding.keyshare_id).map_err(|_| answer("keyshare id"))?;
        let key = keyshare::get(self.db.pool(), id.uuid())
            .await?
            .ok_or_else(|| answer("keyshare is unknown here"))?;
        if u16::try_from(key.owner_index) != Ok(coordinator) {
            return Err(answer("keyshare is not of the coordinator's pool"));
        }
        let network = Network::from_wire(binding.network).map_err(|_| AddressError::Network)?;
        if network.bitcoin() != self.federation.network() {
            return Err(AddressError::Network);
        }
        let group_key = point::parse("group key", &key.group_key)?;
        let user_key = point::parse("signing_public_key", &binding.user_public_key)?;
        let identity = point::parse("identity_public_key", &binding.identity_public_key)?;
        let verifying_key = group_key.combine(&user_key).map_err(|_| PointError("verifying key"))?;
        let address = deposit_address(&verifying_key, network);
        Ok(Terms { key, group_key, verifying_key, address, network, identity })
    }

    fn check(
        &self,
        operator: OperatorIndex,
        binding: &wire::Binding,
        terms: &Terms,
        answer: &wire::BindKeyshareResponse,
    ) -> Result<(), AddressError> {
        let wrong = |what| AddressError::Answer { operator: operator.get(), what };
        let member = self.federation.member(operator).ok_or_else(|| wrong("not a member"))?;
        if answer.binding.as_ref() != Some(binding) {
            return Err(wrong("bound something else"));
        }
        if answer.verifying_key != terms.verifying_key.serialize() || answer.address != terms.address {
            return Err(wrong("computed another address"));
        }
        verify_address(&terms.address, &answer.address_signature, &member.identity)
            .map_err(|_| wrong("address signature is invalid"))
    }

    async fn store(&self, binding: &wire::Binding, terms: &Terms, state: &str) -> Result<(), AddressError> {
        let leaf = self.leaf_id(binding)?;
        let row = AddressRow {
            keyshare_id: terms.key.keyshare_id,
            leaf_id: leaf.uuid(),
            address: terms.address.clone(),
            script: p2tr_script(&terms.verifying_key).to_bytes(),
            network: records::network_column(terms.network),
            identity: binding.identity_public_key.clone(),
            user_key: binding.user_public_key.clone(),
            verifying_key: terms.verifying_key.serialize().to_vec(),
            coordinator: i16::try_from(binding.coordinator).unwrap_or(i16::MAX),
            address_signatures: "{}".to_owned(),
            possession_signature: None,
            state: state.to_owned(),
            created_micros: 0,
            is_static: binding.is_static,
        };
        Ok(address::insert(self.db.pool(), &row).await?)
    }

    /// The operators' signature that shows that t of them hold the key: our own signer and the first others.
    async fn prove(
        &self,
        keyshare_id: &uuid::Uuid,
        terms: &Terms,
        answers: &BTreeMap<OperatorIndex, wire::BindKeyshareResponse>,
    ) -> Result<[u8; 64], AddressError> {
        let own = self.signers.own_index();
        let threshold = usize::from(self.federation.threshold());
        let others = answers.keys().copied().filter(|i| *i != own);
        let chosen: Vec<OperatorIndex> = std::iter::once(own).chain(others).take(threshold).collect();
        let mut commitments = BTreeMap::new();
        let mut wire_commitments = BTreeMap::new();
        for index in &chosen {
            let pair = answers.get(index).and_then(|a| a.possession_commitment.clone());
            let pair = pair
                .ok_or(AddressError::Answer { operator: index.get(), what: "no commitment for the proof" })?;
            commitments.insert(*index, Commitment::parse(&pair.hiding, &pair.binding)?);
            wire_commitments.insert(index.identifier_hex(), pair);
        }
        let message = proof_of_possession(&terms.identity, &terms.group_key, &terms.address);
        let (t, n) = (self.federation.threshold(), self.federation.size());
        let session =
            SigningPackage::new(terms.group_key, message, commitments, None, None, t, n)?.session()?;
        let request = wire::ProvePossessionRequest {
            keyshare_id: keyshare_id.as_bytes().to_vec(),
            commitments: Some(spark::SigningCommitments { signing_commitments: wire_commitments }),
        };
        let replies = join_all(chosen.iter().map(|index| {
            let request = request.clone();
            async move { (*index, self.signers.prove_possession(*index, request).await) }
        }))
        .await;
        let mut shares = BTreeMap::new();
        for (index, reply) in replies {
            let share = SignatureShare::parse(&reply?.share)
                .map_err(|_| AddressError::Answer { operator: index.get(), what: "share is no scalar" })?;
            shares.insert(index, share);
        }
        let public = records::public_shares(&terms.key)?;
        Ok(session.aggregate(&shares, None, |index| public.get(index.as_usize()).copied(), None)?)
    }
}
