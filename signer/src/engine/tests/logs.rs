//! Witnesses of deletion logs (S7, D16): what they cosign, and what makes them stop.

use spark_proto::{
    peer::v1::{self as peer, Receipt, operation::Request as Kind},
    signer::v1 as wire,
};
use spark_rules::{
    checkpoint::{self, Checkpoint, Extension},
    ids::OperatorIndex,
    receipt,
    witness::{self, Frontier},
};

use super::{Wallet, claim_request, deposit, operation, quorum::Quorum, send_request};
use crate::{
    engine::{Acknowledge, EngineError, Reply, Request},
    vault::{SecretId, SecretKind, Token as _},
};

/// A leaf that changed hands: three receipts in every log, of its key's making, of a send and of a claim.
pub(super) fn quorum() -> Quorum {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 100_000);
    let (send, received) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let id = send.transfer_id.clone();
    quorum.run(Kind::Send(send)).unwrap();
    let (claim, _) = claim_request(&mut quorum, &bob, &leaf.id, &id, &received);
    quorum.run(Kind::Claim(claim)).unwrap();
    quorum
}

pub(super) fn head(quorum: &mut Quorum) -> String {
    match quorum.call(0, Request::GetCheckpoint(wire::GetCheckpointRequest {})).unwrap() {
        Reply::Checkpoint(reply) => reply.checkpoint,
        _ => panic!(),
    }
}

pub(super) fn verified(quorum: &Quorum, note: &str) -> Checkpoint {
    Checkpoint::verify(note, &quorum.federation, OperatorIndex::new(0)).unwrap()
}

/// Entries of operator 0's log, and its head after them.
pub(super) fn page(quorum: &mut Quorum, from: u64, until: u64) -> (Vec<Receipt>, String) {
    match quorum.call(0, Request::ReadLog(wire::ReadLogRequest { from, until })).unwrap() {
        Reply::Log(reply) => (reply.entries, reply.checkpoint),
        _ => panic!(),
    }
}

pub(super) fn cosign(
    quorum: &mut Quorum,
    witness: usize,
    from: u64,
    entries: Vec<Receipt>,
    checkpoint: String,
) -> Result<wire::CosignLogResponse, EngineError> {
    let request = wire::CosignLogRequest { operator: 0, from, entries, checkpoint };
    match quorum.call(witness, Request::CosignLog(request))? {
        Reply::Cosigned(reply) => Ok(reply),
        _ => panic!(),
    }
}

/// Everything at once.
pub(super) fn follow(quorum: &mut Quorum, witness: usize) -> wire::CosignLogResponse {
    let note = head(quorum);
    let size = verified(quorum, &note).size;
    let from = cosign(quorum, witness, size, Vec::new(), note.clone()).unwrap().size;
    let (entries, _) = page(quorum, from, size);
    cosign(quorum, witness, from, entries, note).unwrap()
}

/// What a lying operator 0 signs.
pub(super) fn forge(quorum: &Quorum, size: u64, root: [u8; 32], extension: Extension) -> String {
    let origin = checkpoint::origin(&quorum.federation, OperatorIndex::new(0));
    let text = tlog_tiles::Checkpoint::new(&origin, size, tlog_tiles::Hash(root), &extension.to_lines());
    let text = text.unwrap().to_bytes();
    let token = &quorum.members[0].token;
    let key = token.federation_public_key();
    let signature = key.note_blob(&token.sign_federation(&text).unwrap()).unwrap();
    let signature = signed_note::Signature::new(origin.clone(), key.note_id(&origin), signature).unwrap();
    String::from_utf8(signed_note::Note::new(&text, &[signature]).unwrap().to_bytes()).unwrap()
}

/// A log of these entries, as operator 0 would sign it later than anything it signed before.
pub(super) fn forge_log(quorum: &mut Quorum, entries: &[Receipt]) -> String {
    let note = head(quorum);
    let mut extension = verified(quorum, &note).extension;
    extension.position.sequence += 1;
    let mut frontier = Frontier::default();
    entries.iter().for_each(|entry| frontier.push(&receipt::leaf(entry)));
    extension.log_size = frontier.size();
    forge(quorum, frontier.size(), frontier.root(), extension)
}

