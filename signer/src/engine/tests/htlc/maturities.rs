//! D6 (a) and resources: what a returned HTLC leaves behind.

use super::*;
use spark_rules::{leaf::LeafRecord, tx::Timelock};

/// The same leaf once more, for the same hash.
fn again(pending: Pending) -> Result<Pending, String> {
    let Pending { quorum, alice, bob, leaf, .. } = pending;
    Pending::of(quorum, alice, bob, leaf)
}

/// A payment hash has one live HTLC per sender and receiver; a return frees it, a settlement never does.
#[test]
fn a_payment_hash_has_one_live_htlc() {
    for settled in [false, true] {
        let mut pending = Pending::new();
        // Whoever knows the hash does not occupy it for others.
        let mallory = Wallet::new();
        let dust = deposit(&mut pending.quorum, &mallory, 1_000);
        let (theirs, _) = htlc_request(&mut pending.quorum, &mallory, &dust, &pending.bob, &PREIMAGE);
        let theirs = operation(&mut pending.quorum, Kind::Htlc(theirs));
        pending.quorum.certify(&theirs).unwrap();
        let second = deposit(&mut pending.quorum, &pending.alice, 20_000);
        let pay = |pending: &mut Pending, to: &Wallet| {
            let (htlc, _) = htlc_request(&mut pending.quorum, &pending.alice, &second, to, &PREIMAGE);
            let request = operation(&mut pending.quorum, Kind::Htlc(htlc));
            pending.quorum.certify(&request).map(drop)
        };
        let bob = Wallet { identity: SecretScalar::from_bytes(&pending.bob.identity.to_bytes()).unwrap() };
        assert_eq!(pay(&mut pending, &bob).unwrap_err(), "LEAF_UNAVAILABLE");
        if settled {
            pending.end(&PREIMAGE, 0);
            assert_eq!(pay(&mut pending, &bob).unwrap_err(), "LEAF_UNAVAILABLE");
            // Whom else the payer pays with this hash is not the receiver's affair.
            pay(&mut pending, &Wallet::new()).unwrap();
        } else {
            pending.returned();
            pay(&mut pending, &bob).unwrap();
        }
    }
}

/// Public wallets take current - 100 again after a return: for the same receiver, or without a preimage.
#[test]
fn a_returned_maturity_is_shared_once() {
    let mut pending = Pending::new();
    let fresh = pending.quorum.leaf(0, &pending.leaf.id);
    pending.returned();
    let mut pending = again(pending).unwrap();
    pending.returned();

    let (htlc, _) = {
        let stranger = Wallet::new();
        htlc_request(&mut pending.quorum, &pending.alice, &pending.leaf, &stranger, &PREIMAGE)
    };
    let request = operation(&mut pending.quorum, Kind::Htlc(htlc));
    assert_eq!(pending.quorum.certify(&request).unwrap_err(), "MATURITY_USED");

    let Pending { mut quorum, alice, bob, leaf, .. } = pending;
    let carol = Wallet::new();
    let (send, received) = super::super::send_request(&mut quorum, &alice, &leaf, carol.id());
    let id = send.transfer_id.clone();
    quorum.run(Kind::Send(send)).unwrap();
    let (claim, key) = claim_request(&mut quorum, &carol, &leaf.id, &id, &received);
    quorum.run(Kind::Claim(claim)).unwrap();
    let record = quorum.leaf(0, &leaf.id);
    assert_eq!(record.refund_timelock.blocks(), 1900);

    // A ledger that forgot the step would still not sign at it again, for anybody.
    let leaf = Leaf { id: leaf.id, key };
    quorum.plant(&LeafRecord { refunds: fresh.refunds, refund_timelock: fresh.refund_timelock, ..record });
    let (send, _) = super::super::send_request(&mut quorum, &carol, &leaf, alice.id());
    assert_eq!(quorum.run(Kind::Send(send)).unwrap_err(), "MATURITY_USED");
    assert_eq!(Pending::of(quorum, carol, bob, leaf).err().unwrap(), "MATURITY_USED");
}

/// While it is pending, and after it was settled, nothing shares its maturity but the receiver's claim.
#[test]
fn a_settled_maturity_is_the_receivers() {
    let mut pending = Pending::new();
    let fresh = pending.quorum.leaf(0, &pending.leaf.id);
    pending.end(&PREIMAGE, 0);
    let id = pending.transfer_id();
    let (claim, key) =
        claim_request(&mut pending.quorum, &pending.bob, &pending.leaf.id, &id, &pending.received);
    pending.quorum.run(Kind::Claim(claim)).unwrap();
    let record = pending.quorum.leaf(0, &pending.leaf.id);
    let leaf = Leaf { id: pending.leaf.id, key };
    let planted = LeafRecord { refunds: fresh.refunds, refund_timelock: fresh.refund_timelock, ..record };
    pending.quorum.plant(&planted);
    let to = pending.alice.id();
    let (send, _) = super::super::send_request(&mut pending.quorum, &pending.bob, &leaf, to);
    assert_eq!(pending.quorum.run(Kind::Send(send)).unwrap_err(), "MATURITY_USED");
}

/// A sender that once gave a leaf away for a preimage at a low step, and got it back, cannot pay it on at a higher one: its
/// accomplice's refund would mature long before the next owner's.
#[test]
fn nothing_is_signed_above_a_step_that_came_back() {
    let mut pending = {
        let mut quorum = Quorum::new(2, 3);
        let (alice, bob) = (Wallet::new(), Wallet::new());
        let leaf = deposit(&mut quorum, &alice, 50_000);
        let fresh = quorum.leaf(0, &leaf.id);
        // The transactions are those of the step, whatever the leaf's own is.
        let low = LeafRecord { refund_timelock: Timelock::new(400).unwrap(), ..fresh.clone() };
        let terms = Htlc::new(payment_hash(&PREIMAGE), bob.id(), alice.id());
        let plan = low.build_htlc(&terms).unwrap();
        let (htlc, received) =
            htlc_request_of(&mut quorum, &alice, &leaf, &bob, &PREIMAGE, &one_time::transfer_id(), &plan);
        let request = operation(&mut quorum, Kind::Htlc(htlc));
        Pending { quorum, alice, bob, leaf, request, received }.decided().unwrap()
    };
    pending.returned();
    let Pending { mut quorum, alice, bob, leaf, .. } = pending;
    assert_eq!(quorum.leaf(0, &leaf.id).refund_timelock.blocks(), 2000);
    let victim = Wallet::new();
    let (send, _) = super::super::send_request(&mut quorum, &alice, &leaf, victim.id());
    assert_eq!(quorum.run(Kind::Send(send)).unwrap_err(), "MATURITY_USED", "at 1900");
    assert_eq!(Pending::of(quorum, alice, bob, leaf).err().unwrap(), "MATURITY_USED", "nor for a preimage");
}
