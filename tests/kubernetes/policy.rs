//! What policies say about servers, and credentials that change, with real pods.
//!
//! The same on one machine: `policy` of `tests/integration`, `network` and `credentials` of `tests/e2e`.

use std::process::Output;

use serde_json::{Value, json};

use crate::{faults::until_enforced, release::Release, support::wait, traffic::Client};

fn server(namespace: &str, user: i64) -> String {
    let context = json!({"runAsUser": user, "runAsNonRoot": user != 0});
    json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "who", "namespace": namespace},
        "spec": {
            "image": std::env::var("PERCH_TEST_FIXTURE_IMAGE").unwrap(), "args": ["http"],
            "transport": {"type": "StreamableHttp"},
            "podTemplate": {"spec": {"containers": [{"name": "server", "securityContext": context}]}},
        },
    })
    .to_string()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A root container is denied with the rule's name and remedy, warned about at the low level, and admitted
/// after the fix. What the kernel says of the processes that run shows that the rule means what it says.
pub fn root_container(release: &Release) {
    release.upgrade(&["policy.enabled=true"]);
    for (name, level) in [("strict", "medium"), ("lenient", "low")] {
        let labels = json!({"perch.dev/policy-level": level, "perch.dev/policy-mode": "deny"});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        release.cluster.ok_with(&["apply", "-f", "-"], &namespace.to_string());
    }
    let apply =
        |namespace: &str, user: i64| release.cluster.kubectl_with(&["apply", "-f", "-"], &server(namespace, user));
    let get = |namespace: &str, path: &str| {
        release.cluster.ok(&["-n", namespace, "get", "mcpservers", "-o", &format!("jsonpath={{{path}}}")])
    };
    wait("the webhook to answer", || {
        let dry = ["apply", "--dry-run=server", "-f", "-"];
        release.cluster.kubectl_with(&dry, &server("strict", 10001)).status.success().then_some(())
    });

    let refused = apply("strict", 0);
    assert!(!refused.status.success());
    for part in [
        "Forbidden",
        "admission webhook \"policy.perch.dev\" denied the request",
        "run-as-non-root: the server runs as root",
        "runAsUser: 10001",
    ] {
        assert!(said(&refused).contains(part), "{part}: {}", said(&refused));
    }
    assert_eq!(get("strict", ".items[*].metadata.name"), "", "nothing was written");

    let warned = apply("lenient", 0);
    assert!(warned.status.success(), "{}", said(&warned));
    assert!(said(&warned).contains("Warning: policy run-as-non-root: the server runs as root"), "{}", said(&warned));

    let fixed = apply("strict", 10001);
    assert!(fixed.status.success() && !said(&fixed).contains("run-as-non-root"), "{}", said(&fixed));
    for (namespace, user, breaks) in [("lenient", 0, true), ("strict", 10001, false)] {
        release.cluster.ok(&["-n", namespace, "wait", "mcpserver/who", "--for=condition=Ready", "--timeout=120s"]);
        let status = Client::open(release, &format!("{namespace}/who")).text("whoami", "");
        let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        assert_eq!(uid.split_whitespace().nth(1), Some(user.to_string().as_str()), "{namespace}: {uid}");
        let rules = wait("the judgement", || {
            let reason = get(namespace, ".items[0].status.conditions[?(@.type==\"Compliant\")].reason");
            (reason == "CompliantWithWarnings").then(|| get(namespace, ".items[0].status.violations[*].rule"))
        });
        assert_eq!(rules.split(' ').any(|rule| rule == "run-as-non-root"), breaks, "{namespace}: {rules}");
    }
    for namespace in ["strict", "lenient"] {
        release.cluster.ok(&["delete", "namespace", namespace]);
    }
}

