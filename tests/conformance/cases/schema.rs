//! Validation, CEL, defaults, pruning.

use serde_json::{Value, json};

use crate::case::{Case, case, config, secret, server, with};

fn each(name: &str, specs: &[Value]) -> Case {
    let mut case = case(name);
    for spec in specs {
        case = case.post("mcpservers?dryRun=All", &server("a", spec));
    }
    case
}

pub fn cases() -> Vec<Case> {
    let twice = r#"{"apiVersion":"perch.dev/v1alpha1","kind":"McpServer","metadata":{"name":"a","name":"b"},"spec":{"image":"x","image":"y","unknown":1,"unknown":2,"env":[{"name":"A","name":"B","strange":1}]}}"#;
    let twice_map = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m","name":"n"},"data":{"a":"1","a":"2"},"unknown":1,"unknown":2}"#;
    let mut validation = case("field-validation");
    for mode in
        ["", "?fieldValidation=Ignore", "?fieldValidation=Warn", "?fieldValidation=Strict", "?fieldValidation=Strange"]
    {
        let (query, name) = (if mode.is_empty() { "?dryRun=All".into() } else { format!("{mode}&dryRun=All") }, mode);
        let _ = name;
        validation = validation
            .send("POST", &format!("mcpservers{query}"), "application/json", twice)
            .send("POST", &format!("configmaps{query}"), "application/json", twice_map)
            .send("POST", &format!("mcpservers{query}"), "application/yaml", "apiVersion: perch.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: a\nspec:\n  image: x\n  image: z\n  unknown: 1\n")
            .send("POST", &format!("configmaps{query}"), "application/yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: v\n  k: w\nunknown: 1\n");
    }
    let mut validation_of_updates = case("field-validation-of-updates")
        .post("mcpservers", &server("a", &json!({"image": "x"})))
        .keep("rv", "/metadata/resourceVersion")
        .post("configmaps", &config("a", &json!({})));
    for mode in ["Ignore", "Warn", "Strict"] {
        validation_of_updates = validation_of_updates
            .put(&format!("mcpservers/a?fieldValidation={mode}&dryRun=All"), &with(server("a", &json!({"image": "x", "unknown": 1})), &json!({"metadata": {"resourceVersion": "$(rv)"}})))
            .merge(&format!("mcpservers/a?fieldValidation={mode}&dryRun=All"), &json!({"spec": {"unknown": 1, "env": [{"name": "A", "strange": 2}]}}))
            .json_patch(&format!("mcpservers/a?fieldValidation={mode}&dryRun=All"), &json!([{"op": "add", "path": "/spec/unknown", "value": 1, "strange": 2}]))
            .send("PATCH", &format!("mcpservers/a?fieldValidation={mode}&dryRun=All"), "application/merge-patch+json", r#"{"spec":{"replicas":1,"replicas":2}}"#)
            .merge(&format!("configmaps/a?fieldValidation={mode}&dryRun=All"), &json!({"unknown": 1}))
            .send("PATCH", &format!("configmaps/a?fieldValidation={mode}&dryRun=All"), "application/strategic-merge-patch+json", r#"{"data":{"a":"1","a":"2"},"unknown":1}"#)
            .send("PATCH", &format!("configmaps/a?fieldValidation={mode}&dryRun=All&fieldManager=x"), "application/apply-patch+yaml", r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"a":"1","a":"2"},"unknown":1}"#);
    }
    vec![
        each("schema-types", &[
            json!({"image": 7}),
            json!({"image": true}),
            json!({"image": ["x"]}),
            json!({"image": {"x": 1}}),
            json!({"image": 1.5}),
            json!({"image": null}),
            json!({"image": "x", "replicas": "1"}),
            json!({"image": "x", "replicas": 1.5}),
            json!({"image": "x", "replicas": 1.0}),
            json!({"image": "x", "replicas": 1e2}),
            json!({"image": "x", "replicas": null}),
            json!({"image": "x", "args": "text"}),
            json!({"image": "x", "args": [1, "a", null]}),
            json!({"image": "x", "env": {"a": "b"}}),
            json!({"image": "x", "env": ["a"]}),
            json!({"image": "x", "suspend": "true"}),
            json!({"image": "x", "resources": []}),
            json!({"image": "x", "resources": {"limits": {"cpu": 1.5}}}),
            json!({"image": "x", "resources": {"limits": {"cpu": true}}}),
            json!({"image": "x", "resources": {"limits": {"cpu": 2, "memory": "1Gi"}}}),
            json!("text"),
            json!([]),
            json!(null),
        ]),
        each("schema-values", &[
            json!({"image": ""}),
            json!({"image": "x", "replicas": -1}),
            json!({"image": "x", "replicas": 1001}),
            json!({"image": "x", "replicas": 99_999_999_999_i64}),
            json!({"image": "x", "replicas": 1e30}),
            json!({"image": "x", "security": {"runAsUser": 0}}),
            json!({"image": "x", "security": {"runAsUser": 2_147_483_648_i64}}),
            json!({"image": "x", "security": {"seccompProfile": "Strange"}}),
            json!({"image": "x", "transport": {"type": "strange", "sessions": "Other"}}),
            json!({"image": "x", "transport": {"path": "no slash"}}),
            json!({"image": "x", "transport": {"type": "StreamableHttp", "port": 0}}),
            json!({"image": "x", "transport": {"type": "StreamableHttp", "port": 65536}}),
            json!({"image": "x", "probe": {"period": "10"}}),
            json!({"image": "x", "probe": {"period": "1s".repeat(20)}}),
            json!({"image": "x", "env": [{"name": "1BAD"}]}),
            json!({"image": "x", "env": [{"name": ""}]}),
            json!({"image": "x", "env": [{}]}),
            json!({"image": "x", "env": [{"name": "A"}, {"name": "A"}]}),
            json!({"image": "x", "env": (0..257).map(|i| json!({"name": format!("A{i}")})).collect::<Vec<_>>()}),
            json!({"image": "x", "command": []}),
            json!({"image": "x", "resources": {"limits": {"memory": "lots"}}}),
            json!({"image": "x", "package": {"name": "x"}}),
            json!({"package": {"name": "Bad Name", "registry": "Strange", "version": ""}}),
            json!({"remote": {"url": "ftp://x"}, "transport": {"type": "StreamableHttp"}}),
            json!({"remote": {}}),
            json!({"image": "x", "volumes": [{"name": "Bad", "mountPath": "relative"}]}),
            json!({"image": "x", "governance": {"level": "Strange"}}),
            json!({"image": 7, "replicas": "x", "env": [{"name": 1}], "transport": {"type": "x"}}),
        ]),
        each("schema-rules", &[
            json!({}),
            json!({"image": "x", "remote": {"url": "https://x/mcp"}, "transport": {"type": "StreamableHttp"}}),
            json!({"remote": {"url": "https://x/mcp"}}),
            json!({"remote": {"url": "https://x/mcp"}, "command": ["x"], "transport": {"type": "StreamableHttp"}}),
            json!({"remote": {"url": "https://x/mcp"}, "command": ["x"]}),
            json!({"image": "x", "transport": {"port": 80}}),
            json!({"image": "x", "env": [{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
            json!({"image": "x", "env": [{"name": "A", "valueFrom": {}}, {"name": "B", "valueFrom": {}}]}),
            json!({"image": "x", "envFrom": [{}]}),
            json!({"image": "x", "volumes": [{"name": "v", "mountPath": "/v"}]}),
            json!({"image": "x", "volumes": [{"name": "v", "mountPath": "/v", "emptyDir": {}, "hostPath": {"path": "/x"}}]}),
            json!({"replicas": 5000}),
            json!({"image": 7, "remote": {"url": "https://x/mcp"}}),
        ]),
        each("schema-defaults", &[
            json!({"image": "x"}),
            json!({"image": "x", "transport": {}}),
            json!({"image": "x", "transport": {"type": "StreamableHttp"}}),
            json!({"image": "x", "transport": null}),
            json!({"image": "x", "resources": {"limits": {"cpu": "2"}}}),
            json!({"image": "x", "resources": {}}),
            json!({"image": "x", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
            json!({"image": "x", "volumes": [{"name": "v", "mountPath": "/v", "emptyDir": {"sizeLimit": null}}]}),
            json!({"image": "x", "governance": {}}),
            json!({"image": "x", "command": null, "args": null, "env": null}),
            json!({"image": "x", "env": [{"name": "A", "value": null}]}),
        ]),
        each("schema-pruning", &[
            json!({"image": "x", "unknown": {"deep": [1, {"a": 2}]}}),
            json!({"image": "x", "transport": {"unknown": 1}, "env": [{"name": "A", "unknown": 1}]}),
        ]),
        case("schema-other-members")
            .post("mcpservers?dryRun=All", &with(server("a", &json!({"image": "x"})), &json!({"unknown": 1, "data": {"a": 1}})))
            .post("mcpservers?dryRun=All", &json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a"}}))
            .post("mcpservers?dryRun=All", &with(server("a", &json!({"image": "x"})), &json!({"status": {"tools": "x"}}))),
        case("schema-of-updates")
            .post("mcpservers", &server("a", &json!({"image": "x"})))
            .merge("mcpservers/a", &json!({"spec": {"remote": {"url": "https://x/mcp"}}}))
            .merge("mcpservers/a", &json!({"spec": {"image": null, "command": ["x"]}}))
            .merge("mcpservers/a", &json!({"spec": {"transport": {"type": null}}})),
        validation,
        validation_of_updates,
        case("schema-of-built-in-kinds")
            .post("secrets", &secret("a", &json!({"data": {"a": "!"}})))
            .post("secrets", &secret("a", &json!({"data": {"a": 1}})))
            .post("secrets", &secret("a", &json!({"data": ["a"]})))
            .post("secrets", &secret("a", &json!({"immutable": "yes"})))
            .post("configmaps", &with(config("a", &json!({})), &json!({"binaryData": {"a": "?"}})))
            .post("leases", &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"}, "spec": {"leaseDurationSeconds": "x"}}))
            .post("leases", &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"}, "spec": {"renewTime": "yesterday"}}))
            .post("leases", &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"}, "spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}})),
    ]
}
