use std::marker::PhantomData;

use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use spark_proto::spark;

use super::{Record, Table};

/// A protobuf message, kept as the bytes that were sent or received.
pub struct Wire<M> {
    bytes: Vec<u8>,
    kind: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Wire<M> {
    /// Encodes a message.
    pub fn of(message: &M) -> Self {
        Self { bytes: message.encode_to_vec(), kind: PhantomData }
    }

    /// Decodes it again.
    pub fn decode(&self) -> Result<M, prost::DecodeError> {
        M::decode(self.bytes.as_slice())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<M> Clone for Wire<M> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), kind: PhantomData }
    }
}

impl<M> PartialEq for Wire<M> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<M> std::fmt::Debug for Wire<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wire({} bytes)", self.bytes.len())
    }
}

impl<M> Serialize for Wire<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.bytes))
    }
}

impl<'de, M> Deserialize<'de> for Wire<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = hex::decode(text).map_err(D::Error::custom)?;
        Ok(Self { bytes, kind: PhantomData })
    }
}

/// How far a deposit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DepositState {
    /// The leaf id is chosen, the address not known yet.
    Requested,
    /// The address is verified: money may come.
    Waiting,
    /// The claim is stored and may have been sent.
    Claiming,
    /// The leaf exists.
    Claimed,
}

/// A one-time deposit address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DepositRecord {
    /// Leaf that the deposit becomes. Its text is key material.
    pub leaf_id: String,
    /// P2TR address, empty until verified.
    pub address: String,
    /// P as hex, empty until verified.
    pub verifying_key: String,
    /// How far it is.
    pub state: DepositState,
    /// Funding output, `txid:vout`.
    pub outpoint: Option<String>,
    /// Value in satoshis.
    pub amount: Option<u64>,
    /// The claim as sent.
    pub request: Option<Wire<spark::FinalizeDepositTreeCreationRequest>>,
    /// Unix seconds.
    pub created: u64,
}

/// How far a send is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SendState {
    /// Stored, perhaps sent, outcome unknown.
    Pending,
    /// All operators have applied it.
    Done,
    /// The coordinator refused it, but could still use the package that it saw.
    Doubtful,
    /// It did not happen and cannot happen any more.
    Failed,
}

/// An outgoing transfer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SendRecord {
    /// UUID, also the idempotency key.
    pub transfer_id: String,
    /// Receiver's identity key, hex; the first of several.
    pub receiver: String,
    /// Satoshis altogether.
    pub amount: u64,
    /// Leaves that leave.
    pub leaves: Vec<String>,
    /// Who gets which of them, where there are several receivers; else empty.
    #[serde(default)]
    pub shares: Vec<SendShare>,
    /// The invoice that is paid, or empty.
    #[serde(default)]
    pub invoice: String,
    /// The request as sent; with several receivers it is `many`.
    pub request: Wire<spark::StartTransferRequest>,
    /// The request as sent, with several receivers.
    #[serde(default)]
    pub many: Option<Wire<spark::StartTransferV3Request>>,
    /// What completes it, where a preimage does.
    #[serde(default)]
    pub htlc: Option<HtlcTerms>,
    /// The request as sent, where a preimage completes it.
    #[serde(default)]
    pub swap: Option<Wire<spark::InitiatePreimageSwapRequest>>,
    /// What completes it, where a payment on chain does.
    #[serde(default)]
    pub exit: Option<ExitTerms>,
    /// The request as sent, where a payment on chain completes it.
    #[serde(default)]
    pub coop: Option<Wire<spark::CooperativeExitRequest>>,
    /// Times the request was built anew after a proven abort.
    pub attempt: u32,
    /// How far it is.
    pub state: SendState,
    /// Unix seconds.
    pub created: u64,
    /// Unix seconds at which the request was built the last time.
    #[serde(default)]
    pub built: u64,
    /// Refunds two steps below the present ones, where there are: the first is one that an HTLC shares.
    #[serde(default)]
    pub step_over: bool,
    /// Of one that a preimage completes: how it ended is known, and nothing is left to do.
    #[serde(default)]
    pub ended: bool,
}

