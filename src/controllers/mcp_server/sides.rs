//! The two keys of a server: its own, and that of its candidate. What should be so under a key is
//! made so, and looked at.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Context, State, apply, build,
    credentials::Report,
    dereference::{self, References},
    key_of, probe,
    revisions::Revisions,
    status::{self, Applied},
    validate,
};
use crate::{
    api::mcp_server::{CandidateStatus, ConditionType, McpServer, McpServerStatus, Phase},
    error::Category,
    names::{Revision, ServerKey},
    runtime::{Observed, RuntimeError},
};

/// Shortest wait before credentials are looked at again.
const SOONEST: Duration = Duration::from_millis(100);

/// What should be so under one of a server's keys.
pub struct Side<'a> {
    /// The key.
    pub key: &'a ServerKey,
    /// The revision.
    pub revision: &'a Revision,
    /// Whether it must run; else it is only looked at.
    pub runs: bool,
}

/// What was done and seen under one of a server's keys.
pub struct Found {
    key: ServerKey,
    /// The revision that should run.
    pub revision: Revision,
    /// The server as if it declared this revision.
    pub server: McpServer,
    /// What came of it.
    pub applied: Applied,
    /// The declared revision is in the history.
    pub recorded: bool,
    observed: Result<Observed, RuntimeError>,
    probed: Option<probe::Probed>,
    credentials: Credentials,
}

/// How the credentials are that a side was given.
#[derive(Default)]
struct Credentials {
    report: Option<Report>,
    /// When to look at them again.
    again: Option<Timestamp>,
}

impl Found {
    /// What a status is derived from.
    pub fn facts<'a>(&'a self, server: &'a McpServer, context: &Context) -> status::Facts<'a> {
        status::Facts {
            server,
            applied: &self.applied,
            observed: self.observed.as_ref().map_err(ToString::to_string),
            runtime: context.backend.kind_for(&self.key),
            probe: self.probed.as_ref(),
            url: context.url(&self.key.declared()),
            credentials: self.credentials.report.as_ref(),
            held: None,
            now: Timestamp::now(),
        }
    }

    /// Whether trying again may help without any change.
    pub fn heals(&self) -> bool {
        self.applied.may_heal() || self.observed.is_err()
    }

    /// How long until a credential must be looked at.
    pub fn again(&self) -> Option<Duration> {
        let wait = self.credentials.again?.duration_since(Timestamp::now());
        Some(Duration::try_from(wait).unwrap_or_default().max(SOONEST))
    }
}

/// Makes a revision run under a key, and looks at what is there.
pub async fn run(server: &McpServer, revisions: &Revisions, side: &Side<'_>, state: &State) -> Found {
    let context = &state.context;
    let (key, revision) = (side.key, side.revision);
    let mut credentials = Credentials::default();
    let ended = status::has_ended(server);
    let (server, (applied, recorded)) = if ended {
        (server.clone(), (apply::end(state, key, revision).await, false))
    } else {
        match state.held.server_at(&context.client, server, revision, &revisions.declared).await {
            Ok(server) if side.runs => {
                let driven = drive(&server, revisions, key, revision, state, &mut credentials).await;
                (server, driven)
            }
            // It has run under the other key.
            Ok(server) => (server, (Applied::Running { revision: revision.clone() }, *revision == revisions.declared)),
            Err(applied) => (server.clone(), (applied, false)),
        }
    };
    let observed = context.backend.observe(key).await;
    let running = observed.as_ref().map(|o| probe::running(o, applied.revision())).unwrap_or_default();
    let target = match &applied {
        _ if ended => None,
        Applied::Running { .. } if server.spec.remote.is_some() => Some(Vec::new()),
        // Through the gateway it would be the revision before that answers.
        Applied::Running { revision } if observed.as_ref().is_ok_and(|o| probe::is_updating(o, revision)) => None,
        Applied::Running { .. } if !running.is_empty() => Some(running),
        _ => None,
    };
    // A release divides the users of the server's URL, and a server that comes to its end serves some
    // of them, so a revision is asked for by name.
    let by_name = revisions.released || server.spec.decommission.is_some();
    let url = context.probed_url(&key.declared(), by_name.then_some(revision));
    let probed = state.probes.aim(key, &url, &server.spec.probe, target);
    Found { key: key.clone(), revision: revision.clone(), server, applied, recorded, observed, probed, credentials }
}

/// Time for calls in flight where no release says how long.
const DRAIN: Duration = Duration::from_secs(10);

/// How long a candidate that has become the server's revision must still stay; none while the
/// server's own instances are not ready with that revision.
fn left(own: &McpServerStatus, revision: &Revision, drain: Duration, now: Timestamp) -> Option<Duration> {
    if own.current_revision.as_deref() != Some(revision.as_str()) {
        return None;
    }
    match own.phase {
        // Nobody is served at all.
        Some(Phase::Suspended) => Some(Duration::ZERO),
        Some(Phase::Ready) => {
            let ready = own.conditions.iter().find(|c| c.type_ == ConditionType::Ready.as_str())?;
            let passed = Duration::try_from(now.duration_since(ready.last_transition_time.0)).unwrap_or_default();
            // Times in a status have whole seconds.
            Some((drain + Duration::from_secs(1)).saturating_sub(passed))
        }
        _ => None,
    }
}

