//! What a member may say for itself only: peer call by peer call.

use prost::Message as _;
use spark_proto::{peer::v1 as peer, signer::v1 as signer};

/// Who may make a peer call.
#[derive(Debug)]
pub(super) enum Voice {
    /// The message names its speaker, here another member than the one that calls.
    Named(Vec<u8>),
    /// Any member may carry it: the reason.
    Carried(&'static str),
}

/// Every peer call, said in the name of operator `other`.
pub(super) fn voices(other: u32) -> Vec<(&'static str, Voice)> {
    use Voice::{Carried, Named};
    let binding = signer::Binding { coordinator: other, ..Default::default() };
    let bind = signer::BindKeyshareRequest { binding: Some(binding), ..Default::default() };
    vec![
        ("Hello", Named(peer::HelloRequest { sender: other, ..Default::default() }.encode_to_vec())),
        ("CommitNonces", Carried("nonces are for a wallet's identity, not for a member")),
        ("BindKeyshare", Named(bind.encode_to_vec())),
        ("ProvePossession", Carried("the keyshare was bound on its coordinator's signature")),
        ("RefundStaticDeposit", Carried("the owner's own statement, over every byte of the transaction")),
        ("Prepare", Named(peer::Operation { coordinator: other, ..Default::default() }.encode_to_vec())),
        ("Release", Carried("a certificate is portable")),
        ("Apply", Carried("a proof is portable")),
        ("SignAbort", Carried("who may ask depends on the operation and its age")),
        ("Abort", Carried("a proof is portable")),
        ("QueryProof", Carried("a question")),
        ("Close", Carried("who may say so depends on the operation")),
        ("AskSettlement", Carried("a question, or a preimage that proves itself")),
        ("Settle", Carried("a proof is portable")),
        (
            "DkgStart",
            Named(signer::DkgStartRequest { initiator: other, ..Default::default() }.encode_to_vec()),
        ),
        (
            "RefreshOpen",
            Named(signer::RefreshOpenRequest { coordinator: other, ..Default::default() }.encode_to_vec()),
        ),
        ("RefreshDeal", Carried("carries messages that signers signed")),
        ("DkgRespond", Carried("carries messages that signers signed")),
        ("DkgFinish", Carried("carries messages that signers signed")),
        ("DkgConfirm", Carried("carries messages that signers signed")),
        (
            "AnswerWitness",
            Named(signer::WitnessQuestion { asker: other, ..Default::default() }.encode_to_vec()),
        ),
        (
            "CosignLog",
            Named(signer::CosignLogRequest { operator: other, ..Default::default() }.encode_to_vec()),
        ),
        ("ShowLogs", Carried("a question, and heads that their operators signed")),
        ("ProveLog", Carried("the log's hashes are public")),
        ("RepairList", Named(signer::RepairTicket { lost: other, ..Default::default() }.encode_to_vec())),
        ("RepairSplit", Carried("carries messages that signers signed")),
        ("RepairSum", Carried("carries messages that signers signed")),
        ("RepairClose", Named(signer::RepairProgress { lost: other, ..Default::default() }.encode_to_vec())),
    ]
}
