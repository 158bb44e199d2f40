//! Tells people about a release by webhook.
//!
//! [`Alerts::tell`] is called after a status was written, with what happened in it. It only puts
//! letters into a queue, so no receiver ever holds up a decision; when the queue is full, or when
//! the operator dies before a letter is out, the letter is lost and the status still says it all.
//! So each thing that happened is told at most once; a receiver that answered too late may get a
//! letter twice and knows it by its id. Retries are bounded, and only for what may pass.
//!
//! The URL is a secret (whoever has it may post), so it is read when it is needed, from the one
//! Secret that the release names, and it is in no log and no error.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::incident::{Incident, under_way};
use crate::{
    api::canary_release::{Alert, AlertEvent, AlertType, CanaryRelease, HoldReason},
    canary::StoryEvent,
};

/// Letters that wait at most.
const QUEUE: usize = 256;
/// Letters that are on their way at once.
const AT_ONCE: usize = 16;
/// How long an Alertmanager shows an alert.
const SHOWN: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// Something that people are told about.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// The same for the same thing, however often it arrives.
    pub id: String,
    /// What kind of thing.
    pub event: AlertEvent,
    /// Why, in one word.
    pub reason: String,
    /// What, in one sentence.
    pub message: String,
    /// When.
    pub at: Timestamp,
    /// Namespace of the release.
    pub namespace: String,
    /// Name of the `CanaryRelease`.
    pub release: String,
    /// Name of the `McpServer`.
    pub server: String,
    /// `status.releaseId`.
    pub release_id: String,
    /// The revision that everybody falls back to.
    pub stable_revision: String,
    /// The revision that is or was released.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate_revision: Option<String>,
    /// The stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// All about a rollback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incident: Option<Incident>,
}

/// What of a story people are told about. `release` has the status that was written with it.
#[must_use]
pub fn notices(release: &CanaryRelease, story: &[StoryEvent]) -> Vec<Notice> {
    let Some(status) = &release.status else { return Vec::new() };
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let release_id = status.release_id.clone().unwrap_or_default();
    let told = story.iter().filter_map(|event| {
        let kind = kind(event.reason)?;
        let last = status.history.first().filter(|entry| entry.release_id == release_id);
        let (reason, at) = match kind {
            AlertEvent::RolledBack => status.ending.as_ref().map(|e| (e.reason.as_str(), e.at.0)),
            AlertEvent::Paused | AlertEvent::ApprovalNeeded => {
                status.hold.as_ref().map(|h| (h.reason.as_str(), h.since.0))
            }
            AlertEvent::Promoted => last.map(|entry| (entry.reason.as_str(), entry.ended_at.0)),
        }
        // It has passed already; what happened has happened all the same.
        .or_else(|| status.last_tick.as_ref().map(|tick| (event.reason, tick.0)))?;
        Some(Notice {
            id: format!("{namespace}/{name}/{release_id}/{kind:?}/{at}"),
            event: kind,
            reason: reason.to_owned(),
            message: event.message.clone(),
            at,
            namespace: namespace.clone(),
            release: name.clone(),
            server: release.spec.target_ref.name.clone(),
            release_id: release_id.clone(),
            stable_revision: status.stable_revision.clone().unwrap_or_default(),
            candidate_revision: status.candidate_revision.clone(),
            stage: status.stage.as_ref().map(|stage| stage.name.clone()),
            incident: under_way(release).filter(|_| kind == AlertEvent::RolledBack),
        })
    });
    told.collect()
}

/// What a reason of a story event means to people. A rollback is told when it is decided, not
/// again when it is done.
fn kind(reason: &str) -> Option<AlertEvent> {
    const PAUSES: [HoldReason; 6] = [
        HoldReason::Spec,
        HoldReason::Command,
        HoldReason::SharedDegradation,
        HoldReason::InsufficientData,
        HoldReason::MetricsOutage,
        HoldReason::ToolContractBroken,
    ];
    if PAUSES.iter().any(|hold| hold.as_str() == reason) {
        return Some(AlertEvent::Paused);
    }
    if [HoldReason::Approval, HoldReason::ToolReview].iter().any(|hold| hold.as_str() == reason) {
        return Some(AlertEvent::ApprovalNeeded);
    }
    match reason {
        "RollingBack" => Some(AlertEvent::RolledBack),
        "Promoted" => Some(AlertEvent::Promoted),
        _ => None,
    }
}

