//! Step three: what is so now. The health of both revisions comes from the server's status, their
//! tools from the servers themselves, and everything else from whoever measures.

use kube::ResourceExt;

use super::{Context, dereference::Found, http_route};
use crate::{
    api::{
        canary_release::{CanaryRelease, Phase as ReleasePhase},
        mcp_server::{CandidateStatus, ConditionType, McpServer, Phase, RunningTransport, TransportType},
    },
    canary::{
        Health, Observation, Plan, RouteWeights,
        contract::{self, Contract},
    },
    controllers::handshake,
    metrics::{Measured, Question},
    names::Revision,
};

/// Finds out everything that a decision needs.
pub async fn observe(release: &CanaryRelease, found: &Found, plan: &Plan, context: &Context) -> Observation {
    let progress = &found.progress;
    let server = found.server.as_deref();
    let (stable, candidate) = (progress.stable_revision.as_deref(), progress.candidate_revision.as_deref());
    let candidate_health = match (server.and_then(transport_changed), candidate) {
        (_, None) => Health::default(),
        (Some(why), Some(_)) => Health::Failing(why),
        (None, Some(revision)) => of_candidate(server, revision),
    };
    let stable_health = stable.map(|revision| of_stable(server, revision)).unwrap_or_default();
    let contract = async {
        let (server, stable, candidate) = (server?, stable?, candidate?);
        // It is the last question before the first user, and asked only then.
        if progress.phase != ReleasePhase::Deploying || candidate_health != Health::Ready {
            return None;
        }
        compare(found, server, stable, candidate, context).await
    };
    let measured = async {
        match stable {
            // Before the first release no gateway has anything to tell.
            Some(stable) if progress.release_id.is_some() => {
                let release = CanaryRelease { status: Some(progress.clone()), ..release.clone() };
                let candidate = candidate.unwrap_or(stable);
                context
                    .measure
                    .measure(&Question { server: &found.key, release: &release, plan, stable, candidate })
                    .await
            }
            _ => Measured::default(),
        }
    };
    let (contract, measured, route) = tokio::join!(contract, measured, weigh(release, found, context));
    Observation {
        generation: release.metadata.generation,
        declared: found.declared().map(|revision| revision.0),
        candidate: candidate_health,
        waits: candidate.map(|revision| waits(server, revision)).unwrap_or_default(),
        stable: stable_health,
        contract,
        gateways: measured.gateways,
        readings: measured.readings,
        in_flight: measured.in_flight,
        command: found.command.as_ref().ok().cloned().flatten(),
        route,
    }
}

/// Brings the weights of the HTTPRoute in step with what was decided before. One that is no longer named is put back
/// first.
async fn weigh(release: &CanaryRelease, found: &Found, context: &Context) -> Option<RouteWeights> {
    let named = release.spec.http_route();
    let left = found.progress.http_route.as_deref().filter(|left| Some(*left) != named);
    if let Some(left) = left {
        return Some(http_route::give_back(&context.client, &found.key, left).await);
    }
    let share = http_route::share(&found.progress, found.server.as_deref());
    Some(http_route::divide(&context.client, &found.key, named?, share).await)
}

/// How the candidate does, by the server's status.
fn of_candidate(server: Option<&McpServer>, revision: &str) -> Health {
    let Some(status) = server.and_then(|server| server.status.as_ref()) else { return Health::Unknown };
    let Some(candidate) = status.candidate.as_ref().filter(|c| c.revision == revision) else { return Health::Starting };
    let CandidateStatus { phase, reason, message, .. } = candidate;
    match phase {
        Some(Phase::Ready) => Health::Ready,
        Some(Phase::Failed) => Health::Failing(format!("{reason}: {message}")),
        // Stopped on purpose is no failure.
        Some(Phase::Suspended | Phase::Terminating) => Health::Unknown,
        _ => Health::Starting,
    }
}

/// Why a release cannot bring the declared revision to the users: a gateway reaches all revisions of a
/// server in one way.
fn transport_changed(server: &McpServer) -> Option<String> {
    let (runs, declared) = (server.status.as_ref()?.transport?, RunningTransport::from(&server.spec.transport));
    let name = |t: RunningTransport| match t.type_ {
        TransportType::StreamableHttp => "StreamableHttp".to_owned(),
        TransportType::Stdio => format!("Stdio with sessions {:?}", t.sessions),
    };
    let differs =
        runs.type_ != declared.type_ || (runs.type_ == TransportType::Stdio && runs.sessions != declared.sessions);
    differs.then(|| {
        format!(
            "TransportChanged: spec.transport went from {} to {}, and a release cannot divide users between the two: \
             change it without a release, or under another name",
            name(runs),
            name(declared)
        )
    })
}

