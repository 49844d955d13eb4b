//! D12: a signer that lost its store and its HSM, made whole by the others.

use bitcoin::secp256k1::PublicKey;
use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
};
use spark_rules::{
    checkpoint::Checkpoint,
    ids::{Incarnation, KeyshareId, OperatorIndex},
};

use super::{
    Wallet, claim_request, deposit, operation,
    quorum::{Leaf, NOW, Quorum},
    refreshes, send_request,
};
use crate::{
    engine::{ApprovedRepair, EngineError, Reply, Request, ledger, prepare},
    repair::RepairError,
    vault::{SecretId, SecretKind, Token as _},
};

/// A quorum whose member 1 is new on its spare device, approved by the others and heard by them.
struct Case {
    quorum: Quorum,
    lost: super::quorum::Member,
    alice: Wallet,
    bob: Wallet,
    /// Alice's, as deposited.
    kept: Leaf,
    /// Bob's, after a send and a claim.
    moved: Leaf,
}

const LOST: usize = 1;

pub(super) fn transfer(quorum: &mut Quorum, from: &Wallet, leaf: &Leaf, to: &Wallet) -> Leaf {
    let (send, received) = send_request(quorum, from, leaf, to.id());
    let id = send.transfer_id.clone();
    quorum.run(Kind::Send(send)).unwrap();
    let (claim, key) = claim_request(quorum, to, &leaf.id, &id, &received);
    quorum.run(Kind::Claim(claim)).unwrap();
    Leaf { id: leaf.id, key }
}

fn approval(quorum: &Quorum) -> ApprovedRepair {
    let member = &quorum.members[LOST];
    ApprovedRepair {
        incarnation: member.engine.shared.incarnation,
        federation_key: member.token.federation_public_key(),
    }
}

/// Member 1 loses everything; a new signer takes its place, made whole under the next federation file.
pub(super) fn replace(mut quorum: Quorum) -> (Quorum, super::quorum::Member) {
    let lost = quorum.lose(LOST);
    let mut case = Case::around(quorum, lost);
    case.approve();
    case.quorum.witness(LOST).unwrap();
    case.repair(64);
    (case.quorum, case.lost)
}

/// Another run of the repair, for what the one before left out: how much it took.
pub(super) fn once_more(quorum: Quorum, lost: super::quorum::Member) -> (Quorum, u64) {
    let mut case = Case::around(quorum, lost);
    let (taken, _) = case.repair(64);
    (case.quorum, taken)
}

impl Case {
    fn around(quorum: Quorum, lost: super::quorum::Member) -> Self {
        let nobodys = || Leaf {
            id: spark_rules::ids::LeafId::from_bytes(rand::random()),
            key: crate::secret::SecretScalar::random(&mut rand::rngs::OsRng),
        };
        let (alice, bob) = (Wallet::new(), Wallet::new());
        Self { quorum, lost, alice, bob, kept: nobodys(), moved: nobodys() }
    }

    fn lost(t: u16, n: u16) -> Self {
        let mut quorum = Quorum::new(t, n);
        let (alice, bob) = (Wallet::new(), Wallet::new());
        let kept = deposit(&mut quorum, &alice, 50_000);
        let moved = deposit(&mut quorum, &alice, 60_000);
        let moved = transfer(&mut quorum, &alice, &moved, &bob);
        let lost = quorum.lose(LOST);
        Self { quorum, lost, alice, bob, kept, moved }
    }

    fn approved(t: u16, n: u16) -> Self {
        let mut this = Self::lost(t, n);
        this.approve();
        this.quorum.witness(LOST).unwrap();
        this
    }

    /// The next federation file, with the repair approved by the others, who are unlocked.
    fn approve(&mut self) {
        self.quorum.next_epoch();
        let approval = approval(&self.quorum);
        for other in self.others() {
            let approved = &mut self.quorum.members[other].engine.shared.approved;
            approved.insert(OperatorIndex::new(LOST as u16), approval.clone());
        }
        for other in self.others() {
            self.quorum.witness(other).unwrap();
        }
    }

    fn others(&self) -> Vec<usize> {
        (0..self.quorum.members.len()).filter(|member| *member != LOST).collect()
    }

    /// The last t others help.
    fn helpers(&self) -> Vec<usize> {
        let others = self.others();
        others[others.len() - usize::from(self.quorum.threshold())..].to_vec()
    }

    fn open(&mut self, limit: u32) -> Result<wire::RepairTicket, EngineError> {
        let request = wire::RepairOpenRequest {
            session_id: rand::random::<[u8; 16]>().to_vec(),
            helpers: self.helpers().iter().map(|helper| *helper as u32).collect(),
            limit,
        };
        match self.quorum.call(LOST, Request::RepairOpen(request))? {
            Reply::RepairTicket(ticket) => Ok(ticket),
            _ => panic!(),
        }
    }

