//! Tests on real processes: bitcoind, Postgres, tokens, signers, operators, wallets. One program, since each links
//! everything: many would take longer to build than to run. `cargo test -p spark-devnet --test it -- crashes::` runs
//! one part.

mod admin;
mod certs;
mod chain;
mod coop_exits;
mod crashes;
mod deposits;
mod devices;
mod e2e;
mod federation;
mod hardened;
mod holes;
mod htlc;
mod layering;
mod metrics;
mod postgres;
mod processes;
mod renewals;
mod repairs;
mod repeats;
mod restores;
mod rivals;
mod secrets;
mod static_deposits;
mod support;
mod surface;
mod transfers;
mod vaults;
mod wallet;
