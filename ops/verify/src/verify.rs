//! All checks in order.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
};

use crate::{
    Error, Options,
    checkpoint::{self, Checkpoint, SignedCheckpoint},
    entries::{MAX_LINE, Receipt},
    failure::{Failures, Reason},
    federation::{Federation, MAX_FILE},
    history::{Entries, History},
    merkle::{self, Hash},
    note::MAX_NOTE,
    report::{Head, Members, Report},
    since,
    source::Source,
    tree, witness,
};

/// Verifies a log. What does not hold is in the report; an error says that nothing can be said.
pub async fn verify(options: &Options) -> Result<Report, Error> {
    let mut failures = Failures::default();
    let mut report = Report::new(options.operator);
    let federation = match Federation::read(&text(&options.federation, MAX_FILE)?)? {
        Ok(federation) => federation,
        Err((reason, detail)) => {
            failures.add(reason, detail);
            return Ok(report.finish(failures));
        }
    };
    let operator = options.operator;
    if federation.keys(operator).is_empty() {
        let last = federation.size().saturating_sub(1);
        return Err(Error::Usage(format!("there is no operator {operator}; the last is {last}")));
    }
    let others = federation.size().saturating_sub(1);
    let needed = options.witnesses.unwrap_or_else(|| federation.witnesses_needed());
    if needed > others {
        return Err(Error::Usage(format!(
            "{needed} witnesses cannot be, there are {others} other operators"
        )));
    }
    report.federation = Some(Members::from(&federation));
    let earlier = match &options.since {
        Some(path) => earlier(path, &federation, operator, &mut failures)?,
        None => None,
    };
    let source = Source::open(&options.location)?;
    let Some(head) = head(&source, &federation, operator, &mut failures).await? else {
        return Ok(report.finish(failures));
    };
    report.checkpoint = Some(Head::from(&head));
    report.witnesses = Some(witness::verify(&head.note, &federation, operator, needed, &mut failures));
    let (seen, leaves) = tree::rebuild(&source, &head.checkpoint, &mut failures).await?;
    report.tree = Some(seen);
    if let Some(earlier) = &earlier {
        report.since = Some(since::compare(earlier, &head, leaves.as_deref(), &mut failures));
    }
    // Without the leaves of the signed tree there is nothing that entries could be compared with.
    if let (Some(path), Some(leaves)) = (&options.entries, &leaves) {
        report.entries = Some(entries(path, leaves, &head.checkpoint, &mut failures)?);
    }
    let mut report = report.finish(failures);
    // A checkpoint that failed must not become what the next visit is compared with.
    if let (Some(path), true) = (&options.save, report.holds) {
        save(path, &head.note.to_string()).map_err(|error| file_error(path, error))?;
        report.saved = true;
    }
    Ok(report)
}

fn file_error(path: &Path, error: std::io::Error) -> Error {
    Error::File { path: path.display().to_string(), error }
}

/// A file of bounded length.
fn text(path: &Path, limit: u64) -> Result<String, Error> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(limit).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|error| file_error(path, error))
}

fn save(path: &Path, note: &str) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let mut file = File::create(&name)?;
    file.write_all(note.as_bytes())?;
    file.sync_all()?;
    fs::rename(&name, path)
}

fn earlier(
    path: &Path,
    federation: &Federation,
    operator: u16,
    failures: &mut Failures,
) -> Result<Option<SignedCheckpoint>, Error> {
    let note = text(path, MAX_NOTE as u64)?;
    match checkpoint::verify(note.as_bytes(), federation, operator) {
        Ok(checkpoint) => Ok(Some(checkpoint)),
        Err((Reason::CheckpointUnsigned | Reason::CheckpointSignature, detail)) => {
            failures.add(Reason::SinceUnsigned, format!("earlier checkpoint: {detail}"));
            Ok(None)
        }
        Err((_, detail)) => Err(Error::Since(detail)),
    }
}

async fn head(
    source: &Source,
    federation: &Federation,
    operator: u16,
    failures: &mut Failures,
) -> Result<Option<SignedCheckpoint>, Error> {
    let Some(bytes) = source.read("checkpoint", MAX_NOTE).await? else {
        failures.add(Reason::CheckpointMissing, "the log has no checkpoint");
        return Ok(None);
    };
    let head = match checkpoint::verify(&bytes, federation, operator) {
        Ok(head) => head,
        Err((reason, detail)) => {
            failures.add(reason, detail);
            return Ok(None);
        }
    };
    let destroyed = head.checkpoint.destroyed_before();
    if let Some(position) = head.checkpoint.position.filter(|p| destroyed > p.root_epoch) {
        failures.add(
            Reason::DestroyedBeforeAhead,
            format!(
                "roots before epoch {destroyed} are said to be destroyed at epoch {}",
                position.root_epoch
            ),
        );
    }
    Ok(Some(head))
}

/// Compares each line with the record in its place, and follows the keyshares as long as the entries are the log's.
fn entries(
    path: &Path,
    leaves: &[Hash],
    checkpoint: &Checkpoint,
    failures: &mut Failures,
) -> Result<Entries, Error> {
    let mut file = BufReader::new(File::open(path).map_err(|error| file_error(path, error))?);
    let mut history = History::default();
    let mut expected = (0u64..).zip(leaves);
    let (mut number, mut beyond, mut followed) = (0u64, 0u64, true);
    let mut line = Vec::new();
    while !failures.is_full() {
        line.clear();
        let most = MAX_LINE.saturating_add(1);
        file.by_ref().take(most).read_until(b'\n', &mut line).map_err(|error| file_error(path, error))?;
        number = number.saturating_add(1);
        if line.is_empty() {
            if let Some((index, _)) = expected.next() {
                failures.add(
                    Reason::EntriesMissing,
                    format!("the entries end before {index}, the log has {}", leaves.len()),
                );
            }
            break;
        }
        if line.len() as u64 > MAX_LINE {
            return Err(Error::Entries { line: number, what: "it is too long".to_owned() });
        }
        let receipt = Receipt::parse(&line).map_err(|what| Error::Entries { line: number, what })?;
        let Some((index, leaf)) = expected.next() else {
            beyond = beyond.saturating_add(1);
            continue;
        };
        if receipt.log_index != index {
            failures.add(
                Reason::EntryIndex,
                format!("in the place of entry {index} stands entry {}", receipt.log_index),
            );
            break;
        }
        if receipt.salt.0.len() != 32 {
            failures.add(Reason::EntryMalformed, format!("entry {index}: the salt has not 32 bytes"));
            followed = false;
        }
        if merkle::leaf(&receipt.record()) != *leaf {
            failures.add(Reason::EntryDiffers, format!("entry {index} is not the one that the log holds"));
            followed = false;
        }
        if followed {
            history.take(&receipt, checkpoint.destroyed_before(), failures);
        }
    }
    Ok(Entries { beyond, ..history.totals() })
}
