//! To which keys the operators' parts of a package are sealed (OPERATION.md D14).

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::PublicKey;
use rand::{RngCore as _, rngs::OsRng};
use spark_proto::{packages::v1::ReserveKeyRequest, signer::v1 as signer};
use spark_rules::{
    federation::Federation,
    ids::{OperatorIndex, TransferId},
    package_key::{self, PackageKey, PackageKeyError},
    vote::Kind,
};
use spark_signer::{ecies::EciesError, one_time};
use tonic::Code;

use crate::{
    Wallet, WalletError,
    client::{ClientError, Operator},
    config::PackageKeys,
    state::UsedPackageKey,
    wallet::now,
};

/// A key must be good for this long: the package has to reach the signer.
const LEAST_LIFE_SECONDS: u64 = 120;
/// Times an operator without a ready key is asked.
const ASKS: u32 = 6;

/// Why an operator's part of a package is not sealed. The names are stable.
#[derive(Debug, thiserror::Error)]
pub enum PackageKeyRefusal {
    /// The operator does not offer one-time keys.
    #[error(
        "PACKAGE_KEYS_MISSING: operator {} offers no one-time package keys. Packages for its long-lived key could be \
         opened later; --allow-long-lived-package-keys accepts that", .0.get()
    )]
    Missing(OperatorIndex),
    /// The key is not vouched for.
    #[error("PACKAGE_KEY_INVALID: operator {}: {source}", operator.get())]
    Invalid {
        /// Whose.
        operator: OperatorIndex,
        /// What is wrong.
        #[source]
        source: PackageKeyError,
    },
    /// The operator gave a key that this wallet has sealed to before.
    #[error("PACKAGE_KEY_REUSED: operator {} gave the same one-time package key twice", .0.get())]
    Reused(OperatorIndex),
}

/// A key of one operator.
#[derive(Debug, Clone)]
enum Recipient {
    OneTime(PackageKey),
    Identity(PublicKey),
}

/// What a package is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose {
    pub(crate) kind: Kind,
    pub(crate) transfer: TransferId,
    /// Who signs the package.
    pub(crate) owner: PublicKey,
}

/// A key of every operator.
#[derive(Debug, Clone)]
pub(crate) struct Recipients(BTreeMap<OperatorIndex, Recipient>);

impl Recipients {
    /// The operators' identity keys.
    pub(crate) fn long_lived(federation: &Federation) -> Self {
        let members = federation.members().iter();
        Self(members.map(|member| (member.index, Recipient::Identity(member.identity))).collect())
    }

    /// Seals one operator's part.
    pub(crate) fn seal(
        &self,
        federation: &Federation,
        operator: OperatorIndex,
        purpose: &Purpose,
        plain: &[u8],
    ) -> Result<Vec<u8>, EciesError> {
        match self.0.get(&operator).ok_or(EciesError::Open)? {
            Recipient::Identity(key) => crate::seal::seal(key, plain),
            Recipient::OneTime(key) => {
                let Purpose { kind, transfer, owner } = purpose;
                let binding = package_key::binding(federation, operator, *kind, transfer, owner);
                one_time::seal(&key.id, &key.key, &binding, plain, &mut OsRng)
            }
        }
    }
}

impl Wallet {
    /// A fresh one-time key of every operator, or what the configuration allows instead.
    pub(crate) async fn recipients(&self) -> Result<Recipients, WalletError> {
        let mut recipients = Recipients::long_lived(&self.config().federation);
        if self.config().package_keys == PackageKeys::LongLived {
            return Ok(recipients);
        }
        let mut used = Vec::new();
        let mut seen = BTreeSet::new();
        for (operator, answer) in self.operators().each(|operator| self.reserve(operator)).await {
            let Some(statement) = answer? else { continue };
            let until = now().saturating_add(LEAST_LIFE_SECONDS);
            let key = PackageKey::verify(&statement, &self.config().federation, operator, until)
                .map_err(|source| PackageKeyRefusal::Invalid { operator, source })?;
            if !seen.insert(key.key) {
                return Err(PackageKeyRefusal::Reused(operator).into());
            }
            used.push((
                operator,
                UsedPackageKey { id: hex::encode(key.key.serialize()), expires: key.expires },
            ));
            recipients.0.insert(operator, Recipient::OneTime(key));
        }
        let records: Vec<_> = used.iter().map(|(_, record)| record).collect();
        if let Some(known) = self.state().put_new(&records)? {
            let operator = used.iter().find(|(_, record)| record.id == known).map(|(operator, _)| *operator);
            return Err(PackageKeyRefusal::Reused(operator.unwrap_or(OperatorIndex::new(0))).into());
        }
        Ok(recipients)
    }

    /// None: the operator has no one-time keys, and the configuration accepts that.
    async fn reserve(&self, operator: &Operator) -> Result<Option<signer::PackageKey>, WalletError> {
        let mut request_id = vec![0; 16];
        OsRng.fill_bytes(&mut request_id);
        let mut asked = 0u32;
        loop {
            let request = ReserveKeyRequest { request_id: request_id.clone() };
            let answer = operator
                .packages(self.keys().identity(), request, |mut c, r| async move { c.reserve_key(r).await })
                .await;
            match answer {
                Ok(answer) => return Ok(Some(answer.key.ok_or(WalletError::Answer("the package key"))?)),
                Err(error) if error.code() == Some(Code::Unimplemented) => {
                    return match self.config().package_keys {
                        PackageKeys::PreferOneTime => Ok(None),
                        _ => Err(PackageKeyRefusal::Missing(operator.index()).into()),
                    };
                }
                Err(error) if asked < ASKS && worth_asking_again(&error) => {
                    asked = asked.saturating_add(1);
                    tokio::time::sleep(std::time::Duration::from_millis(100 << asked)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Drops the memory of keys that no signer opens any more.
    pub(crate) fn forget_package_keys(&self) -> Result<(), WalletError> {
        let (all, now) = (self.state().all::<UsedPackageKey>()?, now());
        let over = all.iter().filter(|record| record.expires <= now);
        let over: Vec<&str> = over.map(|record| record.id.as_str()).collect();
        Ok(self.state().remove_all::<UsedPackageKey>(&over)?)
    }
}

/// The operator's stock is empty, or this wallet holds too many unused keys: both pass.
fn worth_asking_again(error: &ClientError) -> bool {
    matches!(error.reason().as_deref(), Some("PACKAGE_KEYS_EXHAUSTED" | "OPERATION_IN_PROGRESS" | "QUOTA"))
}
