use serde_json::json;

use super::*;

fn schema() -> Schema {
    let crd = crate::api::crds::all().remove(0);
    let openapi = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    Schema::compile(&serde_json::to_value(openapi).unwrap()).unwrap()
}

fn server(spec: Value) -> Value {
    json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "x"}, "spec": spec})
}

fn problems(spec: Value) -> Vec<String> {
    let schema = schema();
    let mut object = server(spec);
    schema.default(&mut object);
    let mut causes = schema.validate(&object);
    // That rules were not checked is said once, and tested where they are.
    causes.extend(schema.broken_rules(&object, None, &causes).into_iter().filter(|c| c.field != "<nil>"));
    causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

#[test]
fn defaults_fill_what_is_not_given() {
    let mut object = server(json!({"image": "x:1", "network": {}}));
    schema().default(&mut object);
    assert_eq!(object["spec"]["replicas"], 1);
    assert_eq!(object["spec"]["transport"], json!({"type": "Stdio", "path": "/mcp", "sessions": "Shared"}));
    assert_eq!(object["spec"]["network"]["tier"], "Internal");
    assert_eq!(object["spec"]["resources"]["limits"], json!({"cpu": "500m", "memory": "256Mi"}));
    let once = object.clone();
    schema().default(&mut object);
    assert_eq!(object, once);
}

#[test]
fn what_the_schema_does_not_know_goes_and_is_named() {
    let mut object = server(json!({"image": "x:1", "imagee": "y", "env": [{"name": "A", "vlaue": "b"}]}));
    assert_eq!(schema().prune(&mut object), ["spec.env[0].vlaue", "spec.imagee"]);
    assert_eq!(object, server(json!({"image": "x:1", "env": [{"name": "A"}]})));
    assert!(schema().prune(&mut object).is_empty());
}

#[test]
fn a_good_server_has_no_problems() {
    assert_eq!(problems(json!({"image": "x:1"})), Vec::<String>::new());
    assert_eq!(
        problems(json!({"command": ["mcp-server-time"], "resources": {"limits": {"cpu": 1}}})),
        Vec::<String>::new()
    );
}

#[test]
fn each_problem_is_told_as_kubernetes_tells_it() {
    assert_eq!(
        problems(json!({"image": "x:1", "transport": {"type": "Carrier"}})),
        ["spec.transport.type: Unsupported value: \"Carrier\": supported values: \"Stdio\", \"StreamableHttp\""]
    );
    assert_eq!(
        problems(json!({"image": "x:1", "replicas": "two"})),
        ["spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\""]
    );
    assert_eq!(
        problems(json!({"image": "x:1", "replicas": -1})),
        ["spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0"]
    );
    assert_eq!(
        problems(json!({"image": "x:1", "package": {"registry": "Npm", "name": "x"}})),
        ["spec.package.version: Required value"]
    );
    assert_eq!(
        problems(json!({"image": "x:1", "env": [{"name": "A"}, {"name": "A"}]})),
        ["spec.env[1]: Duplicate value: {\"name\":\"A\"}"]
    );
}

#[test]
fn rules_say_what_to_do() {
    assert_eq!(
        problems(json!({})),
        [
            "spec: Invalid value: nothing to run: set one of image, package or remote, or give a command to run as a local process"
        ]
    );
    assert_eq!(
        problems(
            json!({"image": "x", "remote": {"url": "https://a.example/mcp"}, "transport": {"type": "StreamableHttp"}})
        ),
        ["spec: Invalid value: set only one of image, package and remote"]
    );
    assert_eq!(
        problems(
            json!({"image": "x", "env": [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]})
        ),
        ["spec.env[0]: Invalid value: set value or valueFrom, not both"]
    );
}

#[test]
fn a_bad_quantity_is_refused() {
    let found = problems(json!({"image": "x", "resources": {"limits": {"memory": "lots"}}}));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("spec.resources.limits.memory: Invalid value: \"lots\""), "{found:?}");
}

#[test]
fn what_the_schema_admits_can_be_read_by_every_client() {
    for spec in [
        json!({"image": "x", "replicas": 1.0, "security": {"runAsUser": 2e4}, "probe": {"failureThreshold": 1e1}}),
        json!({"image": "x", "probe": {"period": "1.5h", "timeout": "999999h999999h", "initialDelay": "1h30m"}}),
        json!({"image": "x", "resources": {"limits": {"cpu": 2, "memory": 1_000_000_000_i64}, "requests": {"cpu": "1e1"}}}),
        json!({"image": "x", "replicas": null, "env": null, "transport": null, "suspend": null}),
    ] {
        let mut object = server(spec.clone());
        schema().default(&mut object);
        assert_eq!(schema().validate(&object), vec![], "{spec}");
        let read = serde_json::from_value::<crate::api::mcp_server::McpServer>(object);
        assert!(read.is_ok(), "{spec}: {read:?}");
    }
    for spec in [
        json!({"image": "x", "replicas": 1.5}),
        json!({"image": "x", "replicas": 1e300}),
        json!({"image": "x", "probe": {"period": "99999999999999999999h"}}),
        json!({"image": "x", "probe": {"period": "1h".repeat(40)}}),
        json!({"image": "x", "resources": {"limits": {"memory": u64::MAX}}}),
        json!({"image": "x", "resources": {"limits": {"cpu": 1.5}}}),
    ] {
        assert!(!problems(spec.clone()).is_empty(), "{spec}");
    }
}

#[test]
fn numbers_in_a_status_have_the_bits_that_clients_read() {
    let mut object = server(json!({"image": "x"}));
    schema().default(&mut object);
    object["status"] = json!({"restarts": 99_999_999_999_i64, "observedGeneration": 99_999_999_999_i64});
    let problems = schema().validate(&object);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].message.ends_with("integer with format int32 in status.restarts"), "{problems:?}");
}

#[test]
fn managed_fields_have_a_form() {
    let mut object = server(json!({"image": "x"}));
    schema().default(&mut object);
    object["metadata"]["managedFields"] = json!([{"manager": "m", "time": "yesterday"}]);
    let mismatch = crate::local::objects::typed::mismatch(schema().root(), &object, "McpServer");
    assert!(mismatch.unwrap().starts_with("parsing time \"yesterday\""));
}

#[test]
fn a_name_leaves_room_for_what_is_made_from_it() {
    let named = |length: usize| {
        let mut object = server(json!({"image": "x"}));
        object["metadata"]["name"] = "x".repeat(length).into();
        schema().default(&mut object);
        schema().broken_rules(&object, None, &[])
    };
    assert_eq!(named(52), vec![]);
    assert!(named(53)[0].message.contains("at most 52 characters"), "{:?}", named(53));
}

#[test]
fn rules_are_asked_again_only_about_what_changed() {
    let mut old = server(json!({"image": "x"}));
    old["metadata"]["name"] = "x".repeat(53).into();
    let told = |new: &Value| schema().broken_rules(new, Some(&old), &[]).len();
    let mut status = old.clone();
    status["status"] = json!({"phase": "Ready"});
    assert_eq!(told(&status), 0, "nothing that a rule is about has changed");
    let mut spec = old.clone();
    spec["spec"]["image"] = "y".into();
    assert_eq!(told(&spec), 1);
    let mut more = old.clone();
    more["more"] = json!({});
    assert_eq!(told(&more), 1);
}
