//! Bounds of signing jobs and packages before any work is done for them (S13). What they mean is checked by
//! `spark_rules::operation`, by every operator and every signer.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use spark_proto::{common, spark};
use spark_rules::{
    federation::Federation,
    ids::OperatorIndex,
    operation::{MAX_LEAVES, MAX_RECEIVERS},
    tx::MAX_CONNECTOR_TX,
};

use super::input;
use crate::status::{Reason, Refused};

/// Largest request that becomes an operation, in bytes: what the database stores of it is bounded.
const MAX_OPERATION: usize = 8 * 1024 * 1024 - 64 * 1024;
/// Largest transaction to sign, in bytes. The largest template, a root over eleven deposits, has about 600.
const MAX_TX: usize = 4096;
/// Largest funding transaction, in bytes: standard weight is at most 400 000.
const MAX_FUNDING_TX: usize = 400_000;
/// Longest Spark invoice, in characters.
pub(super) const MAX_INVOICE: usize = 1024;
/// UTXOs of one deposit besides the first.
const MAX_EXTRA_UTXOS: usize = 10;
/// Bytes of one leaf's tweaks in one operator's ciphertext: at most 15 public shares with their map keys, 15
/// proofs, a cipher, a signature and an id need about 2.5 KiB.
const MAX_TWEAK: usize = 4096;
/// What encryption adds to a ciphertext, and slack.
const CIPHER_OVERHEAD: usize = 256;

/// Checks the bounds of requests of this federation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<'a> {
    federation: &'a Federation,
}

impl<'a> Bounds<'a> {
    pub(super) const fn new(federation: &'a Federation) -> Self {
        Self { federation }
    }

    /// A send.
    pub(super) fn send(self, request: &spark::StartTransferRequest) -> Result<(), Refused> {
        size(request)?;
        input::transfer_id("transfer_id", &request.transfer_id)?;
        input::key("receiver_identity_public_key", &request.receiver_identity_public_key)?;
        if !request.leaves_to_send.is_empty() {
            return Err(Refused::field("leaves_to_send", "a transfer needs a transfer_package"));
        }
        if request.spark_invoice.len() > MAX_INVOICE {
            return Err(Refused::field("spark_invoice", format!("at most {MAX_INVOICE} characters")));
        }
        if request.expiry_time.is_some() {
            return Err(Refused::field("expiry_time", "a transfer without a condition does not expire"));
        }
        self.package(request.transfer_package.as_ref().ok_or_else(|| missing("transfer_package"))?)
    }

    /// A transfer that a preimage completes. What the rules do not look at is bounded all the same.
    pub(super) fn htlc(
        self,
        request: &spark::InitiatePreimageSwapRequest,
    ) -> Result<&spark::StartTransferRequest, Refused> {
        size(request)?;
        bytes("payment_hash", &request.payment_hash, 32, 32)?;
        let reason = spark::initiate_preimage_swap_request::Reason::Send;
        if request.reason() != reason {
            let text = "a transfer in exchange for a preimage is not offered by this operator";
            return Err(Refused::new(Reason::Unimplemented, text));
        }
        let transfer = request.transfer_request.as_ref().ok_or_else(|| missing("transfer_request"))?;
        input::transfer_id("transfer_request.transfer_id", &transfer.transfer_id)?;
        input::key("receiver_identity_public_key", &request.receiver_identity_public_key)?;
        if transfer.expiry_time.is_none() {
            return Err(missing("transfer_request.expiry_time"));
        }
        if let Some(plain) = &request.transfer {
            let lists = [
                ("transfer.leaves_to_send", &plain.leaves_to_send),
                ("transfer.direct_leaves_to_send", &plain.direct_leaves_to_send),
                ("transfer.direct_from_cpfp_leaves_to_send", &plain.direct_from_cpfp_leaves_to_send),
            ];
            for (field, jobs) in lists {
                if jobs.len() > MAX_LEAVES {
                    return Err(Refused::field(field, format!("at most {MAX_LEAVES} leaves")));
                }
            }
        }
        let package = transfer.transfer_package.as_ref();
        self.package(package.ok_or_else(|| missing("transfer_request.transfer_package"))?)?;
        Ok(transfer)
    }

