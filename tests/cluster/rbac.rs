//! Rights: what operator and gateway may do, wholly, and what they may not.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    chart::{OPEN, chart, helm_ok},
    cluster::{Cluster, Level},
};

/// What an account may do in a namespace beyond what everybody may, as `verb group/resource`.
fn rights(cluster: &Cluster, account: &str, namespace: &str) -> BTreeSet<String> {
    let everybody = rules(cluster, "system:serviceaccount:nowhere:nobody", namespace);
    rules(cluster, account, namespace).difference(&everybody).cloned().collect()
}

fn rules(cluster: &Cluster, account: &str, namespace: &str) -> BTreeSet<String> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace},
    });
    let answer =
        cluster.ok_with(&["create", "--validate=false", "-o", "json", "--as", account, "-f", "-"], &review.to_string());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["status"]["incomplete"], false);
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|t| t.as_str().unwrap().to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for rule in answer["status"]["resourceRules"].as_array().unwrap() {
        let names = texts(&rule["resourceNames"]);
        let names = if names.is_empty() { String::new() } else { format!(" only {}", names.join(",")) };
        for verb in texts(&rule["verbs"]) {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    all.insert(format!("{verb} {group}/{resource}{names}"));
                }
            }
        }
    }
    all
}

fn set(rights: &[(&str, &[&str])]) -> BTreeSet<String> {
    rights
        .iter()
        .flat_map(|(verbs, on)| verbs.split(' ').flat_map(|v| on.iter().map(move |o| format!("{v} {o}"))))
        .collect()
}

fn of_operator() -> BTreeSet<String> {
    set(&[
        ("get list watch patch", &["perch.dev/mcpservers"]),
        ("get list watch", &["perch.dev/canaryreleases", "perch.dev/mcptoolboxes"]),
        (
            "patch update",
            &["perch.dev/mcpservers/status", "perch.dev/canaryreleases/status", "perch.dev/mcptoolboxes/status"],
        ),
        ("update", &["perch.dev/mcpservers/finalizers"]),
        (
            "get list watch create patch delete",
            &[
                "apps/deployments",
                "/services",
                "/serviceaccounts",
                "networking.k8s.io/networkpolicies",
                "policy/poddisruptionbudgets",
                "autoscaling/horizontalpodautoscalers",
            ],
        ),
        ("get list watch patch", &["/pods"]),
        ("get list create patch delete", &["apps/controllerrevisions"]),
        ("create patch", &["events.k8s.io/events"]),
    ])
}

fn of_gateway() -> BTreeSet<String> {
    set(&[("get list watch", &["perch.dev/mcpservers", "perch.dev/canaryreleases", "perch.dev/mcptoolboxes", "/pods"])])
}

/// What the operator may do in the namespace of the release alone.
fn at_home() -> BTreeSet<String> {
    set(&[
        ("create", &["coordination.k8s.io/leases"]),
        ("get update", &["coordination.k8s.io/leases only perch-operator"]),
        ("list", &["discovery.k8s.io/endpointslices"]),
    ])
}

pub fn install(cluster: &Cluster, namespace: &str, more: &[&str]) -> [String; 2] {
    let chart = chart();
    // Rights need no definitions, and tests share the cluster.
    let args =
        ["install", "perch", chart.to_str().unwrap(), "-n", namespace, "--set", OPEN, "--set", "crds.install=false"];
    helm_ok(Some(cluster), &[args.as_slice(), more].concat());
    ["operator", "gateway"].map(|component| format!("system:serviceaccount:{namespace}:perch-{component}"))
}

fn uninstall(cluster: &Cluster, namespace: &str) {
    helm_ok(Some(cluster), &["uninstall", "perch", "-n", namespace]);
}

#[test]
fn operator_and_gateway_have_just_the_rights_that_they_use() {
    let cluster = Cluster::shared(Level::ControlPlane);
    let home = cluster.namespace("rbac", &json!({}));
    let other = cluster.namespace("rbac-other", &json!({}));
    let [operator, gateway] = install(cluster, home.name(), &[]);
    assert_eq!(rights(cluster, &operator, other.name()), of_operator());
    assert_eq!(rights(cluster, &operator, home.name()), of_operator().union(&at_home()).cloned().collect());
    assert_eq!(rights(cluster, &gateway, other.name()), of_gateway());
    assert_eq!(rights(cluster, &gateway, home.name()), of_gateway());

    // The same in words that a person would ask.
    let may = |account: &str, verb: &str, resource: &str| {
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        let question = ["auth", "can-i", verb, resource, "--subresource", sub, "-n", other.name(), "--as", account];
        let output = cluster.kubectl(&question);
        match String::from_utf8_lossy(&output.stdout).trim() {
            "yes" => true,
            "no" => false,
            said => panic!("{verb} {resource}: {said} {}", String::from_utf8_lossy(&output.stderr)),
        }
    };
    assert!(may(&operator, "patch", "deployments.apps") && may(&gateway, "watch", "pods"));
    for resource in ["secrets", "configmaps"] {
        for verb in ["get", "list", "watch", "create", "update", "patch", "delete"] {
            for account in [&operator, &gateway] {
                assert!(!may(account, verb, resource), "{account} may {verb} {resource}");
            }
        }
    }
    for (verb, resource) in [
        ("create", "pods"),
        ("create", "pods/exec"),
        ("get", "pods/log"),
        ("create", "serviceaccounts/token"),
        ("create", "rolebindings.rbac.authorization.k8s.io"),
        ("get", "nodes"),
        ("impersonate", "users"),
        ("*", "*"),
    ] {
        for account in [&operator, &gateway] {
            assert!(!may(account, verb, resource), "{account} may {verb} {resource}");
        }
    }
    for verb in ["create", "update", "patch", "delete"] {
        assert!(!may(&gateway, verb, "deployments.apps"), "the gateway may {verb} Deployments");
    }
    uninstall(cluster, home.name());
}

