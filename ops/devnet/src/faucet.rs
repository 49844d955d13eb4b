//! Regtest money: one key that mines to itself and pays whoever asks.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::{All, Message, Secp256k1, SecretKey};
use bitcoin::sighash::{EcdsaSighashType, SighashCache};
use bitcoin::transaction::Version;
use bitcoin::{
    Address, Amount, BlockHash, CompressedPublicKey, Network, OutPoint, ScriptBuf, Sequence, Transaction,
    TxIn, TxOut, Txid, Witness, ecdsa,
};
use rand::RngCore;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::rpc::{RpcClient, RpcError};

/// Confirmations after which a coinbase may be spent (consensus).
const COINBASE_MATURITY: u64 = 100;
/// bitcoind's answer to a second scan.
const SCAN_RUNS: i64 = -8;
/// Mature coinbases to start with; 50 BTC each.
const FIRST_COINBASES: u64 = 10;
/// Coins that those are split into, so that many payments fit into one block without long chains of change.
const FIRST_COINS: usize = 50;
/// Fee rate of all payments in sat/vB, well above the relay minimum.
const FEE_RATE: u64 = 5;
/// Change below this is left to the fee.
const DUST: Amount = Amount::from_sat(546);
/// Blocks mined at once when money runs out.
const REFILL_BLOCKS: u64 = 20;
/// Halvings come every 150 blocks on regtest: after this many refills something else is wrong.
const REFILLS: usize = 10;

#[derive(Debug, thiserror::Error)]
pub enum FaucetError {
    #[error("{wanted} cannot be paid: only {available} is spendable")]
    Poor { wanted: Amount, available: Amount },
    #[error("no outputs to pay")]
    NothingToPay,
    #[error("amount out of range")]
    Amount,
    #[error("the key does not make a valid signature")]
    Signature,
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

#[derive(Clone, Copy, Debug)]
struct Coin {
    outpoint: OutPoint,
    value: Amount,
}

#[derive(Debug, Default)]
struct Coins {
    /// Oldest first: change goes to the end, so chains of unconfirmed change stay short.
    spendable: VecDeque<Coin>,
    /// What we spent: the node's list of confirmed coins still shows it until the next block.
    spent: HashSet<OutPoint>,
}

/// Holder of the mined money. Payments are made one after the other.
#[derive(Debug)]
pub struct Faucet {
    rpc: RpcClient,
    secp: Secp256k1<All>,
    key: SecretKey,
    address: Address,
    coins: Mutex<Coins>,
}

impl Faucet {
    /// A faucet with a fresh key and 500 BTC, 110 blocks further.
    pub async fn start(rpc: RpcClient) -> Result<Self, FaucetError> {
        let mut bytes = [0u8; 32];
        rand::thread_rng().fill_bytes(&mut bytes);
        let key = SecretKey::from_slice(&bytes).map_err(|_| FaucetError::Signature)?;
        Self::with_key(rpc, key).await
    }

    /// A faucet with a given key: finds what that key already owns and mines only if it owns nothing.
    pub async fn with_key(rpc: RpcClient, key: SecretKey) -> Result<Self, FaucetError> {
        let secp = Secp256k1::new();
        let address = Address::p2wpkh(&CompressedPublicKey(key.public_key(&secp)), Network::Regtest);
        let faucet = Self { rpc, secp, key, address, coins: Mutex::default() };
        {
            let mut coins = faucet.coins.lock().await;
            faucet.find_coins(&mut coins).await?;
            if coins.spendable.is_empty() {
                faucet.generate(FIRST_COINBASES + COINBASE_MATURITY).await?;
                faucet.find_coins(&mut coins).await?;
                faucet.split(&mut coins).await?;
            }
        }
        Ok(faucet)
    }

    /// Where its own money lies (P2WPKH).
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What can be paid out now, without fees.
    pub async fn balance(&self) -> Result<Amount, FaucetError> {
        let mut coins = self.coins.lock().await;
        self.find_coins(&mut coins).await?;
        Ok(total(&coins.spendable))
    }

