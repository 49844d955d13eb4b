//! Large logs: answers are pages, and a page costs what is in it.

use spark_proto::{peer::v1::Receipt, signer::v1 as wire};
use spark_rules::{
    checkpoint::Checkpoint,
    ids::{LeafId, OperatorIndex},
    receipt::verify_inclusion,
};

use super::quorum::Quorum;
use crate::engine::{Engine, EngineError, Reply, Request, deletion_log::MAX_RECEIPTS};

fn leaf(n: u8) -> LeafId {
    LeafId::parse(&format!("00000000-0000-4000-8000-0000000000{n:02x}")).unwrap()
}

/// Receipts of two leaves in turn, the first one's first.
fn append(quorum: &mut Quorum, count: usize) {
    let Engine { vault, shared, .. } = &mut quorum.members[0].engine;
    let mut txn = vault.begin();
    for n in 0..count {
        let leaf_id = leaf((n % 2) as u8).to_string();
        let receipt = Receipt { leaf_id, phase: "send".to_owned(), ..Receipt::default() };
        shared.append_receipt(&mut txn, receipt).unwrap();
    }
    txn.commit().unwrap();
}

fn receipts(quorum: &mut Quorum, tree_size: u64, from: u64) -> wire::GetReceiptsResponse {
    let request = wire::GetReceiptsRequest { leaf_id: leaf(1).to_string(), tree_size, from };
    match quorum.call(0, Request::GetReceipts(request)).unwrap() {
        Reply::Receipts(reply) => reply,
        _ => panic!(),
    }
}

fn entries(quorum: &mut Quorum, from: u64, until: u64) -> Result<Vec<Receipt>, EngineError> {
    match quorum.call(0, Request::ReadLog(wire::ReadLogRequest { from, until }))? {
        Reply::Log(reply) => Ok(reply.entries),
        _ => panic!(),
    }
}

/// Records that a call reads, and what it says.
fn reads<T>(quorum: &mut Quorum, call: impl FnOnce(&mut Quorum) -> T) -> (usize, T) {
    quorum.members[0].store.reads();
    let answer = call(quorum);
    (quorum.members[0].store.reads(), answer)
}

/// S13: a leaf that its owners send to and fro has receipts without end.
#[test]
fn s13_receipts_of_a_leaf_come_in_pages() {
    let mut quorum = Quorum::new(2, 3);
    append(&mut quorum, 1500);
    let first = receipts(&mut quorum, 0, 0);
    let head = Checkpoint::verify(&first.checkpoint, &quorum.federation, OperatorIndex::new(0)).unwrap();
    assert_eq!(head.size, 1500);
    // The log grows meanwhile: pages lead to the head of the first one.
    append(&mut quorum, 20);
    let (mut pages, mut places) = (vec![first], Vec::new());
    while let Some(next) = pages.last().map(|page| page.next).filter(|next| *next != 0) {
        let page = receipts(&mut quorum, head.size, next);
        assert_eq!(page.checkpoint, "");
        pages.push(page);
    }
    for page in &pages {
        assert!(!page.receipts.is_empty() && page.receipts.len() <= MAX_RECEIPTS);
        for (receipt, proof) in page.receipts.iter().zip(&page.proofs) {
            verify_inclusion(receipt, proof, head.root).unwrap();
            places.push(receipt.log_index);
        }
        assert_eq!(page.receipts.len(), page.proofs.len());
    }
    assert_eq!(pages.len(), 750usize.div_ceil(MAX_RECEIPTS));
    assert_eq!(places, (0..1500).filter(|place| place % 2 == 1).collect::<Vec<u64>>(), "each once, in order");
    assert!(receipts(&mut quorum, head.size, head.size).receipts.is_empty());
    assert!(receipts(&mut quorum, 0, u64::MAX).receipts.is_empty());
}

/// An entry costs one read, however many stand before it and behind it; its proof as many as the tree is high.
#[test]
fn a_page_costs_what_is_in_it() {
    let mut quorum = Quorum::new(2, 3);
    append(&mut quorum, 1024);
    let of = |quorum: &mut Quorum, from, count| {
        let (reads, entries) = reads(quorum, |quorum| entries(quorum, from, from + count).unwrap());
        assert_eq!(entries.len() as u64, count);
        reads
    };
    let cost = (of(&mut quorum, 0, 100), of(&mut quorum, 0, 900));
    // Beside the entries: the size, what is destroyed, and the hashes of a head.
    assert!(cost.0 <= 100 + 64 && cost.1 <= 900 + 64, "{cost:?}");
    assert!(of(&mut quorum, 900, 100) <= 100 + 64);
    let short = reads(&mut quorum, |quorum| receipts(quorum, 1024, 0)).0;
    append(&mut quorum, 3072);
    let long = reads(&mut quorum, |quorum| receipts(quorum, 4096, 0)).0;
    let later = reads(&mut quorum, |quorum| receipts(quorum, 4096, 3001)).0;
    for (reads, height) in [(short, 10), (long, 12), (later, 12)] {
        assert!(reads <= MAX_RECEIPTS * (2 + 2 * height) + 64, "{reads} at {height}");
    }
}
