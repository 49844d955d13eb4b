//! A federation in memory for unit tests: it holds its keys in one place and signs whatever it is given.

mod server;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bitcoin::{
    Amount, OutPoint, Transaction, TxOut, Txid,
    consensus::encode,
    hashes::Hash as _,
    key::TapTweak as _,
    secp256k1::{Keypair, Message, PublicKey, SECP256K1, SecretKey},
};
use rand::rngs::OsRng;
use spark_proto::{
    common::SigningCommitment,
    signer::v1 as signer,
    spark::{
        DepositAddressProof, RequestedSigningCommitments, SigningKeyshare, Transfer, TransferLeaf,
        TransferType, TreeNode, UserSignedTxSigningJob,
    },
};
use spark_rules::{
    address::Network,
    federation::{Federation, FederationEntry, MemberEntry},
    frost::{Commitment, SignatureShare, SigningPackage},
    ids::{LeafId, OperatorIndex},
    package, package_key,
    tx::{Basis, Plan, Planned, Purpose, Source, Spend, Timelock, attach_signature, p2tr_script, sighash},
};
use spark_signer::{
    feldman,
    frost::{NoncePair, sign_operator},
    secret::SecretScalar,
};

pub(crate) use server::Liar;

use crate::{
    Wallet,
    client::{Operator, Operators as Clients},
    config::{Config, PackageKeys, TlsFiles},
    keys::{Keys, Phrase, SigningKey, Words},
    signing::{CommitmentSets, job},
    state::{SendRecord, SendState, State, Wire},
    verify::Node,
};

pub(crate) const LEAF_ID: &str = "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2c";

pub(crate) const TRANSFER_ID: &str = "0193c5d2-7b0a-7c40-9a55-000000000001";

pub(crate) fn keys() -> Keys {
    Phrase::generate(Words::Twelve, &mut OsRng).unwrap().keys(0).unwrap()
}

/// A wallet of these keys in a folder of its own, with one connection per server and without a bitcoind.
pub(crate) fn wallet_of(
    operators: &Operators,
    keys: Keys,
    servers: Vec<Liar>,
    deadline: Duration,
) -> (Wallet, tempfile::TempDir) {
    wallet_with(operators, keys, servers, deadline, PackageKeys::LongLived)
}

/// The same with a choice of package keys.
pub(crate) fn wallet_with(
    operators: &Operators,
    keys: Keys,
    servers: Vec<Liar>,
    deadline: Duration,
    package_keys: PackageKeys,
) -> (Wallet, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path(), &keys.identity().public_key().to_string()).unwrap();
    let members = operators.federation.members().iter();
    let all = members
        .zip(servers)
        .map(|(m, server)| Operator::over(m.index, m.identity, server.serve(), deadline).let_in())
        .collect();
    let config = Config {
        network: Network::Regtest,
        account: 0,
        federation: operators.federation.clone(),
        coordinator: OperatorIndex::new(0),
        endpoints: Vec::new(),
        tls: TlsFiles { ca: PathBuf::new(), identity: None },
        bitcoind: None,
        package_keys,
        deadline,
    };
    (Wallet::of(config, keys, Clients::of(all), state, None), dir)
}

/// A wallet of fresh keys.
pub(crate) fn wallet(servers: Vec<Liar>) -> (Wallet, tempfile::TempDir) {
    wallet_of(&Operators::new(), keys(), servers, Duration::from_secs(20))
}

/// Nonces of operators 0 and 2 for one signature, and their commitments.
pub(crate) fn commitment_set() -> (BTreeMap<OperatorIndex, NoncePair>, RequestedSigningCommitments) {
    let pairs: BTreeMap<_, _> =
        [0, 2].into_iter().map(|i| (OperatorIndex::new(i), NoncePair::generate(&mut OsRng, None))).collect();
    let signing_nonce_commitments = pairs
        .iter()
        .map(|(i, pair)| {
            let c = pair.commitment();
            let (hiding, binding) = (c.hiding.serialize().to_vec(), c.binding.serialize().to_vec());
            (i.identifier_hex(), SigningCommitment { hiding, binding })
        })
        .collect();
    (pairs, RequestedSigningCommitments { signing_nonce_commitments })
}

