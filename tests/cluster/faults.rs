//! What goes wrong between the operator and the API server: conditions say it, nothing is lost,
//! and it is over when the fault is, without a restart. What needs pods is in `workloads.rs` and
//! in `tests/kubernetes/faults.rs`; docs/testing.md has the whole list.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use http::Method;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Level},
    operator::{Operator, define, get, server, started, until},
    proxy::{Proxy, expired, is_watch, refusal},
    wait,
};

/// A cluster for the tests that leave it whole.
fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cluster = Cluster::start(Level::ControlPlane);
        define(&cluster);
        cluster
    })
}

fn through(proxy: &Proxy, namespace: &str) -> Operator {
    Operator::start(&proxy.kubeconfig(), namespace, &["--namespace", namespace]).leading()
}

#[test]
fn without_definitions_it_waits_and_without_the_api_server_too() {
    let cluster = Cluster::start(Level::ControlPlane);
    let home = cluster.namespace("away", &json!({}));
    let mut operator = Operator::administrator(&cluster, home.name());
    wait("the operator to say what is missing", || {
        operator.log().contains("the CRD mcpservers.perch.dev is not installed: `kubectl apply").then_some(())
    });
    assert_eq!(operator.ask("/readyz").unwrap().0, 503);
    assert_eq!(operator.ask("/healthz").unwrap().0, 200, "a restart would not help");
    define(&cluster);
    wait("the operator to lead", || operator.leads().then_some(()));
    home.apply(&[server("before", &json!({})), server("gone", &json!({}))]);
    started(&home, "before");
    started(&home, "gone");

    cluster.stop_component("kube-apiserver");
    wait("the operator to give its Lease up", || (!operator.leads()).then_some(()));
    cluster.start_component("kube-apiserver");
    wait("the API server to come back", || {
        cluster.kubectl(&["get", "--raw", "/readyz"]).status.success().then_some(())
    });
    // What happens before the operator is back is not lost on it.
    home.apply(&[server("after", &json!({}))]);
    home.ok(&["delete", "deployment", "mcp-before"]);
    home.ok(&["patch", "mcpserver", "gone", "--type=merge", "-p", r#"{"spec": {"image": "example.invalid/y:2"}}"#]);
    started(&home, "after");
    wait("the Deployment to be there again", || (!get(&home, "deployment", "mcp-before").is_null()).then_some(()));
    started(&home, "gone");
    assert_eq!(image(&get(&home, "deployment", "mcp-gone")), "example.invalid/y:2");
    assert!(operator.runs(), "the process is the one that was started");
}

fn image(deployment: &Value) -> &str {
    deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default()
}

#[test]
fn conflicts_cost_tries_and_no_more() {
    let home = shared().namespace("conflicts", &json!({}));
    let proxy = Proxy::to(shared());
    let operator = through(&proxy, home.name());
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    // The first tries of every write but the Lease's meet somebody who was faster.
    proxy.set(move |parts| {
        let writes = parts.method != Method::GET && !parts.uri.path().contains("/leases");
        (writes && count.fetch_add(1, Ordering::Relaxed) < 12)
            .then(|| refusal(409, "Conflict", "Operation cannot be fulfilled: the object has been modified"))
    });
    home.apply(&[server("a", &json!({}))]);
    started(&home, "a");
    assert!(refused.load(Ordering::Relaxed) >= 12);
    proxy.clear();

    // And somebody writes all the time.
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let home = &home;
            scope.spawn(move || {
                for i in 0..20 {
                    let patch =
                        json!({"metadata": {"labels": {format!("l{writer}"): i.to_string()}}, "status": {"tools": i}});
                    home.ok(&["patch", "mcpserver", "a", "--type=merge", "-p", &patch.to_string()]);
                    let patch = json!({"spec": {"env": [{"name": format!("N{writer}"), "value": i.to_string()}]}});
                    home.ok(&["patch", "mcpserver", "a", "--type=merge", "-p", &patch.to_string()]);
                }
            });
        }
    });
    let last = get(&home, "mcpserver", "a");
    started(&home, "a");
    let env = get(&home, "deployment", "mcp-a")["spec"]["template"]["spec"]["containers"][0]["env"].clone();
    assert_eq!(env[1], last["spec"]["env"][0], "the last word counts");
    let revisions = home.ok(&["get", "controllerrevisions", "-l", "perch.dev/server=a", "-o", "name"]);
    assert!(revisions.lines().count() <= 12, "the history is no longer than it may be: {revisions}");
    drop(operator);
}