/// The body of a letter in the form that its receiver reads.
#[must_use]
pub fn body(form: AlertType, notice: &Notice) -> Value {
    let title = match notice.event {
        AlertEvent::RolledBack => "is taken back",
        AlertEvent::Paused => "waits for a person",
        AlertEvent::ApprovalNeeded => "waits for approval",
        AlertEvent::Promoted => "reached everybody",
    };
    let revision = notice.candidate_revision.as_ref().unwrap_or(&notice.stable_revision);
    let title = format!("{}/{}: {revision} {title}", notice.namespace, notice.server);
    match form {
        AlertType::Webhook => json!(notice),
        AlertType::Slack => {
            let mark = match notice.event {
                AlertEvent::RolledBack => ":rewind:",
                AlertEvent::Paused | AlertEvent::ApprovalNeeded => ":raised_hand:",
                AlertEvent::Promoted => ":white_check_mark:",
            };
            let mut text = format!("{mark} *{}*\n{}", plain(&title), plain(&notice.message));
            // What decided is in the message already.
            let told = |reason: &str| reason.is_empty() || notice.message.contains(reason);
            for finding in notice.incident.iter().flat_map(|i| &i.evidence).filter(|f| !told(&f.reason)) {
                let line =
                    format!("\n• {} {} ({:?}): {}", finding.metric, finding.threshold, finding.verdict, finding.reason);
                text.push_str(&plain(&line));
            }
            json!({ "text": text })
        }
        AlertType::Alertmanager => {
            let severity = match notice.event {
                AlertEvent::RolledBack => "critical",
                AlertEvent::Paused | AlertEvent::ApprovalNeeded => "warning",
                AlertEvent::Promoted => "info",
            };
            let until = notice.at.checked_add(SHOWN).unwrap_or(notice.at);
            json!([{
                "labels": {
                    "alertname": format!("PerchCanary{:?}", notice.event),
                    "severity": severity,
                    "namespace": notice.namespace,
                    "canary_release": notice.release,
                    "mcp_server": notice.server,
                    "release_id": notice.release_id,
                    "reason": notice.reason,
                },
                "annotations": {"summary": title, "description": notice.message},
                "startsAt": notice.at,
                "endsAt": until,
            }])
        }
    }
}

/// Text in which Slack sees no markup and no mention.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// How long somebody tries.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Attempts, at least one.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles with each further one.
    pub first_wait: Duration,
    /// Longest time for one attempt.
    pub attempt: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempts: 5, first_wait: Duration::from_secs(1), attempt: Duration::from_secs(10) }
    }
}

/// Why a letter did not arrive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlertError {
    /// The Secret cannot be read.
    #[error(
        "secret {secret} cannot be read ({why}): the operator needs `get` on this one secret, see docs/guides/releases.md"
    )]
    Secret {
        /// Its name.
        secret: String,
        /// What the API said.
        why: String,
    },
    /// The Secret has no such URL.
    #[error("key {key} of secret {secret} holds no http or https URL: put the receiver's URL there")]
    Url {
        /// Name of the Secret.
        secret: String,
        /// The key.
        key: String,
    },
    /// The receiver said no.
    #[error("the receiver refused it with status {0}: look at its type and URL")]
    Refused(u16),
    /// The receiver did not take it, however often it was tried.
    #[error("the receiver did not take it in {attempts} attempts: {why}")]
    GaveUp {
        /// How often it was tried.
        attempts: u32,
        /// What happened the last time.
        why: String,
    },
}

/// Something to be sent.
#[derive(Debug)]
struct Letter {
    alert: Alert,
    notice: Notice,
}

/// The way in: what is told here is sent in the background.
#[derive(Clone, Debug)]
pub struct Alerts {
    queue: mpsc::Sender<Letter>,
}

/// Sends what is told. It must be run.
#[derive(Debug)]
pub struct Postman {
    queue: mpsc::Receiver<Letter>,
}