/// A send of these leaves that is under way.
pub(crate) fn send(leaves: &[&str]) -> SendRecord {
    SendRecord {
        transfer_id: TRANSFER_ID.into(),
        receiver: keys().identity().public_key().to_string(),
        amount: 50_000,
        leaves: leaves.iter().map(|l| (*l).to_owned()).collect(),
        shares: Vec::new(),
        invoice: String::new(),
        many: None,
        htlc: None,
        swap: None,
        exit: None,
        coop: None,
        request: Wire::of(&Default::default()),
        attempt: 0,
        state: SendState::Pending,
        created: crate::wallet::now(),
        built: crate::wallet::now(),
        step_over: false,
        ended: false,
    }
}

/// Three operators, two needed.
pub(crate) struct Operators {
    pub(crate) federation: Federation,
    pub(crate) identities: Vec<SecretScalar>,
    /// Operator key of the one leaf, and its shares.
    pub(crate) group: SecretScalar,
    pub(crate) shares: Vec<SecretScalar>,
}

/// An Ed25519 public key for each small seed; only its form matters here.
const FEDERATION_KEYS: [&str; 3] = [
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
];

impl Operators {
    /// A one-time package key as an operator's signer states it, and its secret half.
    pub(crate) fn package_key(&self, operator: usize) -> (signer::PackageKey, SecretScalar) {
        let secret = SecretScalar::random(&mut OsRng);
        let id: package_key::KeyId = rand::random();
        let (root, mut paths) = package_key::tree(&[(id, secret.public_key())]).unwrap();
        let mut batch = signer::PackageKeyBatch {
            operator: u32::try_from(operator).unwrap(),
            incarnation: vec![1; 16],
            expires: crate::wallet::now() + 3600,
            size: 1,
            tree_root: root.to_vec(),
            signature: Vec::new(),
        };
        let identity = SecretKey::from_slice(self.identities[operator].to_bytes().as_slice()).unwrap();
        let message = Message::from_digest(package_key::digest(&batch, &self.federation));
        batch.signature = SECP256K1.sign_ecdsa(&message, &identity).serialize_compact().to_vec();
        let statement = signer::PackageKey {
            key_id: id.to_vec(),
            public_key: secret.public_key().serialize().to_vec(),
            index: 0,
            path: paths.remove(0),
            batch: Some(batch),
        };
        (statement, secret)
    }

    pub(crate) fn new() -> Self {
        let identities: Vec<SecretScalar> = (0..3).map(|_| SecretScalar::random(&mut OsRng)).collect();
        let members = identities
            .iter()
            .zip(FEDERATION_KEYS)
            .enumerate()
            .map(|(i, (identity, key))| MemberEntry {
                identity_public_key: identity.public_key().to_string(),
                federation_public_keys: vec![key.into()],
                tls_spki_sha256: vec![format!("{i:064x}")],
                peer_address: format!("op{i}.example:1"),
                public_address: format!("https://op{i}.example:2"),
            })
            .collect();
        let entry = FederationEntry {
            epoch: 1,
            network: "regtest".into(),
            threshold: 2,
            quorum: None,
            faults: None,
            members,
        };
        let group = SecretScalar::random(&mut OsRng);
        let shares = feldman::split(&group, 2, 3, &mut OsRng).unwrap().shares;
        Self { federation: entry.check().unwrap(), identities, group, shares }
    }

    /// Nonces of operators 0 and 2 for `count` signatures, and what the wallet sees of them.
    pub(crate) fn commit(&self, count: usize) -> (Vec<BTreeMap<OperatorIndex, NoncePair>>, CommitmentSets) {
        let (secret, public) = (0..count).map(|_| commitment_set()).unzip();
        (secret, CommitmentSets::new(public))
    }

    /// The operators' half of every input, and the aggregate: the transaction as it goes to the chain.
    pub(crate) fn sign(
        &self,
        planned: &Planned,
        job: &UserSignedTxSigningJob,
        user_key: &PublicKey,
        nonces: &mut std::vec::IntoIter<BTreeMap<OperatorIndex, NoncePair>>,
    ) -> Transaction {
        let verifying_key = self.group.public_key().combine(user_key).unwrap();
        let mut tx: Transaction = encode::deserialize(&job.raw_tx).unwrap();
        assert_eq!(tx, planned.tx);
        let first = (&job.user_signature, &job.signing_nonce_commitment);
        let others = job.additional_inputs.iter().map(|i| (&i.user_signature, &i.signing_nonce_commitment));
        for (input, (share, commitment)) in std::iter::once(first).chain(others).enumerate() {
            let pairs = nonces.next().unwrap();
            let operators = pairs.iter().map(|(i, p)| (*i, *p.commitment())).collect();
            let user = commitment.as_ref().unwrap();
            let user = Commitment::parse(&user.hiding, &user.binding).unwrap();
            let message = sighash(&tx, &planned.template.prevouts(), input).unwrap();
            let package =
                SigningPackage::new(verifying_key, message, operators, Some(user), None, 2, 3).unwrap();
            let session = package.session().unwrap();
            let user_share = SignatureShare::parse(share).unwrap();
            session.verify_user_share(user_key, &user_share).unwrap();
            let shares = pairs
                .into_iter()
                .map(|(i, pair)| (i, sign_operator(&session, i, pair, &self.shares[i.as_usize()]).unwrap()))
                .collect();
            let public = |i: OperatorIndex| self.shares.get(i.as_usize()).map(SecretScalar::public_key);
            let signature = session.aggregate(&shares, Some(&user_share), public, Some(user_key)).unwrap();
            attach_signature(&mut tx, input, signature).unwrap();
        }
        tx
    }

