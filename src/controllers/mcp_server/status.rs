//! Step five: say what is so. The derivation is a pure function of what was applied and observed.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Api, Client, ResourceExt, api::PostParams};

use super::{
    credentials::Report,
    dereference::DereferenceError,
    probe::{Probed, running},
};
use crate::{
    api::mcp_server::{
        CandidateStatus, ConditionType, DecommissionPhase, LastFailure, McpServer, McpServerStatus, Phase, RuntimeKind,
        ServerInfo,
    },
    controllers::handshake::{ProbeError, Seen},
    error::Category,
    names::Revision,
    runtime::{Instance, InstanceState, Observed},
};

/// What came of the steps before.
#[derive(Debug)]
pub enum Applied {
    /// The backend has the workload, or none is needed.
    Running {
        /// What it runs.
        revision: Revision,
    },
    /// The spec makes no sense.
    Invalid {
        /// Why, and what to do.
        message: String,
    },
    /// Something else is in the way.
    Blocked {
        /// Its category.
        reason: &'static str,
        /// What, and what to do.
        message: String,
        /// Whether it may go away by itself.
        heals: bool,
    },
}

impl Applied {
    /// The revision that was applied.
    pub fn revision(&self) -> Option<&Revision> {
        match self {
            Self::Running { revision } => Some(revision),
            _ => None,
        }
    }

    /// Whether trying again may help without any change.
    pub fn may_heal(&self) -> bool {
        matches!(self, Self::Blocked { heals: true, .. })
    }

    /// What a failed first step means. A missing object announces itself when it is created.
    pub fn from_dereference(error: &DereferenceError) -> Self {
        let heals = matches!(error, DereferenceError::Api(_));
        Self::Blocked { reason: error.category(), message: error.to_string(), heals }
    }
}

/// Everything that a status is derived from.
pub struct Facts<'a> {
    /// The server with its last status.
    pub server: &'a McpServer,
    /// What came of the steps before.
    pub applied: &'a Applied,
    /// What the backend sees, or why it does not.
    pub observed: Result<&'a Observed, String>,
    /// What runs it.
    pub runtime: RuntimeKind,
    /// What the probe found about the instances that run now.
    pub probe: Option<&'a Probed>,
    /// Where clients reach it.
    pub url: String,
    /// How the credentials are; none without any.
    pub credentials: Option<&'a Report>,
    /// Why what runs is not what is declared: a reason and a sentence.
    pub held: Option<(&'static str, String)>,
    /// Now.
    pub now: Timestamp,
}

/// The state in one line: what all conditions follow from.
struct Verdict {
    phase: Phase,
    reason: &'static str,
    message: String,
    /// Nothing improves before a person changes something.
    stalled: bool,
    /// Nothing runs, because the spec says so.
    stopped: bool,
    /// Instances that answer, of whatever revision.
    answering: usize,
}

impl Verdict {
    fn new(phase: Phase, reason: &'static str, message: impl Into<String>) -> Self {
        Self { phase, reason, message: message.into(), stalled: false, stopped: false, answering: 0 }
    }
}

/// Reasons that deserve a warning.
pub fn is_failure(reason: &str) -> bool {
    !matches!(
        reason,
        "Ready"
            | "Starting"
            | "Updating"
            | "Pulling"
            | "Building"
            | "Installing"
            | "Stopping"
            | "Suspended"
            | "Decommissioned"
            | "ScaledToZero"
            | "Pending"
            | "Terminating"
    )
}

