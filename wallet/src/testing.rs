//! A federation in memory for unit tests: it holds its keys in one place and signs whatever it is given.

use std::collections::BTreeMap;

use bitcoin::{
    Amount, OutPoint, Transaction, TxOut, Txid,
    consensus::encode,
    hashes::Hash as _,
    secp256k1::{PublicKey, SECP256K1, SecretKey},
};
use rand::rngs::OsRng;
use spark_proto::{
    common::SigningCommitment,
    spark::{RequestedSigningCommitments, SigningKeyshare, TreeNode, UserSignedTxSigningJob},
};
use spark_rules::{
    federation::{Federation, FederationEntry, MemberEntry},
    frost::{Commitment, SignatureShare, SigningPackage},
    ids::{LeafId, OperatorIndex},
    tx::{Plan, Planned, Purpose, Source, Spend, attach_signature, p2tr_script, sighash},
};
use spark_signer::{
    feldman,
    frost::{NoncePair, sign_operator},
    secret::SecretScalar,
};

use crate::{
    keys::{Keys, Phrase, SigningKey, Words},
    signing::{CommitmentSets, job},
};

pub(crate) const LEAF_ID: &str = "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2c";

pub(crate) fn keys() -> Keys {
    Phrase::generate(Words::Twelve, &mut OsRng).unwrap().keys(0).unwrap()
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
        let mut secret = Vec::new();
        let mut public = Vec::new();
        for _ in 0..count {
            let pairs: BTreeMap<_, _> = [0, 2]
                .into_iter()
                .map(|i| (OperatorIndex::new(i), NoncePair::generate(&mut OsRng, None)))
                .collect();
            let signing_nonce_commitments = pairs
                .iter()
                .map(|(i, pair)| {
                    let c = pair.commitment();
                    let (hiding, binding) = (c.hiding.serialize().to_vec(), c.binding.serialize().to_vec());
                    (i.identifier_hex(), SigningCommitment { hiding, binding })
                })
                .collect();
            public.push(RequestedSigningCommitments { signing_nonce_commitments });
            secret.push(pairs);
        }
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
        let id = LeafId::parse(LEAF_ID).unwrap();
        let own = keys.leaf(&id).unwrap();
        let verifying_key = self.group.public_key().combine(&own.public_key()).unwrap();
        let inputs = (0u32..)
            .zip(values)
            .map(|(vout, sats)| Spend {
                outpoint: OutPoint { txid: Txid::from_byte_array([7; 32]), vout },
                txout: TxOut { value: Amount::from_sat(*sats), script_pubkey: p2tr_script(&verifying_key) },
            })
            .collect();
        let plan = Plan::deposit(Source::Build, inputs, &own.public_key()).unwrap();
        let signed = self.sign_plan(&plan, &own);
        let raw = |purpose| encode::serialize(&signed[&purpose]);
        TreeNode {
            id: LEAF_ID.into(),
            value: values.iter().sum(),
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

    pub(crate) fn keyshare(&self) -> SigningKeyshare {
        SigningKeyshare { public_key: self.group.public_key().serialize().to_vec(), ..Default::default() }
    }

    pub(crate) fn ecdsa(&self, operator: usize, digest: [u8; 32]) -> Vec<u8> {
        let key = SecretKey::from_slice(&*self.identities[operator].to_bytes()).unwrap();
        let message = bitcoin::secp256k1::Message::from_digest(digest);
        SECP256K1.sign_ecdsa(&message, &key).serialize_der().to_vec()
    }
}
