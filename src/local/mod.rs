//! The embedded control plane: the part of the Kubernetes API that Perch and its users need, on
//! one machine, kept in one file.
//!
//! It is a tower `Service`, so the same controllers run against it in process
//! ([`ControlPlane::client`]) and kubectl over loopback TLS ([`ControlPlane::serve`]).
//!
//! A request goes `service → api → (read | verbs) → store`; `objects` holds what schemas, patches
//! and field ownership mean, without any of the others.
//!
//! May import: `admission`, `api`, `names`, `error`, `telemetry`. Never `runtime`, `controllers`, `gateway`.

mod api;
mod credentials;
mod decode;
mod discovery;
mod events;
mod objects;
mod openapi;
mod openapi_v2;
mod options;
mod protobuf;
mod read;
mod registry;
mod request;
mod serve;
mod service;
mod status;
mod store;
mod verbs;

use std::{path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use credentials::{Credentials, write_private};
pub use service::{Body, Service};

use api::Api;
use registry::Registry;
use status::ApiError;
use store::{Key, Store, Transaction};

/// The embedded control plane. Clones share one store.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    api: Arc<Api>,
}

/// Why the control plane does not open or serve.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Another process holds the store.
    #[error("the store {0} is in use by another process")]
    InUse(String),
    /// The store cannot be read or written.
    #[error("the store {path} cannot be opened: {message}")]
    Store {
        /// Its path.
        path: String,
        /// What went wrong.
        message: String,
    },
    /// A CustomResourceDefinition is broken.
    #[error("the definition of {name} cannot be served: {message}")]
    Definition {
        /// Plural of the kind.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// Token or certificate cannot be read, written or used.
    #[error("the credentials in {path} cannot be used: {message}")]
    Credentials {
        /// Where they are kept.
        path: String,
        /// What went wrong.
        message: String,
    },
}

/// Time between two looks for old events.
const SWEEP: Duration = Duration::from_secs(60);

impl ControlPlane {
    /// Opens the store in `dir` (created when absent) and serves the built-in kinds and `crds`.
    ///
    /// # Errors
    /// When another process holds the store, or the store or a definition is unusable.
    pub async fn open(dir: &Path, crds: Vec<CustomResourceDefinition>) -> Result<Self, LocalError> {
        let path = dir.join("store.redb");
        let failed = |message: String| LocalError::Store { path: path.display().to_string(), message };
        std::fs::create_dir_all(dir).map_err(|error| failed(error.to_string()))?;
        let registry = Registry::new(&crds)?;
        let store = Store::open(&path)?;
        let now = Timestamp::now();
        store.write(move |transaction| seed(transaction, &crds, now)).await.map_err(|e| failed(e.message))?;
        Ok(Self {
            api: Arc::new(Api { store, registry, pages: read::Pages::default(), gate: std::sync::OnceLock::new() }),
        })
    }

    /// The API as a tower service, without authentication.
    pub fn service(&self) -> Service {
        Service::new(Arc::clone(&self.api))
    }

    /// From now on writes of servers are admitted as the policies of `gate` say. Only the first call
    /// counts.
    pub fn enforce(&self, gate: crate::admission::Gate) {
        // Whoever enforces something already goes on.
        let _ = self.api.gate.set(gate);
    }

    /// A client that talks to this control plane without a network.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.service(), "default")
    }

    /// Serves TLS on `listener` to clients that bring the token, until `shutdown`.
    ///
    /// # Errors
    /// When the certificate cannot be used.
    pub async fn serve(
        &self,
        listener: TcpListener,
        credentials: &Credentials,
        shutdown: CancellationToken,
    ) -> Result<(), LocalError> {
        let sweep = async {
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(SWEEP) => self.sweep_events(Timestamp::now()).await,
                }
            }
        };
        tokio::join!(serve::serve(self.service(), listener, credentials, shutdown.clone()), sweep).0
    }

    /// Deletes the events that were written more than an hour ago.
    async fn sweep_events(&self, now: Timestamp) {
        let (events, _) = self.api.store.list("events", None, None);
        let old: Vec<Key> = events
            .iter()
            .filter(|e| events::written(&e.value()).is_none_or(|at| now.duration_since(at) > events::KEEP))
            .map(|e| e.key.clone())
            .collect();
        if old.is_empty() {
            return;
        }
        let swept = self.api.store.write(move |transaction| {
            for key in &old {
                transaction.delete(key);
            }
            Ok(())
        });
        if let Err(error) = swept.await {
            tracing::warn!(%error, "old events were not deleted");
        }
    }
}

/// What every control plane has from the start: two namespaces and the definitions that it serves.
fn seed(transaction: &mut Transaction<'_>, crds: &[CustomResourceDefinition], now: Timestamp) -> Result<(), ApiError> {
    let created = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    for name in ["default", "kube-system"] {
        let key = Key { resource: "namespaces".into(), namespace: String::new(), name: name.into() };
        if transaction.get(&key).is_none() {
            transaction.put(
                key,
                json!({
                    "apiVersion": "v1", "kind": "Namespace",
                    "metadata": {
                        "name": name, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": created,
                        "labels": {"kubernetes.io/metadata.name": name},
                    },
                    "spec": {"finalizers": ["kubernetes"]},
                    "status": {"phase": "Active"},
                }),
            );
        }
    }
    for crd in crds {
        let mut object = serde_json::to_value(crd).map_err(|error| ApiError::store(error.to_string()))?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let key =
            Key { resource: "customresourcedefinitions.apiextensions.k8s.io".into(), namespace: String::new(), name };
        let before = transaction.get(&key).map(|stored| stored.value());
        if before.as_ref().is_some_and(|before| before["spec"] == object["spec"]) {
            continue;
        }
        let kept = |field: &str, new: Value| before.as_ref().map_or(new, |b| b["metadata"][field].clone());
        object["metadata"]["uid"] = kept("uid", uuid::Uuid::new_v4().to_string().into());
        object["metadata"]["creationTimestamp"] = kept("creationTimestamp", created.clone().into());
        let condition = |type_: &str, reason: &str| json!({"type": type_, "status": "True", "reason": reason, "message": "", "lastTransitionTime": created});
        object["status"] = json!({
            "acceptedNames": object["spec"]["names"],
            "storedVersions": crd.spec.versions.iter().filter(|v| v.storage).map(|v| v.name.clone()).collect::<Vec<_>>(),
            "conditions": [condition("NamesAccepted", "NoConflicts"), condition("Established", "InitialNamesAccepted")],
        });
        transaction.put(key, object);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Event;
    use kube::{Api, api::PostParams};
    use serde_json::json;

    use super::*;
    use crate::api::crds;

    #[tokio::test]
    async fn an_event_stays_for_an_hour_after_its_write() {
        let dir = tempfile::tempdir().unwrap();
        let plane = ControlPlane::open(dir.path(), crds::all()).await.unwrap();
        let events: Api<Event> = Api::namespaced(plane.client(), "default");
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"namespace": "default"},
            "lastTimestamp": "2020-01-01T00:00:00Z",
        });
        events.create(&PostParams::default(), &serde_json::from_value(event).unwrap()).await.unwrap();
        plane.sweep_events(Timestamp::now()).await;
        assert!(events.get_opt("e").await.unwrap().is_some(), "it tells of long ago, and is new");
        plane.sweep_events(Timestamp::now() + jiff::SignedDuration::from_mins(61)).await;
        assert!(events.get_opt("e").await.unwrap().is_none());
    }
}
