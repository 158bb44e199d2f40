//! Where traces go, by arguments and by the variables that OpenTelemetry names.

use std::{sync::Arc, time::Duration};

use url::Url;

use super::{args::Otlp, exit::Failure};
use crate::telemetry::traces::{TraceConfig, Traces};

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// The first of these variables that is set.
fn first(names: [&str; 2]) -> Option<String> {
    names.into_iter().find_map(variable)
}

fn number<T: std::str::FromStr>(name: &str) -> Result<Option<T>, Failure> {
    let Some(text) = variable(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Failure::usage(format!("{name} is {text:?}, which is no number")))
}

/// Begins to send traces, if somebody says where to.
pub fn start(args: &Otlp, instance: &str) -> Result<Option<Arc<Traces>>, Failure> {
    let off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value.eq_ignore_ascii_case("none"));
    // The endpoint of traces alone is taken as it is; what is for all signals gets their path.
    let base = args.otlp_endpoint.as_deref().map(str::trim).filter(|url| !url.is_empty());
    let own = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let endpoint = own.or_else(|| base.map(|base| format!("{}/v1/traces", base.trim_end_matches('/'))));
    let Some(endpoint) = endpoint.filter(|_| !off) else { return Ok(None) };
    if !Url::parse(&endpoint).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
        return Err(Failure::usage(format!(
            "{endpoint} is no URL that traces can be sent to: give one such as http://127.0.0.1:4318"
        )));
    }
    let protocol = first(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
    if let Some(protocol) = protocol.filter(|protocol| protocol != "http/protobuf") {
        return Err(Failure::usage(format!(
            "traces are sent by http/protobuf, not by {protocol}: receivers take it on port 4318"
        )));
    }
    let defaults = TraceConfig::new(endpoint, instance);
    let config = TraceConfig {
        ratio: args.trace_ratio,
        certificate: first(["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"]).map(Into::into),
        service_name: variable("OTEL_SERVICE_NAME"),
        queue: number("OTEL_BSP_MAX_QUEUE_SIZE")?.unwrap_or(defaults.queue),
        batch: number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")?.unwrap_or(defaults.batch),
        delay: number("OTEL_BSP_SCHEDULE_DELAY")?.map_or(defaults.delay, Duration::from_millis),
        ..defaults
    };
    Traces::start(&config).map(|traces| Some(Arc::new(traces))).map_err(|error| Failure::failed(error.to_string()))
}
