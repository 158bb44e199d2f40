//! What a gateway reports about the releases that it takes part in: the contract between the
//! gateway, which serves it as JSON, and whoever judges releases by it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::canary_release::Counts;

/// Path on the gateway's admin listener.
pub const REPORT_PATH: &str = "/-/report";

/// What one gateway reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayReport {
    /// The gateway: its pod or host.
    pub gateway: String,
    /// When this life of it began. Together with the name it tells lives apart.
    pub started_at: Timestamp,
    /// Whether it knows all servers and releases: until then its epochs say nothing.
    pub synced: bool,
    /// The servers that a release divides, or whose old revision still has work.
    pub servers: Vec<ServerReport>,
}

/// What it reports about one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerReport {
    /// Namespace of the `McpServer`.
    pub namespace: String,
    /// Name of the `McpServer`.
    pub name: String,
    /// The release whose routing the gateway runs.
    pub release_id: String,
    /// The epoch of that routing (`status.routing.desiredEpoch`).
    pub epoch: i64,
    /// One for each revision that was asked for since the release is known.
    pub revisions: Vec<RevisionReport>,
}

/// What it reports about one revision of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionReport {
    /// Name of the revision.
    pub revision: String,
    /// When its counters were zero.
    pub since: Timestamp,
    /// Calls and streams in hand.
    pub in_flight: i64,
    /// The users that were seen, one bit for each 52nd of them.
    pub users: i64,
    /// The counters, one for each signal that the release judges by.
    pub counters: Vec<Counter>,
}

/// Bad events and all events of one signal. They only rise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counter {
    /// What is counted.
    pub signal: CountedSignal,
    /// How many, in cells of users.
    pub counts: Counts,
}

/// What a gateway counts as a bad event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CountedSignal {
    /// Failed calls: transport failures, 5xx, timeouts, JSON-RPC internal errors, `isError: true`.
    Errors,
    /// Calls that took longer than this, in microseconds.
    SlowerThan(u64),
    /// Calls that the server could not be reached for.
    Unavailable,
    /// Calls with invalid parameters, and calls of unknown tools.
    SchemaErrors,
    /// Calls without a trace context, and calls that were never answered.
    IncompleteTraces,
    /// Answers of users who were not satisfied; all events are answers, not calls.
    Dissatisfied,
    /// Failed calls among the calls of some tools: a metric of the release's own, by its name.
    OfTools(String),
}
