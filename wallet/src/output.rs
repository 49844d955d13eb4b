//! What commands print: one type each, as JSON with `--json`, else as text. Amounts are satoshis, times unix
//! seconds. Fields are only ever added.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use spark_wallet::{
    ErrorClass, WalletError,
    exit::{ExitPlan, ExitStatus},
    flow::{Balance, Direction, Entry, HtlcExitStep, HtlcView, LeafView, Withdrawal},
    receipts::{Finality, LogView, Verification},
};

/// A result that can be shown.
pub(crate) trait Show: Serialize {
    /// For people.
    fn text(&self) -> String;
}

/// `create`, `restore`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Created {
    pub(crate) identity: String,
    pub(crate) address: String,
    /// Of `create` only.
    pub(crate) words: Option<String>,
    pub(crate) leaves: Vec<LeafView>,
    /// Of `restore`: deposit addresses that wait for money.
    pub(crate) deposit_addresses: Vec<String>,
    /// Of `restore`: operators that did not tell theirs.
    pub(crate) problems: Vec<String>,
}

impl Show for Created {
    fn text(&self) -> String {
        let mut out = String::new();
        if let Some(words) = &self.words {
            let _ = writeln!(out, "Write these words down; whoever has them has the money:\n\n{words}\n");
        }
        let _ = write!(out, "identity  {}\naddress   {}", self.identity, self.address);
        if !self.leaves.is_empty() {
            let _ = write!(out, "\nrestored  {} leaves", self.leaves.len());
        }
        for address in &self.deposit_addresses {
            let _ = write!(out, "\ndeposit   {address}");
        }
        for problem in &self.problems {
            let _ = write!(out, "\nproblem   {problem}");
        }
        out
    }
}

/// `address`, `deposit address`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Address {
    pub(crate) address: String,
    /// Of deposits: what the money becomes.
    pub(crate) leaf_id: Option<String>,
    #[serde(skip)]
    pub(crate) qr: Option<String>,
}

impl Show for Address {
    fn text(&self) -> String {
        match &self.qr {
            Some(qr) => format!("{qr}\n{}", self.address),
            None => self.address.clone(),
        }
    }
}

/// `info`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Info {
    pub(crate) network: String,
    pub(crate) identity: String,
    pub(crate) address: String,
    pub(crate) account: u32,
    pub(crate) fee_address: String,
    pub(crate) federation_hash: String,
    pub(crate) threshold: u16,
    pub(crate) coordinator: u16,
    pub(crate) operators: Vec<OperatorInfo>,
}

/// One operator of `info`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OperatorInfo {
    pub(crate) index: u16,
    pub(crate) identity: String,
    pub(crate) endpoint: String,
    pub(crate) reachable: bool,
    pub(crate) error: Option<String>,
}

impl Show for Info {
    fn text(&self) -> String {
        let mut out = format!(
            "network     {}\nidentity    {}\naddress     {}\naccount     {}\nexit fees   {}\nfederation  {} ({} of {})",
            self.network,
            self.identity,
            self.address,
            self.account,
            self.fee_address,
            self.federation_hash,
            self.threshold,
            self.operators.len()
        );
        for o in &self.operators {
            let role = if o.index == self.coordinator { " coordinator" } else { "" };
            let health = o.error.as_deref().unwrap_or("ok");
            let _ = write!(out, "\noperator {}  {}{role}: {health}", o.index, o.endpoint);
        }
        out
    }
}

/// `deposit claim`: one object per leaf.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DepositClaimed {
    pub(crate) leaf_id: String,
    pub(crate) address: String,
    pub(crate) amount_sats: u64,
    pub(crate) status: String,
    pub(crate) warning: Option<String>,
}

impl Show for DepositClaimed {
    fn text(&self) -> String {
        let warning = self.warning.as_ref().map_or_else(String::new, |w| format!("\n  {w}"));
        format!(
            "{} sat from {} are leaf {} ({}){warning}",
            self.amount_sats, self.address, self.leaf_id, self.status
        )
    }
}

/// `deposit refund`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DepositRefunded {
    pub(crate) txid: String,
    pub(crate) amount_sats: u64,
    pub(crate) fee_sats: u64,
    /// Signed, as hex.
    pub(crate) tx: String,
    /// False without a bitcoind: then it is the user who publishes it.
    pub(crate) broadcast: bool,
}

impl Show for DepositRefunded {
    fn text(&self) -> String {
        let to_do = if self.broadcast { String::new() } else { format!("\n  to be published: {}", self.tx) };
        format!("{} sat come back with {}, fee {} sat{to_do}", self.amount_sats, self.txid, self.fee_sats)
    }
}

