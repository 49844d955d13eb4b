//! Apply: a proof of commit becomes true. Signatures verified, transactions stored, tweak applied, old share and
//! staged secrets destroyed, receipts written; one store commit (D2, S6, D14).

use bitcoin::secp256k1::PublicKey;
use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    ids::{LeafId, OperationId},
    leaf::{LeafRecord, LeafStatus},
    operation::{Keys, Operation, OperationError, Outcome, TransferRecord, TweakedKey},
    settlement::Pending,
    vote::Kind,
};
use zeroize::Zeroizing;

use super::{
    EngineError, Shared, deletion_log, journal,
    ledger::{self, Attempt, Holder, Phase},
    pending,
    prepare::{entry, keyshare_secret, leaf_resource, read_scalar, shares_id, tweak_id},
    release::{forget_finals, put_released},
    repair,
};
use crate::vault::Txn;

impl Shared {
    pub(super) fn apply(
        &mut self,
        txn: &mut Txn<'_>,
        request: &wire::ApplyRequest,
    ) -> Result<wire::ApplyResponse, EngineError> {
        self.unlocked()?;
        let id = OperationId::parse(&request.operation_id)?;
        let attempt = ledger::attempt(txn, &id, request.attempt)?.ok_or(EngineError::Unknown("operation"))?;
        if matches!(attempt.phase, Phase::Applied | Phase::Pending | Phase::Returned) {
            let receipts = deletion_log::of_operation(txn, &id, request.attempt)?;
            return Ok(wire::ApplyResponse {
                position: Some(self.committed_position(txn).to_wire()),
                receipts,
            });
        }
        let proof = request.proof.as_ref().ok_or(EngineError::Malformed("proof"))?;
        if attempt.phase == Phase::Aborted {
            self.committed_after_abort(txn, &id, request.attempt, &attempt, proof)?;
            return Err(EngineError::Decided("aborted"));
        }
        let certificate = proof.certificate.as_ref().ok_or(EngineError::Malformed("certificate"))?;
        if attempt.request.is_empty() {
            return Err(EngineError::Unknown("canonical request"));
        }
        self.remember_votes(txn, &certificate.votes)?;
        let certificate = self.own_certificate(certificate, &id, request.attempt, &attempt)?;
        let operation = self.stored_operation(txn, &attempt)?;
        operation.verify_commits(proof, &certificate, &self.federation)?;
        self.remember_votes(txn, &proof.commits)?;
        let keys = Keys::derive(&operation, &attempt.opened)?;
        let signatures = operation.parse_signatures(&proof.signatures)?;
        let outcome = operation.outcome(&signatures, &keys, &certificate.ballot().digest)?;
        if operation.condition.is_some() {
            let digest = certificate.ballot().digest;
            pending::put(txn, &Pending::of(&operation, digest)?);
            return self.pend(txn, attempt, &operation, &outcome, proof);
        }
        self.finish(txn, attempt, &operation, &keys, &outcome, proof.clone(), None)
    }

    /// The first decision of a conditional operation (D8): its refunds are complete and stored, so that the receiver can
    /// leave with the preimage; keys and leaves stay as they are, and held, until the second decision.
    fn pend(
        &self,
        txn: &mut Txn<'_>,
        mut attempt: Attempt,
        operation: &Operation,
        outcome: &Outcome,
        proof: &peer::ProofOfCommit,
    ) -> Result<wire::ApplyResponse, EngineError> {
        let (id, number) = (operation.id, operation.attempt);
        for stage in 0..operation.stages() {
            txn.delete_secret(&shares_id(&id, number, stage))?;
        }
        // What it opened is staged: it need not live until the second decision.
        self.end_package_key(txn, operation)?;
        forget_finals(txn, &id, number, operation.jobs.len());
        put_released(txn, operation, operation.jobs.iter())?;
        store_signed(txn, outcome);
        attempt.phase = Phase::Pending;
        attempt.proof = Some(proof.clone());
        ledger::put_attempt(txn, &id, number, &attempt);
        let mut pending = entry("pending", &id, number, &attempt.vote, Some(proof.clone()), Vec::new());
        pending.opened.clone_from(&attempt.opened);
        journal::append(txn, pending)?;
        Ok(wire::ApplyResponse { position: Some(self.position(txn).to_wire()), receipts: Vec::new() })
    }

