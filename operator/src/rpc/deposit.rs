//! Deposit addresses.

use spark_proto::spark;

use super::{Api, input, page::Page};
use crate::{
    authn::{Reader, Session},
    db::address,
    status::{Reason, Refused},
};

impl Api {
    pub(super) async fn new_deposit_address(
        &self,
        session: &Session,
        request: spark::GenerateDepositAddressRequest,
    ) -> Result<spark::GenerateDepositAddressResponse, Refused> {
        input::network("network", request.network, self.parts.network)?;
        let identity = input::own_identity("identity_public_key", &request.identity_public_key, session)?;
        let user_key = input::key("signing_public_key", &request.signing_public_key)?;
        if request.is_static.unwrap_or(false) {
            return Err(Refused::new(
                Reason::Unimplemented,
                "static deposit addresses come from generate_static_deposit_address",
            ));
        }
        if request.hash_variant != spark::HashVariant::V2 as i32 {
            return Err(Refused::field("hash_variant", "must be HASH_VARIANT_V2"));
        }
        // Wallets derive the leaf's key from this text, so nobody else can choose it.
        let leaf = request.leaf_id.as_deref().ok_or_else(|| Refused::field("leaf_id", "is missing"))?;
        let leaf = input::leaf_id("leaf_id", leaf)?;
        if leaf.has_static_form() {
            return Err(Refused::field("leaf_id", "has the form of a static address's"));
        }
        let issued = self.parts.addresses.generate(leaf, &user_key, &identity, self.parts.network).await?;
        Ok(spark::GenerateDepositAddressResponse {
            deposit_address: Some(spark::Address {
                deposit_address_proof: Some(proof(&issued)?),
                address: issued.address,
                verifying_key: issued.verifying_key,
                is_static: false,
            }),
        })
    }

    pub(super) async fn unused_deposit_addresses(
        &self,
        reader: &Reader,
        request: spark::QueryUnusedDepositAddressesRequest,
    ) -> Result<spark::QueryUnusedDepositAddressesResponse, Refused> {
        input::network_if_named("network", request.network, self.parts.network)?;
        let page = Page::parse(request.limit, request.offset)?;
        let named = &request.identity_public_key;
        let Some(readable) = self.readable("identity_public_key", named, reader).await? else {
            return Ok(spark::QueryUnusedDepositAddressesResponse { offset: -1, ..Default::default() });
        };
        let identity = readable.owner;
        let rows =
            address::unused(self.parts.db.pool(), &identity.serialize(), true, page.fetch(), page.offset())
                .await?;
        let (rows, offset) = page.cut(rows);
        let deposit_addresses = rows
            .into_iter()
            .map(|row| {
                Ok(spark::DepositAddressQueryResult {
                    proof_of_possession: Some(proof(&row)?),
                    deposit_address: row.address,
                    user_signing_public_key: row.user_key,
                    verifying_public_key: row.verifying_key,
                    leaf_id: Some(row.leaf_id.as_hyphenated().to_string()),
                })
            })
            .collect::<Result<_, Refused>>()?;
        Ok(spark::QueryUnusedDepositAddressesResponse { deposit_addresses, offset })
    }
}

pub(super) fn proof(row: &address::AddressRow) -> Result<spark::DepositAddressProof, Refused> {
    Ok(spark::DepositAddressProof {
        address_signatures: row.signatures()?,
        proof_of_possession_signature: row.possession_signature.clone().unwrap_or_default(),
    })
}