    /// Signs a whole plan together with the user's `key`.
    pub(crate) fn sign_plan(&self, plan: &Plan, key: &SigningKey) -> BTreeMap<Purpose, Transaction> {
        let count = plan.transactions().iter().map(|p| p.template.inputs().len()).sum();
        let (nonces, mut sets) = self.commit(count);
        let mut nonces = nonces.into_iter();
        let verifying_key = self.group.public_key().combine(&key.public_key()).unwrap();
        let mut signed = BTreeMap::new();
        for planned in plan.transactions() {
            let job = job(LEAF_ID, planned, key, &verifying_key, &mut sets, &self.federation).unwrap();
            signed.insert(planned.purpose(), self.sign(planned, &job, &key.public_key(), &mut nonces));
        }
        signed
    }

    /// A deposited leaf of `keys`, everything signed.
    pub(crate) fn deposit(&self, keys: &Keys, values: &[u64]) -> TreeNode {
        let script = p2tr_script(&self.verifying_key(keys, LEAF_ID));
        let spends = (0u32..).zip(values).map(|(vout, sats)| Spend {
            outpoint: OutPoint { txid: Txid::from_byte_array([7; 32]), vout },
            txout: TxOut { value: Amount::from_sat(*sats), script_pubkey: script.clone() },
        });
        self.deposit_of(keys, LEAF_ID, spends.collect())
    }

    /// P of a leaf.
    pub(crate) fn verifying_key(&self, keys: &Keys, leaf: &str) -> PublicKey {
        let own = keys.leaf(&LeafId::parse(leaf).unwrap()).unwrap();
        self.group.public_key().combine(&own.public_key()).unwrap()
    }

    /// A leaf with this id on these outputs.
    pub(crate) fn deposit_of(&self, keys: &Keys, leaf: &str, inputs: Vec<Spend>) -> TreeNode {
        let own = keys.leaf(&LeafId::parse(leaf).unwrap()).unwrap();
        let verifying_key = self.verifying_key(keys, leaf);
        let value = inputs.iter().map(|i| i.txout.value.to_sat()).sum();
        let plan = Plan::deposit(Source::Build, inputs, &own.public_key()).unwrap();
        let signed = self.sign_plan(&plan, &own);
        let raw = |purpose| encode::serialize(&signed[&purpose]);
        TreeNode {
            id: leaf.into(),
            value,
            node_tx: raw(Purpose::Root),
            refund_tx: raw(Purpose::Refund),
            direct_from_cpfp_refund_tx: raw(Purpose::DirectFromCpfpRefund),
            verifying_public_key: verifying_key.serialize().to_vec(),
            owner_identity_public_key: keys.identity().public_key().serialize().to_vec(),
            signing_keyshare: Some(self.keyshare()),
            status: "AVAILABLE".into(),
            ..Default::default()
        }
    }

    /// The same leaf with refunds to its key, or to the identity key, at `step`.
    pub(crate) fn at(&self, node: &TreeNode, keys: &Keys, step: u16, identity: bool) -> TreeNode {
        let own = keys.leaf(&LeafId::parse(&node.id).unwrap()).unwrap();
        let to = if identity { keys.identity().public_key() } else { own.public_key() };
        self.refunded(node, &own, &to, step)
    }

