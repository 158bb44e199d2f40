use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde_json::json;

use super::*;
use crate::{
    api::mcp_server::{
        Autoscaling, EnvVar, NetworkTier, Package, PackageRegistry, Resources, SeccompProfile, StdioSessions,
    },
    names::{Revision, ServerKey},
    runtime::workload::{Declared, Limits, Privileges, Program, Wire},
};

fn config() -> Config {
    Config {
        image: "perch:1".into(),
        image_pull_policy: None,
        npm_base: "node:22".into(),
        pypi_base: "python:3".into(),
        package_pull_policy: None,
        install_env: vec![("PIP_INDEX_URL".into(), "https://mirror.example.com/simple".into())],
        gateway_namespace: "perch-system".into(),
        gateway_labels: BTreeMap::from([("app.kubernetes.io/component".into(), "gateway".into())]),
        namespace: None,
    }
}

fn workload() -> Workload {
    Workload {
        server: ServerKey::new("default", "time"),
        uid: "u1".into(),
        revision: Revision("time-1".into()),
        program: Program::Image { image: "x:1".into(), command: vec!["serve".into()], args: vec!["--utc".into()] },
        wire: Wire::Stdio(StdioSessions::Shared),
        replicas: 1,
        env: Vec::new(),
        credentials: Vec::new(),
        volumes: Vec::new(),
        limits: Limits { cpu_millis: 500, memory_bytes: 1 << 28, pids: 512 },
        security: Privileges {
            user: 10001,
            read_only_root: true,
            add_capabilities: Vec::new(),
            seccomp: SeccompProfile::RuntimeDefault,
        },
        network: NetworkTier::Internal,
        stop_grace: Duration::from_secs(10),
        declared: Declared { resources: Resources::default(), ..Declared::default() },
    }
}

fn object(workload: &Workload, kind: Kind) -> Value {
    let wanted = build(workload, &config(), None).unwrap();
    wanted.into_iter().find(|w| w.kind == kind).unwrap_or_else(|| panic!("no {kind:?}")).object
}

fn kinds(workload: &Workload) -> Vec<Kind> {
    build(workload, &config(), None).unwrap().iter().map(|w| w.kind).collect()
}

#[test]
fn a_pod_passes_the_restricted_level() {
    let pod = &object(&workload(), Kind::Deployment)["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(pod["automountServiceAccountToken"], false);
    let all = pod["containers"].as_array().unwrap().iter().chain(pod["initContainers"].as_array().unwrap());
    for container in all {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false, "{container}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{container}");
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{container}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{container}");
    }
}

#[test]
fn a_stdio_server_is_wrapped_by_the_bridge() {
    let pod = &object(&workload(), Kind::Deployment)["spec"]["template"]["spec"];
    let server = &pod["containers"][0];
    assert_eq!(server["command"], json!(["/opt/perch/perch", "bridge", "--listen", "0.0.0.0:3000", "--", "serve"]));
    assert_eq!(server["args"], json!(["--utc"]));
    assert_eq!(pod["initContainers"][0]["image"], "perch:1");
    let mut unknown = workload();
    unknown.program = Program::Image { image: "x:1".into(), command: Vec::new(), args: Vec::new() };
    let error = build(&unknown, &config(), None).unwrap_err().to_string();
    assert!(error.contains("spec.command is missing") && error.contains("{{json .Config.Cmd}}' x:1"), "{error}");
    let mut own = workload();
    own.wire = Wire::Stdio(StdioSessions::PerSession);
    let pod = &object(&own, Kind::Deployment)["spec"]["template"]["spec"];
    let command = json!(["/opt/perch/perch", "bridge", "--listen", "0.0.0.0:3000", "--per-session", "--", "serve"]);
    assert_eq!(pod["containers"][0]["command"], command);
}