    fn list(
        &mut self,
        member: usize,
        ticket: &wire::RepairTicket,
    ) -> Result<wire::RepairListing, EngineError> {
        match self.quorum.call(member, Request::RepairList(ticket.clone()))? {
            Reply::RepairListing(listing) => Ok(listing),
            _ => panic!(),
        }
    }

    fn listings(&mut self, ticket: &wire::RepairTicket) -> Vec<wire::RepairListing> {
        self.others().into_iter().map(|member| self.list(member, ticket).unwrap()).collect()
    }

    fn split(
        &mut self,
        member: usize,
        listings: &[wire::RepairListing],
    ) -> Result<wire::RepairDeltas, EngineError> {
        let session_id = listings[0].session_id.clone();
        let set = wire::RepairListingSet { session_id, messages: listings.to_vec() };
        match self.quorum.call(member, Request::RepairSplit(set))? {
            Reply::RepairDeltas(deltas) => Ok(deltas),
            _ => panic!(),
        }
    }

    fn sum(&mut self, member: usize, deltas: &[wire::RepairDeltas]) -> Result<wire::RepairSum, EngineError> {
        let session_id = deltas[0].session_id.clone();
        let set = wire::RepairDeltaSet { session_id, messages: deltas.to_vec() };
        match self.quorum.call(member, Request::RepairSum(set))? {
            Reply::RepairSum(sum) => Ok(sum),
            _ => panic!(),
        }
    }

    fn finish(&mut self, request: &wire::RepairFinishRequest) -> Result<wire::RepairProgress, EngineError> {
        match self.quorum.call(LOST, Request::RepairFinish(request.clone()))? {
            Reply::RepairProgress(progress) => Ok(progress),
            _ => panic!(),
        }
    }

    fn close(&mut self, progress: &wire::RepairProgress) {
        for other in self.others() {
            self.quorum.call(other, Request::RepairClose(progress.clone())).unwrap();
        }
    }

    /// What the others answer to a ticket.
    fn answers(&mut self, ticket: &wire::RepairTicket) -> Result<wire::RepairFinishRequest, EngineError> {
        let listings = self.listings(ticket);
        let (mut deltas, mut sums) = (Vec::new(), Vec::new());
        if ticket.table == 0 {
            for helper in self.helpers() {
                deltas.push(self.split(helper, &listings)?);
            }
            for helper in self.helpers() {
                sums.push(self.sum(helper, &deltas)?);
            }
        }
        Ok(wire::RepairFinishRequest { session_id: ticket.session_id.clone(), listings, deltas, sums })
    }

    fn page(&mut self, limit: u32) -> Result<wire::RepairProgress, EngineError> {
        let ticket = self.open(limit)?;
        let answers = self.answers(&ticket)?;
        let progress = self.finish(&answers)?;
        self.close(&progress);
        Ok(progress)
    }

    /// All pages: items taken and skipped.
    fn repair(&mut self, limit: u32) -> (u64, u64) {
        let (mut taken, mut skipped) = (0, 0);
        loop {
            let progress = self.page(limit).unwrap();
            taken += progress.taken;
            skipped += progress.skipped;
            if progress.done {
                return (taken, skipped);
            }
        }
    }

    /// The public share that a member's own secret has, at the leaf's version.
    fn own_share(&mut self, member: usize, leaf: &Leaf) -> PublicKey {
        let record = self.quorum.leaf(0, &leaf.id);
        let id = prepare::keyshare_secret(&record.keyshare_id, record.version);
        self.quorum.read(member, |txn| prepare::read_scalar(txn, &id).unwrap().public_key())
    }

    fn knows(&mut self, leaf: &Leaf) -> bool {
        self.quorum.read(LOST, |txn| ledger::leaf(txn, &leaf.id).unwrap().is_some())
    }

    fn records(&mut self, member: usize, prefix: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.quorum.read(member, |txn| txn.scan_records(prefix.as_bytes()).unwrap())
    }

    fn receipts(&mut self, leaf: &Leaf) -> Vec<peer::Receipt> {
        let request = wire::GetReceiptsRequest { leaf_id: leaf.id.to_string(), tree_size: 0, from: 0 };
        match self.quorum.call(LOST, Request::GetReceipts(request)).unwrap() {
            Reply::Receipts(reply) => reply.receipts,
            _ => panic!(),
        }
    }
}

