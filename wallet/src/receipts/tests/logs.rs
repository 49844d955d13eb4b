//! Deletion logs as operators of tests show them: built, signed and cosigned anew from what they hold.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha256};
use spark_proto::signer::v1::{GetReceiptsResponse, InclusionProof};
use spark_rules::{
    checkpoint::{self, Extension, SignedAt},
    federation::Federation,
    federation_key::FederationKey,
    ids::OperatorIndex,
    receipt,
    witness::{self, Frontier},
};

use super::Shown;
use crate::{receipts::ReceiptError, wallet::now};

/// RFC 8032, tests 1 to 3: the federation keys of tests.
const SEEDS: [&str; 3] = [
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
];

fn key(operator: OperatorIndex) -> SigningKey {
    SigningKey::from_bytes(&hex::decode(SEEDS[operator.as_usize()]).unwrap().try_into().unwrap())
}

/// A head signed by an operator's federation key, under this origin.
fn signed(operator: OperatorIndex, origin: &str, text: &str) -> String {
    let key = key(operator);
    let public = [[1u8].as_slice(), key.verifying_key().as_bytes()].concat();
    let id = Sha256::digest([origin.as_bytes(), b"\n", &public].concat());
    let signature = [&id[..4], &key.sign(text.as_bytes()).to_bytes()].concat();
    format!("{text}\n\u{2014} {origin} {}\n", STANDARD.encode(signature))
}

/// Hashes that lead from a record to the root (RFC 6962, section 2.1.1), as it is written there.
fn path(records: &[Vec<u8>], index: usize) -> Vec<Vec<u8>> {
    let root = |records: &[Vec<u8>]| {
        let mut frontier = Frontier::default();
        records.iter().for_each(|record| frontier.push(record));
        frontier.root().to_vec()
    };
    if records.len() < 2 {
        return Vec::new();
    }
    let (left, right) = records.split_at(records.len().next_power_of_two() / 2);
    let (mut path, sibling) =
        if index < left.len() { (path(left, index), right) } else { (path(right, index - left.len()), left) };
    path.push(root(sibling));
    path
}

/// The log of what an operator shows, with records of other leaves between: receipt k is record 2k.
pub(super) fn answer(federation: &Federation, operator: OperatorIndex, shown: &Shown) -> GetReceiptsResponse {
    let mut records = Vec::new();
    for receipt in &shown.receipts {
        records.extend([receipt::leaf(receipt).to_vec(), b"another leaf's".to_vec()]);
    }
    records.pop();
    let size = records.len() as u64;
    let mut frontier = Frontier::default();
    records.iter().for_each(|record| frontier.push(record));
    let extension = Extension {
        position: SignedAt { root_epoch: 200, sequence: 200 },
        destroyed_before: shown.destroyed_before,
        log_size: size,
    };
    let origin = checkpoint::origin(federation, operator);
    let root = STANDARD.encode(frontier.root());
    let text = format!("{origin}\n{size}\n{root}\n{}", extension.to_lines());
    let mut checkpoint = signed(operator, &origin, &text);
    for (witness, age) in &shown.witnesses {
        let (witness, time) = (OperatorIndex::new(*witness), now().wrapping_sub(*age));
        let signature = key(witness).sign(&witness::cosigned_message(text.as_bytes(), time)).to_bytes();
        let public = FederationKey::from_bytes(key(witness).verifying_key().as_bytes()).unwrap();
        let line = witness::line(federation, witness, &public, time, &signature).unwrap();
        checkpoint.push_str(&line);
        checkpoint.push('\n');
    }
    let place = |k: usize| 2 * k as u64;
    let receipts = shown.receipts.iter().cloned().enumerate().map(|(k, mut receipt)| {
        receipt.log_index = place(k);
        receipt
    });
    let proofs = (0..shown.receipts.len()).map(|k| InclusionProof {
        index: place(k),
        tree_size: size,
        hashes: path(&records, 2 * k),
    });
    GetReceiptsResponse {
        receipts: receipts.collect(),
        proofs: proofs.collect(),
        checkpoint,
        ..GetReceiptsResponse::default()
    }
}

#[tokio::test]
async fn s7_checkpoints_of_another_log_prove_nothing() {
    let operators = crate::testing::Operators::new();
    let keys = crate::testing::keys();
    let (wallet, _dir) =
        crate::testing::wallet_of(&operators, keys, Vec::new(), std::time::Duration::from_secs(1));
    let of = |index| checkpoint::origin(&operators.federation, OperatorIndex::new(index));
    // Of an empty log, signed by the first operator.
    let checkpoint = |origin: &str| {
        let root = STANDARD.encode(Sha256::digest(b""));
        let text = format!("{origin}\n0\n{root}\n{}", Extension::default().to_lines());
        signed(OperatorIndex::new(0), origin, &text)
    };
    let checked = |note: String| wallet.head(0, &note).map(|head| (head.checkpoint.size, head.witnesses));
    assert_eq!(checked(checkpoint(&of(0))), Ok((0, 0)));
    // The same key may sign many logs: one for each wallet, say.
    for origin in [of(1), "spark-operator.invalid/for-alice".to_owned()] {
        assert_eq!(checked(checkpoint(&origin)), Err(ReceiptError::Checkpoint));
    }
    assert_eq!(checked(checkpoint(&of(0)).replace("\n0\n", "\n1\n")), Err(ReceiptError::Checkpoint));
    assert_eq!(checked("x".repeat(1 << 20)), Err(ReceiptError::Checkpoint));
}