#[test]
fn rights_on_secrets_are_given_on_request_and_where_they_are_wanted() {
    let cluster = Cluster::shared(Level::ControlPlane);
    let home = cluster.namespace("rbac-secrets", &json!({}));
    let team = cluster.namespace("rbac-secrets-team", &json!({}));
    let secrets = set(&[("get create patch", &["/secrets"])]);
    let here = format!("credentials.namespaces={{{}}}", team.name());
    let enabled = ["--set", "credentials.enabled=true", "--set", &here];
    let [operator, gateway] = install(cluster, home.name(), &enabled);
    assert_eq!(rights(cluster, &operator, team.name()), of_operator().union(&secrets).cloned().collect());
    assert_eq!(rights(cluster, &operator, home.name()), of_operator().union(&at_home()).cloned().collect());
    assert_eq!(rights(cluster, &gateway, team.name()), of_gateway());
    uninstall(cluster, home.name());

    let watch = format!("watchNamespace={}", team.name());
    let more = ["--set", "credentials.enabled=true", "--set", "credentials.serviceAccountTokens=true"];
    let [operator, _] = install(cluster, home.name(), &[more.as_slice(), &["--set", &watch]].concat());
    let tokens = set(&[("create", &["/serviceaccounts/token"])]);
    let wanted = of_operator().union(&secrets).cloned().collect::<BTreeSet<_>>();
    assert_eq!(rights(cluster, &operator, team.name()), wanted.union(&tokens).cloned().collect());
    assert_eq!(rights(cluster, &operator, home.name()), at_home());
    uninstall(cluster, home.name());
}

#[test]
fn rights_on_routes_are_given_on_request() {
    let cluster = Cluster::shared(Level::ControlPlane);
    let home = cluster.namespace("rbac-routes", &json!({}));
    let other = cluster.namespace("rbac-routes-other", &json!({}));
    let routes = set(&[("get patch", &["gateway.networking.k8s.io/httproutes"])]);
    let enabled = ["--set", "httpRoutes.enabled=true"];
    let [operator, gateway] = install(cluster, home.name(), &enabled);
    let wanted: BTreeSet<_> = of_operator().union(&routes).cloned().collect();
    assert_eq!(rights(cluster, &operator, other.name()), wanted);
    assert_eq!(rights(cluster, &gateway, other.name()), of_gateway());
    uninstall(cluster, home.name());

    let watch = format!("watchNamespace={}", home.name());
    let [operator, _] = install(cluster, home.name(), &[enabled.as_slice(), &["--set", &watch]].concat());
    assert_eq!(rights(cluster, &operator, home.name()), wanted.union(&at_home()).cloned().collect());
    assert_eq!(rights(cluster, &operator, other.name()), BTreeSet::new());
    uninstall(cluster, home.name());
}

#[test]
fn rights_to_remove_servers_are_given_on_request() {
    let cluster = Cluster::shared(Level::ControlPlane);
    let home = cluster.namespace("rbac-end", &json!({}));
    let other = cluster.namespace("rbac-end-other", &json!({}));
    let end = set(&[("create", &["/configmaps"]), ("delete", &["perch.dev/mcpservers"])]);
    let enabled = ["--set", "decommission.enabled=true"];
    let [operator, gateway] = install(cluster, home.name(), &enabled);
    assert_eq!(rights(cluster, &operator, other.name()), of_operator().union(&end).cloned().collect());
    assert_eq!(rights(cluster, &gateway, other.name()), of_gateway());
    uninstall(cluster, home.name());
}

#[test]
fn for_one_namespace_rights_end_at_its_border() {
    let cluster = Cluster::shared(Level::ControlPlane);
    let home = cluster.namespace("rbac-home", &json!({}));
    let team = cluster.namespace("rbac-team", &json!({}));
    let other = cluster.namespace("rbac-else", &json!({}));
    let watch = format!("watchNamespace={}", team.name());
    let [operator, gateway] = install(cluster, home.name(), &["--set", &watch, "--set", "rbac.aggregate=false"]);
    assert_eq!(rights(cluster, &operator, team.name()), of_operator());
    assert_eq!(rights(cluster, &operator, home.name()), at_home());
    assert_eq!(rights(cluster, &gateway, team.name()), of_gateway());
    for nowhere in [home.name(), other.name()] {
        assert_eq!(rights(cluster, &gateway, nowhere), BTreeSet::new());
    }
    assert_eq!(rights(cluster, &operator, other.name()), BTreeSet::new());
    let roles = cluster.ok(&["get", "clusterroles", "-o", "name"]);
    assert!(!roles.contains(home.name()), "{roles}");
    uninstall(cluster, home.name());
}