#[test]
fn every_pod_tries_the_way_out_that_it_should_have() {
    let mut workload = workload();
    let prepare = |workload: &Workload, proxy: Option<IpAddr>| {
        let wanted = build(workload, &config(), proxy).unwrap();
        let deployment = wanted.into_iter().find(|w| w.kind == Kind::Deployment).unwrap().object;
        let first = deployment["spec"]["template"]["spec"]["initContainers"][0].clone();
        assert_eq!((first["name"].as_str(), first["image"].as_str()), (Some("prepare"), Some("perch:1")));
        first["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let stdio = "internal prepare --way-out closed --copy /opt/perch/perch";
    assert_eq!(prepare(&workload, None), stdio);
    workload.wire = Wire::Http { port: None, path: "/mcp".into() };
    assert_eq!(prepare(&workload, None), "internal prepare --way-out closed");
    workload.network = NetworkTier::Public;
    assert_eq!(prepare(&workload, None), "internal prepare --way-out open");
    workload.declared.egress =
        serde_json::from_value(json!([{"host": "a.example"}, {"cidr": "192.0.2.0/24"}])).unwrap();
    let proxy = "10.96.0.7".parse().ok();
    let listed = "internal prepare --way-out closed --proxy 10.96.0.7:3128 --listed 192.0.2.0/24";
    assert_eq!(prepare(&workload, proxy), listed);
}

#[test]
fn only_a_public_server_gets_out_and_only_the_gateway_gets_in() {
    let mut workload = workload();
    let policy = object(&workload, Kind::NetworkPolicy)["spec"].clone();
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    assert!(policy.get("egress").is_none());
    let from = &policy["ingress"][0]["from"][0];
    assert_eq!(from["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], "perch-system");
    assert_eq!(from["podSelector"]["matchLabels"]["app.kubernetes.io/component"], "gateway");
    workload.network = NetworkTier::Public;
    assert_eq!(object(&workload, Kind::NetworkPolicy)["spec"]["egress"], json!([{}]));
}

#[test]
fn who_names_what_it_reaches_has_a_proxy_and_no_other_way() {
    let mut workload = workload();
    let rules = json!([{"host": "api.example.com", "ports": [443]}, {"cidr": "93.184.0.0/16", "ports": [8443]}]);
    workload.declared.egress = serde_json::from_value(rules.clone()).unwrap();
    for tier in [NetworkTier::Internal, NetworkTier::Public] {
        workload.network = tier;
        let out = object(&workload, Kind::NetworkPolicy)["spec"]["egress"].clone();
        let to_proxy = json!({
            "to": [{"podSelector": {"matchLabels": {"perch.dev/egress-proxy": "time"}}}],
            "ports": [{"port": 3128, "protocol": "TCP"}],
        });
        let to_block =
            json!({"to": [{"ipBlock": {"cidr": "93.184.0.0/16"}}], "ports": [{"port": 8443, "protocol": "TCP"}]});
        assert_eq!(out, json!([to_proxy, to_block]), "{tier:?}: no names, and nothing else");
    }
    let proxy = egress_proxy(&workload, &config()).unwrap();
    assert_eq!(
        proxy.iter().map(|w| w.kind).collect::<Vec<_>>(),
        [Kind::NetworkPolicy, Kind::Service, Kind::Deployment]
    );
    let [policy, service, deployment] =
        proxy.iter().map(|w| w.object["spec"].clone()).collect::<Vec<_>>().try_into().unwrap();
    let selected = json!({"matchLabels": {"perch.dev/egress-proxy": "time"}});
    assert_eq!((&policy["podSelector"], &deployment["selector"]), (&selected, &selected));
    assert_eq!(service["selector"], selected["matchLabels"]);
    let from = json!([{"podSelector": {"matchLabels": {"perch.dev/server": "time"}}}]);
    assert_eq!(policy["ingress"][0], json!({"from": from, "ports": [{"port": 3128, "protocol": "TCP"}]}));
    let template = &deployment["template"];
    assert!(template["metadata"]["labels"].get(naming::SERVER).is_none(), "it is no server to the gateway");
    let container = &template["spec"]["containers"][0];
    assert_eq!((&container["image"], &container["args"][0]), (&json!("perch:1"), &json!("egress-proxy")));
    let given = container["args"][4].as_str().unwrap().strip_prefix("--rules=").unwrap();
    assert_eq!(serde_json::from_str::<Value>(given).unwrap(), rules);
    assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));

    let with = build(&workload, &config(), Some("10.96.0.7".parse().unwrap())).unwrap();
    let with =
        &with.iter().find(|w| w.kind == Kind::Deployment).unwrap().object["spec"]["template"]["spec"]["containers"][0];
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        let entry = json!({"name": name, "value": "http://10.96.0.7:3128"});
        assert!(with["env"].as_array().unwrap().contains(&entry), "{name}: {}", with["env"]);
    }
    workload.declared.egress.remove(0);
    assert_eq!(egress_proxy(&workload, &config()).unwrap(), [], "addresses need none");
}

#[test]
fn a_package_may_reach_its_registry_only_while_it_is_installed() {
    let mut workload = workload();
    let package =
        Package { registry: PackageRegistry::PyPI, name: "mcp-server-time".into(), version: "2026.10.19".into() };
    workload.program = Program::Package { package, command: Vec::new(), args: Vec::new() };
    let wanted = build(&workload, &config(), None).unwrap();
    let policies: Vec<_> = wanted.iter().filter(|w| w.kind == Kind::NetworkPolicy).collect();
    assert_eq!(policies.len(), 2);
    assert_eq!(policies[1].object["spec"]["podSelector"]["matchLabels"][naming::INSTALLING], "true");
    let template = object(&workload, Kind::Deployment)["spec"]["template"].clone();
    assert_eq!(template["metadata"]["labels"][naming::INSTALLING], "true");
    assert_eq!(template["spec"]["containers"][0]["command"][5], "/app/run");
    let first = template["spec"]["initContainers"][0]["args"].clone();
    assert_eq!(first, json!(["internal", "prepare", "--copy", "/opt/perch/perch"]), "its way out is open still");
    let env = template["spec"]["initContainers"][1]["env"].as_array().unwrap().clone();
    assert!(env.iter().any(|e| e["name"] == "PIP_INDEX_URL"), "{env:?}");
    workload.network = NetworkTier::Public;
    assert_eq!(kinds(&workload).iter().filter(|k| **k == Kind::NetworkPolicy).count(), 1);
}

#[test]
fn disruption_and_scale_only_where_they_make_sense() {
    let mut workload = workload();
    assert!(!kinds(&workload).contains(&Kind::PodDisruptionBudget));
    workload.replicas = 3;
    assert_eq!(object(&workload, Kind::PodDisruptionBudget)["spec"]["maxUnavailable"], 1);
    assert_eq!(object(&workload, Kind::Deployment)["spec"]["replicas"], 3);
    workload.declared.autoscaling =
        Some(Autoscaling { min_replicas: 2, max_replicas: 5, target_cpu_utilization_percentage: 80 });
    assert_eq!(object(&workload, Kind::HorizontalPodAutoscaler)["spec"]["maxReplicas"], 5);
    let replicas = &object(&workload, Kind::Deployment)["spec"];
    assert!(replicas.get("replicas").is_none(), "the autoscaler's number is never overwritten");
    workload.replicas = 0;
    assert_eq!(object(&workload, Kind::Deployment)["spec"]["replicas"], 0, "suspended stays suspended");
    assert!(!kinds(&workload).contains(&Kind::HorizontalPodAutoscaler));
}

#[test]
fn secrets_stay_references() {
    let mut workload = workload();
    let env: Vec<EnvVar> = serde_json::from_value(
        json!([{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}, {"name": "HOME", "value": "/data"}]),
    )
    .unwrap();
    workload.declared.env = env;
    let env = object(&workload, Kind::Deployment)["spec"]["template"]["spec"]["containers"][0]["env"].clone();
    let token = json!({"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": false}}});
    assert_eq!(env, json!([token, {"name": "HOME", "value": "/data"}]), "the user's own HOME wins");
}

