//! The public contract: custom resource types of group `perch.dev`. Plain types, no I/O.

pub mod canary_release;
pub mod crds;
pub mod gateway_report;
pub mod mcp_server;
pub mod mcp_toolbox;
pub mod quantity;
