//! Refusals of the engine.

use spark_rules::{
    checkpoint::CheckpointError,
    federation::FederationError,
    feldman::FeldmanError,
    frost::PackageError,
    ids::IdError,
    leaf::{DecodeError, LeafError},
    operation::OperationError,
    package_key::PackageKeyError,
    point::PointError,
    vote::VoteError,
};

use crate::{
    dkg::DkgError,
    ecies::EciesError,
    frost::SignError,
    nonce::NonceError,
    refresh::RefreshError,
    repair::RepairError,
    secret::SecretError,
    vault::{DeviceId, TokenError, VaultError},
};

/// Why a call is refused. [`EngineError::reason`] is stable.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The peers' memory was not heard yet (D11).
    #[error("signer is locked until its peers confirm that it was not rolled back")]
    Locked,
    /// A person has closed the vault; a person opens it again.
    #[error("signer is sealed")]
    SignerSealed,
    /// What a person wants to acknowledge is not over.
    #[error("alarm {0} ends with its cause")]
    AlarmLasts(&'static str),
    /// No alarm of this name and id is active.
    #[error("no such alarm: {0}")]
    NoAlarm(&'static str),
    /// A device cannot do what is asked for.
    #[error("device {0} {1}")]
    Device(DeviceId, &'static str),
    /// A peer remembers more than this store holds.
    #[error(
        "store is behind what operator {witness} remembers: epoch {seen_epoch}, sequence {seen_sequence}"
    )]
    RolledBack {
        /// Who remembers.
        witness: u16,
        /// Root epoch seen.
        seen_epoch: u64,
        /// Sequence seen.
        seen_sequence: u64,
    },
    /// A field is missing or has no legal value.
    #[error("{0} is missing or malformed")]
    Malformed(&'static str),
    /// Not in the ledger.
    #[error("{0} is unknown")]
    Unknown(&'static str),
    /// The same id with other content.
    #[error("operation is already known with other content")]
    Differs,
    /// The attempt is over.
    #[error("attempt is already {0}")]
    Decided(&'static str),
    /// Another operation holds a leaf or resource.
    #[error("{what} is held by operation {by}")]
    Held {
        /// What.
        what: &'static str,
        /// By which operation.
        by: String,
    },
    /// Another transaction of this maturity was released before (S4, D6).
    #[error("another transaction with the maturity of job {0} was released")]
    Maturity(usize),
    /// A keyshare that cannot be bound or is bound otherwise.
    #[error("keyshare cannot be bound: {0}")]
    Binding(&'static str),
    /// Not one of the named signers.
    #[error("this signer holds no nonces of the operation")]
    NotNamed,
    /// A decider of a refresh speaks after those of a lower index.
    #[error("decider {0} speaks first")]
    OutOfTurn(u16),
    /// Stages are released bottom-up.
    #[error("stage {0} is not next, or signatures of earlier stages are missing")]
    Stage(u32),
    /// The package sealed for this signer does not open or does not decode.
    #[error("package for this operator: {0}")]
    Sealed(&'static str),
    /// The one-time key that a package is sealed to does not serve.
    #[error("one-time package key: {0}")]
    PackageKey(&'static str),
    /// An envelope sealed to a one-time key.
    #[error(transparent)]
    OneTime(#[from] PackageKeyError),
    /// The operator's deletion log contradicts itself.
    #[error("the deletion log of operator {0} contradicts itself")]
    Distrusted(u16),
    /// Entries do not lead to the signed head.
    #[error("entries do not lead to the head that operator {0} signed")]
    LogDiffers(u16),
    /// A head of a log.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The batch was not made durable.
    #[error("not durable: {0}")]
    Commit(String),
    /// Key generation.
    #[error("key generation: {0}")]
    Generation(&'static str),
    /// No person here approved this signer's repair, with this incarnation and this key.
    #[error("the repair of operator {0} is not approved here in this form")]
    NotApproved(u16),
    /// The repaired signer's log would have the name of the lost one's.
    #[error(
        "operator {operator} was lost under epoch {epoch} of the federation file: its repair needs a later one"
    )]
    RepairEpoch {
        /// Whose repair.
        operator: u16,
        /// Under which its lost life signed last.
        epoch: u64,
    },
    /// This signer, or the leaf, is being repaired.
    #[error("under repair; try again later")]
    Repairing,
    /// Repair.
    #[error("repair: {0}")]
    Repair(&'static str),
    /// Values of a repair.
    #[error(transparent)]
    RepairValue(#[from] RepairError),
    /// Refresh.
    #[error("refresh: {0}")]
    Refresh(&'static str),
    /// Values of a refresh.
    #[error(transparent)]
    RefreshValue(#[from] RefreshError),
    /// Rules.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// Votes and proofs.
    #[error(transparent)]
    Vote(#[from] VoteError),
    /// Nonces.
    #[error(transparent)]
    Nonce(#[from] NonceError),
    /// Share arithmetic.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Signing packages.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// Feldman commitments.
    #[error(transparent)]
    Feldman(#[from] FeldmanError),
    /// Envelopes.
    #[error(transparent)]
    Ecies(#[from] EciesError),
    /// Distributed key generation.
    #[error(transparent)]
    Dkg(#[from] DkgError),
    /// A scalar that is zero or too large.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Points of a request.
    #[error(transparent)]
    Point(#[from] PointError),
    /// Ids of a request.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Leaf records.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// The HSM.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The federation.
    #[error(transparent)]
    Federation(#[from] FederationError),
    /// A record of the ledger does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A record of the ledger does not decode.
    #[error("stored message is malformed: {0}")]
    Stored(#[from] prost::DecodeError),
}

impl EngineError {
    /// Stable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Locked => "SIGNER_LOCKED",
            Self::SignerSealed => "SIGNER_SEALED",
            Self::AlarmLasts(_) => "ALARM_LASTS",
            Self::NoAlarm(_) => "ALARM_UNKNOWN",
            Self::Device(..) => "DEVICE_STATE",
            Self::RolledBack { .. } => "ROLLBACK_DETECTED",
            Self::Malformed(_) | Self::Point(_) | Self::Id(_) => "FIELD_INVALID",
            Self::Unknown(_) => "UNKNOWN",
            Self::Differs => "OPERATION_DIFFERS",
            Self::Decided(_) => "DECIDED",
            Self::Held { what: "invoice", .. } => "INVOICE_PAID",
            Self::Held { .. } => "LEAF_UNAVAILABLE",
            Self::Maturity(_) => "MATURITY_USED",
            Self::Binding(_) => "KEYSHARE_BOUND",
            Self::NotNamed => "NOT_NAMED",
            Self::OutOfTurn(_) => "OUT_OF_TURN",
            Self::Stage(_) => "STAGE",
            Self::Sealed(_) | Self::Ecies(_) | Self::Feldman(_) | Self::OneTime(_) => "PACKAGE_CONTENT",
            Self::PackageKey(_) => "PACKAGE_KEY",
            Self::Distrusted(_) => "OPERATOR_DISTRUSTED",
            Self::LogDiffers(_) | Self::Checkpoint(_) => "LOG_INVALID",
            Self::Commit(_) => "NOT_DURABLE",
            Self::Generation(_) | Self::Dkg(_) => "KEY_GENERATION",
            Self::NotApproved(_) => "REPAIR_NOT_APPROVED",
            Self::RepairEpoch { .. } => "REPAIR_EPOCH",
            Self::Repairing => "REPAIRING",
            Self::Repair(_) | Self::RepairValue(_) => "REPAIR",
            Self::Refresh(_) => "REFRESH",
            Self::RefreshValue(_) => "REFRESH_SHARE",
            Self::Operation(e) => e.reason(),
            Self::Leaf(_) => "LEAF_STATE",
            Self::Vote(_) => "PROOF_INVALID",
            Self::Nonce(_) => "NONCE_UNKNOWN",
            Self::Sign(_) | Self::Package(_) | Self::Secret(_) => "SIGNING_PACKAGE",
            Self::Token(_) => "HSM_UNAVAILABLE",
            Self::Vault(_) | Self::Decode(_) | Self::Stored(_) => "STORE_CORRUPT",
            Self::Federation(_) => "FEDERATION",
        }
    }

    /// The reason of a NO. It names the operator to blame where only this signer can know: of what it was dealt.
    pub fn vote_reason(&self) -> String {
        let culprit = match self {
            Self::RefreshValue(RefreshError::Share { culprit }) => Some(culprit.get()),
            Self::Operation(OperationError::Deal(culprit)) => Some(*culprit),
            _ => None,
        };
        culprit.map_or_else(|| self.reason().to_owned(), |index| format!("{}_{index}", self.reason()))
    }

    /// True where the caller may try the same again later.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Locked
                | Self::SignerSealed
                | Self::Repairing
                | Self::Commit(_)
                | Self::Token(_)
                | Self::Vault(VaultError::Store(_) | VaultError::MustReopen)
        )
    }
}
