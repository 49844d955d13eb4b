//! Refresh (D12): every share of a keyshare changes by a random polynomial whose constant term is zero, so that the key
//! stays and shares of before do not combine with shares of after (Herzberg and others 1995).
//!
//! No client asks for it and no transaction is signed: t deciders commit in the place of signature shares (D1).

use std::collections::{BTreeMap, BTreeSet};

use spark_proto::peer::v1::{self as wire, operation::Request};

use super::{Context, Operation, OperationError, Part, Records, Terms, TweakedKey};
use crate::{
    federation::Federation,
    feldman::ZeroProofs,
    ids::{LeafId, OperationId, OperatorIndex},
    leaf::{LeafRecord, LeafStatus},
    transcript::Transcript,
    tx::Plan,
    vote::{Kind, Position},
};

/// Most leaves of one refresh.
pub const MAX_REFRESH: usize = 64;

const DEAL: &str = "refresh-deal/v1";

/// What all signers dealt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// The session of one-time keys to which the deals are encrypted.
    pub session_id: [u8; 16],
    /// By operator index.
    pub deals: Vec<Deal>,
    leaves: Vec<LeafId>,
}

/// One signer's part, signed by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deal {
    /// Who.
    pub dealer: OperatorIndex,
    /// Digest of all openings that it answered.
    pub openings: [u8; 32],
    /// Leaf by leaf.
    pub proofs: Vec<ZeroProofs>,
    /// By operator index.
    pub ciphertexts: Vec<Vec<u8>>,
    /// Hash of what it signed.
    pub payload: [u8; 32],
    position: Position,
    signature: Vec<u8>,
}

/// What a dealer signs, in domain `refresh-deal/v1`.
pub fn deal_payload(m: &wire::RefreshDeal) -> [u8; 32] {
    let mut t = Transcript::new("spark/refresh/deal");
    t.bytes(&m.session_id).u64(m.dealer.into()).bytes(&m.openings).u64(m.commitments.len() as u64);
    for point in &m.commitments {
        t.bytes(point);
    }
    t.u64(m.ciphertexts.len() as u64);
    for (recipient, ciphertext) in &m.ciphertexts {
        t.u64((*recipient).into()).bytes(ciphertext);
    }
    t.finish()
}

impl Deal {
    /// The domain of a dealer's signature.
    pub const DOMAIN: &'static str = DEAL;

    /// Of this session, by this dealer, and complete. Whether it signed this is asked before a vote
    /// ([`Refresh::verify`]): an attempt of an earlier federation file must still be ended.
    fn parse(
        deal: &wire::RefreshDeal,
        session_id: &[u8; 16],
        dealer: OperatorIndex,
        leaves: usize,
        federation: &Federation,
    ) -> Result<Self, OperationError> {
        let bad = OperationError::Deal(dealer.get());
        let position = Position::parse(deal.position.as_ref()).map_err(|_| bad.clone())?;
        let payload = deal_payload(deal);
        if deal.session_id != session_id
            || deal.dealer != u32::from(dealer.get())
            || position.signer != dealer
        {
            return Err(bad);
        }
        // t - 1 points for each leaf: neither another degree nor a constant term can be committed to.
        let terms = usize::from(federation.threshold().saturating_sub(1));
        if terms == 0 || Some(deal.commitments.len()) != leaves.checked_mul(terms) {
            return Err(bad);
        }
        let proofs = deal.commitments.chunks(terms).map(|c| ZeroProofs::parse(c, federation.threshold()));
        let proofs = proofs.collect::<Result<_, _>>().map_err(|_| bad.clone())?;
        let recipients = federation.indices().map(|i| u32::from(i.get()));
        if !recipients.eq(deal.ciphertexts.keys().copied()) {
            return Err(bad);
        }
        Ok(Self {
            dealer,
            openings: deal.openings.as_slice().try_into().map_err(|_| bad)?,
            proofs,
            ciphertexts: deal.ciphertexts.values().cloned().collect(),
            payload,
            position,
            signature: deal.signature.clone(),
        })
    }
}

