//! The API of the embedded control plane next to the one of a real kube-apiserver.
//!
//! A [`Case`](case::Case) is a list of requests and kubectl commands. Both servers get all of them;
//! what they answer, less what differs from one run to the next (UIDs, versions, times), must be
//! equal: the real server is the oracle, so no expectation is written down. `differences.rs` lists
//! what differs on purpose, with the reason; one that is listed and does not occur fails too.
//!
//! `cargo build --examples` must come before. `PERCH_CONFORMANCE=WORD` runs only the cases with that
//! word in their name, `PERCH_CONFORMANCE_SHOW=1` prints what the real server answered.

#[path = "../support/cluster/mod.rs"]
mod cluster;

mod case;
mod differences;
mod normal;
mod run;
mod servers;

mod cases;
