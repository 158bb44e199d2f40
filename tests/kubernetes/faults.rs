//! What goes wrong in a cluster, and what Perch makes of it.

use serde_json::{Value, json};

use crate::{
    release::{Release, SERVERS, SYSTEM},
    support::wait,
    traffic::Client,
};

/// A pod dies; the other answers meanwhile, and the status tells.
pub fn pod_killed(release: &Release) {
    let pods = || release.kubectl(&["get", "pods", "-l", "perch.dev/server=http", "-o", "name"]);
    let before = pods();
    let victim = before.lines().next().unwrap().to_owned();
    release.kubectl(&["delete", &victim, "--grace-period=0", "--force"]);
    assert_eq!(Client::open(release, "http").echo("still here").as_deref(), Ok("still here"));
    wait("another pod", || {
        let now = pods();
        (now.lines().count() == 2 && !now.contains(&victim)).then_some(())
    });
    release.until("http", "Ready");

    // The process of a Stdio server dies: the bridge starts it again, and says so to who waits.
    release.apply("stdio", &json!({"command": ["/mcp-fixture", "stdio"]}));
    release.ready("stdio");
    let client = Client::open(release, "stdio");
    let crash = client.echo_of("crash");
    assert!(crash.contains("ended"), "{crash}");
    assert_eq!(Client::open(release, "stdio").echo("again").as_deref(), Ok("again"));
}

/// Waits until the condition NetworkEnforced of a server is True, and says this.
pub fn until_enforced(release: &Release, name: &str, part: &str) {
    until_network(release, name, "True", part);
}

fn until_network(release: &Release, name: &str, enforced: &str, part: &str) {
    wait(&format!("the tier of {name} to be {enforced}"), || {
        let status = release.status(name);
        let condition = status["conditions"].as_array()?.iter().find(|c| c["type"] == "NetworkEnforced")?;
        (condition["status"] == enforced && condition["message"].as_str()?.contains(part)).then_some(())
    });
}

/// Internal and Secure servers reach nothing, a Public one does, and nobody but the gateway comes in.
pub fn network_tier(release: &Release) {
    let listener = std::net::TcpListener::bind((release.cluster.host_address().unwrap(), 0)).unwrap();
    let outside = listener.local_addr().unwrap().to_string();
    for (name, tier) in [("internal", "Internal"), ("secure", "Secure"), ("public", "Public")] {
        release.apply(name, &json!({"command": ["/mcp-fixture", "stdio"], "network": {"tier": tier}}));
    }
    for name in ["internal", "secure", "public"] {
        release.ready(name);
    }
    let connect = |from: &str, to: &str| Client::open(release, from).connect(to);
    assert_eq!(connect("public", &outside), "connected");
    until_enforced(release, "public", "found a way out");
    for name in ["internal", "secure"] {
        assert_ne!(connect(name, &outside), "connected", "{name}");
        until_enforced(release, name, "found no way out");
    }
    until_enforced(release, "http", "found no way out");
    // Policies add up: somebody else's opens what Perch's has closed, as a plugin that enforces none would.
    let opens = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "opens"},
        "spec": {"podSelector": {"matchLabels": {"perch.dev/server": "opened"}}, "policyTypes": ["Egress"], "egress": [{}]},
    });
    release.cluster.ok_with(&["-n", SERVERS, "apply", "-f", "-"], &opens.to_string());
    release.apply("opened", &json!({"command": ["/mcp-fixture", "stdio"]}));
    release.ready("opened");
    assert_eq!(connect("opened", &outside), "connected");
    until_network(release, "opened", "False", "does the cluster's network plugin enforce NetworkPolicies?");
    release.kubectl(&["delete", "networkpolicy", "opens"]);
    let service =
        release.kubectl(&["get", "service", "mcp-http", "-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}"]);
    assert_ne!(connect("public", &service), "connected", "only the gateway reaches a server");
    release.kubectl(&["delete", "mcpserver", "internal", "secure", "public", "opened"]);
}

