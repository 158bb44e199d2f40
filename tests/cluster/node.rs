//! Pods, Services, names and policies on a node. All tests share one cluster.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
};

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Level, Namespace, PROBE_IMAGE},
    wait,
};

/// A namespace in which only pods with the restricted security context may run.
fn restricted(name: &str) -> (&'static Cluster, Namespace<'static>) {
    let cluster = Cluster::shared(Level::Node);
    (cluster, cluster.namespace(name, &json!({"pod-security.kubernetes.io/enforce": "restricted"})))
}

/// A Deployment with the restricted security context, and a Service of the same name.
fn deployment(name: &str, replicas: u32, image: &str, args: &[&str], env: &Value) -> [Value; 2] {
    let labels = json!({"app": name});
    let container = json!({
        "name": "server", "image": image, "imagePullPolicy": "Never", "args": args, "env": env,
        "ports": [{"name": "web", "containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    });
    let pod = json!({
        "metadata": {"labels": labels},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        },
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": pod},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": "web"}]},
    });
    [deployment, service]
}

/// A Deployment of the probe, ready.
fn probe(namespace: &Namespace, name: &str, replicas: u32) {
    namespace.apply(&deployment(name, replicas, PROBE_IMAGE, &["serve", ":8080"], &json!([])));
    namespace.ok(&["rollout", "status", &format!("deployment/{name}"), "--timeout=120s"]);
}