/// The status of a server.
pub fn derive(facts: &Facts<'_>) -> McpServerStatus {
    let server = facts.server;
    let before = server.status.clone().unwrap_or_default();
    let verdict = judge(facts);
    let serving = facts.observed.as_ref().ok().and_then(|o| previous(o, facts.applied.revision()).next());
    let revision = serving.map(|i| &i.revision).or(facts.applied.revision()).map(ToString::to_string);
    let revision = revision.or_else(|| before.current_revision.clone());
    let same_revision = revision == before.current_revision;
    let seen = facts.probe.and_then(|p| p.seen.as_ref());
    let instances = facts.observed.as_ref().map(|o| o.instances.as_slice()).unwrap_or_default();
    let ready = verdict.phase == Phase::Ready;
    let remote = server.spec.remote.is_some();
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let mut status = McpServerStatus {
        observed_generation: server.metadata.generation,
        phase: Some(verdict.phase),
        url: Some(facts.url.clone()),
        runtime: Some(if remote { RuntimeKind::Remote } else { facts.runtime }),
        replicas: if remote { server.spec.replicas } else { count(instances.len()) },
        ready_replicas: if remote && ready { server.spec.replicas } else { count(verdict.answering) },
        selector: Some(format!("perch.dev/server={}", server.name_any())),
        current_revision: revision,
        declared_revision: before.declared_revision.clone(),
        transport: before.transport,
        candidate: before.candidate.clone(),
        image_id: facts.observed.as_ref().ok().and_then(|o| o.image_id.clone()),
        restarts: restarts(instances),
        last_failure: last_failure(instances).or(before.last_failure.clone().filter(|_| same_revision)),
        // What the server said of itself stays known while it restarts, but not across revisions.
        server_info: same_revision.then_some(before.server_info.clone()).flatten(),
        protocol_versions: if same_revision { before.protocol_versions.clone() } else { Vec::new() },
        tools: before.tools.filter(|_| same_revision),
        tools_digest: before.tools_digest.clone().filter(|_| same_revision),
        usage: before.usage.clone(),
        decommission: before.decommission.clone(),
        violations: Vec::new(),
        conditions: Vec::new(),
    };
    if let Some(seen) = seen {
        describe(&mut status, seen);
    }
    status.conditions = conditions(facts, &verdict, &before);
    status
}

/// Ends of an instance from which on it counts as crashing again and again.
const CRASHES: u32 = 3;

/// The status of a candidate. It counts as failed only when waiting cannot help: what depends on
/// others, such as an image registry or a Secret that is still to come, gets the time that its
/// release gives it.
pub fn candidate(facts: &Facts<'_>, revision: &Revision) -> CandidateStatus {
    let mut verdict = judge(facts);
    let instances = facts.observed.as_ref().map(|o| o.instances.as_slice()).unwrap_or_default();
    let crashes = |i: &&Instance| {
        i.revision == *revision && i.restarts + 1 >= CRASHES && matches!(i.state, InstanceState::Waiting { .. })
    };
    let crashing = instances.iter().any(|i| crashes(&i));
    if crashing && let Ok(observed) = &facts.observed {
        let answering = verdict.answering;
        verdict = Verdict { answering, ..not_running(observed, Some(revision)) };
    }
    let hopeless = match verdict.reason {
        "CannotStart" => true,
        "CrashLoopBackOff" => crashing,
        "ReferenceNotFound" => false,
        _ => verdict.stalled,
    };
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    CandidateStatus {
        revision: revision.to_string(),
        phase: Some(match verdict.phase {
            _ if hopeless => Phase::Failed,
            Phase::Failed | Phase::Pending => Phase::Starting,
            other => other,
        }),
        replicas: count(instances.len()),
        ready_replicas: count(verdict.answering),
        restarts: restarts(instances),
        reason: verdict.reason.to_owned(),
        message: verdict.message,
    }
}

fn restarts(instances: &[Instance]) -> i32 {
    instances.iter().map(|i| i32::try_from(i.restarts).unwrap_or(i32::MAX)).fold(0, i32::saturating_add)
}

/// How far the removal of what runs for a server is.
#[derive(Clone, Copy, Debug)]
pub enum Removal<'a> {
    /// It has begun.
    Begun,
    /// Nothing is left.
    Done,
    /// It did not work, for this reason.
    Failed(&'a str),
}

/// The status of a server that is being deleted: nobody answers any more.
pub fn terminating(server: &McpServer, removal: Removal<'_>, now: Timestamp) -> McpServerStatus {
    let mut status = server.status.clone().unwrap_or_default();
    let (reason, message) = match removal {
        Removal::Begun => ("Terminating", "the server is being removed".to_owned()),
        Removal::Done => ("Terminating", "nothing runs any more; other finalizers hold the object".to_owned()),
        Removal::Failed(why) => ("RemoveFailed", format!("what runs for the server cannot be removed yet: {why}")),
    };
    let make = |type_, status_: &str, message: &str| {
        condition(&status.conditions, server, type_, status_, reason, message, now)
    };
    let conditions = vec![
        make(ConditionType::Ready, "False", &message),
        make(ConditionType::Progressing, "True", "the server is being removed"),
    ];
    status.phase = Some(Phase::Terminating);
    status.observed_generation = server.metadata.generation;
    if let Removal::Done = removal {
        status.replicas = 0;
        status.candidate = None;
    }
    status.ready_replicas = 0;
    status.conditions = conditions;
    status
}