/// Every share is the recorded one, every record is the others', and the next transfer is signed with them.
fn whole(t: u16, n: u16, limit: u32) {
    let mut case = Case::approved(t, n);
    let (taken, skipped) = case.repair(limit);
    assert!(taken > 8);
    assert_eq!(skipped, 0);
    let (kept, moved) = (copy(&case.kept), copy(&case.moved));
    for leaf in [&kept, &moved] {
        let record = case.quorum.leaf(0, &leaf.id);
        assert_eq!(case.quorum.leaf(LOST, &leaf.id), record);
        assert_eq!(case.own_share(LOST, leaf), record.public_shares[LOST]);
    }
    for prefix in [
        "key/",
        "bound/",
        "usable/",
        "free/",
        "script/",
        "leaf-key/",
        "leaf/",
        "maturity/",
        "held/",
        "transfer/",
    ] {
        let others = case.records(0, prefix);
        assert!(!others.is_empty() || prefix == "free/");
        assert_eq!(case.records(LOST, prefix), others, "{prefix}");
    }
    let old = case.quorum.read(LOST, |txn| {
        let record = ledger::leaf(txn, &moved.id).unwrap().unwrap();
        txn.secrets_of(record.keyshare_id.as_bytes()).unwrap()
    });
    assert_eq!(old.len(), 1, "one version only");

    // The first t operators sign, member 1 among them; a new address is bound to a repaired share.
    let carol = Wallet::new();
    let (bob, alice) = (
        Wallet { identity: case.bob.identity.add_zero() },
        &Wallet { identity: case.alice.identity.add_zero() },
    );
    let moved = transfer(&mut case.quorum, &bob, &moved, &carol);
    transfer(&mut case.quorum, alice, &kept, &carol);
    let fresh = deposit(&mut case.quorum, alice, 70_000);
    transfer(&mut case.quorum, alice, &fresh, &bob);
    assert_eq!(case.quorum.leaf(LOST, &moved.id), case.quorum.leaf(0, &moved.id));

    // Its log does not say that it destroyed what it does not know of.
    for leaf in [&moved, &fresh] {
        let phases: Vec<_> = case.receipts(leaf).iter().map(|r| r.phase.clone()).collect();
        assert_eq!(phases.first().map(String::as_str), Some("repair"));
        assert!(!phases.contains(&"dkg".to_owned()));
        assert_eq!(phases.last().map(String::as_str), Some("claim"));
    }
}

fn copy(leaf: &Leaf) -> Leaf {
    Leaf { id: leaf.id, key: leaf.key.add_zero() }
}

impl crate::secret::SecretScalar {
    /// The same once more, in tests.
    fn add_zero(&self) -> Self {
        Self::from_bytes(&self.to_bytes()).unwrap()
    }
}

fn pending(case: &mut Case, limit: u32) -> Vec<String> {
    let (mut found, mut after) = (Vec::new(), Vec::new());
    loop {
        let request = wire::RefreshPendingRequest { after, limit };
        let Reply::RefreshPending(page) = case.quorum.call(LOST, Request::RefreshPending(request)).unwrap()
        else {
            panic!()
        };
        found.extend(page.leaf_ids);
        after = page.through;
        if after.is_empty() {
            found.sort();
            return found;
        }
    }
}

/// The share that was lost makes the key with t - 1 others of its version; once all have refreshed, with none that is
/// left.
#[test]
fn d12_a_refresh_makes_the_lost_share_useless() {
    let mut case = Case::approved(2, 3);
    case.repair(64);
    let (kept, moved) = (copy(&case.kept), copy(&case.moved));
    let mut both = vec![kept.id.to_string(), moved.id.to_string()];
    both.sort();
    for limit in [1, 2, 1024] {
        assert_eq!(pending(&mut case, limit), both);
    }
    let before = case.quorum.leaf(0, &kept.id);
    let lost = {
        let id = prepare::keyshare_secret(&before.keyshare_id, before.version);
        let txn = case.lost.engine.vault.begin();
        prepare::read_scalar(&txn, &id).unwrap().public_key()
    };
    let with = |case: &mut Case, other: usize| {
        let found = case.own_share(other, &copy(&case.kept));
        refreshes::combined(&[(LOST, lost), (other, found)].into())
    };
    assert_eq!(with(&mut case, 0), before.group_key);
    refreshes::refresh(&mut case.quorum, &[&kept]);
    assert_eq!(case.quorum.leaf(LOST, &kept.id).group_key, before.group_key);
    for other in [0, 2] {
        assert_ne!(with(&mut case, other), before.group_key);
    }
    assert_eq!(pending(&mut case, 1024), [moved.id.to_string()]);
    let phases: Vec<_> = case.receipts(&kept).into_iter().map(|r| r.phase).collect();
    assert_eq!(phases, ["repair", "refresh"]);
    // A claim does not do in its place (D12), and an unused key waits once it has a leaf.
    let moved = transfer(&mut case.quorum, &case.bob, &moved, &case.alice);
    assert_eq!(pending(&mut case, 1024), [moved.id.to_string()]);
    let fresh = deposit(&mut case.quorum, &case.alice, 70_000);
    assert_eq!(pending(&mut case, 1024).len(), 2);
    refreshes::refresh(&mut case.quorum, &[&fresh, &moved]);
    assert_eq!(pending(&mut case, 1024), Vec::<String>::new());
    transfer(&mut case.quorum, &case.alice, &fresh, &case.bob);
}

