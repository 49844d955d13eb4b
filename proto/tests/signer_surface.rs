//! Rule S2: there is no call that signs a hash given from outside.
//!
//! Every `bytes` field that a signer or operator exchanges inside the federation is listed here with its meaning
//! known: ids, keys, signatures, proofs, ciphertexts, transcripts. A new one fails this test until somebody has
//! asked whether it could carry a digest to be signed.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};

const KNOWN: &[&str] = &[
    "admin.signer.v1.LogPage.entries",
    "peer.v1.AbortRequest.operation_id",
    "peer.v1.CloseRequest.operation_id",
    "peer.v1.FinalSignature.signature",
    "peer.v1.HelloRequest.federation_hash",
    "peer.v1.HelloResponse.federation_hash",
    "peer.v1.Operation.operation_id",
    "peer.v1.Position.incarnation",
    "peer.v1.QueryProofRequest.operation_id",
    "peer.v1.Receipt.incarnation",
    "peer.v1.Receipt.keyshare_id",
    "peer.v1.Receipt.new_public_share",
    "peer.v1.Receipt.package_keys",
    "peer.v1.Receipt.operation_id",
    "peer.v1.Receipt.retired_public_share",
    "peer.v1.Receipt.root_id_before",
    "peer.v1.Receipt.salt",
    "peer.v1.Receipt.tweak_commitment",
    "peer.v1.Refresh.session_id",
    "peer.v1.RefreshDeal.commitments",
    "peer.v1.RefreshDeal.openings",
    "peer.v1.RefreshDeal.session_id",
    "peer.v1.RefreshDeal.signature",
    "peer.v1.SettleRequest.operation_id",
    "peer.v1.SettlementQuestion.operation_id",
    "peer.v1.SettlementQuestion.preimage",
    "peer.v1.SettlementVote.block_hash",
    "peer.v1.SettlementVote.digest",
    "peer.v1.SettlementVote.operation_id",
    "peer.v1.SettlementVote.preimage",
    "peer.v1.SettlementVote.signature",
    "peer.v1.SignatureShare.share",
    "peer.v1.Vote.digest",
    "peer.v1.Vote.operation_id",
    "peer.v1.Vote.signature",
    "signer.v1.AbortRequest.operation_id",
    "signer.v1.ApplyRequest.operation_id",
    "signer.v1.BindKeyshareRequest.signature",
    "signer.v1.BindKeyshareResponse.address_signature",
    "signer.v1.BindKeyshareResponse.signature",
    "signer.v1.BindKeyshareResponse.verifying_key",
    "signer.v1.Binding.identity_public_key",
    "signer.v1.Binding.keyshare_id",
    "signer.v1.Binding.user_public_key",
    "signer.v1.CommitNoncesRequest.identity",
    "signer.v1.CompareLogRequest.hashes",
    "signer.v1.DkgRound1.encryption_key",
    "signer.v1.DkgRound1.packages",
    "signer.v1.DkgRound1.session_id",
    "signer.v1.DkgRound1.signature",
    "signer.v1.DkgRound1Set.session_id",
    "signer.v1.DkgRound2.echo",
    "signer.v1.DkgRound2.session_id",
    "signer.v1.DkgRound2.signature",
    "signer.v1.DkgRound2Set.session_id",
    "signer.v1.DkgStartRequest.session_id",
    "signer.v1.DkgTranscript.digest",
    "signer.v1.DkgTranscript.session_id",
    "signer.v1.DkgTranscript.signature",
    "signer.v1.DkgTranscriptSet.session_id",
    "signer.v1.GetStatusResponse.federation_hash",
    "signer.v1.GetStatusResponse.federation_public_key",
    "signer.v1.GetStatusResponse.identity_public_key",
    "signer.v1.InclusionProof.hashes",
    "signer.v1.IssuePackageKeysRequest.discard",
    "signer.v1.IssuePackageKeysRequest.request_id",
    "signer.v1.JournalEntry.leaves",
    "signer.v1.JournalEntry.operation",
    "signer.v1.JournalEntry.operation_id",
    "signer.v1.JournalEntry.transfer",
    "signer.v1.OpenedLeaf.proofs",
    "signer.v1.OpenedLeaf.secret_cipher",
    "signer.v1.OpenedLeaf.signature",
    "signer.v1.PackageKey.key_id",
    "signer.v1.PackageKey.path",
    "signer.v1.PackageKey.public_key",
    "signer.v1.PackageKeyBatch.incarnation",
    "signer.v1.PackageKeyBatch.signature",
    "signer.v1.PackageKeyBatch.tree_root",
    "signer.v1.PendingSettlement.digest",
    "signer.v1.PendingSettlement.exit_txid",
    "signer.v1.PendingSettlement.payment_hash",
    "signer.v1.ProveConsistencyResponse.hashes",
    "signer.v1.ProvePossessionRequest.keyshare_id",
    "signer.v1.ProvePossessionResponse.share",
    "signer.v1.PublicKeyshare.group_key",
    "signer.v1.PublicKeyshare.keyshare_id",
    "signer.v1.PublicKeyshare.public_shares",
    "signer.v1.ReadTileResponse.data",
    "signer.v1.RefreshOpenRequest.session_id",
    "signer.v1.RefreshOpening.encryption_key",
    "signer.v1.RefreshOpening.session_id",
    "signer.v1.RefreshOpening.signature",
    "signer.v1.RefreshOpening.subject",
    "signer.v1.RefreshOpeningSet.session_id",
    "signer.v1.RefreshPendingRequest.after",
    "signer.v1.RefreshPendingResponse.through",
    "signer.v1.RefundStaticDepositResponse.share",
    "signer.v1.ReleaseRequest.operation_id",
    "signer.v1.RepairDeltaSet.session_id",
    "signer.v1.RepairDeltas.agreement",
    "signer.v1.RepairDeltas.commitments",
    "signer.v1.RepairDeltas.session_id",
    "signer.v1.RepairDeltas.signature",
    "signer.v1.RepairFinishRequest.session_id",
    "signer.v1.RepairItem.key",
    "signer.v1.RepairItem.value",
    "signer.v1.RepairKeyshare.leaf",
    "signer.v1.RepairListing.encryption_key",
    "signer.v1.RepairListing.session_id",
    "signer.v1.RepairListing.signature",
    "signer.v1.RepairListing.through",
    "signer.v1.RepairListingSet.session_id",
    "signer.v1.RepairOpenRequest.session_id",
    "signer.v1.RepairProgress.session_id",
    "signer.v1.RepairProgress.signature",
    "signer.v1.RepairState.after",
    "signer.v1.RepairState.session_id",
    "signer.v1.RepairSum.ciphertext",
    "signer.v1.RepairSum.session_id",
    "signer.v1.RepairSum.signature",
    "signer.v1.RepairSum.transcript",
    "signer.v1.RepairTicket.after",
    "signer.v1.RepairTicket.encryption_key",
    "signer.v1.RepairTicket.session_id",
    "signer.v1.RepairTicket.signature",
    "signer.v1.SeenStatement.signature",
    "signer.v1.SeenStatement.statement",
    "signer.v1.SettleRequest.operation_id",
    "signer.v1.SignAbortRequest.operation_id",
    "signer.v1.SignSettlementRequest.block_hash",
    "signer.v1.SignSettlementRequest.operation_id",
    "signer.v1.SignSettlementRequest.preimage",
    "signer.v1.StaticRefund.funding_tx",
    "signer.v1.StaticRefund.keyshare_id",
    "signer.v1.StaticRefund.refund_tx",
    "signer.v1.StaticRefund.user_signature",
    "signer.v1.WatchedLog.frontier",
    "signer.v1.WatchedLog.incarnation",
    "signer.v1.WitnessAnswer.nonce",
    "signer.v1.WitnessAnswer.signature",
    "signer.v1.WitnessQuestion.nonce",
    "signer.v1.WitnessQuestion.signature",
];

