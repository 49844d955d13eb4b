//! A client with a real wallet's keys and real sessions that says whatever a test wants.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context as _;
use bitcoin::{Transaction, TxOut, consensus::encode, secp256k1::PublicKey};
use prost::Message as _;
use rand::rngs::OsRng;
use spark_devnet::wallet::WalletCommand;
use spark_proto::{
    common,
    spark::{self, query_nodes_request::Source as Nodes, spark_service_client::SparkServiceClient},
};
use spark_rules::{
    frost::SigningPackage,
    ids::LeafId,
    operation::parse_commitments,
    package,
    tx::{Basis, Plan, Planned, Purpose, Source, Spend, Timelock, sighash},
};
use spark_signer::{
    ecies,
    feldman::{self, Split},
    frost::{NoncePair, sign_user},
    secret::SecretScalar,
};
use spark_wallet::{Wallet, client::ClientError, verify::Node};
use tonic::{Request, Response, Status, transport::Channel};
use uuid::Uuid;

/// The wallet's folder is taken as long as this lives.
pub(crate) struct Rogue {
    pub(crate) wallet: Wallet,
}

/// A request and every secret that went into it.
pub(crate) struct Package<R> {
    pub(crate) request: R,
    pub(crate) secrets: Vec<[u8; 32]>,
    /// The leaf's next key, known to sender and receiver of a send, to the receiver of a claim.
    pub(crate) next: SecretScalar,
}

/// A change to the transactions before they are signed.
pub(crate) type Tamper<'a> = &'a (dyn Fn(Purpose, &mut Transaction) + Sync);

/// No change.
pub(crate) fn honest(_: Purpose, _: &mut Transaction) {}

impl Rogue {
    pub(crate) fn of(wallet: &WalletCommand) -> anyhow::Result<Self> {
        Ok(Self { wallet: Wallet::open(wallet.dir())? })
    }

    pub(crate) fn id(&self) -> PublicKey {
        self.wallet.keys().identity().public_key()
    }

    pub(crate) fn id_bytes(&self) -> Vec<u8> {
        self.id().serialize().to_vec()
    }

    fn sign(&self, digest: [u8; 32]) -> anyhow::Result<Vec<u8>> {
        Ok(self.wallet.keys().identity().sign_ecdsa(digest)?.serialize_der().to_vec())
    }

    /// A call to the coordinator with a session.
    pub(crate) async fn call<Q, A, F, R>(&self, request: Q, call: F) -> Result<A, Status>
    where
        Q: Clone,
        F: Fn(SparkServiceClient<Channel>, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let at = usize::from(self.wallet.operators().coordinator().index().get());
        self.call_at(at, request, call).await
    }

    /// A call to one operator with a session.
    pub(crate) async fn call_at<Q, A, F, R>(&self, operator: usize, request: Q, call: F) -> Result<A, Status>
    where
        Q: Clone,
        F: Fn(SparkServiceClient<Channel>, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let found = self.wallet.operators().all().iter().find(|o| usize::from(o.index().get()) == operator);
        let found = found.ok_or_else(|| Status::not_found("no such operator"))?;
        match found.spark(self.wallet.keys().identity(), request, call).await {
            Ok(answer) => Ok(answer),
            Err(ClientError::Status { status, .. }) => Err(*status),
            Err(error) => Err(Status::unknown(error.to_string())),
        }
    }

    /// What an operator shows of a leaf; none if nothing.
    pub(crate) async fn node_at(
        &self,
        operator: usize,
        leaf: &str,
    ) -> anyhow::Result<Option<spark::TreeNode>> {
        let node_ids = vec![leaf.to_owned()];
        let request = spark::QueryNodesRequest {
            source: Some(Nodes::NodeIds(spark::TreeNodeIds { node_ids })),
            ..spark::QueryNodesRequest::default()
        };
        let answer =
            self.call_at(operator, request, |mut c, r| async move { c.query_nodes(r).await }).await?;
        Ok(answer.nodes.get(leaf).cloned())
    }

    /// A leaf as the coordinator shows it.
    pub(crate) async fn node(&self, leaf: &str) -> anyhow::Result<Node> {
        let at = usize::from(self.wallet.operators().coordinator().index().get());
        Ok(Node::parse(&self.node_at(at, leaf).await?.context("leaf is not shown")?)?)
    }

