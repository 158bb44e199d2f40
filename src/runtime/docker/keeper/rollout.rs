//! How one revision gives way to another: what served goes on until the new one is up.
//!
//! A revision is up when each of its containers runs and listens on its port, or, for want of a
//! port, has run for a while. Until then the containers of the revision before are kept running
//! and serve. Whether a new one also answers is for others to find out.

use std::{collections::BTreeMap, time::Duration};

use bollard::models::ContainerInspectResponse;
use jiff::Timestamp;

use super::{
    super::{container, network, view::Release},
    task::{LOOK, Task},
};
use crate::runtime::{Address, InstanceState, RuntimeError, Workload};

/// How long a container without a port must run until it counts as up.
const SETTLED: jiff::SignedDuration = jiff::SignedDuration::from_secs(2);
/// Wait before the next look at a revision that is not up.
pub(super) const NOT_UP: Duration = Duration::from_millis(200);

/// A server's containers, sorted.
#[derive(Default)]
pub(super) struct Sorted {
    /// Of the wished revision, by ordinal.
    pub kept: BTreeMap<u32, ContainerInspectResponse>,
    /// Of the revision that serves while the wished one comes up.
    pub previous: Vec<ContainerInspectResponse>,
    /// All others.
    pub surplus: Vec<ContainerInspectResponse>,
}

impl Task {
    /// Looks which container is what.
    pub(super) async fn sort(&mut self, release: &Release) -> Result<Sorted, RuntimeError> {
        let all = self.inspect_all().await?;
        let (previous, others) = match self.before(&release.workload) {
            Some(settled) => self.split(settled, all),
            None => (Vec::new(), all),
        };
        let wanted = self.shared.body(release, Some(0));
        let network = network::name(&self.shared.engine, &release.workload);
        let mut sorted = Sorted { previous, ..Sorted::default() };
        for found in others {
            match Self::place(&found, &release.workload) {
                Some(ordinal) if !sorted.kept.contains_key(&ordinal) => {
                    match container::drift(&found, &wanted, &release.image.id, network.as_deref()) {
                        None => drop(sorted.kept.insert(ordinal, found)),
                        Some(what) => {
                            tracing::info!(server = %self.shared.server, ordinal, what, "a container is not as it should be and is replaced");
                            sorted.surplus.push(found);
                        }
                    }
                }
                _ => sorted.surplus.push(found),
            }
        }
        Ok(sorted)
    }

    /// What serves while `workload` comes up, if that is another revision of the same server.
    fn before(&self, workload: &Workload) -> Option<&Release> {
        self.settled.as_ref().filter(|settled| {
            let Workload { revision, uid, .. } = &*settled.workload;
            *revision != workload.revision && *uid == workload.uid && workload.replicas > 0
        })
    }

    /// The containers of a release that are as they should be, and all others.
    fn split(
        &self,
        release: &Release,
        all: Vec<ContainerInspectResponse>,
    ) -> (Vec<ContainerInspectResponse>, Vec<ContainerInspectResponse>) {
        let wanted = self.shared.body(release, Some(0));
        let network = network::name(&self.shared.engine, &release.workload);
        all.into_iter().partition(|found| {
            Self::place(found, &release.workload).is_some()
                && container::drift(found, &wanted, &release.image.id, network.as_deref()).is_none()
        })
    }

    /// Keeps the containers of the revision before running.
    pub(super) async fn go_on(&mut self, previous: &[ContainerInspectResponse]) -> Result<Duration, RuntimeError> {
        let mut next = LOOK;
        if let Some(settled) = self.settled.clone() {
            for found in previous {
                next = next.min(self.revive(found, &settled.workload).await?);
            }
        }
        Ok(next)
    }

    /// Keeps what came up last running, and shows it: the image of the wished revision cannot be
    /// had.
    pub(super) async fn go_on_alone(&mut self) -> Result<Duration, RuntimeError> {
        let all = self.inspect_all().await?;
        let Some(settled) = self.settled.clone() else {
            self.forget_ended(&all);
            return Ok(LOOK);
        };
        let (previous, surplus) = self.split(&settled, all);
        if previous.is_empty() {
            self.forget_ended(&surplus);
            return Ok(LOOK);
        }
        let sorted = Sorted { previous, surplus, ..Sorted::default() };
        let next = self.go_on(&sorted.previous).await?;
        self.show(&settled, &sorted, false);
        Ok(next)
    }

    /// Whether a revision came up, as far as its containers show.
    pub(super) async fn is_up(
        &self,
        release: &Release,
        found: impl Iterator<Item = &ContainerInspectResponse> + Send,
    ) -> bool {
        for container in found {
            let Some(replica) = self.replica(container, release, &[]) else { return false };
            let InstanceState::Running { since } = replica.instance.state else { return false };
            let up = match &replica.address {
                Some(Address::Http(url)) => listens(url).await,
                _ => Timestamp::now().duration_since(since) >= SETTLED,
            };
            if !up {
                return false;
            }
        }
        true
    }
}

/// Whether somebody takes connections there.
async fn listens(url: &url::Url) -> bool {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return false };
    let connected = tokio::time::timeout(NOT_UP, tokio::net::TcpStream::connect((host, port))).await;
    matches!(connected, Ok(Ok(_)))
}
