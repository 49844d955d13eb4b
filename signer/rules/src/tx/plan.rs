use std::collections::BTreeMap;

use bitcoin::Transaction;
use bitcoin::secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use super::{Htlc, INITIAL_TIMELOCK, Purpose, Rule, Spend, Template, TemplateError, Timelock};

/// A client's transactions by purpose.
#[derive(Debug, Clone, Default)]
pub struct RawSet<'a>(BTreeMap<Purpose, &'a [u8]>);

impl<'a> RawSet<'a> {
    /// No transactions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the transaction for `purpose`; empty bytes are none. A second one for the same purpose is refused.
    pub fn with(mut self, purpose: Purpose, raw: &'a [u8]) -> Result<Self, TemplateError> {
        if !raw.is_empty() && self.0.insert(purpose, raw).is_some() {
            return Err(TemplateError::new(Rule::Unexpected(purpose), "one", "two"));
        }
        Ok(self)
    }

    /// The transaction for `purpose`.
    pub fn get(&self, purpose: Purpose) -> Option<&'a [u8]> {
        self.0.get(&purpose).copied()
    }
}

/// Where a plan's transactions come from.
#[derive(Debug, Clone)]
pub enum Source<'a> {
    /// Wallets build them.
    Build,
    /// Signers check the client's: the complete set, and nothing else (D5).
    Check(RawSet<'a>),
}

/// One transaction of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// What it must be.
    pub template: Template,
    /// What it is, unsigned.
    pub tx: Transaction,
    /// Release stage: its shares leave only after the final signatures of all lower stages (D3).
    pub stage: u8,
}

impl Planned {
    /// What it is for.
    pub const fn purpose(&self) -> Purpose {
        self.template.purpose()
    }

    /// Output 0, for the transaction that spends it.
    fn spend(&self) -> Result<Spend, TemplateError> {
        Spend::of(&self.tx, 0).ok_or_else(|| TemplateError::new(Rule::Outputs, "at least 1", 0))
    }
}

/// What refunds stand on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    /// Output 0 of the node tx.
    pub node: Spend,
    /// Output 0 of the direct node tx; none on a zero node.
    pub direct_node: Option<Spend>,
}

/// Which transactions a renewal replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RenewalPath {
    /// The node is nearly used up: an untimed split under the parent, and a new node under it.
    Node,
    /// Only the refund is used up: the node goes down one step.
    Refund,
    /// The node has no timelock: a new untimed node under the present one.
    Zero,
}

/// All transactions of one operation on one leaf, parents before children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan(Vec<Planned>);

impl Plan {
    /// Of an operation that signs nothing.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// A deposit: root, refund and direct-from-cpfp refund at 2000 to the owner's leaf key.
    pub fn deposit(
        source: Source<'_>,
        inputs: Vec<Spend>,
        owner_key: &PublicKey,
    ) -> Result<Self, TemplateError> {
        let mut layout = Layout::new(source);
        let root = layout.add(Template::root(inputs)?, 1)?;
        let basis = Basis { node: root, direct_node: None };
        layout.refunds(&basis, owner_key, INITIAL_TIMELOCK)?;
        layout.finish()
    }

    /// The refunds of a transfer or claim, to `destination` at `step`; the direct refund exactly where the
    /// basis has a direct node.
    pub fn refunds(
        source: Source<'_>,
        basis: &Basis,
        destination: &PublicKey,
        step: Timelock,
    ) -> Result<Self, TemplateError> {
        let mut layout = Layout::new(source);
        layout.refunds(basis, destination, step)?;
        layout.finish()
    }

    /// The refunds of a transfer that a preimage completes, at `step`; the same set as [`Plan::refunds`].
    pub fn htlc(
        source: Source<'_>,
        basis: &Basis,
        htlc: &Htlc,
        step: Timelock,
    ) -> Result<Self, TemplateError> {
        let mut layout = Layout::new(source);
        let node = || basis.node.clone();
        layout.add(Template::htlc_refund(Purpose::HtlcRefund, node(), htlc, step)?, 0)?;
        if let Some(direct_node) = basis.direct_node.clone() {
            layout.add(Template::htlc_refund(Purpose::HtlcDirectRefund, direct_node, htlc, step)?, 0)?;
        }
        layout.add(Template::htlc_refund(Purpose::HtlcDirectFromCpfpRefund, node(), htlc, step)?, 0)?;
        layout.finish()
    }

    /// The refunds of a transfer that an exit transaction completes, each with the leaf's `connector`; the same set as
    /// [`Plan::refunds`].
    pub fn exit(
        source: Source<'_>,
        basis: &Basis,
        connector: &Spend,
        destination: &PublicKey,
        step: Timelock,
    ) -> Result<Self, TemplateError> {
        let mut layout = Layout::new(source);
        let refund =
            |purpose, spend| Template::connector_refund(purpose, spend, connector.clone(), destination, step);
        let node = || basis.node.clone();
        layout.add(refund(Purpose::ConnectorRefund, node())?, 0)?;
        if let Some(direct_node) = basis.direct_node.clone() {
            layout.add(refund(Purpose::ConnectorDirectRefund, direct_node)?, 0)?;
        }
        layout.add(refund(Purpose::ConnectorDirectFromCpfpRefund, node())?, 0)?;
        layout.finish()
    }

