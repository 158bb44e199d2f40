//! Arguments of tools against the schemas that servers list, where the server's spec asks for it.

use serde_json::{Value, json};

use crate::{
    eras,
    support::{Perch, Session, fixture, send, wait},
};

fn with_checks(mut spec: Value) -> Value {
    spec["gateway"] = json!({"validateArguments": true});
    spec
}

/// A call in a session, with the version in its header or not.
fn call(session: &Session, url: &str, version: &str, arguments: &Value) -> Value {
    let params = json!({"name": "echo", "arguments": arguments});
    let body = json!({"jsonrpc": "2.0", "id": "t", "method": "tools/call", "params": params}).to_string();
    let (status, _, body) =
        send("POST", url, &[("Mcp-Session-Id", &session.id), ("MCP-Protocol-Version", version)], &body);
    assert_eq!(status, 200, "{body}");
    let last = body.lines().filter_map(|l| l.strip_prefix("data: ")).next_back().map(str::to_owned);
    serde_json::from_str(&last.unwrap_or(body)).unwrap()
}

#[test]
fn wrong_arguments_do_not_reach_a_server_that_wants_them_checked() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    let mut solo = eras::spec("stdio", "legacy");
    solo["transport"]["sessions"] = "PerSession".into();
    let servers = [
        ("http-legacy", eras::spec("http", "legacy")),
        ("http-modern", eras::spec("http", "modern")),
        ("stdio-legacy", eras::spec("stdio", "legacy")),
        ("stdio-modern", eras::spec("stdio", "modern")),
        ("stdio-own", solo),
    ];
    for (name, spec) in &servers {
        up.apply(name, &with_checks(spec.clone()));
    }
    for (name, spec) in &servers {
        up.until(name, "Ready");
        let url = format!("{}/default/{name}/mcp", up.gateway);
        let session = Session::open(&url);
        let (good, bad) = (json!({"text": "é"}), json!({"text": ["a secret"]}));

        let refused = call(&session, &url, "2025-11-25", &bad);
        let said = refused["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{name}: {refused}"));
        assert_eq!(refused["result"]["isError"], true, "{name}: {refused}");
        assert!(said.contains("/text: ") && said.contains("string") && !said.contains("secret"), "{name}: {said}");
        let refused = call(&session, &url, "", &bad);
        assert_eq!(refused["error"]["code"], -32602, "{name}: older versions have errors for it: {refused}");
        let passed = call(&session, &url, "2025-11-25", &good);
        assert_eq!(passed["result"]["content"][0]["text"], "é", "{name}: {passed}");

        let (_, refused) = eras::modern(&url, "tools/call", json!({"name": "echo", "arguments": bad}), &json!({}));
        let result = &refused["result"];
        assert_eq!(
            (&result["isError"], &result["resultType"]),
            (&json!(true), &json!("complete")),
            "{name}: {refused}"
        );
        let (_, passed) = eras::modern(&url, "tools/call", json!({"name": "echo", "arguments": good}), &json!({}));
        assert_eq!(passed["result"]["content"][0]["text"], "é", "{name}: {passed}");
        let (_, unknown) = eras::modern(&url, "tools/call", json!({"name": "none", "arguments": {}}), &json!({}));
        assert!(unknown["error"].is_object() || unknown["result"]["isError"] == true, "{name}: {unknown}");

        // The server itself would have taken them; that it is asked again replaces no instance.
        let revision = up.status(name)["currentRevision"].clone();
        up.apply(name, spec);
        wait("the checks to end", || {
            call(&session, &url, "2025-11-25", &bad)["result"].get("isError").is_none_or(|e| e == false).then_some(())
        });
        assert_eq!(up.status(name)["currentRevision"], revision, "{name}");
    }
    let metrics = metrics(&up);
    assert!(metrics.contains(r#"outcome="invalid_params""#), "{metrics}");
}

fn metrics(up: &Perch) -> String {
    let url = up.output().lines().find_map(|l| l.strip_prefix("Metrics  ").map(str::to_owned)).unwrap();
    let all = send("GET", &url, &[], "").2;
    all.lines().filter(|l| !l.contains("_bucket{")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_schema_that_is_no_use_refuses_nobody_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    for (name, schema) in [("broken", r#"{"type": 5}"#), ("endless", r##"{"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}"##)]
    {
        let command = json!([fixture(), "http", "--schema", schema]);
        up.apply(name, &with_checks(json!({"command": command, "transport": {"type": "StreamableHttp"}})));
    }
    for (name, reason) in [("broken", "InvalidSchema"), ("endless", "TooCostly")] {
        up.until(name, "Ready");
        let session = up.session(name);
        assert_eq!(session.text("echo", &json!({"text": "passes"})), "passes");
        let metrics = metrics(&up);
        let line = format!(r#"perch_gateway_unchecked_arguments_total{{server="default/{name}",reason="{reason}"}} 1"#);
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
}

#[test]
fn a_server_that_changes_a_schema_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("schema.json");
    std::fs::write(&file, r#"{"required": ["a"]}"#).unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    let command = json!([fixture(), "stdio", "--schema-file", file]);
    up.apply("a", &with_checks(json!({"command": command, "transport": {"type": "Stdio"}})));
    up.until("a", "Ready");
    let (url, session) = (format!("{}/default/a/mcp", up.gateway), up.session("a"));
    let passes = |arguments: Value| call(&session, &url, "2025-11-25", &arguments)["result"]["isError"] != true;
    assert!(passes(json!({"a": 1})) && !passes(json!({"b": 1})));
    std::fs::write(&file, r#"{"required": ["b"]}"#).unwrap();
    wait("the new schema", || passes(json!({"b": 1})).then_some(()));
    assert!(!passes(json!({"a": 1})));
}
