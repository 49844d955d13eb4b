//! Queries of leaves, balances and operators.

use spark_proto::spark::{self, query_nodes_request::Source};
use spark_rules::leaf::LeafStatus;

use super::{Api, input, page::Page};
use crate::{
    authn::Reader,
    db::query_node::{self, NodeRow},
    status::Refused,
};

impl Api {
    /// Leaves of an identity about which the session may read, or named nodes that concern the session's own; what
    /// concerns others is left out as if it did not exist.
    pub(super) async fn nodes(
        &self,
        reader: &Reader,
        request: spark::QueryNodesRequest,
    ) -> Result<spark::QueryNodesResponse, Refused> {
        input::network_if_named("network", request.network, self.parts.network)?;
        let statuses = statuses(&request.statuses)?;
        let pool = self.parts.db.pool();
        let page = Page::parse(request.limit, request.offset)?;
        let mut parents = request.include_parents;
        let (mut rows, offset) = match &request.source {
            // Named nodes come in one answer, whatever the limit: clients do not page here.
            Some(Source::NodeIds(named)) => {
                let ids = input::leaf_ids("node_ids", &named.node_ids)?;
                let ids: Vec<_> = ids.iter().map(|id| id.uuid()).collect();
                let identity = reader.own()?.serialize();
                (query_node::visible(pool, &ids, &identity, &statuses).await?, -1)
            }
            owner => {
                let mut whose = reader.identity;
                if let Some(Source::OwnerIdentityPubkey(owner)) = owner {
                    let Some(readable) = self.readable("owner_identity_pubkey", owner, reader).await? else {
                        return Ok(spark::QueryNodesResponse { offset: -1, ..Default::default() });
                    };
                    whose = Some(readable.owner);
                    // They keep the names of earlier owners.
                    parents &= !readable.as_stranger;
                }
                let whose = whose.ok_or_else(Refused::no_session)?.serialize();
                page.cut(query_node::owned(pool, &whose, &statuses, page.fetch(), page.offset()).await?)
            }
        };
        if parents {
            let ids: Vec<_> = rows.iter().map(|row| row.leaf_id).collect();
            rows.extend(query_node::ancestors(pool, &ids).await?);
        }
        let nodes = rows.iter().map(|row| self.named_node(row)).collect::<Result<_, _>>()?;
        Ok(spark::QueryNodesResponse { nodes, offset })
    }

    fn named_node(&self, row: &NodeRow) -> Result<(String, spark::TreeNode), Refused> {
        let node = self.converter.node(row)?;
        Ok((node.id.clone(), node))
    }

    pub(super) async fn balance(
        &self,
        reader: &Reader,
        request: spark::QueryBalanceRequest,
    ) -> Result<spark::QueryBalanceResponse, Refused> {
        input::network_if_named("network", request.network, self.parts.network)?;
        let named = &request.identity_public_key;
        let Some(readable) = self.readable("identity_public_key", named, reader).await? else {
            return Ok(spark::QueryBalanceResponse::default());
        };
        let rows = query_node::balance(self.parts.db.pool(), &readable.owner.serialize()).await?;
        let node_balances: std::collections::BTreeMap<String, u64> = rows
            .into_iter()
            .map(|row| (row.leaf_id.as_hyphenated().to_string(), row.value.unsigned_abs()))
            .collect();
        let balance = node_balances.values().fold(0u64, |sum, value| sum.saturating_add(*value));
        Ok(spark::QueryBalanceResponse { balance, node_balances })
    }

    pub(super) fn operators(&self) -> spark::GetSigningOperatorListResponse {
        let members = self.parts.federation.members().iter();
        let signing_operators = members
            .map(|member| {
                let identifier = member.index.identifier_hex();
                let info = spark::SigningOperatorInfo {
                    index: member.index.get().into(),
                    identifier: identifier.clone(),
                    public_key: member.identity.serialize().to_vec(),
                    address: member.public_address.clone(),
                };
                (identifier, info)
            })
            .collect();
        spark::GetSigningOperatorListResponse { signing_operators }
    }
}

fn statuses(wire: &[i32]) -> Result<Vec<String>, Refused> {
    if wire.len() > 32 {
        return Err(Refused::field("statuses", "at most 32"));
    }
    wire.iter()
        .map(|code| {
            let status = spark::TreeNodeStatus::try_from(*code)
                .map_err(|_| Refused::field("statuses", format!("{code} is no status")))?;
            Ok(LeafStatus::from_wire(status).name().to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_known_and_bounded() {
        assert_eq!(statuses(&[1, 10]).unwrap(), ["AVAILABLE", "RENEW_LOCKED"]);
        assert!(statuses(&[99]).is_err());
        assert!(statuses(&[1; 33]).is_err());
    }
}