/// What the candidate waits for, by the server's status.
fn waits(server: Option<&McpServer>, revision: &str) -> String {
    let candidate = server.and_then(|server| server.status.as_ref()?.candidate.as_ref());
    match candidate.filter(|c| c.revision == revision && c.phase != Some(Phase::Ready)) {
        Some(candidate) if !candidate.message.is_empty() => format!("{}: {}", candidate.reason, candidate.message),
        _ => String::new(),
    }
}

/// How the stable revision does, by the server's status.
fn of_stable(server: Option<&McpServer>, revision: &str) -> Health {
    let Some(status) = server.and_then(|server| server.status.as_ref()) else { return Health::Unknown };
    if status.current_revision.as_deref() != Some(revision) {
        return Health::Starting;
    }
    match status.phase {
        Some(Phase::Ready) => Health::Ready,
        Some(Phase::Failed) => {
            let ready = status.conditions.iter().find(|c| c.type_ == ConditionType::Ready.as_str());
            Health::Failing(ready.map(|c| format!("{}: {}", c.reason, c.message)).unwrap_or_default())
        }
        Some(Phase::Suspended | Phase::Terminating) => Health::Unknown,
        _ => Health::Starting,
    }
}

/// How the tools of the candidate differ, as users see them; none until both have listed theirs.
async fn compare(
    found: &Found,
    server: &McpServer,
    stable: &str,
    candidate: &str,
    context: &Context,
) -> Option<Contract> {
    let patience = server.spec.probe.timeout.to_std();
    let tools = |revision: &str| {
        let url = handshake::url(&context.gateway, &found.key, Some(&Revision(revision.to_owned())));
        async move {
            let listed =
                handshake::ask(&url, &context.gateway_access, patience).await.map_err(|error| error.to_string())?;
            let values = listed.1.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>();
            values.map_err(|error| error.to_string())
        }
    };
    let (before, after) = tokio::join!(tools(stable), tools(candidate));
    match (before, after) {
        (Ok(before), Ok(after)) => Some(contract::compare(&before, &after)),
        (before, after) => {
            for (revision, error) in [(stable, before.err()), (candidate, after.err())] {
                if let Some(error) = error {
                    tracing::info!(
                        server = server.name_any(),
                        revision,
                        error,
                        "the tools of a revision are not known yet"
                    );
                }
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn server(status: &Value) -> McpServer {
        let mut server = McpServer::new("a", serde_yaml_ng::from_str("{image: x}").unwrap());
        server.status = serde_json::from_value(status.clone()).unwrap();
        server
    }

    #[test]
    fn a_candidate_is_judged_by_its_own_revision() {
        let of = |candidate: Value| of_candidate(Some(&server(&json!({"candidate": candidate}))), "a-2");
        assert_eq!(of(json!({"revision": "a-2", "phase": "Ready"})), Health::Ready);
        assert_eq!(of(json!({"revision": "a-1", "phase": "Ready"})), Health::Starting, "that is the one before");
        assert_eq!(of(Value::Null), Health::Starting);
        assert_eq!(of(json!({"revision": "a-2", "phase": "Suspended"})), Health::Unknown);
        let failing =
            of(json!({"revision": "a-2", "phase": "Failed", "reason": "CrashLoopBackOff", "message": "no db"}));
        assert_eq!(failing, Health::Failing("CrashLoopBackOff: no db".into()));
        assert_eq!(of_candidate(None, "a-2"), Health::Unknown);
        let waiting =
            json!({"candidate": {"revision": "a-2", "phase": "Starting", "reason": "PortInUse", "message": "taken"}});
        assert_eq!(waits(Some(&server(&waiting)), "a-2"), "PortInUse: taken");
        assert_eq!(waits(Some(&server(&waiting)), "a-3"), "", "that is another one");
    }

    #[test]
    fn stable_is_ready_only_with_its_own_revision() {
        let of = |status: Value| of_stable(Some(&server(&status)), "a-1");
        assert_eq!(of(json!({"currentRevision": "a-1", "phase": "Ready"})), Health::Ready);
        assert_eq!(of(json!({"currentRevision": "a-0", "phase": "Ready"})), Health::Starting);
        assert_eq!(of(json!({"currentRevision": "a-1", "phase": "Degraded"})), Health::Starting);
        assert!(matches!(of(json!({"currentRevision": "a-1", "phase": "Failed"})), Health::Failing(_)));
    }
}