/// One output of `deposit list --static`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StaticOutputInfo {
    pub(crate) address: String,
    pub(crate) outpoint: String,
    pub(crate) amount_sats: u64,
    pub(crate) confirmed: bool,
    /// None without a bitcoind.
    pub(crate) unspent: Option<bool>,
}

impl Show for StaticOutputInfo {
    fn text(&self) -> String {
        let state = match (self.unspent, self.confirmed) {
            (Some(false), _) => "spent",
            (_, true) => "confirmed",
            (_, false) => "unconfirmed",
        };
        format!("{}  {} sat  {state}  {}", self.outpoint, self.amount_sats, self.address)
    }
}

/// `deposit claim`: an address that failed beside others.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DepositFailed {
    pub(crate) address: String,
    pub(crate) error: String,
}

impl Show for DepositFailed {
    fn text(&self) -> String {
        format!("{}: {}", self.address, self.error)
    }
}

/// A list: `deposit list`, `leaves`, `history`, `exit status`, `receipts`, `renew`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct List<T> {
    pub(crate) items: Vec<T>,
}

impl<T: Show> Show for List<T> {
    fn text(&self) -> String {
        if self.items.is_empty() {
            return "nothing".into();
        }
        self.items.iter().map(Show::text).collect::<Vec<_>>().join("\n")
    }
}

/// One address of `deposit list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DepositInfo {
    pub(crate) address: String,
    pub(crate) leaf_id: String,
    /// "waiting", "claiming" or "claimed".
    pub(crate) state: String,
    pub(crate) amount_sats: Option<u64>,
    pub(crate) outpoint: Option<String>,
}

impl Show for DepositInfo {
    fn text(&self) -> String {
        let amount = self.amount_sats.map_or_else(String::new, |a| format!("  {a} sat"));
        format!("{}  {}{amount}", self.address, self.state)
    }
}

impl Show for Balance {
    fn text(&self) -> String {
        let mut out = format!("available    {} sat", self.available_sats);
        for (name, sats) in [
            ("unconfirmed", self.unconfirmed_sats),
            ("incoming   ", self.incoming_sats),
            ("locked     ", self.locked_sats),
            ("doubtful   ", self.doubtful_sats),
        ] {
            if sats > 0 {
                let _ = write!(out, "\n{name}  {sats} sat");
            }
        }
        out
    }
}

/// `send`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SentInfo {
    pub(crate) transfer_id: String,
    pub(crate) amount_sats: u64,
    pub(crate) receiver: String,
    pub(crate) leaves: Vec<String>,
    /// Everybody who is paid.
    pub(crate) payees: Vec<Payee>,
}

/// One receiver of `send`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payee {
    pub(crate) receiver: String,
    pub(crate) amount_sats: u64,
}

/// `withdraw plan`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WithdrawalPlan {
    pub(crate) amount_sats: u64,
    /// As many leaves leave.
    pub(crate) connectors: usize,
}

impl Show for WithdrawalPlan {
    fn text(&self) -> String {
        format!("{} sat take {} connectors", self.amount_sats, self.connectors)
    }
}

impl Show for Withdrawal {
    fn text(&self) -> String {
        format!(
            "{}  {} sat  {}  {} sat on chain by {}",
            self.transfer_id, self.amount_sats, self.status, self.payout_sats, self.exit_txid
        )
    }
}

impl Show for SentInfo {
    fn text(&self) -> String {
        if self.payees.len() > 1 {
            let mut out = format!("sent {} sat as transfer {}", self.amount_sats, self.transfer_id);
            for payee in &self.payees {
                let _ = write!(out, "\n{} sat to {}", payee.amount_sats, payee.receiver);
            }
            return out;
        }
        format!("sent {} sat to {} as transfer {}", self.amount_sats, self.receiver, self.transfer_id)
    }
}

/// `htlc create`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HtlcInfo {
    pub(crate) transfer_id: String,
    pub(crate) amount_sats: u64,
    pub(crate) receiver: String,
    /// Hex.
    pub(crate) payment_hash: String,
    /// Hex, where it is this wallet's.
    pub(crate) preimage: Option<String>,
}

impl Show for HtlcInfo {
    fn text(&self) -> String {
        let mut out = format!(
            "locked {} sat for {} as transfer {}\npayment hash {}",
            self.amount_sats, self.receiver, self.transfer_id, self.payment_hash
        );
        if let Some(preimage) = &self.preimage {
            let _ = write!(out, "\npreimage {preimage}");
        }
        out
    }
}

impl Show for HtlcExitStep {
    fn text(&self) -> String {
        format!("{}  wait {} blocks  {}", self.kind, self.wait_blocks, self.tx)
    }
}

