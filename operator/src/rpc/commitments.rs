//! `get_signing_commitments`: nonces of a random t-subset of the operators, which thereby become the named signers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use rand::seq::SliceRandom as _;
use spark_proto::{common, signer::v1::CommitNoncesRequest, spark};
use spark_rules::{
    federation::Federation,
    ids::{LeafId, OperatorIndex},
};

use super::{
    Nonces,
    input::{self, MAX_IDS},
};
use crate::{
    authn::Session,
    status::{Reason, Refused},
};

/// Most transaction kinds of one request: a deposit over eleven outputs needs thirteen; everything else needs at most
/// seven.
const MAX_KINDS: u32 = 13;

/// What a wallet asks commitments for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// For leaves of the session, in the order of the request.
    Bound {
        /// Transactions per leaf.
        kinds: u32,
        /// The leaves.
        leaves: Vec<LeafId>,
    },
    /// For leaves that the session does not own yet.
    Unbound {
        /// Transactions per leaf.
        kinds: u32,
        /// How many leaves.
        leaves: u32,
    },
}

impl Wanted {
    pub(super) fn parse(request: &spark::GetSigningCommitmentsRequest) -> Result<Self, Refused> {
        // Absent is one, as old clients expect.
        let kinds = request.count.max(1);
        if kinds > MAX_KINDS {
            return Err(Refused::field("count", format!("at most {MAX_KINDS}")));
        }
        let leaves = input::leaf_ids("node_ids", &request.node_ids)?;
        match (leaves.is_empty(), request.node_id_count) {
            (false, 0) => Ok(Self::Bound { kinds, leaves }),
            (true, count) if (1..=MAX_IDS as u32).contains(&count) => {
                Ok(Self::Unbound { kinds, leaves: count })
            }
            (true, 0) => {
                Err(Refused::field("node_ids", "name leaves, or how many there will be in node_id_count"))
            }
            (true, _) => Err(Refused::field("node_id_count", format!("at most {MAX_IDS}"))),
            (false, _) => Err(Refused::field("node_id_count", "must be absent beside node_ids")),
        }
    }

    /// Commitments in the answer.
    pub(super) fn total(&self) -> usize {
        let (kinds, leaves) = match self {
            Self::Bound { kinds, leaves } => (*kinds, leaves.len()),
            Self::Unbound { kinds, leaves } => (*kinds, *leaves as usize),
        };
        leaves.saturating_mul(kinds as usize)
    }

    fn request(&self, session: &Session) -> CommitNoncesRequest {
        let identity = session.identity.serialize().to_vec();
        match self {
            Self::Bound { kinds, leaves } => CommitNoncesRequest {
                count: *kinds,
                identity,
                leaf_ids: leaves.iter().map(ToString::to_string).collect(),
            },
            // Nothing ties an unbound nonce to a place in the answer: one flat list.
            Self::Unbound { kinds, leaves } => {
                CommitNoncesRequest { count: kinds.saturating_mul(*leaves), identity, leaf_ids: Vec::new() }
            }
        }
    }
}

/// Asks t operators, this one first and the others in random order; one that does not answer is replaced.
pub(super) async fn collect(
    federation: &Federation,
    own: OperatorIndex,
    nonces: &Arc<dyn Nonces>,
    wanted: &Wanted,
    session: &Session,
) -> Result<Vec<spark::RequestedSigningCommitments>, Refused> {
    collect_from(federation, candidates(federation, own, &BTreeSet::new()), nonces, wanted, session).await
}

/// Whom to ask, the last one first: oneself, then the others in random order, without those that have failed.
pub(super) fn candidates(
    federation: &Federation,
    own: OperatorIndex,
    failed: &BTreeSet<OperatorIndex>,
) -> Vec<OperatorIndex> {
    let others = federation.indices().filter(|index| *index != own && !failed.contains(index));
    let mut candidates: Vec<OperatorIndex> = others.collect();
    candidates.shuffle(&mut rand::thread_rng());
    candidates.push(own);
    candidates
}

