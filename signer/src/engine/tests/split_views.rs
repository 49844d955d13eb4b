//! An operator that shows different logs to different witnesses (S7): they compare, and both stop.

use spark_proto::{
    peer::v1::{Receipt, operation::Request as Kind},
    signer::v1 as wire,
};
use spark_rules::{checkpoint::Checkpoint, receipt, witness::Frontier};

use super::{
    Wallet, deposit,
    logs::{cosign, follow, forge, forge_log, head, page, quorum, verified, vote},
    operation,
    quorum::{NOW, Quorum},
    send_request,
};
use crate::engine::{EngineError, Reply, Request};

fn compare(
    quorum: &mut Quorum,
    witness: usize,
    checkpoint: &str,
    hashes: Vec<Vec<u8>>,
    now: u64,
) -> Result<wire::CompareLogResponse, EngineError> {
    let request = wire::CompareLogRequest { operator: 0, checkpoint: checkpoint.to_owned(), hashes };
    let engine = &mut quorum.members[witness].engine;
    match engine.run(vec![Request::CompareLog(request)], now).remove(0)? {
        Reply::Compared(reply) => Ok(reply),
        _ => panic!(),
    }
}

/// What operator 0's own signer proves of its log.
fn proof(quorum: &mut Quorum, old_size: u64, new_size: u64) -> Vec<Vec<u8>> {
    let request = wire::ProveConsistencyRequest { old_size, new_size };
    match quorum.call(0, Request::ProveConsistency(request)).unwrap() {
        Reply::Consistency(reply) => reply.hashes,
        _ => panic!(),
    }
}

fn alarms(quorum: &Quorum, witness: usize) -> Vec<&'static str> {
    quorum.members[witness].engine.alarms().collect()
}

/// Operator 0's log with another last entry: what it shows to witness 2 only.
fn fork(quorum: &mut Quorum) -> Vec<Receipt> {
    let note = head(quorum);
    let size = verified(quorum, &note).size;
    let (mut entries, _) = page(quorum, 0, size);
    entries.last_mut().unwrap().salt[0] ^= 1;
    entries
}

fn shown_to(quorum: &mut Quorum, witness: usize, entries: Vec<Receipt>, note: &str) {
    let reply = cosign(quorum, witness, 0, entries, note.to_owned()).unwrap();
    assert!(!reply.cosignature.is_empty());
}

/// The witness votes for nothing that operator 0 coordinates, over a restart as well.
fn stopped(quorum: &mut Quorum, witness: usize, reason: &str) {
    assert_eq!(alarms(quorum, witness), ["log_distrusted"]);
    quorum.restart(witness);
    quorum.witness(witness).unwrap();
    let found = quorum.members[witness].engine.distrusted().unwrap();
    let said: Vec<_> = found.iter().map(|(operator, reason, _)| (operator.get(), reason.as_str())).collect();
    assert_eq!(said, [(0, reason)]);
    let [alarm] = &quorum.members[witness].engine.list_alarms().unwrap()[..] else { panic!() };
    assert_eq!(alarm.statements.len(), 2, "both heads, as they were signed");
}

#[test]
fn s7_two_heads_of_one_size_stop_both_witnesses() {
    let mut quorum = quorum();
    let (carol, dave) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &carol, 70_000);
    let (send, _) = send_request(&mut quorum, &carol, &leaf, dave.id());
    let mut request = operation(&mut quorum, Kind::Send(send));
    assert!(!follow(&mut quorum, 1).cosignature.is_empty());
    let honest = head(&mut quorum);
    let entries = fork(&mut quorum);
    let other = forge_log(&mut quorum, &entries);
    shown_to(&mut quorum, 2, entries, &other);
    // Each is content with what it was shown.
    assert!(alarms(&quorum, 1).is_empty() && alarms(&quorum, 2).is_empty());
    assert_eq!(
        compare(&mut quorum, 1, &honest, Vec::new(), NOW).unwrap(),
        wire::CompareLogResponse::default()
    );

    for (witness, theirs) in [(1, &other), (2, &honest)] {
        let reply = compare(&mut quorum, witness, theirs, Vec::new(), NOW).unwrap();
        assert_eq!((reply.distrust.as_str(), reply.checkpoint.as_str()), ("LOG_FORKED", ""));
        let again = compare(&mut quorum, witness, theirs, Vec::new(), NOW).unwrap();
        assert_eq!(again, reply);
        stopped(&mut quorum, witness, "LOG_FORKED");
    }
    assert_eq!(vote(&mut quorum, &mut request), "OPERATOR_DISTRUSTED");
    assert_eq!(cosign(&mut quorum, 1, 0, Vec::new(), honest).unwrap().distrust, "LOG_FORKED");
}

