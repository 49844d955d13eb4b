//! What became of a send: never the word of one operator alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use spark_proto::spark::{Transfer, TransferStatus, transfer_filter::Participant};
use spark_rules::leaf::LeafStatus;

use super::query::Nodes;
use crate::{
    Wallet, WalletError,
    client::ClientError,
    state::{SendRecord, SendState},
    wallet::now,
};

/// A package can be used as long as its nonces live in the signers' memory (D18), in seconds.
const NONCE_LIFETIME: u64 = 600;
/// Clocks differ, and a request takes its time.
const MARGIN: u64 = 120;
/// Looks at the operators before a commit counts as not shown by all.
const LOOKS: u32 = 6;

/// What operators together know of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// The commit quorum shows it, as this wallet sent it.
    ByQuorum,
    /// At least one shows it.
    BySome,
    /// At least one gave no answer, and none shows it.
    Unknown,
    /// All deny it.
    ByNone,
}

/// Where the leaves of a send are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// All operators show all of them as this wallet's, free to be sent.
    Ours,
    /// All operators agree that one of them is this wallet's no more: nothing stored can send them.
    Gone,
    /// Something else holds them, or operators differ, or not all answered.
    Unclear,
}

/// Whether a transfer is the one that this wallet asked for, and committed. `None`: it is another one.
pub(super) fn committed(record: &SendRecord, sender: &[u8], transfer: &Transfer) -> Option<Committed> {
    let leaves: Option<BTreeSet<&str>> =
        transfer.leaves.iter().map(|l| l.leaf.as_ref().map(|n| n.id.as_str())).collect();
    let same = transfer.id == record.transfer_id
        && transfer.spark_invoice == record.invoice
        && pays_everyone(record, transfer)
        && transfer.sender_identity_public_key == sender
        && hex::encode(&transfer.receiver_identity_public_key) == record.receiver
        && transfer.total_value == record.amount
        && leaves == Some(record.leaves.iter().map(String::as_str).collect());
    same.then(|| match transfer.status() {
        // Decided: what is left to decide is the receiver's and the chain's.
        TransferStatus::SenderKeyTweakPending | TransferStatus::Returned
            if record.htlc.is_some() || record.exit.is_some() =>
        {
            Committed::Yes
        }
        TransferStatus::SenderInitiated
        | TransferStatus::SenderInitiatedCoordinator
        | TransferStatus::SenderKeyTweakPending
        | TransferStatus::ApplyingSenderKeyTweak => Committed::NotYet,
        TransferStatus::Expired | TransferStatus::Returned => Committed::Never,
        _ => Committed::Yes,
    })
}

/// Whether a transfer with several receivers gives each what it is to get. With one receiver nothing is listed.
fn pays_everyone(record: &SendRecord, transfer: &Transfer) -> bool {
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for (receiver, amount) in record.payees() {
        let sum = expected.entry(receiver).or_default();
        *sum = sum.saturating_add(amount);
    }
    let shown = transfer.receivers.iter().map(|r| (hex::encode(&r.identity_public_key), r.amount_sats));
    match expected.len() {
        1 => transfer.receivers.len() <= 1,
        count => count == transfer.receivers.len() && expected == shown.collect(),
    }
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Committed {
    /// The receiver can claim it, or has.
    Yes,
    /// Not decided.
    NotYet,
    /// It came back.
    Never,
}

/// Weighs the operators' answers about one send.
fn weigh<'a>(
    record: &SendRecord,
    sender: &[u8],
    quorum: usize,
    answers: impl Iterator<Item = Result<Option<&'a Transfer>, &'a ClientError>>,
) -> Known {
    let (mut shown, mut doubtful, mut silent) = (0usize, false, false);
    for answer in answers {
        match answer {
            Err(_) => silent = true,
            Ok(None) => {}
            Ok(Some(transfer)) => match committed(record, sender, transfer) {
                Some(Committed::Yes) => shown = shown.saturating_add(1),
                Some(Committed::Never) => {}
                Some(Committed::NotYet) | None => doubtful = true,
            },
        }
    }
    match (shown, doubtful, silent) {
        (shown, _, _) if shown >= quorum => Known::ByQuorum,
        (0, false, false) => Known::ByNone,
        (0, false, true) => Known::Unknown,
        _ => Known::BySome,
    }
}

/// Until when a refused package could still be used by whoever kept it.
pub(super) const fn doubtful_until(record: &SendRecord) -> u64 {
    let built = if record.built > record.created { record.built } else { record.created };
    built.saturating_add(NONCE_LIFETIME).saturating_add(MARGIN)
}

impl Wallet {
    /// Asks all operators for the transfer of a send.
    pub(super) async fn known(&self, record: &SendRecord) -> Known {
        let sender = self.keys().identity().public_key().serialize();
        let participant = Participant::SenderIdentityPublicKey(sender.to_vec());
        let answers = self.transfer_everywhere(&record.transfer_id, &participant).await;
        let quorum = usize::from(self.config().federation.quorum());
        let answers = answers.iter().map(|(_, answer)| answer.as_ref().map(Option::as_ref));
        weigh(record, &sender, quorum, answers)
    }

