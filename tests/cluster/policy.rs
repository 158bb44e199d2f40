//! Policies on a real API server: the webhook with its certificate, and the real OPA.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
};

use perch::{
    api::{crds, mcp_server::GovernanceLevel},
    policy::{Bundle, File, Images, Policies, Subject},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Level, program},
    rbac::install,
    registry::{Registry, Signer},
    wait,
};

/// A `perch operator` that ends with the test.
struct Operator(Child);

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended, which the test has said.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts an operator with just the rights that the chart gives it.
fn start(cluster: &Cluster, dir: &tempfile::TempDir, account: &str, home: &str, port: u16) -> Operator {
    let kubeconfig = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let mut kubeconfig: Value = serde_yaml_ng::from_str(&kubeconfig).unwrap();
    kubeconfig["users"][0]["user"]["as"] = account.into();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_perch"))
        .args(["operator", "--gateway-url", "http://127.0.0.1:9", "--image", "perch.example/perch:test"])
        .args(["--admin-addr", "127.0.0.1:0", "--pod-namespace", home, "--policies"])
        .args([
            "--webhook-addr",
            &format!("127.0.0.1:{port}"),
            "--webhook-configuration",
            &format!("{home}-perch-policy"),
        ])
        .args(["--webhook-host", "localhost"])
        .env("KUBECONFIG", path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Operator(child)
}

fn server(name: &str, namespace: &str, user: i64) -> String {
    json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "image": "example.invalid/x:1", "suspend": true,
            "podTemplate": {"spec": {"containers": [{"name": "server", "securityContext": {"runAsUser": user}}]}},
        },
    })
    .to_string()
}

#[test]
fn the_webhook_denies_warns_and_renews_its_certificate() {
    let cluster = Cluster::start(Level::ControlPlane);
    for crd in crds::all() {
        let mut crd = serde_json::to_value(crd).unwrap();
        crd["apiVersion"] = "apiextensions.k8s.io/v1".into();
        crd["kind"] = "CustomResourceDefinition".into();
        cluster.ok_with(&["apply", "--server-side", "-f", "-"], &crd.to_string());
    }
    cluster.ok(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]);
    let home = cluster.namespace("policy", &json!({}));
    for (name, level, mode) in [("strict", "medium", "deny"), ("lenient", "low", "deny")] {
        cluster.ok(&["create", "namespace", name]);
        let (level, mode) = (format!("perch.dev/policy-level={level}"), format!("perch.dev/policy-mode={mode}"));
        cluster.ok(&["label", "namespace", name, &level, &mode]);
    }
    let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
    let [account, _] = install(&cluster, home.name(), &["--set", "policy.enabled=true"]);
    let configuration = format!("{}-perch-policy", home.name());
    // There is no network between the API server and a Service here: it goes to the address.
    let url = json!([{"op": "replace", "path": "/webhooks/0/clientConfig", "value": {"url": format!("https://localhost:{port}/validate")}}]);
    cluster.ok(&["patch", "validatingwebhookconfiguration", &configuration, "--type=json", "-p", &url.to_string()]);

    let unanswered = cluster.fails(&["apply", "-f", "-"], &server("a", "strict", 7));
    assert!(unanswered.contains("failed calling webhook"), "nobody answers yet, and that is no yes: {unanswered}");

    let operator = start(&cluster, &dir, &account, home.name(), port);
    wait("the webhook to answer", || {
        cluster.kubectl_with(&["apply", "-f", "-"], &server("a", "strict", 7)).status.success().then_some(())
    });
    let refused = cluster.fails(&["apply", "-f", "-"], &server("b", "strict", 0));
    for part in [
        "Forbidden",
        "admission webhook \"policy.perch.dev\" denied the request",
        "run-as-non-root: the server runs as root",
        "runAsUser: 10001",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let warned = cluster.kubectl_with(&["apply", "-f", "-"], &server("b", "lenient", 0));
    let said = String::from_utf8_lossy(&warned.stderr);
    assert!(warned.status.success() && said.contains("Warning: policy run-as-non-root"), "{said}");

    // A signed image is admitted, and the same one under another name is not.
    let (mut registry, signer) = (Registry::start(), Signer::new());
    let host = registry.host.clone();
    let digest = registry.push("team/x", "1", "one");
    assert_eq!(registry.push("other/x", "1", "one"), digest);
    registry.sign("team/x", &digest, &signer);
    let settings = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"settings.yaml": signer.settings(&host)},
        "metadata": {"name": "signers", "labels": {"perch.dev/policy": "true"}}});
    home.apply(&[settings]);
    let with = |name: &str, image: &str| server(name, "strict", 7).replace("example.invalid/x:1", image);
    wait("the signers to be known", || {
        let args = ["apply", "--dry-run=server", "-f", "-"];
        let said = cluster.kubectl_with(&args, &with("unsigned", "example.invalid/y:1"));
        String::from_utf8_lossy(&said.stderr).contains("image-signed: nobody is named").then_some(())
    });
    cluster.ok_with(&["apply", "-f", "-"], &with("signed", &format!("{host}/team/x@{digest}")));
    let refused = cluster.fails(&["apply", "-f", "-"], &with("unsigned", &format!("{host}/other/x@{digest}")));
    for part in ["image-signed", "is not signed: it has no signature", "cosign sign --key"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    registry.stop();
    let refused = cluster.fails(&["apply", "-f", "-"], &with("unsigned", &format!("{host}/team/y@{digest}")));
    assert!(refused.contains(&format!("registry {host} does not answer")), "{refused}");
    home.ok(&["delete", "configmap", "signers"]);

    let bundle = || {
        cluster.ok(&[
            "get",
            "validatingwebhookconfigurations",
            "-o",
            "jsonpath={.items[0].webhooks[0].clientConfig.caBundle}",
        ])
    };
    let first = bundle();
    // As if its end were near.
    let near = "perch.dev/not-after=2020-01-01T00:00:00Z";
    home.ok(&["annotate", "secret", "perch-webhook-tls", "--overwrite", near]);
    drop(operator);
    let _operator = start(&cluster, &dir, &account, home.name(), port);
    wait("another authority", || (bundle() != first).then_some(()));
    wait("the webhook to answer again", || {
        let refused = cluster.kubectl_with(&["apply", "-f", "-"], &server("c", "strict", 0));
        String::from_utf8_lossy(&refused.stderr).contains("run-as-non-root").then_some(())
    });
    let secret = home.ok(&["get", "secret", "perch-webhook-tls", "-o", "jsonpath={.metadata.annotations}"]);
    assert!(!secret.contains("2020-01-01"), "{secret}");
}