/// A head of another size on another log: the one thing that can show it, a proof, does not exist. Who asks for
/// cosignatures and does not prove is trusted no more; who is down only is not suspected.
#[test]
fn s7_a_log_that_is_not_proven_to_be_one_stops_both_witnesses() {
    let mut quorum = quorum();
    assert!(!follow(&mut quorum, 1).cosignature.is_empty());
    let honest = head(&mut quorum);
    let Checkpoint { size, mut extension, .. } = verified(&quorum, &honest);
    // It states an earlier head, so that nothing seems to be lost.
    let mut bent = page(&mut quorum, 0, size - 1).0;
    bent[1].salt[0] ^= 1;
    extension.position.sequence += 1;
    let mut frontier = Frontier::default();
    bent.iter().for_each(|entry| frontier.push(&receipt::leaf(entry)));
    let other = forge(&quorum, size - 1, frontier.root(), extension);
    shown_to(&mut quorum, 2, bent.clone(), &other);

    let good = proof(&mut quorum, size - 1, size);
    for (witness, theirs) in [(1, &other), (2, &honest)] {
        let mut now = NOW;
        // It is down: it asks for nothing, and is asked in vain.
        for _ in 0..100 {
            now += 60;
            let reply = compare(&mut quorum, witness, theirs, Vec::new(), now).unwrap();
            assert_eq!((reply.old_size, reply.new_size), (size - 1, size));
            assert_eq!(verified(&quorum, &reply.checkpoint).text, verified(&quorum, theirs).text);
            assert!(reply.distrust.is_empty());
        }
        // It works. The proof of its real log proves nothing of the other one.
        let mut rounds = 0;
        let reply = loop {
            rounds += 1;
            // Nor does it help to ask for a cosignature of something else.
            drop(cosign(&mut quorum, witness, 0, Vec::new(), honest.clone()));
            // However often it is compared meanwhile.
            for _ in 0..5 {
                now += 6;
                let hashes = if rounds % 2 == 0 { good.clone() } else { Vec::new() };
                let reply = compare(&mut quorum, witness, theirs, hashes, now).unwrap();
                assert!(reply.distrust.is_empty() || rounds == 10, "{rounds}");
                if rounds == 10 && !reply.distrust.is_empty() {
                    break;
                }
            }
            let reply = compare(&mut quorum, witness, theirs, good.clone(), now).unwrap();
            if !reply.distrust.is_empty() {
                break reply;
            }
            assert!(rounds < 20);
        };
        assert_eq!((reply.distrust.as_str(), rounds), ("LOG_UNPROVEN", 10));
        stopped(&mut quorum, witness, "LOG_UNPROVEN");
    }
}

/// An honest log is at different sizes for different witnesses all the time.
#[test]
fn s7_witnesses_of_one_log_at_different_sizes_are_content() {
    let mut quorum = quorum();
    let honest = head(&mut quorum);
    let size = verified(&quorum, &honest).size;
    // Nothing is followed yet.
    assert_eq!(
        compare(&mut quorum, 1, &honest, Vec::new(), NOW).unwrap(),
        wire::CompareLogResponse::default()
    );
    let (entries, early) = page(&mut quorum, 0, size - 1);
    cosign(&mut quorum, 1, 0, entries, early.clone()).unwrap();
    assert!(!follow(&mut quorum, 2).cosignature.is_empty());
    let hashes = proof(&mut quorum, size - 1, size);
    for (witness, theirs) in [(1, &honest), (2, &early)] {
        let asked = compare(&mut quorum, witness, theirs, Vec::new(), NOW).unwrap();
        assert_eq!((asked.old_size, asked.new_size), (size - 1, size));
        let mut bent = hashes.clone();
        bent[0][0] ^= 1;
        for wrong in [bent, hashes[1..].to_vec(), vec![vec![0; 31]]] {
            assert_eq!(compare(&mut quorum, witness, &asked.checkpoint, wrong, NOW).unwrap(), asked);
        }
        let reply = compare(&mut quorum, witness, &asked.checkpoint, hashes.clone(), NOW).unwrap();
        assert_eq!(reply, wire::CompareLogResponse::default());
    }
    // A demand follows the log of the witness that has it.
    compare(&mut quorum, 2, &early, Vec::new(), NOW).unwrap();
    deposit(&mut quorum, &Wallet::new(), 30_000);
    let more = follow(&mut quorum, 2).size;
    assert!(more > size);
    let asked = compare(&mut quorum, 2, &early, hashes, NOW).unwrap();
    assert_eq!((asked.old_size, asked.new_size), (size - 1, more));
    let hashes = proof(&mut quorum, size - 1, more);
    let reply = compare(&mut quorum, 2, &asked.checkpoint, hashes, NOW).unwrap();
    assert_eq!(reply, wire::CompareLogResponse::default());
    // What was proven is not held against it, however long it works.
    let mut now = NOW;
    for _ in 0..50 {
        now += 60;
        follow(&mut quorum, 2);
        let note = head(&mut quorum);
        assert!(compare(&mut quorum, 2, &note, Vec::new(), now).unwrap().checkpoint.is_empty());
    }
    assert!(alarms(&quorum, 1).is_empty() && alarms(&quorum, 2).is_empty());
}

/// Nobody is suspected by what its own signer did not sign.
#[test]
fn s7_nobody_is_framed_by_a_comparison() {
    let mut quorum = quorum();
    follow(&mut quorum, 1);
    let honest = head(&mut quorum);
    let altered = honest.replacen("spark/destroyed-before 0", "spark/destroyed-before 9", 1);
    assert_ne!(altered, honest);
    compare(&mut quorum, 1, &altered, Vec::new(), NOW).unwrap_err();
    for operator in [1, 2, 9] {
        let request = wire::CompareLogRequest { operator, checkpoint: honest.clone(), hashes: Vec::new() };
        quorum.call(1, Request::CompareLog(request)).unwrap_err();
    }
    compare(&mut quorum, 1, &honest, vec![vec![0; 32]; 129], NOW).unwrap_err();
    assert!(alarms(&quorum, 1).is_empty());
}
