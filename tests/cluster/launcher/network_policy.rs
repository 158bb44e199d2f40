//! Enforcement of NetworkPolicy on one node, with the packet filter.

pub mod agent;

/// The chain through which all that pods send and receive passes.
pub const CHAIN: &str = "PERCH-NETPOL";