impl Refresh {
    /// What openings are about: these leaves with their keyshares, at the versions and after the proofs of one's own
    /// records.
    pub fn subject<'a>(records: impl Iterator<Item = &'a LeafRecord>) -> [u8; 32] {
        let mut t = Transcript::new("spark/refresh/subject");
        for r in records {
            t.bytes(r.leaf_id.as_bytes()).bytes(r.keyshare_id.as_bytes()).u64(r.version).bytes(&r.last_proof);
        }
        t.finish()
    }

    /// Ids of leaves from the wire: ascending, at least one and at most [`MAX_REFRESH`].
    pub fn leaves(texts: &[String]) -> Result<Vec<LeafId>, OperationError> {
        if texts.len() > MAX_REFRESH {
            return Err(OperationError::TooMany { what: "leaves of a refresh", most: MAX_REFRESH });
        }
        let leaves = texts.iter().map(|text| LeafId::parse(text)).collect::<Result<Vec<_>, _>>();
        let leaves = leaves.map_err(|_| OperationError::Malformed("leaf_ids"))?;
        if leaves.is_empty() || !leaves.is_sorted_by(|a, b| a < b) {
            return Err(OperationError::Malformed("leaf_ids"));
        }
        Ok(leaves)
    }

    /// Every deal is signed by its dealer.
    pub fn verify(&self, federation: &Federation) -> Result<(), OperationError> {
        for deal in &self.deals {
            let signed = deal.position.verify(federation, DEAL, &deal.payload, &deal.signature);
            signed.map_err(|_| OperationError::Deal(deal.dealer.get()))?;
        }
        Ok(())
    }

    /// The id of the operation that a session leads to.
    pub fn operation_id(session_id: &[u8; 16]) -> OperationId {
        OperationId::derive("spark/refresh", &[session_id])
    }

    /// Adds what all dealt to the public shares.
    pub(super) fn apply(&self, keys: &mut BTreeMap<LeafId, TweakedKey>) -> Result<(), OperationError> {
        for (position, leaf) in self.leaves.iter().enumerate() {
            let proofs: Vec<_> =
                self.deals.iter().filter_map(|deal| deal.proofs.get(position)).cloned().collect();
            let sum = ZeroProofs::sum(&proofs)?;
            let key = keys.get_mut(leaf).ok_or(OperationError::Unknown("leaf"))?;
            key.public_shares = sum.apply(&key.public_shares)?;
            key.refresh = Some(sum);
        }
        Ok(())
    }
}

fn session_id(request: &wire::Refresh) -> Result<[u8; 16], OperationError> {
    request.session_id.as_slice().try_into().map_err(|_| OperationError::Malformed("session_id"))
}

/// One operation per session.
pub(super) fn operation_id(request: &wire::Refresh) -> Result<OperationId, OperationError> {
    Ok(Refresh::operation_id(&session_id(request)?))
}

/// The leaves that a request names, whether the rest of it holds or not.
pub fn named_leaves(request: &Request) -> &[String] {
    match request {
        Request::Refresh(refresh) => refresh.leaf_ids.get(..MAX_REFRESH).unwrap_or(&refresh.leaf_ids),
        _ => &[],
    }
}

pub(super) fn derive(
    context: Context<'_>,
    request: &wire::Refresh,
    records: &impl Records,
) -> Result<Operation, OperationError> {
    let federation = context.federation;
    let session_id = session_id(request)?;
    context.expect_id(Refresh::operation_id(&session_id))?;
    if context.attempt != 0 {
        return Err(OperationError::Malformed("attempt"));
    }
    let deciders: Vec<_> = request
        .deciders
        .iter()
        .map(|index| OperatorIndex::from_wire(*index).ok().filter(|i| federation.member(*i).is_some()))
        .collect::<Option<_>>()
        .ok_or(OperationError::Named)?;
    if deciders.len() != usize::from(federation.threshold()) || !deciders.is_sorted_by(|a, b| a < b) {
        return Err(OperationError::Named);
    }
    let leaves = Refresh::leaves(&request.leaf_ids)?;
    let mut parts = Vec::with_capacity(leaves.len());
    for leaf in &leaves {
        let record = records.leaf(leaf).ok_or(OperationError::Unknown("leaf"))?;
        if record.status != LeafStatus::Available {
            return Err(OperationError::Unavailable(*leaf));
        }
        let receiver = record.owner_identity;
        parts.push(Part { record, plan: Plan::none(), receiver });
    }
    let mut keyshares = BTreeSet::new();
    if !parts.iter().all(|part| keyshares.insert(part.record.keyshare_id)) {
        return Err(OperationError::Malformed("leaf_ids"));
    }
    if request.deals.len() != usize::from(federation.size()) {
        return Err(OperationError::Malformed("deals"));
    }
    let deals = federation
        .indices()
        .zip(&request.deals)
        .map(|(dealer, deal)| Deal::parse(deal, &session_id, dealer, leaves.len(), federation))
        .collect::<Result<Vec<_>, _>>()?;
    let requester =
        federation.member(context.coordinator).ok_or(OperationError::Malformed("coordinator"))?.identity;
    Ok(Operation {
        id: context.id,
        attempt: context.attempt,
        kind: Kind::Refresh,
        coordinator: context.coordinator,
        requester,
        named: deciders.into_iter().collect(),
        parts,
        jobs: Vec::new(),
        sealed: None,
        refresh: Some(Refresh { session_id, deals, leaves }),
        resources: Vec::new(),
        terms: Terms::default(),
        condition: None,
        epoch: federation.epoch(),
        threshold: federation.threshold(),
    })
}
