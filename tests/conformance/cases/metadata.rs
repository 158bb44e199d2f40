//! Names, labels, annotations, finalizers, owners.

use serde_json::{Value, json};

use crate::case::{Case, case, config, object, plain, secret, with};

fn labelled(metadata: Value) -> Value {
    with(plain("a"), &json!({"metadata": metadata}))
}

pub fn cases() -> Vec<Case> {
    let mut names = case("names-of-servers");
    let mut maps = case("names-of-configmaps");
    let mut spaces = case("names-of-namespaces");
    let long = "x".repeat(254);
    for name in ["Big", "a_b", "-a", "a-", "a..b", "a.b", "a/b", "a b", "ä", "..", &long, &"y".repeat(253)] {
        names = names.post("mcpservers", &plain(name));
        maps = maps.post("configmaps", &config(name, &json!({})));
    }
    for name in ["Big", "a.b", "-a", &"x".repeat(64)] {
        spaces = spaces.post("namespaces", &object("v1", "Namespace", name, &json!({})));
    }
    let mut labels = case("labels");
    for given in [
        json!({"": "x"}),
        json!({"-a": "x"}),
        json!({"a/b/c": "x"}),
        json!({"/b": "x"}),
        json!({"a/": "x"}),
        json!({"A.b/c": "x"}),
        json!({"ä": "x"}),
        json!({"x".repeat(64): "x"}),
        json!({format!("{}/a", "x".repeat(254)): "x"}),
        json!({"a": "no spaces"}),
        json!({"a": "x".repeat(64)}),
        json!({"a": "-x", "b": "y!"}),
        json!({"a.b/c_d": "", "e": "f.g_H-1"}),
    ] {
        labels = labels.post("mcpservers?dryRun=All", &labelled(json!({"labels": given})));
        labels = labels.post(
            "configmaps?dryRun=All",
            &with(config("a", &json!({})), &json!({"metadata": {"labels": given, "annotations": given}})),
        );
    }
    let mut owners = case("owners");
    let owner = |rest: Value| {
        let mut owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "11111111-1111-1111-1111-111111111111"});
        for (key, value) in rest.as_object().unwrap() {
            owner[key] = value.clone();
        }
        owner
    };
    for given in [
        json!([owner(json!({"apiVersion": ""}))]),
        json!([owner(json!({"kind": ""}))]),
        json!([owner(json!({"name": ""}))]),
        json!([owner(json!({"uid": ""}))]),
        json!([owner(json!({"controller": true})), owner(json!({"controller": true, "uid": "2", "name": "y"}))]),
        json!([owner(json!({"apiVersion": "a/b/c"}))]),
        json!([owner(json!({"apiVersion": "v1", "kind": "Event"}))]),
        json!([owner(json!({"unknown": 1}))]),
        json!([{"name": "x"}]),
        json!([owner(json!({})), owner(json!({}))]),
    ] {
        owners = owners.post("mcpservers?dryRun=All", &labelled(json!({"ownerReferences": given})));
        owners = owners.post(
            "configmaps?dryRun=All",
            &with(config("a", &json!({})), &json!({"metadata": {"ownerReferences": given}})),
        );
    }
    let mut finalizers = case("finalizer-names");
    for given in [
        json!(["plain"]),
        json!(["a.b/c"]),
        json!(["Bad_/x"]),
        json!(["a/b/c"]),
        json!([""]),
        json!(["x y"]),
        json!(["foregroundDeletion", "orphan"]),
        json!(["kubernetes"]),
        json!(["a.b/c", "a.b/c"]),
        json!("text"),
    ] {
        finalizers = finalizers.post("mcpservers?dryRun=All", &labelled(json!({"finalizers": given})));
        finalizers = finalizers
            .post("configmaps?dryRun=All", &with(config("a", &json!({})), &json!({"metadata": {"finalizers": given}})));
    }
    vec![
        names,
        maps,
        spaces,
        labels,
        owners,
        finalizers,
        case("many-problems-at-once").post(
            "mcpservers",
            &with(
                plain("Big"),
                &json!({"metadata": {"labels": {"-": "-"}, "annotations": {"-": "-"}}, "spec": {"replicas": -1}}),
            ),
        ),
        case("metadata-that-stays")
            .post("secrets", &secret("a", &json!({})))
            .merge("secrets/a", &json!({"metadata": {"name": "b"}}))
            .merge("secrets/a", &json!({"metadata": {"namespace": "b"}}))
            .merge("secrets/a", &json!({"metadata": {"uid": "b"}}))
            .merge("secrets/a", &json!({"metadata": {"uid": null, "creationTimestamp": null, "selfLink": "x"}}))
            .merge("secrets/a", &json!({"kind": "ConfigMap"}))
            .post("mcpservers", &plain("a"))
            .merge("mcpservers/a", &json!({"spec": {"replicas": 2}}))
            .merge("mcpservers/a", &json!({"metadata": {"name": "b"}}))
            .merge("mcpservers/a", &json!({"metadata": {"namespace": "b"}}))
            .merge("mcpservers/a", &json!({"metadata": {"uid": "b"}}))
            .merge("mcpservers/a", &json!({"metadata": {"uid": null, "creationTimestamp": null, "generation": 17}}))
            .merge("mcpservers/a", &json!({"kind": "ConfigMap"}))
            .merge("mcpservers/a", &json!({"apiVersion": "perch.dev/v2"}))
            .merge("mcpservers/a", &json!({"metadata": null})),
        case("unknown-metadata")
            .post("mcpservers", &labelled(json!({"unknown": 1, "labels": {"a": "b"}})))
            .post("mcpservers?fieldValidation=Strict", &labelled(json!({"unknown": 1})))
            .post("configmaps", &with(config("b", &json!({})), &json!({"metadata": {"unknown": 1}})))
            .post(
                "configmaps?fieldValidation=Strict",
                &with(config("c", &json!({})), &json!({"metadata": {"unknown": 1}})),
            ),
    ]
}
