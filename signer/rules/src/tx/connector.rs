//! Connectors of a cooperative exit: outputs of a transaction that spends the exit transaction. A refund with one of
//! them as an input is valid only if the exit transaction is.

use bitcoin::consensus::encode;
use bitcoin::{OutPoint, Transaction, Txid};

use super::{Rule, Spend, TemplateError};

/// Most bytes of a connector transaction: one output per leaf of the largest operation, one for its fee, and a witness.
pub const MAX_CONNECTOR_TX: usize = 16_384;

/// The connectors that a connector transaction offers: its outputs but for the last, which is there to pay its fee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connectors {
    exit: OutPoint,
    txid: Txid,
    outputs: Vec<Spend>,
}

impl Connectors {
    /// Reads a connector transaction: one input, which spends the exit transaction, and two outputs or more.
    pub fn parse(raw: &[u8]) -> Result<Self, TemplateError> {
        let refuse = |expected: &str, got: String| TemplateError::new(Rule::ConnectorTx, expected, got);
        if raw.len() > MAX_CONNECTOR_TX {
            return Err(refuse("at most 16384 bytes", raw.len().to_string()));
        }
        let tx: Transaction =
            encode::deserialize(raw).map_err(|error| refuse("a transaction", error.to_string()))?;
        let [input] = tx.input.as_slice() else {
            return Err(refuse("1 input", tx.input.len().to_string()));
        };
        if input.previous_output.is_null() {
            return Err(refuse("a spend of the exit transaction", "a coinbase".into()));
        }
        let txid = tx.compute_txid();
        let mut outputs: Vec<Spend> = (0u32..)
            .zip(tx.output)
            .map(|(vout, txout)| Spend { outpoint: OutPoint { txid, vout }, txout })
            .collect();
        outputs.pop();
        if outputs.is_empty() {
            return Err(refuse("2 outputs or more", "fewer".into()));
        }
        Ok(Self { exit: input.previous_output, txid, outputs })
    }

    /// The output of the exit transaction that all connectors come from.
    pub const fn exit(&self) -> OutPoint {
        self.exit
    }

    /// All connectors, in the order of the outputs.
    pub fn outputs(&self) -> &[Spend] {
        &self.outputs
    }

    /// The connector at `outpoint`.
    pub fn find(&self, outpoint: &OutPoint) -> Result<&Spend, TemplateError> {
        let found = self.outputs.iter().find(|spend| spend.outpoint == *outpoint);
        found.ok_or_else(|| {
            let expected = format!("{}:0 to :{}", self.txid, self.outputs.len().saturating_sub(1));
            TemplateError::new(Rule::Connector, expected, outpoint)
        })
    }
}
