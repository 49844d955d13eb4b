use std::fmt;

use super::Purpose;

/// A client's transaction that differs from its template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: expected {expected}, got {got}")]
pub struct TemplateError {
    /// What is broken.
    pub rule: Rule,
    /// What the template demands.
    pub expected: String,
    /// What the transaction has.
    pub got: String,
}

impl TemplateError {
    pub(crate) fn new(rule: Rule, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self { rule, expected: expected.to_string(), got: got.to_string() }
    }
}

/// The rules of templates. Tags are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Bytes of one transaction, at most 4096.
    Encoding,
    /// Version 3 (BIP 431).
    Version,
    /// Locktime 0.
    Locktime,
    /// Number of inputs.
    Inputs,
    /// The outputs that are spent, in order.
    Outpoint,
    /// No script and no witness yet.
    Unsigned,
    /// The second input: an output of the connector transaction, but the last, and no other leaf's.
    Connector,
    /// The connector transaction itself.
    ConnectorTx,
    /// Bits of the sequence (BIP 68).
    Sequence,
    /// Blocks of the sequence.
    Timelock(Purpose),
    /// A step of a refund: a multiple of 100, at least 100, below the current one.
    Step,
    /// Number of outputs.
    Outputs,
    /// Value of output 0.
    Value(Purpose),
    /// Script of output 0.
    Destination(Purpose),
    /// The anchor output.
    Anchor,
    /// Equality with the template, byte by byte.
    Bytes,
    /// A transaction that the operation demands is missing.
    Missing(Purpose),
    /// A transaction that the operation has no place for.
    Unexpected(Purpose),
    /// A template that cannot be built: its own parameters are out of range.
    Parameters(Purpose),
}

impl Rule {
    /// `(subject, detail)`, joined by a dot.
    const fn parts(self) -> (&'static str, &'static str) {
        match self {
            Self::Encoding => ("tx", "encoding"),
            Self::Version => ("tx", "version"),
            Self::Locktime => ("tx", "locktime"),
            Self::Inputs => ("tx", "inputs"),
            Self::Outpoint => ("tx", "outpoint"),
            Self::Unsigned => ("tx", "unsigned"),
            Self::Sequence => ("tx", "sequence"),
            Self::Outputs => ("tx", "outputs"),
            Self::Anchor => ("tx", "anchor"),
            Self::Connector => ("connector", "outpoint"),
            Self::ConnectorTx => ("connector", "tx"),
            Self::Bytes => ("tx", "bytes"),
            Self::Step => ("refund", "timelock.step"),
            Self::Timelock(purpose) => (purpose.tag(), "timelock"),
            Self::Value(purpose) => (purpose.tag(), "value"),
            Self::Destination(purpose) => (purpose.tag(), "destination"),
            Self::Missing(purpose) => (purpose.tag(), "missing"),
            Self::Unexpected(purpose) => (purpose.tag(), "unexpected"),
            Self::Parameters(purpose) => (purpose.tag(), "parameters"),
        }
    }

    /// Stable tag, for instance `refund.timelock.step`.
    pub fn tag(self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (subject, detail) = self.parts();
        write!(f, "{subject}.{detail}")
    }
}
