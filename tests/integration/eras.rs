//! Clients and servers of both eras of the protocol, in every pair, over HTTP and stdio.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    events::events,
    support::{Perch, Session, post, send, wait},
};

fn fixture() -> String {
    let perch = Path::new(env!("CARGO_BIN_EXE_perch"));
    let path = perch.parent().unwrap().join("examples/mcp-conformance-fixture");
    assert!(path.exists(), "{} is built by `cargo build --example mcp-conformance-fixture`", path.display());
    path.display().to_string()
}

pub fn spec(transport: &str, era: &str) -> Value {
    let type_ = if transport == "http" { "StreamableHttp" } else { "Stdio" };
    json!({"command": [fixture(), transport, "--era", era], "transport": {"type": type_}})
}

/// A Perch with one server of each kind, and the URLs of these.
pub fn all(dir: &tempfile::TempDir) -> (Perch, Vec<(String, &'static str, &'static str)>) {
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    let kinds = [("http", "legacy"), ("http", "modern"), ("stdio", "legacy"), ("stdio", "modern")];
    for (transport, era) in kinds {
        up.apply(&format!("{transport}-{era}"), &spec(transport, era));
    }
    let servers = kinds.into_iter().map(|(transport, era)| {
        let name = format!("{transport}-{era}");
        up.until(&name, "Ready");
        (format!("{}/default/{name}/mcp", up.gateway), transport, era)
    });
    let servers = servers.collect();
    (up, servers)
}

const VERSION: &str = "2026-07-28";

pub fn request(method: &str, mut params: Value, capabilities: &Value) -> Value {
    let meta = params.as_object_mut().unwrap().entry("_meta").or_insert_with(|| json!({}));
    meta["io.modelcontextprotocol/protocolVersion"] = VERSION.into();
    meta["io.modelcontextprotocol/clientCapabilities"] = capabilities.clone();
    meta["io.modelcontextprotocol/clientInfo"] = json!({"name": "test", "version": "0"});
    json!({"jsonrpc": "2.0", "id": "m", "method": method, "params": params})
}

fn headers(request: &Value) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("MCP-Protocol-Version", VERSION.to_owned()),
        ("Mcp-Method", request["method"].as_str().unwrap().to_owned()),
    ];
    let name = request["params"]["name"].as_str().or(request["params"]["uri"].as_str());
    headers.extend(name.map(|name| ("Mcp-Name", name.to_owned())));
    headers
}

/// A request of a modern client: status and the last message.
pub fn modern(url: &str, method: &str, params: Value, capabilities: &Value) -> (u16, Value) {
    let request = request(method, params, capabilities);
    let headers = headers(&request);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let (status, _, body) = send("POST", url, &headers, &request.to_string());
    let last = body.lines().filter_map(|l| l.strip_prefix("data: ")).next_back().map(str::to_owned);
    let message = serde_json::from_str(&last.unwrap_or(body.clone())).unwrap_or_else(|_| panic!("{status} {body}"));
    (status, message)
}

#[test]
fn a_modern_client_meets_the_same_server_in_every_pair() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, servers) = all(&dir);
    let none = json!({});
    for (url, transport, era) in servers {
        let what = format!("{transport} {era}");
        let (status, found) = modern(&url, "server/discover", json!({}), &none);
        assert_eq!(status, 200, "{what}: {found}");
        let result = &found["result"];
        assert!(result["supportedVersions"].as_array().unwrap().contains(&json!(VERSION)), "{what}: {found}");
        assert_eq!(result["capabilities"]["tools"]["listChanged"], true, "{what}: {found}");
        assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "mcp-conformance-fixture", "{what}");

        let (_, tools) = modern(&url, "tools/list", json!({}), &none);
        assert_eq!(tools["result"]["resultType"], "complete", "{what}: {tools}");
        assert!(tools["result"]["ttlMs"].is_number() && tools["result"]["cacheScope"].is_string(), "{what}: {tools}");
        assert!(tools["result"]["tools"].as_array().unwrap().len() > 20, "{what}");
        let (_, said) = modern(&url, "tools/call", json!({"name": "echo", "arguments": {"text": "é"}}), &none);
        assert_eq!(said["result"]["content"][0]["text"], "é", "{what}: {said}");
        assert_eq!((&said["id"], &said["result"]["resultType"]), (&json!("m"), &json!("complete")), "{what}");
        let (_, prompt) = modern(&url, "prompts/get", json!({"name": "test_simple_prompt"}), &none);
        assert_eq!(prompt["result"]["messages"][0]["role"], "user", "{what}: {prompt}");
        let (_, read) = modern(&url, "resources/read", json!({"uri": "test://static-text"}), &none);
        assert!(read["result"]["contents"][0]["text"].is_string(), "{what}: {read}");
        let (_, missing) = modern(&url, "resources/read", json!({"uri": "test://nothing"}), &none);
        assert_eq!(missing["error"]["code"], -32602, "{what}: {missing}");
        let completion =
            json!({"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"name": "a", "value": "pari"}});
        let (_, completed) = modern(&url, "completion/complete", completion, &none);
        assert_eq!(completed["result"]["completion"]["values"], json!(["paris"]), "{what}: {completed}");

        for gone in ["ping", "initialize", "logging/setLevel", "resources/subscribe"] {
            let (status, answer) = modern(&url, gone, json!({}), &none);
            assert_eq!((status, &answer["error"]["code"]), (404, &json!(-32601)), "{what} {gone}: {answer}");
        }
        let call = request("tools/call", json!({"name": "echo"}), &none);
        let wrong = [("MCP-Protocol-Version", VERSION), ("Mcp-Method", "tools/call"), ("Mcp-Name", "sleep")];
        let (status, _, body) = send("POST", &url, &wrong, &call.to_string());
        assert!(status == 400 && body.contains("-32020"), "{what}: {status} {body}");
        let old = call.to_string().replace(VERSION, "1999-01-01");
        let wrong = [("MCP-Protocol-Version", "1999-01-01"), ("Mcp-Method", "tools/call"), ("Mcp-Name", "echo")];
        let (status, _, body) = send("POST", &url, &wrong, &old);
        assert!(status == 400 && body.contains("-32022"), "{what}: {status} {body}");
        let custom = json!({"name": "test_custom_headers", "arguments": {"region": "eu"}});
        let (status, answer) = modern(&url, "tools/call", custom, &none);
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(-32020)), "{what}: no Mcp-Param-Region: {answer}");
    }
}