/// As [`collect`], of the last t of `spare`; one that does not answer is replaced by the one before.
pub(super) async fn collect_from(
    federation: &Federation,
    mut spare: Vec<OperatorIndex>,
    nonces: &Arc<dyn Nonces>,
    wanted: &Wanted,
    session: &Session,
) -> Result<Vec<spark::RequestedSigningCommitments>, Refused> {
    let request = wanted.request(session);
    let threshold = usize::from(federation.threshold());

    let ask = |operator: OperatorIndex| {
        let (nonces, request) = (nonces.clone(), request.clone());
        async move { (operator, nonces.commit(operator, request).await) }
    };
    let mut asked = FuturesUnordered::new();
    let mut answers = BTreeMap::new();
    let mut cause = None;
    while answers.len() < threshold {
        while answers.len() + asked.len() < threshold {
            let Some(operator) = spare.pop() else {
                let refused = Refused::new(Reason::QuorumShort, "too few operators have nonces to offer");
                return Err(cause.unwrap_or(refused));
            };
            asked.push(ask(operator));
        }
        let Some((operator, answer)) = asked.next().await else { continue };
        match answer.and_then(|answer| checked(answer.commitments, wanted.total())) {
            Ok(commitments) => {
                answers.insert(operator, commitments);
            }
            // The caller's own fault will not be cured by asking somebody else.
            Err(refused)
                if matches!(refused.reason, Reason::Quota | Reason::FieldInvalid | Reason::NotOwner) =>
            {
                return Err(refused);
            }
            Err(refused) => {
                tracing::warn!(operator = operator.get(), %refused, "operator offers no nonces");
                cause = Some(Refused::new(Reason::QuorumShort, "too few operators have nonces to offer"));
            }
        }
    }
    Ok(assemble(wanted.total(), answers))
}

fn checked(
    commitments: Vec<common::SigningCommitment>,
    total: usize,
) -> Result<Vec<common::SigningCommitment>, Refused> {
    let sound = commitments.len() == total
        && commitments.iter().all(|pair| {
            input::key("hiding", &pair.hiding).is_ok() && input::key("binding", &pair.binding).is_ok()
        });
    if sound {
        Ok(commitments)
    } else {
        Err(Refused::new(Reason::QuorumShort, "operator sent malformed commitments"))
    }
}

