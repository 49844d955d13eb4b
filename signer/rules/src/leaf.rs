//! The public record of a leaf: its keys, its place in the tree, and the ladder of its timelocks.

mod status;
mod storage;

pub use status::{LeafStatus, StatusError};

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, Transaction, TxOut};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::address::Network;
use crate::ids::{KeyshareId, LeafId};
use crate::tx::{
    Basis, Connectors, Htlc, INITIAL_TIMELOCK, LEAST_REFUND_STEP, Plan, Planned, Purpose, RawSet,
    RenewalPath, Rule, SequenceField, Source, Spend, Template, TemplateError, Timelock, p2tr_script,
};

/// Highest timelock at which a renewal is accepted.
const RENEWABLE: u16 = 300;

/// A record that contradicts itself, or an operation that the leaf does not admit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// P ≠ S + D.
    #[error("verifying key is not the sum of the operators' and the owner's keys")]
    KeySum,
    /// The node tx does not hold the leaf's value under its verifying key.
    #[error("output 0 of the {0} does not belong to the leaf")]
    Output(&'static str),
    /// The transaction's sequence is not the recorded timelock.
    #[error("timelock of the {0} is not the recorded one")]
    Timelock(&'static str),
    /// A spent output is missing, or there is no input.
    #[error("the {0} and the outputs it spends do not match")]
    Prevouts(&'static str),
    /// A direct node tx is missing under a timed node.
    #[error("a timed node needs a direct node tx")]
    NoDirectNode,
    /// The timelock does not need a renewal yet, or the path is another one.
    #[error("renewal path does not fit: refund at {refund}, node at {node}")]
    Renewal {
        /// Refund timelock.
        refund: Timelock,
        /// Node timelock.
        node: Timelock,
    },
    /// The ladder is used up: the leaf must be renewed first.
    #[error("refund timelock {0} has no lower step; renew the leaf")]
    Exhausted(Timelock),
    /// A transaction breaks its template.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// The refunds of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refunds {
    /// Spends the node tx.
    #[serde(with = "storage::tx")]
    pub cpfp: Transaction,
    /// Spends the direct node tx.
    #[serde(with = "storage::optional_tx", default)]
    pub direct: Option<Transaction>,
    /// Spends the node tx and pays its own fee.
    #[serde(with = "storage::tx")]
    pub direct_from_cpfp: Transaction,
}

/// What every operator and signer knows of a leaf. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRecord {
    /// The leaf.
    #[serde(with = "storage::leaf_id")]
    pub leaf_id: LeafId,
    /// Its tree.
    pub tree_id: Uuid,
    /// The node above it; none for a root.
    #[serde(with = "storage::optional_leaf_id", default)]
    pub parent_id: Option<LeafId>,
    /// Satoshis of output 0 of the node tx.
    pub value: u64,
    /// The operators' key.
    #[serde(with = "storage::keyshare_id")]
    pub keyshare_id: KeyshareId,
    /// Number of tweaks applied to it.
    pub version: u64,
    /// S, the operators' group key at this version.
    pub group_key: PublicKey,
    /// Public shares at this version, by operator index.
    pub public_shares: Vec<PublicKey>,
    /// Who owns the leaf.
    pub owner_identity: PublicKey,
    /// D, the owner's leaf key.
    pub owner_key: PublicKey,
    /// P = S + D, the same for the life of the leaf.
    pub verifying_key: PublicKey,
    /// Where the money is.
    pub network: Network,
    /// The node tx, signed or not.
    #[serde(with = "storage::tx")]
    pub node_tx: Transaction,
    /// Outputs that the node tx spends, in order.
    pub node_prevouts: Vec<TxOut>,
    /// The node tx's direct twin. A zero node may have one, but nothing of the leaf spends it.
    #[serde(with = "storage::optional_tx", default)]
    pub direct_node_tx: Option<Transaction>,
    /// The owner's refunds, signed or not.
    pub refunds: Refunds,
    /// Timelock of the cpfp refund: a step, or above one by the offset of an HTLC refund (in flight) or of a client.
    pub refund_timelock: Timelock,
    /// Step of the node tx.
    pub node_timelock: Timelock,
    /// Hash of the last proof of commit for this leaf; zeros before the first.
    pub last_proof: [u8; 32],
    /// State as wallets see it.
    pub status: LeafStatus,
}

impl LeafRecord {
    /// The record, if it does not contradict itself.
    pub fn checked(self) -> Result<Self, LeafError> {
        self.check()?;
        Ok(self)
    }

    /// Keys add up, and outputs, sequences and twins are those of the recorded values.
    pub fn check(&self) -> Result<(), LeafError> {
        if self.group_key.combine(&self.owner_key) != Ok(self.verifying_key) {
            return Err(LeafError::KeySum);
        }
        let script = p2tr_script(&self.verifying_key);
        let node = self.node_spend()?;
        if node.txout.script_pubkey != script || node.txout.value != Amount::from_sat(self.value) {
            return Err(LeafError::Output("node tx"));
        }
        if self.node_prevouts.is_empty() || self.node_prevouts.len() != self.node_tx.input.len() {
            return Err(LeafError::Prevouts("node tx"));
        }
        check_timelock("node tx", &self.node_tx, self.node_timelock)?;
        check_timelock("refund tx", &self.refunds.cpfp, self.refund_timelock)?;
        match &self.direct_node_tx {
            Some(direct) => {
                let twin = Spend::of(direct, 0).ok_or(LeafError::Output("direct node tx"))?;
                if twin.txout.script_pubkey != script {
                    return Err(LeafError::Output("direct node tx"));
                }
                let timelock =
                    self.node_timelock.direct().map_err(|_| LeafError::Timelock("direct node tx"))?;
                check_timelock("direct node tx", direct, timelock)
            }
            None if self.is_zero_node() => Ok(()),
            None => Err(LeafError::NoDirectNode),
        }
    }

    /// Output 0 of the node tx.
    pub fn node_spend(&self) -> Result<Spend, LeafError> {
        Spend::of(&self.node_tx, 0).ok_or(LeafError::Output("node tx"))
    }

    /// Output 0 of the direct node tx, where a direct refund spends it: none on a zero node, even if it has a
    /// direct node tx.
    pub fn direct_node_spend(&self) -> Result<Option<Spend>, LeafError> {
        match (&self.direct_node_tx, self.is_zero_node()) {
            (_, true) => Ok(None),
            (Some(direct), false) => {
                Spend::of(direct, 0).map(Some).ok_or(LeafError::Output("direct node tx"))
            }
            (None, false) => Err(LeafError::NoDirectNode),
        }
    }

    /// What the node tx spends first: the parent's output, or the deposit's.
    pub fn parent_spend(&self) -> Result<Spend, LeafError> {
        match (self.node_tx.input.first(), self.node_prevouts.first()) {
            (Some(input), Some(txout)) => Ok(Spend { outpoint: input.previous_output, txout: txout.clone() }),
            _ => Err(LeafError::Prevouts("node tx")),
        }
    }

    /// Still what a deposit made: no send was committed (it would have lowered the timelock) and no renewal (it
    /// would have put a node above the leaf).
    pub fn is_fresh_deposit(&self) -> bool {
        self.parent_id.is_none() && self.refund_timelock == INITIAL_TIMELOCK
    }

    /// The node tx may be broadcast at once.
    pub const fn is_zero_node(&self) -> bool {
        self.node_timelock.is_zero()
    }

    /// What the leaf's refunds spend.
    pub fn basis(&self) -> Result<Basis, LeafError> {
        Ok(Basis { node: self.node_spend()?, direct_node: self.direct_node_spend()? })
    }

    /// The step that a send uses: one below the present one, at least 100.
    pub fn next_refund_timelock(&self) -> Result<Timelock, LeafError> {
        self.refund_timelock
            .step_down()
            .ok()
            .filter(|step| *step >= LEAST_REFUND_STEP)
            .ok_or(LeafError::Exhausted(self.refund_timelock))
    }

    /// The step that a claim uses: the present one, rounded down to a multiple of 100 (D23).
    pub fn claim_timelock(&self) -> Result<Timelock, LeafError> {
        let step = self.refund_timelock.round_down();
        if step < LEAST_REFUND_STEP { Err(LeafError::Exhausted(self.refund_timelock)) } else { Ok(step) }
    }

    /// The step of a client's send refund: any lower multiple of 100, at least 100 (D6).
    pub fn send_step(&self, raw_refund: &[u8]) -> Result<Timelock, TemplateError> {
        self.lower_step(raw_refund, Purpose::Refund)
    }

    fn lower_step(&self, raw: &[u8], purpose: Purpose) -> Result<Timelock, TemplateError> {
        let timelock = Template::peek_timelock(raw)?;
        timelock
            .without(purpose.offset())
            .filter(|step| step.is_step() && *step >= LEAST_REFUND_STEP && *step < self.refund_timelock)
            .ok_or_else(|| {
                let expected = format!(
                    "a multiple of 100 from 100 to below {}, plus {}",
                    self.refund_timelock,
                    purpose.offset()
                );
                TemplateError::new(Rule::Step, expected, timelock)
            })
    }

    /// The transactions of a send that a preimage completes, at [`LeafRecord::next_refund_timelock`], for the wallet.
    pub fn build_htlc(&self, htlc: &Htlc) -> Result<Plan, LeafError> {
        let step = self.next_refund_timelock()?;
        Ok(Plan::htlc(Source::Build, &self.basis()?, htlc, step)?)
    }

    /// Checks a client's send that a preimage completes: its refunds pay to the HTLC at a lower step.
    pub fn check_htlc(&self, raws: RawSet<'_>, htlc: &Htlc) -> Result<Plan, LeafError> {
        let purpose = Purpose::HtlcRefund;
        let refund =
            raws.get(purpose).ok_or_else(|| TemplateError::new(Rule::Missing(purpose), "one", "none"))?;
        let step = self.lower_step(refund, purpose)?;
        Ok(Plan::htlc(Source::Check(raws), &self.basis()?, htlc, step)?)
    }

    /// The transactions of a send that an exit transaction completes, at [`LeafRecord::next_refund_timelock`], for the
    /// wallet.
    pub fn build_exit(&self, connector: &Spend, receiver_identity: &PublicKey) -> Result<Plan, LeafError> {
        let step = self.next_refund_timelock()?;
        Ok(Plan::exit(Source::Build, &self.basis()?, connector, receiver_identity, step)?)
    }

    /// Checks a client's send that an exit transaction completes: its refunds pay the receiver's identity key at a
    /// lower step, and all have one of `connectors`, which is returned.
    pub fn check_exit(
        &self,
        raws: RawSet<'_>,
        connectors: &Connectors,
        receiver_identity: &PublicKey,
    ) -> Result<(Plan, OutPoint), LeafError> {
        let purpose = Purpose::ConnectorRefund;
        let refund =
            raws.get(purpose).ok_or_else(|| TemplateError::new(Rule::Missing(purpose), "one", "none"))?;
        let step = self.lower_step(refund, purpose)?;
        let connector = connectors.find(&Template::peek_connector(refund)?)?;
        let plan = Plan::exit(Source::Check(raws), &self.basis()?, connector, receiver_identity, step)?;
        Ok((plan, connector.outpoint))
    }

    /// The transactions of a send at [`LeafRecord::next_refund_timelock`], for the wallet.
    pub fn build_send(&self, receiver_identity: &PublicKey) -> Result<Plan, LeafError> {
        let step = self.next_refund_timelock()?;
        Ok(Plan::refunds(Source::Build, &self.basis()?, receiver_identity, step)?)
    }

    /// Checks a client's send: its refunds pay the receiver's identity key at a lower step.
    pub fn check_send(&self, raws: RawSet<'_>, receiver_identity: &PublicKey) -> Result<Plan, LeafError> {
        let refund = raws
            .get(Purpose::Refund)
            .ok_or_else(|| TemplateError::new(Rule::Missing(Purpose::Refund), "one", "none"))?;
        let step = self.send_step(refund)?;
        Ok(Plan::refunds(Source::Check(raws), &self.basis()?, receiver_identity, step)?)
    }

    /// The transactions of a claim: refunds at the present step to the receiver's new leaf key.
    pub fn claim(&self, source: Source<'_>, new_owner_key: &PublicKey) -> Result<Plan, LeafError> {
        Ok(Plan::refunds(source, &self.basis()?, new_owner_key, self.claim_timelock()?)?)
    }

    /// The renewal path that fits the leaf now.
    pub fn renewal_path(&self) -> RenewalPath {
        if self.is_zero_node() {
            RenewalPath::Zero
        } else if self.node_timelock.blocks() < 200 {
            RenewalPath::Node
        } else {
            RenewalPath::Refund
        }
    }

    /// The transactions of a renewal. Refused while the refund's timelock exceeds 300, or where the node's does
    /// not fit the path: none for zero, at most 300 for node, at least 200 for refund.
    pub fn renew(&self, source: Source<'_>, path: RenewalPath) -> Result<Plan, LeafError> {
        let (refund, node) = (self.refund_timelock, self.node_timelock);
        let refuse = LeafError::Renewal { refund, node };
        if refund.blocks() > RENEWABLE {
            return Err(refuse);
        }
        let (p, d) = (&self.verifying_key, &self.owner_key);
        let plan = match path {
            RenewalPath::Zero if self.is_zero_node() => Plan::renew_zero(source, self.node_spend()?, p, d),
            RenewalPath::Node if !self.is_zero_node() && node.blocks() <= RENEWABLE => {
                Plan::renew_node(source, self.parent_spend()?, p, d)
            }
            RenewalPath::Refund => {
                let step = node.step_down().ok().filter(|step| *step >= LEAST_REFUND_STEP).ok_or(refuse)?;
                Plan::renew_refund(source, self.parent_spend()?, p, d, step)
            }
            _ => return Err(refuse),
        };
        Ok(plan?)
    }

    /// The id of the node that a renewal puts between parent and leaf; `txid` is the leaf's new parent tx.
    pub fn split_node_id(&self, parent: &Transaction) -> LeafId {
        let txid = parent.compute_txid();
        LeafId::derive("spark/split-node", &[self.leaf_id.as_bytes(), AsRef::<[u8]>::as_ref(&txid)])
    }

    /// The record with the refunds of a send or claim plan; keys and version are the caller's to set.
    pub fn with_refunds(mut self, plan: &Plan) -> Result<Self, LeafError> {
        let (refunds, step) = refunds_of(plan)?;
        self.refunds = refunds;
        self.refund_timelock = step;
        Ok(self)
    }

    /// The record of a deposit with its transactions signed.
    pub fn with_deposit(mut self, plan: &Plan) -> Result<Self, LeafError> {
        self.node_tx = planned(plan, Purpose::Root)?.tx.clone();
        self.with_refunds(plan)
    }

    /// The inner node that a renewal puts above the leaf: the split node, or the former zero node. It shares the
    /// leaf's keys; its own refunds are those that the renewal undercuts.
    pub fn inner_node(&self, plan: &Plan) -> Option<Self> {
        let mut inner = self.clone();
        inner.status = LeafStatus::Splitted;
        match plan.get(Purpose::Split) {
            Some(split) => {
                inner.node_prevouts = split.template.prevouts();
                inner.node_tx = split.tx.clone();
                inner.direct_node_tx = plan.get(Purpose::DirectSplit).map(|direct| direct.tx.clone());
                inner.node_timelock = Timelock::ZERO;
            }
            None => {
                let node = plan.get(Purpose::Node)?;
                if !node.template.step().is_zero() {
                    return None;
                }
            }
        }
        inner.leaf_id = self.split_node_id(&inner.node_tx);
        Some(inner)
    }

    /// The record after a renewal. The parent changes for the zero and node paths.
    pub fn with_renewal(mut self, plan: &Plan) -> Result<Self, LeafError> {
        let node = planned(plan, Purpose::Node)?;
        let (refunds, step) = refunds_of(plan)?;
        let new_parent = match plan.get(Purpose::Split) {
            Some(split) => Some(self.split_node_id(&split.tx)),
            None if node.template.step().is_zero() => Some(self.split_node_id(&self.node_tx)),
            None => None,
        };
        self.parent_id = new_parent.or(self.parent_id);
        self.node_prevouts = node.template.prevouts();
        self.node_timelock = node.template.step();
        self.value = node.tx.output.first().map_or(self.value, |output| output.value.to_sat());
        self.node_tx = node.tx.clone();
        self.direct_node_tx = plan.get(Purpose::DirectNode).map(|direct| direct.tx.clone());
        self.refunds = refunds;
        self.refund_timelock = step;
        Ok(self)
    }
}

fn planned(plan: &Plan, purpose: Purpose) -> Result<&Planned, TemplateError> {
    plan.get(purpose).ok_or_else(|| TemplateError::new(Rule::Missing(purpose), "one", "none"))
}

fn refunds_of(plan: &Plan) -> Result<(Refunds, Timelock), TemplateError> {
    let sets = [
        [Purpose::HtlcRefund, Purpose::HtlcDirectRefund, Purpose::HtlcDirectFromCpfpRefund],
        [Purpose::ConnectorRefund, Purpose::ConnectorDirectRefund, Purpose::ConnectorDirectFromCpfpRefund],
    ];
    let conditional = sets.into_iter().find(|[cpfp, ..]| plan.get(*cpfp).is_some());
    let [cpfp, direct, direct_from_cpfp] =
        conditional.unwrap_or([Purpose::Refund, Purpose::DirectRefund, Purpose::DirectFromCpfpRefund]);
    let cpfp = planned(plan, cpfp)?;
    let refunds = Refunds {
        cpfp: cpfp.tx.clone(),
        direct: plan.get(direct).map(|direct| direct.tx.clone()),
        direct_from_cpfp: planned(plan, direct_from_cpfp)?.tx.clone(),
    };
    Ok((refunds, cpfp.template.timelock()))
}

fn check_timelock(name: &'static str, tx: &Transaction, expected: Timelock) -> Result<(), LeafError> {
    let input = tx.input.first().ok_or(LeafError::Prevouts(name))?;
    match SequenceField::parse(input.sequence) {
        Ok(field) if field.timelock == expected => Ok(()),
        _ => Err(LeafError::Timelock(name)),
    }
}

/// A stored record that does not decode.
#[derive(Debug, thiserror::Error)]
#[error("stored record is malformed: {0}")]
pub struct DecodeError(#[from] serde_json::Error);

impl LeafRecord {
    /// For storage: JSON, so that old records stay readable when fields are added.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Inverse of [`LeafRecord::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}