#[test]
fn a_legacy_client_meets_the_same_server_in_every_pair() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, servers) = all(&dir);
    for (url, transport, era) in servers {
        let what = format!("{transport} {era}");
        let session = Session::open(&url);
        let tools = session.request("tools/list", &json!({}));
        assert!(tools["result"]["tools"].as_array().unwrap().len() > 20, "{what}");
        assert_eq!(session.text("echo", &json!({"text": "é"})), "é", "{what}");
        assert_eq!(session.request("ping", &json!({}))["result"], json!({}), "{what}");
        assert_eq!(session.request("logging/setLevel", &json!({"level": "info"}))["result"], json!({}), "{what}");
        let custom = session.call("test_custom_headers", &json!({"region": "eu"}));
        assert_eq!(custom["result"]["content"][0]["text"], "done", "{what}: the gateway adds the header: {custom}");
        assert_eq!(session.request("nothing/here", &json!({}))["error"]["code"], -32601, "{what}");
        let missing = session.request("resources/read", &json!({"uri": "test://nothing"}));
        assert!(missing["error"]["code"].is_number(), "{what}: {missing}");
        let id = [("Mcp-Session-Id", session.id.as_str())];
        assert!((200..300).contains(&send("DELETE", &url, &id, "").0), "{what}");
        let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        assert_eq!(post(&url, Some(&session.id), list).0, 404, "{what}: the session ended");
    }
}

#[test]
fn a_question_of_a_legacy_server_reaches_a_modern_client() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("a", &spec("http", "legacy"));
    up.until("a", "Ready");
    let url = format!("{}/default/a/mcp", up.gateway);
    let call = json!({"name": "test_elicitation", "arguments": {"message": "Who are you?"}});
    let (_, refused) = modern(&url, "tools/call", call.clone(), &json!({}));
    assert_eq!(refused["result"]["isError"], true, "what a client does not offer is not asked of it: {refused}");
    let able = json!({"elicitation": {}});
    let (_, asked) = modern(&url, "tools/call", call.clone(), &able);
    let result = &asked["result"];
    assert_eq!(result["resultType"], "input_required", "{asked}");
    let (key, question) = result["inputRequests"].as_object().unwrap().iter().next().unwrap();
    assert_eq!(
        (&question["method"], &question["params"]["message"]),
        (&json!("elicitation/create"), &json!("Who are you?"))
    );
    let mut again = call.clone();
    again["requestState"] = result["requestState"].clone();
    again["inputResponses"] =
        json!({key: {"action": "accept", "content": {"username": "dana", "email": "d@example.com"}}});
    let (_, done) = modern(&url, "tools/call", again.clone(), &able);
    let said = done["result"]["content"][0]["text"].as_str().unwrap();
    assert!(said.contains("accept") && said.contains("dana"), "{done}");
    let (_, replayed) = modern(&url, "tools/call", again, &able);
    assert_eq!(replayed["error"]["code"], -32602, "a state is good for one answer: {replayed}");
}

/// Opens a stream and gives its first messages, running `act` after each.
fn first(
    count: usize,
    (method, url): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
    act: impl Fn(usize, &Value),
) -> Vec<Value> {
    let mut found = Vec::new();
    events(method, url, headers, body, |message| {
        found.push(message.clone());
        act(found.len(), message);
        found.len() == count
    });
    found
}

