//! What is served, and what is not.

use serde_json::{Value, json};

use crate::case::{Case, case, config, plain};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// Groups, versions and resources that the embedded control plane serves; the real one serves more.
const SERVED: &[(&str, &[&str])] = &[
    ("", &["namespaces", "secrets", "configmaps", "events"]),
    ("events.k8s.io", &["events"]),
    ("coordination.k8s.io", &["leases"]),
    ("apps", &["controllerrevisions"]),
    ("perch.dev", &["mcpservers", "canaryreleases", "mcptoolboxes"]),
];

fn served(group: &Value) -> bool {
    SERVED.iter().any(|(served, _)| group == *served || (served.is_empty() && group.is_null()))
}

fn is_served(resource: &Value) -> bool {
    let name = resource.as_str().unwrap_or_default();
    let name = name.split('/').next().unwrap();
    SERVED.iter().any(|(_, resources)| resources.contains(&name))
}

fn sorted(list: &mut Value, key: &str) {
    if let Some(list) = list.as_array_mut() {
        list.sort_by_key(|item| item[key].to_string());
    }
}

fn groups(outcome: &mut Value) {
    let groups = &mut outcome["body"]["groups"];
    if let Some(list) = groups.as_array_mut() {
        list.retain(|group| served(&group["name"]));
        for group in list {
            let perch = group["name"] == "perch.dev";
            // Other versions of the same group are not served here.
            if let Some(versions) = group["versions"].as_array_mut() {
                versions.retain(|v| v["version"] == "v1" || perch);
            }
        }
    }
    sorted(groups, "name");
}

fn group(outcome: &mut Value) {
    if let Some(versions) = outcome["body"]["versions"].as_array_mut() {
        versions.retain(|v| v["version"] == "v1" || v["groupVersion"] == "perch.dev/v1alpha1");
    }
}

fn resources(outcome: &mut Value) {
    let resources = &mut outcome["body"]["resources"];
    if let Some(list) = resources.as_array_mut() {
        list.retain(|resource| is_served(&resource["name"]));
        for resource in list {
            if let Some(map) = resource.as_object_mut() {
                // A digest that tells storage versions apart.
                map.remove("storageVersionHash");
            }
            if let Some(verbs) = resource["verbs"].as_array_mut() {
                verbs.sort_by_key(Value::to_string);
            }
        }
    }
    sorted(resources, "name");
}

fn aggregated(outcome: &mut Value) {
    let items = &mut outcome["body"]["items"];
    if let Some(list) = items.as_array_mut() {
        list.retain(|group| served(&group["metadata"]["name"]));
        for group in list {
            if let Some(metadata) = group["metadata"].as_object_mut() {
                metadata.remove("creationTimestamp");
            }
            let perch = group["metadata"]["name"] == "perch.dev";
            if let Some(versions) = group["versions"].as_array_mut() {
                versions.retain(|v| v["version"] == "v1" || perch);
                for version in versions {
                    if let Some(resources) = version["resources"].as_array_mut() {
                        resources.retain(|r| is_served(&r["resource"]));
                        for resource in resources.iter_mut() {
                            if let Some(verbs) = resource["verbs"].as_array_mut() {
                                verbs.sort_by_key(Value::to_string);
                            }
                        }
                        resources.sort_by_key(|r| r["resource"].to_string());
                    }
                }
            }
        }
        list_sort(items);
    }
}

fn list_sort(items: &mut Value) {
    if let Some(list) = items.as_array_mut() {
        list.sort_by_key(|group| group["metadata"]["name"].to_string());
    }
}

/// The paths of an index that both serve.
fn index(outcome: &mut Value) {
    if let Some(paths) = outcome["body"]["paths"].as_object_mut() {
        paths.retain(|path, _| {
            [
                "api/v1",
                "apis/apps/v1",
                "apis/coordination.k8s.io/v1",
                "apis/events.k8s.io/v1",
                "apis/perch.dev/v1alpha1",
            ]
            .contains(&path.as_str())
        });
        for entry in paths.values_mut() {
            let url = entry["serverRelativeURL"].as_str().unwrap_or_default();
            entry["serverRelativeURL"] = url.split("hash=").next().unwrap().into();
        }
    }
}

fn head(outcome: &mut Value) {
    *outcome = json!([outcome["status"], outcome["type"]]);
}

