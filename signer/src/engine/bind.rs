//! Deposit addresses: a keyshare is bound once, then the address is stated and the group proves possession
//! (D20; each signer recomputes the address from its own key record).

use std::collections::{HashMap, VecDeque};

use rand_core::OsRng;
use spark_proto::{common, peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    address::deposit_address,
    frost::{Commitment, SigningPackage},
    ids::{KeyshareId, LeafId, OperatorIndex},
    operation::{Binding, parse_commitments},
    package,
    transcript::Transcript,
    tx::p2tr_script,
    vote::Position,
};

use super::{
    EngineError, Shared, journal,
    ledger::{self, Keyshare},
    prepare::{keyshare_secret, read_scalar},
    repair,
};
use crate::{
    frost::{NoncePair, sign_operator},
    nonce::NonceError,
    vault::Txn,
};

const DOMAIN: &str = "bind/v1";
/// Open possession nonces; beyond it the oldest goes.
const MOST_NONCES: usize = 4096;

/// Nonces for proofs of possession, one open pair per keyshare.
#[derive(Default)]
pub(super) struct PossessionNonces {
    open: HashMap<KeyshareId, NoncePair>,
    order: VecDeque<KeyshareId>,
}

impl PossessionNonces {
    /// The open pair's commitment; a repeat gets the same one, so that two who prove at once do not void each other.
    fn issue(&mut self, id: KeyshareId) -> Commitment {
        if let Some(pair) = self.open.get(&id) {
            return *pair.commitment();
        }
        while self.order.len() >= MOST_NONCES {
            if let Some(oldest) = self.order.pop_front() {
                self.open.remove(&oldest);
            }
        }
        let pair = NoncePair::generate(&mut OsRng, None);
        let commitment = *pair.commitment();
        self.open.insert(id, pair);
        self.order.push_back(id);
        commitment
    }

    fn take(&mut self, id: &KeyshareId) -> Option<NoncePair> {
        let pair = self.open.remove(id)?;
        self.order.retain(|other| other != id);
        Some(pair)
    }
}

fn payload(binding: &wire::Binding) -> Vec<u8> {
    let mut t = Transcript::new("spark/bind/v1");
    t.bytes(&binding.keyshare_id).bytes(binding.leaf_id.as_bytes()).bytes(&binding.user_public_key);
    t.bytes(&binding.identity_public_key)
        .u64(binding.network.unsigned_abs().into())
        .u64(binding.coordinator.into());
    if binding.is_static {
        t.bytes(b"static");
    }
    t.finish().to_vec()
}

impl Shared {
    pub(super) fn bind(
        &mut self,
        txn: &mut Txn<'_>,
        request: wire::BindKeyshareRequest,
    ) -> Result<wire::BindKeyshareResponse, EngineError> {
        self.unlocked()?;
        let wire = request.binding.ok_or(EngineError::Malformed("binding"))?;
        let coordinator = OperatorIndex::from_wire(wire.coordinator)?;
        self.check_authority(txn, coordinator, &wire, request.position.as_ref(), &request.signature)?;
        let id = KeyshareId::parse(&wire.keyshare_id)?;
        let keyshare =
            ledger::keyshare(txn, &id)?.filter(|k| k.confirmed).ok_or(EngineError::Unknown("keyshare"))?;
        if keyshare.public.owner != wire.coordinator {
            return Err(EngineError::Binding("it belongs to another operator's pool"));
        }
        let mut position = self.committed_position(txn);
        let bound = match &keyshare.binding {
            Some(known) if *known == wire => keyshare.bound()?,
            Some(_) => {
                self.alarm("rebind");
                return Err(EngineError::Binding("it is bound otherwise"));
            }
            None => {
                let bound = self.bind_new(txn, &keyshare, &wire, coordinator)?;
                position = self.position(txn);
                Some(bound)
            }
        };
        let bound = bound.ok_or(EngineError::Binding("no binding"))?;
        let address = deposit_address(&bound.verifying_key, bound.network).to_string();
        let address_signature = self.token.sign_identity(&package::address_digest(&address))?;
        let commitment = self.possession.issue(id);
        let signature = self.sign_statement(&position, DOMAIN, &payload(&wire))?;
        Ok(wire::BindKeyshareResponse {
            binding: Some(wire),
            verifying_key: bound.verifying_key.serialize().to_vec(),
            address,
            address_signature: address_signature.serialize_der().to_vec(),
            possession_commitment: Some(common::SigningCommitment {
                hiding: commitment.hiding.serialize().to_vec(),
                binding: commitment.binding.serialize().to_vec(),
            }),
            position: Some(position.to_wire()),
            signature,
        })
    }

