//! The voted digest: everything that the operation is, as each signer derived it (D4).

use bitcoin::{consensus::encode, hashes::Hash as _};
use sha2::{Digest as _, Sha256};

use super::{Keys, Operation};
use crate::{settlement::Completion, transcript::Transcript};

impl Operation {
    /// Digest over claims with keyshare, version and last proof; resources; invoice and expiry; owner keys and identities before and after; every
    /// unsigned transaction with all spent outputs; the full commitment lists with the user's shares; Feldman
    /// commitments and resulting keys; every ciphertext; named signers.
    pub fn digest(&self, keys: &Keys) -> [u8; 32] {
        let mut t = Transcript::new("spark/operation/v2");
        t.u64(self.epoch).bytes(self.id.as_bytes()).u64(self.attempt.into()).u64(self.kind.code().into());
        t.u64(self.coordinator.get().into());
        t.bytes(&self.requester.serialize()).u64(self.threshold.into());
        t.u64(self.terms.expiry_seconds.cast_unsigned());
        t.bytes(self.terms.invoice.as_ref().map(|paid| paid.text.as_bytes()).unwrap_or_default());
        t.u64(self.named.len() as u64);
        for index in &self.named {
            t.u64(index.get().into());
        }
        t.u64(self.resources.len() as u64);
        for resource in &self.resources {
            t.bytes(resource.kind.as_bytes()).bytes(&resource.key);
        }
        t.u64(self.parts.len() as u64);
        for part in &self.parts {
            let r = &part.record;
            t.bytes(r.leaf_id.as_bytes()).bytes(r.keyshare_id.as_bytes()).u64(r.version).bytes(&r.last_proof);
            t.bytes(&r.verifying_key.serialize()).bytes(&r.owner_identity.serialize());
            t.bytes(&r.owner_key.serialize()).bytes(&r.group_key.serialize());
            t.bytes(&part.receiver.serialize());
            t.u64(part.plan.transactions().len() as u64);
            for planned in part.plan.transactions() {
                t.bytes(planned.purpose().tag().as_bytes()).u64(planned.stage.into());
                t.bytes(&encode::serialize(&planned.tx));
                for prevout in planned.template.prevouts() {
                    t.bytes(&encode::serialize(&prevout));
                }
            }
        }
        t.u64(self.jobs.len() as u64);
        for job in &self.jobs {
            t.bytes(&job.package.digest()).bytes(&job.user_key.serialize()).bytes(&job.user_share.to_bytes());
        }
        for (leaf, key) in keys.iter() {
            t.bytes(leaf.as_bytes())
                .u64(key.version)
                .bytes(&key.group_key.serialize())
                .bytes(&key.owner_key.serialize());
            for share in &key.public_shares {
                t.bytes(&share.serialize());
            }
            let points = key.proofs.as_ref().map(|p| p.points()).unwrap_or_default();
            t.u64(points.len() as u64);
            for point in points {
                t.bytes(&point.serialize());
            }
            t.bytes(&Sha256::digest(&key.secret_cipher)).bytes(&Sha256::digest(&key.signature));
        }
        if let Some(sealed) = &self.sealed {
            t.bytes(sealed.transfer.as_bytes()).u64(sealed.ciphertexts.len() as u64);
            for ciphertext in &sealed.ciphertexts {
                t.bytes(&Sha256::digest(ciphertext));
            }
        }
        if let Some(refresh) = &self.refresh {
            // Of all dealers: commitments, every ciphertext, and the openings that they answered.
            t.bytes(&refresh.session_id).u64(refresh.deals.len() as u64);
            for deal in &refresh.deals {
                t.bytes(&deal.payload);
            }
        }
        if let Some(condition) = &self.condition {
            match &condition.completes {
                Completion::Preimage { payment_hash } => t.bytes(b"preimage").bytes(payment_hash),
                Completion::Exit { txid, depth } => {
                    t.bytes(b"exit").bytes(&txid.to_byte_array()).u64((*depth).into())
                }
            };
            t.u64(condition.expiry_height.into());
        }
        t.finish()
    }
}