    /// A transfer that an exit transaction completes.
    pub(super) fn coop_exit(
        self,
        request: &spark::CooperativeExitRequest,
    ) -> Result<&spark::StartTransferRequest, Refused> {
        size(request)?;
        bytes("exit_txid", &request.exit_txid, 32, 32)?;
        bytes("connector_tx", &request.connector_tx, 1, MAX_CONNECTOR_TX)?;
        input::transfer_id("exit_id", &request.exit_id)?;
        let transfer = request.transfer.as_ref().ok_or_else(|| missing("transfer"))?;
        input::transfer_id("transfer.transfer_id", &transfer.transfer_id)?;
        input::key("transfer.receiver_identity_public_key", &transfer.receiver_identity_public_key)?;
        if transfer.expiry_time.is_none() {
            return Err(missing("transfer.expiry_time"));
        }
        let package = transfer.transfer_package.as_ref();
        self.package(package.ok_or_else(|| missing("transfer.transfer_package"))?)?;
        Ok(transfer)
    }

    /// A send to several receivers; the package of its one sender.
    pub(super) fn send_many(
        self,
        request: &spark::StartTransferV3Request,
    ) -> Result<&spark::SenderTransferPackage, Refused> {
        size(request)?;
        input::transfer_id("transfer_id", &request.transfer_id)?;
        let sender = match request.sender_packages.as_slice() {
            [sender] => sender,
            [] => return Err(missing("sender_packages")),
            _ => {
                let text = "a transfer with several senders is not offered by this operator";
                return Err(Refused::new(Reason::Unimplemented, text));
            }
        };
        let receivers = &sender.receiver_identity_public_keys;
        if receivers.len() > MAX_LEAVES {
            return Err(Refused::field("receiver_identity_public_keys", format!("at most {MAX_LEAVES}")));
        }
        for key in receivers.values() {
            input::key("receiver_identity_public_keys", key)?;
        }
        if receivers.values().collect::<BTreeSet<_>>().len() > MAX_RECEIVERS {
            let text = format!("at most {MAX_RECEIVERS} receivers");
            return Err(Refused::field("receiver_identity_public_keys", text));
        }
        self.package(sender.transfer_package.as_ref().ok_or_else(|| missing("transfer_package"))?)?;
        Ok(sender)
    }

    fn package(self, package: &spark::TransferPackage) -> Result<(), Refused> {
        self.lists(
            [
                ("transfer_package.leaves_to_send", &package.leaves_to_send),
                ("transfer_package.direct_leaves_to_send", &package.direct_leaves_to_send),
                (
                    "transfer_package.direct_from_cpfp_leaves_to_send",
                    &package.direct_from_cpfp_leaves_to_send,
                ),
            ],
            ("transfer_package.key_tweak_package", &package.key_tweak_package),
            ("transfer_package.user_signature", &package.user_signature),
        )
    }

    /// A claim.
    pub(super) fn claim(self, request: &spark::ClaimTransferRequest) -> Result<(), Refused> {
        size(request)?;
        input::transfer_id("transfer_id", &request.transfer_id)?;
        let package = request.claim_package.as_ref().ok_or_else(|| missing("claim_package"))?;
        self.lists(
            [
                ("claim_package.leaves_to_claim", &package.leaves_to_claim),
                ("claim_package.direct_leaves_to_claim", &package.direct_leaves_to_claim),
                ("claim_package.direct_from_cpfp_leaves_to_claim", &package.direct_from_cpfp_leaves_to_claim),
            ],
            ("claim_package.key_tweak_package", &package.key_tweak_package),
            ("claim_package.user_signature", &package.user_signature),
        )
    }

