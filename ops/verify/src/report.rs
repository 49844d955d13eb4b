//! What was found, for programs and for people.

use std::fmt;

use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    checkpoint::{Position, SignedCheckpoint},
    claims,
    failure::{Failure, Failures},
    federation::Federation,
    history::Entries,
    since::Since,
    witness::Witnesses,
};

/// The federation file that all its members signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Members {
    /// Hex.
    pub hash: String,
    /// Version of the membership.
    pub epoch: u64,
    /// Bitcoin network.
    pub network: String,
    /// n.
    pub operators: usize,
    /// t.
    pub threshold: usize,
    /// Cosignatures after which no two forks of a log can both have as many.
    pub witnesses_needed: usize,
}

impl From<&Federation> for Members {
    fn from(federation: &Federation) -> Self {
        Self {
            hash: hex::encode(federation.hash()),
            epoch: federation.epoch(),
            network: federation.network().to_owned(),
            operators: federation.size(),
            threshold: federation.threshold(),
            witnesses_needed: federation.witnesses_needed(),
        }
    }
}

/// The log's head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Names the log.
    pub origin: String,
    /// Records.
    pub size: u64,
    /// RFC 6962 root, hex.
    pub root: String,
    /// Where the signer stood.
    pub position: Option<Position>,
    /// Every root of an earlier epoch is said to be destroyed.
    pub destroyed_before: u64,
    /// Records in the log when this was signed.
    pub log_size: u64,
    /// The signed note.
    pub note: String,
}

impl From<&SignedCheckpoint> for Head {
    fn from(signed: &SignedCheckpoint) -> Self {
        let checkpoint = &signed.checkpoint;
        Self {
            origin: checkpoint.origin.clone(),
            size: checkpoint.size,
            root: hex::encode(checkpoint.root),
            position: checkpoint.position,
            destroyed_before: checkpoint.destroyed_before(),
            log_size: checkpoint.log_size(),
            note: signed.note.to_string(),
        }
    }
}

/// What was read of the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tree {
    /// The records themselves lead to the signed root.
    pub rebuilt: bool,
    /// Records of the signed tree.
    pub records: u64,
    /// Bundles read.
    pub bundles: u64,
    /// Tiles of hashes read, of all levels.
    pub tiles: u64,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing was found that does not hold.
    pub holds: bool,
    /// Whose log.
    pub operator: u16,
    /// Absent if the federation file is not to be relied on; then nothing else was looked at.
    pub federation: Option<Members>,
    /// Absent if there is no checkpoint of this log that the operator signed; then nothing else was looked at.
    pub checkpoint: Option<Head>,
    /// Who cosigned it.
    pub witnesses: Option<Witnesses>,
    /// Records and tiles.
    pub tree: Option<Tree>,
    /// The earlier checkpoint, if one was given.
    pub since: Option<Since>,
    /// The entries, if they were given.
    pub entries: Option<Entries>,
    /// The checkpoint was stored.
    pub saved: bool,
    /// What does not hold.
    pub failures: Vec<Failure>,
    /// Further findings that were only counted.
    pub failures_left_out: u64,
    /// What this shows, in words.
    pub proves: Vec<String>,
    /// What it cannot show, in words.
    pub does_not_prove: Vec<String>,
}

impl Report {
    pub(crate) const fn new(operator: u16) -> Self {
        Self {
            holds: false,
            operator,
            federation: None,
            checkpoint: None,
            witnesses: None,
            tree: None,
            since: None,
            entries: None,
            saved: false,
            failures: Vec::new(),
            failures_left_out: 0,
            proves: Vec::new(),
            does_not_prove: Vec::new(),
        }
    }

    /// Closes the report.
    pub(crate) fn finish(mut self, failures: Failures) -> Self {
        self.holds = failures.is_empty();
        (self.failures, self.failures_left_out) = failures.into_parts();
        self.proves = claims::proves(&self);
        self.does_not_prove = claims::does_not_prove(&self);
        self
    }
}

/// A time for people; the number where the calendar ends.
pub(crate) fn date(unix_seconds: u64) -> String {
    i64::try_from(unix_seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| unix_seconds.to_string())
}

/// Foreign text without what a terminal obeys.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(federation) = &self.federation {
            let Members { hash, operators, threshold, .. } = federation;
            writeln!(f, "federation  {hash}, {operators} operators, threshold {threshold}")?;
        }
        if let Some(head) = &self.checkpoint {
            writeln!(f, "log         {}", head.origin)?;
            writeln!(f, "checkpoint  {} records, root {}", head.size, head.root)?;
            if head.log_size > head.size {
                writeln!(f, "            an earlier head; the log had {} records", head.log_size)?;
            }
            if let Some(position) = head.position {
                writeln!(f, "            root epoch {}, journal {}", position.root_epoch, position.sequence)?;
            }
            writeln!(f, "            roots before epoch {} are said to be destroyed", head.destroyed_before)?;
        }
        if let Some(witnesses) = &self.witnesses {
            writeln!(f, "witnesses   {} of {} needed", witnesses.distinct, witnesses.needed)?;
            for cosignature in &witnesses.cosignatures {
                writeln!(
                    f,
                    "            operator {} at {}",
                    cosignature.operator,
                    date(cosignature.unix_seconds)
                )?;
            }
            if witnesses.ignored > 0 {
                writeln!(f, "            {} signatures by unknown keys are ignored", witnesses.ignored)?;
            }
        }
        if let Some(tree) = &self.tree {
            writeln!(f, "tree        {} bundles and {} tiles read", tree.bundles, tree.tiles)?;
        }
        if let Some(since) = &self.since {
            let verdict = if since.continued { "continued" } else { "not continued" };
            writeln!(f, "since       {} records: {verdict}", since.size)?;
        }
        if let Some(entries) = &self.entries {
            self.entries(entries, f)?;
        }
        if self.saved {
            writeln!(f, "saved       the checkpoint")?;
        }
        for failure in &self.failures {
            writeln!(f, "\nFAILED {}: {}", failure.reason, printable(&failure.detail))?;
            for (name, note) in ["earlier", "later"].iter().zip(&failure.notes) {
                writeln!(f, "--- signed note, {name}\n{}---", printable(note))?;
            }
        }
        if self.failures_left_out > 0 {
            writeln!(f, "\nand {} more that do not hold", self.failures_left_out)?;
        }
        for (title, list) in [("This proves:", &self.proves), ("This does not prove:", &self.does_not_prove)]
        {
            writeln!(f, "\n{title}")?;
            for line in list {
                writeln!(f, "  - {}", printable(line))?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn entries(&self, entries: &Entries, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: &std::collections::BTreeMap<String, u64>| {
            counts
                .iter()
                .map(|(name, count)| format!("{} {count}", printable(name)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        writeln!(f, "entries     {} of {} keyshares", entries.read, entries.keyshares)?;
        writeln!(f, "            {}", list(&entries.phases))?;
        writeln!(f, "            {} confirmed, {} pending", entries.confirmed, entries.pending)?;
        writeln!(f, "            delete_claim: {}", list(&entries.delete_claims))?;
        if entries.repaired > 0 {
            writeln!(f, "            {} keyshares that came back by repair", entries.repaired)?;
        }
        if entries.long_lived_claims > 0 {
            writeln!(f, "            {} claims with a long-lived package key", entries.long_lived_claims)?;
        }
        if entries.unused_package_keys > 0 {
            writeln!(f, "            {} package keys that died unused", entries.unused_package_keys)?;
        }
        if entries.beyond > 0 {
            writeln!(f, "            {} lines beyond the checkpoint are ignored", entries.beyond)?;
        }
        Ok(())
    }
}