/// Digests and preimages among them, each compared by the signer with what it has itself, never signed as given. The
/// block of an exit transaction is the own operator's word about its chain: part of a typed statement, as heights are.
const DIGESTS: &[&str] = &[
    "peer.v1.HelloRequest.federation_hash",
    "peer.v1.HelloResponse.federation_hash",
    "peer.v1.SettlementQuestion.preimage",
    "peer.v1.SettlementVote.block_hash",
    "peer.v1.SettlementVote.digest",
    "peer.v1.SettlementVote.preimage",
    "peer.v1.Vote.digest",
    "signer.v1.CompareLogRequest.hashes",
    "signer.v1.DkgTranscript.digest",
    "signer.v1.GetStatusResponse.federation_hash",
    "signer.v1.InclusionProof.hashes",
    "signer.v1.PendingSettlement.digest",
    "signer.v1.PendingSettlement.payment_hash",
    "signer.v1.ProveConsistencyResponse.hashes",
    "signer.v1.SignSettlementRequest.block_hash",
    "signer.v1.SignSettlementRequest.preimage",
];

fn bytes_fields() -> BTreeSet<String> {
    let files = FileDescriptorSet::decode(spark_proto::DESCRIPTORS).unwrap();
    files
        .file
        .iter()
        .filter(|file| matches!(file.package(), "signer.v1" | "peer.v1" | "admin.signer.v1"))
        .flat_map(|file| file.message_type.iter().map(move |message| (file.package(), message)))
        .flat_map(|(package, message)| {
            message
                .field
                .iter()
                .filter(|field| field.r#type() == Type::Bytes)
                .map(move |field| format!("{package}.{}.{}", message.name(), field.name()))
        })
        .collect()
}

#[test]
fn every_bytes_field_inside_the_federation_is_known() {
    let known: BTreeSet<_> = KNOWN.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(bytes_fields(), known);
}

#[test]
fn no_request_carries_something_to_be_signed_as_it_is() {
    for field in bytes_fields() {
        let name = field.rsplit('.').next().unwrap();
        let suspicious =
            ["digest", "hash", "message", "sighash", "msg", "preimage"].iter().any(|s| name.contains(s));
        assert!(!suspicious || DIGESTS.contains(&field.as_str()), "{field}");
    }
}

#[test]
fn no_method_of_the_signer_is_named_like_a_signing_oracle() {
    let files = FileDescriptorSet::decode(spark_proto::DESCRIPTORS).unwrap();
    let methods: Vec<String> = files
        .file
        .iter()
        .filter(|file| matches!(file.package(), "signer.v1" | "admin.signer.v1"))
        .flat_map(|file| &file.service)
        .flat_map(|service| service.method.iter().map(|method| method.name().to_owned()))
        .collect();
    assert!(methods.len() > 10);
    let signing: Vec<_> = methods.iter().filter(|name| name.starts_with("Sign")).collect();
    assert_eq!(signing, ["SignAbort", "SignSettlement"]);
}
