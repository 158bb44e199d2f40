//! The suite's scenarios for clients: its servers look at what reaches them. The official client is run
//! against them directly, and again with the gateway in between; what they miss must be the same.
//!
//! Scenarios of authorization are left out: a gateway never authorizes itself in a user's name.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Stdio},
};

use crate::{node, packages};

const LEGACY: &[&str] = &["initialize", "tools_call", "elicitation-sep1034-client-defaults", "sse-retry"];
const MODERN: &[&str] = &[
    "tools_call",
    "request-metadata",
    "sep-2322-client-request-state",
    "http-standard-headers",
    "http-custom-headers",
    "http-invalid-tool-headers",
    "json-schema-ref-no-deref",
];

/// What only the gateway is blamed for, and why it is right: the handshake by which a server becomes
/// ready is that of a legacy client, and the gateway passes `initialize` on before it knows the era.
const HANDSHAKE: &[&str] = &[
    "sep-2243-client-includes-standard-headers",
    "sep-2575-http-client-sends-version-header",
    "sep-2575-client-populates-meta",
];

/// Runs a scenario: how many checks passed, and which did not.
fn run(scenario: &str, revision: &str, command: &str) -> (u32, BTreeSet<String>) {
    let scratch = tempfile::tempdir().unwrap();
    let output = Command::new(node())
        .arg(packages().join("@modelcontextprotocol/conformance/dist/index.js"))
        .args(["client", "--scenario", scenario, "--spec-version", revision, "--command", command])
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let passed = text.lines().find_map(|line| line.strip_prefix("Passed: ")?.split('/').next()?.parse().ok());
    let failed = text.lines().filter(|line| line.contains("FAILURE"));
    let name =
        |line: &str| line.split('[').find_map(|part| Some(part.split_once(']')?.0.trim().to_owned()).filter(is_check));
    (
        passed.unwrap_or_else(|| panic!("{scenario} ({revision}) has no result:\n{text}")),
        failed.filter_map(name).collect(),
    )
}

/// Whether what stood in brackets names a check, rather than a colour or a time.
#[expect(clippy::ptr_arg, reason = "a filter's argument")]
fn is_check(name: &String) -> bool {
    name.contains('-') && name.starts_with(|c: char| c.is_ascii_lowercase())
}

#[test]
fn a_client_behaves_as_well_through_the_gateway() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance_mcp");
    let (node, packages, here) = (node().display().to_string(), packages().display().to_string(), here.display());
    let direct = format!("{node} {here}/client.mjs {packages}");
    let perch = env!("CARGO_BIN_EXE_perch");
    let through = format!("{node} {here}/through.mjs {perch} {here}/client.mjs {packages}");
    let all = [("2025-11-25", LEGACY), ("2026-07-28", MODERN)];
    for (revision, scenario) in all.iter().flat_map(|(revision, all)| all.iter().map(move |s| (*revision, *s))) {
        let ((passed, missed), (also_passed, also_missed)) =
            (run(scenario, revision, &direct), run(scenario, revision, &through));
        assert!(passed > 0 && also_passed > 0, "{scenario} ({revision}): {passed} and {also_passed} checks passed");
        let mut more: Vec<_> = also_missed.difference(&missed).collect();
        more.retain(|check| !HANDSHAKE.contains(&check.as_str()));
        assert!(more.is_empty(), "{scenario} ({revision}) misses through the gateway: {more:?}");
    }
}
