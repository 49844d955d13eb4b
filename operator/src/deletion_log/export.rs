//! The log's entries for an auditor.

use std::io::Write;

use anyhow::Context as _;
use serde_json::json;
use spark_proto::{
    peer::v1::Receipt,
    signer::v1::{GetCheckpointRequest, ReadLogRequest},
};
use spark_rules::checkpoint::Checkpoint;

use crate::{config::Config, edge::signer_channel, server, signer_client::SignerClient};

/// Writes every entry from index `from` on to `out`, as one JSON object per line, and ends where the log ended when it
/// began.
///
/// # Errors
/// When the own signer does not answer, or `out` cannot be written.
pub async fn export(config: &Config, from: u64, out: &mut impl Write) -> anyhow::Result<()> {
    let federation = server::federation(config)?;
    let signer = SignerClient::new(signer_channel(config)?, config.signer.deadline);
    let note = signer.get_checkpoint(GetCheckpointRequest {}).await.context("own signer")?.checkpoint;
    let until = Checkpoint::verify(&note, &federation, config.operator)?.size;
    let mut from = from;
    while from < until {
        let page = signer.read_log(ReadLogRequest { from, until }).await.context("own signer")?.entries;
        anyhow::ensure!(!page.is_empty(), "the signer gave no entries after {from}");
        for entry in &page {
            writeln!(out, "{}", entry_json(entry))?;
        }
        from = from.saturating_add(page.len() as u64);
    }
    out.flush()?;
    Ok(())
}

/// An entry with the salt that its record in the log was made with; bytes are hex.
fn entry_json(entry: &Receipt) -> serde_json::Value {
    json!({
        "log_index": entry.log_index,
        "salt": hex::encode(&entry.salt),
        "incarnation": hex::encode(&entry.incarnation),
        "sequence": entry.sequence,
        "keyshare_id": hex::encode(&entry.keyshare_id),
        "leaf_id": entry.leaf_id,
        "operation_id": hex::encode(&entry.operation_id),
        "phase": entry.phase,
        "retired_version": entry.retired_version,
        "new_version": entry.new_version,
        "retired_public_share": hex::encode(&entry.retired_public_share),
        "new_public_share": hex::encode(&entry.new_public_share),
        "tweak_commitment": hex::encode(&entry.tweak_commitment),
        "root_epoch_before": entry.root_epoch_before,
        "root_epoch_after": entry.root_epoch_after,
        "root_id_before": hex::encode(&entry.root_id_before),
        "delete_claim": entry.delete_claim,
        "package_kind": entry.package_kind,
        "unix_seconds": entry.unix_seconds,
        "live_versions": entry.live_versions,
        "state": entry.state,
        "package_keys": entry.package_keys.iter().map(hex::encode).collect::<Vec<_>>(),
    })
}
