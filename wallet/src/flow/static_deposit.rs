//! Static deposits: one address for any number of payments. What comes to it can be taken back on chain with the
//! operators' help, at any fee and as often as needed, until a provider credits it.
//!
//! Nothing of it is stored here: addresses and outputs are asked for and verified each time, and a refund that got no
//! answer is simply asked for again, with a fresh nonce.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Amount, OutPoint, Transaction, Txid, hashes::Hash as _};
use prost::Message as _;
use rand::rngs::OsRng;
use spark_proto::spark::{
    Address, DepositAddressProof, Direction, GenerateStaticDepositAddressRequest, GetUtxosForIdentityRequest,
    HashVariant, InitiateStaticDepositUtxoRefundRequest, PageRequest, QueryStaticDepositAddressesRequest,
    RotateStaticDepositAddressRequest, SigningJob, SigningResult, Utxo,
};
use spark_rules::{
    frost::{Commitment, SignatureShare, SigningPackage},
    ids::OperatorIndex,
    package, point,
    tx::{Spend, StaticRefund, attach_signature, sighash, verify_input},
};
use spark_signer::frost::{NoncePair, sign_user};
use tonic::Code;

use super::paging::{PAGE, Paging};
use crate::{
    Wallet, WalletError,
    client::Operator,
    keys::SigningKey,
    signing::SigningError,
    verify::{self, DepositAddress, VerifyError},
};

/// The only index that deployed wallets use, so that one seed restores in each.
const INDEX: u32 = 0;
/// Outputs per page that are asked for: each comes with its whole transaction, which anybody may have made large.
const OUTPUTS: u32 = 20;

/// An output of a static address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticOutput {
    /// Whose.
    pub address: String,
    /// Where and what, as its transaction says.
    pub spend: Spend,
    /// The coordinator counts it as deep enough.
    pub confirmed: bool,
    /// Unspent in one's own bitcoind and its mempool; none where no bitcoind is configured.
    pub unspent: Option<bool>,
}

/// A refund, signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundedDeposit {
    /// Complete and verified.
    pub tx: Transaction,
    /// What the destination gets.
    pub value: Amount,
    /// What the miner gets.
    pub fee: Amount,
    /// It was given to the own bitcoind.
    pub broadcast: bool,
}

impl Wallet {
    /// The static deposit address, verified as one-time addresses are. The same until it is rotated.
    pub async fn static_address(&self) -> Result<DepositAddress, WalletError> {
        let request = GenerateStaticDepositAddressRequest {
            signing_public_key: self.static_key()?.public_key().serialize().to_vec(),
            identity_public_key: self.keys().identity().public_key().serialize().to_vec(),
            network: self.config().network.to_wire() as i32,
            hash_variant: HashVariant::V2 as i32,
        };
        let answer = self
            .operators()
            .coordinator()
            .spark(self.keys().identity(), request, |mut c, r| async move {
                c.generate_static_deposit_address(r).await
            })
            .await?;
        self.verified(answer.deposit_address)
    }

    /// Another static address in its place. The former one keeps working.
    pub async fn rotate_static_address(&self) -> Result<DepositAddress, WalletError> {
        let request = RotateStaticDepositAddressRequest {
            signing_public_key: self.static_key()?.public_key().serialize().to_vec(),
            network: self.config().network.to_wire() as i32,
            hash_variant: HashVariant::V2 as i32,
        };
        let answer = self
            .operators()
            .coordinator()
            .spark(self.keys().identity(), request, |mut c, r| async move {
                c.rotate_static_deposit_address(r).await
            })
            .await?;
        let (new, archived) =
            (self.verified(answer.new_deposit_address)?, self.verified(answer.archived_deposit_address)?);
        if new == archived {
            return Err(WalletError::Answer("a new address"));
        }
        Ok(new)
    }

    /// All static addresses of this wallet, each verified, the present one of the coordinator first. Each is shown by the
    /// operator that it was asked from; one of the others that does not answer is left out.
    pub async fn static_addresses(&self) -> Result<Vec<DepositAddress>, WalletError> {
        let coordinator = self.operators().coordinator().index();
        let mut answers = self.operators().each(|operator| self.static_addresses_of(operator)).await;
        answers.sort_by_key(|(index, _)| *index != coordinator);
        let mut all: Vec<DepositAddress> = Vec::new();
        for (index, answer) in answers {
            match answer {
                Ok(listed) => {
                    let known: BTreeSet<String> = all.iter().map(|a| a.address.clone()).collect();
                    all.extend(listed.into_iter().filter(|a| !known.contains(&a.address)));
                }
                Err(error) if index == coordinator => return Err(error),
                Err(error) => {
                    tracing::warn!(operator = index.get(), %error, "static addresses are not shown");
                }
            }
        }
        Ok(all)
    }

