//! Tests of the cluster that the other tests on Kubernetes stand on: is it as real as they need?
//! What starts it is told in `docs/testing-cluster.md`.

#[path = "../support/cluster/mod.rs"]
mod cluster;

mod control_plane;