/// What is there under the key of a server's candidate.
pub enum Beside {
    /// Nothing.
    Nothing,
    /// It is to be made. It is named first, so that it is found again whatever happens in between;
    /// the write of the name brings the next reconcile.
    Announced(CandidateStatus),
    /// It is there.
    Runs(Box<Found>),
    /// It is the server's revision now. Nobody new comes to it, and it is removed when calls in flight
    /// have had this much more time.
    Drains(Box<Found>, Duration),
    /// It could not be removed. It is named for as long as anything of it may be there.
    Stays(CandidateStatus),
}

/// Runs the candidate, keeps it while the server's own instances are not yet what it is, or removes
/// it. `own` is the status of what runs under the server's own key.
pub async fn beside(
    server: &McpServer,
    revisions: &Revisions,
    own: &McpServerStatus,
    drain: Option<Duration>,
    state: &State,
) -> Beside {
    let key = key_of(server).candidate();
    let before = server.status.as_ref().and_then(|s| s.candidate.as_ref());
    if before.is_some_and(|before| before.revision == revisions.own.as_str()) {
        let left = left(own, &revisions.own, drain.unwrap_or(DRAIN), Timestamp::now());
        if left != Some(Duration::ZERO) {
            let side = Side { key: &key, revision: &revisions.own, runs: false };
            let found = Box::new(run(server, revisions, &side, state).await);
            return match left {
                Some(left) => Beside::Drains(found, left),
                None => Beside::Runs(found),
            };
        }
    }
    match (&revisions.candidate, before) {
        (None, None) => Beside::Nothing,
        (Some(candidate), None) => Beside::Announced(CandidateStatus {
            revision: candidate.to_string(),
            phase: Some(Phase::Pending),
            reason: "Pending".into(),
            message: "the candidate is about to be started".into(),
            ..CandidateStatus::default()
        }),
        (Some(candidate), Some(_)) => {
            let side = Side { key: &key, revision: candidate, runs: true };
            Beside::Runs(Box::new(run(server, revisions, &side, state).await))
        }
        (None, Some(before)) => {
            state.probes.forget(&key);
            match state.context.backend.remove(&key).await {
                Ok(()) => {
                    state.credentials.release(server, &key).await;
                    Beside::Nothing
                }
                Err(error) => Beside::Stays(CandidateStatus {
                    reason: "RemoveFailed".into(),
                    message: format!("it cannot be removed yet: {error}"),
                    ..before.clone()
                }),
            }
        }
    }
}

/// Steps one to four, and what came of them.
async fn drive(
    server: &McpServer,
    revisions: &Revisions,
    key: &ServerKey,
    revision: &Revision,
    state: &State,
    credentials: &mut Credentials,
) -> (Applied, bool) {
    let context = &state.context;
    let mut values = validate::Fetched::new();
    let mut missing = None;
    // What is stopped needs none, and must stop also when none can be had.
    if !server.spec.suspend && server.spec.wanted_replicas() > 0 {
        let found = state.credentials.of(server, key).await;
        *credentials = Credentials { report: found.report, again: found.again };
        (values, missing) = (found.values, found.missing);
    }
    let references = if context.backend.follows_references() {
        References::LeftToBackend
    } else {
        match dereference::dereference(&context.client, server).await {
            Ok(resolved) => References::Resolved(resolved),
            Err(error) => {
                if credentials.report.is_some() {
                    credentials.report = Some(Report::trouble(error.category(), error.to_string()));
                }
                return (Applied::from_dereference(&error), false);
            }
        }
    };
    let valid = match validate::validate(server, references, &values) {
        Ok(valid) => valid,
        Err(error) => return (Applied::Invalid { message: error.to_string() }, false),
    };
    if let Some(message) = missing {
        return (Applied::Blocked { reason: "CredentialsNotReady", message, heals: true }, false);
    }
    let built = build::build(valid, key, revision);
    apply::apply(state, server, revisions, built).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_candidate_stays_until_the_server_itself_has_answered_for_a_while() {
        let own = |phase: &str, current: &str| -> McpServerStatus {
            let ready = json!({"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:10Z"});
            serde_json::from_value(json!({"phase": phase, "currentRevision": current, "conditions": [ready]})).unwrap()
        };
        let at = |second: i64| {
            Timestamp::from_second("2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap().as_second() + second).unwrap()
        };
        let left =
            |own: &McpServerStatus, second| left(own, &Revision("a-2".into()), Duration::from_secs(5), at(second));
        assert_eq!(left(&own("Ready", "a-1"), 60), None, "the old revision is ready, not this one");
        assert_eq!(left(&own("Starting", "a-2"), 60), None);
        assert_eq!(left(&own("Ready", "a-2"), 12), Some(Duration::from_secs(4)));
        assert_eq!(left(&own("Ready", "a-2"), 16), Some(Duration::ZERO));
        assert_eq!(left(&own("Suspended", "a-2"), 0), Some(Duration::ZERO));
    }
}