fn describe(status: &mut McpServerStatus, seen: &Seen) {
    status.server_info = Some(ServerInfo { name: seen.name.clone(), version: seen.version.clone() });
    status.protocol_versions = vec![seen.protocol.clone()];
    status.tools = i32::try_from(seen.tools).ok();
    status.tools_digest = Some(seen.digest.clone());
}

fn last_failure(instances: &[Instance]) -> Option<LastFailure> {
    let exit = instances.iter().filter_map(|i| i.last_exit.as_ref()).max_by_key(|e| e.at)?;
    Some(LastFailure {
        reason: exit.reason.to_owned(),
        message: exit.stderr_tail.clone(),
        exit_code: exit.code,
        at: Time(seconds(exit.at)),
    })
}

/// Whether a server has come to the end that it was declared to have.
pub fn has_ended(server: &McpServer) -> bool {
    let end = server.status.as_ref().and_then(|status| status.decommission.as_ref());
    end.is_some_and(|end| end.phase == DecommissionPhase::Stopped)
}

fn judge(facts: &Facts<'_>) -> Verdict {
    let spec = &facts.server.spec;
    match facts.applied {
        Applied::Invalid { message } => {
            let verdict = Verdict::new(Phase::Failed, "InvalidSpec", message.clone());
            return meanwhile(Verdict { stalled: true, ..verdict }, facts);
        }
        Applied::Blocked { reason, message, heals } => {
            let phase = if *heals { Phase::Pending } else { Phase::Failed };
            return meanwhile(Verdict { stalled: !heals, ..Verdict::new(phase, reason, message.clone()) }, facts);
        }
        Applied::Running { .. } => {}
    }
    if has_ended(facts.server) {
        return stopped(facts, "Decommissioned", "spec.decommission brought it to its end");
    }
    if spec.suspend {
        return stopped(facts, "Suspended", "spec.suspend is true");
    }
    if spec.remote.is_some() {
        return from_probe(facts, None);
    }
    if spec.replicas == 0 {
        return stopped(facts, "ScaledToZero", "spec.replicas is 0");
    }
    let observed = match &facts.observed {
        Ok(observed) => *observed,
        Err(error) => return Verdict::new(Phase::Pending, "RuntimeUnavailable", error.clone()),
    };
    let revision = facts.applied.revision();
    if previous(observed, revision).next().is_some() {
        return meanwhile(not_running(observed, revision), facts);
    }
    let current = running(observed, revision);
    if current.is_empty() {
        return not_running(observed, revision);
    }
    let wanted = usize::try_from(spec.replicas).unwrap_or(0);
    if current.len() < wanted {
        let answers = from_probe(facts, Some(current.len()));
        if answers.phase != Phase::Ready {
            return answers;
        }
        let why = not_running(observed, revision);
        let message = format!("{} of {wanted} instances answer; {}: {}", current.len(), why.reason, why.message);
        return Verdict { answering: current.len(), ..Verdict::new(Phase::Degraded, "ReplicasUnavailable", message) };
    }
    from_probe(facts, Some(current.len()))
}

/// The verdict on a server of which nothing should run.
fn stopped(facts: &Facts<'_>, reason: &'static str, why: &str) -> Verdict {
    match &facts.observed {
        Err(error) => Verdict::new(Phase::Pending, "RuntimeUnavailable", error.clone()),
        Ok(observed) if !observed.instances.is_empty() => {
            let left = match observed.instances.len() {
                1 => "1 instance is".to_owned(),
                n => format!("{n} instances are"),
            };
            let message = format!("{left} being stopped, because {why}");
            Verdict::new(Phase::Suspended, "Stopping", message)
        }
        Ok(_) => Verdict { stopped: true, ..Verdict::new(Phase::Suspended, reason, format!("stopped, because {why}")) },
    }
}

