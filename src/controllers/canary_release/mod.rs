//! Releases of new revisions: what people are told about them.

pub mod alerts;
pub mod incident;
pub mod metrics;