/// Terms of a transfer that a preimage completes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HtlcTerms {
    /// SHA-256 of the preimage, hex.
    pub payment_hash: String,
    /// Unix seconds; operators make a height of it.
    pub expires: u64,
}

/// What an exit of one leaf needs that a preimage or time gives away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HtlcExit {
    /// Transfer and leaf.
    pub key: String,
    /// UUID.
    pub transfer_id: String,
    /// UUID.
    pub leaf_id: String,
    /// Satoshis.
    pub value: u64,
    /// The leaf with the refunds in flight, its parent, and so on to the root.
    pub lineage: Vec<Wire<spark::TreeNode>>,
    /// SHA-256 of the preimage, hex.
    pub payment_hash: String,
    /// Identity key, hex.
    pub sender: String,
    /// Identity key, hex.
    pub receiver: String,
    /// Hex; the sender has none and waits.
    pub preimage: Option<String>,
}

/// Terms of a transfer that a payment on chain completes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitTerms {
    /// The transaction that pays, checked before anything was signed.
    pub exit_txid: String,
    /// The transaction that spends it, and whose outputs the refunds need, hex.
    pub connector_tx: String,
    /// Where the money goes: a script, hex.
    pub destination: String,
    /// Satoshis that come there.
    pub payout: u64,
    /// Unix seconds; operators make a height of it.
    pub expires: u64,
    /// Steps of the refunds, leaf by leaf: should the leaves come back, no other refund is signed at them.
    #[serde(default)]
    pub steps: Vec<u16>,
}

/// What one receiver of a transfer gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendShare {
    /// Identity key, hex.
    pub receiver: String,
    /// Satoshis.
    pub amount: u64,
    /// The leaves.
    pub leaves: Vec<String>,
}

impl SendRecord {
    /// Every receiver with what it gets.
    pub fn parts(&self) -> Vec<SendShare> {
        if self.shares.is_empty() {
            let (receiver, leaves) = (self.receiver.clone(), self.leaves.clone());
            return vec![SendShare { receiver, amount: self.amount, leaves }];
        }
        self.shares.clone()
    }

    /// Receivers and amounts, in their order.
    pub fn payees(&self) -> Vec<(String, u64)> {
        self.parts().into_iter().map(|part| (part.receiver, part.amount)).collect()
    }
}

/// An incoming transfer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// UUID.
    pub transfer_id: String,
    /// Sender's identity key, hex.
    pub sender: String,
    /// Satoshis.
    pub amount: u64,
    /// Leaves that come.
    pub leaves: Vec<String>,
    /// The claim as sent; none while only seen.
    pub request: Option<Wire<spark::ClaimTransferRequest>>,
    /// Public halves of the tweaks of every claim that was sent: receipts must show those of one.
    #[serde(default)]
    pub tweaks: Vec<ClaimTweak>,
    /// Leaves that were seen final under this claim.
    #[serde(default)]
    pub finals: Vec<FinalLeaf>,
    /// The leaves are ours alone.
    pub done: bool,
    /// Why it cannot be claimed (D23), if so.
    pub problem: Option<String>,
    /// Unix seconds.
    pub created: u64,
}

/// Public half of one leaf's tweak in one claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimTweak {
    /// UUID.
    pub leaf_id: String,
    /// Feldman commitments, hex, lowest coefficient first.
    pub proofs: Vec<String>,
}

/// How final a leaf was when the operators were last asked (D15).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalLeaf {
    /// UUID.
    pub leaf_id: String,
    /// Clean operators.
    pub clean: usize,
    /// In words.
    pub statement: String,
}

/// Whose key the refund pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeafKeyKind {
    /// The leaf's own key: deposited or claimed.
    Leaf,
    /// The identity key: a transfer that is not claimed yet.
    Identity,
}

