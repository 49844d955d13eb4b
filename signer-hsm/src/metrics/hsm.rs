//! What the token is asked, and how long it takes.

use std::time::Instant;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, core::Collector};
use spark_signer::vault::TokenError;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// One call of a token. A call may be several functions of PKCS#11.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum HsmOperation { $($(#[$doc])* $name,)* }

        impl HsmOperation {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The label's text.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whether it asks the keys token, not one with roots.
            const fn asks_keys(self) -> bool {
                matches!(self, Self::SignIdentity | Self::Ecdh | Self::SignFederation)
            }
        }
    };
}

operations! {
    /// A new root.
    CreateRoot = "create_root",
    /// The roots that are there.
    ListRoots = "list_roots",
    /// A sealing key out of a root.
    Derive = "derive",
    /// A root is destroyed.
    DestroyRoot = "destroy_root",
    /// Objects of a token that is made of files are flushed to disk; not a call of the device.
    Sync = "sync",
    /// A signature of the identity key.
    SignIdentity = "sign_identity",
    /// A package is opened with the identity key.
    Ecdh = "ecdh",
    /// A signature of the federation key: votes, receipts, positions.
    SignFederation = "sign_federation",
}

/// Classes of errors, from [`class`].
const CLASSES: [&str; 5] = ["unavailable", "pin", "objects", "answer", "failed"];

const fn class(error: &TokenError) -> &'static str {
    match error {
        TokenError::Unavailable(_) => "unavailable",
        TokenError::PinRefused | TokenError::PinLocked => "pin",
        TokenError::NoObjects
        | TokenError::RootMissing(_)
        | TokenError::RootExists(_)
        | TokenError::Attribute { .. }
        | TokenError::NotDestroyed(_) => "objects",
        TokenError::WrongAnswer(_) => "answer",
        _ => "failed",
    }
}

/// Calls of the token. Clones share everything.
#[derive(Debug, Clone)]
pub struct HsmMetrics {
    seconds: HistogramVec,
    errors: IntCounterVec,
    keys_up: IntGauge,
    keys_stuck: IntGauge,
}

impl HsmMetrics {
    /// With a zero for every combination of labels.
    ///
    /// # Errors
    /// Never, while the names are legal.
    pub fn new() -> Result<Self, prometheus::Error> {
        let this = Self {
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    "spark_signer_hsm_operation_duration_seconds",
                    "Time of calls to the token.",
                )
                .buckets(prometheus::exponential_buckets(0.0001, 2.5, 12)?),
                &["operation"],
            )?,
            errors: IntCounterVec::new(
                Opts::new("spark_signer_hsm_errors_total", "Calls to the token that failed."),
                &["operation", "class"],
            )?,
            keys_up: IntGauge::new(
                "spark_signer_keys_token_up",
                "1 if the keys token answered when it was asked last.",
            )?,
            keys_stuck: IntGauge::new(
                "spark_signer_keys_token_stuck_seconds",
                "For how long no call into the keys token has come back, while all threads for it are lost.",
            )?,
        };
        this.keys_up.set(1);
        for operation in HsmOperation::ALL {
            this.seconds.with_label_values(&[operation.label()]);
            for class in CLASSES {
                this.errors.with_label_values(&[operation.label(), class]);
            }
        }
        Ok(this)
    }

    pub(super) fn collectors(&self) -> [Box<dyn Collector>; 4] {
        [
            Box::new(self.seconds.clone()),
            Box::new(self.errors.clone()),
            Box::new(self.keys_up.clone()),
            Box::new(self.keys_stuck.clone()),
        ]
    }

    /// For how long no thread has been left to ask the keys token.
    pub(crate) fn keys_stuck(&self, stuck: std::time::Duration) {
        self.keys_stuck.set(i64::try_from(stuck.as_secs()).unwrap_or(i64::MAX));
    }

    /// Whether the keys token answered when it was asked last.
    pub fn keys_answer(&self) -> bool {
        self.keys_up.get() == 1
    }

    /// How the keys token answered.
    pub(crate) fn keys_answered(&self, result: Result<(), &TokenError>) {
        let down = matches!(
            result,
            Err(TokenError::Unavailable(_)
                | TokenError::NoObjects
                | TokenError::PinRefused
                | TokenError::PinLocked
                | TokenError::Failed(_))
        );
        self.keys_up.set(i64::from(!down));
    }

    /// Runs one call of the token and counts it.
    pub(crate) fn call<T>(
        &self,
        operation: HsmOperation,
        call: impl FnOnce() -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        let started = Instant::now();
        let result = call();
        if operation.asks_keys() {
            self.keys_answered(result.as_ref().map(drop));
        }
        self.seconds.with_label_values(&[operation.label()]).observe(started.elapsed().as_secs_f64());
        if let Err(error) = &result {
            self.errors.with_label_values(&[operation.label(), class(error)]).inc();
        }
        result
    }
}
