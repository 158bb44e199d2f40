//! Tests of the cluster that the other tests on Kubernetes stand on: is it as real as they need?
//! What starts it is told in `docs/testing-cluster.md`.

#[path = "../support/cluster/mod.rs"]
mod cluster;
#[path = "../support/registry.rs"]
mod registry;
#[path = "../support/token_endpoint.rs"]
mod token_endpoint;

mod access;
mod chart;
mod control_plane;
mod credentials;
mod decommission;
mod ends;
mod faults;
mod http_route;
mod node;
mod operator;
mod policy;
mod proxy;
mod rbac;
mod workloads;

use std::time::Instant;

use cluster::PATIENCE;

/// Waits until `check` gives something.
fn wait<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}
