//! The embedded control plane through kubectl and kube-rs, and servers as local processes.

#[path = "../support/registry.rs"]
mod registry;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/token_endpoint.rs"]
mod token_endpoint;

mod access;
mod access_issuer;
mod access_oauth;
mod arguments;
mod bad_input;
#[macro_use]
#[path = "../backend_contract/mod.rs"]
mod backend_contract;

mod bridge;
mod canary;
mod canary_cli;
mod canary_writes;
mod clients;
mod connect;
#[path = "backend_contract.rs"]
mod contract;
mod control_plane;
mod credentials;
mod credentials_vault;
mod decommission;
mod durability;
mod eras;
mod events;
mod gateway;
mod gateway_bad_input;
mod kubectl;
mod lifecycle;
mod policy;
mod prometheus;
mod release;
mod release_load;
mod release_simulated;
mod releases;
mod servers;
mod starting;
#[path = "../sudden_death/mod.rs"]
mod sudden_death;
mod supply_chain;
mod toolbox;
mod traces;