/// The instances of another revision that serve until the applied one is up.
fn previous<'a>(observed: &'a Observed, applied: Option<&'a Revision>) -> impl Iterator<Item = &'a Instance> {
    let runs = |i: &&Instance| matches!(i.state, InstanceState::Running { .. });
    observed.instances.iter().filter(runs).filter(move |i| applied.is_none_or(|applied| i.revision != *applied))
}

/// A verdict about a change, seeing that the revision before goes on: it is not a failure of the
/// server as clients see it.
fn meanwhile(verdict: Verdict, facts: &Facts<'_>) -> Verdict {
    let Ok(observed) = &facts.observed else { return verdict };
    let serving: Vec<&Instance> = previous(observed, facts.applied.revision()).collect();
    let Some(instance) = serving.first() else { return verdict };
    Verdict {
        phase: if matches!(verdict.phase, Phase::Failed | Phase::Pending) { Phase::Degraded } else { verdict.phase },
        reason: if verdict.reason == "Starting" { "Updating" } else { verdict.reason },
        message: format!("{}; revision {} goes on serving", verdict.message, instance.revision),
        answering: serving.len(),
        ..verdict
    }
}

/// Why nothing of a revision runs, or not all.
fn not_running(observed: &Observed, revision: Option<&Revision>) -> Verdict {
    if let Some(preparing) = &observed.preparing {
        let phase = if preparing.retry_at.is_some() { Phase::Failed } else { Phase::Starting };
        let message = match (preparing.percent, preparing.retry_at) {
            (Some(percent), _) => format!("{} ({percent}%)", preparing.message),
            (None, _) => preparing.message.clone(),
        };
        return Verdict::new(phase, preparing.reason, message);
    }
    let of_revision = observed.instances.iter().filter(|i| Some(&i.revision) == revision);
    let waiting = of_revision.clone().find_map(|i| match i.state {
        InstanceState::Waiting { until } => Some((i, until)),
        _ => None,
    });
    if let Some((instance, until)) = waiting {
        let exit = instance.last_exit.as_ref();
        if exit.is_some_and(|e| e.reason == "CannotStart") {
            let said = exit.and_then(|e| e.stderr_tail.lines().last()).unwrap_or_default();
            let message = format!("the program cannot be started: {said}; check spec.command and spec.image");
            return Verdict::new(Phase::Failed, "CannotStart", message);
        }
        let what = match exit {
            Some(e) => match e.code {
                Some(code) => format!(
                    "{} with code {code}",
                    if e.reason == "OOMKilled" { "was out of memory and ended" } else { "ended" }
                ),
                None => "ended".into(),
            },
            None => "ended".into(),
        };
        let said = exit.map(|e| e.stderr_tail.trim()).filter(|s| !s.is_empty());
        let said = said.map(|s| format!("; it last said: {s}")).unwrap_or_default();
        let message =
            format!("the server {what} ({} restarts), next start at {}{said}", instance.restarts, seconds(until));
        return Verdict::new(Phase::Failed, "CrashLoopBackOff", message);
    }
    Verdict::new(Phase::Starting, "Starting", "the server is being started")
}

/// What the handshake says about instances that run.
fn from_probe(facts: &Facts<'_>, running: Option<usize>) -> Verdict {
    let threshold = u32::try_from(facts.server.spec.probe.failure_threshold).unwrap_or(1);
    let Some(probe) = facts.probe else {
        let runs = if running.is_some() { "the server runs; its" } else { "its" };
        return Verdict::new(
            Phase::Starting,
            "Starting",
            format!("{runs} first answer to an MCP handshake is awaited"),
        );
    };
    match (&probe.seen, &probe.error) {
        (Some(seen), error) if error.is_none() || probe.failures < threshold => {
            let what = running.map_or_else(
                || "the server answers".into(),
                |n| if n == 1 { "the server answers".into() } else { format!("{n} instances answer") },
            );
            let message = format!("{what} through the gateway and lists {} tools", seen.tools);
            Verdict { answering: running.unwrap_or(0), ..Verdict::new(Phase::Ready, "Ready", message) }
        }
        (Some(_), Some(error)) => {
            Verdict::new(Phase::Degraded, "Unresponsive", format!("the server answered before, but no longer: {error}"))
        }
        (None, Some(error)) => {
            let reason = match error {
                ProbeError::Tools(_) => "ToolsListFailed",
                ProbeError::Access(_) | ProbeError::Handshake(_) | ProbeError::Timeout(_) => "HandshakeFailed",
            };
            let message = if running.is_some() {
                format!(
                    "the server runs, but {error}; it is asked again until it answers. Does it speak MCP on the transport that spec.transport names?"
                )
            } else {
                format!("{error}; it is asked again until it answers. Does an MCP server answer at spec.remote.url?")
            };
            Verdict::new(Phase::Starting, reason, message)
        }
        (None | Some(_), None) => {
            Verdict::new(Phase::Starting, "Starting", "the server runs; its first answer is awaited")
        }
    }
}

