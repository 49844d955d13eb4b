//! Verifies an operator's deletion log and says what that proves. Exit code 0: all holds; 1: something does not;
//! 2: the question or an input is no good.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use spark_verify::{
    Error, Location, Options, Report,
    refreshes::{self, LogReport, Refreshes},
    verify,
};

/// Verifies what operators say about deletion. Shares no code with them.
#[derive(Debug, Parser)]
#[command(name = "spark-verify", version)]
struct Cli {
    /// One JSON object on standard output.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Re-checks a whole deletion log: tree, tiles, signatures, and for auditors the entries.
    Log(Log),
    /// Compares the reports of all operators' logs: which keyshares that came back by repair all have refreshed since.
    Refreshes(Reports),
}

#[derive(Debug, Args)]
struct Reports {
    /// Reports of `spark-verify --json log --entries …`, one for each operator.
    #[arg(required = true, value_name = "FILE")]
    reports: Vec<PathBuf>,
}

impl Reports {
    fn compare(&self) -> Result<Refreshes, Error> {
        let read = |path: &PathBuf| {
            let file = |error| Error::File { path: path.display().to_string(), error };
            let text = std::fs::read(path).map_err(file)?;
            let malformed = |error: serde_json::Error| Error::Usage(format!("{}: {error}", path.display()));
            serde_json::from_slice::<LogReport>(&text).map_err(malformed)
        };
        let reports = self.reports.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        refreshes::compare(&reports).map_err(Error::Usage)
    }
}

#[derive(Debug, Args)]
struct Log {
    /// Federation file.
    #[arg(long, value_name = "FILE")]
    federation: PathBuf,
    /// Index of the operator whose log it is.
    #[arg(long, value_name = "N")]
    operator: u16,
    /// The log over HTTPS.
    #[arg(
        long,
        value_name = "https://HOST:PORT/PATH",
        required_unless_present = "dir",
        conflicts_with = "dir"
    )]
    url: Option<String>,
    /// Authorities of the server's certificate, PEM. There are no built-in ones.
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
    /// The log as a folder.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Receipts, one a line as JSON, in the order of the log.
    #[arg(long, value_name = "FILE")]
    entries: Option<PathBuf>,
    /// An earlier checkpoint; the log must continue it.
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// Cosignatures of other operators that are needed [default: as many as exclude two forks].
    #[arg(long, value_name = "K")]
    witnesses: Option<usize>,
    /// Stores the checkpoint if everything holds, for --since of the next visit.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

impl Log {
    fn options(self) -> Result<Options, Error> {
        let location = match (self.dir, self.url, self.ca) {
            (Some(dir), _, _) => Location::Directory(dir),
            (None, Some(url), Some(ca)) => Location::Https { url, ca },
            (None, Some(_), None) => {
                return Err(Error::Usage(
                    "--url needs --ca with the authorities of the server; there are no built-in ones"
                        .to_owned(),
                ));
            }
            (None, None, _) => return Err(Error::Usage("one of --url and --dir is needed".to_owned())),
        };
        Ok(Options {
            federation: self.federation,
            operator: self.operator,
            location,
            entries: self.entries,
            since: self.since,
            witnesses: self.witnesses,
            save: self.save,
        })
    }
}

fn run(log: Log) -> Result<Report, Error> {
    let options = log.options()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::File { path: "runtime".to_owned(), error })?;
    runtime.block_on(verify(&options))
}

fn to_json(found: &impl serde::Serialize) -> String {
    format!("{}\n", serde_json::to_string(found).unwrap_or_default())
}

fn main() -> ExitCode {
    let Cli { json, command } = Cli::parse();
    let said = match command {
        Command::Log(log) => run(log).map(|report| {
            let text = if json { to_json(&report) } else { report.to_string() };
            (text, report.holds)
        }),
        Command::Refreshes(reports) => reports.compare().map(|found| {
            let text = if json { to_json(&found) } else { found.to_string() };
            (text, found.holds)
        }),
    };
    match said {
        Ok((text, holds)) => {
            print!("{text}");
            ExitCode::from(u8::from(!holds))
        }
        Err(error) => {
            if json {
                println!("{}", json!({ "error": error.to_string(), "reason": error.reason() }));
            }
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