/// What a command of the probe prints in a pod of this Deployment, or what it complains about.
fn ask(namespace: &Namespace, from: &str, command: &[&str]) -> Result<String, String> {
    let from = format!("deployment/{from}");
    let output = namespace.kubectl(&[&["exec", &from, "--", "/probe"], command].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn a_deployment_with_the_restricted_security_context_runs_two_pods_of_a_local_image() {
    let (cluster, namespace) = restricted("restricted");
    let image = std::env::var("PERCH_TEST_FIXTURE_IMAGE").expect("PERCH_TEST_FIXTURE_IMAGE: run `make test`");
    cluster.load_image(&image);
    let objects = deployment("server", 2, &image, &["http"], &json!([{"name": "PORT", "value": "8080"}]));
    namespace.apply(&objects);
    namespace.ok(&["rollout", "status", "deployment/server", "--timeout=120s"]);
    let pods: Value = serde_json::from_str(&namespace.ok(&["get", "pods", "-o", "json"])).unwrap();
    let pods = pods["items"].as_array().unwrap();
    assert_eq!(pods.len(), 2);
    assert!(pods.iter().all(|p| p["status"]["phase"] == "Running" && p["spec"]["nodeName"].is_string()), "{pods:#?}");
    assert_eq!(namespace.ok(&["logs", "deployment/server"]).trim(), "fixture starts");

    // The status names the image by its digest, and by that name it runs as well. Other clusters
    // do so only for images that they pulled.
    if cluster.dir().is_some() {
        let digest = pods[0]["status"]["containerStatuses"][0]["imageID"].as_str().unwrap();
        assert!(digest.contains("@sha256:"), "{digest}");
        namespace.ok(&["set", "image", "deployment/server", &format!("server={digest}")]);
        namespace.ok(&["rollout", "status", "deployment/server", "--timeout=120s"]);
    }

    // Less than that is refused: the API server enforces it.
    let output = namespace.kubectl(&["run", "lax", "--image", PROBE_IMAGE]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("violates PodSecurity \"restricted"), "{said}");
}

#[test]
fn a_service_is_reached_by_its_name_from_a_pod_and_spreads_over_its_pods() {
    let (_, namespace) = restricted("services");
    probe(&namespace, "web", 2);
    probe(&namespace, "client", 1);
    let address = namespace.ok(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let own = namespace.name();
    for name in ["web".into(), format!("web.{own}"), format!("web.{own}.svc.cluster.local")] {
        assert_eq!(ask(&namespace, "client", &["resolve", &name]), Ok(address.clone()), "{name}");
    }
    let missing = ask(&namespace, "client", &["resolve", &format!("nothing.{own}")]).unwrap_err();
    assert!(missing.contains("no such host"), "{missing}");

    let names = namespace.ok(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}"]);
    let pods: BTreeSet<String> = names.split_whitespace().map(str::to_owned).collect();
    assert_eq!(pods.len(), 2);
    let mut answered = BTreeSet::new();
    wait("both pods to answer", || {
        answered.insert(ask(&namespace, "client", &["get", "http://web"]).unwrap());
        (answered.len() == 2).then_some(())
    });
    assert_eq!(answered, pods);
}

#[test]
fn this_machine_and_pods_reach_each_other() {
    let (cluster, namespace) = restricted("machine");
    // Only the cluster that the tests start promises this.
    let Some(host) = cluster.host_address() else { return };
    probe(&namespace, "web", 1);
    let listener = TcpListener::bind((host.as_str(), 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").unwrap();
    });
    assert_eq!(ask(&namespace, "web", &["get", &url]), Ok("hello".into()));
    served.join().unwrap();

    let service = namespace.ok(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let mut stream = TcpStream::connect((service.as_str(), 80)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.trim().contains("web-"), "{answer}");
}

#[test]
fn a_pod_uses_the_api_with_its_service_account_and_has_only_the_rights_it_was_given() {
    let (_, namespace) = restricted("in-cluster");
    probe(&namespace, "client", 1);
    let version = ask(&namespace, "client", &["api", "/version"]).unwrap();
    assert!(version.contains("gitVersion"), "{version}");
    let own = namespace.name();
    let path = format!("/api/v1/namespaces/{own}/configmaps/kube-root-ca.crt");
    let forbidden = ask(&namespace, "client", &["api", &path]).unwrap_err();
    assert!(forbidden.contains("403 Forbidden"), "{forbidden}");
    namespace.ok(&["create", "role", "reader", "--verb=get", "--resource=configmaps"]);
    let account = format!("--serviceaccount={own}:default");
    namespace.ok(&["create", "rolebinding", "reader", "--role=reader", &account]);
    let found = wait("the right to be known", || ask(&namespace, "client", &["api", &path]).ok());
    assert!(found.contains("BEGIN CERTIFICATE"), "{found}");
}

#[test]
fn network_policies_block_and_allow_what_they_say() {
    let (_, namespace) = restricted("policies");
    for name in ["web", "friend", "stranger"] {
        probe(&namespace, name, 1);
    }
    let get = |from: &str| ask(&namespace, from, &["get", "http://web"]);
    let policy = |name: &str, spec: Value| {
        let metadata = json!({"name": name});
        let kind =
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec});
        namespace.apply(&[kind]);
    };
    assert!(get("friend").is_ok() && get("stranger").is_ok(), "open without policies");

    policy("deny-all", json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    let blocked = wait("the policy to block", || get("stranger").err());
    assert!(blocked.contains("exceeded") || blocked.contains("timeout"), "dropped, not refused: {blocked}");
    assert!(get("friend").is_err());

    let friends = json!([{"podSelector": {"matchLabels": {"app": "friend"}}}]);
    let allow = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                       "ingress": [{"from": friends, "ports": [{"port": "web"}]}]});
    policy("allow-friend", allow);
    wait("the policy to allow", || get("friend").ok());
    assert!(get("stranger").is_err(), "the others stay out");

    // Egress: names and the API server are out of reach too, until a policy lets DNS through.
    let stranger = json!({"matchLabels": {"app": "stranger"}});
    policy("no-egress", json!({"podSelector": stranger, "policyTypes": ["Egress"]}));
    wait("the policy to block names", || ask(&namespace, "stranger", &["resolve", "web"]).err());
    assert!(ask(&namespace, "stranger", &["api", "/version"]).is_err());
    let dns = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                      "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]);
    let ports = json!([{"protocol": "UDP", "port": 53}]);
    policy("dns", json!({"podSelector": stranger, "policyTypes": ["Egress"], "egress": [{"to": dns, "ports": ports}]}));
    wait("the policy to allow names", || ask(&namespace, "stranger", &["resolve", "web"]).ok());
    assert!(ask(&namespace, "stranger", &["api", "/version"]).is_err());

    // The kubelet's probes come from the node, which policies do not concern.
    let ready = namespace.ok(&["get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"]);
    assert_eq!(ready, "1");
}
