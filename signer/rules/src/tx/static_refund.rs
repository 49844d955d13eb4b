use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode;
use bitcoin::transaction::Version;
use bitcoin::{Address, Amount, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};

use super::{Purpose, Rule, Spend, TemplateError, template};
use crate::address::Network;

const PURPOSE: Purpose = Purpose::StaticRefund;

/// What a static deposit's owner takes back (D17): one output of the address, whole but for the fee, to one address.
/// It has no anchor and no timelock: the fee is what is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticRefund {
    spend: Spend,
    output: TxOut,
}

impl StaticRefund {
    /// `spend` to `destination`, which gets `value`. It must be worth spending, and there is no script without an
    /// address.
    pub fn new(
        spend: Spend,
        destination: ScriptBuf,
        value: Amount,
        network: Network,
    ) -> Result<Self, TemplateError> {
        if Address::from_script(&destination, network.params()).is_err() {
            return Err(TemplateError::new(
                Rule::Destination(PURPOSE),
                "a script with an address",
                destination,
            ));
        }
        let least = destination.minimal_non_dust();
        if value < least || value > spend.txout.value {
            let expected = format!("{least} to {}", spend.txout.value);
            return Err(TemplateError::new(Rule::Value(PURPOSE), expected, value));
        }
        Ok(Self { spend, output: TxOut { value, script_pubkey: destination } })
    }

    /// Rebuilds the client's transaction `raw` over `spend` and requires equality to the byte. Destination and value
    /// are the client's to choose.
    pub fn check(raw: &[u8], spend: Spend, network: Network) -> Result<Self, TemplateError> {
        let theirs = template::decode(raw)?;
        template::same(Rule::Outputs, &1, &theirs.output.len())?;
        let output = theirs.output.first().ok_or_else(|| TemplateError::new(Rule::Outputs, 1, 0))?;
        let this = Self::new(spend, output.script_pubkey.clone(), output.value, network)?;
        let ours = this.build();
        template::same(Rule::Version, &ours.version.0, &theirs.version.0)?;
        template::same(Rule::Locktime, &0, &theirs.lock_time.to_consensus_u32())?;
        template::same(Rule::Inputs, &1, &theirs.input.len())?;
        for (a, b) in ours.input.iter().zip(&theirs.input) {
            template::same(Rule::Outpoint, &a.previous_output, &b.previous_output)?;
            if !b.script_sig.is_empty() || !b.witness.is_empty() {
                return Err(TemplateError::new(Rule::Unsigned, "no script and no witness", "some"));
            }
            template::same(Rule::Sequence, &a.sequence, &b.sequence)?;
        }
        let bytes = encode::serialize(&ours);
        if bytes != raw {
            return Err(TemplateError::new(Rule::Bytes, hex::encode(bytes), hex::encode(raw)));
        }
        Ok(this)
    }

    /// What is spent.
    pub const fn spend(&self) -> &Spend {
        &self.spend
    }

    /// What the destination gets.
    pub const fn value(&self) -> Amount {
        self.output.value
    }

    /// The unsigned transaction.
    pub fn build(&self) -> Transaction {
        let input = TxIn {
            previous_output: self.spend.outpoint,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        };
        Transaction {
            version: Version(3),
            lock_time: LockTime::ZERO,
            input: vec![input],
            output: vec![self.output.clone()],
        }
    }
}