#[test]
fn too_many_requests_are_waited_out() {
    let home = shared().namespace("toomany", &json!({}));
    let proxy = Proxy::to(shared());
    let operator = through(&proxy, home.name());
    let busy = "the server has received too many requests and has asked us to try again later";
    let (tries, lists) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (tried, listed) = (Arc::clone(&tries), Arc::clone(&lists));
    proxy.set(move |parts| {
        if parts.method == Method::GET && parts.uri.path().ends_with("/controllerrevisions") {
            listed.fetch_add(1, Ordering::Relaxed);
        }
        (parts.method == Method::PATCH && parts.uri.path().contains("/deployments/")).then(|| {
            tried.fetch_add(1, Ordering::Relaxed);
            refusal(429, "TooManyRequests", busy)
        })
    });
    home.apply(&[server("a", &json!({}))]);
    let message = until(&home, "a", "RuntimeUnavailable");
    assert!(message.contains("Deployment mcp-a") && message.contains("too many requests"), "{message}");
    wait("more tries", || (tries.load(Ordering::Relaxed) >= 4).then_some(()));
    assert_eq!(lists.load(Ordering::Relaxed), 0, "what is in the way is no reason to read the history");
    // Now nothing at all can be asked or written.
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    proxy.set(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Some(refusal(429, "TooManyRequests", busy))
    });
    proxy.cut();
    home.apply(&[server("b", &json!({}))]);
    wait("requests to be refused", || (refused.load(Ordering::Relaxed) > 20).then_some(()));
    proxy.clear();
    started(&home, "a");
    started(&home, "b");
    drop(operator);
}

