//! The Helm chart: what it renders is what a cluster takes, nonsense is refused, and neither an
//! upgrade nor uninstalling loses what belongs to users.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Level, program};

/// Least that every installation must say.
pub const OPEN: &str = "gateway.access=Anonymous";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the chart is.
pub fn chart() -> PathBuf {
    root().join("charts/perch")
}

/// Runs Helm, against a cluster if there is one, with nothing of the user's own.
pub fn helm(cluster: Option<&Cluster>, args: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(program("helm"));
    command.args(args).env("HELM_CACHE_HOME", home.path()).env("HELM_CONFIG_HOME", home.path());
    command.env("HELM_DATA_HOME", home.path()).env_remove("KUBECONFIG");
    if let Some(cluster) = cluster {
        command.env("KUBECONFIG", cluster.kubeconfig());
    }
    command.output().expect("helm: hack/cluster-tools.sh builds it")
}

/// Runs Helm, which must succeed, and gives what it printed.
pub fn helm_ok(cluster: Option<&Cluster>, args: &[&str]) -> String {
    let output = helm(cluster, args);
    assert!(output.status.success(), "helm {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn documents(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(yaml).map(|d| Value::deserialize(d).unwrap());
    documents.filter(|d| !d.is_null()).collect()
}

/// The chart, rendered without a cluster.
fn render(values: &[&str]) -> Vec<Value> {
    let chart = chart();
    let args = [&["template", "perch", chart.to_str().unwrap(), "--namespace", "perch-system"], values].concat();
    documents(&helm_ok(None, &args))
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

fn args_of(deployment: &Value) -> Vec<&str> {
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
    args.iter().map(|a| a.as_str().unwrap()).collect()
}

/// The files of values with which the chart is tried.
fn examples() -> Vec<PathBuf> {
    let files = std::fs::read_dir(chart().join("ci")).unwrap();
    let files: Vec<_> = files.map(|f| f.unwrap().path()).collect();
    assert!(files.len() >= 3, "{files:?}");
    files
}

#[test]
fn a_gateway_that_nobody_opened_is_not_rendered() {
    let chart = chart();
    let output = helm(None, &["template", "perch", chart.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("gateway.access is not set") && said.contains("set gateway.access to Anonymous"), "{said}");
}

#[test]
fn who_may_use_the_gateway_is_said_once() {
    let chart = chart();
    for (values, expected) in [
        ("gateway.access=Authenticated", "gateway.accessConfig is empty"),
        ("gateway.access=Anonymous,gateway.accessConfig.anonymous=true", "set it to Authenticated"),
        ("gateway.accessConfig.anonymous=true", "gateway.access is not set"),
        ("gateway.access=anonymous", "/gateway/access"),
    ] {
        let output = helm(None, &["template", "perch", chart.to_str().unwrap(), "--set", values]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{values} was taken");
        assert!(said.contains(expected), "{values}: {said}");
    }
}

#[test]
fn a_gateway_that_asks_gets_its_files_and_the_operator_its_key() {
    let objects = render(&["--values", chart().join("ci/authenticated-values.yaml").to_str().unwrap()]);
    let config = find(&objects, "ConfigMap", "perch-gateway-access")["data"]["access.yaml"].as_str().unwrap();
    let config: Value = serde_yaml_ng::from_str(config).unwrap();
    assert_eq!(config["resource"], "https://mcp.example.com");
    assert_eq!(config["issuers"][0]["issuer"], "https://login.example.com");
    let (gateway, operator) =
        (find(&objects, "Deployment", "perch-gateway"), find(&objects, "Deployment", "perch-operator"));
    let mounts = |deployment: &Value| {
        let pod = &deployment["spec"]["template"]["spec"];
        let volumes: BTreeSet<_> = pod["volumes"].as_array().unwrap().iter().map(|v| v["name"].to_string()).collect();
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().all(|m| volumes.contains(&m["name"].to_string())), "{mounts:?}");
        mounts.iter().map(|m| m["mountPath"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (of_gateway, of_operator) = (mounts(gateway), mounts(operator));
    // Whatever the arguments and the configuration name is mounted.
    for (paths, mounts, count) in [(args_of(gateway), &of_gateway, 5), (args_of(operator), &of_operator, 2)] {
        let files: Vec<_> = paths.iter().filter_map(|a| a.split_once("=/etc/perch")).collect();
        assert_eq!(files.len(), count, "{paths:?}");
        assert!(
            files.iter().all(|(_, file)| mounts.iter().any(|m| format!("/etc/perch{file}").starts_with(m))),
            "{files:?}"
        );
    }
    assert!(of_gateway.contains(&"/etc/perch/secrets/mcp-keys".to_owned()));
    assert!(!args_of(gateway).iter().any(|a| a.starts_with("--access=")));
    assert!(args_of(operator).iter().any(|a| a.starts_with("--gateway-url=https://perch-gateway.perch-system.svc")));
    let of_certificate = &operator["spec"]["template"]["spec"]["volumes"][1]["secret"];
    assert_eq!(of_certificate["items"], json!([{"key": "ca.crt", "path": "ca.crt"}]), "not the private key");
    let key = find(&objects, "Secret", "perch-operator-key")["data"]["operator-key"].as_str().unwrap();
    assert!(key.len() >= 48, "{key}");
    let rules = &find(&objects, "ClusterRole", "perch-system-perch-gateway-tokens")["rules"];
    assert_eq!(
        rules,
        &json!([{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}])
    );
    let open = render(&["--set", OPEN]);
    assert!(
        !open.iter().any(|o| o["metadata"]["name"].as_str().is_some_and(|n| n.ends_with("-tokens"))),
        "only when it is used"
    );
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let chart = chart();
    for (values, expected) in [
        ("gateway.replica=3", "'replica' not allowed"),
        ("gateway.access=Everybody", "/gateway/access"),
        ("gateway.service.port=0", "/gateway/service/port"),
        ("gateway.service.type=Cluster", "/gateway/service/type"),
        ("gateway.publicUrl=mcp.example.com", "/gateway/publicUrl"),
        ("gateway.origins={app.example.com}", "/gateway/origins/0"),
        ("gateway.otlp.traceRatio=2", "/gateway/otlp/traceRatio"),
        ("operator.replicas=two", "/operator/replicas"),
        ("operator.podDisruptionBudget.maxUnavailable=0", "/operator/podDisruptionBudget/maxUnavailable"),
        ("image.digest=sha256:beef", "/image/digest"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("watchNamespace=Team_A", "/watchNamespace"),
        ("networkPolicy.apiServerPorts={https}", "/networkPolicy/apiServerPorts/0"),
        ("metrics.podMonitor.interval=often", "/metrics/podMonitor/interval"),
        ("log.format=xml", "/log/format"),
        ("metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true", "counted twice"),
        ("operator.serviceAccount.create=false", "operator.serviceAccount.name is needed"),
    ] {
        let args = ["template", "perch", chart.to_str().unwrap(), "--set", OPEN, "--set", values];
        let output = helm(None, &args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{values} was taken");
        assert!(said.contains(expected), "{values}: {said}");
    }
}

/// Every value of values.yaml stands in the schema with a description.
#[test]
fn every_value_is_described() {
    fn described(path: &str, value: &Value, schema: &Value, root: &Value) {
        let schema = match schema["$ref"].as_str() {
            Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
            None => schema,
        };
        assert!(schema["description"].as_str().is_some_and(|d| d.ends_with('.')), "{path} is not described");
        if let Some(properties) = schema["properties"].as_object() {
            for (name, value) in value.as_object().unwrap() {
                let path = format!("{path}.{name}");
                described(&path, value, properties.get(name).unwrap_or_else(|| panic!("{path} is unknown")), root);
            }
            for name in properties.keys().filter(|n| *n != "global") {
                assert!(value.get(name).is_some(), "{path}.{name} has no default");
            }
        }
    }
    let read = |file: &str| std::fs::read_to_string(chart().join(file)).unwrap();
    let values: Value = serde_yaml_ng::from_str(&read("values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    described("", &values, &schema, &schema);
}

#[test]
fn what_is_rendered_is_what_the_values_say() {
    let objects = render(&["--values", chart().join("ci/everything-values.yaml").to_str().unwrap()]);
    let image = "registry.example.com/perch@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let operator = find(&objects, "Deployment", "mcp-operator");
    let gateway = find(&objects, "Deployment", "mcp-gateway");
    for deployment in [operator, gateway] {
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["image"], image);
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
        assert_eq!(pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
    }
    let env = operator["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(env.contains(&json!({"name": "PERCH_IMAGE", "value": image})), "the bridge is of the same image");
    let args = args_of(operator);
    for expected in [
        "--gateway-url=http://mcp-gateway.perch-system.svc.cluster.local:8080",
        "--public-url=https://mcp.example.com",
        "--install-env=HTTPS_PROXY=http://proxy.example.com:3128",
        "--lease-name=mcp-operator",
        "--gateway-namespace=perch-system",
    ] {
        assert!(args.contains(&expected), "{expected}: {args:?}");
    }
    // The NetworkPolicies of servers let in whom these labels select.
    let labels = &gateway["spec"]["template"]["metadata"]["labels"];
    let given: BTreeSet<_> = args.iter().filter_map(|a| a.strip_prefix("--gateway-label=")).collect();
    assert_eq!(given.len(), 3);
    assert!(given.iter().all(|l| l.split_once('=').is_some_and(|(k, v)| labels[k] == v)), "{given:?} {labels}");
    let hosts: Vec<_> = args_of(gateway).into_iter().filter_map(|a| a.strip_prefix("--host=")).collect();
    assert_eq!(
        hosts,
        [
            "mcp-gateway",
            "mcp-gateway.perch-system",
            "mcp-gateway.perch-system.svc",
            "mcp-gateway.perch-system.svc.cluster.local",
            "mcp.example.com",
            "other.example.com",
        ]
    );
    let monitor = find(&objects, "ServiceMonitor", "mcp");
    let selected = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    let services: Vec<_> = objects
        .iter()
        .filter(|o| o["kind"] == "Service" && selected.iter().all(|(k, v)| o["metadata"]["labels"][k] == *v))
        .map(|o| o["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(services, ["mcp-gateway-admin", "mcp-operator-admin"]);
    assert!(!objects.iter().any(|o| o["kind"] == "Secret"), "the key is the user's own");
}

#[test]
fn one_pod_has_no_budget_and_one_namespace_no_cluster_role() {
    let objects = render(&["--values", chart().join("ci/namespaced-values.yaml").to_str().unwrap()]);
    let kinds: BTreeSet<_> = objects.iter().map(|o| o["kind"].as_str().unwrap()).collect();
    for absent in ["PodDisruptionBudget", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"] {
        assert!(!kinds.contains(absent), "{absent}");
    }
    for name in ["perch-operator", "perch-gateway"] {
        assert_eq!(find(&objects, "Role", name)["metadata"]["namespace"], "team-a");
        assert!(args_of(find(&objects, "Deployment", name)).contains(&"--namespace=team-a"));
    }
}

#[test]
fn the_definitions_are_rendered_as_they_are() {
    let objects = render(&["--set", OPEN]);
    let rendered: Vec<_> = objects.iter().filter(|o| o["kind"] == "CustomResourceDefinition").collect();
    let files = std::fs::read_dir(root().join("crds")).unwrap();
    let files: Vec<_> = files.map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap()).collect();
    assert_eq!(rendered.len(), files.len());
    for mut file in files.iter().map(|f| serde_yaml_ng::from_str::<Value>(f).unwrap()) {
        let crd = find(&objects, "CustomResourceDefinition", file["metadata"]["name"].as_str().unwrap());
        assert_eq!(crd["spec"], file["spec"]);
        file["metadata"]["annotations"] = json!({
            "helm.sh/resource-policy": "keep",
            "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
        });
        file["metadata"]["labels"] = crd["metadata"]["labels"].clone();
        assert_eq!(crd["metadata"], file["metadata"]);
    }
}

#[test]
fn the_manifest_is_current_and_a_base_for_kustomize() {
    let output = Command::new(root().join("hack/manifests.sh")).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let manifest = documents(&std::fs::read_to_string(root().join("manifests/install.yaml")).unwrap());
    assert!(!manifest.iter().any(|o| o["kind"] == "Secret"), "nobody shares a key with others");

    // The example of an overlay, with a key.
    let copy = tempfile::tempdir().unwrap();
    let overlay = copy.path().join("docs/guides/overlay");
    std::fs::create_dir_all(&overlay).unwrap();
    std::fs::create_dir(copy.path().join("manifests")).unwrap();
    for file in ["docs/guides/overlay/kustomization.yaml", "manifests/kustomization.yaml", "manifests/install.yaml"] {
        std::fs::copy(root().join(file), copy.path().join(file)).unwrap();
    }
    std::fs::write(overlay.join("session-key"), [7; 32]).unwrap();
    let output = Command::new(program("kubectl")).arg("kustomize").arg(&overlay).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let objects = documents(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(objects.len(), manifest.len() + 1);
    assert!(find(&objects, "Secret", "perch-session-key")["data"]["session-key"].is_string());
    let operator = &find(&objects, "Deployment", "perch-operator")["spec"]["template"]["spec"]["containers"][0];
    let env = operator["env"].as_array().unwrap().iter().find(|e| e["name"] == "PERCH_IMAGE").unwrap();
    assert_eq!((&env["value"], &operator["image"]), (&json!("registry.example.com/perch:0.1.0"), &env["value"]));
}

#[test]
fn a_cluster_takes_every_field_and_restricted_pod_security_has_no_complaint() {
    let cluster = Cluster::shared(Level::ControlPlane);
    let restricted =
        json!({"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"});
    let namespace = cluster.namespace("chart", &restricted);
    let team = cluster.namespace("chart-team", &json!({}));
    let watch = format!("watchNamespace={}", team.name());
    for file in examples() {
        let file = file.to_str().unwrap();
        let chart = chart();
        let mut args =
            vec!["template", "perch", chart.to_str().unwrap(), "--namespace", namespace.name(), "--values", file];
        if file.contains("namespaced") {
            args.extend(["--set", &watch]);
        }
        let mut objects = documents(&helm_ok(None, &args));
        // These are known where the Prometheus operator is, and cert-manager.
        objects.retain(|o| {
            !["monitoring.coreos.com/v1", "cert-manager.io/v1"].contains(&o["apiVersion"].as_str().unwrap())
        });
        assert!(objects.len() > 10, "{file}");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let apply = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"];
        let output = cluster.kubectl_with(&apply, &list);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {said}");
        assert_eq!(said, "", "{file}");
    }
}

/// Version of the chart with another word in a definition.
fn changed_chart(dir: &Path) -> PathBuf {
    let copy = dir.join("perch");
    let status = Command::new("cp").arg("-r").arg(chart()).arg(&copy).status().unwrap();
    assert!(status.success());
    let path = copy.join("files/crds/mcpservers.perch.dev.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let changed = text.replacen("shortNames:\n    - mcps", "shortNames:\n    - mcps\n    - newer", 1);
    assert_ne!(changed, text);
    std::fs::write(&path, changed).unwrap();
    copy
}

#[test]
fn upgrades_bring_definitions_and_uninstalling_keeps_what_is_the_users() {
    let cluster = Cluster::start(Level::ControlPlane);
    assert!(cluster.dir().is_some(), "this test needs a cluster of its own");
    let kubectl = &cluster;
    let cluster = Some(&cluster);
    let chart = chart();
    let release = ["perch", chart.to_str().unwrap(), "--namespace", "perch-system", "--set", OPEN];
    helm_ok(cluster, &[&["install"], release.as_slice(), &["--create-namespace"]].concat());
    let key = || {
        let path = r"jsonpath={.data.session-key}";
        kubectl.ok(&["-n", "perch-system", "get", "secret", "perch-session-key", "-o", path])
    };
    let first = key();
    assert_eq!(first.len(), 44, "32 bytes as Base64");
    let server = json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "kept"},
        "spec": {"image": "example.com/x:1", "command": ["x"]},
    });
    kubectl.ok(&["wait", "crd/mcpservers.perch.dev", "--for=condition=Established", "--timeout=30s"]);
    kubectl.apply("default", &[server]);
    for samples in ["manifests/samples", "manifests/argocd/servers"] {
        let samples = root().join(samples);
        let apply = ["apply", "--dry-run=server", "--validate=strict", "-n", "default", "-f"];
        kubectl.ok(&[apply.as_slice(), &[samples.to_str().unwrap()]].concat());
    }

    let dir = tempfile::tempdir().unwrap();
    let newer = changed_chart(dir.path());
    let upgrade = ["upgrade", "perch", newer.to_str().unwrap(), "--namespace", "perch-system", "--set", OPEN];
    helm_ok(cluster, &upgrade);
    let names = "jsonpath={.spec.names.shortNames}";
    assert_eq!(kubectl.ok(&["get", "crd", "mcpservers.perch.dev", "-o", names]), r#"["mcps","newer"]"#);
    assert_eq!(key(), first, "an upgrade keeps the key");

    let said = helm_ok(cluster, &["uninstall", "perch", "--namespace", "perch-system"]);
    assert!(said.contains("perch-session-key") && said.contains("mcpservers.perch.dev"), "{said}");
    kubectl.ok(&["-n", "default", "get", "mcpserver", "kept"]);
    assert_eq!(key(), first, "uninstalling keeps the key");
    let left = kubectl.ok(&[
        "-n",
        "perch-system",
        "get",
        "deployments,services,networkpolicies,serviceaccounts",
        "-o",
        "name",
    ]);
    assert_eq!(left, "");
    let roles = kubectl.ok(&["get", "clusterroles,clusterrolebindings", "-o", "name"]);
    assert!(!roles.contains("perch"), "{roles}");

    // And back again.
    helm_ok(cluster, &[&["install"], release.as_slice()].concat());
    assert_eq!(key(), first);
    kubectl.ok(&["-n", "default", "get", "mcpserver", "kept"]);
}
