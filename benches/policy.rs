//! How long a decision takes with all shipped rules: `cargo bench --bench policy`.
//!
//! The bounds: under 1 ms for a decision, under 5 s for 5,000 servers after a policy changed.

use std::time::{Duration, Instant};

use perch::{
    api::mcp_server::GovernanceLevel,
    policy::{Policies, Subject},
};
use serde_json::{Value, json};

/// Decisions of each kind.
const ROUNDS: usize = 2_000;
/// Servers of the fleet.
const FLEET: u32 = 5_000;

fn server(extra: &Value) -> Value {
    let mut server = json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
        "metadata": {"name": "a", "namespace": "default", "annotations": {
            "policy.perch.dev/reviewed-at": "2026-05-01", "policy.perch.dev/scanned-at": "2026-05-31",
            "policy.perch.dev/scan-critical": "0", "policy.perch.dev/scan-high": "0", "policy.perch.dev/test-coverage": "90"}},
        "spec": {
            "image": format!("registry.example.com/x:1@sha256:{}", "a".repeat(64)),
            "env": (0..8).map(|i| json!({"name": format!("V{i}"), "value": "x"})).collect::<Vec<_>>(),
            "governance": {"owner": "team-a", "level": "High"},
        },
    });
    if let (Some(spec), Some(extra)) = (server["spec"].as_object_mut(), extra.as_object()) {
        spec.extend(extra.clone());
    }
    server
}

fn main() {
    let policies = Policies::shipped();
    let now = "2026-06-01T00:00:00Z".parse().expect("it is a time");
    let bad = json!({"image": "x:1", "network": {"tier": "Public"}, "podTemplate": {"spec": {"hostNetwork": true, "containers": [
        {"name": "server", "securityContext": {"runAsUser": 0, "privileged": true}}, {"name": "side", "image": "y"}]}}});
    println!("| Decision | p50 | p99 |\n|---|---|---|");
    for (name, object) in
        [("a server that breaks nothing", server(&json!({}))), ("a server that breaks nearly all", server(&bad))]
    {
        let mut took: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let begun = Instant::now();
                std::hint::black_box(policies.judge(&Subject {
                    object: &object,
                    level: GovernanceLevel::High,
                    now,
                    images: None,
                }));
                begun.elapsed()
            })
            .collect();
        took.sort();
        println!("| {name} | {:.0?} | {:.0?} |", took[ROUNDS / 2], took[ROUNDS * 99 / 100]);
    }
    let object = server(&json!({}));
    let begun = Instant::now();
    for _ in 0..FLEET {
        std::hint::black_box(policies.judge(&Subject {
            object: &object,
            level: GovernanceLevel::High,
            now,
            images: None,
        }));
    }
    println!("| {FLEET} servers, one after another | {:.1?} | |", begun.elapsed());
}
