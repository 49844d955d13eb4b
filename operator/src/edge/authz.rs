//! The authorisation table: every public method and who may call it. What is not listed is denied.

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Anyone.
    Open,
    /// Any session. The handler limits the answer to what concerns the session's identity.
    Session,
    /// A query. Any session, and where the operator's configuration opens reads also none. The handler limits the
    /// answer to what concerns the session's identity, or an identity that lets the caller read.
    Read,
    /// The request names an identity key in this field, and it must be the session's.
    SessionEquals(Field),
    /// Not offered.
    Unimplemented,
}

/// A top-level `bytes` field of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its number on the wire.
    pub number: u32,
    /// Its name, for messages and for the test against the descriptors.
    pub name: &'static str,
}

/// A public method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// Fully qualified service name.
    pub service: &'static str,
    /// Method name.
    pub name: &'static str,
    /// Who may call it.
    pub rule: Rule,
    /// How many calls it counts for against the quotas: 1, or more where it uses up keys or much work.
    pub cost: u32,
}

impl Method {
    /// Whether a handler may ever see a call.
    pub fn offered(&self) -> bool {
        self.rule != Rule::Unimplemented
    }
}

pub(super) const fn field(number: u32, name: &'static str) -> Field {
    Field { number, name }
}

const AUTHN: &str = "spark_authn.SparkAuthnService";
pub(super) const SPARK: &str = "spark.SparkService";
const LOG: &str = "log.v1.DeletionLog";
const PACKAGES: &str = "packages.v1.PackageKeys";
const TOKEN: &str = "spark_token.SparkTokenService";
/// Load balancers ask it, and they have no session. It says only whether this operator is ready.
const HEALTH: &str = "grpc.health.v1.Health";

pub(super) const fn method(service: &'static str, name: &'static str, rule: Rule) -> Method {
    Method { service, name, rule, cost: 1 }
}

const fn costly(service: &'static str, name: &'static str, rule: Rule, cost: u32) -> Method {
    Method { service, name, rule, cost }
}

/// Every method of every public service.
pub const TABLE: &[Method] = &[
    method(HEALTH, "Check", Rule::Open),
    method(HEALTH, "Watch", Rule::Open),
    method(LOG, "GetCheckpoint", Rule::Session),
    method(LOG, "GetReceipts", Rule::Session),
    method(LOG, "ProveConsistency", Rule::Session),
    costly(LOG, "WatchLeaves", Rule::Session, 10),
    costly(PACKAGES, "ReserveKey", Rule::Session, 2),
    method(AUTHN, "get_challenge", Rule::Open),
    method(AUTHN, "verify_challenge", Rule::Open),
    costly(SPARK, "generate_deposit_address", Rule::SessionEquals(field(2, "identity_public_key")), 10),
    costly(
        SPARK,
        "generate_static_deposit_address",
        Rule::SessionEquals(field(2, "identity_public_key")),
        10,
    ),
    costly(SPARK, "rotate_static_deposit_address", Rule::Session, 10),
    method(SPARK, "start_deposit_tree_creation", Rule::Unimplemented),
    costly(SPARK, "finalize_deposit_tree_creation", Rule::SessionEquals(field(1, "identity_public_key")), 4),
    method(SPARK, "finalize_transfer_with_transfer_package", Rule::Unimplemented),
    method(SPARK, "query_pending_transfers", Rule::Read),
    method(SPARK, "query_all_transfers", Rule::Read),
    method(SPARK, "claim_transfer_tweak_keys", Rule::Unimplemented),
    method(SPARK, "store_preimage_share", Rule::Unimplemented),
    method(SPARK, "store_preimage_share_v2", Rule::Unimplemented),
    costly(SPARK, "get_signing_commitments", Rule::Session, 2),
    costly(SPARK, "provide_preimage", Rule::SessionEquals(field(3, "identity_public_key")), 4),
    method(SPARK, "query_preimage", Rule::Unimplemented),
    method(SPARK, "query_htlc", Rule::SessionEquals(field(2, "identity_public_key"))),
    costly(SPARK, "renew_leaf", Rule::Session, 4),
    method(SPARK, "get_signing_operator_list", Rule::Session),
    method(SPARK, "query_nodes", Rule::Read),
    method(SPARK, "query_balance", Rule::Read),
    method(SPARK, "query_user_signed_refunds", Rule::Unimplemented),
    method(SPARK, "query_unused_deposit_addresses", Rule::Read),
    method(SPARK, "query_static_deposit_addresses", Rule::Read),
    // A thousand missed events may have to be read.
    costly(SPARK, "subscribe_to_events", Rule::SessionEquals(field(10, "identity_public_key")), 10),
    costly(SPARK, "initiate_static_deposit_utxo_refund", Rule::Session, 4),
    method(SPARK, "exit_single_node_trees", Rule::Unimplemented),
    costly(SPARK, "cooperative_exit_v2", Rule::Session, 4),
    method(SPARK, "claim_transfer_sign_refunds_v2", Rule::Unimplemented),
    method(SPARK, "finalize_node_signatures_v2", Rule::Unimplemented),
    method(SPARK, "initiate_preimage_swap_v2", Rule::Unimplemented),
    costly(SPARK, "initiate_preimage_swap_v3", Rule::Session, 4),
    method(SPARK, "start_leaf_swap_v2", Rule::Unimplemented),
    costly(SPARK, "start_transfer_v2", Rule::SessionEquals(field(2, "owner_identity_public_key")), 4),
    costly(SPARK, "start_transfer_v3", Rule::Session, 4),
    costly(SPARK, "claim_transfer", Rule::SessionEquals(field(2, "owner_identity_public_key")), 4),
    // Megabytes of transactions.
    costly(SPARK, "get_utxos_for_address", Rule::Read, 4),
    costly(SPARK, "get_utxos_for_identity", Rule::Read, 4),
    // A hundred signatures to verify.
    costly(SPARK, "query_spark_invoices", Rule::Read, 10),
    method(SPARK, "initiate_swap_primary_transfer", Rule::Unimplemented),
    costly(SPARK, "update_wallet_setting", Rule::Session, 4),
    method(SPARK, "query_wallet_setting", Rule::Session),
    method(SPARK, "query_spark_transaction_volumes", Rule::Unimplemented),
    method(TOKEN, "start_transaction", Rule::Unimplemented),
    method(TOKEN, "commit_transaction", Rule::Unimplemented),
    method(TOKEN, "query_token_metadata", Rule::Unimplemented),
    method(TOKEN, "query_token_transactions", Rule::Read),
    method(TOKEN, "query_token_outputs", Rule::Read),
    method(TOKEN, "freeze_tokens", Rule::Unimplemented),
    method(TOKEN, "broadcast_transaction", Rule::Unimplemented),
];

