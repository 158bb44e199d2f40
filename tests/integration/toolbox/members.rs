//! Servers of a toolbox that do not answer.

use std::time::Duration;

use serde_json::json;

use super::{Toolboxes, condition, names, stdio, tools, up};
use crate::{
    events::events,
    support::{Session, fixture, send, wait},
};

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