    /// Keys, records, receipts: what the operation decided is true. `ended` is the second decision of a conditional one.
    #[expect(clippy::too_many_arguments, reason = "one outcome, and what proves it")]
    pub(super) fn finish(
        &mut self,
        txn: &mut Txn<'_>,
        mut attempt: Attempt,
        operation: &Operation,
        keys: &Keys,
        outcome: &Outcome,
        proof: peer::ProofOfCommit,
        ended: Option<&peer::ProofOfSettlement>,
    ) -> Result<wire::ApplyResponse, EngineError> {
        let (id, number) = (operation.id, operation.attempt);
        txn.open_ahead(operation.parts.iter().enumerate().flat_map(|(position, part)| {
            let share = keyshare_secret(&part.record.keyshare_id, part.record.version);
            [share, tweak_id(&id, number, position)]
        }))?;
        for (position, part) in operation.parts.iter().enumerate() {
            let key = keys.get(&part.record.leaf_id).ok_or(OperationError::Opened("leaf missing"))?;
            self.advance_key(txn, operation, position, key)?;
        }
        for stage in 0..operation.stages() {
            txn.delete_secret(&shares_id(&id, number, stage))?;
        }
        self.end_package_key(txn, operation)?;
        forget_finals(txn, &id, number, operation.jobs.len());
        // Also where this signer released nothing: all ledgers are alike.
        put_released(txn, operation, operation.jobs.iter())?;
        let transfer = self.store(txn, operation, outcome)?;
        self.release_claims(txn, operation)?;
        let receipts = self.write_receipts(txn, operation, keys)?;
        attempt.phase = Phase::Applied;
        attempt.request.clear();
        attempt.proof = Some(proof.clone());
        ledger::put_attempt(txn, &id, number, &attempt);
        let mut applied = entry("applied", &id, number, &attempt.vote, Some(proof), Vec::new());
        applied.leaves = outcome.nodes.iter().chain(&outcome.leaves).map(LeafRecord::encode).collect();
        applied.transfer = transfer.map(|t| t.encode()).unwrap_or_default();
        applied.opened.clone_from(&attempt.opened);
        applied.ended = ended.cloned();
        journal::append(txn, applied)?;
        Ok(wire::ApplyResponse { position: Some(self.position(txn).to_wire()), receipts })
    }

    /// The new share under the new version; the old share and the staged tweak are destroyed by the same batch.
    fn advance_key(
        &self,
        txn: &mut Txn<'_>,
        operation: &Operation,
        position: usize,
        key: &TweakedKey,
    ) -> Result<(), EngineError> {
        let part = operation.parts.get(position).ok_or(EngineError::Malformed("leaf"))?;
        let record = &part.record;
        if key.version == record.version {
            return Ok(());
        }
        let old = keyshare_secret(&record.keyshare_id, record.version);
        let current = read_scalar(txn, &old)?;
        let staged = tweak_id(&operation.id, operation.attempt, position);
        let next = match key.share_commitment(self.me)? {
            Some(_) => current.add(&read_scalar(txn, &staged)?)?,
            None => current,
        };
        if key.public_shares.get(self.me.as_usize()) != Some(&next.public_key()) {
            return Err(EngineError::Malformed("own public share"));
        }
        txn.put_secret(
            keyshare_secret(&record.keyshare_id, key.version),
            Zeroizing::new(next.to_bytes().to_vec()),
        )?;
        txn.delete_secret(&old)?;
        txn.delete_secret(&staged)?;
        if operation.kind == Kind::Refresh {
            repair::refreshed(txn, &record.keyshare_id);
        }
        Ok(())
    }

