//! Toolboxes by `perch up`: several real servers behind one endpoint.

use std::{path::Path, time::Duration};

use http_body_util::{BodyExt, Full};
use perch::gateway::access::api_key;
use serde_json::{Value, json};

use crate::{
    access::{User, ask},
    support::{PATIENCE, Perch, Session, fixture, perch, send, wait},
};

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

/// Opens a stream and gives its messages as they come, until `act` has seen enough.
fn events(method: &str, url: &str, headers: &[(&str, &str)], body: &str, mut act: impl FnMut(&Value) -> bool) {
    let request = headers.iter().fold(http::Request::builder().method(method).uri(url), |r, (k, v)| r.header(*k, *v));
    let request = request
        .header("Content-Type", "application/json")
        .header("Accept", "application/json, text/event-stream")
        .body(Full::new(bytes::Bytes::from(body.to_owned())))
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let read = async {
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        let mut response = client.request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut text = String::new();
        loop {
            let frame = response.body_mut().frame().await.expect("the stream goes on").unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            while let Some((line, rest)) = text.split_once('\n').map(|(l, r)| (l.to_owned(), r.to_owned())) {
                text = rest;
                let Some(data) = line.strip_prefix("data: ").filter(|d| !d.is_empty()) else { continue };
                if act(&serde_json::from_str(data).unwrap_or_else(|_| panic!("{data}"))) {
                    return;
                }
            }
        }
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, read).await.expect("the events come") });
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
fn a_dead_server_is_left_out_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &stdio());
    up.until("a", "Ready");
    up.apply("dead", &json!({"command": [fixture(), "stdio", "--exit", "3"]}));
    let url = up.toolbox(&json!({"servers": [{"name": "dead"}, {"name": "a"}, {"name": "gone"}]}));
    let session = Session::open(&url);
    let answer = session.request("tools/list", &json!({}));
    assert_eq!(names(&answer, "tools", "name").len(), 7, "{answer}");
    let missing = answer["result"]["_meta"]["perch.dev/unavailable"].as_array().unwrap().clone();
    let missing: Vec<&str> = missing.iter().map(|m| m["server"].as_str().unwrap()).collect();
    assert_eq!(missing, ["dead", "gone"], "{answer}");
    // From now on nobody waits for it.
    let began = std::time::Instant::now();
    tools(&session);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(session.text("a_echo", &json!({"text": "x"})), "x");
    let status = wait("the dead server to be named", || {
        let status = up.toolbox_status();
        let (is_so, _, message) = condition(&status, "Degraded");
        (is_so == "True" && message.contains("dead (") && message.contains("gone (NotFound")).then_some(status)
    });
    assert_eq!(status["serversReady"], "1/3", "{status}");
    let metrics = up.output().lines().find_map(|l| l.strip_prefix("Metrics  ").map(str::to_owned)).unwrap();
    let (_, _, metrics) = send("GET", &metrics, &[], "");
    let counted = r#"perch_gateway_toolbox_servers_left_out_total{namespace="default",toolbox="dev",server="dead"}"#;
    assert!(metrics.contains(counted), "{metrics}");

    // Whoever listens hears that it is there again.
    let headers = [("Mcp-Session-Id", session.id.as_str()), ("MCP-Protocol-Version", "2025-11-25")];
    let mended = std::thread::scope(|scope| {
        scope.spawn(|| up.apply("dead", &stdio()));
        let mut listed = Vec::new();
        events("GET", &url, &headers, "", |message| {
            assert_eq!(message["method"], "notifications/tools/list_changed", "{message}");
            // The stream is read on a runtime, and the list is asked for on another.
            listed = std::thread::scope(|scope| scope.spawn(|| tools(&session)).join().unwrap());
            listed.iter().any(|tool| tool == "dead_echo")
        });
        listed
    });
    assert_eq!(mended.len(), 14);
    assert_eq!(session.text("dead_echo", &json!({"text": "x"})), "x");
    up.toolbox(&json!({"servers": [{"name": "dead"}, {"name": "a"}]}));
    let status = up.until_toolbox("Ready");
    assert_eq!(status["tools"], 14);
    let story = up.ok(&["get", "events", "--field-selector", "involvedObject.kind=McpToolbox"]);
    assert!(story.contains("ServersNotReady") && story.contains("all 2 servers answer"), "{story}");
}

