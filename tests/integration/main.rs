//! The embedded control plane through kubectl and kube-rs, and servers as local processes.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod access_issuer;
mod access_oauth;
mod bad_input;
#[macro_use]
#[path = "../backend_contract/mod.rs"]
mod backend_contract;

mod bridge;
mod canary;
mod canary_cli;
mod canary_writes;
#[path = "backend_contract.rs"]
mod contract;
mod control_plane;
mod durability;
mod eras;
mod gateway;
mod kubectl;
mod policy;
mod prometheus;
mod release;
mod servers;
#[path = "../sudden_death/mod.rs"]
mod sudden_death;