    /// Own operator's word for own pool, the coordinator's signature for a peer's.
    fn check_authority(
        &self,
        txn: &mut Txn<'_>,
        coordinator: OperatorIndex,
        binding: &wire::Binding,
        position: Option<&peer::Position>,
        signature: &[u8],
    ) -> Result<(), EngineError> {
        if coordinator == self.me {
            return Ok(());
        }
        let position = Position::parse(position)?;
        if position.signer != coordinator {
            return Err(EngineError::Malformed("position"));
        }
        position.verify(&self.federation, DOMAIN, &payload(binding), signature)?;
        let statement = position.statement(&self.federation, DOMAIN, &payload(binding));
        self.remember(txn, &position, statement, signature)
    }

    fn bind_new(
        &self,
        txn: &mut Txn<'_>,
        keyshare: &Keyshare,
        wire: &wire::Binding,
        owner: OperatorIndex,
    ) -> Result<Binding, EngineError> {
        let mut keyshare = keyshare.clone();
        keyshare.binding = Some(wire.clone());
        let bound = keyshare.bound()?.ok_or(EngineError::Binding("no binding"))?;
        if bound.network.bitcoin() != self.federation.network() {
            return Err(EngineError::Malformed("network"));
        }
        if bound.is_static && bound.leaf_id != LeafId::of_static_address(&bound.keyshare_id) {
            return Err(EngineError::Binding("the id of a static address follows from its keyshare"));
        }
        if !bound.is_static && bound.leaf_id.has_static_form() {
            return Err(EngineError::Binding("a leaf id of this form is for a static address"));
        }
        if ledger::keyshare_of_leaf(txn, &bound.leaf_id)?.is_some()
            || ledger::leaf(txn, &bound.leaf_id)?.is_some()
        {
            return Err(EngineError::Binding("the leaf id is taken"));
        }
        // A user key can be chosen so that another group key gives the same sum.
        if ledger::keyshare_of_script(txn, &p2tr_script(&bound.verifying_key))?.is_some() {
            return Err(EngineError::Binding("the address is taken"));
        }
        ledger::bind_keyshare(txn, &bound, wire, owner);
        // The log of a leaf begins with the key's making: its polynomials, one-time key and round-2 packages lived in
        // memory only and were erased when the batch closed (D14).
        let own_share = bound.public_shares.get(self.me.as_usize()).map(|p| p.serialize().to_vec());
        let mut made = peer::Receipt {
            keyshare_id: bound.keyshare_id.as_bytes().to_vec(),
            leaf_id: bound.leaf_id.to_string(),
            phase: "dkg".to_owned(),
            new_public_share: own_share.unwrap_or_default(),
            live_versions: vec![0],
            ..peer::Receipt::default()
        };
        if repair::was_repaired(txn, &bound.keyshare_id)? {
            made = self.begin_receipt(&bound, 0, made.new_public_share);
        }
        self.append_receipt(txn, made)?;
        let entry = wire::JournalEntry {
            kind: "bound".to_owned(),
            operation: prost::Message::encode_to_vec(wire),
            ..wire::JournalEntry::default()
        };
        journal::append(txn, entry)?;
        Ok(bound)
    }

    /// A share of the group's signature over (identity, S, address), by the operators alone.
    pub(super) fn prove_possession(
        &mut self,
        txn: &Txn<'_>,
        request: &wire::ProvePossessionRequest,
    ) -> Result<wire::ProvePossessionResponse, EngineError> {
        self.unlocked()?;
        let id = KeyshareId::parse(&request.keyshare_id)?;
        let keyshare = ledger::keyshare(txn, &id)?.ok_or(EngineError::Unknown("keyshare"))?;
        let bound = keyshare.bound()?.ok_or(EngineError::Binding("it is not bound"))?;
        let commitments = parse_commitments(request.commitments.as_ref())?;
        let address = deposit_address(&bound.verifying_key, bound.network).to_string();
        let message = package::proof_of_possession(&bound.identity, &bound.group_key, &address);
        let package = SigningPackage::new(
            bound.group_key,
            message,
            commitments,
            None,
            None,
            self.federation.threshold(),
            self.federation.size(),
        )?;
        let session = package.session()?;
        let share = read_scalar(txn, &keyshare_secret(&id, 0))?;
        let nonce = self.possession.take(&id).ok_or(NonceError::Unknown)?;
        let signed = sign_operator(&session, self.me, nonce, &share)?;
        Ok(wire::ProvePossessionResponse { share: signed.to_bytes().to_vec() })
    }
}
