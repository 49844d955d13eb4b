use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode;
use bitcoin::secp256k1::PublicKey;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use serde::{Deserialize, Serialize};

use super::{
    DIRECT_HTLC_OFFSET, DIRECT_OFFSET, HTLC_OFFSET, Htlc, MAX_ROOT_INPUTS, Maturity, Rule, SequenceField,
    Spend, TemplateError, Timelock, anchor, maybe_fee, p2tr_script,
};

/// Most bytes of a client's transaction; the largest template has fewer than 600.
const MAX_RAW: usize = 4096;

/// How a transaction pays for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Whole value and an anchor: a child pays.
    Cpfp,
    /// Fee taken from the value, 50 blocks later.
    Direct,
}

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Collects the deposit into a tree.
    Root,
    /// Moves a leaf on chain after its timelock.
    Node,
    /// Node that pays its own fee.
    DirectNode,
    /// Untimed node of a renewal, between the parent and the new node.
    Split,
    /// Split that pays its own fee.
    DirectSplit,
    /// Pays the owner out of the node.
    Refund,
    /// Pays the owner out of the direct node.
    DirectRefund,
    /// Pays the owner out of the node, with its own fee.
    DirectFromCpfpRefund,
    /// Pays the owner of a static deposit address back ([`super::StaticRefund`]).
    StaticRefund,
    /// [`Purpose::Refund`] to an output that a preimage opens.
    HtlcRefund,
    /// [`Purpose::DirectRefund`] to an output that a preimage opens.
    HtlcDirectRefund,
    /// [`Purpose::DirectFromCpfpRefund`] to an output that a preimage opens.
    HtlcDirectFromCpfpRefund,
    /// [`Purpose::Refund`] that only counts with a connector of an exit transaction.
    ConnectorRefund,
    /// [`Purpose::DirectRefund`] with a connector.
    ConnectorDirectRefund,
    /// [`Purpose::DirectFromCpfpRefund`] with a connector.
    ConnectorDirectFromCpfpRefund,
}

impl Purpose {
    /// Stable name, the first part of rule tags.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Node => "node",
            Self::DirectNode => "direct-node",
            Self::Split => "split",
            Self::DirectSplit => "direct-split",
            Self::Refund => "refund",
            Self::DirectRefund => "direct-refund",
            Self::DirectFromCpfpRefund => "direct-from-cpfp-refund",
            Self::StaticRefund => "static-refund",
            Self::HtlcRefund => "htlc-refund",
            Self::HtlcDirectRefund => "htlc-direct-refund",
            Self::HtlcDirectFromCpfpRefund => "htlc-direct-from-cpfp-refund",
            Self::ConnectorRefund => "connector-refund",
            Self::ConnectorDirectRefund => "connector-direct-refund",
            Self::ConnectorDirectFromCpfpRefund => "connector-direct-from-cpfp",
        }
    }

    /// Anchor or fee.
    pub const fn variant(self) -> Variant {
        match self {
            Self::Root
            | Self::Node
            | Self::Split
            | Self::Refund
            | Self::HtlcRefund
            | Self::ConnectorRefund => Variant::Cpfp,
            Self::DirectNode
            | Self::DirectSplit
            | Self::DirectRefund
            | Self::DirectFromCpfpRefund
            | Self::StaticRefund
            | Self::HtlcDirectRefund
            | Self::HtlcDirectFromCpfpRefund
            | Self::ConnectorDirectRefund
            | Self::ConnectorDirectFromCpfpRefund => Variant::Direct,
        }
    }

    /// Blocks of its timelock above the step.
    pub const fn offset(self) -> u16 {
        match (self.is_htlc(), self.variant()) {
            (false, Variant::Cpfp) => 0,
            (false, Variant::Direct) => DIRECT_OFFSET,
            (true, Variant::Cpfp) => HTLC_OFFSET,
            (true, Variant::Direct) => DIRECT_HTLC_OFFSET,
        }
    }

    /// Pays to an output that a preimage opens.
    pub const fn is_htlc(self) -> bool {
        matches!(self, Self::HtlcRefund | Self::HtlcDirectRefund | Self::HtlcDirectFromCpfpRefund)
    }

    /// Has a connector of an exit transaction as its last input.
    pub const fn has_connector(self) -> bool {
        matches!(
            self,
            Self::ConnectorRefund | Self::ConnectorDirectRefund | Self::ConnectorDirectFromCpfpRefund
        )
    }

    /// Pays out of the tree.
    pub const fn is_refund(self) -> bool {
        self.is_htlc()
            || self.has_connector()
            || matches!(self, Self::Refund | Self::DirectRefund | Self::DirectFromCpfpRefund)
    }
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.tag())
    }
}