    /// The same leaf, whose user key is `own`, with refunds to any key.
    pub(crate) fn refunded(&self, node: &TreeNode, own: &SigningKey, to: &PublicKey, step: u16) -> TreeNode {
        let basis = Basis { node: Node::parse(node).unwrap().spend().unwrap(), direct_node: None };
        let plan = Plan::refunds(Source::Build, &basis, to, Timelock::new(step).unwrap()).unwrap();
        let signed = self.sign_plan(&plan, own);
        TreeNode {
            refund_tx: encode::serialize(&signed[&Purpose::Refund]),
            direct_from_cpfp_refund_tx: encode::serialize(&signed[&Purpose::DirectFromCpfpRefund]),
            ..node.clone()
        }
    }

    /// What the receiver sees of a plain transfer by `sender`, whose key becomes `new`.
    pub(crate) fn transfer(&mut self, sender: &Keys, receiver: &SigningKey, new: &SecretScalar) -> Transfer {
        let mut node = self.deposit(sender, &[100_000]);
        let old = sender.leaf(&LeafId::parse(LEAF_ID).unwrap()).unwrap();
        let parsed = Node::parse(&node).unwrap();
        let basis = Basis { node: parsed.spend().unwrap(), direct_node: None };
        let step = Timelock::new(1900).unwrap();
        let plan = Plan::refunds(Source::Build, &basis, &receiver.public_key(), step).unwrap();
        let signed = self.sign_plan(&plan, &old);
        self.group = self.group.add(&old.secret().sub(new).unwrap()).unwrap();
        node.signing_keyshare = Some(self.keyshare());
        let secret_cipher = crate::seal::seal(&receiver.public_key(), &*new.to_bytes()).unwrap();
        let digest = package::secret_cipher_digest(LEAF_ID, TRANSFER_ID, &secret_cipher);
        Transfer {
            id: TRANSFER_ID.into(),
            sender_identity_public_key: sender.identity().public_key().serialize().to_vec(),
            receiver_identity_public_key: receiver.public_key().serialize().to_vec(),
            total_value: 100_000,
            r#type: TransferType::Transfer.into(),
            leaves: vec![TransferLeaf {
                leaf: Some(node),
                secret_cipher,
                signature: sender.identity().sign_ecdsa(digest).unwrap().serialize_compact().to_vec(),
                intermediate_refund_tx: encode::serialize(&signed[&Purpose::Refund]),
                intermediate_direct_from_cpfp_refund_tx: encode::serialize(
                    &signed[&Purpose::DirectFromCpfpRefund],
                ),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    /// A deposit address of a leaf with all its proofs.
    pub(crate) fn address(&self, keys: &Keys, leaf: &str) -> (String, PublicKey, DepositAddressProof) {
        self.address_of(keys, self.verifying_key(keys, leaf))
    }

    /// A static deposit address with all its proofs.
    pub(crate) fn static_address(&self, keys: &Keys) -> (String, PublicKey, DepositAddressProof) {
        let own = keys.static_deposit(0).unwrap().public_key();
        self.address_of(keys, self.group.public_key().combine(&own).unwrap())
    }

    fn address_of(&self, keys: &Keys, verifying_key: PublicKey) -> (String, PublicKey, DepositAddressProof) {
        let address = spark_rules::address::deposit_address(&verifying_key, Network::Regtest);
        let identity = keys.identity().public_key();
        let message = package::proof_of_possession(&identity, &self.group.public_key(), &address);
        let key = SecretKey::from_slice(&*self.group.to_bytes()).unwrap();
        let pair = Keypair::from_secret_key(SECP256K1, &key).tap_tweak(SECP256K1, None).to_keypair();
        let possession = SECP256K1.sign_schnorr(&Message::from_digest(message), &pair);
        let digest = bitcoin::hashes::sha256::Hash::hash(address.as_bytes()).to_byte_array();
        let proof = DepositAddressProof {
            address_signatures: self
                .federation
                .indices()
                .map(|i| (i.identifier_hex(), self.ecdsa(i.as_usize(), digest)))
                .collect(),
            proof_of_possession_signature: possession.serialize().to_vec(),
        };
        (address, verifying_key, proof)
    }

    pub(crate) fn keyshare(&self) -> SigningKeyshare {
        SigningKeyshare { public_key: self.group.public_key().serialize().to_vec(), ..Default::default() }
    }

    pub(crate) fn ecdsa(&self, operator: usize, digest: [u8; 32]) -> Vec<u8> {
        let key = SecretKey::from_slice(&*self.identities[operator].to_bytes()).unwrap();
        let message = Message::from_digest(digest);
        SECP256K1.sign_ecdsa(&message, &key).serialize_der().to_vec()
    }
}
