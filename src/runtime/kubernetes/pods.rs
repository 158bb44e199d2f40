//! What pods say about themselves, cut down to what Perch needs, and what that means.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

use super::{naming, objects::container, way_out::Found};
use crate::{
    names::{Revision, ServerKey},
    runtime::{Address, Endpoint, Exit, Instance, InstanceId, InstanceState, Preparing},
};

/// Longest wait of a kubelet between two starts of a container.
const LONGEST_BACKOFF: i64 = 300;

/// A pod of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct PodView {
    /// The server.
    pub server: ServerKey,
    /// Its name: unique, and never used again by a Deployment.
    pub name: String,
    /// The revision that it runs.
    pub revision: Revision,
    /// Port and path of its endpoint.
    endpoint: String,
    /// Its address, once it has one.
    ip: Option<String>,
    /// The kubelet lets traffic come.
    pub ready: bool,
    /// It is to end.
    pub ending: bool,
    /// It may still reach out for its package.
    pub installing: bool,
    /// Its package is there, or it needs none.
    pub installed: bool,
    /// What came of trying its way out, once that was tried.
    pub way_out: Option<Found>,
    /// Digest of the server's image.
    pub image_id: Option<String>,
    state: InstanceState,
    restarts: u32,
    last_exit: Option<Exit>,
    trouble: Option<(&'static str, String)>,
    under_way: Option<(&'static str, String)>,
}

impl PodView {
    /// The view of a pod; none for a pod that is not of a server.
    pub fn of(pod: &Pod) -> Option<Self> {
        let annotation = |name| pod.annotations().get(name).cloned();
        let server = ServerKey::new(pod.namespace()?, annotation(naming::SERVER_NAME)?);
        let status = pod.status.clone().unwrap_or_default();
        let condition = |type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_);
        let containers = status.container_statuses.as_deref().unwrap_or_default();
        let main = containers.iter().find(|c| c.name == container::SERVER);
        let first = status.init_container_statuses.as_deref().unwrap_or_default();
        let last_exit = main.and_then(exit);
        let restarts = main.map_or(0, |c| u32::try_from(c.restart_count).unwrap_or(0));
        let scheduled = condition("PodScheduled").filter(|c| c.status == "False");
        let unscheduled = scheduled.map(|c| {
            let why = c.message.clone().unwrap_or_default();
            ("Unschedulable", format!("no node takes the pod: {why}"))
        });
        let install = first.iter().find(|c| c.name == container::INSTALL);
        // A new pod has no status of its containers yet.
        let mut declared = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten());
        let installed = !declared.any(|c| c.name == container::INSTALL)
            || install.and_then(|c| c.state.as_ref()?.terminated.as_ref()).is_some_and(|ended| ended.exit_code == 0);
        let trouble = first.iter().find_map(trouble_before).or_else(|| main.and_then(trouble)).or(unscheduled);
        let under_way = (!installed && install.is_some_and(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())))
            .then(|| ("Installing", "the package is being installed".to_owned()));
        Some(Self {
            server,
            name: pod.name_any(),
            revision: Revision(annotation(naming::REVISION)?),
            endpoint: annotation(naming::ENDPOINT)?,
            ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
            ready: condition("Ready").is_some_and(|c| c.status == "True"),
            ending: pod.metadata.deletion_timestamp.is_some()
                || matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")),
            installing: pod.labels().contains_key(naming::INSTALLING),
            installed,
            way_out: first.iter().find(|c| c.name == container::PREPARE).and_then(found),
            image_id: main.map(|c| c.image_id.clone()).and_then(|id| digest_of(&id)),
            state: main.map_or(InstanceState::Starting, |c| state(c, last_exit.as_ref())),
            restarts,
            last_exit,
            trouble,
            under_way,
        })
    }

    /// The replica that the pod is.
    pub fn instance(&self) -> Instance {
        Instance {
            id: InstanceId(self.name.clone()),
            revision: self.revision.clone(),
            state: self.state.clone(),
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
        }
    }

    /// Where the gateway reaches the pod; nowhere while it is not ready, or is to end.
    pub fn address(&self) -> Option<Endpoint> {
        let ip = self.ip.as_ref().filter(|_| self.ready && !self.ending)?;
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        Some(Endpoint {
            instance: InstanceId(self.name.clone()),
            revision: self.revision.clone(),
            address: Address::Http(format!("http://{host}:{}", self.endpoint).parse().ok()?),
        })
    }

    /// Why the pod does not run, where that is neither a start nor a crash of the server.
    pub fn preparing(&self) -> Option<Preparing> {
        if let Some((reason, message)) = &self.trouble {
            let retry_at = Some(Timestamp::now());
            return Some(Preparing { reason, message: message.clone(), percent: None, retry_at });
        }
        let (reason, message) = self.under_way.as_ref()?;
        Some(Preparing { reason, message: message.clone(), percent: None, retry_at: None })
    }
}

