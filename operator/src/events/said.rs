//! What streams say about rows of the table, read when they say it.

use std::collections::{HashMap, HashSet};

use spark_proto::spark::{DepositEvent, TransferEvent, subscribe_to_events_response::Event as Wire};
use uuid::Uuid;

use super::Shared;
use crate::{
    convert::{ConvertError, Side},
    db::{event::EventRow, query_event, query_node, query_transfer, transfer},
};

/// Statuses in which a receiver may claim.
const CLAIMABLE: [i32; 5] = [2, 3, 4, 9, 10];

/// Rows of one identity, in sets for few queries.
#[derive(Default)]
struct Named {
    deposits: Vec<Uuid>,
    transfers: Vec<Uuid>,
    sent: Vec<Uuid>,
}

impl Shared {
    /// What to say about rows of one identity now; nothing where there is nothing to say any more.
    pub(super) async fn said(&self, rows: &[&EventRow]) -> Result<Vec<Option<Wire>>, ConvertError> {
        self.events(rows, false).await
    }

    /// The same for rows that may have been said before. A wallet that hears late that leaves went away must not take
    /// those for gone that came back since.
    pub(super) async fn missed(&self, rows: &[&EventRow]) -> Result<Vec<Option<Wire>>, ConvertError> {
        self.events(rows, true).await
    }

    async fn events(&self, rows: &[&EventRow], late: bool) -> Result<Vec<Option<Wire>>, ConvertError> {
        let Some(identity) = rows.first().map(|row| row.identity.as_slice()) else { return Ok(Vec::new()) };
        let mut named = Named::default();
        for row in rows {
            let id = id(row)?;
            match row.kind.as_str() {
                "DEPOSIT" => named.deposits.push(id),
                "TRANSFER" => named.transfers.push(id),
                "SENDER_TRANSFER" => {
                    named.transfers.push(id);
                    named.sent.push(id);
                }
                _ => return Err(ConvertError::Column("event_log.kind")),
            }
        }
        let pool = self.db.pool();
        let mut deposits = HashMap::new();
        if !named.deposits.is_empty() {
            let available = ["AVAILABLE".to_owned()];
            for row in query_node::visible(pool, &named.deposits, identity, &available).await? {
                deposits.insert(row.leaf_id, self.converter.node(&row)?);
            }
        }
        let (mut transfers, mut shares, mut leaves) = (HashMap::new(), HashMap::new(), HashMap::new());
        if !named.transfers.is_empty() {
            for row in transfer::by_ids(pool, &named.transfers).await? {
                transfers.insert(row.transfer_id, row);
            }
            for row in transfer::shares(pool, &named.transfers).await? {
                shares.entry(row.transfer_id).or_insert_with(Vec::new).push(row);
            }
            for row in query_transfer::leaves(pool, &named.transfers).await? {
                leaves.entry(row.transfer_id).or_insert_with(Vec::new).push(row);
            }
        }
        let back: HashSet<Uuid> = if late && !named.sent.is_empty() {
            query_event::came_back(pool, &named.sent, identity).await?.into_iter().collect()
        } else {
            HashSet::new()
        };
        let transfer = |id: Uuid, side| {
            let row = transfers.get(&id);
            let (shares, leaves) = (shares.get(&id), leaves.get(&id));
            let of = |row| {
                let (shares, leaves) =
                    (shares.map_or(&[][..], Vec::as_slice), leaves.map_or(&[][..], Vec::as_slice));
                self.converter.transfer(row, shares, leaves, side, self.network)
            };
            row.map(of).transpose()
        };
        let event = |transfer| TransferEvent { transfer: Some(transfer), trace_id: String::new() };
        let mut said = Vec::with_capacity(rows.len());
        for row in rows {
            let id = id(row)?;
            said.push(match row.kind.as_str() {
                "DEPOSIT" => deposits.get(&id).map(|node| {
                    Wire::Deposit(DepositEvent { deposit: Some(node.clone()), trace_id: String::new() })
                }),
                "TRANSFER" => {
                    let shown = transfer(id, Side::Receiver(identity))?;
                    shown
                        .filter(|shown| CLAIMABLE.contains(&shown.status))
                        .map(event)
                        .map(Wire::ReceiverTransfer)
                }
                _ if back.contains(&id) => None,
                _ => transfer(id, Side::Sender)?.map(event).map(Wire::SenderTransfer),
            });
        }
        Ok(said)
    }
}

fn id(row: &EventRow) -> Result<Uuid, ConvertError> {
    Uuid::from_slice(&row.body).map_err(|_| ConvertError::Column("event_log.body"))
}
