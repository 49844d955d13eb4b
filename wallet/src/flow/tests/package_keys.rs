//! D14: to which keys packages are sealed, and what an operator's statement is worth.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use spark_proto::{
    packages::v1::{ReserveKeyRequest, ReserveKeyResponse},
    signer::v1::PackageKey,
    spark::{StartTransferRequest, StartTransferResponse},
};
use spark_rules::{
    address::{Network, SparkAddress},
    ids::{OperatorIndex, TransferId},
    package,
    package_key::{self, Envelope},
    vote::Kind,
};
use spark_signer::{ecies, one_time, secret::SecretScalar};
use tonic::Status;

use super::{listing, showing};
use crate::{
    PackageKeyRefusal, Wallet, WalletError,
    config::PackageKeys,
    state::SendRecord,
    testing::{Liar, Operators, keys, wallet_with},
};

type Seen = Arc<Mutex<Vec<StartTransferRequest>>>;
type Answers = Arc<Mutex<Vec<PackageKey>>>;

/// Three operators that keep every package and refuse it, and give these one-time keys, the last one first.
struct Scene {
    operators: Operators,
    wallet: Wallet,
    seen: Seen,
    answers: Vec<Answers>,
    _dir: tempfile::TempDir,
}

fn scene(choice: PackageKeys, offering: [bool; 3]) -> Scene {
    let (operators, keys) = (Operators::new(), keys());
    let node = operators.deposit(&keys, &[50_000]);
    let seen = Seen::default();
    let answers: Vec<Answers> = (0..3).map(|_| Answers::default()).collect();
    let servers = offering
        .into_iter()
        .zip(&answers)
        .map(|(offers, answers)| {
            let (seen, answers) = (seen.clone(), answers.clone());
            let server = showing(listing(vec![node.clone()]), Vec::new()).on(
                "start_transfer_v2",
                move |request: StartTransferRequest| {
                    seen.lock().unwrap().push(request);
                    Err::<StartTransferResponse, _>(Status::internal("not today"))
                },
            );
            if !offers {
                return server;
            }
            server.on("reserve_key", move |_: ReserveKeyRequest| {
                let key = answers.lock().unwrap().pop();
                Ok(ReserveKeyResponse { key, reserved_until: 0 })
            })
        })
        .collect::<Vec<Liar>>();
    let (wallet, dir) = wallet_with(&operators, keys, servers, Duration::from_secs(20), choice);
    Scene { operators, wallet, seen, answers, _dir: dir }
}

impl Scene {
    /// The next key that an operator gives.
    fn give(&self, operator: usize) -> (PackageKey, SecretScalar) {
        let (statement, secret) = self.operators.package_key(operator);
        self.answers[operator].lock().unwrap().push(statement.clone());
        (statement, secret)
    }

    async fn send(&self) -> Result<crate::flow::Sent, WalletError> {
        let to = SparkAddress {
            network: Network::Regtest,
            identity: keys().identity().public_key(),
            invoice: None,
            signature: None,
        };
        self.wallet.send(&to, 50_000, None).await
    }

    /// A send that fails before anything is stored or sent.
    async fn refusal(&self) -> PackageKeyRefusal {
        let Err(WalletError::PackageKey(refusal)) = self.send().await else { panic!("sent") };
        assert!(self.seen.lock().unwrap().is_empty());
        assert!(self.wallet.state().all::<SendRecord>().unwrap().is_empty());
        refusal
    }

    /// Opens an operator's part of the one package that was sent.
    fn opens(&self, operator: usize, secret: Option<&SecretScalar>) -> bool {
        let seen = self.seen.lock().unwrap();
        let request = seen.last().unwrap();
        let index = OperatorIndex::new(u16::try_from(operator).unwrap());
        let package = request.transfer_package.as_ref().unwrap();
        let sealed = &package.key_tweak_package[&index.identifier_hex()];
        let Some(secret) = secret else {
            let identity = &self.operators.identities[operator];
            return ecies::Envelope::parse(sealed).and_then(|e| e.open(identity)).is_ok();
        };
        let uuid = package::parse_transfer_id(&request.transfer_id).unwrap();
        let transfer = TransferId::from_bytes(*uuid.as_bytes());
        let owner = self.wallet.keys().identity().public_key();
        let binding = package_key::binding(&self.operators.federation, index, Kind::Send, &transfer, &owner);
        Envelope::parse(sealed).is_ok_and(|envelope| one_time::open(&envelope, secret, &binding).is_ok())
    }
}