    /// The leaf's status at every operator; empty where it is not shown.
    pub(crate) async fn statuses(&self, leaf: &str) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for operator in 0..self.wallet.operators().all().len() {
            all.push(self.node_at(operator, leaf).await?.map(|n| n.status).unwrap_or_default());
        }
        Ok(all)
    }

    /// Nonce commitments: `count` for a leaf, or unbound ones.
    pub(crate) async fn commitments(
        &self,
        leaf: Option<&str>,
        count: u32,
    ) -> Result<Vec<spark::SigningCommitments>, Status> {
        let node_ids: Vec<String> = leaf.into_iter().map(ToOwned::to_owned).collect();
        let node_id_count = u32::from(node_ids.is_empty());
        let request = spark::GetSigningCommitmentsRequest { node_ids, count, node_id_count };
        let answer = self.call(request, |mut c, r| async move { c.get_signing_commitments(r).await }).await?;
        Ok(answer
            .signing_commitments
            .into_iter()
            .map(|set| spark::SigningCommitments { signing_commitments: set.signing_nonce_commitments })
            .collect())
    }

    /// The user's half over whatever the transaction has become.
    pub(crate) fn job(
        &self,
        leaf: &str,
        (planned, tamper): (&Planned, Tamper<'_>),
        verifying_key: PublicKey,
        key: &SecretScalar,
        sets: &mut std::vec::IntoIter<spark::SigningCommitments>,
    ) -> anyhow::Result<spark::UserSignedTxSigningJob> {
        let mut tx = planned.tx.clone();
        tamper(planned.purpose(), &mut tx);
        let prevouts: Vec<TxOut> = planned.template.prevouts();
        let mut inputs = Vec::new();
        for input in 0..prevouts.len() {
            let operators = sets.next().context("too few commitments")?;
            let nonce = NoncePair::generate(&mut OsRng, Some(key));
            let user = *nonce.commitment();
            let federation = &self.wallet.config().federation;
            let signing = SigningPackage::new(
                verifying_key,
                sighash(&tx, &prevouts, input)?,
                parse_commitments(Some(&operators))?,
                Some(user),
                None,
                federation.threshold(),
                federation.size(),
            )?;
            let share = sign_user(&signing.session()?, nonce, key)?;
            inputs.push(spark::InputSigningData {
                signing_nonce_commitment: Some(common::SigningCommitment {
                    hiding: user.hiding.serialize().to_vec(),
                    binding: user.binding.serialize().to_vec(),
                }),
                user_signature: share.to_bytes().to_vec(),
                signing_commitments: Some(operators),
            });
        }
        let mut inputs = inputs.into_iter();
        let first = inputs.next().context("no input")?;
        Ok(spark::UserSignedTxSigningJob {
            leaf_id: leaf.to_owned(),
            signing_public_key: key.public_key().serialize().to_vec(),
            raw_tx: encode::serialize(&tx),
            signing_nonce_commitment: first.signing_nonce_commitment,
            user_signature: first.user_signature,
            signing_commitments: first.signing_commitments,
            additional_inputs: inputs.collect(),
        })
    }

    /// A claim of deposit outputs.
    pub(crate) async fn deposit(
        &self,
        leaf: &str,
        outputs: &[(Spend, Transaction)],
        tamper: Tamper<'_>,
    ) -> anyhow::Result<spark::FinalizeDepositTreeCreationRequest> {
        let id = LeafId::parse(leaf)?;
        let key = self.wallet.keys().leaf(&id)?;
        let record = self.wallet.deposits()?.into_iter().find(|d| d.leaf_id == leaf).context("no address")?;
        let verifying_key = PublicKey::from_slice(&hex::decode(&record.verifying_key)?)?;
        let spends = outputs.iter().map(|(spend, _)| spend.clone()).collect();
        let plan = Plan::deposit(Source::Build, spends, &key.public_key())?;
        let mut sets = self.commitments(None, outputs.len() as u32 + 2).await?.into_iter();
        let mut sign = |purpose| -> anyhow::Result<_> {
            let planned = plan.get(purpose).context("planned")?;
            Ok(Some(self.job("", (planned, tamper), verifying_key, key.secret(), &mut sets)?))
        };
        let utxo = |(spend, tx): &(Spend, Transaction)| spark::Utxo {
            raw_tx: encode::serialize(tx),
            vout: spend.outpoint.vout,
            network: spark::Network::Regtest as i32,
            txid: Vec::new(),
        };
        Ok(spark::FinalizeDepositTreeCreationRequest {
            identity_public_key: self.id_bytes(),
            on_chain_utxo: outputs.first().map(utxo),
            root_tx_signing_job: sign(Purpose::Root)?,
            refund_tx_signing_job: sign(Purpose::Refund)?,
            direct_from_cpfp_refund_tx_signing_job: sign(Purpose::DirectFromCpfpRefund)?,
            additional_on_chain_utxos: outputs.iter().skip(1).map(utxo).collect(),
        })
    }

    pub(crate) async fn finalize(
        &self,
        request: spark::FinalizeDepositTreeCreationRequest,
    ) -> Result<spark::TreeNode, Status> {
        let answer =
            self.call(request, |mut c, r| async move { c.finalize_deposit_tree_creation(r).await }).await?;
        answer.root_node.ok_or_else(|| Status::data_loss("no root"))
    }

    /// A send of one leaf at `step`, with commitments that the caller got.
    pub(crate) fn send(
        &self,
        node: &Node,
        receiver: &PublicKey,
        step: Timelock,
        sets: Vec<spark::SigningCommitments>,
        tamper: Tamper<'_>,
    ) -> anyhow::Result<Package<spark::StartTransferRequest>> {
        let (leaf, id) = (node.id.to_string(), Uuid::now_v7().as_hyphenated().to_string());
        let old = self.wallet.keys().leaf(&node.id)?;
        let next = SecretScalar::random(&mut OsRng);
        let plan = Plan::refunds(Source::Build, &basis(node)?, receiver, step)?;
        let mut package =
            spark::TransferPackage { hash_variant: spark::HashVariant::V2 as i32, ..Default::default() };
        let mut sets = sets.into_iter();
        for planned in plan.transactions() {
            let job = self.job(&leaf, (planned, tamper), node.verifying_key, old.secret(), &mut sets)?;
            match planned.purpose() {
                Purpose::Refund => package.leaves_to_send.push(job),
                Purpose::DirectRefund => package.direct_leaves_to_send.push(job),
                _ => package.direct_from_cpfp_leaves_to_send.push(job),
            }
        }
        let cipher = ecies::seal(receiver, next.to_bytes().as_slice(), &mut OsRng)?;
        let signature = self.sign(package::secret_cipher_digest(&leaf, &id, &cipher))?;
        let split = self.split(&old.secret().sub(&next)?)?;
        package.key_tweak_package = self.seal(&split, |share, public| {
            let leaves_to_send = vec![spark::SendLeafKeyTweak {
                leaf_id: leaf.clone(),
                secret_share_tweak: Some(share),
                pubkey_shares_tweak: public,
                secret_cipher: cipher.clone(),
                signature: signature.clone(),
                ..spark::SendLeafKeyTweak::default()
            }];
            spark::SendLeafKeyTweaks { leaves_to_send }.encode_to_vec()
        })?;
        let payload =
            package::transfer_payload(&package::parse_transfer_id(&id)?, &package.key_tweak_package);
        package.user_signature = self.sign(payload)?;
        let request = spark::StartTransferRequest {
            transfer_id: id,
            owner_identity_public_key: self.id_bytes(),
            receiver_identity_public_key: receiver.serialize().to_vec(),
            transfer_package: Some(package),
            ..spark::StartTransferRequest::default()
        };
        Ok(Package { request, secrets: secrets(&split), next })
    }

    /// An honest send one step down.
    pub(crate) async fn next_send(
        &self,
        leaf: &str,
        receiver: &PublicKey,
    ) -> anyhow::Result<Package<spark::StartTransferRequest>> {
        let node = self.node(leaf).await?;
        let step = node.refund_timelock()?.step_down()?;
        let sets = self.commitments(Some(leaf), 3).await?;
        self.send(&node, receiver, step, sets, &honest)
    }

    pub(crate) async fn start(
        &self,
        request: spark::StartTransferRequest,
    ) -> Result<spark::StartTransferResponse, Status> {
        self.call(request, |mut c, r| async move { c.start_transfer_v2(r).await }).await
    }

    /// A claim of one leaf whose present key `received` this wallet was sent.
    pub(crate) async fn claim(
        &self,
        transfer: &str,
        leaf: &str,
        received: &SecretScalar,
    ) -> anyhow::Result<Package<spark::ClaimTransferRequest>> {
        let node = self.node(leaf).await?;
        let own = self.wallet.keys().leaf(&node.id)?;
        let step = node.refund_timelock()?.round_down();
        let plan = Plan::refunds(Source::Build, &basis(&node)?, &own.public_key(), step)?;
        let mut package =
            spark::ClaimPackage { hash_variant: spark::HashVariant::V2 as i32, ..Default::default() };
        let mut sets = self.commitments(None, 3).await?.into_iter();
        for planned in plan.transactions() {
            let job = self.job(leaf, (planned, &honest), node.verifying_key, own.secret(), &mut sets)?;
            match planned.purpose() {
                Purpose::Refund => package.leaves_to_claim.push(job),
                Purpose::DirectRefund => package.direct_leaves_to_claim.push(job),
                _ => package.direct_from_cpfp_leaves_to_claim.push(job),
            }
        }
        let split = self.split(&received.sub(own.secret())?)?;
        package.key_tweak_package = self.seal(&split, |share, public| {
            let leaves_to_receive = vec![spark::ClaimLeafKeyTweak {
                leaf_id: leaf.to_owned(),
                secret_share_tweak: Some(share),
                pubkey_shares_tweak: public,
            }];
            spark::ClaimLeafKeyTweaks { leaves_to_receive }.encode_to_vec()
        })?;
        let payload =
            package::claim_payload(&package::parse_transfer_id(transfer)?, &package.key_tweak_package);
        package.user_signature = self.sign(payload)?;
        let request = spark::ClaimTransferRequest {
            transfer_id: transfer.to_owned(),
            owner_identity_public_key: self.id_bytes(),
            claim_package: Some(package),
        };
        let next = SecretScalar::from_bytes(&own.secret().to_bytes())?;
        Ok(Package { request, secrets: secrets(&split), next })
    }

    fn split(&self, secret: &SecretScalar) -> anyhow::Result<Split> {
        let federation = &self.wallet.config().federation;
        Ok(feldman::split(secret, federation.threshold(), federation.size(), &mut OsRng)?)
    }

    fn seal(
        &self,
        split: &Split,
        message: impl Fn(spark::SecretShare, BTreeMap<String, Vec<u8>>) -> Vec<u8>,
    ) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        let members = self.wallet.config().federation.members();
        let proofs: Vec<Vec<u8>> = split.proofs.iter().map(|p| p.serialize().to_vec()).collect();
        let public: Arc<BTreeMap<String, Vec<u8>>> = Arc::new(
            members
                .iter()
                .zip(&split.shares)
                .map(|(m, share)| (m.index.identifier_hex(), share.public_key().serialize().to_vec()))
                .collect(),
        );
        let mut sealed = BTreeMap::new();
        for (member, share) in members.iter().zip(&split.shares) {
            let secret_share = share.to_bytes().to_vec();
            let plain =
                message(spark::SecretShare { secret_share, proofs: proofs.clone() }, (*public).clone());
            sealed.insert(member.index.identifier_hex(), ecies::seal(&member.identity, &plain, &mut OsRng)?);
        }
        Ok(sealed)
    }
}

fn secrets(split: &Split) -> Vec<[u8; 32]> {
    split.shares.iter().map(|share| *share.to_bytes()).collect()
}

fn basis(node: &Node) -> anyhow::Result<Basis> {
    Ok(Basis { node: node.spend()?, direct_node: node.direct_spend()? })
}

/// An output of a transaction by script, with the transaction.
pub(crate) fn outputs_to(tx: &Transaction, address: &str) -> anyhow::Result<Vec<(Spend, Transaction)>> {
    let script = address.parse::<bitcoin::Address<_>>()?.assume_checked().script_pubkey();
    let paying = (0u32..).zip(&tx.output).filter(|(_, out)| out.script_pubkey == script);
    paying.map(|(vout, _)| Ok((Spend::of(tx, vout).context("no such output")?, tx.clone()))).collect()
}

/// The stable reason of a refusal; empty if it carries none.
pub(crate) fn reason(status: &Status) -> String {
    use tonic_types::StatusExt as _;
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}