/// Whoever can write long entries cannot make a page that nobody can carry.
#[test]
fn a_page_of_the_log_ends_by_its_bytes() {
    let mut quorum = quorum();
    let engine = &mut quorum.members[0].engine;
    let dying = SecretId::new([1; 16], SecretKind::PackageKey, 0);
    let mut txn = engine.vault.begin();
    txn.put_secret(dying, vec![1; 32].into()).unwrap();
    txn.commit().unwrap();
    let mut txn = engine.vault.begin();
    txn.delete_secret(&dying).unwrap();
    for n in 0..400u32 {
        let id = |k: u32| [n.to_be_bytes(), k.to_be_bytes(), [0; 4], [0; 4]].concat();
        let package_keys = (0..256).map(id).collect();
        let unused = Receipt { phase: receipt::UNUSED.into(), package_keys, ..Receipt::default() };
        engine.shared.append_receipt(&mut txn, unused).unwrap();
    }
    txn.commit().unwrap();
    let note = head(&mut quorum);
    let size = verified(&quorum, &note).size;
    let (mut from, mut pages) = (0, 0);
    while from < size {
        let (entries, note) = page(&mut quorum, from, size);
        let bytes: usize = entries.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes < (1 << 20) + (8 << 10), "{bytes}");
        let after = from + entries.len() as u64;
        assert_eq!(verified(&quorum, &note).size, after);
        assert_eq!(cosign(&mut quorum, 1, from, entries, note).unwrap().size, after);
        (from, pages) = (after, pages + 1);
    }
    assert!((2..=3).contains(&pages), "{pages}");
}

#[test]
fn s7_witnesses_follow_a_log_page_by_page_and_cosign_its_head() {
    let mut quorum = quorum();
    let note = head(&mut quorum);
    let size = verified(&quorum, &note).size;
    assert!(size >= 3);
    // Who knows nothing of a witness learns where it stands.
    let told = cosign(&mut quorum, 1, size, Vec::new(), note.clone()).unwrap();
    assert_eq!((told.size, told.cosignature.as_str()), (0, ""));
    let (entries, early) = page(&mut quorum, 0, 2);
    assert_eq!((entries.len(), verified(&quorum, &early).size), (2, 2));
    assert_eq!(verified(&quorum, &early).extension.log_size, size, "it says that it is not the present head");
    assert_eq!(cosign(&mut quorum, 1, 0, entries, early).unwrap().size, 2);
    let (entries, _) = page(&mut quorum, 2, size);
    let reply = cosign(&mut quorum, 1, 2, entries, note.clone()).unwrap();
    assert_eq!(reply.size, size);
    let (all, _) = page(&mut quorum, 0, size);
    let other = cosign(&mut quorum, 2, 0, all, note.clone()).unwrap();
    let cosigned = format!("{note}{}\n{}\n", reply.cosignature, other.cosignature);
    let found = witness::cosigners(&cosigned, &quorum.federation, OperatorIndex::new(0));
    assert_eq!(found.into_keys().map(OperatorIndex::get).collect::<Vec<_>>(), [1, 2]);
    // A repeat is answered again, also by a witness that was restarted.
    quorum.restart(1);
    quorum.witness(1).unwrap();
    let again = cosign(&mut quorum, 1, size, Vec::new(), note).unwrap();
    assert!(!again.cosignature.is_empty());
}

