//! The end of a server by stages, as `spec.decommission` declares it: what is due is done, told in the
//! status, and told in an event. [`crate::lifecycle::decommission`] says what is due.
//!
//! A server is stopped only when it is archived, and removed only when its status has said so, nothing
//! of it runs, and the object is the one that was looked at. Taken away, the declaration leaves
//! nothing behind but the archive.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Preconditions},
};

use super::{Error, State, archive, events, status::condition};
use crate::{
    api::mcp_server::{ConditionType, Decommission, DecommissionPhase, DecommissionStatus, McpServer, McpServerStatus},
    lifecycle::decommission::{Plan, Stage, whole},
};

/// Longest wait before the time is looked at again: clocks are set, and machines sleep.
const LOOK: Duration = Duration::from_secs(3600);

/// What gives an operator the rights that it lacks.
const RIGHTS: &str = "where Perch may not do this, the chart's value decommission.enabled gives it the right";

/// Where a server is on the way to its end.
pub enum Course {
    /// Nothing is declared.
    None,
    /// It was declared, and no longer is.
    TakenBack,
    /// It is under way.
    Under(Box<Under>),
    /// The server was removed.
    Over,
}

/// What is so of a server that comes to its end.
pub struct Under {
    declared: Decommission,
    status: DecommissionStatus,
    next: Option<Timestamp>,
    /// What could not be done: a reason and a sentence.
    trouble: Option<(&'static str, String)>,
}

/// Does what is due.
pub async fn advance(server: &McpServer, state: &State) -> Result<Course, Error> {
    let seen = server.status.as_ref();
    let before = seen.and_then(|status| status.decommission.as_ref());
    let Some(declared) = &server.spec.decommission else {
        return Ok(if before.is_some() { Course::TakenBack } else { Course::None });
    };
    let now = Timestamp::now();
    let since = before.map_or_else(|| whole(now), |before| before.since.0);
    let plan = Plan::new(declared, since);
    let (stage, next) = plan.at(now);
    let (mut archived, mut trouble) = (None, None);
    if stage >= Stage::Stopped {
        let name = archive::name(server, since);
        // Whatever is declared since is archived as well.
        let known = before.is_some_and(|before| before.archive.as_ref() == Some(&name));
        let written = if known {
            Ok(())
        } else {
            archive::write(&state.context.client, server, &name, declared, &plan, since).await
        };
        match written {
            Ok(()) => archived = Some(name),
            Err(error) => {
                trouble = Some((
                    "ArchiveFailed",
                    format!("it cannot be archived, and goes on until it is: {error}; {RIGHTS}"),
                ));
            }
        }
    }
    let phase = match stage {
        Stage::Noticed => DecommissionPhase::Noticed,
        Stage::Stopped | Stage::Removed if archived.is_some() => DecommissionPhase::Stopped,
        Stage::Reducing { .. } | Stage::Stopped | Stage::Removed => DecommissionPhase::Reducing,
    };
    let status = DecommissionStatus {
        since: Time(since),
        phase,
        percentage: stage.percentage(),
        reduces_at: Time(plan.reduces_at),
        stops_at: Time(plan.stops_at),
        removes_at: Time(plan.removes_at),
        archive: archived,
    };
    if stage == Stage::Removed && before == Some(&status) && seen.is_some_and(has_stopped) {
        match remove(server, state).await {
            Ok(()) => {
                let archive = status.archive.unwrap_or_default();
                let note = format!("the server was removed; ConfigMap {archive} keeps what it was");
                events::publish(server, false, "DecommissionRemoved", &note, state).await;
                return Ok(Course::Over);
            }
            // Somebody has changed it, and may have taken it back.
            Err(kube::Error::Api(refusal)) if refusal.code == 409 => return Err(kube::Error::Api(refusal).into()),
            Err(error) => trouble = Some(("RemoveFailed", format!("it cannot be removed: {}; {RIGHTS}", said(error)))),
        }
    }
    Ok(Course::Under(Box::new(Under { declared: declared.clone(), status, next, trouble })))
}

fn said(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    }
}

/// Whether nothing of a server runs, as its status tells.
fn has_stopped(status: &McpServerStatus) -> bool {
    status.headline().is_some_and(|headline| headline.type_ == ConditionType::Suspended.as_str())
}