#[test]
fn a_silent_server_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &stdio());
    up.until("a", "Ready");
    up.apply("mute", &json!({"command": [fixture(), "http", "--mute"], "transport": {"type": "StreamableHttp"}}));
    let url = up.toolbox(&json!({"servers": [{"name": "mute"}, {"name": "a"}]}));
    let session = Session::open(&url);
    for limit in [8, 2] {
        let began = std::time::Instant::now();
        let answer = session.request("tools/list", &json!({}));
        assert!(began.elapsed() < Duration::from_secs(limit), "{:?}", began.elapsed());
        assert_eq!(names(&answer, "tools", "name").len(), 7);
        assert_eq!(answer["result"]["_meta"]["perch.dev/unavailable"][0]["server"], "mute", "{answer}");
    }
}

/// A Perch with a server of each kind in one toolbox, and its URL.
fn all(dir: &tempfile::TempDir) -> (Perch, String, Vec<String>) {
    let up = up(dir);
    let kinds = [("http", "legacy"), ("http", "modern"), ("stdio", "legacy"), ("stdio", "modern")];
    let servers: Vec<String> = kinds.iter().map(|(transport, era)| format!("{transport}-{era}")).collect();
    for (name, (transport, era)) in servers.iter().zip(kinds) {
        let type_ = if transport == "http" { "StreamableHttp" } else { "Stdio" };
        let command = json!([conformance_fixture(), transport, "--era", era]);
        up.apply(name, &json!({"command": command, "transport": {"type": type_}}));
    }
    for name in &servers {
        up.until(name, "Ready");
    }
    let members: Vec<Value> = servers.iter().map(|name| json!({"name": name})).collect();
    let url = up.toolbox(&json!({"servers": members}));
    (up, url, servers)
}

#[test]
fn clients_of_both_eras_meet_servers_of_both() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, url, servers) = all(&dir);
    let discovered = modern(&url, "server/discover", json!({}));
    let result = &discovered["result"];
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "dev", "{discovered}");
    let session = Session::open(&url);
    let legacy = |method: &str, params: Value| session.request(method, &params);
    let new = |method: &str, params: Value| modern(&url, method, params);
    for era in ["legacy", "modern"] {
        let ask =
            |method: &str, params: Value| if era == "legacy" { legacy(method, params) } else { new(method, params) };
        let listed = ask("tools/list", json!({}));
        assert!(listed["result"]["_meta"]["perch.dev/unavailable"].is_null(), "{era}: {listed}");
        let tools = names(&listed, "tools", "name");
        let prompts = names(&ask("prompts/list", json!({})), "prompts", "name");
        let resources = names(&ask("resources/list", json!({})), "resources", "uri");
        let templates = ask("resources/templates/list", json!({}));
        let templates = names(&templates, "resourceTemplates", "uriTemplate");
        for server in &servers {
            let what = format!("{era} client, {server}");
            assert!(tools.contains(&format!("{server}_echo")), "{what}: {tools:?}");
            assert!(prompts.contains(&format!("{server}_test_simple_prompt")), "{what}: {prompts:?}");
            assert!(resources.contains(&format!("{server}+test://static-text")), "{what}: {resources:?}");
            assert!(templates.iter().any(|t| t.starts_with(&format!("{server}+test://"))), "{what}: {templates:?}");
            let said = ask("tools/call", json!({"name": format!("{server}_echo"), "arguments": {"text": "é"}}));
            assert_eq!(said["result"]["content"][0]["text"], "é", "{what}: {said}");
            let prompt = ask("prompts/get", json!({"name": format!("{server}_test_simple_prompt")}));
            assert_eq!(prompt["result"]["messages"][0]["role"], "user", "{what}: {prompt}");
            let uri = format!("{server}+test://static-text");
            let read = ask("resources/read", json!({"uri": uri}));
            assert_eq!(read["result"]["contents"][0]["uri"], uri, "{what}: {read}");
            let missing = ask("resources/read", json!({"uri": format!("{server}+test://nothing")}));
            assert!(missing["error"]["code"].is_number(), "{what}: {missing}");
            let completion = json!({"ref": {"type": "ref/prompt", "name": format!("{server}_p")},
                "argument": {"name": "a", "value": "pari"}});
            let completed = ask("completion/complete", completion);
            assert_eq!(completed["result"]["completion"]["values"], json!(["paris"]), "{what}: {completed}");
        }
        let unknown = ask("tools/call", json!({"name": "nothing", "arguments": {}}));
        assert_eq!(unknown["error"]["message"], "Unknown tool: nothing", "{era}");
    }
    for server in &servers {
        let tool = format!("{server}_test_custom_headers");
        let custom = session.call(&tool, &json!({"region": "eu"}));
        assert_eq!(custom["result"]["content"][0]["text"], "done", "{server}: the gateway adds the header: {custom}");
        let arguments = json!({"name": tool, "arguments": {"region": "eu"}});
        let bare = modern(&url, "tools/call", arguments.clone());
        assert_eq!(bare["error"]["code"], -32020, "{server}: {bare}");
        let full = modern_with(&url, "tools/call", arguments, &[("Mcp-Param-Region", "eu")]);
        assert_eq!(full["result"]["content"][0]["text"], "done", "{server}: {full}");
    }
}

