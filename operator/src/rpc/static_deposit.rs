//! Static deposits: addresses that stay, what they got, and how their owner takes it back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bitcoin::consensus::encode;
use prost::Message as _;
use secp256k1::PublicKey;
use sha2::{Digest as _, Sha256};
use spark_proto::{common, signer::v1 as wire, spark};
use spark_rules::{
    frost::{Commitment, SignatureShare, SigningPackage},
    ids::{KeyshareId, LeafId, OperatorIndex},
    point,
    tx::{Spend, StaticRefund, sighash, without_witnesses},
};

use super::{
    Api,
    commitments::{self, Wanted},
    deposit::proof,
    input,
    page::Page,
};
use crate::{
    authn::{Reader, Session},
    db::{
        DbError,
        address::{self, AddressRow},
        chain, keyshare, query_utxo, static_deposit,
    },
    op::records,
    status::{Reason, Refused},
};

/// Most bytes of a refund; one with the longest script that has an address has fewer than 150.
const MAX_REFUND: usize = 1024;
/// Most bytes of transactions in one page, unless its first one alone has more: anybody may have made them large.
const MAX_PAGE_BYTES: i64 = 4 << 20;
/// Longest wait for operators whose shares are not needed.
const TELL: Duration = Duration::from_secs(2);

impl Api {
    pub(super) async fn static_deposit_address(
        &self,
        session: &Session,
        request: spark::GenerateStaticDepositAddressRequest,
    ) -> Result<spark::GenerateStaticDepositAddressResponse, Refused> {
        input::network("network", request.network, self.parts.network)?;
        let identity = input::own_identity("identity_public_key", &request.identity_public_key, session)?;
        let user_key = input::key("signing_public_key", &request.signing_public_key)?;
        hash_variant(request.hash_variant, false)?;
        let row = self.parts.addresses.generate_static(&user_key, &identity, self.parts.network).await?;
        Ok(spark::GenerateStaticDepositAddressResponse { deposit_address: Some(shown(row)?) })
    }

    pub(super) async fn rotated_static_deposit_address(
        &self,
        session: &Session,
        request: spark::RotateStaticDepositAddressRequest,
    ) -> Result<spark::RotateStaticDepositAddressResponse, Refused> {
        input::network("network", request.network, self.parts.network)?;
        let user_key = input::key("signing_public_key", &request.signing_public_key)?;
        hash_variant(request.hash_variant, false)?;
        let (new, archived) =
            self.parts.addresses.rotate_static(&user_key, &session.identity, self.parts.network).await?;
        Ok(spark::RotateStaticDepositAddressResponse {
            new_deposit_address: Some(shown(new)?),
            archived_deposit_address: Some(shown(archived)?),
        })
    }

    pub(super) async fn static_deposit_addresses(
        &self,
        reader: &Reader,
        request: spark::QueryStaticDepositAddressesRequest,
    ) -> Result<spark::QueryStaticDepositAddressesResponse, Refused> {
        input::network_if_named("network", request.network, self.parts.network)?;
        let named = &request.identity_public_key;
        let Some(readable) = self.readable("identity_public_key", named, reader).await? else {
            return Ok(spark::QueryStaticDepositAddressesResponse::default());
        };
        let identity = readable.owner;
        hash_variant(request.hash_variant, true)?;
        let page = Page::parse(request.limit, request.offset)?;
        let rows = static_deposit::addresses(
            self.parts.db.pool(),
            &identity.serialize(),
            request.deposit_address.as_deref(),
            page.fetch(),
            page.offset(),
        )
        .await?;
        let (rows, _) = page.cut(rows);
        let deposit_addresses = rows.into_iter().map(listed).collect::<Result<_, Refused>>()?;
        Ok(spark::QueryStaticDepositAddressesResponse { deposit_addresses })
    }