/// A Secret that its owner changes is seen by the process that was there before. Tokens that Perch renews are
/// kept in a Secret too, and come to pods in the same way.
pub fn rotated_credential(release: &Release) {
    release.kubectl(&["create", "secret", "generic", "plain", "--from-literal=k=hunter2-plain-1"]);
    let credentials = json!([{"name": "plain", "secret": {"name": "plain", "key": "k"}}]);
    let transport = json!({"type": "StreamableHttp"});
    release.apply("bearer", &json!({"args": ["http"], "transport": transport, "credentials": credentials}));
    release.ready("bearer");
    let client = Client::open(release, "bearer");
    let read = || client.read("/run/perch/credentials/plain");
    let pods = || -> Vec<Value> {
        let list = release.kubectl(&["get", "pods", "-l", "perch.dev/server=bearer", "-o", "json"]);
        let list: Value = serde_json::from_str(&list).unwrap();
        let of = |pod: &Value| json!([pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]]);
        list["items"].as_array().unwrap().iter().map(of).collect()
    };
    let (before, pid) = (pods(), client.pid());
    assert_eq!((before.len(), &before[0][1]), (1, &json!(0)), "{before:?}");
    assert_eq!(read(), "hunter2-plain-1");

    let patch = json!({"stringData": {"k": "hunter2-plain-2"}}).to_string();
    release.kubectl(&["patch", "secret", "plain", "--type=merge", "-p", &patch]);
    wait("the new value", || (read() == "hunter2-plain-2").then_some(()));
    assert_eq!((pods(), client.pid()), (before, pid), "the same pod, never started again, and the same process");

    let everything = release.kubectl(&["get", "mcpservers,deployments,pods,events,controllerrevisions", "-o", "yaml"]);
    assert!(!everything.contains("hunter2-plain"));
    release.kubectl(&["delete", "mcpserver", "bearer"]);
    release.kubectl(&["delete", "secret", "plain"]);
}

/// Who names what it reaches gets there through its proxy, and nowhere else: not to another name, not to an
/// address of the inside by a listed name, and not directly.
pub fn listed_names(release: &Release) {
    let listener = std::net::TcpListener::bind((release.cluster.host_address().unwrap(), 0)).unwrap();
    let outside = listener.local_addr().unwrap().to_string();
    let api = release.cluster.ok(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]);
    let name = "kubernetes.default.svc.cluster.local";
    let (host, block) = (json!({"host": name}), json!({"cidr": format!("{api}/32")}));
    for (server, network) in [
        ("listed", json!({"egress": [host, block]})),
        ("rebound", json!({"egress": [host]})),
        ("public", json!({"tier": "Public"})),
    ] {
        release.apply(server, &json!({"command": ["/mcp-fixture", "stdio"], "network": network}));
    }
    for server in ["listed", "rebound", "public"] {
        release.ready(server);
    }
    for proxy in ["deployment/mcp-listed-egress", "deployment/mcp-rebound-egress"] {
        release.kubectl(&["rollout", "status", proxy, "--timeout=120s"]);
    }
    until_enforced(release, "rebound", "the proxy refused a name that is not on the list");
    let from = |server| Client::open(release, server);
    assert_eq!(from("public").connect(&outside), "connected");
    for (server, target, status, part) in [
        ("listed", format!("{name}:443"), "200", ""),
        ("listed", format!("{name}:80"), "403", "not with this port"),
        ("listed", "kube-dns.kube-system.svc.cluster.local:53".into(), "403", "is not on the list"),
        ("listed", outside.clone(), "403", "is not on the list"),
        ("rebound", format!("{name}:443"), "403", "(private)"),
    ] {
        let said = from(server).tunnel(&target);
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains(part), "{server} {target}: {said}");
    }
    for server in ["listed", "rebound"] {
        assert_ne!(from(server).connect(&outside), "connected", "{server}");
    }
    assert_ne!(from("rebound").connect(&format!("{api}:443")), "connected");
    let dns =
        release.cluster.ok(&["-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec.clusterIP}"]);
    assert_ne!(from("listed").connect(&format!("{dns}:53")), "connected", "names resolve in the proxy alone");
    let proxy = from("listed").text("env", "HTTPS_PROXY");
    let proxy = proxy.strip_prefix("http://").unwrap();
    assert_eq!(from("listed").connect(proxy), "connected");
    assert_ne!(from("public").connect(proxy), "connected", "a proxy is for its own server");
    let log = release.kubectl(&["logs", "deployment/mcp-listed-egress"]);
    assert!(log.contains("the egress proxy refused a connection") && log.contains("kube-dns.kube-system"), "{log}");

    release.kubectl(&["delete", "mcpserver", "listed", "rebound", "public"]);
    wait("the proxies to go", || {
        let left = release.kubectl(&["get", "all,networkpolicies", "-l", "perch.dev/server=listed", "-o", "name"]);
        let pods = release.kubectl(&["get", "pods", "-l", "perch.dev/egress-proxy", "-o", "name"]);
        (left.is_empty() && pods.is_empty()).then_some(())
    });
}