    /// [`RenewalPath::Node`] under `parent`.
    pub fn renew_node(
        source: Source<'_>,
        parent: Spend,
        verifying_key: &PublicKey,
        owner_key: &PublicKey,
    ) -> Result<Self, TemplateError> {
        let mut layout = Layout::new(source);
        let split = layout.add(Template::split(parent.clone(), verifying_key)?, 2)?;
        layout.add(Template::direct_split(parent, verifying_key)?, 2)?;
        layout.timed_node(split, verifying_key, owner_key, INITIAL_TIMELOCK)?;
        layout.finish()
    }

    /// [`RenewalPath::Refund`] under `parent`, the new node at `step`, one below its predecessor.
    pub fn renew_refund(
        source: Source<'_>,
        parent: Spend,
        verifying_key: &PublicKey,
        owner_key: &PublicKey,
        step: Timelock,
    ) -> Result<Self, TemplateError> {
        let mut layout = Layout::new(source);
        layout.timed_node(parent, verifying_key, owner_key, step)?;
        layout.finish()
    }

    /// [`RenewalPath::Zero`] under the leaf's own `node`.
    pub fn renew_zero(
        source: Source<'_>,
        node: Spend,
        verifying_key: &PublicKey,
        owner_key: &PublicKey,
    ) -> Result<Self, TemplateError> {
        let mut layout = Layout::new(source);
        let new = layout.add(Template::node(node.clone(), verifying_key, Timelock::ZERO)?, 1)?;
        layout.add(Template::direct_node(node, verifying_key, Timelock::ZERO)?, 1)?;
        let basis = Basis { node: new, direct_node: None };
        layout.refunds(&basis, owner_key, INITIAL_TIMELOCK)?;
        layout.finish()
    }

    /// All transactions.
    pub fn transactions(&self) -> &[Planned] {
        &self.0
    }

    /// The transaction for `purpose`.
    pub fn get(&self, purpose: Purpose) -> Option<&Planned> {
        self.0.iter().find(|planned| planned.purpose() == purpose)
    }

    /// The transaction for `purpose`, to attach signatures.
    pub fn get_mut(&mut self, purpose: Purpose) -> Option<&mut Planned> {
        self.0.iter_mut().find(|planned| planned.purpose() == purpose)
    }

    /// The transactions of one release stage.
    pub fn stage(&self, stage: u8) -> impl Iterator<Item = &Planned> {
        self.0.iter().filter(move |planned| planned.stage == stage)
    }

    /// Number of release stages; they count from 0.
    pub fn stages(&self) -> u8 {
        self.0.iter().map(|planned| planned.stage).max().map_or(0, |last| last.saturating_add(1))
    }
}

impl IntoIterator for Plan {
    type Item = Planned;
    type IntoIter = std::vec::IntoIter<Planned>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

struct Layout<'a> {
    source: Source<'a>,
    planned: Vec<Planned>,
}

impl<'a> Layout<'a> {
    const fn new(source: Source<'a>) -> Self {
        Self { source, planned: Vec::new() }
    }

    /// Adds one transaction and returns its output 0.
    fn add(&mut self, template: Template, stage: u8) -> Result<Spend, TemplateError> {
        let purpose = template.purpose();
        let tx = match &mut self.source {
            Source::Build => template.build(),
            Source::Check(raws) => {
                let raw = raws
                    .0
                    .remove(&purpose)
                    .ok_or_else(|| TemplateError::new(Rule::Missing(purpose), "one", "none"))?;
                template.check(raw)?
            }
        };
        let planned = Planned { template, tx, stage };
        let spend = planned.spend()?;
        self.planned.push(planned);
        Ok(spend)
    }

    fn refunds(
        &mut self,
        basis: &Basis,
        destination: &PublicKey,
        step: Timelock,
    ) -> Result<(), TemplateError> {
        self.add(Template::refund(basis.node.clone(), destination, step)?, 0)?;
        if let Some(direct_node) = &basis.direct_node {
            self.add(Template::direct_refund(direct_node.clone(), destination, step)?, 0)?;
        }
        self.add(Template::direct_from_cpfp_refund(basis.node.clone(), destination, step)?, 0)?;
        Ok(())
    }

    fn timed_node(
        &mut self,
        parent: Spend,
        verifying_key: &PublicKey,
        owner_key: &PublicKey,
        step: Timelock,
    ) -> Result<(), TemplateError> {
        let node = self.add(Template::node(parent.clone(), verifying_key, step)?, 1)?;
        let direct_node = self.add(Template::direct_node(parent, verifying_key, step)?, 1)?;
        self.refunds(&Basis { node, direct_node: Some(direct_node) }, owner_key, INITIAL_TIMELOCK)
    }

    fn finish(self) -> Result<Plan, TemplateError> {
        if let Source::Check(raws) = self.source
            && let Some(purpose) = raws.0.keys().next()
        {
            return Err(TemplateError::new(Rule::Unexpected(*purpose), "none", "one"));
        }
        Ok(Plan(self.planned))
    }
}
