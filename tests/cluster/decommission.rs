//! The end of a server on a real API server, with just the rights that the chart gives for it.

use serde_json::{Value, json};

use crate::{
    cluster::Namespace,
    operator::{Operator, defined},
    rbac::install,
    wait,
};

fn server(keep: &str) -> Value {
    json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "old"},
        "spec": {
            "image": "example.invalid/x:1", "command": ["x"],
            "decommission": {"reason": "it is too old", "notice": "0s", "reduction": "0s", "keep": keep},
        },
    })
}

fn get(namespace: &Namespace<'_>, kind: &str, name: &str) -> Option<Value> {
    let output = namespace.kubectl(&["get", kind, name, "-o", "json"]);
    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
}

fn deployed(namespace: &Namespace<'_>) -> Option<Value> {
    get(namespace, "deployment", "mcp-old")
}

/// Waits for a reason of the condition Decommissioning, and gives its message.
fn until(namespace: &Namespace<'_>, reason: &str) -> String {
    wait(reason, || {
        let status = get(namespace, "mcpserver", "old")?["status"].take();
        let condition = status["conditions"].as_array()?.iter().find(|c| c["type"] == "Decommissioning")?.clone();
        (condition["reason"] == reason).then(|| condition["message"].as_str().unwrap().to_owned())
    })
}

fn archives(namespace: &Namespace<'_>) -> Vec<Value> {
    let list = namespace.ok(&["get", "configmaps", "-l", "perch.dev/archive=true", "-o", "json"]);
    serde_json::from_str::<Value>(&list).unwrap()["items"].as_array().unwrap().clone()
}

#[test]
fn a_server_is_archived_and_removed_only_with_the_rights_for_it() {
    let cluster = defined();
    let home = cluster.namespace("decommission", &json!({}));
    let [account, _] = install(&cluster, home.name(), &[]);
    let operator = Operator::account(&cluster, &account, home.name());
    home.apply(&[server("1h")]);
    let said = until(&home, "ArchiveFailed");
    assert!(said.contains("decommission.enabled") && said.contains("configmaps"), "{said}");
    let deployment = wait("the Deployment", || deployed(&home));
    assert_eq!(deployment["spec"]["replicas"], 1, "nothing is stopped that is not archived");
    drop(operator);
    crate::chart::helm_ok(Some(&cluster), &["uninstall", "perch", "-n", home.name()]);

    let [account, _] = install(&cluster, home.name(), &["--set", "decommission.enabled=true"]);
    let operator = Operator::account(&cluster, &account, home.name());
    let said = until(&home, "Stopped");
    let found = archives(&home);
    assert_eq!(found.len(), 1);
    let name = found[0]["metadata"]["name"].as_str().unwrap();
    assert!(said.contains(name), "{said}");
    wait("the Deployment to go", || deployed(&home).is_none().then_some(()));
    assert!(found[0]["metadata"]["ownerReferences"].is_null());

    // Another operator writes nothing, and goes on.
    wait("it to be at rest", || {
        let suspended = get(&home, "mcpserver", "old")?["status"]["conditions"].take();
        suspended.as_array()?.iter().any(|c| c["type"] == "Suspended" && c["reason"] == "Decommissioned").then_some(())
    });
    let before = get(&home, "mcpserver", "old").unwrap()["metadata"]["resourceVersion"].clone();
    drop(operator);
    let operator = Operator::account(&cluster, &account, home.name()).leading();
    wait("a look", || (operator.figure("perch_reconcile_duration_seconds_count") > 0.0).then_some(()));
    assert_eq!(get(&home, "mcpserver", "old").unwrap()["metadata"]["resourceVersion"], before);

    home.apply(&[server("0s")]);
    wait("the server to be removed", || get(&home, "mcpserver", "old").is_none().then_some(()));
    let found = archives(&home);
    assert_eq!(found.len(), 2, "what was declared since was archived as well");
    let manifest = found[0]["data"]["mcpserver.yaml"].as_str().unwrap();
    assert!(manifest.contains("example.invalid/x:1") && !manifest.contains("decommission:"), "{manifest}");
    drop(operator);
    crate::chart::helm_ok(Some(&cluster), &["uninstall", "perch", "-n", home.name()]);
}