#[test]
fn progress_and_changes_pass() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, url, servers) = all(&dir);
    let session = Session::open(&url);
    // What was never asked for cannot change.
    tools(&session);
    modern(&url, "tools/list", json!({}));
    for server in &servers {
        let params = with_meta(json!({"name": format!("{server}_test_tool_with_progress"), "arguments": {},
            "_meta": {"progressToken": "mine"}}));
        let call = json!({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": params});
        let mut heard = Vec::new();
        events("POST", &url, &headers("tools/call", &params), &call.to_string(), |message| {
            heard.push(message.clone());
            message["id"] == 9
        });
        let progress: Vec<f64> = heard.iter().filter_map(|m| m["params"]["progress"].as_f64()).collect();
        assert_eq!(progress, [0.0, 50.0, 100.0], "{server}: {heard:?}");
        assert_eq!(heard[0]["params"]["progressToken"], "mine", "{server}");

        let uri = format!("{server}+test://watched-resource");
        let filter = with_meta(json!({"notifications": {"resourceSubscriptions": [uri]}}));
        let listen = json!({"jsonrpc": "2.0", "id": "l", "method": "subscriptions/listen", "params": filter});
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Nothing shows that the server listens, so changes are made until one is heard.
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    session.text(&format!("{server}_touch"), &json!({"uri": "test://watched-resource"}));
                }
            });
            events("POST", &url, &headers("subscriptions/listen", &filter), &listen.to_string(), |message| {
                let is_update = message["method"] == "notifications/resources/updated";
                if is_update {
                    assert_eq!(message["params"]["uri"], uri, "{message}");
                    assert_eq!(message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "l", "{message}");
                }
                is_update
            });
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
        });
    }
}

#[test]
fn who_may_use_a_toolbox() {
    let dir = tempfile::tempdir().unwrap();
    let key = |user: &str, groups: &[&str]| {
        let (key, hash) = api_key::create();
        (key, json!({"name": user, "hash": hash, "user": user, "groups": groups}))
    };
    let (dana, eve, adam) = (key("dana", &["dev"]), key("eve", &[]), key("adam", &["dev"]));
    let access = json!({
        "apiKeys": [dana.1, eve.1, adam.1],
        "allow": [
            {"users": ["dana"], "servers": ["default/a"]},
            {"users": ["dana"], "servers": ["default/b"], "tools": ["echo"]},
            {"users": ["eve"]},
            {"users": ["adam"], "servers": ["default/other"]},
        ],
        "rateLimits": [{"users": ["dana"], "servers": ["default/b"], "tools": ["echo"], "requests": 1, "period": "1h"}],
    });
    let file = crate::access::write(dir.path(), &access);
    let up = Perch::up(&dir.path().join("data"), &["--runtime", "process", "--access-config", &file]);
    for name in ["a", "b"] {
        up.apply(name, &stdio());
        up.until(name, "Ready");
    }
    let servers = json!([{"name": "a"}, {"name": "b"}]);
    let url = up.toolbox(&json!({"servers": servers, "access": {"groups": ["dev"]}}));
    // Perch itself sees all of it, and says so.
    assert_eq!(up.until_toolbox("Ready")["tools"], 14);

    assert_eq!(ask("POST", &url, &[], LIST).status, 401);
    let user = User::open(&url, &dana.0);
    let listed: Vec<String> = names(&user.send(LIST).json(), "tools", "name");
    assert!(listed.contains(&"a_write".to_owned()) && listed.contains(&"b_echo".to_owned()), "{listed:?}");
    assert_eq!(listed.iter().filter(|name| name.starts_with("b_")).count(), 1, "{listed:?}");
    assert_eq!(user.call("a_echo", &json!({"text": "x"})).json()["result"]["content"][0]["text"], "x");
    let refused = user.call("b_write", &json!({"text": "x"})).json();
    assert!(refused["error"]["message"].as_str().unwrap().contains("no rule allows it"), "{refused}");
    assert_eq!(user.call("b_echo", &json!({"text": "x"})).json()["result"]["content"][0]["text"], "x");
    let limited = user.call("b_echo", &json!({"text": "x"})).json();
    assert!(limited["error"]["message"].as_str().unwrap().contains("too many"), "limits of the server hold: {limited}");

    for (who, why) in [(&eve.0, "is in no group that the toolbox is for"), (&adam.0, "may use no server of it")] {
        let other = User { url: url.clone(), credential: who, session: String::new() };
        let answer = other.initialize();
        assert_eq!(answer.status, 403, "{why}: {answer:?}");
        let stolen = User { url: url.clone(), credential: who, session: user.session.clone() };
        assert_eq!(stolen.send(LIST).status, 403, "{why}");
    }
    let bearer = format!("Bearer {}", eve.0);
    assert!(!ask("GET", &up.gateway, &[("Authorization", &bearer)], "").body.contains("toolboxes/dev"));

    // Without access of its own it is for whoever may use one of its servers.
    up.toolbox(&json!({"servers": servers}));
    wait("the change", || {
        let other = User { url: url.clone(), credential: &eve.0, session: String::new() };
        (other.initialize().status == 200).then_some(())
    });
    let other = User { url: url.clone(), credential: &adam.0, session: String::new() };
    assert_eq!(other.initialize().status, 403);
    let stolen = User { url, credential: &eve.0, session: user.session.clone() };
    assert_eq!(stolen.send(LIST).status, 404, "a session is its user's");
}