    async fn static_addresses_of(&self, operator: &Operator) -> Result<Vec<DepositAddress>, WalletError> {
        let identity_public_key = self.keys().identity().public_key().serialize().to_vec();
        let (mut all, mut seen, mut paging) = (Vec::new(), BTreeSet::new(), Paging::of(operator));
        loop {
            let request = QueryStaticDepositAddressesRequest {
                identity_public_key: identity_public_key.clone(),
                network: self.config().network.to_wire() as i32,
                limit: PAGE,
                offset: paging.offset(),
                deposit_address: None,
                hash_variant: HashVariant::V2 as i32,
            };
            let answer = operator
                .spark(self.keys().identity(), request, |mut c, r| async move {
                    c.query_static_deposit_addresses(r).await
                })
                .await?;
            let (bytes, rows, before) = (answer.encoded_len(), answer.deposit_addresses.len(), all.len());
            for item in answer.deposit_addresses {
                let proof = item.proof_of_possession.ok_or(WalletError::Answer("the address proof"))?;
                let address =
                    self.check_static_address(&item.deposit_address, &item.verifying_public_key, &proof)?;
                if seen.insert(address.address.clone()) {
                    all.push(address);
                }
            }
            // The answer names no next offset: a page that is not full is the last one.
            let full = rows == usize::try_from(PAGE).unwrap_or(usize::MAX);
            let next = if full { paging.offset().saturating_add(PAGE) } else { -1 };
            if !paging.more(all.len().saturating_sub(before), bytes, next)? {
                return Ok(all);
            }
        }
    }

    /// What came to the static addresses, spent outputs included, each checked against its transaction.
    pub async fn static_outputs(&self) -> Result<Vec<StaticOutput>, WalletError> {
        self.outputs_to(&self.static_addresses().await?, None).await
    }

    /// The same for addresses that are known, up to the page with the output that is `wanted`.
    async fn outputs_to(
        &self,
        addresses: &[DepositAddress],
        wanted: Option<&OutPoint>,
    ) -> Result<Vec<StaticOutput>, WalletError> {
        let own: BTreeMap<String, DepositAddress> =
            addresses.iter().map(|a| (a.address.clone(), a.clone())).collect();
        let operator = self.operators().coordinator();
        let identity_public_key = self.keys().identity().public_key().serialize().to_vec();
        let (mut all, mut seen, mut paging) = (Vec::new(), BTreeSet::new(), Paging::of(operator));
        let (mut cursor, mut pages, mut page_size) = (String::new(), 0i64, OUTPUTS);
        loop {
            let page = PageRequest {
                page_size,
                cursor: cursor.clone(),
                direction: Direction::Next as i32,
                unsafe_page_size: 0,
            };
            let request = GetUtxosForIdentityRequest {
                identity_public_key: identity_public_key.clone(),
                network: self.config().network.to_wire() as i32,
                exclude_claimed: false,
                page: Some(page),
                include_pending: true,
            };
            let answer = operator
                .spark(self.keys().identity(), request, |mut c, r| async move {
                    c.get_utxos_for_identity(r).await
                })
                .await;
            let answer = match answer {
                // More bytes than this wallet reads at once.
                Err(error) if error.code() == Some(Code::OutOfRange) && page_size > 1 => {
                    page_size /= 2;
                    continue;
                }
                answer => answer?,
            };
            let (bytes, before) = (answer.encoded_len(), seen.len());
            for listed in &answer.utxos {
                let utxo = listed.utxo.as_ref();
                if !seen.insert(utxo.map(|utxo| (utxo.txid.clone(), utxo.vout))) {
                    continue;
                }
                // One that proves nothing is no output of this wallet's; the others are not to be missed for it.
                let spend = match verify::static_output(listed, &own) {
                    Ok(spend) => spend,
                    Err(error) => {
                        tracing::warn!(operator = operator.index().get(), %error, "listed output left out");
                        continue;
                    }
                };
                let unspent = match self.chain_if_any() {
                    Some(chain) => Some(chain.unspent(&spend.outpoint).await?.is_some()),
                    None => None,
                };
                let (address, confirmed) = (listed.address.clone(), listed.is_confirmed);
                all.push(StaticOutput { address, spend, confirmed, unspent });
            }
            if wanted.is_some_and(|wanted| all.iter().any(|output| output.spend.outpoint == *wanted)) {
                return Ok(all);
            }
            let page = answer.page.unwrap_or_default();
            pages = pages.saturating_add(1);
            let next = if page.has_next_page && page.next_cursor != cursor { pages } else { -1 };
            cursor = page.next_cursor;
            if !paging.more(seen.len().saturating_sub(before), bytes, next)? {
                return Ok(all);
            }
        }
    }

