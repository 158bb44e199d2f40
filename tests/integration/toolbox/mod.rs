//! Toolboxes by `perch up`: several real servers behind one endpoint.

mod eras;
mod members;
mod users;

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Perch, Session, fixture, perch, send, wait};

const VERSION: &str = "2026-07-28";
const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

fn conformance_fixture() -> String {
    let perch = Path::new(env!("CARGO_BIN_EXE_perch"));
    let path = perch.parent().unwrap().join("examples/mcp-conformance-fixture");
    assert!(path.exists(), "{} is built by `cargo build --example mcp-conformance-fixture`", path.display());
    path.display().to_string()
}

fn up(dir: &tempfile::TempDir) -> Perch {
    Perch::up(dir.path(), &["--runtime", "process"])
}

fn stdio() -> Value {
    json!({"command": [fixture(), "stdio"]})
}

fn http() -> Value {
    json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp"}})
}

/// What a test asks of toolboxes.
trait Toolboxes {
    fn toolbox(&self, spec: &Value) -> String;
    fn toolbox_status(&self) -> Value;
    fn until_toolbox(&self, reason: &str) -> Value;
}

impl Toolboxes for Perch {
    /// Applies the toolbox `dev`, and gives its URL once the gateway knows it.
    fn toolbox(&self, spec: &Value) -> String {
        let object = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpToolbox", "metadata": {"name": "dev"}, "spec": spec});
        self.ok_with(&["apply", "-f", "-"], &object.to_string());
        let url = format!("{}/default/toolboxes/dev/mcp", self.gateway);
        wait("the gateway to know the toolbox", || (send("POST", &url, &[], LIST).0 != 404).then_some(()));
        url
    }

    fn toolbox_status(&self) -> Value {
        serde_json::from_str::<Value>(&self.ok(&["get", "mcpt", "dev", "-o", "json"])).unwrap()["status"].take()
    }

    fn until_toolbox(&self, reason: &str) -> Value {
        wait(&format!("the toolbox to be {reason}"), || {
            Some(self.toolbox_status()).filter(|status| condition(status, "Ready").1 == reason)
        })
    }
}

fn condition(status: &Value, type_: &str) -> (String, String, String) {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|c| c["type"] == type_).unwrap_or_default();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}

fn names(result: &Value, kind: &str, id: &str) -> Vec<String> {
    let items = result["result"][kind].as_array().unwrap_or_else(|| panic!("{result}"));
    items.iter().map(|item| item[id].as_str().unwrap().to_owned()).collect()
}

fn tools(session: &Session) -> Vec<String> {
    names(&session.request("tools/list", &json!({})), "tools", "name")
}

fn with_meta(mut params: Value) -> Value {
    let meta = params.as_object_mut().unwrap().entry("_meta").or_insert_with(|| json!({}));
    meta["io.modelcontextprotocol/protocolVersion"] = VERSION.into();
    meta["io.modelcontextprotocol/clientCapabilities"] = json!({});
    params
}

fn headers<'a>(method: &'a str, params: &'a Value) -> Vec<(&'static str, &'a str)> {
    let mut headers = vec![("MCP-Protocol-Version", VERSION), ("Mcp-Method", method)];
    headers.extend(params["name"].as_str().or(params["uri"].as_str()).map(|name| ("Mcp-Name", name)));
    headers
}

/// A request of a modern client: the last message of its answer.
fn modern(url: &str, method: &str, params: Value) -> Value {
    modern_with(url, method, params, &[])
}

fn modern_with(url: &str, method: &str, params: Value, more: &[(&str, &str)]) -> Value {
    let params = with_meta(params);
    let request = json!({"jsonrpc": "2.0", "id": "m", "method": method, "params": params});
    let mut headers = headers(method, &params);
    headers.extend(more);
    let (status, _, body) = send("POST", url, &headers, &request.to_string());
    let last = body.lines().filter_map(|l| l.strip_prefix("data: ")).next_back().map(str::to_owned);
    serde_json::from_str(&last.unwrap_or(body.clone())).unwrap_or_else(|_| panic!("{status} {body}"))
}

