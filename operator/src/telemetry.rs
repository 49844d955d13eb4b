//! Logging: JSON for machines, lines for people.

use std::io::IsTerminal as _;

use serde::Deserialize;
use tracing_subscriber::{EnvFilter, filter::ParseError, util::TryInitError};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// JSON unless standard error is a terminal.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// For people.
    Human,
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("log filter {filter:?} is not valid")]
    Filter {
        /// As given.
        filter: String,
        /// Why.
        #[source]
        source: ParseError,
    },
    /// Another subscriber is installed.
    #[error("logging is set up already")]
    Installed(#[source] TryInitError),
}

/// Sends events of the process to standard error. `filter` is in the syntax of `RUST_LOG`, for instance
/// `info,spark_operator=debug`.
///
/// # Errors
/// The filter does not parse, or logging runs already.
pub fn init(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    use tracing_subscriber::util::SubscriberInitExt as _;
    let parsed = EnvFilter::try_new(filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    let json = match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Json => true,
        LogFormat::Human => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    let installed = if json {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).finish().try_init()
    } else {
        builder.compact().finish().try_init()
    };
    installed.map_err(TelemetryError::Installed)
}