/// One transaction to the last byte, but for its signatures and the client's marker bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    purpose: Purpose,
    inputs: Vec<Spend>,
    /// The last input, which is not the operators' to sign.
    connector: Option<Spend>,
    step: Timelock,
    output: TxOut,
    sequence: SequenceField,
}

impl Template {
    /// The root: 1 to 11 outputs of one address, in the client's order, into one output of the same script.
    pub fn root(inputs: Vec<Spend>) -> Result<Self, TemplateError> {
        let refuse =
            |expected: &str, got: String| TemplateError::new(Rule::Parameters(Purpose::Root), expected, got);
        let Some(first) = inputs.first() else {
            return Err(refuse("1 to 11 inputs", "0".into()));
        };
        if inputs.len() > MAX_ROOT_INPUTS {
            return Err(refuse("1 to 11 inputs", inputs.len().to_string()));
        }
        let script = first.txout.script_pubkey.clone();
        let mut sum = Amount::ZERO;
        for (i, input) in inputs.iter().enumerate() {
            if input.txout.script_pubkey != script {
                return Err(refuse("outputs of one address", format!("another one at input {i}")));
            }
            if inputs.iter().take(i).any(|earlier| earlier.outpoint == input.outpoint) {
                return Err(refuse("each output once", input.outpoint.to_string()));
            }
            sum = sum
                .checked_add(input.txout.value)
                .filter(|sum| *sum <= Amount::MAX_MONEY)
                .ok_or_else(|| refuse("at most 21 million bitcoin", format!("more at input {i}")))?;
        }
        if sum == Amount::ZERO {
            return Err(refuse("a value", "0".into()));
        }
        Self::assemble(Purpose::Root, inputs, Timelock::ZERO, script)
    }

    /// A node under `parent`, to the leaf's verifying key, at `step`.
    pub fn node(parent: Spend, verifying_key: &PublicKey, step: Timelock) -> Result<Self, TemplateError> {
        Self::single(Purpose::Node, parent, verifying_key, step)
    }

    /// The direct twin of [`Template::node`], at `step` + 50.
    pub fn direct_node(
        parent: Spend,
        verifying_key: &PublicKey,
        step: Timelock,
    ) -> Result<Self, TemplateError> {
        Self::single(Purpose::DirectNode, parent, verifying_key, step)
    }

    /// The untimed node that a renewal puts under `parent`.
    pub fn split(parent: Spend, verifying_key: &PublicKey) -> Result<Self, TemplateError> {
        Self::single(Purpose::Split, parent, verifying_key, Timelock::ZERO)
    }

    /// The direct twin of [`Template::split`], at 50 blocks.
    pub fn direct_split(parent: Spend, verifying_key: &PublicKey) -> Result<Self, TemplateError> {
        Self::single(Purpose::DirectSplit, parent, verifying_key, Timelock::ZERO)
    }

    /// The refund of `node` to `destination` at `step`.
    pub fn refund(node: Spend, destination: &PublicKey, step: Timelock) -> Result<Self, TemplateError> {
        Self::single(Purpose::Refund, node, destination, step)
    }

    /// The refund of `direct_node` to `destination` at `step` + 50.
    pub fn direct_refund(
        direct_node: Spend,
        destination: &PublicKey,
        step: Timelock,
    ) -> Result<Self, TemplateError> {
        Self::single(Purpose::DirectRefund, direct_node, destination, step)
    }

    /// The refund of `node` with its own fee to `destination` at `step` + 50.
    pub fn direct_from_cpfp_refund(
        node: Spend,
        destination: &PublicKey,
        step: Timelock,
    ) -> Result<Self, TemplateError> {
        Self::single(Purpose::DirectFromCpfpRefund, node, destination, step)
    }

