//! How a release is judged, and who is told.

use jiff::{Timestamp, civil::Weekday, tz::TimeZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Percent, ten_minutes};
use crate::api::quantity::Duration;

/// How sure a decision must be, and what happens when none can be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// Chance that a release within all its limits is rolled back: all its stages and criteria
    /// together, however often one looks.
    #[serde(default = "one_percent")]
    pub false_rollback: Percent,
    /// Chance that a stage passes although a criterion is at its limit or beyond.
    #[serde(default = "five_percent")]
    pub false_pass: Percent,
    /// Fewest users who must have used the candidate before a stage may pass.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 40))]
    pub minimum_users: i32,
    /// What happens when a stage has had its longest time and the evidence does not suffice.
    #[serde(default)]
    pub on_insufficient_data: OnInsufficientData,
    /// What happens when metrics stay unavailable for longer than metricsTimeout. The clock of
    /// the stage stands still from the first moment.
    #[serde(default)]
    pub on_metrics_outage: OnMetricsOutage,
    /// How long metrics may be unavailable.
    #[serde(default = "ten_minutes")]
    pub metrics_timeout: Duration,
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            false_rollback: one_percent(),
            false_pass: five_percent(),
            minimum_users: five(),
            on_insufficient_data: OnInsufficientData::default(),
            on_metrics_outage: OnMetricsOutage::default(),
            metrics_timeout: ten_minutes(),
        }
    }
}

fn one_percent() -> Percent {
    Percent("1%".into())
}

fn five_percent() -> Percent {
    Percent("5%".into())
}

fn five() -> i32 {
    5
}

/// What happens when a stage cannot be decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnInsufficientData {
    /// Wait for a person.
    #[default]
    Pause,
    /// Go on: nothing bad was shown.
    Advance,
    /// Take the candidate back.
    Rollback,
}

/// What happens when metrics are unavailable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnMetricsOutage {
    /// Show the release as paused; it goes on by itself when the metrics are back.
    #[default]
    Pause,
    /// Stay in the phase, with the clock standing still.
    Hold,
}

/// A metric of your own. It counts bad events among all events, as two counters that only rise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!(self.provider in ['Prometheus', 'Web']) || (has(self.address) && has(self.bad) && has(self.total))")
        .message("a Prometheus or Web metric needs address, bad and total: two counters that only rise"),
    validation = Rule::new("self.provider != 'Gateway' || has(self.tools)")
        .message("a Gateway metric of your own counts failed calls of some tools: name them in tools")
)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// Name, as success criteria use it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][A-Za-z0-9]*$"))]
    pub name: String,
    /// Who counts.
    pub provider: Provider,
    /// URL of the Prometheus server, or of the JSON document. `{{revision}}` stands for the
    /// revision that is asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^\s]+$"))]
    pub address: Option<String>,
    /// Counter of bad events: PromQL, or a JSONPath. `{{revision}}` as in address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub bad: Option<String>,
    /// Counter of all events: PromQL, or a JSONPath. `{{revision}}` as in address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub total: Option<String>,
    /// Tools whose calls the gateway counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub tools: Option<Vec<String>>,
}

/// Who counts a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Provider {
    /// A Prometheus server.
    Prometheus,
    /// A JSON document.
    Web,
    /// The gateways of Perch.
    Gateway,
    /// Reports of vulnerability scanners.
    Scan,
}

/// What happens when the candidate's tools differ from those of the stable revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolContract {
    /// When a call that worked may no longer work, or may do more harm.
    #[serde(default)]
    pub on_breaking: OnBreaking,
    /// When a description or anything else that a model reads has changed.
    #[serde(default)]
    pub on_description_change: OnDescriptionChange,
}

/// What happens at a breaking change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnBreaking {
    /// No traffic until a person resumes the release.
    #[default]
    Block,
    /// Say so and go on.
    Warn,
}

/// What happens at a change of what models read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnDescriptionChange {
    /// Say so and go on.
    #[default]
    Warn,
    /// No traffic until a person has reviewed it and resumes the release.
    Approve,
    /// Go on.
    Ignore,
}

/// A time at which no release starts or advances: from start to end, or each week on some days
/// between two times (UTC).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("(has(self.start) && has(self.end)) != (has(self.days) && has(self.from) && has(self.until))")
        .message("set start and end for one window, or days, from and until for one that comes each week"),
    validation = Rule::new("!has(self.from) || !has(self.until) || self.from < self.until")
        .message("from must be before until on the same day: use two windows to cross midnight")
)]
#[serde(rename_all = "camelCase")]
pub struct FreezeWindow {
    /// Name of the window.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// When it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Time>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Time>,
    /// Days of the week.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 7))]
    pub days: Option<Vec<Day>>,
    /// Time of day, UTC: `16:00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub from: Option<String>,
    /// Time of day, UTC: `24:00` is the end of the day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 5), regex(pattern = r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"))]
    pub until: Option<String>,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Day {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl FreezeWindow {
    /// Whether the window holds at a moment.
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        if let (Some(start), Some(end)) = (&self.start, &self.end) {
            return start.0 <= now && now < end.0;
        }
        let (Some(days), Some(from), Some(until)) = (&self.days, &self.from, &self.until) else { return false };
        let here = now.to_zoned(TimeZone::UTC);
        let today = match here.weekday() {
            Weekday::Monday => Day::Monday,
            Weekday::Tuesday => Day::Tuesday,
            Weekday::Wednesday => Day::Wednesday,
            Weekday::Thursday => Day::Thursday,
            Weekday::Friday => Day::Friday,
            Weekday::Saturday => Day::Saturday,
            Weekday::Sunday => Day::Sunday,
        };
        let time = format!("{:02}:{:02}", here.hour(), here.minute());
        days.contains(&today) && *from <= time && time < *until
    }
}

/// Somebody who is told about a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// Name of the receiver.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Form of the message.
    #[serde(rename = "type", default)]
    pub type_: AlertType,
    /// Where the URL is: a key of a Secret in the namespace of the release.
    pub url_from: AlertUrl,
    /// What is told.
    #[serde(default = "all_events")]
    #[schemars(length(min = 1, max = 4))]
    pub events: Vec<AlertEvent>,
}

fn all_events() -> Vec<AlertEvent> {
    vec![AlertEvent::RolledBack, AlertEvent::Paused, AlertEvent::ApprovalNeeded, AlertEvent::Promoted]
}

/// Form of an alert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AlertType {
    /// The incident record as JSON.
    #[default]
    Webhook,
    /// A message for Slack and what speaks its webhooks.
    Slack,
    /// An alert for the Alertmanager API.
    Alertmanager,
}

/// A key of a `Secret` that holds a URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlertUrl {
    /// Name of the Secret.
    #[schemars(length(min = 1))]
    pub secret_name: String,
    /// Its key.
    #[schemars(length(min = 1))]
    pub key: String,
}

/// What people can be told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AlertEvent {
    /// A release was taken back, or failed before it had users.
    RolledBack,
    /// A release waits for a person.
    Paused,
    /// A stage waits for approval.
    ApprovalNeeded,
    /// A release reached everybody.
    Promoted,
}
