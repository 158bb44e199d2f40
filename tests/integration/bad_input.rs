//! Mistakes on the wire: each is answered with the Kubernetes Status that a cluster gives, which
//! names the field and what to do, and nothing of it is kept.

use serde_json::{Value, json};

use crate::support::{Perch, Wire};

const SERVERS: &str = "/apis/perch.dev/v1alpha1/namespaces/default/mcpservers";

fn server(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name}, "spec": spec})
}

/// Checks a refusal: code, reason, and parts of the message.
#[track_caller]
fn refused((code, _, body): (u16, String, Value), expected: u16, reason: &str, parts: &[&str]) {
    let short: String = body.to_string().chars().take(600).collect();
    assert_eq!((code, body["reason"].as_str()), (expected, Some(reason)), "{short}");
    assert_eq!((&body["kind"], &body["status"]), (&json!("Status"), &json!("Failure")), "{short}");
    assert_eq!(body["code"], expected, "{short}");
    let message = body["message"].as_str().unwrap();
    for part in parts {
        assert!(message.contains(part), "{part:?} in {short}");
    }
}

#[test]
fn each_mistake_has_its_status() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    let wire = Wire::to(&up);
    let create = |spec: Value| wire.json("POST", SERVERS, &server("bad", spec));
    let strict = format!("{SERVERS}?fieldValidation=Strict");

    // What is sent is no object at all.
    let broken = wire.send("POST", SERVERS, "application/json", r#"{"apiVersion": "#);
    refused(broken, 400, "BadRequest", &["must be of type McpServer", "unexpected end of JSON input"]);
    let broken = wire.send("POST", SERVERS, "application/json", [0xff, 0xfe, 0x00]);
    refused(broken, 400, "BadRequest", &["must be of type McpServer", "json parse error"]);
    refused(wire.send("POST", SERVERS, "application/json", "[]"), 400, "BadRequest", &[]);
    let text = wire.send("POST", SERVERS, "text/plain", "hello");
    refused(text, 415, "UnsupportedMediaType", &["unknown format", "application/json"]);

    // It is an object, but of another kind, place or size.
    let mut other = server("bad", json!({"image": "x"}));
    other["kind"] = "McpSirver".into();
    refused(wire.json("POST", SERVERS, &other), 422, "Invalid", &["\"McpSirver\"", "must be McpServer"]);
    let mut elsewhere = server("bad", json!({"image": "x"}));
    elsewhere["metadata"]["namespace"] = "other".into();
    refused(wire.json("POST", SERVERS, &elsewhere), 400, "BadRequest", &["namespace"]);
    let nowhere = SERVERS.replace("default", "nowhere");
    let absent = wire.json("POST", &nowhere, &server("bad", json!({"image": "x"})));
    refused(absent, 404, "NotFound", &["namespaces \"nowhere\" not found"]);
    for mebibytes in [2, 4] {
        let large = json!({"image": "x", "env": [{"name": "A", "value": "v".repeat(mebibytes << 20)}]});
        refused(create(large), 413, "RequestEntityTooLarge", &["too large", "limit is"]);
    }

    // Fields.
    let unknown = wire.json("POST", &strict, &server("bad", json!({"image": "x", "imagee": "y"})));
    refused(unknown, 400, "BadRequest", &["strict decoding error", "unknown field \"spec.imagee\""]);
    let twice = r#"{"apiVersion":"perch.dev/v1alpha1","kind":"McpServer","metadata":{"name":"bad"},"spec":{"image":"a","image":"b"}}"#;
    let twice = wire.send("POST", &strict, "application/json", twice);
    refused(twice, 400, "BadRequest", &["duplicate field \"spec.image\""]);
    for (spec, field, parts) in [
        (json!({"image": 7}), "spec.image", &["must be of type string"][..]),
        (json!({"image": "x", "replicas": -1}), "spec.replicas", &["greater than or equal to 0"]),
        (json!({"image": "x", "transport": {"type": "Carrier"}}), "spec.transport.type", &["\"Stdio\""]),
        (json!({"image": "x", "network": {"tier": 1}}), "spec.network.tier", &["string"]),
        (json!({"image": "x", "env": [{"value": "v"}]}), "spec.env[0].name", &["Required value"]),
        (
            json!({"image": "x", "remote": {"url": "https://x/mcp"}, "transport": {"type": "StreamableHttp"}}),
            "spec",
            &["set only one of image, package and remote"],
        ),
        (json!({}), "spec", &["nothing to run"]),
        (
            json!({"image": "x", "resources": {"limits": {"memory": "lots"}}}),
            "spec.resources.limits.memory",
            &["\"lots\""],
        ),
    ] {
        let answer = create(spec);
        let fields: Vec<Value> =
            answer.2["details"]["causes"].as_array().into_iter().flatten().map(|c| c["field"].clone()).collect();
        assert!(fields.contains(&json!(field)), "{field}: {}", answer.2);
        refused(answer, 422, "Invalid", &[&[field, "McpServer.perch.dev \"bad\" is invalid"], parts].concat());
    }
    let named = wire.json("POST", SERVERS, &server("Bad_Name", json!({"image": "x"})));
    refused(named, 422, "Invalid", &["metadata.name", "RFC 1123"]);

    // Nobody asked for it in this way.
    let list = wire.json("GET", &format!("{SERVERS}?limit=many"), &Value::Null);
    refused(list, 400, "BadRequest", &["\"many\"", "invalid syntax"]);
    let list = wire.json("GET", &format!("{SERVERS}?labelSelector=a%20in%20b"), &Value::Null);
    refused(list, 400, "BadRequest", &[]);
    refused(wire.json("PUT", SERVERS, &json!({})), 400, "BadRequest", &["name must be provided"]);
    let configs = "/api/v1/namespaces/default/configmaps";
    refused(wire.json("PUT", configs, &json!({})), 405, "MethodNotAllowed", &[]);
    refused(wire.json("GET", "/api/v1/nothings", &Value::Null), 404, "NotFound", &[]);
    assert_eq!(up.ok(&["get", "mcps,controllerrevisions,events", "-o", "name"]), "", "nothing of it is kept");
}

