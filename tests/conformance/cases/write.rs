//! POST and PUT.

use serde_json::json;

use crate::case::{Case, case, config, plain, server, with};

pub fn cases() -> Vec<Case> {
    vec![
        case("create")
            .post("mcpservers", &plain("a"))
            .get("mcpservers/a")
            .post("mcpservers", &plain("a"))
            .post("mcpservers?fieldManager=me", &plain("b"))
            .post("configmaps", &config("c", &json!({"k": "v"})))
            .post("configmaps", &config("c", &json!({"k": "v"}))),
        case("create-dry-run")
            .post("mcpservers?dryRun=All", &plain("a"))
            .get("mcpservers/a")
            .post("mcpservers?dryRun=Some", &plain("a"))
            .post("mcpservers", &plain("a"))
            .post("mcpservers?dryRun=All", &plain("a")),
        case("create-generate-name")
            .post("mcpservers", &with(plain(""), &json!({"metadata": {"generateName": "gen-"}})))
            .post("mcpservers", &with(plain("given"), &json!({"metadata": {"generateName": "gen-"}})))
            .post("configmaps", &with(config("", &json!({})), &json!({"metadata": {"generateName": "Bad_"}})))
            .post("mcpservers", &with(plain(""), &json!({"metadata": {"generateName": "Bad_"}}))),
        case("create-what-belongs-to-the-server")
            .post(
                "mcpservers",
                &with(
                    plain("a"),
                    &json!({"metadata": {
                        "uid": "11111111-1111-1111-1111-111111111111", "generation": 7, "selfLink": "/x",
                        "creationTimestamp": "2020-01-01T00:00:00Z", "deletionTimestamp": "2020-01-01T00:00:00Z",
                        "deletionGracePeriodSeconds": 5,
                        "managedFields": [{"manager": "x", "operation": "Update", "apiVersion": "perch.dev/v1alpha1", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}}],
                    }, "status": {"tools": 4}}),
                ),
            )
            .post("mcpservers", &with(plain("b"), &json!({"metadata": {"resourceVersion": "5"}})))
            .post("configmaps", &with(config("c", &json!({})), &json!({"metadata": {"resourceVersion": "5"}})))
            .post("mcpservers", &with(plain("d"), &json!({"metadata": {"namespace": "other"}})))
            .post("configmaps", &with(config("e", &json!({})), &json!({"metadata": {"namespace": "other"}}))),
        case("create-of-the-wrong-kind")
            .post("mcpservers", &config("a", &json!({})))
            .post("configmaps", &plain("a"))
            .post("mcpservers", &with(plain("a"), &json!({"apiVersion": "perch.dev/v9"})))
            .post("mcpservers", &json!({"metadata": {"name": "a"}, "spec": {"image": "x"}}))
            .post("configmaps", &json!({"metadata": {"name": "a"}, "data": {}}))
            .post("mcpservers", &json!([1]))
            .post("mcpservers", &json!("text"))
            .post("configmaps", &json!([1]))
            .post("mcpservers", &json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": [], "spec": {"image": "x"}}))
            .post("mcpservers", &json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": 7}, "spec": {"image": "x"}}))
            .post("mcpservers", &json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a", "labels": {"a": 1}}, "spec": {"image": "x"}}))
            .post("configmaps", &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": 1}}))
            .post("mcpservers", &json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "spec": {"image": "x"}}))
            .post("configmaps", &json!({"apiVersion": "v1", "kind": "ConfigMap"}))
            .post("mcpservers/a", &plain("a"))
            .post("mcpservers", &plain("")),
        case("create-from-yaml")
            .send("POST", "mcpservers", "application/yaml", "apiVersion: perch.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: a\nspec:\n  image: x\n")
            .send("POST", "configmaps", "application/yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: v\n"),
        case("create-in-an-absent-namespace")
            .post("/apis/perch.dev/v1alpha1/namespaces/absent/mcpservers", &plain("a"))
            .post("/api/v1/namespaces/absent/configmaps", &config("a", &json!({})))
            .apply("/apis/perch.dev/v1alpha1/namespaces/absent/mcpservers/a?fieldManager=me", &plain("a"))
            .put("/apis/perch.dev/v1alpha1/namespaces/absent/mcpservers/a", &plain("a"))
            .get("/apis/perch.dev/v1alpha1/namespaces/absent/mcpservers/a")
            .get("/apis/perch.dev/v1alpha1/namespaces/absent/mcpservers")
            .delete("/apis/perch.dev/v1alpha1/namespaces/absent/mcpservers/a")
            .post("/apis/perch.dev/v1alpha1/mcpservers", &plain("a")),
        case("create-malformed")
            .send("POST", "mcpservers", "application/json", "{\"apiVersion\": ")
            .send("POST", "mcpservers", "application/json", "{} trailing")
            .send("POST", "mcpservers", "application/json", "")
            .send("POST", "mcpservers", "application/yaml", "a: [")
            .send("POST", "configmaps", "application/json", "{\"apiVersion\": ")
            .send("POST", "configmaps", "application/json", "")
            .send("PUT", "mcpservers/a", "application/json", ""),
        case("replace")
            .post("mcpservers", &plain("a"))
            .keep("rv", "/metadata/resourceVersion")
            .put("mcpservers/a", &with(server("a", &json!({"image": "y"})), &json!({"metadata": {"resourceVersion": "$(rv)"}})))
            .keep("second", "/metadata/resourceVersion")
            .put("mcpservers/a", &with(server("a", &json!({"image": "z"})), &json!({"metadata": {"resourceVersion": "$(rv)"}})))
            .put("mcpservers/a", &with(server("a", &json!({"image": "y"})), &json!({"metadata": {"resourceVersion": "$(second)"}})))
            .put("mcpservers/a", &server("a", &json!({"image": "z"})))
            .put("mcpservers/a", &with(plain("a"), &json!({"metadata": {"resourceVersion": "garbage"}})))
            .put("mcpservers/b", &with(plain("a"), &json!({"metadata": {"resourceVersion": "$(second)"}})))
            .put("mcpservers/absent", &with(plain("absent"), &json!({"metadata": {"resourceVersion": "$(second)"}})))
            .put("mcpservers/absent", &plain("absent"))
            .put("mcpservers/a", &with(plain("a"), &json!({"metadata": {"resourceVersion": "$(second)", "uid": "11111111-1111-1111-1111-111111111111"}})))
            .put("mcpservers/a", &with(plain("a"), &json!({"metadata": {"resourceVersion": "$(second)", "namespace": "other"}})))
            .put("mcpservers/a?dryRun=All", &with(plain("a"), &json!({"metadata": {"resourceVersion": "$(second)"}})))
            .get("mcpservers/a"),
        case("replace-built-in")
            .post("configmaps", &config("a", &json!({"k": "1"})))
            .keep("rv", "/metadata/resourceVersion")
            .put("configmaps/a", &config("a", &json!({"k": "2"})))
            .put("configmaps/a", &with(config("a", &json!({"k": "3"})), &json!({"metadata": {"resourceVersion": "$(rv)"}})))
            .put("configmaps/a", &config("a", &json!({"k": "2"})))
            .put("configmaps/absent", &config("absent", &json!({})))
            .put("configmaps/a", &config("b", &json!({})))
            .put("configmaps/a", &with(config("a", &json!({})), &json!({"metadata": {"uid": "11111111-1111-1111-1111-111111111111"}})))
            .put("configmaps/a", &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": {}})),
        case("replace-what-belongs-to-the-server")
            .post("mcpservers", &plain("a"))
            .keep("rv", "/metadata/resourceVersion")
            .put("mcpservers/a", &with(
                plain("a"),
                &json!({"metadata": {
                    "resourceVersion": "$(rv)", "generation": 9, "creationTimestamp": "2020-01-01T00:00:00Z",
                    "deletionTimestamp": "2020-01-01T00:00:00Z", "generateName": "gen-", "labels": {"a": "b"},
                }, "status": {"tools": 3}}),
            ))
            .keep("rv", "/metadata/resourceVersion")
            .put("mcpservers/a", &with(plain("a"), &json!({"metadata": {"resourceVersion": "$(rv)", "managedFields": []}})))
            .keep("rv", "/metadata/resourceVersion")
            .put("mcpservers/a", &with(plain("a"), &json!({"metadata": {"resourceVersion": "$(rv)", "managedFields": [{}]}})))
            .get("mcpservers/a"),
        case("generation")
            .post("mcpservers", &plain("a"))
            .merge("mcpservers/a", &json!({"metadata": {"labels": {"x": "y"}}}))
            .merge("mcpservers/a", &json!({"spec": {"replicas": 2}}))
            .merge("mcpservers/a", &json!({"spec": {"replicas": 2}}))
            .merge("mcpservers/a", &json!({"status": {"tools": 2}}))
            .merge("mcpservers/a/status", &json!({"status": {"tools": 2}, "spec": {"replicas": 4}})),
        case("field-managers")
            .send("POST", "mcpservers", "application/json", &plain("a").to_string())
            .header("User-Agent", "agent with spaces/v1.2 (x)")
            .merge("mcpservers/a", &json!({"spec": {"replicas": 2}}))
            .merge("mcpservers/a?fieldManager=other", &json!({"spec": {"replicas": 2}}))
            .merge("mcpservers/a?fieldManager=other", &json!({"spec": {"replicas": 3, "env": [{"name": "A", "value": "1"}]}}))
            .merge("mcpservers/a?fieldManager=third", &json!({"spec": {"env": [{"name": "B", "value": "1"}, {"name": "A", "value": "2"}]}}))
            .merge("mcpservers/a?fieldManager=third", &json!({"spec": {"env": null, "args": ["x"]}, "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["x.dev/y"]}}))
            .merge("mcpservers/a/status?fieldManager=third", &json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}}))
            .merge("mcpservers/a?fieldManager=third", &json!({"metadata": {"finalizers": null, "labels": null}}))
            .merge(&format!("mcpservers/a?fieldManager={}", "x".repeat(129)), &json!({"spec": {"replicas": 5}}))
            .merge("mcpservers/a?fieldManager=bad%01name", &json!({"spec": {"replicas": 5}}))
            .merge("mcpservers/a", &json!({"metadata": {"managedFields": null}}))
            .merge("mcpservers/a", &json!({"metadata": {"managedFields": [{}]}})),
        case("size")
            .post("mcpservers", &server("a", &json!({"image": "x", "args": ["x".repeat(1_400_000)]})))
            .only(|outcome| *outcome = outcome["status"].take())
            .post("mcpservers", &server("b", &json!({"image": "x", "args": ["x".repeat(1_600_000)]})))
            .post("configmaps", &config("c", &json!({"k": "x".repeat(1_048_576)})))
            .only(|outcome| *outcome = outcome["status"].take())
            .post("configmaps", &config("d", &json!({"k": "x".repeat(1_048_577)})))
            .post("mcpservers", &server("e", &json!({"image": "x", "args": ["x".repeat(3_200_000)]})))
            .post("mcpservers", &with(plain("f"), &json!({"metadata": {"annotations": {"a": "x".repeat(262_143)}}})))
            .only(|outcome| *outcome = outcome["status"].take())
            .post("mcpservers", &with(plain("g"), &json!({"metadata": {"annotations": {"a": "x".repeat(262_144)}}})))
            .merge("mcpservers/a", &json!({"spec": {"command": ["x".repeat(300_000)]}})),
    ]
}
