//! Keeps the table in step with the resources.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;

use super::observe::{Observer, releases};
use crate::{
    api::{
        canary_release::CanaryRelease,
        mcp_server::{McpServer, TransportType},
        mcp_toolbox::McpToolbox,
    },
    canary,
    names::ServerKey,
    routing::{
        RouteTable, Split, key_of,
        split::{first, target_of},
        toolbox,
    },
};

/// Compiles resources into the table, one change after the other.
pub struct Follower {
    /// The table as the resources are known now.
    next: Arc<RouteTable>,
    /// The table that requests see. It stays empty until both kinds were looked at: else users of a
    /// candidate would meet the stable revision for a moment whenever a gateway starts.
    live: Arc<ArcSwap<RouteTable>>,
    observer: Arc<Observer>,
    /// Whether requests can be served: the servers are known, and the releases are, or cannot be.
    ready: Arc<AtomicBool>,
    bridged: bool,
    servers: Known<McpServer>,
    releases: Known<CanaryRelease>,
    /// Nothing waits for these: a toolbox that is not known yet is one that may be there.
    toolboxes: Known<McpToolbox>,
    /// Every release, by namespace and name.
    all: BTreeMap<(String, String), CanaryRelease>,
    complained: bool,
}

/// How far a kind is known.
struct Known<K> {
    /// What a listing under way has given so far.
    listing: Vec<K>,
    listed: bool,
}

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self { listing: Vec::new(), listed: false }
    }
}

type Events<K> = watcher::Result<watcher::Event<K>>;

/// The changes of a kind, for ever; a watch that breaks is begun again with back-off.
fn changes<K>(client: Client, namespace: Option<&str>) -> impl Stream<Item = Events<K>>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<K> = match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    watcher(api, watcher::Config::default()).default_backoff()
}

impl Follower {
    /// A follower that knows nothing yet.
    pub fn new(live: Arc<ArcSwap<RouteTable>>, observer: Arc<Observer>, ready: Arc<AtomicBool>, bridged: bool) -> Self {
        Self {
            next: Arc::default(),
            live,
            observer,
            ready,
            bridged,
            servers: Known::default(),
            releases: Known::default(),
            toolboxes: Known::default(),
            all: BTreeMap::new(),
            complained: false,
        }
    }

    /// Follows for ever.
    pub async fn run(mut self, client: Client, namespace: Option<&str>) {
        let servers = changes::<McpServer>(client.clone(), namespace);
        let releases = changes::<CanaryRelease>(client.clone(), namespace);
        let toolboxes = changes::<McpToolbox>(client, namespace);
        futures::pin_mut!(servers, releases, toolboxes);
        loop {
            tokio::select! {
                Some(event) = servers.next() => self.server(event),
                Some(event) = releases.next() => self.release(event),
                Some(event) = toolboxes.next() => self.toolbox(event),
                else => return std::future::pending().await,
            }
        }
    }

    fn server(&mut self, event: Events<McpServer>) {
        let bridged = self.bridged;
        let seen = |server| if bridged { over_http(server) } else { server };
        match event {
            Ok(watcher::Event::Init) => self.servers.listing.clear(),
            Ok(watcher::Event::InitApply(server)) => self.servers.listing.push(seen(server)),
            Ok(watcher::Event::InitDone) => {
                let listing = std::mem::take(&mut self.servers.listing);
                self.next = Arc::new(self.next.with_all(&listing));
                self.observer.retain(|server| self.next.find(server).is_some());
                self.servers.listed = true;
                self.publish();
            }
            Ok(watcher::Event::Apply(server)) => {
                // Most writes of a status change no route.
                if let Some(next) = self.next.with(&seen(server)) {
                    self.next = Arc::new(next);
                    self.publish();
                }
            }
            Ok(watcher::Event::Delete(server)) => {
                self.next = Arc::new(self.next.without(&key_of(&server)));
                self.observer.retain(|server| self.next.find(server).is_some());
                self.publish();
            }
            // The stream backs off by itself; until then the last table stands.
            Err(error) => tracing::warn!(%error, "the gateway lost sight of the servers"),
        }
    }