pub fn cases() -> Vec<Case> {
    let mut addresses = case("addresses-that-are-not-there");
    for path in [
        "/nothing",
        "/api/v2",
        "/api/v1/nothing",
        "/apis/nothing.dev",
        "/apis/nothing.dev/v1",
        "/apis/nothing.dev/v1/x",
        "/apis/perch.dev/v9",
        "/apis/perch.dev/v1alpha1/nothing",
        "/apis/perch.dev/v1alpha1/namespaces/$(ns)/nothing",
        "/apis/perch.dev/v1alpha1/namespaces/$(ns)/nothing/x",
        "/apis/perch.dev/v1alpha1/mcpservers/x",
        "/api/v1/namespaces/$(ns)/nothing",
        "/api/v1/namespaces/$(ns)/namespaces",
        "/api/v1/secrets/x",
        "/api/v1/namespaces/$(ns)/configmaps/x/y/z",
        "/apis/perch.dev/v1alpha1/namespaces/$(ns)",
        "/openapi/v3/apis/nothing.dev/v1",
    ] {
        addresses = addresses.get(path);
    }
    addresses = addresses
        .get("/apis/perch.dev/v1alpha1/")
        .only(head)
        .get("mcpservers/")
        .only(head)
        .post("/apis/perch.dev/v1alpha1/namespaces/$(ns)/nothing", &json!({}))
        .delete("/apis/nothing.dev/v1/x/y");
    let mut methods =
        case("methods-that-are-not-there").post("mcpservers", &plain("a")).post("configmaps", &config("a", &json!({})));
    for (method, path) in [
        ("PUT", "mcpservers"),
        ("PATCH", "mcpservers"),
        ("POST", "mcpservers/a"),
        ("PUT", "configmaps"),
        ("PATCH", "configmaps"),
        ("POST", "configmaps/a"),
        ("POST", "/api"),
        ("DELETE", "/api/v1"),
        ("POST", "/version"),
        ("PUT", "/apis/perch.dev/v1alpha1/mcpservers"),
        ("POST", "/api/v1/configmaps"),
        ("DELETE", "/api/v1/configmaps"),
    ] {
        methods = methods.send(method, path, "application/json", "{}");
    }
    let mut forms =
        case("forms-of-answers").post("mcpservers", &plain("a")).post("configmaps", &config("a", &json!({})));
    for path in ["mcpservers/a", "mcpservers", "configmaps/a"] {
        for accept in [
            "text/html",
            "application/xml, text/plain",
            "*/*",
            "application/*",
            "text/html, application/json;q=0.5",
            "application/json;charset=utf-8",
            "application/json;stream=watch",
            "",
        ] {
            forms = forms.get(path).header("Accept", accept).only(|outcome| {
                if outcome["status"] == 200 {
                    head(outcome);
                }
            });
        }
    }
    vec![
        case("discovery")
            .get("/api")
            .only(|outcome| outcome["body"]["serverAddressByClientCIDRs"] = Value::Null)
            .get("/apis")
            .only(groups)
            .get("/apis/perch.dev")
            .get("/apis/apps")
            .only(group)
            .get("/apis/events.k8s.io")
            .only(group)
            .get("/apis/perch.dev/v1alpha1")
            .only(resources)
            .get("/api/v1")
            .only(resources)
            .get("/apis/apps/v1")
            .only(resources)
            .get("/apis/coordination.k8s.io/v1")
            .only(resources)
            .get("/apis/events.k8s.io/v1")
            .only(resources),
        case("discovery-aggregated")
            .get("/api")
            .header("Accept", AGGREGATED)
            .only(aggregated)
            .get("/apis")
            .header("Accept", AGGREGATED)
            .only(aggregated),
        case("discovery-of-schemas").get("/openapi/v3").only(index).get("/openapi/v3/apis/perch.dev/v1alpha1").only(
            |outcome| {
                let schemas = &outcome["body"]["components"]["schemas"];
                let server = &schemas["dev.perch.v1alpha1.McpServer"];
                *outcome = json!([
                    outcome["status"],
                    outcome["type"],
                    server["properties"]["spec"],
                    server["properties"]["status"],
                    server["x-kubernetes-group-version-kind"],
                    server["type"],
                    server["required"]
                ]);
            },
        ),
        case("health")
            .get("/healthz")
            .get("/livez")
            .get("/readyz")
            .get("/healthz?verbose")
            .only(head)
            .get("/version")
            .only(|outcome| {
                *outcome = json!([
                    outcome["status"],
                    outcome["type"],
                    outcome["body"].as_object().map(|b| b.keys().cloned().collect::<Vec<_>>())
                ]);
            }),
        addresses,
        methods,
        forms,
        case("forms-of-bodies")
            .send("POST", "mcpservers", "text/plain", &plain("a").to_string())
            .send("POST", "mcpservers", "application/xml", &plain("a").to_string())
            .send("POST", "mcpservers", "", &plain("a").to_string())
            .send("POST", "mcpservers", "application/json; charset=utf-8", &plain("b").to_string())
            .send("POST", "configmaps", "text/plain", "x")
            .send("POST", "configmaps", "application/vnd.kubernetes.protobuf", "no protobuf at all")
            .send("PUT", "mcpservers/a", "text/plain", "x"),
    ]
}
