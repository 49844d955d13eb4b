//! Every RPC of every service, read from the descriptors: a list that nobody keeps up to date by hand.

use anyhow::Context as _;
use prost::Message as _;
use prost_types::FileDescriptorSet;

/// Methods that give the session that all others need.
pub(crate) const LOGIN: &[&str] = &["get_challenge", "verify_challenge"];

/// Methods that no operator offers yet: refused with or without a session.
pub(crate) const NOT_OFFERED: &[&str] = &[
    "start_deposit_tree_creation",
    "finalize_transfer_with_transfer_package",
    "claim_transfer_tweak_keys",
    "store_preimage_share",
    "store_preimage_share_v2",
    "query_preimage",
    "query_user_signed_refunds",
    "exit_single_node_trees",
    "claim_transfer_sign_refunds_v2",
    "finalize_node_signatures_v2",
    "initiate_preimage_swap_v2",
    "start_leaf_swap_v2",
    "initiate_swap_primary_transfer",
    "query_spark_transaction_volumes",
    "start_transaction",
    "commit_transaction",
    "query_token_metadata",
    "freeze_tokens",
    "broadcast_transaction",
];

/// One RPC.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Method {
    /// For example `spark`.
    pub(crate) package: String,
    /// For example `spark.SparkService`.
    pub(crate) service: String,
    /// For example `query_nodes`.
    pub(crate) name: String,
    /// The server answers with a stream.
    pub(crate) streams: bool,
}

impl Method {
    /// Path of the HTTP request.
    pub(crate) fn path(&self) -> String {
        format!("/{}/{}", self.service, self.name)
    }
}

/// All methods of all packages.
pub(crate) fn all() -> anyhow::Result<Vec<Method>> {
    let files = FileDescriptorSet::decode(spark_proto::DESCRIPTORS)?;
    let mut methods = Vec::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                anyhow::ensure!(!method.client_streaming(), "{}: no client streams here", method.name());
                methods.push(Method {
                    package: file.package().to_owned(),
                    service: format!("{}.{}", file.package(), service.name()),
                    name: method.name().to_owned(),
                    streams: method.server_streaming(),
                });
            }
        }
    }
    anyhow::ensure!(methods.len() > 80, "the descriptors hold fewer methods than this test was written for");
    Ok(methods)
}

/// What wallets may reach: the public packages and the deletion log.
pub(crate) fn public() -> anyhow::Result<Vec<Method>> {
    let mut methods = all()?;
    methods.retain(|m| {
        m.package.starts_with("spark") || ["log.v1", "packages.v1"].contains(&m.package.as_str())
    });
    Ok(methods)
}

/// The methods of one package, at least one.
pub(crate) fn of(package: &str) -> anyhow::Result<Vec<Method>> {
    let mut methods = all()?;
    methods.retain(|m| m.package == package);
    methods.first().with_context(|| format!("{package} has no methods"))?;
    Ok(methods)
}