#[test]
fn a_watch_that_expired_misses_nothing() {
    let home = shared().namespace("expired", &json!({}));
    let proxy = Proxy::to(shared());
    let operator = through(&proxy, home.name());
    home.apply(&[server("kept", &json!({})), server("changed", &json!({})), server("deleted", &json!({}))]);
    for name in ["kept", "changed", "deleted"] {
        started(&home, name);
    }
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    proxy.set(move |parts| {
        is_watch(parts).then(|| {
            count.fetch_add(1, Ordering::Relaxed);
            expired()
        })
    });
    proxy.cut();
    wait("all watches to have expired", || (refused.load(Ordering::Relaxed) >= 10).then_some(()));
    home.ok(&["patch", "mcpserver", "changed", "--type=merge", "-p", r#"{"spec": {"image": "example.invalid/y:2"}}"#]);
    home.ok(&["delete", "deployment", "mcp-kept"]);
    home.ok(&["delete", "mcpserver", "deleted"]);
    home.apply(&[server("new", &json!({}))]);
    proxy.clear();
    started(&home, "new");
    started(&home, "changed");
    assert_eq!(image(&get(&home, "deployment", "mcp-changed")), "example.invalid/y:2");
    wait("what was deleted to be there again", || (!get(&home, "deployment", "mcp-kept").is_null()).then_some(()));
    // A namesake is another server: nothing of the old one is held against it.
    home.apply(&[server("deleted", &json!({"image": "example.invalid/z:3"}))]);
    started(&home, "deleted");
    wait("the namesake's image", || {
        (image(&get(&home, "deployment", "mcp-deleted")) == "example.invalid/z:3").then_some(())
    });
    drop(operator);
}

#[test]
fn a_webhook_that_fails_and_one_that_refuses() {
    let home = shared().namespace("webhook", &json!({}));
    let operator = Operator::administrator(shared(), home.name()).leading();
    let only = json!({"matchLabels": {"kubernetes.io/metadata.name": home.name()}});
    let name = format!("perch-test-{}", home.name());
    let webhook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": "deployments.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Fail", "timeoutSeconds": 1, "namespaceSelector": only,
            "clientConfig": {"url": "https://127.0.0.1:9/"},
            "rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}],
        }],
    });
    shared().ok_with(&["apply", "-f", "-"], &webhook.to_string());
    // Webhooks take a moment to be known.
    wait("the webhook to be asked", || {
        let made = home.kubectl(&["create", "deployment", "probe", "--image=x", "--dry-run=server"]);
        (!made.status.success()).then_some(())
    });
    home.apply(&[server("a", &json!({}))]);
    let message = until(&home, "a", "RuntimeUnavailable");
    assert!(message.contains("failed calling webhook") && message.contains("deployments.example.com"), "{message}");
    shared().ok(&["delete", "validatingwebhookconfiguration", &name]);
    started(&home, "a");

    // A policy of the cluster says no, and is changed by somebody who does not know of the server.
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"namespaceSelector": only, "resourceRules": [
                {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]},
            ]},
            "validations": [{"expression": "false", "message": "no new programs on Fridays"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    shared().ok_with(&["apply", "-f", "-"], &policy.to_string());
    shared().ok_with(&["apply", "-f", "-"], &binding.to_string());
    wait("the policy to be in force", || {
        let made = home.kubectl(&["create", "deployment", "probe", "--image=x", "--dry-run=server"]);
        (!made.status.success()).then_some(())
    });
    home.apply(&[server("b", &json!({}))]);
    let message = until(&home, "b", "RuntimeUnavailable");
    assert!(message.contains("no new programs on Fridays"), "{message}");
    shared().ok(&["delete", "validatingadmissionpolicybinding", &name]);
    started(&home, "b");
    shared().ok(&["delete", "validatingadmissionpolicy", &name]);
    drop(operator);
}

#[test]
fn a_quota_on_objects_is_told_and_its_end_is_noticed() {
    let home = shared().namespace("quota", &json!({}));
    let operator = Operator::administrator(shared(), home.name()).leading();
    let hard = json!({"count/deployments.apps": "0"});
    let quota =
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": hard}});
    home.apply(&[quota]);
    // There is no controller here that would count.
    let counted = json!({"status": {"hard": hard, "used": {"count/deployments.apps": "0"}}});
    home.ok(&["patch", "resourcequota", "none", "--subresource=status", "--type=merge", "-p", &counted.to_string()]);
    wait("the quota to be in force", || {
        let made = home.kubectl(&["create", "deployment", "probe", "--image=x", "--dry-run=server"]);
        (!made.status.success()).then_some(())
    });
    home.apply(&[server("a", &json!({}))]);
    let message = until(&home, "a", "RuntimeUnavailable");
    assert!(message.contains("exceeded quota: none"), "{message}");
    home.ok(&["delete", "resourcequota", "none"]);
    started(&home, "a");
    drop(operator);
}

/// What a kubelet says of a pod's image is written by the test: there is no kubelet here.
#[test]
fn an_image_that_cannot_be_pulled_is_told_until_it_can() {
    let home = shared().namespace("pull", &json!({}));
    let operator = Operator::administrator(shared(), home.name()).leading();
    home.apply(&[server("a", &json!({}))]);
    started(&home, "a");
    let template = get(&home, "deployment", "mcp-a")["spec"]["template"].clone();
    let mut pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
    pod["metadata"]["name"] = "mcp-a-1".into();
    home.apply(&[pod]);
    let says = |state: Value| {
        let container = json!({
            "name": "server", "image": "example.invalid/x:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": state,
        });
        let status = json!({"status": {"phase": "Pending", "containerStatuses": [container]}}).to_string();
        home.ok(&["patch", "pod", "mcp-a-1", "--subresource=status", "--type=merge", "-p", &status]);
    };
    says(json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image: not found"}}));
    let message = until(&home, "a", "ImagePullFailed");
    assert!(message.contains("example.invalid/x:1") && message.contains("check its name"), "{message}");
    let stalled = get(&home, "mcpserver", "a")["status"]["phase"].clone();
    assert_eq!(stalled, "Failed");
    says(json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}, "waiting": null}));
    wait("the trouble to be over", || {
        let status = get(&home, "mcpserver", "a")["status"].clone();
        let ready = status["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")?.clone();
        (ready["reason"] != "ImagePullFailed" && status["replicas"] == 1).then_some(())
    });
    drop(operator);
}

#[test]
fn of_two_operators_one_works_and_the_other_takes_over() {
    let home = shared().namespace("two", &json!({}));
    let first = Operator::administrator(shared(), home.name()).leading();
    let second = Operator::administrator(shared(), home.name());
    wait("the second to stand by", || (second.ask("/readyz")?.0 == 200).then_some(()));
    home.apply(&[server("a", &json!({}))]);
    started(&home, "a");
    assert!(first.leads() && !second.leads());
    assert!(first.figure("perch_reconciles_total") > 0.0);
    assert!(second.figure("perch_reconciles_total") == 0.0, "it only stands by");
    let before = get(&home, "deployment", "mcp-a")["metadata"]["resourceVersion"].clone();
    first.kill();
    home.apply(&[server("b", &json!({}))]);
    started(&home, "b");
    assert!(second.leads());
    let after = get(&home, "deployment", "mcp-a")["metadata"]["resourceVersion"].clone();
    assert_eq!(before, after, "what is in place is not written again");
}