    pub(super) async fn utxos_of_address(
        &self,
        reader: &Reader,
        request: spark::GetUtxosForAddressRequest,
    ) -> Result<spark::GetUtxosForAddressResponse, Refused> {
        input::network_if_named("network", request.network, self.parts.network)?;
        let (limit, offset) = (i64::try_from(request.limit), i64::try_from(request.offset));
        let page = Page::parse(limit.unwrap_or(i64::MAX), offset.unwrap_or(i64::MAX))?;
        let row = address::by_address(self.parts.db.pool(), &request.address).await?;
        let row = row.ok_or_else(unknown)?;
        // To whom it is closed, an address is unknown.
        match self.readable("address", &row.identity, reader).await {
            Ok(Some(_)) => {}
            Err(refused) if refused.reason != Reason::NotOwner => return Err(refused),
            Ok(None) | Err(_) => return Err(unknown()),
        }
        let (rows, _) = query_utxo::of_address(
            self.parts.db.pool(),
            &row.script,
            self.parts.db.deposit_depth(),
            request.exclude_claimed,
            query_utxo::Bounds { rows: page.limit(), bytes: MAX_PAGE_BYTES },
            page.offset(),
        )
        .await?;
        // Where the next page begins; behind the last output there is an empty one.
        let next = request.offset.saturating_add(rows.len() as u64);
        let utxos = rows.into_iter().map(|row| self.utxo(row)).collect::<Result<_, _>>()?;
        Ok(spark::GetUtxosForAddressResponse { utxos, offset: next })
    }

    pub(super) async fn utxos_of_identity(
        &self,
        reader: &Reader,
        request: spark::GetUtxosForIdentityRequest,
    ) -> Result<spark::GetUtxosForIdentityResponse, Refused> {
        input::network("network", request.network, self.parts.network)?;
        let named = &request.identity_public_key;
        let Some(readable) = self.readable("identity_public_key", named, reader).await? else {
            return Ok(spark::GetUtxosForIdentityResponse::default());
        };
        let identity = readable.owner;
        let page = request.page.unwrap_or_default();
        if page.direction != spark::Direction::Next as i32 {
            return Err(Refused::field("page.direction", "must be NEXT"));
        }
        let after = if page.cursor.is_empty() { None } else { Some(cursor(&page.cursor)?) };
        let size = page.page_size.max(u32::try_from(page.unsafe_page_size).unwrap_or(0));
        let bounds = Page::parse(i64::from(size), 0)?;
        let (rows, more) = query_utxo::of_identity(
            self.parts.db.pool(),
            &identity.serialize(),
            self.parts.db.deposit_depth(),
            request.exclude_claimed,
            request.include_pending,
            after.as_ref(),
            query_utxo::Bounds { rows: bounds.limit(), bytes: MAX_PAGE_BYTES },
        )
        .await?;
        let next_cursor = rows.last().map_or_else(String::new, to_cursor);
        let utxos = rows
            .into_iter()
            .map(|row| {
                Ok(spark::AddressedUtxo {
                    address: row.address.clone(),
                    is_confirmed: row.confirmed,
                    utxo: Some(self.utxo(row)?),
                })
            })
            .collect::<Result<_, Refused>>()?;
        Ok(spark::GetUtxosForIdentityResponse {
            utxos,
            page: Some(spark::PageResponse {
                has_next_page: more,
                has_previous_page: after.is_some(),
                next_cursor: if more { next_cursor } else { String::new() },
                previous_cursor: String::new(),
            }),
        })
    }

    fn utxo(&self, row: query_utxo::UtxoRow) -> Result<spark::Utxo, Refused> {
        let mut txid = row.txid;
        // On the wire as people read it.
        txid.reverse();
        Ok(spark::Utxo {
            raw_tx: row.raw_tx,
            vout: u32::try_from(row.vout)
                .map_err(|_| Refused::from(DbError::Corrupt("deposit_output.vout")))?,
            network: self.parts.network.to_wire().into(),
            txid,
        })
    }

    pub(super) async fn refund_static_deposit(
        &self,
        session: &Session,
        request: spark::InitiateStaticDepositUtxoRefundRequest,
    ) -> Result<spark::InitiateStaticDepositUtxoRefundResponse, Refused> {
        let pool = self.parts.db.pool();
        let digest: [u8; 32] = Sha256::new()
            .chain_update(session.identity.serialize())
            .chain_update(request.encode_to_vec())
            .finalize()
            .into();
        let wanted = self.wanted(session, &request).await?;
        // The same request gets the same shares: a wallet must not complete two under one nonce of its own.
        if let Some(body) = static_deposit::answer(pool, &digest).await? {
            return stored(&body);
        }
        self.parts.refunds.check(&wanted.address, &wanted.refund).await?;
        let result = self.signed(session, &wanted).await?;
        let answer = spark::InitiateStaticDepositUtxoRefundResponse {
            refund_tx_signing_result: Some(result),
            deposit_address: Some(listed(wanted.address.clone())?),
        };
        let (txid, vout) = (&wanted.txid, i64::from(wanted.refund.vout));
        let body =
            static_deposit::keep_answer(&self.parts.db, &digest, txid, vout, &answer.encode_to_vec()).await?;
        stored(&body)
    }