#[test]
fn changes_reach_modern_listeners_in_every_pair() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, servers) = all(&dir);
    let none = json!({});
    for (url, transport, era) in servers {
        let what = format!("{transport} {era}");
        let filter =
            json!({"notifications": {"toolsListChanged": true, "resourceSubscriptions": ["test://watched-resource"]}});
        let listen = request("subscriptions/listen", filter, &none);
        let headers = headers(&listen);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let touch = |name: &str, arguments: Value| {
            let (url, name) = (url.clone(), name.to_owned());
            std::thread::spawn(move || {
                modern(&url, "tools/call", json!({"name": name, "arguments": arguments}), &json!({}))
            })
        };
        let heard = first(3, ("POST", &url), &headers, &listen.to_string(), |count, _| match count {
            1 => drop(touch("test_trigger_tool_change", json!({}))),
            2 => drop(touch("touch", json!({"uri": "test://watched-resource"}))),
            _ => {}
        });
        let methods: Vec<&str> = heard.iter().map(|m| m["method"].as_str().unwrap()).collect();
        let expected = [
            "notifications/subscriptions/acknowledged",
            "notifications/tools/list_changed",
            "notifications/resources/updated",
        ];
        assert_eq!(methods, expected, "{what}: {heard:#?}");
        for message in &heard {
            assert_eq!(message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "m", "{what}: {message}");
        }
    }
}

#[test]
fn changes_reach_legacy_listeners_in_every_pair() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, servers) = all(&dir);
    for (url, transport, era) in servers {
        let what = format!("{transport} {era}");
        let session = Session::open(&url);
        let headers = [("Mcp-Session-Id", session.id.as_str()), ("MCP-Protocol-Version", "2025-11-25")];
        // Nothing shows that a listener is there, so changes are made until it hears one.
        let stop = std::sync::atomic::AtomicBool::new(false);
        let heard = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    session.text("test_trigger_tool_change", &json!({}));
                    std::thread::park_timeout(Duration::from_millis(50));
                }
            });
            let heard = first(1, ("GET", &url), &headers, "", |_, _| ());
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            heard
        });
        assert_eq!(heard[0]["method"], "notifications/tools/list_changed", "{what}: {heard:?}");
    }
}

#[test]
fn a_modern_client_that_goes_away_cancels_its_call() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, servers) = all(&dir);
    for (url, transport, era) in servers {
        if era == "legacy" && transport == "http" {
            // That era does not take a broken connection for a wish to cancel.
            continue;
        }
        let what = format!("{transport} {era}");
        let none = json!({});
        let listen = json!({"notifications": {"resourceSubscriptions": ["test://cancelled"]}});
        let listen = request("subscriptions/listen", listen, &none);
        let listening = headers(&listen);
        let listening: Vec<(&str, &str)> = listening.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let call = request("tools/call", json!({"name": "sleep", "arguments": {"ms": 60_000}}), &none);
        let calling = headers(&call);
        let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
        let path = url.split_once(&address).unwrap().1.to_owned();
        let heard = first(2, ("POST", &url), &listening, &listen.to_string(), |count, _| {
            if count == 1 {
                let (address, path, body) = (address.clone(), path.clone(), call.to_string());
                let more: String = calling.iter().fold(String::new(), |all, (k, v)| all + k + ": " + v + "\r\n");
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
                        let head = format!(
                            "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n{more}Content-Length: {}\r\n\r\n",
                            body.len()
                        );
                        stream.write_all((head + &body).as_bytes()).await.unwrap();
                        // The call is in hand by then, and not answered.
                        let mut buffer = [0; 1024];
                        let answer = tokio::time::timeout(Duration::from_millis(700), stream.read(&mut buffer)).await;
                        if let Ok(Ok(count)) = answer {
                            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                            assert!(!text.contains("slept"), "{text}");
                        }
                    });
                });
            }
        });
        assert_eq!(heard[1]["params"]["uri"], "test://cancelled", "{what}: {heard:#?}");
    }
}

#[test]
fn an_old_client_is_served_on_its_stream() {
    let dir = tempfile::tempdir().unwrap();
    let (up, servers) = all(&dir);
    for (url, transport, era) in servers {
        let what = format!("{transport} {era}");
        let sse = url.replace("/mcp", "/sse");
        let endpoint = std::cell::RefCell::new(String::new());
        let initialize = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "old", "version": "0"},
        }});
        let call = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {
            "name": "echo", "arguments": {"text": "old"},
        }});
        let say = |message: &Value| {
            let (to, message) = (endpoint.borrow().clone(), message.to_string());
            std::thread::spawn(move || assert_eq!(post(&to, None, &message).0, 202));
        };
        let heard = first(3, ("GET", &sse), &[], "", |count, data| match count {
            1 => {
                *endpoint.borrow_mut() = format!("{}{}", up.gateway, data.as_str().unwrap());
                say(&initialize);
            }
            2 => say(&call),
            _ => {}
        });
        let answer = || post(&endpoint.borrow(), None, &call.to_string()).0;
        wait("the stream's end to be seen", || (answer() == 404).then_some(()));
        assert_eq!(heard[1]["result"]["protocolVersion"], "2024-11-05", "{what}: {heard:#?}");
        assert_eq!(heard[2]["result"]["content"][0]["text"], "old", "{what}: {heard:#?}");
    }
}
