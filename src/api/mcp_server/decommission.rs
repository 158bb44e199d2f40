//! `spec.decommission`: the end of a server by stages, and how far it is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::quantity::Duration;

const DAY: u64 = 24 * 3600;

/// The end of a server: its users are told, fewer and fewer of them are served, it is archived and
/// stopped, and at last removed. Taken away before the last step, everything is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.reason.matches('[^ ]')")
        .message("say in reason why the server goes away: the people who use it read it"),
    validation = Rule::new("[self.notice, self.reduction, self.keep].all(d, duration(d) <= duration('87600h'))")
        .message("notice, reduction and keep may each be ten years (87600h) at most")
)]
#[serde(rename_all = "camelCase")]
pub struct Decommission {
    /// Why the server goes away, for the people who use it.
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// What to use instead: the name of another server, or a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub replacement: Option<String>,
    /// How long everybody is still served and told; 30 days by default.
    #[serde(default = "thirty_days")]
    pub notice: Duration,
    /// How long after that fewer and fewer users are served, in ten equal steps; 7 days by default.
    /// In the last step nobody is. Then the server is archived and stopped.
    #[serde(default = "seven_days")]
    pub reduction: Duration,
    /// How long the stopped server stays before it is removed; 30 days by default.
    #[serde(default = "thirty_days")]
    pub keep: Duration,
}

fn thirty_days() -> Duration {
    Duration::from_secs(30 * DAY)
}

fn seven_days() -> Duration {
    Duration::from_secs(7 * DAY)
}

/// How far the end of a server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DecommissionStatus {
    /// When Perch saw the declaration first. All other times follow from it and the spec.
    pub since: Time,
    /// The stage.
    pub phase: DecommissionPhase,
    /// Percentage of the users who are still served.
    pub percentage: i32,
    /// From when on fewer users are served.
    pub reduces_at: Time,
    /// When the server is archived and stopped.
    pub stops_at: Time,
    /// When it is removed.
    pub removes_at: Time,
    /// Name of the ConfigMap that the server is archived in, once it is. It stays when the server goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
}

/// A stage of the end of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DecommissionPhase {
    /// Everybody is served, and told.
    Noticed,
    /// Fewer and fewer users are served.
    Reducing,
    /// It is archived, and nothing of it runs.
    Stopped,
}
