//! Reconcile loops. Each goes in the steps `dereference → validate → build → apply → status`,
//! one file a step.
//!
//! May import: `runtime`, `metrics`, `canary`, `routing`, `api`, `names`, `error`, `telemetry`. Never
//! `gateway`, `local`.

pub mod canary_release;
pub mod handshake;
pub mod leader_election;
pub mod mcp_server;
pub mod mcp_toolbox;
mod releases;

use kube::{Api, Client, Resource, core::NamespaceResourceScope};

/// The objects of a kind in the namespace that is looked after; in all when none is named.
fn watched<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}