#[tokio::test]
async fn every_part_is_sealed_to_a_key_of_its_own() {
    let scene = scene(PackageKeys::OneTime, [true; 3]);
    let secrets: Vec<_> = (0..3).map(|operator| scene.give(operator).1).collect();
    scene.send().await.unwrap_err();
    for (operator, secret) in secrets.iter().enumerate() {
        assert!(scene.opens(operator, Some(secret)));
        assert!(!scene.opens(operator, None), "the identity key opens it");
    }
}

#[tokio::test]
async fn an_operator_without_one_time_keys_gets_no_package() {
    let scene = scene(PackageKeys::OneTime, [true, true, false]);
    (0..3).for_each(|operator| drop(scene.give(operator)));
    let refusal = scene.refusal().await;
    assert!(matches!(refusal, PackageKeyRefusal::Missing(operator) if operator.get() == 2));
    assert!(refusal.to_string().starts_with("PACKAGE_KEYS_MISSING: "));
}

#[tokio::test]
async fn long_lived_keys_are_used_only_where_the_user_accepts_that() {
    let scene = scene(PackageKeys::PreferOneTime, [true, true, false]);
    let (_, secret) = scene.give(0);
    scene.give(1);
    scene.send().await.unwrap_err();
    assert!(scene.opens(0, Some(&secret)) && !scene.opens(0, None));
    assert!(scene.opens(2, None), "this one offers no others");
}

#[tokio::test]
async fn statements_that_do_not_hold_are_refused() {
    type Change = fn(&mut PackageKey);
    let changes: [Change; 4] = [
        |key| key.key_id[0] ^= 1,
        |key| key.public_key = keys().identity().public_key().serialize().to_vec(),
        |key| key.batch.as_mut().unwrap().expires += 1,
        |key| key.batch.as_mut().unwrap().signature[5] ^= 1,
    ];
    for change in changes {
        let scene = scene(PackageKeys::PreferOneTime, [true; 3]);
        (0..3).for_each(|operator| drop(scene.give(operator)));
        change(scene.answers[1].lock().unwrap().last_mut().unwrap());
        let refusal = scene.refusal().await;
        assert!(matches!(refusal, PackageKeyRefusal::Invalid { operator, .. } if operator.get() == 1));
        assert!(refusal.to_string().starts_with("PACKAGE_KEY_INVALID: "));
    }
    // Another operator's key is no key of this one.
    let scene = scene(PackageKeys::OneTime, [true; 3]);
    (0..2).for_each(|operator| drop(scene.give(operator)));
    let foreign = scene.operators.package_key(1).0;
    scene.answers[2].lock().unwrap().push(foreign);
    assert!(
        matches!(scene.refusal().await, PackageKeyRefusal::Invalid { operator, .. } if operator.get() == 2)
    );
}

#[tokio::test]
async fn a_key_is_sealed_to_once() {
    let scene = scene(PackageKeys::OneTime, [true; 3]);
    let first = scene.give(0).0;
    (1..3).for_each(|operator| drop(scene.give(operator)));
    scene.send().await.unwrap_err();
    assert_eq!(scene.seen.lock().unwrap().len(), 1);
    // The same wallet pays somebody else, and gets a key that it had.
    (1..3).for_each(|operator| drop(scene.give(operator)));
    scene.answers[0].lock().unwrap().push(first);
    for record in scene.wallet.state().all::<SendRecord>().unwrap() {
        scene.wallet.state().remove::<SendRecord>(&record.transfer_id).unwrap();
    }
    scene.seen.lock().unwrap().clear();
    let refusal = scene.refusal().await;
    assert!(matches!(refusal, PackageKeyRefusal::Reused(operator) if operator.get() == 0));
    assert!(refusal.to_string().starts_with("PACKAGE_KEY_REUSED: "));
}