#[test]
fn a_release_divides_users_behind_a_toolbox_too() {
    let dir = tempfile::tempdir().unwrap();
    let key = |user: &str| {
        let (key, hash) = api_key::create();
        (key, json!({"name": user, "hash": hash, "user": user}))
    };
    let (dana, eve) = (key("dana"), key("eve"));
    let file = crate::access::write(dir.path(), &json!({"apiKeys": [dana.1, eve.1]}));
    let audit = dir.path().join("audit.log");
    let arguments = ["--runtime", "process", "--access-config", &file, "--audit-log", audit.to_str().unwrap()];
    let up = Perch::up(&dir.path().join("data"), &arguments);
    let runs = |said: &str| {
        let mut spec = stdio();
        spec["env"] = json!([{"name": "SAID", "value": said}]);
        spec
    };
    up.apply("a", &runs("one"));
    up.until("a", "Ready");
    let release = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "a"},
        "spec": {"targetRef": {"name": "a"}, "stages": [{"name": "first", "users": ["dana"], "duration": "10h"}]}});
    up.ok_with(&["apply", "-f", "-"], &release.to_string());
    let canary =
        || serde_json::from_str::<Value>(&up.ok(&["get", "canary", "a", "-o", "json"])).unwrap()["status"].take();
    wait("the release to be looked at", || canary()["stableRevision"].is_string().then_some(()));
    let url = up.toolbox(&json!({"servers": [{"name": "a"}]}));
    up.apply("a", &runs("two"));
    wait("the first stage", || (canary()["phase"] == "Progressing").then_some(()));
    let said = |key: &str| {
        let answer = User::open(&url, key).call("a_env", &json!({"name": "SAID"})).json();
        answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    wait("dana to be with the candidate", || (said(&dana.0) == "two").then_some(()));
    for _ in 0..3 {
        assert_eq!((said(&dana.0).as_str(), said(&eve.0).as_str()), ("two", "one"));
    }
    // What was done is recorded where it was done.
    let status = canary();
    let (stable, candidate) =
        (status["stableRevision"].as_str().unwrap(), status["candidateRevision"].as_str().unwrap());
    wait("the audit log", || {
        let log = std::fs::read_to_string(&audit).unwrap_or_default();
        let calls: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let of = |user: &str, revision: &str| {
            calls.iter().any(|c| c["method"] == "tools/call" && c["user"] == user && c["revision"] == revision)
        };
        let elsewhere = calls.iter().any(|c| c["method"] == "tools/call" && c["server"] != "default/a");
        assert!(!elsewhere, "each call is recorded once: {log}");
        (of("dana", candidate) && of("eve", stable)).then_some(())
    });
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