/// Each reason why pods do not run becomes a condition that says what to do.
pub fn cannot_run(release: &Release) {
    release.apply(
        "absent",
        &json!({"image": "example.invalid/none:1", "args": ["http"], "transport": {"type": "StreamableHttp"}}),
    );
    let env = json!([{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "nowhere", "key": "k"}}}]);
    release.apply("secret", &json!({"command": ["/mcp-fixture", "stdio"], "env": env}));
    let volumes = json!([{"name": "host", "mountPath": "/host", "hostPath": {"path": "/"}}]);
    release.apply("forbidden", &json!({"command": ["/mcp-fixture", "stdio"], "volumes": volumes}));
    release.apply("crash", &json!({"command": ["/mcp-fixture", "--exit", "42"], "transport": {"type": "Stdio"}}));
    release.apply("huge", &json!({"command": ["/mcp-fixture", "stdio"], "resources": {"limits": {"cpu": "64"}, "requests": {"cpu": "64"}}}));
    release.apply("command", &json!({"args": ["stdio"]}));
    for (name, reason, part) in [
        ("absent", "ImagePullFailed", "example.invalid/none:1"),
        ("secret", "ReferenceNotFound", "nowhere"),
        ("forbidden", "PodsRefused", "hostPath"),
        ("huge", "Unschedulable", "cpu"),
        ("command", "InvalidWorkload", "spec.command"),
    ] {
        let message = release.until(name, reason);
        assert!(message.contains(part), "{name}: {message}");
    }
    // The bridge of a program that ends at once never gets an answer from it.
    wait("the crash to be told", || {
        let status = release.status("crash");
        let ready = status["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")?.clone();
        (ready["status"] == "False").then_some(())
    });
    // A Secret that appears is enough; nobody has to touch the server.
    release.kubectl(&["create", "secret", "generic", "nowhere", "--from-literal=k=hunter2"]);
    release.until("secret", "Ready");
    let everything = release.kubectl(&["get", "mcpservers,deployments,pods,events,controllerrevisions", "-o", "yaml"]);
    assert!(!everything.contains("hunter2"));
    // A quota refuses pods; without it they come.
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}});
    release.cluster.ok_with(&["-n", SERVERS, "apply", "-f", "-"], &quota.to_string());
    release.apply("late", &json!({"command": ["/mcp-fixture", "stdio"]}));
    let message = release.until("late", "PodsRefused");
    assert!(message.contains("quota"), "{message}");
    release.kubectl(&["delete", "resourcequota", "none"]);
    release.until("late", "Ready");
    release.kubectl(&["delete", "mcpserver", "absent", "secret", "forbidden", "crash", "huge", "command", "late"]);
}

/// Another operator takes over within seconds.
pub fn leader_killed(release: &Release) {
    let holder = || {
        let path = "jsonpath={.spec.holderIdentity}";
        release.cluster.ok(&["-n", SYSTEM, "get", "lease", "perch-operator", "-o", path])
    };
    let before = holder();
    release.cluster.ok(&["-n", SYSTEM, "delete", "pod", &before, "--grace-period=0", "--force"]);
    release.apply("after", &json!({"command": ["/mcp-fixture", "stdio"]}));
    release.ready("after");
    assert_ne!(holder(), before);
    release.kubectl(&["delete", "mcpserver", "after"]);
}

/// Calls go on without the API server, and the operator goes on with it without a restart.
pub fn api_server_away(release: &Release) {
    let client = Client::open(release, "http");
    let restarts = || {
        let pods = release.cluster.ok(&["-n", SYSTEM, "get", "pods", "-o", "json"]);
        let pods: Value = serde_json::from_str(&pods).unwrap();
        let pods = pods["items"].as_array().unwrap().clone();
        pods.iter().map(|p| p["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap()).sum::<i64>()
    };
    let before = restarts();
    release.cluster.stop_component("kube-apiserver");
    for i in 0..50 {
        assert_eq!(client.echo(&i.to_string()), Ok(i.to_string()), "the data path needs no API server");
    }
    release.cluster.start_component("kube-apiserver");
    wait("the API server", || release.cluster.kubectl(&["get", "--raw", "/readyz"]).status.success().then_some(()));
    release.apply("back", &json!({"command": ["/mcp-fixture", "stdio"]}));
    release.ready("back");
    assert_eq!(restarts(), before);
    release.kubectl(&["delete", "mcpserver", "back"]);
}
