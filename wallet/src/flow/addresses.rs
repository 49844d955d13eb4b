//! Deposit addresses that this wallet does not remember: their leaf ids, and so their keys, lie with the operators.

use prost::Message as _;
use spark_proto::spark::{DepositAddressQueryResult, QueryUnusedDepositAddressesRequest};
use spark_rules::{address, ids::LeafId, leaf::LeafStatus};

use super::paging::{PAGE, Paging};
use crate::{
    Wallet, WalletError,
    client::{ClientError, Operator},
    state::{DepositRecord, DepositState},
    verify::{self, Node, VerifyError},
    wallet::now,
};

/// What a search for forgotten deposit addresses found.
#[derive(Debug, Default)]
pub struct Restored {
    /// Addresses that are stored now and were not before.
    pub addresses: Vec<String>,
    /// Operators that gave no answer, and answers that prove nothing. Each address is complete only at the operator
    /// that it was asked from, so an operator that is silent may hold some back.
    pub problems: Vec<String>,
}

impl Wallet {
    /// Asks every operator for this identity's unused deposit addresses, verifies them as on the day they were
    /// made, and stores those that are not known here.
    pub async fn restore_deposits(&self) -> Result<Restored, WalletError> {
        let mut restored = Restored::default();
        for (index, answer) in self.operators().each(|o| self.unused_addresses(o)).await {
            let listed = match answer {
                Ok(listed) => listed,
                Err(error) => {
                    restored.problems.push(error.to_string());
                    continue;
                }
            };
            for item in listed {
                match self.restored(&item) {
                    Ok(None) => {}
                    Ok(Some(record)) => {
                        self.state().put(&record)?;
                        restored.addresses.push(record.address);
                    }
                    Err(WalletError::State(error)) => return Err(error.into()),
                    Err(error) => restored.problems.push(format!(
                        "operator {}: {}: {error}",
                        index.get(),
                        item.deposit_address.escape_default()
                    )),
                }
            }
        }
        Ok(restored)
    }

    async fn unused_addresses(
        &self,
        operator: &Operator,
    ) -> Result<Vec<DepositAddressQueryResult>, ClientError> {
        let identity_public_key = self.keys().identity().public_key().serialize().to_vec();
        let mut all = Vec::new();
        let mut paging = Paging::of(operator);
        loop {
            let request = QueryUnusedDepositAddressesRequest {
                identity_public_key: identity_public_key.clone(),
                network: self.config().network.to_wire() as i32,
                limit: PAGE,
                offset: paging.offset(),
            };
            let answer = operator
                .spark(self.keys().identity(), request, |mut c, r| async move {
                    c.query_unused_deposit_addresses(r).await
                })
                .await?;
            let (bytes, new) = (answer.encoded_len(), answer.deposit_addresses.len());
            all.extend(answer.deposit_addresses);
            if !paging.more(new, bytes, answer.offset)? {
                return Ok(all);
            }
        }
    }

    /// The record of a listed address, if there is none yet.
    fn restored(&self, item: &DepositAddressQueryResult) -> Result<Option<DepositRecord>, WalletError> {
        let id = item.leaf_id.as_deref().ok_or(WalletError::Answer("a leaf id"))?;
        let id = LeafId::parse(id).map_err(VerifyError::from)?;
        let leaf_id = id.to_string();
        let known = self.state().get::<DepositRecord>(&leaf_id)?;
        if known.is_some_and(|record| record.state != DepositState::Requested) {
            return Ok(None);
        }
        let verified = verify::deposit_address(
            &item.deposit_address,
            &item.verifying_public_key,
            item.proof_of_possession.as_ref().ok_or(WalletError::Answer("the address proof"))?,
            &self.keys().leaf(&id)?.public_key(),
            &self.keys().identity().public_key(),
            self.config().network,
            &self.config().federation,
        )?;
        Ok(Some(DepositRecord {
            leaf_id,
            address: verified.address,
            verifying_key: verified.verifying_key.to_string(),
            state: DepositState::Waiting,
            outpoint: None,
            amount: None,
            request: None,
            created: now(),
        }))
    }

    /// Keeps the record of a deposit in step with its leaf, on which all operators agree. A leaf that still waits
    /// for its block has an address that may be needed again, so a wallet that was restored meanwhile gets a record.
    pub(super) fn note_deposit(&self, leaf: &Node) -> Result<(), WalletError> {
        let leaf_id = leaf.id.to_string();
        let waits = leaf.status == LeafStatus::Creating.name();
        match self.state().get::<DepositRecord>(&leaf_id)? {
            Some(mut record) if !waits && record.state != DepositState::Claimed => {
                record.state = DepositState::Claimed;
                record.amount = Some(leaf.value);
                self.state().put(&record)?;
            }
            None if waits => {
                let outpoint = leaf.node_tx.input.first().map(|i| i.previous_output.to_string());
                self.state().put(&DepositRecord {
                    leaf_id,
                    address: address::deposit_address(&leaf.verifying_key, self.config().network),
                    verifying_key: leaf.verifying_key.to_string(),
                    state: DepositState::Claiming,
                    outpoint,
                    amount: Some(leaf.value),
                    request: None,
                    created: now(),
                })?;
            }
            _ => {}
        }
        Ok(())
    }
}