#[test]
fn s7_wrong_entries_get_no_cosignature_and_are_no_evidence() {
    let mut quorum = quorum();
    let note = head(&mut quorum);
    let size = verified(&quorum, &note).size;
    let (entries, _) = page(&mut quorum, 0, size);
    let attempts: [fn(&mut Vec<Receipt>); 5] = [
        |entries| entries.swap(0, 1),
        |entries| entries[1].retired_version += 1,
        |entries| entries[1].salt[0] ^= 1,
        |entries| entries[2] = entries[1].clone(),
        |entries| entries[1].delete_claim.push('!'),
    ];
    for change in attempts {
        let mut wrong = entries.clone();
        change(&mut wrong);
        let refused = cosign(&mut quorum, 1, 0, wrong, note.clone());
        assert!(matches!(refused, Err(EngineError::LogDiffers(0))), "{refused:?}");
    }
    // More than any honest signer writes.
    for change in [
        (|entries| entries[1].delete_claim = "!".repeat(65)) as fn(&mut Vec<Receipt>),
        |entries| entries[1].keyshare_id = vec![0; 1 << 20],
        |entries| entries[1].live_versions = vec![0; 65],
    ] {
        let mut wrong = entries.clone();
        change(&mut wrong);
        let refused = cosign(&mut quorum, 1, 0, wrong, note.clone());
        assert!(matches!(refused, Err(EngineError::Malformed("entry"))), "{refused:?}");
    }
    // One entry dropped: not as many as the head counts.
    let told = cosign(&mut quorum, 1, 0, entries[1..].to_vec(), note.clone()).unwrap();
    assert_eq!((told.size, told.cosignature.is_empty(), told.distrust.is_empty()), (0, true, true));
    // A head that operator 0 did not sign, and one of somebody else's log.
    let foreign = note.replacen("spark/destroyed-before 0", "spark/destroyed-before 9", 1);
    assert!(cosign(&mut quorum, 1, 0, entries.clone(), foreign).is_err());
    let request =
        wire::CosignLogRequest { operator: 2, from: 0, entries: entries.clone(), checkpoint: note.clone() };
    assert!(quorum.call(1, Request::CosignLog(request)).is_err());
    // Nobody is his own witness.
    let own =
        wire::CosignLogRequest { operator: 0, from: 0, entries: entries.clone(), checkpoint: note.clone() };
    assert!(quorum.call(0, Request::CosignLog(own)).is_err());
    // None of this left a trace. Nor does a relay frame anybody by what is not in the hash of an entry.
    let mut framed = entries;
    framed[0].log_index += 1;
    framed[1].state = "confirmed".into();
    assert!(!cosign(&mut quorum, 1, 0, framed, note).unwrap().cosignature.is_empty());
    assert_eq!(quorum.members[1].engine.alarms().count(), 0);
}

/// Lets operator 0 lie to witness 1, which followed its log. Whatever it shows must stop the witness.
fn caught(reason: &str, lie: impl FnOnce(&mut Quorum) -> (u64, Vec<Receipt>, String)) {
    let mut quorum = quorum();
    let (carol, dave) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &carol, 70_000);
    let (send, _) = send_request(&mut quorum, &carol, &leaf, dave.id());
    let mut request = operation(&mut quorum, Kind::Send(send));
    assert!(!follow(&mut quorum, 1).cosignature.is_empty());
    let (from, entries, note) = lie(&mut quorum);
    let reply = cosign(&mut quorum, 1, from, entries, note).unwrap();
    assert_eq!((reply.distrust.as_str(), reply.cosignature.as_str()), (reason, ""));
    let engine = &mut quorum.members[1].engine;
    assert_eq!(engine.alarms().collect::<Vec<_>>(), ["log_distrusted"]);
    let [(operator, said, evidence)] = &engine.distrusted().unwrap()[..] else { panic!() };
    assert_eq!((operator.get(), said.as_str(), hex::encode(evidence)), (0, reason, reply.evidence));
    let evidence = *evidence;

    // It stays, whatever comes next, over a restart as well.
    quorum.restart(1);
    quorum.witness(1).unwrap();
    assert_eq!(follow_refused(&mut quorum), reason);
    assert_eq!(quorum.members[1].engine.distrusted().unwrap().len(), 1);
    assert_eq!(quorum.members[1].engine.alarms().collect::<Vec<_>>(), ["log_distrusted"]);
    assert_eq!(vote(&mut quorum, &mut request), "OPERATOR_DISTRUSTED");

    // Until a person acts: then the log is followed anew, from its beginning.
    settle(&mut quorum, evidence);
    assert!(quorum.members[1].engine.distrusted().unwrap().is_empty());
    assert_eq!(quorum.members[1].engine.alarms().count(), 0);
    // The restart lost the nonces of this package, which is the only thing wrong with it now.
    assert_eq!(vote(&mut quorum, &mut request), "NONCE_UNKNOWN");
    assert!(!follow(&mut quorum, 1).cosignature.is_empty());
}