    /// Takes one output back to a bitcoin address, at `fee_rate` sat/vB or bitcoind's estimate. It may be repeated with
    /// a higher rate: the later one replaces the earlier in the mempool. Without a bitcoind the transaction is only
    /// returned.
    pub async fn refund_static(
        &self,
        outpoint: &OutPoint,
        destination: &str,
        fee_rate: Option<u64>,
    ) -> Result<RefundedDeposit, WalletError> {
        let script = self.script_of(destination)?;
        let fee_rate = self.fee_rate(fee_rate).await?;
        let addresses = self.static_addresses().await?;
        let outputs = self.outputs_to(&addresses, Some(outpoint)).await?;
        let output = outputs.into_iter().find(|output| output.spend.outpoint == *outpoint);
        let output = output
            .ok_or_else(|| WalletError::Refused(format!("{outpoint} is no static deposit of yours")))?;
        // The signature covers value and script: one that lies about them gets a signature of no use.
        let spend = output.spend;
        let fee = fee_of(&script, fee_rate);
        let value = spend.txout.value.checked_sub(fee).unwrap_or(Amount::ZERO);
        let refund = StaticRefund::new(spend.clone(), script, value, self.config().network)
            .map_err(VerifyError::from)?;
        let address = addresses.into_iter().find(|a| a.address == output.address);
        let address = address.ok_or(WalletError::Answer("the address"))?;
        let tx = self.signed_refund(&refund, &address).await?;
        let broadcast = match self.chain_if_any() {
            Some(chain) => {
                chain.broadcast(&tx).await?;
                true
            }
            None => false,
        };
        Ok(RefundedDeposit { tx, value, fee, broadcast })
    }

    /// Asks the operators for their half and completes it.
    async fn signed_refund(
        &self,
        refund: &StaticRefund,
        address: &DepositAddress,
    ) -> Result<Transaction, WalletError> {
        let (key, spend) = (self.static_key()?, refund.spend());
        let mut tx = refund.build();
        let message = sighash(&tx, std::slice::from_ref(&spend.txout), 0).map_err(SigningError::from)?;
        let network = self.config().network;
        let digest = package::static_refund_digest(network, &spend.outpoint, refund.value(), &message);
        let nonce = NoncePair::generate(&mut OsRng, Some(key.secret()));
        let user = *nonce.commitment();
        let request = InitiateStaticDepositUtxoRefundRequest {
            on_chain_utxo: Some(Utxo {
                raw_tx: Vec::new(),
                vout: spend.outpoint.vout,
                network: network.to_wire() as i32,
                txid: displayed(&spend.outpoint.txid),
            }),
            refund_tx_signing_job: Some(SigningJob {
                signing_public_key: key.public_key().serialize().to_vec(),
                raw_tx: bitcoin::consensus::encode::serialize(&tx),
                signing_nonce_commitment: Some(spark_proto::common::SigningCommitment {
                    hiding: user.hiding.serialize().to_vec(),
                    binding: user.binding.serialize().to_vec(),
                }),
            }),
            user_signature: self.keys().identity().sign_ecdsa(digest)?.serialize_der().to_vec(),
            hash_variant: HashVariant::Unspecified as i32,
        };
        let answer = self
            .operators()
            .coordinator()
            .spark(self.keys().identity(), request, |mut c, r| async move {
                c.initiate_static_deposit_utxo_refund(r).await
            })
            .await?;
        let result = answer.refund_tx_signing_result.ok_or(WalletError::Answer("the shares"))?;
        let signature = self.complete(&result, message, nonce, &key, address)?;
        attach_signature(&mut tx, 0, signature).map_err(SigningError::from)?;
        verify_input(&tx, std::slice::from_ref(&spend.txout), 0)
            .map_err(|source| VerifyError::Signature { what: "refund of a static deposit", source })?;
        Ok(tx)
    }