    /// Waits until the commit quorum shows the transfer, which it does before an honest coordinator says so (D7).
    pub(super) async fn confirm_sent(&self, record: &SendRecord) -> Result<(), WalletError> {
        for look in 0..LOOKS {
            if self.known(record).await == Known::ByQuorum {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100 << look.min(4))).await;
        }
        Err(WalletError::Undecided(format!(
            "the coordinator says that transfer {} is done, but not every operator shows it",
            record.transfer_id
        )))
    }

    /// Where all operators see these leaves.
    pub(super) async fn standing(&self, leaves: &[String]) -> Standing {
        let answers = self.operators().each(|o| self.nodes_by_id(o, leaves.to_vec())).await;
        let answers: Option<Vec<Nodes>> = answers.into_iter().map(|(_, answer)| answer.ok()).collect();
        let Some(answers) = answers else { return Standing::Unclear };
        let identity = self.keys().identity().public_key().serialize();
        let ours = |nodes: &Nodes, id: &String| {
            nodes.get(id).filter(|n| n.owner_identity_public_key == identity && self.is_ours(n)).cloned()
        };
        let free = |nodes: &Nodes, id: &String| {
            ours(nodes, id).is_some_and(|n| n.status == LeafStatus::Available.name())
        };
        if answers.iter().all(|nodes| leaves.iter().all(|id| free(nodes, id))) {
            Standing::Ours
        } else if leaves.iter().any(|id| answers.iter().all(|nodes| ours(nodes, id).is_none())) {
            Standing::Gone
        } else {
            Standing::Unclear
        }
    }

    /// Looks what became of a send that the coordinator refused. It may have kept the package and use it as long as
    /// its nonces live, so only time, together with the denial of all operators, makes "failed" of it; or the proof
    /// that its leaves went elsewhere.
    pub(super) async fn settle_doubtful(&self, record: &mut SendRecord) -> Result<(), WalletError> {
        match self.known(record).await {
            Known::ByQuorum => {
                record.state = SendState::Done;
                self.state().put(record)?;
                self.forget_sent(record)?;
            }
            Known::ByNone => {
                let over = now() > doubtful_until(record);
                if over || self.standing(&record.leaves).await == Standing::Gone {
                    record.state = SendState::Failed;
                    self.state().put(record)?;
                }
            }
            Known::BySome | Known::Unknown => {}
        }
        Ok(())
    }

    /// An earlier payment of the same amount to one of the same receivers that may still happen. Paying all of them
    /// again with its leaves, and no others, happens at most once.
    pub(super) fn doubtful_twin(&self, payees: &[(String, u64)]) -> Result<Option<SendRecord>, WalletError> {
        let sends = self.state().all::<SendRecord>()?;
        Ok(sends
            .into_iter()
            .find(|s| s.state == SendState::Doubtful && s.payees().iter().any(|p| payees.contains(p))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::send;
    use spark_proto::spark::{TransferLeaf, TreeNode};
    use spark_rules::ids::OperatorIndex;

    const SENDER: [u8; 33] = [2; 33];

    fn shown(record: &SendRecord, status: TransferStatus) -> Transfer {
        let leaf = |id: &String| TransferLeaf {
            leaf: Some(TreeNode { id: id.clone(), ..Default::default() }),
            ..Default::default()
        };
        Transfer {
            id: record.transfer_id.clone(),
            sender_identity_public_key: SENDER.to_vec(),
            receiver_identity_public_key: hex::decode(&record.receiver).unwrap(),
            total_value: record.amount,
            leaves: record.leaves.iter().map(leaf).collect(),
            status: status.into(),
            ..Default::default()
        }
    }

    #[test]
    fn one_operator_neither_makes_nor_undoes_a_payment() {
        let record = send(&["a", "b"]);
        let yes = shown(&record, TransferStatus::SenderKeyTweaked);
        let mut other = yes.clone();
        other.receiver_identity_public_key = vec![3; 33];
        let mut fewer = yes.clone();
        fewer.leaves.pop();
        let back = shown(&record, TransferStatus::Returned);
        let open = shown(&record, TransferStatus::SenderInitiated);
        let silence = ClientError::Endless { operator: OperatorIndex::new(1) };
        let of =
            |list: [Result<Option<&Transfer>, &ClientError>; 3]| weigh(&record, &SENDER, 3, list.into_iter());
        let (y, n, s) = (Ok(Some(&yes)), Ok(None), Err(&silence));
        assert_eq!(of([y, y, y]), Known::ByQuorum);
        assert_eq!(of([n, n, n]), Known::ByNone);
        assert_eq!(of([y, n, n]), Known::BySome);
        assert_eq!(of([y, y, s]), Known::BySome);
        assert_eq!(of([n, n, s]), Known::Unknown);
        assert_eq!(of([y, y, Ok(Some(&other))]), Known::BySome);
        assert_eq!(of([y, y, Ok(Some(&fewer))]), Known::BySome);
        assert_eq!(of([n, n, Ok(Some(&open))]), Known::BySome);
        assert_eq!(of([Ok(Some(&back)), n, n]), Known::ByNone);
    }

    #[test]
    fn doubt_lasts_longer_than_nonces() {
        let mut record = send(&["a"]);
        (record.created, record.built) = (1000, 0);
        assert_eq!(doubtful_until(&record), 1000 + 600 + 120);
        record.built = 1500;
        assert_eq!(doubtful_until(&record), 1500 + 600 + 120);
    }
}