    /// The refund that a request means, of an output that this operator has seen.
    async fn wanted(
        &self,
        session: &Session,
        request: &spark::InitiateStaticDepositUtxoRefundRequest,
    ) -> Result<Refund, Refused> {
        let utxo = request.on_chain_utxo.as_ref();
        let utxo = utxo.ok_or_else(|| Refused::field("on_chain_utxo", "is missing"))?;
        input::network("on_chain_utxo.network", utxo.network, self.parts.network)?;
        if request.hash_variant != spark::HashVariant::Unspecified as i32 {
            return Err(Refused::field("hash_variant", "must be unset: the statement has one form"));
        }
        let mut txid = utxo.txid.clone();
        txid.reverse();
        if txid.len() != 32 {
            return Err(Refused::field("on_chain_utxo.txid", "must have 32 bytes"));
        }
        let job = request.refund_tx_signing_job.as_ref();
        let job = job.ok_or_else(|| Refused::field("refund_tx_signing_job", "is missing"))?;
        if job.raw_tx.len() > MAX_REFUND {
            return Err(Refused::field(
                "refund_tx_signing_job.raw_tx",
                format!("at most {MAX_REFUND} bytes"),
            ));
        }
        let key = input::key("refund_tx_signing_job.signing_public_key", &job.signing_public_key)?;
        let field = "refund_tx_signing_job.signing_nonce_commitment";
        let pair = job.signing_nonce_commitment.clone().ok_or_else(|| Refused::field(field, "is missing"))?;
        let user = Commitment::parse(&pair.hiding, &pair.binding)
            .map_err(|error| Refused::field(field, error.to_string()))?;
        let pool = self.parts.db.pool();
        let seen =
            || Refused::new(Reason::DepositUnknown, "no static deposit address of yours has this output");
        let output = chain::deposit(pool, &txid, utxo.vout.into()).await?.ok_or_else(seen)?;
        let address = address::by_script(pool, &output.script).await?;
        let address = address
            .filter(|row| row.is_static && row.identity == session.identity.serialize())
            .ok_or_else(seen)?;
        if address.user_key != key.serialize() {
            return Err(Refused::rule("SIGNING_KEY", "the signing key is not that of the address"));
        }
        let refund = wire::StaticRefund {
            keyshare_id: address.keyshare_id.as_bytes().to_vec(),
            vout: utxo.vout,
            // Stored without witnesses by now, but not always was.
            funding_tx: encode::deserialize(&output.raw_tx)
                .map_or(output.raw_tx, |tx| without_witnesses(&tx)),
            refund_tx: job.raw_tx.clone(),
            user_commitment: Some(pair),
            user_signature: request.user_signature.clone(),
        };
        Ok(Refund { address, txid, refund, user })
    }

