//! Servers as pods of a Kubernetes cluster.
//!
//! * For each server a Deployment, a Service, a ServiceAccount without token and a NetworkPolicy;
//!   where they make sense a PodDisruptionBudget and a HorizontalPodAutoscaler ([`objects`]).
//! * Written by server-side apply under one field manager, and only when what is there lacks
//!   something wanted ([`covers`]): a reconcile that finds all in place makes no request.
//! * Everything is owned by the McpServer, so the cluster's own garbage collection removes it.
//! * A Stdio server's container runs `perch bridge`, which an init container copies in, so all
//!   pods speak Streamable HTTP.
//! * Before a server starts, an init container tries whether its NetworkPolicy blocks ([`way_out`]).
//! * Secrets and ConfigMaps stay references that the kubelet follows. Perch reads none.
//!
//! * What a server reaches by name, it reaches through an egress proxy in pods of its own.
//!
//! May import: `runtime`, `egress`, `api`, `names`.

mod cache;
mod covers;
mod follow;
pub mod naming;
pub mod objects;
mod pods;
pub mod way_out;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt, stream, stream::BoxStream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, LogParams, Patch, PatchParams},
    core::GroupVersionKind,
    discovery::ApiResource,
};
use tokio::{sync::broadcast, task::JoinSet};

use super::{
    Backend, Endpoint, InstanceId, LogLine, LogOptions, NetworkReport, Observed, Preparing, RuntimeError, StdioStreams,
    Usage, Workload,
};
use crate::{api::mcp_server::RuntimeKind, names::ServerKey};
use cache::Cache;
use objects::{Kind, Wanted};

/// Field manager of everything that is written.
const MANAGER: &str = "perch-operator";
/// Changes that a slow listener may be behind before it must look at everything.
const CHANGES: usize = 16_384;

/// How pods are made.
#[derive(Clone, Debug)]
pub struct Config {
    /// Perch's own image, from which the bridge is copied into pods of Stdio servers.
    pub image: String,
    /// Pull policy of `image`; the cluster's default when none.
    pub image_pull_policy: Option<String>,
    /// Image on which npm packages are installed.
    pub npm_base: String,
    /// Image on which PyPI packages are installed.
    pub pypi_base: String,
    /// Pull policy of these two; the cluster's default when none.
    pub package_pull_policy: Option<String>,
    /// Environment of package installations: proxies, mirrors, certificates.
    pub install_env: Vec<(String, String)>,
    /// Namespace of the gateway, which alone may reach the pods.
    pub gateway_namespace: String,
    /// Labels of the gateway's pods.
    pub gateway_labels: BTreeMap<String, String>,
    /// The only namespace to look at; all when none.
    pub namespace: Option<String>,
}

/// Runs servers as pods.
pub struct KubernetesBackend {
    client: Client,
    config: Option<Config>,
    cache: Arc<Cache>,
    changes: broadcast::Sender<ServerKey>,
    #[expect(dead_code, reason = "held so that the watches end with the backend")]
    watches: Mutex<JoinSet<()>>,
}

impl KubernetesBackend {
    /// A backend that makes servers run, and follows what becomes of them. Must be called within
    /// a tokio runtime; [`synced`](Self::synced) tells when it knows what is there.
    pub fn operator(client: Client, config: Config) -> Self {
        let changes = broadcast::Sender::new(CHANGES);
        let cache = Arc::new(Cache::new(follow::WATCHES, changes.clone()));
        let mut watches = JoinSet::new();
        follow::everything(&mut watches, &client, config.namespace.as_deref(), &cache);
        Self { client, config: Some(config), cache, changes, watches: Mutex::new(watches) }
    }

    /// A backend for a gateway: it only finds pods and writes nothing. It needs no right but to
    /// list and watch pods.
    pub fn gateway(client: Client, namespace: Option<&str>) -> Self {
        let changes = broadcast::Sender::new(CHANGES);
        let cache = Arc::new(Cache::new(1, changes.clone()));
        let mut watches = JoinSet::new();
        let api = namespace.map_or_else(|| Api::all(client.clone()), |n| Api::namespaced(client.clone(), n));
        watches.spawn(follow::pods(api, Arc::clone(&cache), None));
        Self { client, config: None, cache, changes, watches: Mutex::new(watches) }
    }

    /// Waits until everything that is there was listed once.
    pub async fn synced(&self) {
        self.cache.synced().await;
    }

    /// Whether everything that is there was listed once.
    pub fn is_synced(&self) -> bool {
        self.cache.is_synced()
    }

    fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        let (group, version, name) = match kind {
            Kind::ServiceAccount => ("", "v1", "ServiceAccount"),
            Kind::NetworkPolicy => ("networking.k8s.io", "v1", "NetworkPolicy"),
            Kind::Service => ("", "v1", "Service"),
            Kind::Deployment => ("apps", "v1", "Deployment"),
            Kind::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget"),
            Kind::HorizontalPodAutoscaler => ("autoscaling", "v2", "HorizontalPodAutoscaler"),
        };
        let mut resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, name));
        if kind == Kind::NetworkPolicy {
            resource.plural = "networkpolicies".into();
        }
        Api::namespaced_with(self.client.clone(), namespace, &resource)
    }

    /// Writes an object, unless what is there has everything that is wanted.
    async fn ensure(&self, server: &ServerKey, wanted: &Wanted) -> Result<(), RuntimeError> {
        if let Some((live, _)) = self.cache.object(wanted.kind, &server.namespace, &wanted.name)
            && live["metadata"]["annotations"][naming::APPLIED] == wanted.digest.as_str()
            && covers::covers(&wanted.fields(), &live)
        {
            return Ok(());
        }
        let api = self.api(wanted.kind, &server.namespace);
        let params = PatchParams::apply(MANAGER).force();
        match api.patch(&wanted.name, &params, &Patch::Apply(&wanted.object)).await {
            Ok(written) => {
                if let Some(seen) = follow::seen_dynamic(&written) {
                    self.cache.keep(wanted.kind, (server.namespace.clone(), wanted.name.clone()), seen);
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 422 && status.message.contains("immutable") => {
                // Made by something else, or by an older Perch: it cannot be changed, only replaced.
                tracing::info!(%server, kind = ?wanted.kind, name = wanted.name, "replacing an object that cannot be changed");
                self.delete(wanted.kind, server, &wanted.name).await?;
                Err(RuntimeError::unavailable(
                    format!("{:?} {} is being replaced", wanted.kind, wanted.name),
                    status.message.clone(),
                ))
            }
            Err(error) => Err(refused(wanted, error)),
        }
    }

    /// The address of a server's egress proxy: the server resolves no names, so it is told.
    fn proxy_address(&self, server: &ServerKey) -> Result<IpAddr, RuntimeError> {
        let name = naming::egress_name(&server.name);
        let service = self.cache.object(Kind::Service, &server.namespace, &name);
        let address = service.and_then(|(service, _)| service["spec"]["clusterIP"].as_str()?.parse().ok());
        address.ok_or_else(|| {
            RuntimeError::unavailable(format!("find the address of Service {name}"), "the cluster gave it none yet")
        })
    }

    async fn delete(&self, kind: Kind, server: &ServerKey, name: &str) -> Result<(), RuntimeError> {
        match self.api(kind, &server.namespace).delete(name, &DeleteParams::background()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(RuntimeError::unavailable(format!("delete {kind:?} {name}"), error)),
        }
    }
}

/// What the API server's refusal means: wrong for good, or wrong for now.
fn refused(wanted: &Wanted, error: kube::Error) -> RuntimeError {
    let what = format!("apply {:?} {}", wanted.kind, wanted.name);
    match error {
        // Who refused it may be told otherwise, by somebody who does not touch the server.
        kube::Error::Api(status) if matches!(status.code, 400 | 422) && !is_denied(&status.message) => {
            RuntimeError::Invalid(format!("{what}: {}", status.message))
        }
        kube::Error::Api(status) => RuntimeError::unavailable(what, status.message.clone()),
        error => RuntimeError::unavailable(what, error),
    }
}

/// Whether a webhook or a policy of the cluster said no.
fn is_denied(message: &str) -> bool {
    message.contains("denied the request") || message.contains("denied request")
}

fn not_here(what: &str) -> RuntimeError {
    RuntimeError::Unsupported(format!("{what} is not for pods: they speak HTTP through their bridge"))
}

#[async_trait]
impl Backend for KubernetesBackend {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Kubernetes
    }

    fn follows_references(&self) -> bool {
        true
    }

    fn collects_garbage(&self) -> bool {
        true
    }

    async fn apply(&self, workload: &Workload) -> Result<(), RuntimeError> {
        let Some(config) = &self.config else { return Err(not_here("apply")) };
        self.cache.synced().await;
        let mut wanted = objects::egress_proxy(workload, config)?;
        for object in &wanted {
            self.ensure(&workload.server, object).await?;
        }
        let proxy = if wanted.is_empty() { None } else { Some(self.proxy_address(&workload.server)?) };
        for object in objects::build(workload, config, proxy)? {
            self.ensure(&workload.server, &object).await?;
            wanted.push(object);
        }
        for kind in Kind::ALL {
            for name in self.cache.names(kind, &workload.server) {
                if !wanted.iter().any(|w| w.kind == kind && w.name == name) {
                    self.delete(kind, &workload.server, &name).await?;
                }
            }
        }
        Ok(())
    }

    async fn observe(&self, server: &ServerKey) -> Result<Observed, RuntimeError> {
        self.cache.synced().await;
        let instances = self.cache.pods(server, |pod| (!pod.ending).then(|| pod.instance()));
        let newest = self.cache.pods(server, |pod| (!pod.ending).then(|| pod.preparing()).flatten());
        let names = [naming::object_name(&server.name), naming::egress_name(&server.name)];
        let deployments = names.iter().filter_map(|n| self.cache.object(Kind::Deployment, &server.namespace, n));
        let mut deployments = deployments;
        let refused = deployments.find_map(|(_, trouble)| trouble).map(|why| Preparing {
            reason: "PodsRefused",
            message: format!("the cluster refuses the server's pods: {why}"),
            percent: None,
            retry_at: Some(jiff::Timestamp::now()),
        });
        let installing = self.cache.pods(server, |pod| (!pod.ending && pod.installing).then_some(()));
        let tried = self.cache.pods(server, |pod| {
            // One that starts has no server yet that could get out.
            (!pod.ending && (pod.ready || pod.way_out.is_some())).then(|| pod.way_out.clone())
        });
        let unknown = |message: &str| NetworkReport { enforced: None, message: message.into() };
        let policies = names.map(|n| self.cache.object(Kind::NetworkPolicy, &server.namespace, &n).is_some());
        Ok(Observed {
            preparing: refused.or_else(|| newest.into_iter().next()),
            instances,
            image_id: self.cache.pods(server, |pod| (!pod.ending).then(|| pod.image_id.clone()).flatten()).pop(),
            network: Some(match policies {
                [false, _] => unknown("there is no NetworkPolicy yet"),
                _ if !installing.is_empty() => unknown("a pod may still reach out while it installs its package"),
                [_, true] => {
                    way_out::report("a NetworkPolicy is in place, and an egress proxy for what is listed", &tried)
                }
                [_, false] => way_out::report("a NetworkPolicy is in place", &tried),
            }),
        })
    }

    async fn remove(&self, server: &ServerKey) -> Result<(), RuntimeError> {
        self.cache.synced().await;
        for kind in Kind::ALL {
            for name in self.cache.names(kind, server) {
                self.delete(kind, server, &name).await?;
            }
        }
        Ok(())
    }

    /// Owner references collect what is left; there is never anything to look for.
    async fn servers(&self) -> Result<Vec<ServerKey>, RuntimeError> {
        Ok(Vec::new())
    }

    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint> {
        self.cache.pods(server, pods::PodView::address)
    }

    async fn attach(&self, _instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        Err(not_here("attaching to standard streams"))
    }

    async fn start_session(&self, _server: &ServerKey) -> Result<InstanceId, RuntimeError> {
        Err(not_here("a process for one session"))
    }

    async fn end_session(&self, _instance: &InstanceId) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn logs(&self, server: &ServerKey, options: LogOptions) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &server.namespace);
        let params = LogParams {
            container: Some(objects::container::SERVER.into()),
            follow: options.follow,
            tail_lines: options.tail.and_then(|n| i64::try_from(n).ok()),
            since_time: options.since,
            timestamps: true,
            ..LogParams::default()
        };
        let mut all = Vec::new();
        for pod in self.cache.pods(server, |pod| Some(pod.name.clone())) {
            let read = api.log_stream(&pod, &params).await;
            let lines = read.map_err(|error| RuntimeError::unavailable(format!("read the logs of {pod}"), error))?;
            let instance = InstanceId(pod);
            all.push(lines.lines().into_stream().filter_map(move |line| {
                let line = line.ok().map(|line| {
                    let (at, text) = line.split_once(' ').unwrap_or(("", &line));
                    LogLine { instance: instance.clone(), at: at.parse().ok(), text: text.to_owned() }
                });
                std::future::ready(line)
            }));
        }
        Ok(stream::select_all(all).boxed())
    }

    async fn usage(&self, _server: &ServerKey) -> Result<Vec<Usage>, RuntimeError> {
        Err(RuntimeError::Unsupported("pods are measured by the cluster: use `kubectl top pods`".into()))
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.changes.subscribe()
    }

    /// Pods go on without the operator.
    async fn shutdown(&self) -> Result<(), RuntimeError> {
        Ok(())
    }
}