/// Removes a server, unless it is another one by now or was changed.
async fn remove(server: &McpServer, state: &State) -> kube::Result<()> {
    let api: Api<McpServer> = Api::namespaced(state.context.client.clone(), &server.namespace().unwrap_or_default());
    let just_this = Preconditions { uid: server.uid(), resource_version: server.resource_version() };
    let params = DeleteParams { preconditions: Some(just_this), ..DeleteParams::background() };
    match api.delete(&server.name_any(), &params).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

impl Course {
    /// The server with how far it is now, where its status tells otherwise or may do so.
    pub fn applied_to(&self, server: &McpServer) -> Option<Box<McpServer>> {
        let told = match self {
            Self::None | Self::Over => return None,
            Self::TakenBack => None,
            Self::Under(under) => Some(under.status.clone()),
        };
        let mut server = Box::new(server.clone());
        server.status.get_or_insert_default().decommission = told;
        Some(server)
    }

    /// The condition that tells it.
    pub fn condition(&self, server: &McpServer, now: Timestamp) -> Option<Condition> {
        let Self::Under(under) = self else { return None };
        let (reason, message) = under.story();
        let before = server.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        Some(condition(before, server, ConditionType::Decommissioning, "True", reason, &message, now))
    }

    /// Whether to try again soon.
    pub fn heals(&self) -> bool {
        matches!(self, Self::Under(under) if under.trouble.is_some())
    }

    /// How long until the next step.
    pub fn again(&self, now: Timestamp) -> Option<Duration> {
        let Self::Under(under) = self else { return None };
        let wait = under.next?.duration_since(now);
        Some(Duration::try_from(wait).unwrap_or_default().min(LOOK))
    }
}

impl Under {
    /// A reason and a sentence, the same for as long as no step is taken.
    fn story(&self) -> (&'static str, String) {
        let DecommissionStatus { percentage, reduces_at, stops_at, removes_at, archive, .. } = &self.status;
        let why = self.declared.reason.trim();
        if let Some((reason, message)) = &self.trouble {
            return (reason, message.clone());
        }
        match self.status.phase {
            DecommissionPhase::Noticed => (
                "Noticed",
                format!(
                    "its users are told that it goes away ({why}); fewer are served from {} on, it is archived and stopped at {}, and removed at {}. To keep it, take spec.decommission away",
                    reduces_at.0, stops_at.0, removes_at.0
                ),
            ),
            DecommissionPhase::Reducing => (
                "Reducing",
                format!(
                    "{percentage}% of its users are still served ({why}); it is archived and stopped at {}, and removed at {}. To keep it, take spec.decommission away",
                    stops_at.0, removes_at.0
                ),
            ),
            DecommissionPhase::Stopped => (
                "Stopped",
                format!(
                    "it is archived in ConfigMap {} and stopped ({why}); it is removed at {}. To have it back, take spec.decommission away",
                    archive.as_deref().unwrap_or_default(),
                    removes_at.0
                ),
            ),
        }
    }
}

/// What an event should say: whether it is bad, the reason and a note. None where no step was taken.
pub fn news(before: Option<&McpServerStatus>, after: &McpServerStatus) -> Option<(bool, String, String)> {
    let of = |status: &McpServerStatus| {
        let told = status.conditions.iter().find(|c| c.type_ == ConditionType::Decommissioning.as_str())?;
        Some((told.reason.clone(), status.decommission.as_ref()?.percentage, told.message.clone()))
    };
    match (before.and_then(of), of(after)) {
        (Some(_), None) => {
            let note = "spec.decommission was taken away: everybody is served as before";
            Some((false, "DecommissionTakenBack".to_owned(), note.to_owned()))
        }
        (was, Some((reason, percentage, note)))
            if was.as_ref().is_none_or(|(was, share, _)| (was, *share) != (&reason, percentage)) =>
        {
            Some((reason.ends_with("Failed"), format!("Decommission{reason}"), note))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controllers::mcp_server::status::has_ended;

    fn server(phase: &str, percentage: i32) -> McpServer {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
            "metadata": {"name": "a", "namespace": "n", "generation": 3},
            "spec": {"image": "x", "decommission": {"reason": "too old"}},
            "status": {"decommission": {
                "since": "2026-01-01T00:00:00Z", "phase": phase, "percentage": percentage, "archive": "a-archive-1",
                "reducesAt": "2026-01-31T00:00:00Z", "stopsAt": "2026-02-07T00:00:00Z", "removesAt": "2026-03-09T00:00:00Z"}},
        }))
        .unwrap()
    }

    fn under(phase: &str, percentage: i32) -> Course {
        let server = server(phase, percentage);
        Course::Under(Box::new(Under {
            declared: server.spec.decommission.unwrap(),
            status: server.status.unwrap().decommission.unwrap(),
            next: Some("2026-01-31T00:00:00Z".parse().unwrap()),
            trouble: None,
        }))
    }

    fn told(phase: &str, percentage: i32) -> McpServerStatus {
        let server = server(phase, percentage);
        let mut status = server.status.clone().unwrap();
        status.conditions.extend(under(phase, percentage).condition(&server, Timestamp::UNIX_EPOCH));
        status
    }

    #[test]
    fn only_the_stopped_server_is_stopped() {
        for (phase, stops) in [("Noticed", false), ("Reducing", false), ("Stopped", true)] {
            let runs = under(phase, 0).applied_to(&server("Noticed", 100)).unwrap();
            assert_eq!(has_ended(&runs), stops, "{phase}");
        }
        let back = Course::TakenBack.applied_to(&server("Stopped", 0)).unwrap();
        assert!(!has_ended(&back) && back.status.unwrap().decommission.is_none());
        assert_eq!(Course::None.applied_to(&server("Stopped", 0)), None);
    }

    #[test]
    fn each_step_is_told_once() {
        let reason = |before: Option<&McpServerStatus>, after: &McpServerStatus| news(before, after).map(|(_, r, _)| r);
        let steps = [told("Noticed", 100), told("Reducing", 90), told("Reducing", 80), told("Stopped", 0)];
        let mut before = None;
        let mut story = Vec::new();
        for step in &steps {
            story.extend(reason(before, step));
            assert_eq!(news(Some(step), step), None, "only once");
            before = Some(step);
        }
        story.extend(reason(before, &McpServerStatus::default()));
        assert_eq!(
            story,
            [
                "DecommissionNoticed",
                "DecommissionReducing",
                "DecommissionReducing",
                "DecommissionStopped",
                "DecommissionTakenBack"
            ]
        );
        assert_eq!(reason(None, &McpServerStatus::default()), None);
    }

    #[test]
    fn the_next_look_is_at_the_next_step_or_within_the_hour() {
        let again = |now: &str| under("Noticed", 100).again(now.parse().unwrap());
        assert_eq!(again("2026-01-30T23:59:58Z"), Some(Duration::from_secs(2)));
        assert_eq!(again("2026-01-01T00:00:00Z"), Some(LOOK));
        assert_eq!(again("2026-02-01T00:00:00Z"), Some(Duration::ZERO));
        assert_eq!(Course::None.again(Timestamp::UNIX_EPOCH), None);
    }
}