#[test]
fn credentials_are_references_that_the_kubelet_follows() {
    let mut workload = workload();
    workload.declared.credentials = serde_json::from_value(json!([
        {"name": "plain", "secret": {"name": "mine", "key": "k"}},
        {"name": "token", "oauth2": {"tokenURL": "https://i/t", "clientID": "c", "clientSecretFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}},
        {"name": "account", "serviceAccount": {"audience": "vault"}},
        {"name": "in-env", "as": "Env", "vault": {"address": "https://v", "path": "p", "key": "k", "auth": {"tokenFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}}},
        {"name": "plain-env", "as": "Env", "variable": "TOKEN", "secret": {"name": "mine", "key": "k"}},
    ]))
    .unwrap();
    let pod = object(&workload, Kind::Deployment)["spec"]["template"]["spec"].clone();
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|v| v["name"] == "credentials").unwrap();
    let kept = |name: &str, key: &str| json!({"secret": {"name": name, "items": [{"key": key, "path": if key == "k" { "plain" } else { key }}], "optional": false}});
    assert_eq!(
        volume["projected"],
        json!({"defaultMode": 0o400, "sources": [
            kept("mine", "k"),
            kept("mcp-time-credentials", "token"),
            {"serviceAccountToken": {"audience": "vault", "expirationSeconds": 3600, "path": "account"}},
        ]})
    );
    let server = &pod["containers"][0];
    let mounts = server["volumeMounts"].as_array().unwrap();
    assert!(mounts.contains(&json!({"name": "credentials", "mountPath": "/run/perch/credentials", "readOnly": true})));
    let env = server["env"].as_array().unwrap();
    for wanted in [
        json!({"name": "PLAIN_FILE", "value": "/run/perch/credentials/plain"}),
        json!({"name": "TOKEN_FILE", "value": "/run/perch/credentials/token"}),
        json!({"name": "ACCOUNT_FILE", "value": "/run/perch/credentials/account"}),
        json!({"name": "IN_ENV", "valueFrom": {"secretKeyRef": {"name": "mcp-time-credentials", "key": "in-env", "optional": false}}}),
        json!({"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "k", "optional": false}}}),
    ] {
        assert!(env.contains(&wanted), "{wanted} of {env:?}");
    }
    workload.declared.credentials.retain(|c| c.name.ends_with("env"));
    let pod = object(&workload, Kind::Deployment)["spec"]["template"]["spec"].clone();
    assert!(!pod.to_string().contains("/run/perch/credentials"), "no files, no volume");
}

#[test]
fn an_overlay_merges_by_name() {
    let mut workload = workload();
    let overlay = json!({
        "metadata": {"annotations": {"team": "a"}},
        "spec": {"priorityClassName": "high", "containers": [
            {"name": "server", "env": [{"name": "EXTRA", "value": "1"}]},
            {"name": "sidecar", "image": "y:1"},
        ]},
    });
    workload.declared.pod_template = Some(serde_json::from_value(overlay).unwrap());
    let template = object(&workload, Kind::Deployment)["spec"]["template"].clone();
    assert_eq!(template["metadata"]["annotations"]["team"], "a");
    let spec = &template["spec"];
    assert_eq!((&spec["priorityClassName"], &spec["containers"][1]["name"]), (&json!("high"), &json!("sidecar")));
    let env = spec["containers"][0]["env"].as_array().unwrap();
    assert!(env.iter().any(|e| e["name"] == "EXTRA") && env.iter().any(|e| e["name"] == "HOME"));
    workload.declared.pod_template = Some(serde_json::from_value(json!({"spec": {"containers": 3}})).unwrap());
    let error = build(&workload, &config(), None).unwrap_err().to_string();
    assert!(error.contains("spec.podTemplate"), "{error}");
}

#[test]
fn the_same_workload_gives_the_same_digest() {
    let a = build(&workload(), &config(), None).unwrap();
    assert_eq!(a, build(&workload(), &config(), None).unwrap());
    let mut other = workload();
    other.replicas = 2;
    let b = build(&other, &config(), None).unwrap();
    let digest = |all: &[Wanted]| all.iter().find(|w| w.kind == Kind::Deployment).unwrap().digest.clone();
    assert_ne!(digest(&a), digest(&b));
}
