//! What a gateway reports about the releases that it takes part in, and about how much servers are
//! used: the contract between the gateway, which serves it as JSON, and whoever goes by it.

use jiff::{Timestamp, civil::Date};
use serde::{Deserialize, Serialize};

use super::canary_release::Counts;

/// Path on the gateway's admin listener.
pub const REPORT_PATH: &str = "/-/report";

/// Path on the gateway's admin listener, for how much servers are used.
pub const USAGE_PATH: &str = "/-/usage";

/// What one gateway reports about how much servers are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageReport {
    /// The gateway: its pod or host.
    pub gateway: String,
    /// When this life of it began. Together with the name it tells lives apart.
    pub started_at: Timestamp,
    /// The servers that were used in this life.
    pub servers: Vec<ServerUsage>,
}

/// How much one server was used through one gateway, in this life of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerUsage {
    /// Namespace of the `McpServer`.
    pub namespace: String,
    /// Name of the `McpServer`.
    pub name: String,
    /// When somebody last asked it to do something.
    pub last_request: Timestamp,
    /// Requests. They only rise.
    pub requests: i64,
    /// The last days with requests, 31 at most.
    pub days: Vec<DayUsage>,
}

/// How much one server was used on one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DayUsage {
    /// The day in UTC.
    pub date: Date,
    /// Requests.
    pub requests: i64,
    /// The users that were seen, one bit for each 52nd of them.
    pub users: i64,
}

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
