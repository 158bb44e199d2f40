//! Perch makes a Model Context Protocol (MCP) server a Kubernetes object.
//!
//! The modules form layers. A module imports only from layers below its own and never from a
//! sibling in its layer; `tests/architecture.rs` reads the table below and fails on any `use`
//! that breaks it. Each line is `L<level> <module>...`.
//!
//! ```layers
//! L6 cli
//! L5 controllers gateway local webhook
//! L4 runtime metrics credentials admission
//! L3 supply_chain
//! L2 canary routing policy lifecycle egress
//! L1 api
//! L0 telemetry names error
//! ```
//!
//! * **Declare** (`api`): what a user writes and reads. Plain types, no I/O.
//! * **Decide** (`canary`, `routing`, `policy`, `lifecycle`, `egress`): pure functions from facts to decisions. Time and seeds are arguments.
//! * **Do** (`supply_chain`, `runtime`, `metrics`, `credentials`, `admission`, then `controllers`, `gateway`, `local`,
//!   `webhook`): talk to registries, Docker, processes, HTTP.
//!
//! `controllers`, `gateway`, `local` and `webhook` never see each other: the custom resources are the
//! contract between them. `cli` is the only place that wires them and reads environment,
//! arguments and files of the user.

pub mod admission;
pub mod api;
pub mod canary;
pub mod cli;
pub mod controllers;
pub mod credentials;
pub mod egress;
pub mod error;
pub mod gateway;
pub mod lifecycle;
pub mod local;
pub mod metrics;
pub mod names;
pub mod policy;
pub mod routing;
pub mod runtime;
pub mod supply_chain;
pub mod telemetry;
pub mod webhook;