    fn release(&mut self, event: Events<CanaryRelease>) {
        let name = |release: &CanaryRelease| {
            let metadata = &release.metadata;
            (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
        };
        match event {
            Ok(watcher::Event::Init) => self.releases.listing.clear(),
            Ok(watcher::Event::InitApply(release)) => self.releases.listing.push(release),
            Ok(watcher::Event::InitDone) => {
                let listing = std::mem::take(&mut self.releases.listing);
                let mut servers: BTreeSet<ServerKey> = self.all.values().map(target_of).collect();
                self.all = listing.into_iter().map(|release| (name(&release), release)).collect();
                servers.extend(self.all.values().map(target_of));
                for server in &servers {
                    self.divide(server);
                }
                self.releases.listed = true;
                self.complained = false;
                self.publish();
            }
            Ok(watcher::Event::Apply(release)) => {
                let mut servers = BTreeSet::from([target_of(&release)]);
                servers.extend(self.all.insert(name(&release), release).as_ref().map(target_of));
                for server in &servers {
                    self.divide(server);
                }
            }
            Ok(watcher::Event::Delete(release)) => {
                self.all.remove(&name(&release));
                self.divide(&target_of(&release));
            }
            Err(error) => {
                // What was known of releases stands. Where there is no such kind there are none.
                self.releases.listed |= is_absent(&error);
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(%error, "the gateway cannot follow CanaryReleases, and goes on without what it does not know of them");
                }
                self.publish();
            }
        }
    }

    fn toolbox(&mut self, event: Events<McpToolbox>) {
        let next = match event {
            Ok(watcher::Event::Init) => {
                self.toolboxes.listing.clear();
                None
            }
            Ok(watcher::Event::InitApply(toolbox)) => {
                self.toolboxes.listing.push(toolbox);
                None
            }
            Ok(watcher::Event::InitDone) => {
                self.toolboxes.listed = true;
                Some(self.next.with_toolboxes(&std::mem::take(&mut self.toolboxes.listing)))
            }
            Ok(watcher::Event::Apply(toolbox)) => self.next.with_toolbox(&toolbox),
            Ok(watcher::Event::Delete(toolbox)) => Some(self.next.without_toolbox(&toolbox::key_of(&toolbox))),
            Err(error) => {
                // Where there is no such kind there are none.
                let none = is_absent(&error) && !std::mem::replace(&mut self.toolboxes.listed, true);
                tracing::warn!(%error, "the gateway lost sight of the toolboxes");
                none.then(|| self.next.with_toolboxes([]))
            }
        };
        if let Some(next) = next {
            self.next = Arc::new(next);
            self.observer.retain(|server| self.next.find(server).is_some());
            self.publish();
        }
    }

    /// Lets requests see the table.
    fn publish(&self) {
        if self.servers.listed && (self.releases.listed || self.complained) {
            self.live.store(Arc::clone(&self.next));
            self.observer.set_synced(self.releases.listed);
            self.ready.store(true, Ordering::Release);
        }
    }

    /// Brings what the table says about a server's releases up to date: first there are counters,
    /// then the table goes live, then what is over ends.
    fn divide(&mut self, server: &ServerKey) {
        let release = first(self.all.values().filter(|release| target_of(release) == *server));
        let split = release.and_then(|release| {
            let runs = release.status.as_ref().is_some_and(|status| canary::wanted(status).candidate.is_some());
            Split::of(release, runs)
        });
        if let (Some(split), Some(release)) = (&split, release) {
            let watched = releases::watched(&release.spec);
            self.observer.meters.edges(server, releases::latencies(&watched));
            self.observer.releases.prepare(server, split, &watched, Timestamp::now());
        }
        // A release's status changes with each look at the evidence, its routing seldom.
        if self.next.split(server) != split.as_ref() {
            self.next = Arc::new(self.next.with_split(server, split.clone()));
            self.publish();
        }
        self.observer.releases.settle(server, split.as_ref());
    }
}

/// A server whose instances speak Streamable HTTP whatever its command speaks, as pods do.
fn over_http(mut server: McpServer) -> McpServer {
    let http = TransportType::StreamableHttp;
    server.spec.transport.type_ = http;
    // What runs may be another revision than the declared one, and is reached in the same way.
    if let Some(runs) = server.status.as_mut().and_then(|status| status.transport.as_mut()) {
        runs.type_ = http;
    }
    server
}

/// Whether the API server does not know the kind.
fn is_absent(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

#[cfg(test)]
mod tests;