/// `docker.io/library/x@sha256:…` and `sha256:…` alike.
fn digest_of(image_id: &str) -> Option<String> {
    let start = image_id.rfind("sha256:")?;
    Some(image_id[start..].to_owned())
}

fn state(container: &ContainerStatus, last: Option<&Exit>) -> InstanceState {
    let Some(state) = &container.state else { return InstanceState::Starting };
    if let Some(running) = &state.running {
        return InstanceState::Running { since: running.started_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0) };
    }
    let crashed = state.waiting.as_ref().is_some_and(|w| w.reason.as_deref() == Some("CrashLoopBackOff"));
    match last {
        // The kubelet doubles its wait from ten seconds on; it does not say how far it is.
        Some(exit) if crashed || state.terminated.is_some() => {
            let doublings = u32::try_from(container.restart_count).unwrap_or(0).min(6);
            let wait = (10_i64 << doublings).min(LONGEST_BACKOFF);
            InstanceState::Waiting { until: exit.at + SignedDuration::from_secs(wait) }
        }
        _ => InstanceState::Starting,
    }
}

/// What the container that tried it left as its last words.
fn found(container: &ContainerStatus) -> Option<Found> {
    let ended = container.state.as_ref()?.terminated.as_ref()?;
    serde_json::from_str(ended.message.as_deref()?).ok()
}

fn exit(container: &ContainerStatus) -> Option<Exit> {
    let now = container.state.as_ref().and_then(|s| s.terminated.as_ref());
    let before = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    let ended = now.or(before)?;
    let said = ended.message.clone().unwrap_or_default();
    let start = said.len().saturating_sub(1024);
    let start = (start..=said.len()).find(|i| said.is_char_boundary(*i)).unwrap_or(0);
    Some(Exit {
        reason: match ended.reason.as_deref() {
            Some("OOMKilled") => "OOMKilled",
            Some("Completed") => "Completed",
            Some("ContainerCannotRun" | "StartError") => "CannotStart",
            _ if ended.exit_code > 128 => "Killed",
            _ => "Error",
        },
        code: Some(ended.exit_code),
        at: ended.finished_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        stderr_tail: said[start..].to_owned(),
    })
}

/// What keeps the server's container from being started at all.
fn trouble(container: &ContainerStatus) -> Option<(&'static str, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let said = waiting.message.clone().unwrap_or_default();
    match waiting.reason.as_deref()? {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => Some((
            "ImagePullFailed",
            format!(
                "image {} cannot be pulled: {said}; check its name and tag, and that the node may pull it",
                container.image
            ),
        )),
        "CreateContainerConfigError" => Some(("ReferenceNotFound", said)),
        "CreateContainerError" | "RunContainerError" => Some(("CannotStart", said)),
        _ => None,
    }
}

/// What keeps the pod from getting as far as the server.
fn trouble_before(container: &ContainerStatus) -> Option<(&'static str, String)> {
    if let Some(found) = trouble(container) {
        return Some(found);
    }
    let failed = exit(container).filter(|e| e.code != Some(0))?;
    if container.state.as_ref().is_some_and(|s| s.running.is_some()) {
        return None;
    }
    let reason = if container.name == container::INSTALL { "InstallFailed" } else { "PrepareFailed" };
    Some((reason, format!("container {} ended with code {:?}: {}", container.name, failed.code, failed.stderr_tail)))
}

#[cfg(test)]
mod tests;