impl Alerts {
    /// The way in, and who sends what comes in.
    #[must_use]
    pub fn new() -> (Self, Postman) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { queue: sender }, Postman { queue: receiver })
    }

    /// Tells everybody whom the release names. Never waits.
    pub fn tell(&self, release: &CanaryRelease, story: &[StoryEvent]) {
        if release.spec.alerts.is_empty() {
            return;
        }
        for notice in notices(release, story) {
            for alert in release.spec.alerts.iter().filter(|alert| alert.events.contains(&notice.event)) {
                let letter = Letter { alert: alert.clone(), notice: notice.clone() };
                if self.queue.try_send(letter).is_err() {
                    tracing::warn!(notice = notice.id, alert = alert.name, "too many alerts wait: this one is dropped");
                }
            }
        }
    }
}

impl Postman {
    /// Sends until `shutdown`; what is on its way then has one more attempt's time to arrive.
    pub async fn run(mut self, client: Client, http: reqwest::Client, patience: Patience, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut letters = JoinSet::new();
        loop {
            let letter = tokio::select! {
                letter = self.queue.recv() => letter,
                Some(_) = letters.join_next() => continue,
                () = shutdown.cancelled() => break,
            };
            let Some(letter) = letter else { break };
            let (client, http, places) = (client.clone(), http.clone(), Arc::clone(&places));
            letters.spawn(async move {
                let Ok(_place) = places.acquire().await else { return };
                let (id, name) = (letter.notice.id.clone(), letter.alert.name.clone());
                match deliver(&client, &http, patience, &letter).await {
                    Ok(()) => tracing::debug!(notice = id, alert = name, "alert sent"),
                    Err(error) => tracing::warn!(notice = id, alert = name, %error, "alert not sent"),
                }
            });
        }
        let rest = async { while letters.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(patience.attempt, rest).await;
    }
}

async fn deliver(
    client: &Client,
    http: &reqwest::Client,
    patience: Patience,
    letter: &Letter,
) -> Result<(), AlertError> {
    let (alert, notice) = (&letter.alert, &letter.notice);
    let mut wait = patience.first_wait;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let tried = async {
            // Each time anew: the Secret may be what was wrong.
            let url = receiver(client, alert, &notice.namespace).await?;
            post(http, url, body(alert.type_, notice)).await
        };
        let late = || Err(Obstacle::Passing(format!("no answer within {} ms", patience.attempt.as_millis())));
        let why = match tokio::time::timeout(patience.attempt, tried).await.unwrap_or_else(|_| late()) {
            Ok(()) => return Ok(()),
            Err(Obstacle::Final(error)) => return Err(error),
            Err(Obstacle::Passing(why)) => why,
        };
        if attempt >= patience.attempts {
            return Err(AlertError::GaveUp { attempts: attempt, why });
        }
        tokio::time::sleep(wait).await;
        wait = wait.saturating_mul(2);
    }
}

/// The URL of a receiver.
async fn receiver(client: &Client, alert: &Alert, namespace: &str) -> Result<Url, Obstacle> {
    let (secret, key) = (alert.url_from.secret_name.clone(), alert.url_from.key.clone());
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = api.get(&secret).await.map_err(|error| match error {
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
            Obstacle::Final(AlertError::Secret { secret: secret.clone(), why: status.message.clone() })
        }
        other => Obstacle::Passing(format!("secret {secret} cannot be read: {other}")),
    })?;
    let text = found.data.as_ref().and_then(|data| data.get(&key)).and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
    let url =
        text.and_then(|text| Url::parse(text.trim()).ok()).filter(|url| ["http", "https"].contains(&url.scheme()));
    let mut url = url.ok_or(Obstacle::Final(AlertError::Url { secret, key }))?;
    if alert.type_ == AlertType::Alertmanager && !url.path().ends_with("/alerts") {
        // The base URL is what people have at hand.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v2", "alerts"]);
        }
    }
    Ok(url)
}

enum Obstacle {
    /// It may be gone the next time.
    Passing(String),
    /// It will not.
    Final(AlertError),
}

async fn post(http: &reqwest::Client, url: Url, body: Value) -> Result<(), Obstacle> {
    let request = http.post(url).header("Content-Type", "application/json").body(body.to_string());
    let answer = request.send().await.map_err(|error| Obstacle::Passing(error.without_url().to_string()))?;
    match answer.status().as_u16() {
        200..=299 => Ok(()),
        status @ (408 | 425 | 429 | 500..=599) => Err(Obstacle::Passing(format!("status {status}"))),
        status => Err(Obstacle::Final(AlertError::Refused(status))),
    }
}

#[cfg(test)]
mod tests;