#[test]
fn d12_a_lost_signer_is_made_whole() {
    whole(2, 3, 64);
}

#[test]
fn d12_page_by_page_and_in_larger_federations() {
    whole(2, 3, 3);
    whole(3, 5, 5);
}

/// Without a person's word, with another incarnation or key, in another's name, or altered by a host: nothing.
#[test]
fn d12_a_host_cannot_use_repair_to_take_a_key_over() {
    let mut case = Case::approved(2, 3);
    let ticket = case.open(64).unwrap();
    let index = OperatorIndex::new(LOST as u16);
    let right = approval(&case.quorum);
    let refused = |case: &mut Case, ticket: &wire::RepairTicket| {
        for member in case.others() {
            let error = case.list(member, ticket).unwrap_err();
            assert!(
                matches!(
                    error,
                    EngineError::NotApproved(_) | EngineError::Vote(_) | EngineError::RepairValue(_)
                ),
                "{error:?}"
            );
        }
    };
    let approve = |case: &mut Case, approval: Option<ApprovedRepair>| {
        for other in case.others() {
            let approved = &mut case.quorum.members[other].engine.shared.approved;
            approved.clear();
            approved.extend(approval.clone().map(|approval| (index, approval)));
        }
    };
    approve(&mut case, None);
    refused(&mut case, &ticket);
    approve(
        &mut case,
        Some(ApprovedRepair { incarnation: Incarnation::from_bytes([9; 16]), ..right.clone() }),
    );
    refused(&mut case, &ticket);
    // The key of the device that was lost, also listed in the federation file.
    let former = case.lost.token.federation_public_key();
    approve(&mut case, Some(ApprovedRepair { federation_key: former, ..right.clone() }));
    refused(&mut case, &ticket);
    approve(&mut case, Some(right));
    for change in [
        |t: &mut wire::RepairTicket| t.encryption_key = Wallet::new().id().serialize().to_vec(),
        |t: &mut wire::RepairTicket| t.table = 1,
        |t: &mut wire::RepairTicket| t.lost = 0,
        |t: &mut wire::RepairTicket| t.lost = 2,
        |t: &mut wire::RepairTicket| t.helpers = vec![0],
        |t: &mut wire::RepairTicket| t.session_id[0] ^= 1,
    ] {
        let mut wrong = ticket.clone();
        change(&mut wrong);
        for member in case.others() {
            assert!(case.list(member, &wrong).is_err());
        }
    }
    // Signed by the thief of the lost device, for the approved incarnation and a key of his own.
    let mut stolen = ticket.clone();
    stolen.encryption_key = Wallet::new().id().serialize().to_vec();
    let position = spark_rules::vote::Position::parse(stolen.position.as_ref()).unwrap();
    let payload = crate::engine::repair::ticket_payload(&stolen);
    let statement = position.statement(&case.quorum.federation, "repair-ticket/v1", &payload);
    stolen.signature = case.lost.token.sign_federation(&statement).unwrap().to_vec();
    refused(&mut case, &stolen);
    // None of this hindered the real one.
    case.listings(&ticket);
}

/// The store and the device that were lost turn up again: their signer stays locked, whatever it asks.
#[test]
fn d12_old_material_stays_useless() {
    let mut case = Case::approved(2, 3);
    case.repair(64);
    let new = std::mem::replace(&mut case.quorum.members[LOST], case.lost);
    case.quorum.restart(LOST);
    let error = case.quorum.witness(LOST).unwrap_err();
    assert!(matches!(error, EngineError::NotApproved(1)), "{error:?}");
    // Also when the approval is gone: the peers remember the new life, and the old one is behind it.
    for other in [0, 2] {
        case.quorum.members[other].engine.shared.approved.clear();
    }
    let error = case.quorum.witness(LOST).unwrap_err();
    assert!(matches!(error, EngineError::RolledBack { .. }), "{error:?}");
    assert!(case.quorum.members[LOST].engine.is_locked());
    case.quorum.members[LOST] = new;
    case.quorum.restart(LOST);
    case.quorum.witness(LOST).unwrap();
}

