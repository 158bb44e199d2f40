//! What is known of a server's containers, for everybody who asks without waiting for the engine.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
};

use super::image::Image;
use crate::{
    names::Revision,
    runtime::{
        Address, Endpoint, Instance, InstanceId, InstanceState, NetworkReport, Observed, Preparing, RuntimeError,
        Workload,
    },
};

/// A workload and the image that it runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Release {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its image.
    pub image: Image,
}

/// The state of a server's containers at the last look.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Long work, and the revision that it is for.
    pub preparing: Option<(Revision, Preparing)>,
    /// What clients get to: the newest revision, or the one before while the newest comes up.
    pub serving: Option<Release>,
    pub network: Option<NetworkReport>,
    pub replicas: Vec<Replica>,
    /// Containers of client sessions, and whether somebody has their streams.
    pub sessions: HashMap<InstanceId, (String, Arc<AtomicBool>)>,
    /// Set while the engine does not answer.
    pub trouble: Option<String>,
}

/// A container that counts as a replica.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub instance: Instance,
    pub container: String,
    pub address: Option<Address>,
    /// Whether somebody has its standard streams.
    pub held: Arc<AtomicBool>,
}

impl View {
    /// What is there, for somebody who wishes `revision`: work for another one is over.
    pub fn observed(&self, revision: Option<&Revision>) -> Result<Observed, RuntimeError> {
        if let Some(trouble) = &self.trouble {
            return Err(RuntimeError::unavailable("run containers", trouble.clone()));
        }
        let preparing = self.preparing.as_ref().filter(|(of, _)| Some(of) == revision);
        Ok(Observed {
            preparing: preparing.map(|(_, preparing)| preparing.clone()),
            instances: self.replicas.iter().map(|r| r.instance.clone()).collect(),
            image_id: self.serving.as_ref().map(|s| s.image.digest.clone().unwrap_or_else(|| s.image.id.clone())),
            network: self.network.clone(),
        })
    }

    /// Where clients are sent: to what serves, or to whatever runs.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let serving = self.serving.as_ref().map(|s| &s.workload.revision);
        let endpoint = |r: &Replica| {
            let Instance { id, revision, .. } = &r.instance;
            Some(Endpoint { instance: id.clone(), revision: revision.clone(), address: r.address.clone()? })
        };
        let all: Vec<Endpoint> = self.replicas.iter().filter_map(endpoint).collect();
        let current: Vec<Endpoint> = all.iter().filter(|e| Some(&e.revision) == serving).cloned().collect();
        if current.is_empty() { all } else { current }
    }

    /// The container of an instance that has standard streams.
    pub fn find(&self, instance: &InstanceId) -> Option<(String, Arc<AtomicBool>)> {
        let replica = self.replicas.iter().find(|r| r.instance.id == *instance && r.address == Some(Address::Stdio));
        replica.map(|r| (r.container.clone(), Arc::clone(&r.held))).or_else(|| self.sessions.get(instance).cloned())
    }

    /// Replicas that run.
    pub fn running(&self) -> Vec<(InstanceId, String)> {
        let running = self.replicas.iter().filter(|r| matches!(r.instance.state, InstanceState::Running { .. }));
        running.map(|r| (r.instance.id.clone(), r.container.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        api::mcp_server::{NetworkTier, SeccompProfile},
        names::ServerKey,
        runtime::workload::{Declared, Limits, Privileges, Program, Wire},
    };

    fn release(revision: &str) -> Release {
        let workload = Workload {
            server: ServerKey::new("default", "a"),
            uid: "u".into(),
            revision: Revision(revision.into()),
            program: Program::Image { image: "x".into(), command: Vec::new(), args: Vec::new() },
            wire: Wire::Http { port: None, path: "/mcp".into() },
            replicas: 1,
            env: Vec::new(),
            credentials: Vec::new(),
            volumes: Vec::new(),
            limits: Limits { cpu_millis: 1, memory_bytes: 1, pids: 1 },
            security: Privileges {
                user: 1,
                read_only_root: true,
                add_capabilities: Vec::new(),
                seccomp: SeccompProfile::RuntimeDefault,
            },
            network: NetworkTier::Internal,
            stop_grace: Duration::ZERO,
            declared: Declared::default(),
        };
        Release {
            workload: Arc::new(workload),
            image: Image { reference: "x".into(), id: "sha256:x".into(), digest: None },
        }
    }

    fn replica(id: &str, revision: &str, running: bool) -> Replica {
        let instance = Instance {
            id: InstanceId(id.into()),
            revision: Revision(revision.into()),
            state: InstanceState::Starting,
            restarts: 0,
            last_exit: None,
        };
        Replica { instance, container: id.into(), address: running.then_some(Address::Stdio), held: Arc::default() }
    }

    #[test]
    fn clients_stay_with_what_serves_until_it_is_gone() {
        let replicas = vec![replica("old", "a-1", true), replica("new", "a-2", true)];
        let mut view = View { serving: Some(release("a-1")), replicas, ..View::default() };
        let ids = |view: &View| view.endpoints().into_iter().map(|e| e.instance.0).collect::<Vec<_>>();
        assert_eq!(ids(&view), ["old"]);
        view.replicas[0] = replica("old", "a-1", false);
        assert_eq!(ids(&view), ["new"]);
        view.serving = Some(release("a-2"));
        assert_eq!(ids(&view), ["new"]);
    }

    #[test]
    fn work_for_a_wish_that_is_over_is_not_told() {
        let failed = Preparing { reason: "ImagePullFailed", message: String::new(), percent: None, retry_at: None };
        let view = View { preparing: Some((Revision("a-1".into()), failed)), ..View::default() };
        let told = |revision: &str| view.observed(Some(&Revision(revision.into()))).unwrap().preparing;
        assert_eq!(told("a-1").unwrap().reason, "ImagePullFailed");
        assert_eq!(told("a-2"), None);
    }
}
