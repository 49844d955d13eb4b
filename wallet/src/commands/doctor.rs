use std::{path::Path, process::ExitCode, time::Instant};

use spark_rules::address::Network;
use spark_wallet::{Wallet, config::Config};

use super::{Done, Printer};
use crate::output::{Check, Health, explain};

pub(super) async fn run(dir: &Path, printer: Printer) -> Done {
    let mut checks = Vec::new();
    match Config::load(dir) {
        Ok(config) => {
            let f = &config.federation;
            let detail = format!(
                "{} of {} on {}, hash {}",
                f.threshold(),
                f.size(),
                config.network,
                hex::encode(f.hash())
            );
            checks.push(check("configuration", true, detail));
            match Wallet::open(dir) {
                Ok(wallet) => {
                    checks.push(check(
                        "seed and state",
                        true,
                        wallet.keys().identity().public_key().to_string(),
                    ));
                    operators(&wallet, &mut checks).await;
                    bitcoind(&wallet, &mut checks).await;
                }
                Err(error) => checks.push(check("seed and state", false, explain(&error))),
            }
        }
        Err(error) => checks.push(check("configuration", false, explain(&error))),
    }
    let health = Health { ok: checks.iter().all(|c| c.ok), checks };
    printer.show(&health)?;
    Ok(ExitCode::from(if health.ok { 0 } else { 4 }))
}

fn check(name: impl Into<String>, ok: bool, detail: impl Into<String>) -> Check {
    Check { name: name.into(), ok, detail: detail.into() }
}

async fn operators(wallet: &Wallet, checks: &mut Vec<Check>) {
    let key = wallet.keys().identity();
    let answers = wallet
        .operators()
        .each(|o| async move {
            let start = Instant::now();
            o.login(key).await.map(|()| start.elapsed())
        })
        .await;
    for (index, answer) in answers {
        let name = format!("operator {}", index.get());
        checks.push(match answer {
            Ok(time) => check(name, true, format!("login in {} ms", time.as_millis())),
            Err(error) => check(name, false, explain(&error)),
        });
    }
}

async fn bitcoind(wallet: &Wallet, checks: &mut Vec<Check>) {
    let Some(chain) = wallet.chain_if_any() else {
        let detail = "not configured: deposits need --tx, exits are not possible";
        checks.push(check("bitcoind", true, detail));
        return;
    };
    let expected = match wallet.config().network {
        Network::Mainnet => "main",
        Network::Testnet => "test",
        Network::Signet => "signet",
        Network::Regtest => "regtest",
    };
    checks.push(match (chain.network().await, chain.height().await) {
        (Ok(network), Ok(height)) => {
            check("bitcoind", network == expected, format!("{network}, height {height}"))
        }
        (Err(error), _) | (_, Err(error)) => check("bitcoind", false, explain(&error)),
    });
}