/// A leaf with everything that an exit needs, as last verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredLeaf {
    /// UUID.
    pub leaf_id: String,
    /// Satoshis.
    pub value: u64,
    /// As the operators say.
    pub status: String,
    /// The leaf, its parent, and so on to the root.
    pub lineage: Vec<Wire<spark::TreeNode>>,
    /// Whose key the refund pays.
    pub pays: LeafKeyKind,
    /// Unix seconds of the last verification.
    pub verified: u64,
    /// This wallet has sent the leaf away: its refund is an old owner's.
    #[serde(default)]
    pub sent: bool,
}

/// The newest head of an operator's deletion log that this wallet has checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenHead {
    /// Origin line of the log: federation and operator.
    pub origin: String,
    /// Signed note.
    pub note: String,
    /// A head that contradicts it, also signed by the operator. It stays for good: this operator is caught.
    pub contradiction: Option<String>,
}

/// How far an exit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitState {
    /// Under way.
    Active,
    /// The money is on the user's address.
    Done,
}

/// One transaction of an exit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredStep {
    /// The signed transaction, hex.
    pub tx: String,
    /// Last child that was broadcast with it, hex.
    pub child: Option<String>,
    /// Fee rate of that child's package, sat/vB.
    pub fee_rate: u64,
}

/// An exit under way. What is confirmed is read from the chain, never from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Leaf that leaves.
    pub leaf_id: String,
    /// User's address for the money.
    pub destination: String,
    /// Node transactions from the root down, then the refund.
    pub steps: Vec<StoredStep>,
    /// Whose key the refund pays.
    pub pays: LeafKeyKind,
    /// How far it is.
    pub state: ExitState,
    /// Unix seconds.
    pub created: u64,
    /// Transactions that somebody else may publish in place of the steps.
    #[serde(default)]
    pub direct: DirectSteps,
    /// Takes the refund's output to the destination, where no child of the refund did: the transaction, no child.
    #[serde(default)]
    pub sweep: Option<StoredStep>,
}

/// Twins of the last steps of an exit that pay their own fees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectSteps {
    /// Of the leaf's node tx.
    #[serde(default)]
    pub node: Option<StoredStep>,
    /// Refund of the direct node tx.
    #[serde(default)]
    pub refund: Option<StoredStep>,
    /// Refund of the node tx.
    #[serde(default)]
    pub from_cpfp: Option<StoredStep>,
}

/// A one-time package key that this wallet has sealed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedPackageKey {
    /// Public key, hex.
    pub id: String,
    /// Unix seconds: from then on no signer opens anything with it.
    pub expires: u64,
}

impl Record for UsedPackageKey {
    const TABLE: Table = Table::PackageKeys;

    fn key(&self) -> &str {
        &self.id
    }
}

impl Record for SeenHead {
    const TABLE: Table = Table::Heads;

    fn key(&self) -> &str {
        &self.origin
    }
}

impl Record for DepositRecord {
    const TABLE: Table = Table::Deposits;

    fn key(&self) -> &str {
        &self.leaf_id
    }
}

impl Record for SendRecord {
    const TABLE: Table = Table::Sends;

    fn key(&self) -> &str {
        &self.transfer_id
    }
}

impl Record for HtlcExit {
    const TABLE: Table = Table::HtlcExits;

    fn key(&self) -> &str {
        &self.key
    }
}

impl Record for ClaimRecord {
    const TABLE: Table = Table::Claims;

    fn key(&self) -> &str {
        &self.transfer_id
    }
}

impl Record for StoredLeaf {
    const TABLE: Table = Table::Leaves;

    fn key(&self) -> &str {
        &self.leaf_id
    }
}

impl Record for ExitRecord {
    const TABLE: Table = Table::Exits;

    fn key(&self) -> &str {
        &self.leaf_id
    }
}
