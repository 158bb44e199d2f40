//! The whole of it on a Docker engine, with real MCP servers and real clients.
//!
//! `hack/test.sh` makes what these tests need and says where it is: `PERCH_TEST_BASE_IMAGE`, the
//! image on which packages are built; `PERCH_TEST_FIXTURE_IMAGE`, the fixture as a static binary;
//! `PERCH_TEST_PYTHON`, a Python with the official `mcp` package.

#[path = "../support/registry.rs"]
mod registry;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/token_endpoint.rs"]
mod token_endpoint;

#[macro_use]
#[path = "../backend_contract/mod.rs"]
mod backend_contract;

mod chaos;
mod containers;
#[path = "backend_contract.rs"]
mod contract;
mod credentials;
mod egress;
mod network;
mod quickstart;
#[path = "../sudden_death/mod.rs"]
mod sudden_death;
mod supply_chain;

use std::process::Command;

use serde_json::Value;

use support::{Perch, perch};

/// A setting of the test environment.
fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run these tests with `make test`"))
}

/// Runs docker, which must succeed, and gives what it printed.
fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The label that every container of this perch carries.
fn label(up: &Perch) -> String {
    let instance = std::fs::read_to_string(up.dir.join("instance")).unwrap();
    format!("label=perch.dev/instance={instance}")
}

/// Ids of all containers of this perch.
fn containers(filter: &str) -> Vec<String> {
    docker(&["ps", "-aq", "--no-trunc", "--filter", filter]).lines().map(str::to_owned).collect()
}

/// What the engine knows about a container.
fn inspect(id: &str) -> Value {
    serde_json::from_str::<Value>(&docker(&["inspect", id])).unwrap()[0].take()
}

/// Removes everything that a perch made, and checks that nothing is left.
fn down(dir: &std::path::Path, filter: &str) {
    let output = perch(&["down", "--volumes", "--data-dir", dir.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(containers(filter).is_empty());
    assert_eq!(docker(&["network", "ls", "-q", "--filter", filter]), "");
    assert_eq!(docker(&["volume", "ls", "-q", "--filter", filter]), "");
}