/// One map per commitment asked for; index = kind × leaves + leaf, as in each operator's own answer.
fn assemble(
    total: usize,
    answers: BTreeMap<OperatorIndex, Vec<common::SigningCommitment>>,
) -> Vec<spark::RequestedSigningCommitments> {
    let mut maps = vec![spark::RequestedSigningCommitments::default(); total];
    for (operator, commitments) in answers {
        let identifier = operator.identifier_hex();
        for (map, commitment) in maps.iter_mut().zip(commitments) {
            map.signing_nonce_commitments.insert(identifier.clone(), commitment);
        }
    }
    maps
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use secp256k1::{PublicKey, SecretKey};
    use spark_proto::signer::v1::CommitNoncesResponse;

    use super::*;
    use crate::rpc::testing;

    fn key(seed: u64) -> PublicKey {
        let mut bytes = [1; 32];
        bytes[24..].copy_from_slice(&seed.to_be_bytes());
        PublicKey::from_secret_key_global(&SecretKey::from_slice(&bytes).unwrap())
    }

    /// Signers whose commitments say who made them and at which index.
    #[derive(Default)]
    struct Signers {
        down: Vec<u16>,
        refuse: Option<Reason>,
        asked: Mutex<Vec<(u16, CommitNoncesRequest)>>,
    }

    fn commitment(operator: u16, index: usize) -> common::SigningCommitment {
        let seed = u64::from(operator) * 10_000 + index as u64 * 2;
        common::SigningCommitment {
            hiding: key(seed).serialize().to_vec(),
            binding: key(seed + 1).serialize().to_vec(),
        }
    }

    #[tonic::async_trait]
    impl Nonces for Signers {
        async fn commit(
            &self,
            operator: OperatorIndex,
            request: CommitNoncesRequest,
        ) -> Result<CommitNoncesResponse, Refused> {
            self.asked.lock().unwrap().push((operator.get(), request.clone()));
            if let Some(reason) = self.refuse {
                return Err(Refused::new(reason, "no"));
            }
            if self.down.contains(&operator.get()) {
                return Err(Refused::new(Reason::SignerUnreachable, "down"));
            }
            let total = request.count as usize * request.leaf_ids.len().max(1);
            let commitments = (0..total).map(|i| commitment(operator.get(), i)).collect();
            Ok(CommitNoncesResponse { commitments })
        }
    }

    fn bound(kinds: u32, leaves: usize) -> spark::GetSigningCommitmentsRequest {
        let node_ids = (0..leaves).map(|_| uuid::Uuid::new_v4().to_string()).collect();
        spark::GetSigningCommitmentsRequest { node_ids, count: kinds, node_id_count: 0 }
    }

    async fn run(
        signers: &Arc<Signers>,
        request: &spark::GetSigningCommitmentsRequest,
    ) -> Result<Vec<spark::RequestedSigningCommitments>, Refused> {
        let session = Session { identity: key(99) };
        let nonces: Arc<dyn Nonces> = signers.clone();
        let federation = testing::federation(3, 2);
        collect(&federation, OperatorIndex::new(1), &nonces, &Wanted::parse(request)?, &session).await
    }

    #[test]
    fn bounds() {
        assert!(Wanted::parse(&bound(13, 300)).is_ok());
        assert!(Wanted::parse(&bound(14, 1)).is_err());
        assert!(Wanted::parse(&bound(1, 301)).is_err());
        assert!(Wanted::parse(&bound(3, 0)).is_err());
        let unbound = |count, leaves| spark::GetSigningCommitmentsRequest {
            node_ids: vec![],
            count,
            node_id_count: leaves,
        };
        assert_eq!(Wanted::parse(&unbound(3, 2)).unwrap().total(), 6);
        assert_eq!(Wanted::parse(&unbound(0, 2)).unwrap().total(), 2);
        assert!(Wanted::parse(&unbound(3, 301)).is_err());
        assert!(Wanted::parse(&unbound(u32::MAX, u32::MAX)).is_err());
        let mut both = bound(3, 1);
        both.node_id_count = 1;
        assert!(Wanted::parse(&both).is_err());
        let mut twice = bound(3, 1);
        twice.node_ids.push(twice.node_ids[0].clone());
        assert!(Wanted::parse(&twice).is_err());
    }

    #[tokio::test]
    async fn index_is_kind_times_leaves_plus_leaf() {
        let signers = Arc::new(Signers::default());
        let request = bound(3, 4);
        let maps = run(&signers, &request).await.unwrap();
        assert_eq!(maps.len(), 12);
        for (index, map) in maps.iter().enumerate() {
            assert_eq!(map.signing_nonce_commitments.len(), 2, "exactly t operators");
            for (identifier, found) in &map.signing_nonce_commitments {
                let operator = OperatorIndex::from_identifier(identifier).unwrap();
                // Each signer answers kind by kind in the order of `leaf_ids`, so its order is the answer's order.
                assert_eq!(found, &commitment(operator.get(), index));
            }
        }
        for (_, asked) in signers.asked.lock().unwrap().iter() {
            assert_eq!(asked.leaf_ids, request.node_ids, "order of the request");
            assert_eq!(asked.count, 3);
        }
    }

    #[tokio::test]
    async fn one_set_of_operators_with_oneself_in_it() {
        for _ in 0..20 {
            let maps = run(&Arc::new(Signers::default()), &bound(2, 2)).await.unwrap();
            let sets: Vec<Vec<_>> =
                maps.iter().map(|m| m.signing_nonce_commitments.keys().cloned().collect()).collect();
            assert!(sets.windows(2).all(|pair| pair[0] == pair[1]));
            assert!(sets[0].contains(&OperatorIndex::new(1).identifier_hex()));
        }
    }

    #[tokio::test]
    async fn an_operator_that_is_down_is_replaced_once() {
        let signers = Arc::new(Signers { down: vec![1], ..Signers::default() });
        let maps = run(&signers, &bound(1, 1)).await.unwrap();
        let set: Vec<_> = maps[0].signing_nonce_commitments.keys().cloned().collect();
        assert_eq!(set, [OperatorIndex::new(0).identifier_hex(), OperatorIndex::new(2).identifier_hex()]);

        let signers = Arc::new(Signers { down: vec![0, 2], ..Signers::default() });
        assert_eq!(run(&signers, &bound(1, 1)).await.unwrap_err().reason, Reason::QuorumShort);
        assert_eq!(signers.asked.lock().unwrap().len(), 3, "everybody is asked at most once");
    }

    #[tokio::test]
    async fn a_quota_is_the_callers_and_ends_the_search() {
        let signers = Arc::new(Signers { refuse: Some(Reason::Quota), ..Signers::default() });
        assert_eq!(run(&signers, &bound(1, 1)).await.unwrap_err().reason, Reason::Quota);
    }
}