    /// A refund to the output of an HTLC, which `purpose` must be for: `spend` is the node's or direct node's output,
    /// the timelock `step` + 70, or + 85 where it pays its own fee.
    pub fn htlc_refund(
        purpose: Purpose,
        spend: Spend,
        htlc: &Htlc,
        step: Timelock,
    ) -> Result<Self, TemplateError> {
        if !purpose.is_htlc() {
            return Err(TemplateError::new(Rule::Parameters(purpose), "an HTLC refund", purpose));
        }
        let script = htlc
            .script_pubkey()
            .map_err(|error| TemplateError::new(Rule::Parameters(purpose), "an HTLC output", error))?;
        Self::assemble(purpose, vec![spend], step, script)
    }

    /// A refund to `destination` that is valid only with `connector`, which comes as its second input: its value adds
    /// nothing, and whoever holds it signs it. `spend` and the timelock are those of the plain refund.
    pub fn connector_refund(
        purpose: Purpose,
        spend: Spend,
        connector: Spend,
        destination: &PublicKey,
        step: Timelock,
    ) -> Result<Self, TemplateError> {
        let refuse = |expected: &str| TemplateError::new(Rule::Parameters(purpose), expected, purpose);
        if !purpose.has_connector() {
            return Err(refuse("a refund with a connector"));
        }
        if connector.outpoint == spend.outpoint {
            return Err(refuse("two different inputs"));
        }
        let this = Self::single(purpose, spend, destination, step)?;
        Ok(Self { connector: Some(connector), ..this })
    }

    fn single(
        purpose: Purpose,
        input: Spend,
        key: &PublicKey,
        step: Timelock,
    ) -> Result<Self, TemplateError> {
        Self::assemble(purpose, vec![input], step, p2tr_script(key))
    }

    fn assemble(
        purpose: Purpose,
        inputs: Vec<Spend>,
        step: Timelock,
        script_pubkey: ScriptBuf,
    ) -> Result<Self, TemplateError> {
        let refuse = |error: super::TimelockError| {
            TemplateError::new(Rule::Parameters(purpose), "a step of the ladder", error)
        };
        if !step.is_step() {
            return Err(TemplateError::new(Rule::Parameters(purpose), "a multiple of 100", step));
        }
        let timelock = step.later(purpose.offset()).map_err(refuse)?;
        let sum: Amount = inputs.iter().map(|i| i.txout.value).sum();
        let value = match purpose.variant() {
            Variant::Cpfp => sum,
            Variant::Direct => maybe_fee(sum),
        };
        let sequence = SequenceField { timelock, marker: false };
        let output = TxOut { value, script_pubkey };
        Ok(Self { purpose, inputs, connector: None, step, output, sequence })
    }

    /// The same transaction with the client's marker bit.
    #[must_use]
    pub const fn with_marker(mut self, marker: bool) -> Self {
        self.sequence.marker = marker;
        self
    }

    /// What it is for.
    pub const fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The outputs that it spends and owner and operators sign for, in order of its inputs.
    pub fn inputs(&self) -> &[Spend] {
        &self.inputs
    }

    /// The spent outputs of all inputs, as sighashes take them.
    pub fn prevouts(&self) -> Vec<TxOut> {
        self.inputs.iter().chain(&self.connector).map(|input| input.txout.clone()).collect()
    }

    /// Timelock of its inputs.
    pub const fn timelock(&self) -> Timelock {
        self.sequence.timelock
    }

    /// Timelock without the offset of the purpose.
    pub const fn step(&self) -> Timelock {
        self.step
    }

    /// The ledger's keys: at most one transaction per key ever gets a released share (D6).
    pub fn maturities(&self) -> Vec<Maturity> {
        let (step, variant) = (self.step, self.purpose.variant());
        self.inputs.iter().map(|input| Maturity { outpoint: input.outpoint, step, variant }).collect()
    }

    /// The unsigned transaction.
    pub fn build(&self) -> Transaction {
        let sequence = self.sequence.encode();
        let connector = self.connector.iter().map(|spend| unsigned(spend, Sequence::MAX));
        let input = self.inputs.iter().map(|spend| unsigned(spend, sequence)).chain(connector).collect();
        let mut output = vec![self.output.clone()];
        if self.purpose.variant() == Variant::Cpfp {
            output.push(anchor());
        }
        Transaction { version: Version(3), lock_time: LockTime::ZERO, input, output }
    }

