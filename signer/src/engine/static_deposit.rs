//! Static deposits: outputs of an address that takes any number of them, and on which no leaf ever stands.
//!
//! What the owner takes back he has signed with his identity key, over the whole transaction (D17). He may take one
//! output back as often as he likes, at other fees or to other places, until somebody else claims it (D6 (d)): the
//! output is held for him from the first time on, for ever, so that nobody credits what he can still spend.

use std::collections::{BTreeMap, VecDeque};

use bitcoin::{OutPoint, consensus::encode, secp256k1::PublicKey};
use prost::Message as _;
use spark_proto::signer::v1 as wire;
use spark_rules::{
    frost::{Commitment, SigningPackage},
    ids::{KeyshareId, LeafId},
    operation::{Binding, OperationError, parse_commitments},
    package,
    transcript::Transcript,
    tx::{Spend, StaticRefund, p2tr_script},
};

use super::{
    EngineError, Shared, ledger,
    prepare::{keyshare_secret, read_scalar},
};
use crate::{frost::sign_operator, nonce::NonceError, vault::Txn};

/// The owner of the static address that this id stands for.
pub(super) fn owner(txn: &Txn<'_>, leaf: &LeafId) -> Result<Option<PublicKey>, EngineError> {
    let Some(id) = ledger::keyshare_of_leaf(txn, leaf)? else { return Ok(None) };
    let bound = ledger::keyshare(txn, &id)?.and_then(|keyshare| keyshare.bound().transpose()).transpose()?;
    Ok(bound.filter(|bound| bound.is_static).map(|bound| bound.identity))
}

/// Most answers that are kept.
const MOST_ANSWERS: usize = 1024;

/// Shares that this process gave, by request: the same bytes get the same one, and no other nonce is spent. Whoever asks
/// after a restart commits anew.
#[derive(Default)]
pub(super) struct Answers {
    shares: BTreeMap<[u8; 32], Vec<u8>>,
    order: VecDeque<[u8; 32]>,
}

impl Answers {
    fn keep(&mut self, request: [u8; 32], share: Vec<u8>) {
        while self.order.len() >= MOST_ANSWERS {
            if let Some(oldest) = self.order.pop_front() {
                self.shares.remove(&oldest);
            }
        }
        if self.shares.insert(request, share).is_none() {
            self.order.push_back(request);
        }
    }
}

/// A refund whose owner's statement was verified.
struct Authorised {
    bound: Binding,
    outpoint: OutPoint,
    message: [u8; 32],
    user: Commitment,
}

impl Authorised {
    fn check(txn: &Txn<'_>, wire: &wire::StaticRefund) -> Result<Self, EngineError> {
        let id = KeyshareId::parse(&wire.keyshare_id)?;
        let keyshare = ledger::keyshare(txn, &id)?.ok_or(EngineError::Unknown("keyshare"))?;
        let bound = keyshare.bound()?.filter(|bound| bound.is_static);
        let bound = bound.ok_or(EngineError::Unknown("static deposit address"))?;
        let spend = Spend::of_funding(&wire.funding_tx, wire.vout);
        let spend = spend.ok_or(EngineError::Malformed("funding_tx"))?;
        // Nobody holds what pays somebody else.
        if spend.txout.script_pubkey != p2tr_script(&bound.verifying_key) {
            return Err(EngineError::Unknown("output of the static deposit address"));
        }
        let outpoint = spend.outpoint;
        let refund = StaticRefund::check(&wire.refund_tx, spend, bound.network)
            .map_err(|error| EngineError::Operation(OperationError::Template(error)))?;
        let message =
            package::verify_static_refund(bound.network, &refund, &wire.user_signature, &bound.identity)
                .map_err(|error| EngineError::Operation(OperationError::Signature(error)))?;
        let user = wire.user_commitment.as_ref().ok_or(EngineError::Malformed("user_commitment"))?;
        let user = Commitment::parse(&user.hiding, &user.binding)?;
        Ok(Self { bound, outpoint, message, user })
    }
}

impl Shared {
    /// A share of the signature that takes a static deposit back. A signer that is not named only holds the output.
    pub(super) fn refund_static_deposit(
        &mut self,
        txn: &mut Txn<'_>,
        request: &wire::RefundStaticDepositRequest,
    ) -> Result<wire::RefundStaticDepositResponse, EngineError> {
        self.unlocked()?;
        let wire = request.refund.as_ref().ok_or(EngineError::Malformed("refund"))?;
        let refund = Authorised::check(txn, wire)?;
        let commitments = parse_commitments(request.commitments.as_ref())?;
        let own = commitments.get(&self.me).copied();
        let package = SigningPackage::new(
            refund.bound.verifying_key,
            refund.message,
            commitments,
            Some(refund.user),
            None,
            self.federation.threshold(),
            self.federation.size(),
        )?;
        let session = package.session()?;
        ledger::hold_static(txn, &refund.bound.keyshare_id, &encode::serialize(&refund.outpoint))?;
        let Some(own) = own else { return Ok(wire::RefundStaticDepositResponse::default()) };
        let mut asked = Transcript::new("spark/static-refund/request");
        asked.bytes(&request.encode_to_vec());
        let asked = asked.finish();
        if let Some(share) = self.refunds.shares.get(&asked) {
            return Ok(wire::RefundStaticDepositResponse { share: share.clone() });
        }
        let share = read_scalar(txn, &keyshare_secret(&refund.bound.keyshare_id, 0))?;
        let nonce = match self.nonces.take(&own, &refund.bound.leaf_id, self.now) {
            Ok(nonce) => nonce,
            Err(error) => {
                if error == NonceError::Used {
                    self.alarm("nonce_replayed");
                }
                return Err(error.into());
            }
        };
        let signed = sign_operator(&session, self.me, nonce, &share)?;
        let share = signed.to_bytes().to_vec();
        self.refunds.keep(asked, share.clone());
        Ok(wire::RefundStaticDepositResponse { share })
    }
}
