//! Servers as pods: the samples, drift, and quiet.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::{
    release::{Release, SERVERS, SYSTEM},
    support::wait,
    traffic::Client,
};

/// `kubectl port-forward` to the gateway, as a person would use it.
struct Forward(Child);

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The very file that `make run` applies, and its tools called with the official Python client.
pub fn samples(release: &Release) {
    let python = std::env::var("PERCH_TEST_PYTHON").expect("PERCH_TEST_PYTHON: run `make test`");
    release.kubectl(&["apply", "-f", "manifests/samples/quickstart.yaml"]);
    for name in ["everything", "everything-http", "time"] {
        release.ready(name);
        let status = release.status(name);
        assert_eq!(status["runtime"], "Kubernetes");
        assert!(status["imageId"].as_str().unwrap().starts_with("sha256:"), "{status}");
        assert_eq!(
            release.kubectl(&["get", "pods", "-l", "perch.dev/installing", "-o", "name"]).matches(name).count(),
            0,
            "{name} has its package, so its way out is closed"
        );
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let forward = Command::new(crate::cluster::program("kubectl"))
        .args(["-n", SYSTEM, "port-forward", "service/perch-gateway", &format!("{port}:80")])
        .env("KUBECONFIG", release.cluster.kubeconfig())
        .stdout(Stdio::null())
        .spawn();
    let _forward = Forward(forward.unwrap());
    wait("the port to be forwarded", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    for (name, tool, arguments, part) in [
        ("everything", "echo", r#"{"message": "hello"}"#, "hello"),
        ("everything-http", "echo", r#"{"message": "hello"}"#, "hello"),
        ("time", "get_current_time", r#"{"timezone": "UTC"}"#, "UTC"),
    ] {
        let url = format!("http://127.0.0.1:{port}/{SERVERS}/{name}/mcp");
        let output = Command::new(&python).args(["tests/e2e/client.py", &url, tool, arguments]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(part), "{name}: {said} {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// With `PerSession` each session has a process in the pod, and keeps it.
pub fn per_session(release: &Release) {
    let transport = json!({"type": "Stdio", "sessions": "PerSession"});
    release.apply("own", &json!({"command": ["/mcp-fixture", "stdio"], "transport": transport, "replicas": 2}));
    release.ready("own");
    let clients: Vec<Client<'_>> = (0..4).map(|_| Client::open(release, "own")).collect();
    let processes =
        || -> Vec<(String, String)> { clients.iter().map(|c| (c.text("env", "HOSTNAME"), c.pid())).collect() };
    let first = processes();
    let mut different = first.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 4, "{first:?}");
    assert_eq!(processes(), first, "a session stays with its pod and its process");
    release.kubectl(&["delete", "mcpserver", "own"]);
}

/// What others change or delete is put back.
pub fn drift(release: &Release) {
    release.apply("http", &json!({"args": ["http"], "transport": {"type": "StreamableHttp"}, "replicas": 2}));
    release.ready("http");
    let of = |kind: &str, path: &str| {
        release.kubectl(&["get", kind, "mcp-http", "--ignore-not-found", "-o", &format!("jsonpath={{{path}}}")])
    };
    release.kubectl(&["scale", "deployment", "mcp-http", "--replicas=4"]);
    wait("the replicas to be put back", || (of("deployment", ".spec.replicas") == "2").then_some(()));
    let service = of("service", ".metadata.uid");
    release.kubectl(&["delete", "service,networkpolicy", "mcp-http"]);
    wait("the Service to be put back", || {
        let now = of("service", ".metadata.uid");
        (!now.is_empty() && now != service).then_some(())
    });
    wait("the NetworkPolicy to be put back", || (!of("networkpolicy", ".metadata.uid").is_empty()).then_some(()));
    let patch = r#"{"spec":{"template":{"spec":{"containers":[{"name":"server","image":"other:1"}]}}}}"#;
    release.kubectl(&["patch", "deployment", "mcp-http", "-p", patch]);
    let image = "{.spec.template.spec.containers[0].image}";
    wait("the image to be put back", || {
        (!of("deployment", &image[1..image.len() - 1]).contains("other")).then_some(())
    });
    assert!(!of("poddisruptionbudget", ".metadata.uid").is_empty());
    release.kubectl(&["scale", "mcpserver", "http", "--replicas=1"]);
    wait("the budget to be pruned", || of("poddisruptionbudget", ".metadata.uid").is_empty().then_some(()));
    release.kubectl(&["scale", "mcpserver", "http", "--replicas=2"]);
    release.ready("http");
}

/// When nothing changes, nothing is written: versions stand still over several probe periods.
pub fn quiet(release: &Release) {
    for name in ["everything", "everything-http", "time", "http"] {
        release.ready(name);
    }
    // That a server was used for the first time is written once, by the next round of counting.
    for name in ["everything", "everything-http", "time", "http", "stdio"] {
        wait("its use to be told", || release.status(name)["usage"]["lastRequest"].is_string().then_some(()));
    }
    let versions = || {
        let kinds = "mcpservers,deployments,services,serviceaccounts,networkpolicies,controllerrevisions";
        let list: Value = serde_json::from_str(&release.kubectl(&["get", kinds, "-o", "json"])).unwrap();
        let items = list["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|i| (i["kind"].clone(), i["metadata"]["name"].clone(), i["metadata"]["resourceVersion"].clone()))
            .collect::<Vec<_>>()
    };
    let before = versions();
    // A server with a short period shows that probes went on meanwhile.
    release.apply("tick", &json!({"command": ["/mcp-fixture", "stdio"], "probe": {"period": "200ms"}}));
    release.ready("tick");
    release.kubectl(&["delete", "mcpserver", "tick"]);
    wait("the tick to go", || {
        release.kubectl(&["get", "pods", "-l", "perch.dev/server=tick", "-o", "name"]).is_empty().then_some(())
    });
    let after: Vec<_> =
        versions().into_iter().filter(|(_, name, _)| before.iter().any(|(_, n, _)| n == name)).collect();
    assert_eq!(before, after);
}