    /// Writes the outcome; returns the transfer that it made or completed.
    fn store(
        &self,
        txn: &mut Txn<'_>,
        operation: &Operation,
        outcome: &Outcome,
    ) -> Result<Option<TransferRecord>, EngineError> {
        let mut result = outcome.transfer.clone();
        for record in &outcome.leaves {
            let mut record = record.clone();
            // Confirmation of a deposit is the operators' view of the chain (D18), not the signer's.
            if record.status == LeafStatus::Creating {
                record.status = LeafStatus::Available;
            }
            ledger::put_leaf(txn, &record);
        }
        if let Some(transfer) = &outcome.transfer {
            ledger::put_transfer(txn, transfer);
        }
        if operation.kind == Kind::Claim
            && let Some(sealed) = &operation.sealed
            && let Some(mut transfer) = ledger::transfer(txn, &sealed.transfer)?
        {
            transfer.claim(&operation.requester);
            ledger::put_transfer(txn, &transfer);
            result = Some(transfer);
        }
        store_signed(txn, outcome);
        Ok(result)
    }

    /// Leaves go back; a resource that is consumed once (transfer, claim, outpoint) stays held for ever.
    fn release_claims(&self, txn: &mut Txn<'_>, operation: &Operation) -> Result<(), EngineError> {
        let holder = Holder { operation: operation.id, attempt: operation.attempt };
        let leaves: Vec<LeafId> = operation.parts.iter().map(|p| p.record.leaf_id).collect();
        for leaf in leaves {
            ledger::unclaim(txn, &leaf_resource(&leaf), &holder)?;
        }
        Ok(())
    }

    fn write_receipts(
        &mut self,
        txn: &mut Txn<'_>,
        operation: &Operation,
        keys: &Keys,
    ) -> Result<Vec<peer::Receipt>, EngineError> {
        let mut receipts = Vec::new();
        for part in &operation.parts {
            let record = &part.record;
            let key = keys.get(&record.leaf_id).ok_or(OperationError::Opened("leaf missing"))?;
            if key.version == record.version {
                continue;
            }
            let share = |list: &[PublicKey]| {
                list.get(self.me.as_usize()).map(|p| p.serialize().to_vec()).unwrap_or_default()
            };
            let commitment = key.share_commitment(self.me)?.map(|point| point.serialize().to_vec());
            let receipt = peer::Receipt {
                keyshare_id: record.keyshare_id.as_bytes().to_vec(),
                leaf_id: record.leaf_id.to_string(),
                operation_id: operation.id.as_bytes().to_vec(),
                phase: phase(operation.kind).to_owned(),
                retired_version: record.version,
                new_version: key.version,
                retired_public_share: share(&record.public_shares),
                new_public_share: share(&key.public_shares),
                tweak_commitment: commitment.unwrap_or_default(),
                package_kind: self.package_kind(operation).to_owned(),
                live_versions: vec![key.version],
                ..peer::Receipt::default()
            };
            receipts.push(self.append_receipt(txn, receipt)?);
        }
        deletion_log::index_operation(txn, &operation.id, operation.attempt, &receipts);
        Ok(receipts)
    }
}

/// Every transaction that got its final signatures, by leaf, version and purpose.
fn store_signed(txn: &mut Txn<'_>, outcome: &Outcome) {
    for signed in &outcome.signed {
        let key = [
            b"signed/".as_slice(),
            signed.leaf.as_bytes(),
            &signed.version.to_be_bytes(),
            signed.purpose.tag().as_bytes(),
        ]
        .concat();
        txn.put_record(&key, bitcoin::consensus::encode::serialize(&signed.tx));
    }
}

/// What a receipt calls it: a settled HTLC or exit did to the key what a send does.
const fn phase(kind: Kind) -> &'static str {
    match kind {
        Kind::Htlc | Kind::CoopExit => Kind::Send.as_str(),
        kind => kind.as_str(),
    }
}