    /// Commitments of t operators, made after the user's, and their shares, each verified. Operators that fail are
    /// replaced; those that are not needed hold the output, too.
    async fn signed(&self, session: &Session, wanted: &Refund) -> Result<spark::SigningResult, Refused> {
        let parts = &self.parts;
        let (message, verifying_key) = wanted.message(parts.network)?;
        let row = keyshare::get(parts.db.pool(), wanted.address.keyshare_id).await?;
        let row = row.ok_or_else(|| Refused::from(DbError::Missing("keyshare")))?;
        let public = records::public_shares(&row)?;
        let leaf = LeafId::of_static_address(&KeyshareId::from(wanted.address.keyshare_id));
        let nonces = Wanted::Bound { kinds: 1, leaves: vec![leaf] };
        let mut failed = BTreeSet::new();
        // Each round but the last finds one more that fails.
        for _ in parts.federation.indices() {
            let spare = commitments::candidates(&parts.federation, parts.own, &failed);
            let sets =
                commitments::collect_from(&parts.federation, spare, &parts.nonces, &nonces, session).await?;
            let set = sets.into_iter().next().unwrap_or_default().signing_nonce_commitments;
            let operators = set
                .iter()
                .map(|(id, pair)| {
                    Ok((
                        OperatorIndex::from_identifier(id).map_err(|error| Refused::internal(&error))?,
                        Commitment::parse(&pair.hiding, &pair.binding)
                            .map_err(|error| Refused::internal(&error))?,
                    ))
                })
                .collect::<Result<BTreeMap<_, _>, Refused>>()?;
            let (t, n) = (parts.federation.threshold(), parts.federation.size());
            let session =
                SigningPackage::new(verifying_key, message, operators, Some(wanted.user), None, t, n)
                    .and_then(|package| package.session())
                    .map_err(|error| Refused::rule("SIGNING_PACKAGE", error.to_string()))?;
            let request = wire::RefundStaticDepositRequest {
                refund: Some(wanted.refund.clone()),
                commitments: Some(spark::SigningCommitments { signing_commitments: set.clone() }),
            };
            let asked: Vec<OperatorIndex> = session.operators().collect();
            let answers = futures::future::join_all(asked.iter().map(|index| {
                let request = request.clone();
                async move { (*index, parts.refunds.share(*index, request).await) }
            }))
            .await;
            let mut shares = BTreeMap::new();
            for (index, answer) in answers {
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(refused) if index == parts.own => return Err(refused),
                    Err(refused) => {
                        tracing::warn!(operator = index.get(), %refused, "operator refunds no static deposit");
                        failed.insert(index);
                        continue;
                    }
                };
                let sound = SignatureShare::parse(&answer.share).ok().zip(public.get(index.as_usize()));
                if sound.is_some_and(|(s, key)| session.verify_operator_share(index, key, &s).is_ok()) {
                    shares.insert(index, answer.share);
                } else if index == parts.own {
                    // Nobody takes its place: the next one would be as wrong.
                    return Err(Refused::internal(&DbError::Corrupt("share of the own signer")));
                } else {
                    tracing::error!(operator = index.get(), "share of a static refund is invalid");
                    failed.insert(index);
                }
            }
            if shares.len() == asked.len() {
                self.tell_the_others(&asked, &request).await;
                return Ok(result(&parts.federation, &public, &row.group_key, set, shares));
            }
        }
        Err(Refused::new(Reason::QuorumShort, "too few operators give valid shares"))
    }

    /// Whoever is not named holds the output, too. One that is slow hears it after the answer, one that is down never:
    /// t operators that hold it are enough.
    async fn tell_the_others(&self, asked: &[OperatorIndex], request: &wire::RefundStaticDepositRequest) {
        let others = self.parts.federation.indices().filter(|index| !asked.contains(index));
        let told: Vec<_> = others
            .map(|index| {
                let (refunds, request) = (self.parts.refunds.clone(), request.clone());
                tokio::spawn(async move {
                    if let Err(refused) = refunds.share(index, request).await {
                        tracing::info!(operator = index.get(), %refused, "operator not told of a static refund");
                    }
                })
            })
            .collect();
        let _ = tokio::time::timeout(TELL, futures::future::join_all(told)).await;
    }
}

/// A refund that its owner asks for.
struct Refund {
    address: AddressRow,
    txid: Vec<u8>,
    refund: wire::StaticRefund,
    user: Commitment,
}

impl Refund {
    /// What is to be signed, under which key.
    fn message(&self, network: spark_rules::address::Network) -> Result<([u8; 32], PublicKey), Refused> {
        let spend = Spend::of_funding(&self.refund.funding_tx, self.refund.vout);
        let spend = spend.ok_or_else(|| Refused::from(DbError::Corrupt("deposit_output.raw_tx")))?;
        let refund = StaticRefund::check(&self.refund.refund_tx, spend, network)
            .map_err(|error| Refused::rule("TEMPLATE", error.to_string()).with("tag", error.rule.tag()))?;
        let message = sighash(&refund.build(), std::slice::from_ref(&refund.spend().txout), 0)
            .map_err(|error| Refused::internal(&error))?;
        let key = point::parse("deposit_address.verifying_key", &self.address.verifying_key)
            .map_err(|error| Refused::internal(&error))?;
        Ok((message, key))
    }
}