/// What was settled once is settled once: the same two heads again are no way to make a witness forget.
#[test]
fn s7_a_settled_lie_is_no_licence() {
    let mut quorum = quorum();
    let honest = head(&mut quorum);
    let Checkpoint { size, mut root, extension, .. } = verified(&quorum, &honest);
    root[0] ^= 1;
    let lie = forge(&quorum, size, root, extension);
    let (entries, _) = page(&mut quorum, 0, size);
    let mut seen = Vec::new();
    for _ in 0..3 {
        // To the byte the same each time; the first call after a settlement only says where to begin.
        cosign(&mut quorum, 1, 0, Vec::new(), honest.clone()).unwrap();
        let followed = cosign(&mut quorum, 1, 0, entries.clone(), honest.clone()).unwrap();
        assert!(!followed.cosignature.is_empty());
        let caught = cosign(&mut quorum, 1, size, Vec::new(), lie.clone()).unwrap();
        assert_eq!(caught.distrust, "LOG_FORKED");
        let engine = &mut quorum.members[1].engine;
        let [(_, _, evidence)] = &engine.distrusted().unwrap()[..] else { panic!("forgotten: {seen:?}") };
        assert!(!seen.contains(evidence));
        seen.push(*evidence);
        let evidence = *evidence;
        settle(&mut quorum, evidence);
    }
}

/// A person at signer 1 settles evidence against operator 0.
fn settle(quorum: &mut Quorum, evidence: [u8; 32]) {
    let engine = &mut quorum.members[1].engine;
    let said = Acknowledge {
        kind: "log_distrusted".into(),
        id: hex::encode(evidence),
        operator: Some(0),
        by: "carol".into(),
        uid: 7,
        reason: "operator 0 was repaired".into(),
    };
    let stranger = Acknowledge { operator: Some(2), ..said.clone() };
    assert_eq!(engine.acknowledge(stranger, 5).unwrap_err().reason(), "ALARM_UNKNOWN");
    let other = Acknowledge { id: "00".repeat(32), ..said.clone() };
    assert_eq!(engine.acknowledge(other, 5).unwrap_err().reason(), "ALARM_UNKNOWN");
    let silent = Acknowledge { reason: " ".into(), ..said.clone() };
    assert_eq!(engine.acknowledge(silent, 5).unwrap_err().reason(), "FIELD_INVALID");
    let record = engine.acknowledge(said.clone(), 5).unwrap();
    assert!(record.evidence.is_some());
    let epoch_and_sequence = engine.vault().position();
    assert_eq!(engine.acknowledge(said, 9).unwrap(), record);
    assert_eq!(engine.vault().position(), epoch_and_sequence);
}

fn follow_refused(quorum: &mut Quorum) -> String {
    let note = head(quorum);
    cosign(quorum, 1, 0, Vec::new(), note).unwrap().distrust
}

/// Signer 1's vote on the next attempt of what operator 0 coordinates.
pub(super) fn vote(quorum: &mut Quorum, request: &mut peer::Operation) -> String {
    let prepare = wire::PrepareRequest { operation: Some(request.clone()) };
    request.attempt += 1;
    match quorum.call(1, Request::Prepare(prepare)).unwrap() {
        Reply::Prepare(reply) => reply.vote.unwrap().reason,
        _ => panic!(),
    }
}

