//! How long things take.

use std::time::Instant;

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::session::Session;
use spark_signer::vault::TokenError;

use super::Options;
use super::report::{Growth, Latency, Report};
use super::scratch::Scratch;

pub(super) fn measure(scratch: &Scratch, options: &Options, report: &mut Report) -> Result<(), TokenError> {
    if options.runs == 0 || !report.is_yes("hmac-root") {
        return Ok(());
    }
    let runs = usize::from(options.runs);
    let label = scratch.label("timed");
    let cycle = |session: &Session| {
        let (root, _) = scratch.root(session, &label)?;
        session.sign(&Mechanism::Sha256Hmac, root, b"cycle")?;
        session.destroy_object(root)
    };
    let measured = scratch.session(|session| {
        let (root, _) = scratch.root(session, &scratch.label("timed-hmac"))?;
        let hmac = times(runs, || session.sign(&Mechanism::Sha256Hmac, root, b"time").map(drop))?;
        session.destroy_object(root)?;
        let cycles = times(runs, || cycle(session))?;
        Ok((hmac, cycles))
    })?;
    let Ok((hmac, cycles)) = measured else { return Ok(()) };
    let before_us = median(&cycles);
    report.latencies.push(latency("hmac-sha256", hmac));
    report.latencies.push(latency("root-cycle", cycles));
    if options.objects == 0 {
        return Ok(());
    }
    let grown = scratch.session(|session| {
        let ballast = scratch.label("ballast");
        for _ in 0..options.objects {
            scratch.root(session, &ballast)?;
        }
        let cycles = times(runs, || cycle(session))?;
        for object in Scratch::find(session, &ballast)? {
            session.destroy_object(object)?;
        }
        Ok(cycles)
    })?;
    if let Ok(cycles) = grown {
        report.growth = Some(Growth { objects: options.objects, before_us, with_us: median(&cycles) });
    }
    Ok(())
}

/// Sorted microseconds.
fn times(runs: usize, mut call: impl FnMut() -> Result<(), Error>) -> Result<Vec<u64>, Error> {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let start = Instant::now();
        call()?;
        times.push(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    times.sort_unstable();
    Ok(times)
}

fn median(sorted: &[u64]) -> u64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

fn latency(operation: &'static str, sorted: Vec<u64>) -> Latency {
    Latency {
        operation,
        median_us: median(&sorted),
        slowest_us: sorted.last().copied().unwrap_or(0),
        runs: sorted.len(),
    }
}
