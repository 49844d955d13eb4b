//! A log compared with a checkpoint of it that was seen before.

use serde::Serialize;

use crate::{
    checkpoint::SignedCheckpoint,
    failure::{Failures, Reason},
    merkle::{self, Hash},
};

/// The earlier checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Since {
    /// Records it states.
    pub size: u64,
    /// Root it states, hex.
    pub root: String,
    /// The log begins with what it states, record by record.
    pub continued: bool,
}

/// Checks that the log only grew since `old`. `leaves` are those of the tree that `new` states, if there are any.
pub fn compare(
    old: &SignedCheckpoint,
    new: &SignedCheckpoint,
    leaves: Option<&[Hash]>,
    failures: &mut Failures,
) -> Since {
    let (before, now) = (&old.checkpoint, &new.checkpoint);
    let mut since = Since { size: before.size, root: hex::encode(before.root), continued: false };
    let mut add = |reason, detail: String| {
        failures.add_with_notes(reason, detail, vec![old.note.to_string(), new.note.to_string()]);
    };
    // By the signer's own account: within one position a head may be signed before and after what a batch appends.
    let later = before.position.is_some() && now.position > before.position;
    if later && now.log_size() < before.log_size() {
        add(
            Reason::LogShrunk,
            format!(
                "the operator signed that its log has {} records, and later that it has {}",
                before.log_size(),
                now.log_size()
            ),
        );
        return since;
    }
    if now.size < before.size {
        add(
            Reason::CheckpointOlder,
            format!(
                "the checkpoint states {} records, the one seen before {}; whether the log only grew cannot be seen",
                now.size, before.size
            ),
        );
        return since;
    }
    let root = match usize::try_from(before.size).ok().and_then(|size| leaves?.get(..size)) {
        Some(prefix) => Some(merkle::root(prefix)),
        None => (now.size == before.size).then_some(now.root),
    };
    match root {
        Some(root) if root == before.root => since.continued = true,
        Some(root) => add(
            Reason::LogForked,
            format!(
                "the operator signed two logs: at {} records one has the root {}, the other {}",
                before.size,
                hex::encode(before.root),
                hex::encode(root)
            ),
        ),
        // Why there are no leaves was said already.
        None => {}
    }
    let back = match (before.position, now.position) {
        (Some(before), Some(now)) => now.root_epoch < before.root_epoch || now.sequence < before.sequence,
        (before, _) => before.is_some() && now.position.is_none(),
    };
    if back {
        add(Reason::PositionBack, "the signer's position is behind the one seen before".to_owned());
    }
    if now.destroyed_before() < before.destroyed_before() {
        add(
            Reason::DestroyedBeforeBack,
            format!(
                "roots before epoch {} were said to be destroyed, now only those before {}",
                before.destroyed_before(),
                now.destroyed_before()
            ),
        );
    }
    since
}