#[test]
fn s7_a_forked_log_stops_the_witness() {
    caught("LOG_FORKED", |quorum| {
        let note = head(quorum);
        let Checkpoint { size, mut root, extension, .. } = verified(quorum, &note);
        root[0] ^= 1;
        (size, Vec::new(), forge(quorum, size, root, extension))
    });
}

#[test]
fn s7_a_shrinking_log_stops_the_witness() {
    caught("LOG_SHRUNK", |quorum| {
        let (entries, _) = page(quorum, 0, 2);
        (2, Vec::new(), forge_log(quorum, &entries))
    });
}

#[test]
fn s7_an_epoch_that_goes_back_stops_the_witness() {
    caught("EPOCH_WENT_BACK", |quorum| {
        let note = head(quorum);
        let Checkpoint { size, root, mut extension, .. } = verified(quorum, &note);
        extension.position.sequence += 1;
        extension.position.root_epoch -= 1;
        (size, Vec::new(), forge(quorum, size, root, extension))
    });
    // In an entry.
    caught("EPOCH_WENT_BACK", |quorum| {
        let size = follow(quorum, 1).size;
        let (mut entries, _) = page(quorum, 0, size);
        let last = entries.last().unwrap().clone();
        let version = last.new_version;
        let next = Receipt {
            retired_version: version,
            new_version: version + 1,
            live_versions: vec![version + 1],
            root_epoch_before: last.root_epoch_before - 1,
            log_index: size,
            ..last
        };
        entries.push(next.clone());
        (size, vec![next], forge_log(quorum, &entries))
    });
}

/// Section 4, check 6: a version dies with the root that sealed it, which is not older than the version.
#[test]
fn s7_a_destruction_without_a_new_root_stops_the_witness() {
    /// What operator 0 says next of a key of its log: the version after the live one.
    fn next(last: &Receipt, phase: &str, epochs: (u64, u64)) -> Receipt {
        let new = last.new_version + u64::from(phase != "abort");
        Receipt {
            phase: phase.into(),
            retired_version: last.new_version,
            new_version: new,
            live_versions: vec![new],
            root_epoch_before: epochs.0,
            root_epoch_after: epochs.1,
            ..last.clone()
        }
    }
    let newest = |quorum: &mut Quorum| {
        let size = follow(quorum, 1).size;
        let (entries, _) = page(quorum, 0, size);
        let claim = entries.iter().rfind(|entry| entry.phase == "claim").unwrap().clone();
        let epoch = entries.iter().map(|entry| entry.root_epoch_after).max().unwrap();
        (size, entries, claim, epoch)
    };
    for phase in ["send", "claim", "renew", "refresh"] {
        caught("EPOCH_WENT_BACK", |quorum| {
            let (size, mut entries, claim, epoch) = newest(quorum);
            let next = next(&claim, phase, (epoch, epoch));
            entries.push(next.clone());
            (size, vec![next], forge_log(quorum, &entries))
        });
    }
    // Two versions of one key in one batch: the second would die with a root that never sealed it.
    caught("EPOCH_WENT_BACK", |quorum| {
        let (size, mut entries, claim, epoch) = newest(quorum);
        let first = next(&claim, "send", (epoch, epoch + 1));
        let second = next(&first, "claim", (epoch, epoch + 1));
        entries.extend([first.clone(), second.clone()]);
        (size, vec![first, second], forge_log(quorum, &entries))
    });
    // What an honest signer may say: an abort in a batch that another call's destruction ends, or none, and the key's next
    // version in a later batch.
    let mut quorum = quorum();
    let (size, mut entries, claim, epoch) = newest(&mut quorum);
    let aborts = [next(&claim, "abort", (epoch, epoch)), next(&claim, "abort", (epoch, epoch + 1))];
    let first = next(&claim, "send", (epoch, epoch + 1));
    let second = next(&first, "claim", (epoch + 1, epoch + 3));
    let more = [aborts.to_vec(), vec![first, second]].concat();
    entries.extend(more.clone());
    let note = forge_log(&mut quorum, &entries);
    assert!(!cosign(&mut quorum, 1, size, more, note).unwrap().cosignature.is_empty());
}