#[test]
fn a_refused_change_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    let wire = Wire::to(&up);
    let a = format!("{SERVERS}/a");
    let suspended = server("a", json!({"command": ["true"], "suspend": true}));
    assert_eq!(wire.json("POST", SERVERS, &suspended).0, 201);
    up.until("a", "Suspended");
    // The last that is found out of a server that does not run.
    up.ok(&["wait", "mcps", "a", "--for=condition=NetworkEnforced=false", "--timeout=60s"]);
    let first = wire.json("GET", &a, &Value::Null).2;
    let mut newer = first.clone();
    newer["spec"]["replicas"] = 2.into();
    let (code, _, newer) = wire.json("PUT", &a, &newer);
    assert_eq!(code, 200, "{newer}");
    up.ok(&["wait", "mcps", "a", "--for=jsonpath={.status.observedGeneration}=2", "--timeout=60s"]);
    let before = wire.json("GET", &a, &Value::Null).2;

    refused(
        wire.json("POST", SERVERS, &suspended),
        409,
        "AlreadyExists",
        &["mcpservers.perch.dev \"a\" already exists"],
    );
    let stale = wire.json("PUT", &a, &first);
    refused(stale, 409, "Conflict", &["the object has been modified", "latest version"]);
    let patch = json!({"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "spec": {"replicas": 7}});
    let stale = wire.send("PATCH", &a, "application/merge-patch+json", patch.to_string());
    refused(stale, 409, "Conflict", &["the object has been modified"]);
    let mut renamed = before.clone();
    renamed["metadata"]["name"] = "b".into();
    refused(wire.json("PUT", &a, &renamed), 400, "BadRequest", &["name"]);
    let mut another = before.clone();
    another["metadata"]["uid"] = "0".into();
    refused(wire.json("PUT", &a, &another), 409, "Conflict", &["UID"]);

    for (media_type, body) in [
        ("application/json", "{}"),
        ("application/strategic-merge-patch+json", "{}"),
        ("text/plain", "hello"),
        ("", "{}"),
    ] {
        let wrong = wire.send("PATCH", &a, media_type, body);
        refused(wrong, 415, "UnsupportedMediaType", &["application/merge-patch+json"]);
    }
    let broken = wire.send("PATCH", &a, "application/merge-patch+json", "{");
    refused(broken, 400, "BadRequest", &["error decoding patch", "unexpected end of JSON input"]);
    refused(wire.send("PATCH", &a, "application/json-patch+json", "{}"), 400, "BadRequest", &[]);
    let patch = r#"[{"op": "test", "path": "/spec/replicas", "value": 9}]"#;
    refused(wire.send("PATCH", &a, "application/json-patch+json", patch), 422, "Invalid", &[]);
    let patch = r#"{"spec": {"replicas": "many"}}"#;
    let wrong = wire.send("PATCH", &a, "application/merge-patch+json", patch);
    refused(wrong, 422, "Invalid", &["spec.replicas", "must be of type integer"]);
    let apply = wire.send("PATCH", &a, "application/apply-patch+yaml", "spec: {}");
    refused(apply, 422, "Invalid", &["PatchOptions", "fieldManager", "Required value"]);
    let precondition = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "0"}});
    refused(wire.json("DELETE", &a, &precondition), 409, "Conflict", &["UID"]);
    refused(wire.json("DELETE", &a, &Value::Null), 400, "BadRequest", &["cannot unmarshal null"]);
    let nobody = wire.send("DELETE", &format!("{SERVERS}/nobody"), "application/json", "");
    refused(nobody, 404, "NotFound", &["mcpservers.perch.dev \"nobody\" not found"]);

    // Unknown fields are told and dropped where nobody asked for more.
    let warned = wire.send("PATCH", &a, "application/merge-patch+json", r#"{"spec": {"imagee": "x"}}"#);
    assert_eq!(warned.0, 200);
    assert!(warned.1.contains("unknown field") && warned.1.contains("spec.imagee"), "{}", warned.1);
    let after = wire.json("GET", &a, &Value::Null).2;
    assert_eq!(after, before, "not even the resource version");
}

#[test]
fn without_the_token_nobody_comes_in() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    let kubeconfig = std::fs::read_to_string(dir.path().join("kubeconfig")).unwrap();
    let token = kubeconfig.split_once("token: ").unwrap().1.lines().next().unwrap().to_owned();
    for wrong in ["x".repeat(token.len()), token[1..].to_owned(), format!("{token}x")] {
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig.replace(&token, &wrong)).unwrap();
        refused(Wire::to(&up).json("GET", SERVERS, &Value::Null), 401, "Unauthorized", &["Unauthorized"]);
    }
}