    /// Mines `count` blocks and takes their rewards.
    pub async fn mine(&self, count: u64) -> Result<Vec<BlockHash>, FaucetError> {
        self.generate(count).await
    }

    /// Pays `amount` to `address` and gives the transaction as it was broadcast. The paying output is the first.
    pub async fn send(&self, address: &Address, amount: Amount) -> Result<Transaction, FaucetError> {
        self.pay(vec![TxOut { value: amount, script_pubkey: address.script_pubkey() }]).await
    }

    /// Pays several outputs, in their order, by one transaction; change, if any, comes last.
    pub async fn pay(&self, outputs: Vec<TxOut>) -> Result<Transaction, FaucetError> {
        if outputs.is_empty() {
            return Err(FaucetError::NothingToPay);
        }
        let mut coins = self.coins.lock().await;
        self.find_coins(&mut coins).await?;
        for _ in 0..REFILLS {
            match self.pay_from(&mut coins, &outputs).await {
                Err(FaucetError::Poor { .. }) => {
                    self.generate(REFILL_BLOCKS).await?;
                    self.find_coins(&mut coins).await?;
                }
                outcome => return outcome,
            }
        }
        self.pay_from(&mut coins, &outputs).await
    }

    async fn pay_from(&self, coins: &mut Coins, outputs: &[TxOut]) -> Result<Transaction, FaucetError> {
        let wanted = outputs
            .iter()
            .try_fold(Amount::ZERO, |sum, output| sum.checked_add(output.value))
            .ok_or(FaucetError::Amount)?;
        let mut chosen: Vec<Coin> = Vec::new();
        let mut input_value = Amount::ZERO;
        loop {
            // The change output is always counted: a few satoshi too much fee hurt nobody here.
            let fee = fee(chosen.len(), outputs);
            let needed = wanted.checked_add(fee).ok_or(FaucetError::Amount)?;
            if !chosen.is_empty() && input_value >= needed {
                let change = input_value - needed;
                let transaction = self.build(&chosen, outputs, change)?;
                self.broadcast(coins, &chosen, &transaction).await?;
                return Ok(transaction);
            }
            let Some(coin) = coins.spendable.pop_front() else {
                let available = input_value;
                coins.spendable.extend(chosen);
                return Err(FaucetError::Poor { wanted: needed, available });
            };
            // A reorganisation may have taken it.
            if self.exists(coin.outpoint).await? {
                input_value = input_value.checked_add(coin.value).ok_or(FaucetError::Amount)?;
                chosen.push(coin);
            }
        }
    }

    fn build(&self, inputs: &[Coin], outputs: &[TxOut], change: Amount) -> Result<Transaction, FaucetError> {
        let own_script = self.address.script_pubkey();
        let mut output = outputs.to_vec();
        if change > DUST {
            output.push(TxOut { value: change, script_pubkey: own_script.clone() });
        }
        let input = inputs
            .iter()
            .map(|coin| TxIn {
                previous_output: coin.outpoint,
                script_sig: ScriptBuf::new(),
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                witness: Witness::new(),
            })
            .collect();
        let mut transaction = Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input, output };
        let public = self.key.public_key(&self.secp);
        let mut cache = SighashCache::new(&mut transaction);
        for (index, coin) in inputs.iter().enumerate() {
            let sighash = cache
                .p2wpkh_signature_hash(index, &own_script, coin.value, EcdsaSighashType::All)
                .map_err(|_| FaucetError::Signature)?;
            let signature = ecdsa::Signature {
                signature: self.secp.sign_ecdsa(&Message::from(sighash), &self.key),
                sighash_type: EcdsaSighashType::All,
            };
            *cache.witness_mut(index).ok_or(FaucetError::Signature)? = Witness::p2wpkh(&signature, &public);
        }
        Ok(transaction)
    }

