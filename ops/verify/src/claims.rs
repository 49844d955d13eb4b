//! In words: what a verified log proves, and what no log can. More must never be promised.

use crate::report::{Report, date};

/// What the report shows. Nothing, unless everything holds.
pub(crate) fn proves(report: &Report) -> Vec<String> {
    let (true, Some(head)) = (report.holds, &report.checkpoint) else {
        return vec!["nothing: not everything holds".to_owned()];
    };
    let operator = report.operator;
    let mut said = vec![format!(
        "operator {operator} signed a log of exactly these {} records, with a key of the federation file that every \
         member signed",
        head.size
    )];
    if let Some(witnesses) = report.witnesses.as_ref().filter(|w| w.distinct > 0) {
        let oldest = witnesses.cosignatures.iter().map(|c| c.unix_seconds).min().unwrap_or(0);
        said.push(format!(
            "{} other operators state (the oldest statement is of {}) that this is the head of the log that they have \
             followed",
            witnesses.distinct,
            date(oldest)
        ));
    }
    if let (Some(witnesses), Some(federation)) = (&report.witnesses, &report.federation)
        && witnesses.distinct >= federation.witnesses_needed
    {
        said.push(format!(
            "no fork of this log has as many witnesses, if fewer than {} operators lie",
            federation.threshold
        ));
    }
    if let Some(since) = &report.since {
        said.push(format!("since the earlier checkpoint of {} records the log only grew", since.size));
    }
    if let Some(entries) = &report.entries {
        said.push(format!(
            "the entries are the records of the log, and each of their {} keyshares has a history without gap: every \
             version but the newest was retired once, and the public shares add up",
            entries.keyshares
        ));
        if entries.confirmed > 0 {
            said.push(format!(
                "operator {operator} signed, of {} of the entries: from epoch {} on, with the named HSM's log and \
                 configuration, the ciphertexts it held of the retired share versions are no longer decryptable by it, \
                 provided the HSM destroyed the roots as it reported, no root copies existed, and the process was not \
                 compromised during the life of the versions",
                entries.confirmed, head.destroyed_before
            ));
        }
    }
    said
}

/// What it cannot show, however it turns out.
pub(crate) fn does_not_prove(report: &Report) -> Vec<String> {
    let mut said = vec![
        "that a share does not exist any more: absence of copies cannot be checked".to_owned(),
        {
            let seen = report.entries.as_ref().map(|entries| {
                let names: Vec<_> = entries.delete_claims.keys().map(String::as_str).collect();
                format!(" (delete_claim seen: {})", names.join(", "))
            });
            format!(
                "that no root was cloned or backed up in the HSM, or a blob of it kept: old roots that come back open old \
                 copies of the store, and there is only configuration evidence{}",
                seen.unwrap_or_default()
            )
        },
        "anything about a version during whose life the process or a session of the HSM was compromised".to_owned(),
        "that the operator does not lie: the share was in memory. A receipt turns silent misbehaviour into a signed \
         false statement; the threshold of operators is the real protection"
            .to_owned(),
    ];
    said.push(match (&report.witnesses, &report.federation) {
        (Some(witnesses), Some(federation)) if witnesses.distinct >= federation.witnesses_needed => format!(
            "that the log has no fork if {} or more operators lie; and witnesses speak for size and root, which roots \
             are destroyed is the operator's word alone",
            federation.threshold
        ),
        (Some(witnesses), Some(federation)) => format!(
            "that nobody was shown another log: forks need the witnesses, {} of them, and here are {}",
            federation.witnesses_needed, witnesses.distinct
        ),
        _ => "that nobody was shown another log: forks need the witnesses".to_owned(),
    });
    if report.since.is_none() {
        said.push(
            "that the log only grew since an earlier visit: no earlier checkpoint was given".to_owned(),
        );
    }
    match &report.entries {
        None => {
            said.push("what the records say: they are salted hashes, and no entries were given".to_owned())
        }
        Some(entries) => {
            if entries.pending > 0 {
                said.push(format!("the {} destructions that are not confirmed yet", entries.pending));
            }
            if entries.repaired > 0 {
                said.push(format!(
                    "anything about earlier versions of {} keyshares: they came back by repair, and what the signer \
                     held before is not shown destroyed",
                    entries.repaired
                ));
                let refreshed: std::collections::BTreeSet<_> =
                    entries.refreshes.iter().map(|refresh| &refresh.keyshare).collect();
                let refreshed =
                    entries.repaired_keyshares.iter().filter(|keyshare| refreshed.contains(keyshare)).count();
                if refreshed > 0 {
                    said.push(format!(
                        "that the shares lost of {refreshed} of them are useless: they were refreshed here; whether at \
                         all operators, their logs show (spark-verify refreshes)"
                    ));
                }
            }
            if entries.long_lived_claims > 0 {
                said.push(format!(
                    "that recorded packages of {} claims are not opened later: they were encrypted to a long-lived key",
                    entries.long_lived_claims
                ));
            }
        }
    }
    said
}