/// What all others approved the repair of waits for it from its first start on, whatever its host asks.
#[test]
fn d12_an_approved_signer_waits_for_its_repair() {
    let mut case = Case::approved(2, 3);
    let status = |case: &mut Case| match case.quorum.call(LOST, Request::GetStatus(Default::default())) {
        Ok(Reply::Status(status)) => status.repair.unwrap(),
        _ => panic!(),
    };
    assert_eq!(status(&mut case), wire::RepairStatus { waiting: true, ..Default::default() });
    let start = || Request::DkgStart(wire::DkgStartRequest::default());
    assert!(matches!(case.quorum.call(LOST, start()), Err(EngineError::Repairing)));
    let (taken, _) = case.repair(64);
    let done = wire::RepairStatus { waiting: false, repaired: true, taken, skipped: 0 };
    assert_eq!(status(&mut case), done);
    // A host that begins another run, and none of the others' hosts answers: it votes on.
    case.open(64).unwrap();
    assert_eq!(status(&mut case), done);
    // Not again with the next start, though the approval stays.
    case.quorum.restart(LOST);
    case.quorum.witness(LOST).unwrap();
    assert_eq!(status(&mut case), done);
    let repaired = |kind: &wire::JournalEntry| kind.kind == "repaired";
    let Ok(Reply::ReadJournal(journal)) =
        case.quorum.call(LOST, Request::ReadJournal(wire::ReadJournalRequest { after: 0, limit: 100 }))
    else {
        panic!()
    };
    let keys = case.records(LOST, "key/").len();
    assert_eq!(journal.entries.iter().filter(|entry| repaired(entry)).count(), keys);
}

/// A word of its own host does not put a signer that lost nothing under repair.
#[test]
fn d12_a_whole_signer_opens_no_repair() {
    let mut quorum = Quorum::new(2, 3);
    let open = wire::RepairOpenRequest { session_id: vec![7; 16], helpers: vec![0, 2], limit: 64 };
    for _ in 0..2 {
        let error = quorum.call(LOST, Request::RepairOpen(open.clone())).unwrap_err();
        assert_eq!(error.reason(), "REPAIR");
        assert!(!quorum.members[LOST].engine.shared.repairs.incomplete());
        quorum.restart(LOST);
        quorum.witness(LOST).unwrap();
    }
    deposit(&mut quorum, &Wallet::new(), 50_000);
}

/// A batch that fails before the repair begins does not make an empty ledger vote.
#[test]
fn d12_a_failed_batch_does_not_end_the_wait() {
    let mut case = Case::approved(2, 3);
    let question = case.quorum.question(0);
    case.quorum.members[LOST].token.fail(Some(crate::vault::memory::Fault::Gone));
    let answer = case.quorum.call(LOST, Request::AnswerWitness(question)).unwrap_err();
    assert_eq!(answer.reason(), "NOT_DURABLE");
    assert!(case.quorum.members[LOST].engine.shared.repairs.incomplete());
}

/// The one-time keys of an abandoned page die with its time, not with the next page.
#[test]
fn d12_abandoned_pages_are_forgotten() {
    let mut case = Case::approved(2, 3);
    let ticket = case.open(4).unwrap();
    case.list(0, &ticket).unwrap();
    let engine = &mut case.quorum.members[0].engine;
    for (now, open) in [(NOW + 599, 1), (NOW + 600, 0)] {
        engine.run(vec![Request::GetStatus(Default::default())], now);
        assert_eq!(engine.shared.repairs.open_pages(), open);
    }
}

/// With the federation file of the lost life its log would look like a shrunk one: refused, and the mark stays.
#[test]
fn d12_a_repair_goes_with_a_new_federation_file() {
    let mut case = Case::lost(2, 3);
    let right = approval(&case.quorum);
    let approve = |case: &mut Case| {
        for other in case.others() {
            let approved = &mut case.quorum.members[other].engine.shared.approved;
            approved.insert(OperatorIndex::new(LOST as u16), right.clone());
        }
    };
    approve(&mut case);
    for _ in 0..2 {
        let error = case.quorum.witness(LOST).unwrap_err();
        assert!(matches!(error, EngineError::RepairEpoch { operator: 1, epoch: 1 }), "{error:?}");
        assert_eq!(error.reason(), "REPAIR_EPOCH");
    }
    assert!(matches!(case.open(64), Err(EngineError::Locked)));
    case.approve();
    case.quorum.witness(LOST).unwrap();
    case.repair(64);
}