impl Show for HtlcView {
    fn text(&self) -> String {
        let side = if self.sent { "to" } else { "from" };
        format!(
            "{}  {} sat  {}  {side} {}  payment hash {}  expires {}",
            self.transfer_id,
            self.amount_sats,
            self.status,
            self.counterparty,
            self.payment_hash,
            self.expires
        )
    }
}

/// One interrupted send of `resume`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Resumed {
    pub(crate) transfer_id: String,
    /// True once every operator applied it.
    pub(crate) sent: bool,
    pub(crate) error: Option<String>,
}

impl Show for Resumed {
    fn text(&self) -> String {
        match &self.error {
            None => format!("transfer {} is done", self.transfer_id),
            Some(error) => format!("transfer {}: {error}", self.transfer_id),
        }
    }
}

/// `receive`: one object per transfer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Received {
    pub(crate) transfer_id: String,
    /// Absent where it failed.
    pub(crate) amount_sats: Option<u64>,
    pub(crate) sender: Option<String>,
    pub(crate) leaves: Vec<String>,
    /// "final" if all leaves are, else "claimed"; "received" where the claim failed.
    pub(crate) state: String,
    /// How final it is, leaf by leaf (empty where the operators did not answer).
    pub(crate) finality: Vec<Finality>,
    pub(crate) error: Option<String>,
}

impl Show for Received {
    fn text(&self) -> String {
        if let Some(error) = &self.error {
            return format!("transfer {}: {error}", self.transfer_id);
        }
        let mut out = format!(
            "{} {} sat from {} by transfer {}",
            if self.state == "final" { "claimed, final:" } else { "claimed" },
            self.amount_sats.unwrap_or(0),
            self.sender.as_deref().unwrap_or("?"),
            self.transfer_id
        );
        for finality in &self.finality {
            let _ = write!(out, "\n  {}", finality.text());
        }
        out
    }
}

impl Show for LeafView {
    fn text(&self) -> String {
        let blocks = |t: Option<u16>| t.map_or_else(|| "?".into(), |t| t.to_string());
        let mut out = format!(
            "{}  {} sat  {}  refund {} node {} blocks, {} deep, {} operators agree",
            self.leaf_id,
            self.value_sats,
            self.status,
            blocks(self.refund_timelock),
            blocks(self.node_timelock),
            self.depth,
            self.operators_agreeing
        );
        if !self.anchored {
            out.push_str(", not checked against the chain");
        }
        if let Some(problem) = &self.problem {
            let _ = write!(out, "\n  problem: {problem}");
        }
        out
    }
}

impl Show for Entry {
    fn text(&self) -> String {
        let direction = match self.direction {
            Direction::Deposit => "deposit ",
            Direction::Sent => "sent    ",
            Direction::Received => "received",
            Direction::Exit => "exit    ",
        };
        let amount = self.amount_sats.map_or_else(|| "?".into(), |a| a.to_string());
        let other = self.counterparty.as_deref().unwrap_or("");
        format!("{}  {direction}  {amount} sat  {}  {}  {other}", self.time, self.status, self.id)
    }
}

/// One leaf of `renew`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RenewedInfo {
    pub(crate) leaf_id: String,
    /// "zero", "refund" or "node".
    pub(crate) path: String,
    pub(crate) refund_before: u16,
    pub(crate) refund_after: u16,
}

impl Show for RenewedInfo {
    fn text(&self) -> String {
        format!(
            "leaf {}: refund {} -> {} blocks ({})",
            self.leaf_id, self.refund_before, self.refund_after, self.path
        )
    }
}

impl Show for ExitPlan {
    fn text(&self) -> String {
        let mut out = format!("leaf {} of {} sat at {} sat/vB", self.leaf_id, self.value_sats, self.fee_rate);
        for lane in &self.transactions {
            let _ = write!(
                out,
                "\n  {:6}  {}  after {} blocks, fee {} sat",
                lane.kind, lane.txid, lane.timelock, lane.fee_sats
            );
        }
        let _ = write!(
            out,
            "\nwait       {} blocks at least\nreceive    {} sat\nnode fees  {} sat: one output of {} sat at {} (largest now: {} sat)",
            self.timelock_blocks,
            self.receives_sats,
            self.node_fees_sats,
            self.fee_needed_sats,
            self.fee_address,
            self.fee_available_sats
        );
        if !self.economic {
            out.push_str("\nuneconomic: fees eat the leaf");
        }
        out
    }
}