/// The method behind an HTTP path, `/service/method`.
pub fn lookup(path: &str) -> Option<&'static Method> {
    let (service, name) = path.strip_prefix('/')?.split_once('/')?;
    TABLE.iter().find(|method| method.service == service && method.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

    use super::*;

    fn descriptors() -> FileDescriptorSet {
        FileDescriptorSet::decode(spark_proto::DESCRIPTORS).unwrap()
    }

    /// (service, method, input type) of the public packages.
    fn public_methods() -> BTreeSet<(String, String, String)> {
        let mut methods = BTreeSet::new();
        for file in descriptors().file {
            let package = file.package().to_owned();
            if !package.starts_with("spark") && !["log.v1", "packages.v1"].contains(&package.as_str()) {
                continue;
            }
            for service in &file.service {
                for method in &service.method {
                    methods.insert((
                        format!("{package}.{}", service.name()),
                        method.name().to_owned(),
                        method.input_type().to_owned(),
                    ));
                }
            }
        }
        methods
    }

    fn message(full_name: &str) -> DescriptorProto {
        descriptors()
            .file
            .into_iter()
            .flat_map(|file| {
                let package = file.package().to_owned();
                file.message_type
                    .into_iter()
                    .map(move |message| (format!(".{package}.{}", message.name()), message))
            })
            .find_map(|(name, message)| (name == full_name).then_some(message))
            .unwrap()
    }

    #[test]
    fn every_public_method_is_listed_once() {
        let described: BTreeSet<_> = public_methods().into_iter().map(|(s, m, _)| (s, m)).collect();
        let (health, ours): (Vec<&Method>, Vec<&Method>) =
            TABLE.iter().partition(|method| method.service == HEALTH);
        let listed: BTreeSet<_> =
            ours.iter().map(|method| (method.service.to_owned(), method.name.to_owned())).collect();
        assert_eq!(described, listed);
        assert_eq!(listed.len(), ours.len());
        let health: Vec<_> = health.iter().map(|method| (method.name, method.rule)).collect();
        assert_eq!(health, [("Check", Rule::Open), ("Watch", Rule::Open)]);
    }

    /// What works without a session is this list and nothing else (S11).
    #[test]
    fn s11_open_methods() {
        let open: Vec<_> = TABLE.iter().filter(|method| method.rule == Rule::Open).map(|m| m.name).collect();
        assert_eq!(open, ["Check", "Watch", "get_challenge", "verify_challenge"]);
    }

    /// And where reads are open, queries, which change nothing.
    #[test]
    fn s11_methods_that_reads_may_open() {
        let read: Vec<_> = TABLE.iter().filter(|method| method.rule == Rule::Read).map(|m| m.name).collect();
        assert_eq!(
            read,
            [
                "query_pending_transfers",
                "query_all_transfers",
                "query_nodes",
                "query_balance",
                "query_unused_deposit_addresses",
                "query_static_deposit_addresses",
                "get_utxos_for_address",
                "get_utxos_for_identity",
                "query_spark_invoices",
                "query_token_transactions",
                "query_token_outputs",
            ]
        );
    }

    #[test]
    fn s13_calls_of_many_queries_or_signatures_count_more() {
        for (name, least) in [
            ("subscribe_to_events", 10),
            ("query_spark_invoices", 10),
            ("get_utxos_for_address", 4),
            ("get_utxos_for_identity", 4),
        ] {
            assert!(lookup(&format!("/{SPARK}/{name}")).unwrap().cost >= least, "{name}");
        }
    }

    #[test]
    fn named_fields_exist_and_are_bytes() {
        for (service, name, input) in public_methods() {
            let method = lookup(&format!("/{service}/{name}")).unwrap();
            let Rule::SessionEquals(field) = method.rule else { continue };
            let described = message(&input).field.into_iter().find(|f| f.name() == field.name).unwrap();
            assert_eq!(u32::try_from(described.number()), Ok(field.number), "{name}.{}", field.name);
            assert_eq!(described.r#type(), Type::Bytes, "{name}.{}", field.name);
        }
    }

    #[test]
    fn unknown_paths_are_not_found() {
        for path in [
            "",
            "/",
            "/spark.SparkService",
            "spark.SparkService/query_nodes",
            "/spark.SparkService/query_nodes/",
        ] {
            assert!(lookup(path).is_none(), "{path}");
        }
    }
}