fn conditions(facts: &Facts<'_>, verdict: &Verdict, before: &McpServerStatus) -> Vec<Condition> {
    let make = |type_, status: &str, reason: &str, message: &str| {
        condition(&before.conditions, facts.server, type_, status, reason, message, facts.now)
    };
    let bool_ = |b: bool| if b { "True" } else { "False" };
    let ready = verdict.phase == Phase::Ready;
    let progressing = match verdict.phase {
        Phase::Pending | Phase::Starting | Phase::Failed | Phase::Degraded => !verdict.stalled,
        Phase::Suspended => !verdict.stopped,
        Phase::Ready | Phase::Terminating => false,
    };
    let degraded = matches!(verdict.phase, Phase::Degraded | Phase::Failed);
    let mut all = vec![
        if verdict.stopped {
            make(ConditionType::Suspended, "True", verdict.reason, &verdict.message)
        } else {
            make(ConditionType::Ready, bool_(ready), verdict.reason, &verdict.message)
        },
        make(
            ConditionType::Progressing,
            bool_(progressing),
            if progressing { verdict.reason } else { "Settled" },
            if progressing { "Perch is working towards the declared state" } else { "nothing is under way" },
        ),
        make(
            ConditionType::Degraded,
            bool_(degraded),
            if degraded { verdict.reason } else { "AsDeclared" },
            if degraded { &verdict.message } else { "" },
        ),
    ];
    if let Some(network) = facts.observed.as_ref().ok().and_then(|o| o.network.as_ref()) {
        let (status, reason) = match network.enforced {
            Some(true) => ("True", "Enforced"),
            Some(false) => ("False", "NotEnforced"),
            None => ("Unknown", "NotVerified"),
        };
        all.push(make(ConditionType::NetworkEnforced, status, reason, &network.message));
    }
    if let Some(report) = facts.credentials {
        all.push(make(ConditionType::CredentialsReady, bool_(report.ready), report.reason, &report.message));
    }
    if let Some((reason, message)) = &facts.held {
        all.push(make(ConditionType::RevisionHeld, "True", reason, message));
    }
    if verdict.stalled {
        all.push(make(ConditionType::Stalled, "True", verdict.reason, &verdict.message));
    }
    all
}

pub(super) fn condition(
    before: &[Condition],
    server: &McpServer,
    type_: ConditionType,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Condition {
    let previous = before.iter().find(|c| c.type_ == type_.as_str() && c.status == status);
    Condition {
        type_: type_.as_str().to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: server.metadata.generation,
        last_transition_time: previous.map_or_else(|| Time(seconds(now)), |c| c.last_transition_time.clone()),
    }
}

/// Kubernetes keeps times in whole seconds; a fraction would make a status differ from itself.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Writes a status, unless the object changed since it was read. Returns the object as written;
/// none when it is gone.
pub async fn write(client: Client, server: &McpServer, status: McpServerStatus) -> kube::Result<Option<McpServer>> {
    let api: Api<McpServer> = Api::namespaced(client, &server.namespace().unwrap_or_default());
    let object = McpServer { status: Some(status), ..server.clone() };
    let params = PostParams { field_manager: Some(super::MANAGER.into()), ..PostParams::default() };
    match api.replace_status(&server.name_any(), &params, &object).await {
        Ok(written) => Ok(Some(written)),
        // It went away: there is nobody to tell.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