fn result(
    federation: &spark_rules::federation::Federation,
    public: &[PublicKey],
    group_key: &[u8],
    commitments: BTreeMap<String, common::SigningCommitment>,
    shares: BTreeMap<OperatorIndex, Vec<u8>>,
) -> spark::SigningResult {
    let named =
        |(index, key): (OperatorIndex, &PublicKey)| (index.identifier_hex(), key.serialize().to_vec());
    let all: BTreeMap<String, Vec<u8>> = federation.indices().zip(public).map(named).collect();
    let signing = |(id, _): &(&String, &Vec<u8>)| commitments.contains_key(*id);
    spark::SigningResult {
        public_keys: all.iter().filter(signing).map(|(id, key)| (id.clone(), key.clone())).collect(),
        signature_shares: shares.into_iter().map(|(i, share)| (i.identifier_hex(), share)).collect(),
        signing_keyshare: Some(spark::SigningKeyshare {
            owner_identifiers: all.keys().cloned().collect(),
            threshold: federation.threshold().into(),
            public_key: group_key.to_vec(),
            public_shares: all,
            updated_time: None,
        }),
        signing_nonce_commitments: commitments,
    }
}

fn unknown() -> Refused {
    Refused::new(Reason::AddressUnknown, "no deposit address of yours")
}

fn stored(body: &[u8]) -> Result<spark::InitiateStaticDepositUtxoRefundResponse, Refused> {
    spark::InitiateStaticDepositUtxoRefundResponse::decode(body)
        .map_err(|_| Refused::from(DbError::Corrupt("static_refund.answer")))
}

/// Proofs have one form. Public wallets do not ask for one in queries.
fn hash_variant(variant: i32, may_be_unset: bool) -> Result<(), Refused> {
    let unset = variant == spark::HashVariant::Unspecified as i32;
    if variant == spark::HashVariant::V2 as i32 || (may_be_unset && unset) {
        Ok(())
    } else {
        Err(Refused::field("hash_variant", "must be HASH_VARIANT_V2"))
    }
}

fn shown(row: AddressRow) -> Result<spark::Address, Refused> {
    Ok(spark::Address {
        deposit_address_proof: Some(proof(&row)?),
        address: row.address,
        verifying_key: row.verifying_key,
        is_static: true,
    })
}

fn listed(row: AddressRow) -> Result<spark::DepositAddressQueryResult, Refused> {
    Ok(spark::DepositAddressQueryResult {
        proof_of_possession: Some(proof(&row)?),
        deposit_address: row.address,
        user_signing_public_key: row.user_key,
        verifying_public_key: row.verifying_key,
        leaf_id: None,
    })
}

/// A page's end as text: time of the first sight (8 bytes), txid (32), output (8).
fn to_cursor(row: &query_utxo::UtxoRow) -> String {
    hex::encode([&row.seen_micros.to_be_bytes(), row.txid.as_slice(), &row.vout.to_be_bytes()].concat())
}

fn cursor(text: &str) -> Result<query_utxo::After, Refused> {
    let wrong = || Refused::field("page.cursor", "is not one of this operator");
    let mut bytes = [0u8; 48];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| wrong())?;
    let (seen, rest) = bytes.split_first_chunk::<8>().ok_or_else(wrong)?;
    let (txid, vout) = rest.split_first_chunk::<32>().ok_or_else(wrong)?;
    let vout = vout.try_into().map_err(|_| wrong())?;
    Ok(query_utxo::After {
        seen_micros: i64::from_be_bytes(*seen),
        txid: txid.to_vec(),
        vout: i64::from_be_bytes(vout),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back_and_others_are_refused() {
        let row = query_utxo::UtxoRow {
            txid: vec![7; 32],
            vout: 4_294_967_295,
            address: String::new(),
            raw_tx: Vec::new(),
            confirmed: true,
            seen_micros: 1_700_000_000_123_456,
            candidates: 1,
        };
        let after = cursor(&to_cursor(&row)).unwrap();
        assert_eq!((after.seen_micros, after.txid, after.vout), (row.seen_micros, row.txid, row.vout));
        for text in ["x", "00", &"0".repeat(94), &"0".repeat(98), &"g".repeat(96)] {
            assert_eq!(cursor(text).unwrap_err().reason, Reason::FieldInvalid, "{text}");
        }
    }
}