    async fn broadcast(
        &self,
        coins: &mut Coins,
        inputs: &[Coin],
        transaction: &Transaction,
    ) -> Result<(), FaucetError> {
        let raw = bitcoin::consensus::encode::serialize_hex(transaction);
        if let Err(error) = self.rpc.call::<Txid>("sendrawtransaction", json!([raw])).await {
            // Refused, so nothing is spent; to the end with them, the next coins may do better.
            coins.spendable.extend(inputs);
            return Err(error.into());
        }
        coins.spent.extend(inputs.iter().map(|coin| coin.outpoint));
        let own_script = self.address.script_pubkey();
        let txid = transaction.compute_txid();
        let own =
            transaction.output.iter().zip(0u32..).filter(|(output, _)| output.script_pubkey == own_script);
        coins.spendable.extend(
            own.map(|(output, vout)| Coin { outpoint: OutPoint { txid, vout }, value: output.value }),
        );
        Ok(())
    }

    /// Turns the few big first coins into many and mines that.
    async fn split(&self, coins: &mut Coins) -> Result<(), FaucetError> {
        let pieces = u64::try_from(FIRST_COINS).map_err(|_| FaucetError::Amount)?;
        // One percent stays for the fee.
        let value = total(&coins.spendable)
            .checked_div(pieces)
            .and_then(|piece| piece.checked_mul(99)?.checked_div(100));
        let output =
            TxOut { value: value.ok_or(FaucetError::Amount)?, script_pubkey: self.address.script_pubkey() };
        self.pay_from(coins, &vec![output; FIRST_COINS]).await?;
        self.generate(1).await?;
        Ok(())
    }

    async fn generate(&self, count: u64) -> Result<Vec<BlockHash>, FaucetError> {
        Ok(self.rpc.call("generatetoaddress", json!([count, self.address.to_string()])).await?)
    }

    /// Adds confirmed coins of our script that we do not know yet: rewards that became mature, payments from
    /// others, everything after a restart.
    async fn find_coins(&self, coins: &mut Coins) -> Result<(), FaucetError> {
        #[derive(Deserialize)]
        struct Scan {
            height: u64,
            unspents: Vec<Unspent>,
        }
        #[derive(Deserialize)]
        struct Unspent {
            txid: Txid,
            vout: u32,
            #[serde(with = "bitcoin::amount::serde::as_btc")]
            amount: Amount,
            coinbase: bool,
            height: u64,
        }
        let descriptor = format!("addr({})", self.address);
        let mut tries = 0;
        let mut scan: Scan = loop {
            match self.rpc.call("scantxoutset", json!(["start", [&descriptor]])).await {
                // bitcoind runs one scan at a time, whoever asks: a wallet may.
                Err(RpcError::Refused { code: SCAN_RUNS, .. }) if tries < 100 => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                other => break other?,
            }
        };
        let known: HashSet<OutPoint> = coins.spendable.iter().map(|coin| coin.outpoint).collect();
        scan.unspents.sort_by_key(|unspent| unspent.height);
        for unspent in scan.unspents {
            let outpoint = OutPoint { txid: unspent.txid, vout: unspent.vout };
            // The next block must be able to contain the spend.
            let mature = !unspent.coinbase || scan.height + 1 >= unspent.height + COINBASE_MATURITY;
            if mature && !known.contains(&outpoint) && !coins.spent.contains(&outpoint) {
                coins.spendable.push_back(Coin { outpoint, value: unspent.amount });
            }
        }
        Ok(())
    }

    /// The output is unspent in the chain with the mempool on top.
    async fn exists(&self, outpoint: OutPoint) -> Result<bool, FaucetError> {
        let found: Value = self.rpc.call("gettxout", json!([outpoint.txid, outpoint.vout, true])).await?;
        Ok(!found.is_null())
    }
}

fn total(coins: &VecDeque<Coin>) -> Amount {
    coins.iter().map(|coin| coin.value).sum()
}

/// Fee for P2WPKH inputs, the given outputs and one P2WPKH change output.
fn fee(inputs: usize, outputs: &[TxOut]) -> Amount {
    const OVERHEAD: usize = 11;
    const INPUT: usize = 68;
    const CHANGE: usize = 31;
    let paid: usize = outputs.iter().map(TxOut::size).sum();
    let size = OVERHEAD + CHANGE + INPUT * inputs + paid;
    Amount::from_sat(FEE_RATE.saturating_mul(u64::try_from(size).unwrap_or(u64::MAX)))
}
