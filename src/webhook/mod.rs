//! The admission webhook: tells an API server whether an `McpServer` may be written, as the policies
//! say.
//!
//! A request goes `serve → review → admission`; [`certificates`] keeps the certificate that it is
//! served with.
//!
//! # Guarantees
//! * What cannot be answered is answered with an error, never with a yes: what then happens is the
//!   failure policy of the configuration, which says it openly.
//! * Judging happens beside the async tasks, so that a slow policy does not stop others from being
//!   answered.
//! * A certificate is replaced while connections go on, and only after API servers trust the new one.
//!
//! May import: `admission`, `api`, `names`, `error`, `telemetry`. Never `controllers`, `gateway`,
//! `local`.

pub mod certificates;
mod review;
mod serve;

pub use serve::serve;