#[test]
fn several_servers_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &stdio());
    up.apply("b", &http());
    up.until("a", "Ready");
    up.until("b", "Ready");
    let url = up.toolbox(&json!({"servers": [
        {"name": "a", "tools": {"deny": ["crash"], "rename": [{"name": "whoami", "to": "who"}]}},
        {"name": "b", "prefix": "bee-", "tools": {"allow": ["echo"]}},
    ]}));
    let session = Session::open(&url);
    let expected = ["a_echo", "a_slow", "who", "a_write", "a_connect", "a_env", "bee-echo"];
    assert_eq!(tools(&session), expected);
    for tool in ["a_echo", "bee-echo"] {
        assert_eq!(session.text(tool, &json!({"text": tool})), tool);
    }
    assert!(!session.text("who", &json!({})).is_empty());
    for hidden in ["a_crash", "a_whoami", "bee-slow", "echo", "c_echo"] {
        let answer = session.call(hidden, &json!({}));
        assert_eq!(answer["error"]["message"], format!("Unknown tool: {hidden}"), "{answer}");
    }
    assert_eq!(session.request("ping", &json!({}))["result"], json!({}));
    assert_eq!(names(&session.request("prompts/list", &json!({})), "prompts", "name"), Vec::<String>::new());
    let wrong = session.request("tools/list", &json!({"cursor": "x"}));
    assert_eq!(wrong["error"]["code"], -32602, "{wrong}");

    let status = up.until_toolbox("Ready");
    assert_eq!((&status["serversReady"], &status["tools"]), (&json!("2/2"), &json!(7)), "{status}");
    assert_eq!(status["url"], url);
    assert_eq!(status["observedGeneration"], 1);
    let line = up.ok(&["get", "mcptoolboxes"]);
    let row: Vec<&str> = line.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["dev", "True", "2/2", "7"], "{line}");
    let shown = perch(&["get", "toolboxes", "--data-dir", dir.path().to_str().unwrap()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("SERVERS") && shown.contains("2/2"), "{shown}");
    assert!(up.ok(&["explain", "mcptoolbox.spec.conflictPolicy"]).contains("several servers have"));

    // A session is one of this toolbox, and ends when its client says so.
    let server = format!("{}/default/a/mcp", up.gateway);
    let id = [("Mcp-Session-Id", session.id.as_str())];
    assert_eq!(send("POST", &server, &id, LIST).0, 404);
    assert!((200..300).contains(&send("DELETE", &url, &id, "").0));
    assert_eq!(send("POST", &url, &id, LIST).0, 404, "the session ended");
    let missing = format!("{}/default/toolboxes/nobody/mcp", up.gateway);
    let (status, _, body) = send("POST", &missing, &[], LIST);
    assert!(status == 404 && body.contains("there is no toolbox nobody"), "{status} {body}");
    let (_, _, index) = send("GET", &up.gateway, &[], "");
    assert!(index.contains(&url), "{index}");
}

#[test]
fn nothing_is_written_at_rest() {
    let dir = tempfile::tempdir().unwrap();
    let audit = dir.path().join("audit.log");
    let arguments = ["--runtime", "process", "--audit-log", audit.to_str().unwrap()];
    let up = Perch::up(&dir.path().join("data"), &arguments);
    up.apply("a", &stdio());
    up.until("a", "Ready");
    up.toolbox(&json!({"servers": [{"name": "a"}]}));
    up.until_toolbox("Ready");
    let looks = || {
        let log = std::fs::read_to_string(&audit).unwrap_or_default();
        let of_toolbox = log.lines().filter(|l| l.contains("default/toolboxes/dev") && l.contains("tools/list"));
        of_toolbox.count()
    };
    let version = || {
        let object: Value = serde_json::from_str(&up.ok(&["get", "mcpt", "dev", "-o", "json"])).unwrap();
        object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    };
    let before = version();
    // A change of a server makes the controller look again, and there is nothing new to see. What the
    // first look writes is there before the second one begins.
    for team in ["red", "blue"] {
        let seen = looks();
        up.ok(&["label", "mcpserver", "a", &format!("team={team}"), "--overwrite"]);
        wait("another look", || (looks() > seen).then_some(()));
    }
    assert_eq!(version(), before);
}