/// A key that nobody has made is recorded by nobody.
#[test]
fn s7_keys_that_do_not_exist_fill_no_store() {
    let mut quorum = quorum();
    let size = follow(&mut quorum, 1).size;
    let (mut entries, _) = page(&mut quorum, 0, size);
    let made = Receipt {
        keyshare_id: vec![9; 16],
        log_index: size,
        root_epoch_before: entries.last().unwrap().root_epoch_before,
        root_epoch_after: entries.last().unwrap().root_epoch_after,
        ..entries[0].clone()
    };
    assert_eq!(made.phase, "dkg");
    entries.push(made.clone());
    let note = forge_log(&mut quorum, &entries);
    let refused = cosign(&mut quorum, 1, size, vec![made], note);
    assert!(matches!(refused, Err(EngineError::Unknown("keyshare of an entry"))), "{refused:?}");
}

/// Heads of one batch have one position: the one that says less is not cosigned after the one that says more.
#[test]
fn s7_nothing_is_taken_back_within_one_position() {
    let mut quorum = quorum();
    let size = follow(&mut quorum, 1).size;
    let note = head(&mut quorum);
    let Checkpoint { root, mut extension, .. } = verified(&quorum, &note);
    extension.position.sequence += 1;
    extension.destroyed_before = 2;
    let more = forge(&quorum, size, root, extension);
    assert!(!cosign(&mut quorum, 1, size, Vec::new(), more).unwrap().cosignature.is_empty());
    extension.destroyed_before = 1;
    let less = forge(&quorum, size, root, extension);
    let reply = cosign(&mut quorum, 1, size, Vec::new(), less).unwrap();
    assert_eq!((reply.cosignature.as_str(), reply.distrust.as_str()), ("", ""));
}

#[test]
fn s7_a_version_that_is_retired_twice_stops_the_witness() {
    let lies: [fn(&Receipt) -> Receipt; 5] = [
        // The receipt of the claim once more.
        Clone::clone,
        // One version is left out.
        |last| Receipt {
            retired_version: last.new_version + 1,
            new_version: last.new_version + 2,
            live_versions: vec![last.new_version + 2],
            ..last.clone()
        },
        // The old version lives on.
        |last| Receipt {
            retired_version: last.new_version,
            new_version: last.new_version + 1,
            live_versions: vec![last.new_version, last.new_version + 1],
            ..last.clone()
        },
        // The key is made once more.
        |last| Receipt {
            phase: "dkg".into(),
            retired_version: 0,
            new_version: 0,
            live_versions: vec![0],
            ..last.clone()
        },
        // A key of which the log never told.
        |last| Receipt { keyshare_id: vec![9; 16], ..last.clone() },
    ];
    for lie in lies {
        caught("VERSION_REPEATED", |quorum| {
            let size = follow(quorum, 1).size;
            let (mut entries, _) = page(quorum, 0, size);
            let newest = entries.last().unwrap();
            let claim = entries.iter().rfind(|entry| entry.phase == "claim").unwrap();
            let next = Receipt {
                log_index: size,
                root_epoch_before: newest.root_epoch_before,
                root_epoch_after: newest.root_epoch_after,
                ..lie(claim)
            };
            entries.push(next.clone());
            (size, vec![next], forge_log(quorum, &entries))
        });
    }
}