impl Show for ExitStatus {
    fn text(&self) -> String {
        let state = if self.done { "done" } else { "under way" };
        let mut out = format!("exit of leaf {} to {}: {state}", self.leaf_id, self.destination);
        if let Some(amount) = self.amount_sats {
            let _ = write!(out, ", {amount} sat");
        }
        let name = |state| serde_json::to_value(state).ok().and_then(|s| s.as_str().map(ToOwned::to_owned));
        let name = |state| name(state).unwrap_or_else(|| "?".into());
        for step in &self.steps {
            let _ = write!(out, "\n  {:6}  {}  {}", step.kind, step.txid, name(step.state));
            if step.blocks_left > 0 {
                let _ = write!(out, ", {} blocks left", step.blocks_left);
            }
        }
        if let Some(txid) = self.sweep_txid {
            let _ = write!(out, "\n  {:6}  {txid}  {}", "sweep", name(self.sweep_state));
        }
        out
    }
}

/// `bundle export`, `bundle import`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BundleInfo {
    pub(crate) file: String,
    pub(crate) leaves: usize,
}

impl Show for BundleInfo {
    fn text(&self) -> String {
        format!("{} leaves, {}", self.leaves, self.file)
    }
}

impl Show for Verification {
    fn text(&self) -> String {
        let mut out = String::new();
        for log in &self.logs {
            let LogView { operator, size, destroyed_before, witnesses, attestation, problem } = log;
            let state = problem.as_deref().unwrap_or("continues what was seen before");
            let _ = writeln!(
                out,
                "deletion log of operator {operator}: {size} receipts, root keys destroyed before epoch \
                 {destroyed_before}, {witnesses} witnesses of {} needed, attestation: {attestation}: {state}",
                self.needed_witnesses
            );
        }
        for leaf in &self.leaves {
            let _ = writeln!(out, "{}", leaf.text());
        }
        let verdict = if self.ok { "everything holds" } else { "not everything holds (yet)" };
        out + verdict
    }
}

impl Show for Finality {
    fn text(&self) -> String {
        let mut out = format!("leaf {}: {}, attestation: {}", self.leaf_id, self.statement, self.attestation);
        for o in &self.by_operator {
            let state = match (&o.problem, o.version) {
                (Some(problem), _) => problem.clone(),
                (None, version) => format!("clean at version {}", version.unwrap_or(0)),
            };
            let _ = write!(
                out,
                "\n    operator {}: {} receipts, {} confirmed, {} witnesses, delete_claim {}: {state}",
                o.operator, o.receipts, o.confirmed, o.witnesses, o.delete_claim
            );
        }
        out
    }
}

/// `doctor`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Health {
    pub(crate) ok: bool,
    pub(crate) checks: Vec<Check>,
}

/// One check of `doctor`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) ok: bool,
    pub(crate) detail: String,
}

impl Show for Health {
    fn text(&self) -> String {
        let line = |c: &Check| format!("{}  {}: {}", if c.ok { "ok  " } else { "FAIL" }, c.name, c.detail);
        self.checks.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Any command that fails, with `--json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) error: String,
    /// "failed", "usage", "refused" or "unavailable".
    pub(crate) class: String,
}

/// What ends a command early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The wallet says no.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The arguments make no sense.
    #[error("{0}")]
    Usage(String),
    /// A file, the terminal, or the output fails.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Something needed does not answer.
    #[error("{0}")]
    Unavailable(String),
}

impl CommandError {
    pub(crate) fn class(&self) -> &'static str {
        match self.exit_code() {
            2 => "usage",
            3 => "refused",
            4 => "unavailable",
            _ => "failed",
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unavailable(_) => 4,
            Self::Io(_) => 1,
            Self::Wallet(error) => match error.class() {
                ErrorClass::Failed => 1,
                ErrorClass::Refused => 3,
                ErrorClass::Unavailable => 4,
            },
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_stable() {
        let json = |value: &dyn erased| value.json();
        assert_eq!(
            json(&Address { address: "a".into(), leaf_id: None, qr: Some("q".into()) }),
            r#"{"address":"a","leaf_id":null}"#
        );
        assert_eq!(
            json(&Balance { available_sats: 1, ..Balance::default() }),
            r#"{"available_sats":1,"unconfirmed_sats":0,"incoming_sats":0,"locked_sats":0,"doubtful_sats":0}"#
        );
        assert_eq!(
            json(&Failure { error: "e".into(), class: "refused".into() }),
            r#"{"error":"e","class":"refused"}"#
        );
        let list = List {
            items: vec![RenewedInfo {
                leaf_id: "l".into(),
                path: "zero".into(),
                refund_before: 100,
                refund_after: 2000,
            }],
        };
        assert_eq!(
            json(&list),
            r#"{"items":[{"leaf_id":"l","path":"zero","refund_before":100,"refund_after":2000}]}"#
        );
    }

    #[expect(non_camel_case_types, reason = "local helper")]
    trait erased {
        fn json(&self) -> String;
    }

    impl<T: Serialize> erased for T {
        fn json(&self) -> String {
            serde_json::to_string(self).unwrap()
        }
    }
}
