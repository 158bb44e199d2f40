//! Reconcile loops. Each goes in the steps `dereference → validate → build → apply → status`,
//! one file a step.
//!
//! May import: `runtime`, `metrics`, `canary`, `api`, `names`, `error`, `telemetry`. Never
//! `gateway`, `local`.

pub mod canary_release;
pub mod handshake;
pub mod leader_election;
pub mod mcp_server;
mod releases;
