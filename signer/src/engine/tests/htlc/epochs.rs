//! What is pending when the federation file changes, also because a decider lost everything.

use super::*;
use crate::engine::tests::{quorum::Member, repairs};

impl Pending {
    /// All take the next federation file.
    fn next_epoch(&mut self) {
        self.quorum.next_epoch();
        (0..3).for_each(|member| self.quorum.witness(member).unwrap());
    }

    /// Member 1 is replaced, and takes over what the others have.
    fn replaced(self) -> (Self, Member) {
        let (quorum, lost) = repairs::replace(self.quorum);
        (Self { quorum, ..self }, lost)
    }
}

fn epoch_refused(result: Result<Vec<peer::Receipt>, EngineError>) {
    assert!(matches!(result, Err(EngineError::Vote(VoteError::Epoch { .. }))), "{result:?}");
}

/// Words of the former file end nothing; given again they are the same words, and they end it.
#[test]
fn pending_transfers_outlive_a_federation_file() {
    for settled in [true, false] {
        let mut pending = Pending::new();
        let tip = EXPIRY + RETURN_MARGIN;
        let preimage: &[u8] = if settled { &PREIMAGE } else { &[] };
        let former = pending.words(preimage, tip);
        pending.next_epoch();
        epoch_refused(pending.settle(2, &former));
        let other: &[u8] = if settled { &[] } else { &PREIMAGE };
        for member in 0..2 {
            let said = pending.word(member, other, tip);
            assert!(matches!(said, Err(EngineError::Decided("committed" | "returned"))), "{said:?}");
        }
        let words = pending.words(preimage, tip);
        assert_eq!(words, pending.words(preimage, tip), "a repeat gets the same");
        // One of each file is no proof.
        epoch_refused(pending.settle(2, &[words[0].clone(), former[1].clone()]));
        for member in 0..3 {
            let receipts = pending.settle(member, &words).unwrap();
            assert_eq!(pending.settle(member, &words).unwrap(), receipts);
            let version = pending.quorum.leaf(member, &pending.leaf.id).version;
            assert_eq!((version, pending.staged(member)), (u64::from(settled), 0));
        }
        if settled {
            let (id, leaf) = (pending.transfer_id(), pending.leaf.id);
            let (claim, _) = claim_request(&mut pending.quorum, &pending.bob, &leaf, &id, &pending.received);
            pending.quorum.run(Kind::Claim(claim)).unwrap();
        }
    }
}

/// The end was heard by one signer only when the file changed: its word is to be had again, so the others follow.
#[test]
fn an_end_that_one_signer_heard_of_reaches_all() {
    for settled in [true, false] {
        let mut pending = Pending::new();
        let preimage: &[u8] = if settled { &PREIMAGE } else { &[] };
        let tip = EXPIRY + RETURN_MARGIN;
        let former = pending.words(preimage, tip);
        pending.settle(0, &former).unwrap();
        pending.next_epoch();
        let words = pending.words(preimage, tip);
        for member in 0..3 {
            pending.settle(member, &words).unwrap();
        }
        let records: Vec<_> = (0..3).map(|m| pending.quorum.leaf(m, &pending.leaf.id)).collect();
        assert!(records.iter().all(|record| *record == records[0]));
    }
}

/// A decider that lost everything has its say again, from what all others say is pending, and hears of the end; the leaf
/// comes with the next run of its repair.
#[test]
fn d12_a_replaced_decider_ends_what_is_pending() {
    for settled in [true, false] {
        let (mut pending, lost) = Pending::new().replaced();
        let preimage: &[u8] = if settled { &PREIMAGE } else { &[] };
        let tip = EXPIRY + RETURN_MARGIN;
        assert!(matches!(pending.word(1, &[7; 32], 0), Err(EngineError::Vote(_))), "not its preimage");
        assert!(matches!(pending.word(1, &[], tip - 1), Err(EngineError::Vote(_))), "too early");
        let words = pending.words(preimage, tip);
        let other: &[u8] = if settled { &[] } else { &PREIMAGE };
        assert!(matches!(pending.word(1, other, tip), Err(EngineError::Decided(_))), "one word");
        for member in 0..3 {
            pending.settle(member, &words).unwrap();
            pending.settle(member, &words).unwrap();
        }
        let digest = words[0].digest.clone().try_into().unwrap();
        let contrary =
            if settled { Ruling::Abort { height: tip } } else { Ruling::Commit { preimage: PREIMAGE } };
        let forged: Vec<_> = (0..2).map(|m| pending.forged(m, contrary.clone(), digest)).collect();
        assert!(matches!(pending.settle(1, &forged), Err(EngineError::Decided(_))));
        assert!(pending.quorum.members[1].engine.alarms().any(|alarm| alarm == "both_proofs"));

        let (quorum, taken) = repairs::once_more(pending.quorum, lost);
        pending.quorum = quorum;
        assert!(taken > 0);
        for prefix in ["leaf/", "maturity/", "held/", "transfer/", "pending/"] {
            let [ours, theirs] =
                [1, 0].map(|m| pending.quorum.read(m, |txn| txn.scan_records(prefix.as_bytes()).unwrap()));
            assert_eq!(ours, theirs, "{prefix}");
        }
    }
}

/// Who has heard of the end does not list it as pending: the replaced decider then knows of nothing, and says nothing.
#[test]
fn d12_a_replaced_decider_says_nothing_on_what_has_ended_somewhere() {
    let mut pending = Pending::new();
    let former = pending.words(&PREIMAGE, 0);
    pending.settle(2, &former).unwrap();
    let (mut pending, _) = pending.replaced();
    for (preimage, tip) in [(&PREIMAGE[..], 0), (&[], EXPIRY + RETURN_MARGIN)] {
        assert!(matches!(pending.word(1, preimage, tip), Err(EngineError::Unknown(_))));
    }
}
