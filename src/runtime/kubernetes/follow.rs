//! The watches that fill the cache.

use std::{collections::HashSet, fmt::Debug, sync::Arc};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    cache::{Cache, Seen},
    naming,
    objects::Kind,
    pods::PodView,
};
use crate::names::ServerKey;

fn selector() -> watcher::Config {
    watcher::Config::default()
        .labels(&format!("{}={},{}", naming::MANAGED_BY, naming::PERCH, naming::SERVER))
        .page_size(500)
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Number of watches that [`everything`] starts.
pub const WATCHES: usize = Kind::ALL.len() + 1;

/// Follows every kind of object that a server is made of, and its pods.
pub fn everything(tasks: &mut JoinSet<()>, client: &Client, namespace: Option<&str>, cache: &Arc<Cache>) {
    tasks.spawn(objects::<ServiceAccount>(api(client, namespace), Kind::ServiceAccount, Arc::clone(cache)));
    tasks.spawn(objects::<NetworkPolicy>(api(client, namespace), Kind::NetworkPolicy, Arc::clone(cache)));
    tasks.spawn(objects::<Service>(api(client, namespace), Kind::Service, Arc::clone(cache)));
    tasks.spawn(objects::<Deployment>(api(client, namespace), Kind::Deployment, Arc::clone(cache)));
    tasks.spawn(objects::<PodDisruptionBudget>(api(client, namespace), Kind::PodDisruptionBudget, Arc::clone(cache)));
    tasks.spawn(objects::<HorizontalPodAutoscaler>(
        api(client, namespace),
        Kind::HorizontalPodAutoscaler,
        Arc::clone(cache),
    ));
    tasks.spawn(pods(api(client, namespace), Arc::clone(cache), Some(client.clone())));
}

async fn objects<K>(api: Api<K>, kind: Kind, cache: Arc<Cache>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
    let mut events = watcher(api, selector()).default_backoff().boxed();
    let mut listed = HashSet::new();
    let mut first = true;
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Init)) => listed.clear(),
            Ok(Some(watcher::Event::InitApply(object))) => {
                listed.insert(key(&object));
                if let Some(seen) = seen(&object) {
                    cache.keep(kind, key(&object), seen);
                }
            }
            Ok(Some(watcher::Event::InitDone)) => {
                cache.retain(kind, &listed);
                listed = HashSet::new();
                if std::mem::take(&mut first) {
                    cache.listed();
                }
            }
            Ok(Some(watcher::Event::Apply(object))) => {
                if let Some(seen) = seen(&object) {
                    cache.keep(kind, key(&object), seen);
                }
            }
            Ok(Some(watcher::Event::Delete(object))) => cache.forget(kind, &key(&object)),
            Ok(None) => return,
            // The stream backs off by itself; until then the last state stands.
            Err(error) => tracing::warn!(?kind, %error, "lost sight of what runs servers"),
        }
    }
}

/// The part of an object that Perch looks at.
pub fn seen<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Option<Seen> {
    let name = object.annotations().get(naming::SERVER_NAME)?.clone();
    compact(ServerKey::new(object.namespace()?, name), serde_json::to_value(object).ok()?)
}

fn compact(server: ServerKey, mut json: Value) -> Option<Seen> {
    let trouble = trouble(&json);
    if let Some(fields) = json.as_object_mut() {
        fields.remove("status");
        // A write answers with these, a list does not.
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| {
            matches!(key.as_str(), "labels" | "annotations" | "ownerReferences" | "name" | "namespace")
        });
        // The Deployment controller counts rollouts here.
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("deployment.kubernetes.io/revision");
        }
    }
    Some(Seen { server, json: serde_json::to_vec(&json).ok()?.into(), trouble })
}

/// A Deployment whose pods are refused says so here: a quota, or Pod Security.
fn trouble(object: &Value) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array()?;
    let failed = conditions.iter().find(|c| c["type"] == "ReplicaFailure" && c["status"] == "True")?;
    failed["message"].as_str().map(str::to_owned)
}

/// Follows pods. With a client, takes the way out from pods that have their package.
pub async fn pods(api: Api<Pod>, cache: Arc<Cache>, close: Option<Client>) {
    let mut events = watcher(api, selector()).default_backoff().boxed();
    let mut listed = HashSet::new();
    let mut first = true;
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Init)) => listed.clear(),
            Ok(Some(watcher::Event::InitApply(pod))) => {
                listed.insert((pod.namespace().unwrap_or_default(), pod.name_any()));
                see(&pod, &cache, close.as_ref()).await;
            }
            Ok(Some(watcher::Event::InitDone)) => {
                cache.retain_pods(&listed);
                listed = HashSet::new();
                if std::mem::take(&mut first) {
                    cache.listed();
                }
            }
            Ok(Some(watcher::Event::Apply(pod))) => see(&pod, &cache, close.as_ref()).await,
            Ok(Some(watcher::Event::Delete(pod))) => {
                if let Some(view) = PodView::of(&pod) {
                    cache.forget_pod(&view.server, &view.name);
                }
            }
            Ok(None) => return,
            Err(error) => tracing::warn!(%error, "lost sight of the pods"),
        }
    }
}

async fn see(pod: &Pod, cache: &Cache, close: Option<&Client>) {
    let Some(view) = PodView::of(pod) else { return };
    if let Some(client) = close
        && view.installing
        && view.installed
        && !view.ending
    {
        let api: Api<Pod> = Api::namespaced(client.clone(), &view.server.namespace);
        let patch = Patch::Merge(json!({"metadata": {"labels": {naming::INSTALLING: null}}}));
        if let Err(error) = api.patch_metadata(&view.name, &PatchParams::default(), &patch).await {
            tracing::warn!(pod = view.name, %error, "the way out of a pod that has its package is still open");
        }
    }
    cache.keep_pod(view);
}

/// Like [`seen`], for an object as a write answers it.
pub fn seen_dynamic(object: &kube::api::DynamicObject) -> Option<Seen> {
    let name = object.annotations().get(naming::SERVER_NAME)?.clone();
    compact(ServerKey::new(object.namespace()?, name), serde_json::to_value(object).ok()?)
}
