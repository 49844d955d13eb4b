//! The command line's grammar.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Spark wallet. Exit codes: 0 ok, 1 failed, 2 usage, 3 refused by policy, 4 dependency unavailable.
#[derive(Debug, Parser)]
#[command(name = "spark-wallet", version, max_term_width = 110)]
pub(crate) struct Cli {
    /// Directory with wallet.toml, the seed and the state.
    #[arg(long, env = "SPARK_WALLET_DIR", default_value = "spark-wallet", global = true)]
    pub(crate) dir: PathBuf,
    /// JSON on standard output: one object, or one per step of long commands.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Seal packages to an operator's long-lived key where it offers no one-time keys: whoever records them and later
    /// gets the use of that key opens them.
    #[arg(long, global = true)]
    pub(crate) allow_long_lived_package_keys: bool,
    /// Log to standard error; twice for more.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a new seed and show its words once.
    Create {
        /// 12 or 24.
        #[arg(long, default_value_t = 24, value_parser = parse_words)]
        words: u8,
    },
    /// Restore from the words: read from a file, from standard input, or by a prompt, never from arguments.
    Restore {
        /// File with the words.
        #[arg(long)]
        seed_file: Option<PathBuf>,
    },
    /// Spark address that others pay to.
    Address {
        /// Also as QR code.
        #[arg(long)]
        qr: bool,
    },
    /// Wallet, federation and operators.
    Info,
    /// Bitcoin from the chain.
    #[command(subcommand)]
    Deposit(Deposit),
    /// Sums.
    Balance,
    /// Pay to a Spark address or invoice, or to several addresses at once.
    Send(Send),
    /// Text that asks somebody to pay, once.
    Invoice(Invoice),
    /// Money that a preimage moves, or that comes back.
    #[command(subcommand)]
    Htlc(Htlc),
    /// Money for a payment on chain by a provider.
    #[command(subcommand)]
    Withdraw(Withdraw),
    /// Claim what was sent to this wallet.
    Receive {
        /// Wait until something comes.
        #[arg(long)]
        wait: bool,
        /// Then wait until all operators are clean for what was claimed, and show how it becomes final. It is enough that it
        /// is final when the time is over.
        #[arg(long)]
        until_final: bool,
        /// Most seconds to wait.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
    },
    /// Finish sends that were interrupted: the same request again, or the news that nothing happened.
    Resume,
    /// What this wallet did.
    History,
    /// Leaves with timelocks, as all operators agree on them.
    Leaves,
    /// Raise timelocks again: of one leaf, or of all that need it.
    Renew {
        /// Leaf id.
        leaf: Option<String>,
    },
    /// Leave to the chain without the operators.
    #[command(subcommand)]
    Exit(Exit),
    /// File with everything an exit needs but the seed.
    #[command(subcommand)]
    Bundle(Bundle),
    /// Who has proven to have forgotten the old key shares of a leaf, or of all leaves.
    Receipts {
        /// Leaf id.
        leaf: Option<String>,
        /// Wait until all operators are clean for all of them, and show how they become final. It is enough that they are
        /// final when the time is over.
        #[arg(long)]
        wait: bool,
        /// Most seconds to wait.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
    },
    /// Check everything that operators say: leaves, receipts, and that their deletion logs only grew and are
    /// witnessed. Exit code 1 if something does not hold.
    Verify,
    /// Check configuration, seed, state, operators and bitcoind.
    Doctor,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Deposit {
    /// A fresh one-time address, or with --static the one that takes any number of payments.
    Address {
        /// Also as QR code.
        #[arg(long)]
        qr: bool,
        /// The same address every time. What comes to it stays on chain: a provider credits it, or you take it back.
        #[arg(long = "static")]
        is_static: bool,
        /// Another static address from now on; the former one keeps working.
        #[arg(long, requires = "is_static")]
        rotate: bool,
    },
    /// Take what came to a static address back to a bitcoin address. Repeat it with a higher rate to speed it up.
    Refund {
        /// What came, txid:vout, as `deposit list --static` shows it.
        outpoint: bitcoin::OutPoint,
        /// Bitcoin address for the money.
        #[arg(long)]
        to: String,
        /// sat/vB.
        #[arg(long)]
        fee_rate: Option<u64>,
    },
    /// Turn what came to an address into a leaf.
    Claim {
        /// Which; without it every address that waits.
        #[arg(long)]
        address: Option<String>,
        /// Funding transaction, also before it is confirmed.
        #[arg(long, requires = "address", conflicts_with = "tx")]
        txid: Option<bitcoin::Txid>,
        /// Funding transaction as hex, without bitcoind.
        #[arg(long, requires = "address")]
        tx: Option<String>,
    },
    /// Addresses and what became of them.
    List {
        /// What came to the static addresses.
        #[arg(long = "static")]
        is_static: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Spark address or invoice.
    #[arg(required_unless_present = "to_all", conflicts_with = "to_all")]
    pub(crate) to: Option<String>,
    /// With unit: 1000sat, 0.001btc. An invoice may have its own.
    #[arg(conflicts_with = "to_all")]
    pub(crate) amount: Option<spark_wallet::amount::Sats>,
    /// A receiver and its amount, as address:amount; or one invoice. Several receivers all get theirs, or none does.
    #[arg(long = "to", value_name = "ADDRESS:AMOUNT")]
    pub(crate) to_all: Vec<String>,
    /// Transfer id; the same id is the same transfer.
    #[arg(long)]
    pub(crate) id: Option<uuid::Uuid>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Htlc {
    /// Lock money for a receiver who shows a preimage before it expires.
    Create {
        /// Spark address.
        to: String,
        /// With unit: 1000sat, 0.001btc.
        amount: spark_wallet::amount::Sats,
        /// SHA-256 of somebody else's preimage, hex. Without it the preimage is this wallet's, shown once it is locked.
        #[arg(long, value_parser = parse_hash)]
        payment_hash: Option<Hash>,
        /// Seconds until it expires; operators make at least six blocks of it, and return it six blocks later.
        #[arg(long, default_value_t = 24 * 3600)]
        expires: u64,
        /// Transfer id; the same id is the same transfer.
        #[arg(long)]
        id: Option<uuid::Uuid>,
    },
    /// Take what waits for a preimage, if all operators show it and it is enough.
    Claim {
        /// Hex.
        #[arg(value_parser = parse_hash)]
        preimage: Hash,
        /// The least that must wait for it; for less the preimage is not told. With unit: 1000sat, 0.001btc.
        #[arg(long)]
        amount: spark_wallet::amount::Sats,
    },
    /// Show the signed transactions that take it without the operators: with the preimage once it was told, or by time.
    Exit {
        /// Transfer id.
        id: uuid::Uuid,
        /// Bitcoin address.
        #[arg(long)]
        to: String,
        /// Of the last transaction, sat/vB.
        #[arg(long, default_value_t = spark_wallet::exit::DEFAULT_FEE_RATE)]
        fee_rate: u64,
    },
    /// What waits, was settled, or came back.
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Withdraw {
    /// How many connectors a provider must offer.
    Plan {
        /// With unit: 1000sat, 0.001btc.
        amount: spark_wallet::amount::Sats,
    },
    /// Take a provider's offer, if its transaction pays what is asked for.
    Make {
        /// What the leaves are worth, with unit: 1000sat, 0.001btc.
        amount: spark_wallet::amount::Sats,
        /// Bitcoin address for the money.
        #[arg(long)]
        to: String,
        /// What must come there, with unit: the amount less the provider's fee.
        #[arg(long)]
        payout: spark_wallet::amount::Sats,
        /// Provider's Spark address.
        #[arg(long)]
        provider: String,
        /// The transaction that pays, hex.
        #[arg(long)]
        exit_tx: String,
        /// The transaction that spends it, with an output for each leaf and one more, hex.
        #[arg(long)]
        connector_tx: String,
        /// Seconds until it expires; operators make at least six blocks of it, and return it six blocks later.
        #[arg(long, default_value_t = 7 * 24 * 3600)]
        expires: u64,
        /// Transfer id; the same id is the same withdrawal.
        #[arg(long)]
        id: Option<uuid::Uuid>,
    },
    /// What waits for its payment, was paid, or came back.
    List,
}

/// 32 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hash(pub(crate) [u8; 32]);

fn parse_hash(text: &str) -> Result<Hash, String> {
    hex::FromHex::from_hex(text).map(Hash).map_err(|_| "64 hex digits".into())
}

#[derive(Debug, Args)]
pub(crate) struct Invoice {
    /// With unit: 1000sat, 0.001btc. Without it the payer chooses.
    #[arg(long)]
    pub(crate) amount: Option<spark_wallet::amount::Sats>,
    /// What it is for.
    #[arg(long)]
    pub(crate) memo: Option<String>,
    /// Seconds until which it may be paid.
    #[arg(long)]
    pub(crate) expires: Option<u64>,
    /// Spark address of the only payer allowed.
    #[arg(long)]
    pub(crate) sender: Option<String>,
    /// Also as QR code.
    #[arg(long)]
    pub(crate) qr: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Exit {
    /// Cost and time, before anything is sent.
    Plan {
        /// Leaf id.
        leaf: String,
        /// sat/vB.
        #[arg(long)]
        fee_rate: Option<u64>,
    },
    /// Begin, and broadcast what can go out now.
    Start {
        /// Leaf id.
        leaf: String,
        /// Bitcoin address for the money.
        #[arg(long)]
        to: String,
        /// sat/vB.
        #[arg(long)]
        fee_rate: Option<u64>,
        /// Also where fees eat the leaf, or where it was sent away.
        #[arg(long)]
        force: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Go on until the money has arrived.
        #[arg(long)]
        wait: bool,
    },
    /// Where exits stand.
    Status {
        /// Leaf id; without it all.
        leaf: Option<String>,
    },
    /// Broadcast what can go out now; a higher fee rate replaces the child in the mempool.
    Resume {
        /// Leaf id.
        leaf: String,
        /// sat/vB.
        #[arg(long)]
        fee_rate: Option<u64>,
        /// Go on until the money has arrived; fees follow the estimate.
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bundle {
    /// Write it.
    Export {
        /// New file.
        file: PathBuf,
    },
    /// Take leaves from it.
    Import {
        /// The file.
        file: PathBuf,
    },
}

fn parse_words(text: &str) -> Result<u8, String> {
    match text {
        "12" => Ok(12),
        "24" => Ok(24),
        _ => Err("12 or 24".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn amounts_need_units_and_options_may_follow() {
        let parse = |args: &[&str]| Cli::try_parse_from(std::iter::once(&"spark-wallet").chain(args));
        assert!(parse(&["send", "sparkrt1x", "1000"]).is_err());
        assert!(parse(&["send", "sparkrt1x", "1000sat", "--json", "--dir", "/w"]).is_ok());
        assert!(parse(&["send"]).is_err());
        assert!(parse(&["send", "a", "1sat", "--to", "b:1sat"]).is_err());
        assert!(parse(&["send", "sparkrt1invoice"]).is_ok());
        assert!(parse(&["send", "--to", "a:1sat", "--to", "b:2sat"]).is_ok());
        assert!(parse(&["invoice", "--amount", "1000sat", "--memo", "rent", "--expires", "60"]).is_ok());
        assert!(parse(&["deposit", "claim", "--txid", &"00".repeat(32)]).is_err());
        assert!(parse(&["create", "--words", "15"]).is_err());
        assert!(parse(&["deposit", "address", "--rotate"]).is_err());
        assert!(parse(&["deposit", "address", "--static", "--rotate"]).is_ok());
        assert!(parse(&["deposit", "refund", "--to", "x"]).is_err());
        assert!(parse(&["htlc", "create", "sparkrt1x", "1000sat", "--expires", "600"]).is_ok());
        assert!(parse(&["htlc", "create", "sparkrt1x", "1000sat", "--payment-hash", "00"]).is_err());
        assert!(parse(&["htlc", "claim", &"00".repeat(32), "--amount", "1000sat"]).is_ok());
        assert!(parse(&["htlc", "claim", &"00".repeat(32)]).is_err(), "whatever waits");
        assert!(parse(&["withdraw", "plan", "1000sat"]).is_ok());
        assert!(parse(&["withdraw", "make", "1000sat", "--to", "bcrt1q"]).is_err());
    }
}