    /// The whole signature from the operators' shares and the own one.
    fn complete(
        &self,
        result: &SigningResult,
        message: [u8; 32],
        nonce: NoncePair,
        key: &SigningKey,
        address: &DepositAddress,
    ) -> Result<[u8; 64], WalletError> {
        let federation = &self.config().federation;
        let mut operators = BTreeMap::new();
        for (id, pair) in &result.signing_nonce_commitments {
            let index = OperatorIndex::from_identifier(id).map_err(SigningError::from)?;
            let commitment = Commitment::parse(&pair.hiding, &pair.binding).map_err(SigningError::from)?;
            operators.insert(index, commitment);
        }
        let (t, n) = (federation.threshold(), federation.size());
        let user = Some(*nonce.commitment());
        let session = SigningPackage::new(address.verifying_key, message, operators, user, None, t, n)
            .and_then(|package| package.session())
            .map_err(SigningError::from)?;
        let mut shares = BTreeMap::new();
        for (id, share) in &result.signature_shares {
            let index = OperatorIndex::from_identifier(id).map_err(SigningError::from)?;
            let share = SignatureShare::parse(share).map_err(|_| WalletError::Answer("a signature share"))?;
            shares.insert(index, share);
        }
        let own = sign_user(&session, nonce, key.secret()).map_err(SigningError::from)?;
        // Public shares only tell who spoiled a signature; the signature itself is verified under the address' key.
        let public = |index: OperatorIndex| {
            let bytes = result.public_keys.get(&index.identifier_hex())?;
            point::parse("public share", bytes).ok()
        };
        session
            .aggregate(&shares, Some(&own), public, Some(&key.public_key()))
            .map_err(|error| WalletError::Undecided(format!("the operators' shares do not fit: {error}")))
    }

    fn static_key(&self) -> Result<SigningKey, WalletError> {
        Ok(self.keys().static_deposit(INDEX)?)
    }

    fn verified(&self, address: Option<Address>) -> Result<DepositAddress, WalletError> {
        let address = address.ok_or(WalletError::Answer("the address"))?;
        let proof = address.deposit_address_proof.ok_or(WalletError::Answer("the address proof"))?;
        self.check_static_address(&address.address, &address.verifying_key, &proof)
    }

    fn check_static_address(
        &self,
        address: &str,
        verifying_key: &[u8],
        proof: &DepositAddressProof,
    ) -> Result<DepositAddress, WalletError> {
        Ok(verify::deposit_address(
            address,
            verifying_key,
            proof,
            &self.static_key()?.public_key(),
            &self.keys().identity().public_key(),
            self.config().network,
            &self.config().federation,
        )?)
    }
}

/// Txid as people read it, which is how the public wire has it here.
pub(super) fn displayed(txid: &Txid) -> Vec<u8> {
    let mut bytes = txid.to_byte_array().to_vec();
    bytes.reverse();
    bytes
}

/// Of a refund with its signature, whose size does not depend on the value.
fn fee_of(script: &bitcoin::ScriptBuf, fee_rate: u64) -> Amount {
    /// Key path, one input, an output without its script: 10.5 of the frame, 57.5 of the input, 9 of the output.
    const WITHOUT_SCRIPT: u64 = 77;
    Amount::from_sat(WITHOUT_SCRIPT.saturating_add(script.len() as u64).saturating_mul(fee_rate))
}

#[cfg(test)]
mod tests {
    use bitcoin::TxOut;
    use spark_rules::{address::Network, tx::p2tr_script};

    use super::*;
    use crate::testing::keys;

    #[test]
    fn fees_follow_the_size_of_the_signed_transaction() {
        let key = keys().identity().public_key();
        let spend = Spend {
            outpoint: OutPoint::null(),
            txout: TxOut { value: Amount::from_sat(50_000), script_pubkey: p2tr_script(&key) },
        };
        for script in [
            p2tr_script(&key),
            bitcoin::ScriptBuf::new_p2wpkh(&bitcoin::CompressedPublicKey(key).wpubkey_hash()),
        ] {
            let fee = fee_of(&script, 3);
            let value = Amount::from_sat(50_000) - fee;
            let mut tx = StaticRefund::new(spend.clone(), script, value, Network::Regtest).unwrap().build();
            attach_signature(&mut tx, 0, [7; 64]).unwrap();
            assert_eq!(fee.to_sat(), 3 * tx.vsize() as u64);
        }
    }
}
