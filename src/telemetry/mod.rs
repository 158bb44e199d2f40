//! Logs: structured, on standard error, filtered by `PERCH_LOG` as `cli` passes it. [`admin`]
//! serves health and metrics, [`traces`] sends spans.

pub mod admin;
pub mod traces;

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person at a terminal.
    Text,
    /// One JSON object a line, for a log pipeline.
    Json,
}

/// Installs the process-wide subscriber. A second call has no effect.
///
/// `filter` uses the syntax of `tracing_subscriber::EnvFilter`; an invalid directive is dropped.
pub fn init(filter: &str, format: LogFormat) {
    let filter = harmless(filter);
    let registry = tracing_subscriber::registry().with(filter);
    // Whoever read standard error may have gone. To report that there would panic, in the middle of
    // whatever was being logged.
    let layer = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let _ = match format {
        LogFormat::Text => registry.with(layer.with_ansi(std::io::stderr().is_terminal())).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    };
}

/// The filter without what must never be logged: the Kubernetes client prints whole objects that it
/// cannot read, and such an object may be a Secret.
fn harmless(filter: &str) -> EnvFilter {
    let filter = EnvFilter::builder().parse_lossy(filter);
    match "kube_client::client=error".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_filter_makes_the_client_print_objects() {
        for filter in ["warn", "trace", "kube_client=debug", "kube_client::client=trace"] {
            let text = harmless(filter).to_string();
            assert!(text.contains("kube_client::client=error"), "{filter}: {text}");
            assert!(!text.contains("kube_client::client=trace"), "{filter}: {text}");
        }
    }
}