#[test]
fn opa_finds_what_perch_finds() {
    let opa = program("opa");
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let tested = Command::new(&opa)
        .args(["test", "--timeout", "60s"])
        .arg(&root)
        .output()
        .expect("hack/cluster-tools.sh opa builds it");
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));

    let eval = |query: &str| -> Value {
        let output =
            Command::new(&opa).args(["eval", "--format", "json", "--data"]).arg(&root).arg(query).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        result["result"][0]["expressions"][0]["value"].clone()
    };
    let (cases, results) = (eval("data.cases"), eval("data.perch.cases_test.results"));
    let now = eval("data.perch.cases_test.now").as_str().unwrap().parse().unwrap();
    let mut count = 0;
    for (rule, cases) in cases.as_object().unwrap() {
        for (index, case) in cases.as_array().unwrap().iter().enumerate() {
            let settings = case.get("settings").map(|s| Bundle {
                name: "settings".into(),
                files: vec![File { name: "settings.yaml".into(), text: s["perch"].to_string() }],
            });
            let policies = Policies::new(settings.as_slice());
            let level: GovernanceLevel = serde_json::from_value(case["level"].clone()).unwrap();
            let images: Option<Images> = case.get("images").map(|i| serde_json::from_value(i.clone()).unwrap());
            let subject = Subject { object: &case["object"], level, now, images: images.as_ref() };
            let found = policies.judge(&subject).violations;
            let of = |values: &[Value]| -> BTreeMap<String, Value> {
                values.iter().map(|v| (v.to_string(), v.clone())).collect()
            };
            let ours: Vec<Value> = found
                .iter()
                .map(|v| json!({"rule": v.rule, "severity": v.severity, "action": v.action, "message": v.message, "field": v.field, "remedy": v.remedy}))
                .collect();
            let theirs = results[rule][index].as_array().unwrap();
            assert_eq!(of(&ours), of(theirs), "{rule}: {}", case["name"]);
            count += 1;
        }
    }
    assert!(count > 100, "{count} cases");
}
