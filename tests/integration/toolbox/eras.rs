//! Clients and servers of both eras.

use serde_json::{Value, json};

use super::{Toolboxes, conformance_fixture, headers, modern, modern_with, names, tools, up, with_meta};
use crate::{
    events::events,
    support::{Perch, Session},
};

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
