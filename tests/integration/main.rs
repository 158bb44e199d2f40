//! The embedded control plane through kubectl and kube-rs, and servers as local processes.

#[path = "../support/mod.rs"]
mod support;

mod bridge;
mod control_plane;
mod durability;
mod eras;
mod gateway;
mod kubectl;
mod servers;