/// Without approval the peers hold a new signer for an old one that was rolled back.
#[test]
fn d11_a_new_incarnation_needs_approval() {
    let mut case = Case::lost(2, 3);
    assert!(matches!(case.quorum.witness(LOST), Err(EngineError::RolledBack { .. })));
    assert!(matches!(case.open(64), Err(EngineError::Locked)));
}

/// Hosts relay. What they alter is refused, and the same messages once more get the same answers.
#[test]
fn d12_altered_messages_are_refused() {
    let mut case = Case::approved(2, 3);
    let ticket = case.open(64).unwrap();
    let listings = case.listings(&ticket);
    assert_eq!(case.listings(&ticket), listings);

    let mut wrong = listings.clone();
    wrong[1].items[0].busy = true;
    assert!(case.split(0, &wrong).is_err());
    // A one-time key of the host's instead of the helper's.
    let mut wrong = listings.clone();
    wrong[1].encryption_key = Wallet::new().id().serialize().to_vec();
    assert!(case.split(0, &wrong).is_err());
    assert!(matches!(case.split(0, &listings[..1]), Err(EngineError::Repair(_))));

    let deltas = vec![case.split(0, &listings).unwrap(), case.split(2, &listings).unwrap()];
    assert_eq!(case.split(0, &listings).unwrap(), deltas[0]);
    let mut wrong = deltas.clone();
    wrong[1].ciphertexts.get_mut(&0).unwrap()[100] ^= 1;
    assert!(case.sum(0, &wrong).is_err());
    let mut wrong = deltas.clone();
    wrong[1].commitments.swap(0, 1);
    assert!(case.sum(0, &wrong).is_err());

    let sums = vec![case.sum(0, &deltas).unwrap(), case.sum(2, &deltas).unwrap()];
    assert_eq!(case.sum(0, &deltas).unwrap(), sums[0]);
    let right = wire::RepairFinishRequest { session_id: ticket.session_id.clone(), listings, deltas, sums };
    let mut wrong = right.clone();
    wrong.sums[1].ciphertext[100] ^= 1;
    assert!(case.finish(&wrong).is_err());
    let mut wrong = right.clone();
    wrong.sums.swap_remove(0);
    assert!(case.finish(&wrong).is_err());
    let mut wrong = right.clone();
    wrong.listings.swap_remove(0);
    assert!(case.finish(&wrong).is_err());
    assert!(case.records(LOST, "key/").is_empty(), "nothing half done");
    let progress = case.finish(&right).unwrap();
    let again = case.finish(&right).unwrap();
    assert_eq!((again.taken, again.skipped, again.done), (progress.taken, progress.skipped, progress.done));
    let session_id = ticket.session_id;
    let open = wire::RepairOpenRequest { session_id, helpers: ticket.helpers, limit: 64 };
    assert!(case.quorum.call(LOST, Request::RepairOpen(open)).is_err(), "a stored page is not opened again");
}

/// A helper whose share is not the recorded one is named by the others.
#[test]
fn d12_a_lying_helper_is_named() {
    let mut case = Case::approved(2, 3);
    let record = case.quorum.leaf(0, &case.kept.id);
    let mut txn = case.quorum.members[2].engine.vault.begin();
    let id = prepare::keyshare_secret(&record.keyshare_id, record.version);
    txn.put_secret(id, zeroize::Zeroizing::new(vec![1; 32])).unwrap();
    txn.commit().unwrap();
    let error = case.page(64).unwrap_err();
    let culprit = OperatorIndex::new(2);
    assert!(
        matches!(error, EngineError::RepairValue(RepairError::Commitment { culprit: named }) if named == culprit),
        "{error:?}"
    );
}

/// Fewer than n - t + 1 signers who say the same convince nobody; with enough of them one liar is outvoted.
#[test]
fn d12_the_ledger_needs_enough_signers_who_agree() {
    for (t, n, taken) in [(2, 3, false), (3, 5, true)] {
        let mut case = Case::approved(t, n);
        let mut record = case.quorum.leaf(0, &case.kept.id);
        record.owner_identity = case.bob.id();
        let mut txn = case.quorum.members[0].engine.vault.begin();
        ledger::put_leaf(&mut txn, &record);
        txn.commit().unwrap();
        let (_, skipped) = case.repair(64);
        let kept = copy(&case.kept);
        assert_eq!((case.knows(&kept), skipped), (taken, u64::from(!taken)));
        if taken {
            assert_eq!(case.quorum.leaf(LOST, &kept.id).owner_identity, case.alice.id());
        }
    }
}