    /// Rebuilds the client's transaction `raw` and requires equality to the byte; only the marker bit is the
    /// client's to choose. Returns what was rebuilt.
    pub fn check(&self, raw: &[u8]) -> Result<Transaction, TemplateError> {
        let theirs = decode(raw)?;
        let field = first_sequence(&theirs)?;
        let ours = self.clone().with_marker(field.marker).build();
        self.compare(&ours, &theirs)?;
        let bytes = encode::serialize(&ours);
        if bytes != raw {
            return Err(TemplateError::new(Rule::Bytes, hex::encode(bytes), hex::encode(raw)));
        }
        Ok(ours)
    }

    /// Names the first difference; the equality of bytes is the check that counts.
    fn compare(&self, ours: &Transaction, theirs: &Transaction) -> Result<(), TemplateError> {
        same(Rule::Version, &ours.version.0, &theirs.version.0)?;
        same(Rule::Locktime, &ours.lock_time.to_consensus_u32(), &theirs.lock_time.to_consensus_u32())?;
        same(Rule::Inputs, &ours.input.len(), &theirs.input.len())?;
        for (i, (a, b)) in ours.input.iter().zip(&theirs.input).enumerate() {
            same(Rule::Outpoint, &a.previous_output, &b.previous_output)?;
            if !b.script_sig.is_empty() || !b.witness.is_empty() {
                return Err(TemplateError::new(Rule::Unsigned, "no script and no witness", "some"));
            }
            if i < self.inputs.len() {
                let theirs = SequenceField::parse(b.sequence)
                    .map_err(|e| TemplateError::new(Rule::Sequence, self.sequence.timelock, e))?;
                same(Rule::Timelock(self.purpose), &self.sequence.timelock, &theirs.timelock)?;
            }
            same(Rule::Sequence, &a.sequence, &b.sequence)?;
        }
        same(Rule::Outputs, &ours.output.len(), &theirs.output.len())?;
        for (i, (a, b)) in ours.output.iter().zip(&theirs.output).enumerate() {
            if i == 0 {
                same(Rule::Value(self.purpose), &a.value, &b.value)?;
                same(Rule::Destination(self.purpose), &a.script_pubkey, &b.script_pubkey)?;
            } else if a != b {
                return Err(TemplateError::new(Rule::Anchor, "0 sat to 51024e73", format!("{b:?}")));
            }
        }
        Ok(())
    }

    /// Which connector a client's refund has: its second and last input.
    pub(crate) fn peek_connector(raw: &[u8]) -> Result<OutPoint, TemplateError> {
        match decode(raw)?.input.as_slice() {
            [_, connector] => Ok(connector.previous_output),
            inputs => Err(TemplateError::new(Rule::Inputs, 2, inputs.len())),
        }
    }

    /// Blocks of a client's transaction, before its template is known. Only the sequence of input 0 is read.
    pub fn peek_timelock(raw: &[u8]) -> Result<Timelock, TemplateError> {
        Ok(first_sequence(&decode(raw)?)?.timelock)
    }
}

fn unsigned(spend: &Spend, sequence: Sequence) -> TxIn {
    TxIn { previous_output: spend.outpoint, script_sig: ScriptBuf::new(), sequence, witness: Witness::new() }
}

pub(super) fn decode(raw: &[u8]) -> Result<Transaction, TemplateError> {
    if raw.len() > MAX_RAW {
        return Err(TemplateError::new(Rule::Encoding, "at most 4096 bytes", raw.len()));
    }
    encode::deserialize(raw).map_err(|e| TemplateError::new(Rule::Encoding, "a transaction", e))
}

fn first_sequence(tx: &Transaction) -> Result<SequenceField, TemplateError> {
    let first = tx.input.first().ok_or_else(|| TemplateError::new(Rule::Inputs, "at least 1", 0))?;
    SequenceField::parse(first.sequence).map_err(|e| TemplateError::new(Rule::Sequence, "blocks", e))
}

pub(super) fn same<T: PartialEq + std::fmt::Display>(
    rule: Rule,
    expected: &T,
    got: &T,
) -> Result<(), TemplateError> {
    if expected == got { Ok(()) } else { Err(TemplateError::new(rule, expected, got)) }
}
