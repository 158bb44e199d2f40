//! Many sessions that do nothing, and many streams.

use std::time::Duration;

use futures::{StreamExt, stream};
use serde_json::json;

use crate::{
    proxy::{Gateway, example},
    report::{Report, mib},
    wire::Wire,
};

/// Sessions.
const SESSIONS: usize = 10_000;
/// Streams.
const STREAMS: usize = 1_000;
/// Events that each stream must give.
const EVENTS: usize = 5;
/// Longest wait for an event that comes each second.
const PATIENCE: Duration = Duration::from_secs(20);

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

/// Sessions that were opened and did one thing each, at servers of both kinds and eras.
pub async fn sessions(report: &mut Report) {
    let fixture = example("mcp-conformance-fixture");
    let http = json!({"type": "StreamableHttp"});
    let kinds = [
        ("http", json!({"command": [example("mcp-bench-upstream")], "transport": http})),
        ("stdio", json!({"command": [example("mcp-fixture"), "stdio"]})),
        ("modern", json!({"command": [fixture, "http", "--era", "modern"], "transport": http})),
    ];
    for (name, spec) in kinds {
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(dir.path());
        let target = gateway.serve(name, &spec);
        let open = async |count: usize| {
            let each = count / 16;
            let wires = (0..16).map(async |_| {
                let mut wire = Wire::open(&target.address).await.unwrap();
                for _ in 0..each {
                    let session = target.initialize(&mut wire).await;
                    let listed = wire.ask(&target.request(&session, "POST", LIST)).await.unwrap();
                    assert_eq!(listed.status, 200, "{}", String::from_utf8_lossy(&listed.body));
                }
            });
            futures::future::join_all(wires).await;
        };
        // What the first sessions cost is not the sessions'.
        open(320).await;
        let before = gateway.resident();
        open(SESSIONS).await;
        let after = gateway.resident();
        let what = match name {
            "http" => "an HTTP server",
            "stdio" => "a Stdio server",
            _ => "a server of the other era",
        };
        let seen = format!("{} more than before, {} in all", mib(after.saturating_sub(before)), mib(after));
        report.line(&format!("memory of 10,000 idle sessions at {what}"), "under 100 MiB", seen);
    }
}

/// Streams that are open at the same time, each of which hears something each second.
pub async fn streams(report: &mut Report) {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path());
    let spec = json!({"command": [example("mcp-bench-upstream")], "transport": {"type": "StreamableHttp"}});
    let target = gateway.serve("bench", &spec);
    let session = target.open().await;
    let request = target.request(&session, "GET", "");
    let before = gateway.resident();
    let opened = stream::iter(0..STREAMS).map(async |_| {
        let mut wire = Wire::open(&target.address).await.unwrap();
        let head = wire.send(&request).await.unwrap();
        assert_eq!(head.status, 200);
        (wire, head)
    });
    let mut open: Vec<_> = opened.buffer_unordered(64).collect().await;
    let heard = open.iter_mut().map(async |(wire, head)| {
        for _ in 0..EVENTS {
            let event = wire.event(head, b"\"tick\"}}\n\n");
            tokio::time::timeout(PATIENCE, event).await.expect("an event comes").unwrap();
        }
    });
    futures::future::join_all(heard).await;
    let after = gateway.resident();
    report.line(
        "1,000 streams open at once",
        "all hear everything",
        format!("all heard {EVENTS} of {EVENTS}; {} more memory", mib(after.saturating_sub(before))),
    );
}