/// A leaf with an open operation is left out, and repaired once that is decided.
#[test]
fn d12_an_open_operation_comes_first() {
    let mut case = Case::lost(2, 3);
    let kept = copy(&case.kept);
    let lost = std::mem::replace(&mut case.quorum.members[LOST], case.lost);
    // The operation begins before the loss.
    let (send, _) = send_request(&mut case.quorum, &case.alice, &kept, case.bob.id());
    let request = operation(&mut case.quorum, Kind::Send(send));
    for other in [0, 2] {
        assert_eq!(case.quorum.prepare(other, &request).vote.unwrap().choice(), peer::Choice::Yes);
    }
    case.lost = std::mem::replace(&mut case.quorum.members[LOST], lost);
    case.approve();
    case.quorum.witness(LOST).unwrap();
    let (_, skipped) = case.repair(64);
    assert!(skipped >= 1);
    assert!(!case.knows(&kept));
    // What it left out is in the others' logs: it follows them all the same, and as many unknown keys as that.
    let cosigned = follow_of(&mut case.quorum, 0, LOST).unwrap();
    assert_eq!((cosigned.distrust.as_str(), cosigned.cosignature.is_empty()), ("", false));

    // The operation named the lost signer: its new life, which never saw the attempt, gives its ABORT as well.
    let mut votes = Vec::new();
    for other in 0..3 {
        let abort = wire::SignAbortRequest {
            operation_id: request.operation_id.clone(),
            attempt: request.attempt,
            aborts: Vec::new(),
        };
        match case.quorum.call(other, Request::SignAbort(abort)).unwrap() {
            Reply::SignAbort(reply) => votes.push(reply.vote.unwrap()),
            _ => panic!(),
        }
    }
    for other in [0, 2] {
        let abort = wire::AbortRequest {
            operation_id: request.operation_id.clone(),
            attempt: request.attempt,
            proof: Some(peer::ProofOfAbort { votes: votes.clone() }),
        };
        case.quorum.call(other, Request::Abort(abort)).unwrap();
    }
    let (taken, skipped) = case.repair(64);
    assert_eq!(skipped, 0);
    assert!(taken >= 1);
    assert!(case.knows(&kept));
    let (alice, bob) = (
        Wallet { identity: case.alice.identity.add_zero() },
        Wallet { identity: case.bob.identity.add_zero() },
    );
    transfer(&mut case.quorum, &alice, &kept, &bob);
}

/// While a page is open its leaves stay at their versions, and who has half a ledger neither votes nor binds.
#[test]
fn d12_leaves_stay_at_their_versions_meanwhile() {
    let mut case = Case::approved(2, 3);
    let kept = copy(&case.kept);
    let (send, _) = send_from_others(&mut case, &kept);
    let request = operation(&mut case.quorum, Kind::Send(send));
    let ticket = case.open(64).unwrap();
    let answers = case.answers(&ticket).unwrap();
    let call = Request::Prepare(wire::PrepareRequest { operation: Some(request.clone()) });
    for member in 0..3 {
        let error = case.quorum.call(member, copy_of(&call)).unwrap_err();
        assert!(matches!(error, EngineError::Repairing) && error.is_transient(), "{error:?}");
    }
    let progress = case.finish(&answers).unwrap();
    assert!(!progress.done);
    let error = case.quorum.call(LOST, copy_of(&call)).unwrap_err();
    assert!(matches!(error, EngineError::Repairing));
    // Closed by nobody but the repaired signer.
    let mut forged = progress.clone();
    forged.taken += 1;
    assert!(case.quorum.call(0, Request::RepairClose(forged)).is_err());
    assert!(case.quorum.call(0, copy_of(&call)).is_err());
    case.close(&progress);
    case.close(&progress);
    assert_eq!(case.quorum.prepare(0, &request).vote.unwrap().choice(), peer::Choice::Yes);
}

fn copy_of(call: &Request) -> Request {
    match call {
        Request::Prepare(request) => Request::Prepare(request.clone()),
        _ => panic!(),
    }
}

/// A send whose commitments come from the others too: the new signer has nothing to commit with yet.
fn send_from_others(
    case: &mut Case,
    leaf: &Leaf,
) -> (spark_proto::spark::StartTransferRequest, crate::secret::SecretScalar) {
    let new = std::mem::replace(&mut case.quorum.members[LOST], Quorum::new(2, 3).members.remove(LOST));
    let made = send_request(&mut case.quorum, &case.alice, leaf, case.bob.id());
    case.quorum.members[LOST] = new;
    made
}