#[test]
fn a_rule_decides_about_a_name_that_is_there_twice() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    for (name, said) in [("a", "one"), ("b", "two")] {
        let mut spec = stdio();
        spec["env"] = json!([{"name": "SAID", "value": said}]);
        up.apply(name, &spec);
        up.until(name, "Ready");
    }
    let servers =
        json!([{"name": "a", "tools": {"allow": ["env"]}}, {"name": "b", "tools": {"allow": ["env", "echo"]}}]);
    let url = up.toolbox(&json!({"conflictPolicy": "First", "servers": servers}));
    let session = Session::open(&url);
    assert_eq!(tools(&session), ["env", "echo"]);
    assert_eq!(session.text("env", &json!({"name": "SAID"})), "one");
    assert_eq!(session.text("echo", &json!({"text": "x"})), "x");
    let status = wait("the conflict to be told", || {
        Some(up.toolbox_status()).filter(|status| condition(status, "Conflicting").0 == "True")
    });
    assert!(condition(&status, "Conflicting").2.contains("env (a, b)"), "{status}");
    assert_eq!(condition(&status, "Ready").0, "True");

    up.toolbox(&json!({"conflictPolicy": "Reject", "servers": servers}));
    wait("the other rule", || (tools(&session) == ["echo"]).then_some(()));
    let answer = session.call("env", &json!({"name": "SAID"}));
    assert!(answer["error"]["message"].as_str().unwrap().contains("servers a and b all have it"), "{answer}");

    up.toolbox(&json!({"servers": servers}));
    wait("the third rule", || (tools(&session) == ["a_env", "b_echo", "b_env"]).then_some(()));
    assert_eq!(session.text("b_env", &json!({"name": "SAID"})), "two");
    wait("no conflict", || condition(&up.toolbox_status(), "Conflicting").0.is_empty().then_some(()));
}

#[test]
fn servers_are_selected_by_their_labels() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    for name in ["a", "b"] {
        up.apply(name, &stdio());
        up.until(name, "Ready");
    }
    up.ok(&["label", "mcpserver", "a", "team=red"]);
    let url = up.toolbox(&json!({"selector": {"matchLabels": {"team": "red"}}}));
    let session = Session::open(&url);
    let has = |server: &str| tools(&session).iter().any(|tool| tool.starts_with(server));
    wait("the first server", || has("a_").then_some(()));
    assert!(!has("b_"));
    up.ok(&["label", "mcpserver", "b", "team=red"]);
    wait("the second server", || has("b_").then_some(()));
    wait("both in the status", || (up.toolbox_status()["serversReady"] == "2/2").then_some(()));
    up.ok(&["label", "mcpserver", "a", "team-"]);
    wait("one less", || (!has("a_")).then_some(()));
    up.ok(&["label", "mcpserver", "b", "team-"]);
    up.until_toolbox("NoServers");
}

#[test]
fn a_spec_that_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    for (spec, why) in [
        (json!({}), "the toolbox is empty"),
        (json!({"servers": [{"name": "a"}, {"name": "a"}]}), "Duplicate value"),
        (json!({"servers": [{"name": "a", "prefix": "a b"}]}), "prefix"),
        (json!({"servers": [{"name": "a"}], "access": {}}), "nobody may use the toolbox"),
        (json!({"servers": [{"name": "a"}], "conflictPolicy": "Last"}), "Unsupported value"),
        (
            json!({"servers": [{"name": "a", "tools": {"rename": [{"name": "x", "to": "z"}, {"name": "y", "to": "z"}]}}]}),
            "two tools of one server",
        ),
    ] {
        let object = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpToolbox", "metadata": {"name": "dev"}, "spec": spec});
        let said = up.fails(&["apply", "-f", "-"], &object.to_string());
        assert!(said.contains(why), "{why}: {said}");
    }
    let odd = json!({"selector": {"matchExpressions": [{"key": "team", "operator": "Like", "values": ["red"]}]}});
    up.toolbox(&odd);
    let status = up.until_toolbox("InvalidSelector");
    assert!(condition(&status, "Ready").2.contains("spec.selector"), "{status}");
}
