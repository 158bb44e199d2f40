//! Enforcement of NetworkPolicy on a cluster of one node, with the kernel's packet filter.
//!
//! Agents that others run would be better, but could not be had (see `docs/testing-cluster.md`).
//! This one writes plain iptables rules. It knows all of the API: selectors of
//! pods and namespaces, blocks with exceptions, ports by number, range and name, both directions,
//! TCP, UDP and SCTP. It knows IPv4 only.
//!
//! What it decides is the same as on any cluster:
//! - Pods that no policy selects are open. A pod that some policy selects for a direction receives
//!   (or sends) only what one of these policies lists.
//! - The node reaches its pods always, for the probes of the kubelet. A pod reaches itself always.
//! - Connections that stand stay, and answers come back.
//! - What is not allowed is dropped without an answer.

pub mod agent;
mod rules;

pub use rules::CHAIN;