/// Whoever crashes forgets the page's secrets; the repair goes on where the last stored page ended.
#[test]
fn d12_a_crash_abandons_the_page_only() {
    let mut case = Case::approved(2, 3);
    let first = case.page(4).unwrap();
    assert_eq!((first.taken, first.done), (4, false));
    let ticket = case.open(4).unwrap();
    assert!(!ticket.after.is_empty());
    let answers = case.answers(&ticket).unwrap();
    case.quorum.restart(LOST);
    case.quorum.witness(LOST).unwrap();
    assert!(matches!(case.finish(&answers), Err(EngineError::Repair(_))), "its one-time key is gone");
    assert!(matches!(
        case.quorum.call(LOST, Request::DkgStart(wire::DkgStartRequest::default())),
        Err(EngineError::Repairing)
    ));
    assert_eq!(case.open(4).unwrap().after, ticket.after);
    // A helper crashes between its two messages.
    let ticket = case.open(4).unwrap();
    let listings = case.listings(&ticket);
    let deltas = vec![case.split(0, &listings).unwrap(), case.split(2, &listings).unwrap()];
    case.quorum.restart(2);
    case.quorum.witness(2).unwrap();
    let approval = approval(&case.quorum);
    case.quorum.members[2].engine.shared.approved.insert(OperatorIndex::new(LOST as u16), approval);
    assert!(matches!(case.sum(2, &deltas), Err(EngineError::Repair("session is unknown"))));
    let (_, skipped) = case.repair(4);
    assert_eq!(skipped, 0);
    let moved = copy(&case.moved);
    assert_eq!(case.own_share(LOST, &moved), case.quorum.leaf(0, &moved.id).public_shares[LOST]);
    // D14: no store holds a contribution.
    for member in 0..3 {
        for keyshare in case.records(member, "key/") {
            let id = KeyshareId::parse(&keyshare.0[4..]).unwrap();
            let kind = SecretKind::RepairShare;
            let found =
                case.quorum.read(member, |txn| txn.has_secret(&SecretId::new(*id.as_bytes(), kind, 0)));
            assert!(!found.unwrap());
        }
    }
}

/// The repaired signer's log begins anew. Who approved the repair follows it from its beginning; it is no shrunk log.
#[test]
fn d12_witnesses_follow_the_new_log() {
    let mut case = Case::lost(2, 3);
    let new = std::mem::replace(&mut case.quorum.members[LOST], case.lost);
    assert!(!follow(&mut case.quorum, 0).cosignature.is_empty());
    case.lost = std::mem::replace(&mut case.quorum.members[LOST], new);
    case.approve();
    case.quorum.witness(LOST).unwrap();
    case.repair(64);
    for other in [0, 2] {
        let cosigned = follow(&mut case.quorum, other);
        assert_eq!((cosigned.distrust.as_str(), cosigned.cosignature.is_empty()), ("", false));
    }
    let (kept, alice) = (copy(&case.kept), Wallet { identity: case.alice.identity.add_zero() });
    transfer(&mut case.quorum, &alice, &kept, &Wallet::new());
    assert!(!follow(&mut case.quorum, 0).cosignature.is_empty());
    assert_eq!(case.quorum.members[0].engine.alarms().count(), 0);
}

fn follow(quorum: &mut Quorum, witness: usize) -> wire::CosignLogResponse {
    follow_of(quorum, LOST, witness).unwrap()
}

/// One member follows the log of another.
fn follow_of(
    quorum: &mut Quorum,
    owner: usize,
    witness: usize,
) -> Result<wire::CosignLogResponse, EngineError> {
    let Reply::Checkpoint(head) =
        quorum.call(owner, Request::GetCheckpoint(wire::GetCheckpointRequest {})).unwrap()
    else {
        panic!()
    };
    let size = Checkpoint::verify(&head.checkpoint, &quorum.federation, OperatorIndex::new(owner as u16))
        .unwrap()
        .size;
    let mut cosign = |from, entries| {
        let checkpoint = head.checkpoint.clone();
        let request = wire::CosignLogRequest { operator: owner as u32, from, entries, checkpoint };
        match quorum.call(witness, Request::CosignLog(request)).unwrap() {
            Reply::Cosigned(reply) => reply,
            _ => panic!(),
        }
    };
    let from = cosign(size, Vec::new()).size;
    let read = wire::ReadLogRequest { from, until: size };
    let Reply::Log(log) = quorum.call(owner, Request::ReadLog(read)).unwrap() else { panic!() };
    let checkpoint = log.checkpoint;
    let request = wire::CosignLogRequest { operator: owner as u32, from, entries: log.entries, checkpoint };
    match quorum.call(witness, Request::CosignLog(request))? {
        Reply::Cosigned(reply) => Ok(reply),
        _ => panic!(),
    }
}