/// Package keys that died unused are of no keyshare: witnesses cosign the entry and keep nothing of it.
#[test]
fn s7_witnesses_follow_entries_of_unused_package_keys() {
    let mut quorum = quorum();
    let mut issue = |count, discard| {
        let request_id = rand::random::<[u8; 16]>().to_vec();
        let request = wire::IssuePackageKeysRequest { request_id, count, discard };
        let Reply::PackageKeys(reply) = quorum.call(0, Request::IssuePackageKeys(request)).unwrap() else {
            panic!()
        };
        reply
    };
    let keys: Vec<Vec<u8>> = (0..3).flat_map(|_| issue(100, Vec::new()).keys).map(|key| key.key_id).collect();
    assert_eq!(issue(0, keys.clone()).destroyed, 300);
    let before = follow(&mut quorum, 1);
    assert!(!before.cosignature.is_empty());
    let (mut entries, _) = page(&mut quorum, 0, before.size);
    let unused: Vec<&Receipt> = entries.iter().filter(|entry| entry.phase == receipt::UNUSED).collect();
    let told: Vec<usize> = unused.iter().map(|entry| entry.package_keys.len()).collect();
    assert_eq!(told, [receipt::MAX_PACKAGE_KEYS, 300 - receipt::MAX_PACKAGE_KEYS]);
    let records = quorum.read(1, |txn| txn.scan_records(b"log-version/").unwrap().len());
    assert_eq!(records, 1, "the one key that was made");

    // One that speaks of a keyshare, too, is followed by nobody.
    let last = entries.last().unwrap().clone();
    let next = Receipt { keyshare_id: vec![9; 16], log_index: before.size, ..last };
    entries.push(next.clone());
    let note = forge_log(&mut quorum, &entries);
    let refused = cosign(&mut quorum, 1, before.size, vec![next], note);
    assert!(matches!(refused, Err(EngineError::Malformed(_))), "{refused:?}");
}

/// Tiles and consistency proofs lead to the signed root.
#[test]
fn s7_tiles_and_consistency_proofs_agree_with_the_head() {
    let mut quorum = quorum();
    let note = head(&mut quorum);
    let Checkpoint { size, root, .. } = verified(&quorum, &note);
    let mut tile = |level, index, width, records| {
        let request = wire::ReadTileRequest { level, index, width, records };
        quorum.call(0, Request::ReadTile(request)).map(|reply| match reply {
            Reply::Tile(reply) => reply.data,
            _ => panic!(),
        })
    };
    let records = tile(0, 0, size as u32, true).unwrap();
    let mut frontier = Frontier::default();
    let hashes = tile(0, 0, size as u32, false).unwrap();
    assert_eq!((records.len() as u64, hashes.len() as u64), (size * 34, size * 32));
    for (record, hash) in records.chunks_exact(34).zip(hashes.chunks_exact(32)) {
        assert_eq!(record[..2], [0, 32]);
        assert_eq!(tlog_tiles::record_hash(&record[2..]).0, *hash);
        frontier.push(&record[2..]);
    }
    assert_eq!(frontier.root(), root);
    for (level, index, width) in [
        (0, 0, 0),
        (0, 0, 257),
        (8, 0, 1),
        (0, 0, size as u32 + 1),
        (1, 0, 1),
        (0, u64::MAX / 2, 1),
        (7, 1 << 40, 1),
    ] {
        assert!(tile(level, index, width, false).is_err(), "{level} {index} {width}");
    }
    let roots: Vec<[u8; 32]> = {
        let mut frontier = Frontier::default();
        let mut roots = vec![frontier.root()];
        for record in records.chunks_exact(34) {
            frontier.push(&record[2..]);
            roots.push(frontier.root());
        }
        roots
    };
    for old in 1..=size {
        let request = wire::ProveConsistencyRequest { old_size: old, new_size: size };
        let Reply::Consistency(proof) = quorum.call(0, Request::ProveConsistency(request)).unwrap() else {
            panic!()
        };
        let mut before = roots[old as usize];
        checkpoint::verify_consistency(&proof.hashes, (old, before), (size, root)).unwrap();
        before[0] ^= 1;
        assert!(checkpoint::verify_consistency(&proof.hashes, (old, before), (size, root)).is_err());
    }
    for (old_size, new_size) in [(0, size), (size, size - 1), (1, size + 1)] {
        let request = wire::ProveConsistencyRequest { old_size, new_size };
        assert!(quorum.call(0, Request::ProveConsistency(request)).is_err());
    }
}