    /// A deposit.
    pub(super) fn deposit(self, request: &spark::FinalizeDepositTreeCreationRequest) -> Result<(), Refused> {
        size(request)?;
        let utxo = request.on_chain_utxo.as_ref().ok_or_else(|| missing("on_chain_utxo"))?;
        if request.additional_on_chain_utxos.len() > MAX_EXTRA_UTXOS {
            return Err(Refused::field("additional_on_chain_utxos", format!("at most {MAX_EXTRA_UTXOS}")));
        }
        for utxo in std::iter::once(utxo).chain(&request.additional_on_chain_utxos) {
            bytes("on_chain_utxo.raw_tx", &utxo.raw_tx, 1, MAX_FUNDING_TX)?;
        }
        let jobs = [
            ("root_tx_signing_job", &request.root_tx_signing_job),
            ("refund_tx_signing_job", &request.refund_tx_signing_job),
            ("direct_from_cpfp_refund_tx_signing_job", &request.direct_from_cpfp_refund_tx_signing_job),
        ];
        for (field, job) in jobs {
            self.job(field, job.as_ref().ok_or_else(|| missing(field))?)?;
        }
        Ok(())
    }

    /// A renewal.
    pub(super) fn renew(self, request: &spark::RenewLeafRequest) -> Result<(), Refused> {
        use spark::renew_leaf_request::SigningJobs;
        size(request)?;
        input::leaf_id("leaf_id", &request.leaf_id)?;
        let jobs: Vec<(&'static str, &Option<spark::UserSignedTxSigningJob>)> =
            match request.signing_jobs.as_ref().ok_or_else(|| missing("signing_jobs"))? {
                SigningJobs::RenewNodeTimelockSigningJob(jobs) => vec![
                    ("split_node_tx_signing_job", &jobs.split_node_tx_signing_job),
                    ("split_node_direct_tx_signing_job", &jobs.split_node_direct_tx_signing_job),
                    ("node_tx_signing_job", &jobs.node_tx_signing_job),
                    ("refund_tx_signing_job", &jobs.refund_tx_signing_job),
                    ("direct_node_tx_signing_job", &jobs.direct_node_tx_signing_job),
                    ("direct_refund_tx_signing_job", &jobs.direct_refund_tx_signing_job),
                    ("direct_from_cpfp_refund_tx_signing_job", &jobs.direct_from_cpfp_refund_tx_signing_job),
                ],
                SigningJobs::RenewRefundTimelockSigningJob(jobs) => vec![
                    ("node_tx_signing_job", &jobs.node_tx_signing_job),
                    ("refund_tx_signing_job", &jobs.refund_tx_signing_job),
                    ("direct_node_tx_signing_job", &jobs.direct_node_tx_signing_job),
                    ("direct_refund_tx_signing_job", &jobs.direct_refund_tx_signing_job),
                    ("direct_from_cpfp_refund_tx_signing_job", &jobs.direct_from_cpfp_refund_tx_signing_job),
                ],
                SigningJobs::RenewNodeZeroTimelockSigningJob(jobs) => vec![
                    ("node_tx_signing_job", &jobs.node_tx_signing_job),
                    ("refund_tx_signing_job", &jobs.refund_tx_signing_job),
                    ("direct_node_tx_signing_job", &jobs.direct_node_tx_signing_job),
                    ("direct_from_cpfp_refund_tx_signing_job", &jobs.direct_from_cpfp_refund_tx_signing_job),
                ],
            };
        for (field, job) in jobs {
            self.job(field, job.as_ref().ok_or_else(|| missing(field))?)?;
        }
        Ok(())
    }

    fn lists(
        self,
        lists: [(&'static str, &Vec<spark::UserSignedTxSigningJob>); 3],
        (ciphers, packages): (&'static str, &BTreeMap<String, Vec<u8>>),
        (signature_field, signature): (&'static str, &[u8]),
    ) -> Result<(), Refused> {
        let [(first_field, first), ..] = lists;
        if first.is_empty() {
            return Err(missing(first_field));
        }
        for (field, jobs) in lists {
            if jobs.len() > MAX_LEAVES {
                return Err(Refused::field(field, format!("at most {MAX_LEAVES} leaves")));
            }
            let mut leaves = BTreeSet::new();
            for (i, job) in jobs.iter().enumerate() {
                let leaf = input::leaf_id(format!("{field}[{i}].leaf_id"), &job.leaf_id)?;
                if !leaves.insert(leaf) {
                    return Err(Refused::field(format!("{field}[{i}].leaf_id"), "is there twice"));
                }
                self.job(&format!("{field}[{i}]"), job)?;
            }
        }
        self.members(ciphers, packages.keys(), usize::from(self.federation.size()))?;
        let most = first.len().saturating_mul(MAX_TWEAK).saturating_add(CIPHER_OVERHEAD);
        for cipher in packages.values() {
            bytes(ciphers, cipher, 1, most)?;
        }
        // DER, strict: 8 to 72 bytes.
        bytes(signature_field, signature, 8, 72)
    }

    fn job(self, field: &str, job: &spark::UserSignedTxSigningJob) -> Result<(), Refused> {
        bytes(&format!("{field}.raw_tx"), &job.raw_tx, 1, MAX_TX)?;
        bytes(&format!("{field}.signing_public_key"), &job.signing_public_key, 33, 33)?;
        if job.additional_inputs.len() > MAX_EXTRA_UTXOS {
            return Err(Refused::field(
                format!("{field}.additional_inputs"),
                format!("at most {MAX_EXTRA_UTXOS}"),
            ));
        }
        self.half(
            field,
            job.signing_nonce_commitment.as_ref(),
            &job.user_signature,
            job.signing_commitments.as_ref(),
        )?;
        for (i, input) in job.additional_inputs.iter().enumerate() {
            self.half(
                &format!("{field}.additional_inputs[{i}]"),
                input.signing_nonce_commitment.as_ref(),
                &input.user_signature,
                input.signing_commitments.as_ref(),
            )?;
        }
        Ok(())
    }

    /// The user's half of one input.
    fn half(
        self,
        field: &str,
        commitment: Option<&common::SigningCommitment>,
        share: &[u8],
        operators: Option<&spark::SigningCommitments>,
    ) -> Result<(), Refused> {
        pair(
            &format!("{field}.signing_nonce_commitment"),
            commitment.ok_or_else(|| missing(format!("{field}.signing_nonce_commitment")))?,
        )?;
        bytes(&format!("{field}.user_signature"), share, 32, 32)?;
        let name = format!("{field}.signing_commitments");
        let operators = operators.ok_or_else(|| missing(name.clone()))?;
        self.members(&name, operators.signing_commitments.keys(), usize::from(self.federation.threshold()))?;
        operators.signing_commitments.values().try_for_each(|commitment| pair(&name, commitment))
    }

    /// Map keys are `expected` identifiers of this federation.
    fn members<'m>(
        self,
        field: &str,
        keys: impl ExactSizeIterator<Item = &'m String>,
        expected: usize,
    ) -> Result<(), Refused> {
        if keys.len() != expected {
            return Err(Refused::field(field, format!("needs an entry for {expected} operators")));
        }
        for key in keys {
            let known =
                OperatorIndex::from_identifier(key).ok().and_then(|index| self.federation.member(index));
            if known.is_none() {
                return Err(Refused::field(field, "names an operator that is not of this federation"));
            }
        }
        Ok(())
    }
}

fn size(message: &impl Message) -> Result<(), Refused> {
    if message.encoded_len() > MAX_OPERATION {
        return Err(Refused::new(
            Reason::MessageTooLarge,
            format!("an operation may have at most {MAX_OPERATION} bytes"),
        ));
    }
    Ok(())
}

fn missing(field: impl Into<String>) -> Refused {
    Refused::field(field, "is missing")
}

fn bytes(field: &str, value: &[u8], least: usize, most: usize) -> Result<(), Refused> {
    if value.is_empty() && least > 0 {
        return Err(missing(field));
    }
    if (least..=most).contains(&value.len()) {
        Ok(())
    } else if least == most {
        Err(Refused::field(field, format!("must have {least} bytes")))
    } else {
        Err(Refused::field(field, format!("must have {least} to {most} bytes")))
    }
}

fn pair(field: &str, commitment: &common::SigningCommitment) -> Result<(), Refused> {
    bytes(&format!("{field}.hiding"), &commitment.hiding, 33, 33)?;
    bytes(&format!("{field}.binding"), &commitment.binding, 33, 33)
}
