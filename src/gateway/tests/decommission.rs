//! Who is served of a server that comes to its end.

use serde_json::json;

use super::*;
use crate::{api::mcp_server::McpServer, routing::Notice};

const CANCELLED: &str = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#;
const BATCH: &str = r#"[{"jsonrpc":"2.0","id":1,"method":"tools/list"}]"#;

fn ending(phase: &str, percentage: i32) -> Arc<RouteTable> {
    let server: McpServer = serde_json::from_value(json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"image": "x", "decommission": {"reason": "too old", "replacement": "b"}},
        "status": {"decommission": {
            "since": "2026-01-01T00:00:00Z", "phase": phase, "percentage": percentage,
            "reducesAt": "2026-01-31T00:00:00Z", "stopsAt": "2026-02-07T00:00:00Z", "removesAt": "2026-03-09T00:00:00Z"}},
    }))
    .unwrap();
    let route = Route::clone(table(None).find(&key()).unwrap());
    Arc::new(RouteTable::of([Route { notice: Notice::of(&server).map(Arc::new), ..route }]))
}

async fn status(method: &str, url: &str, session: &str) -> u16 {
    let request = Request::builder().method(method).uri(url).header("mcp-session-id", session);
    let request = request.header("accept", "text/event-stream").body(Full::<Bytes>::default()).unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    client.request(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn those_who_are_out_begin_nothing_and_end_what_they_began() {
    let servers = Servers::start(&[("old", 0)]).await;
    let shared = Arc::new(ArcSwap::new(ending("Noticed", 100)));
    let url = gateway(&servers, &shared).await;
    let (begun, session, _) = send(&url, "", "", INITIALIZE).await;
    assert_eq!((begun, send(&url, "", &session, CALL).await.0), (200, 200), "everybody is served");

    shared.store(ending("Reducing", 0));
    for body in [INITIALIZE, MODERN] {
        assert_eq!(send(&url, "", "", body).await.0, 410, "{body}");
    }
    assert_eq!(send(&url, "", &session, CALL).await.0, 410);
    assert_eq!(send(&url, "", &session, BATCH).await.0, 410);
    assert_eq!(status("GET", &url, &session).await, 410);
    assert!(send(&url, "", &session, CANCELLED).await.0 < 300, "what was begun may be ended");
    assert_ne!(status("DELETE", &url, &session).await, 410);
    let by_name = url.replace("/a/", "/a@old/");
    assert_eq!(send(&by_name, "", "", INITIALIZE).await.0, 200, "Perch's own probes know no other name");

    let asked = servers.counts();
    shared.store(ending("Stopped", 0));
    for url in [&url, &by_name] {
        assert_eq!(send(url, "", "", INITIALIZE).await.0, 410, "nobody is served");
    }
    assert_eq!((status("DELETE", &url, &session).await, servers.counts()), (410, asked), "and nothing runs");
}

#[tokio::test]
async fn whoever_is_out_stays_out_by_name_and_by_address() {
    let servers = Servers::start(&[("old", 0)]).await;
    let shared = Arc::new(ArcSwap::new(ending("Reducing", 90)));
    let url = gateway(&servers, &shared).await;
    let mut before: Vec<usize> = (0..60).collect();
    for percentage in [90, 60, 30, 0] {
        shared.store(ending("Reducing", percentage));
        let mut served = Vec::new();
        for user in 0..60 {
            match send(&url, &format!("user-{user}"), "", INITIALIZE).await.0 {
                200 => served.push(user),
                other => assert_eq!(other, 410),
            }
        }
        assert!(served.iter().all(|user| before.contains(user)), "{served:?} of {before:?}");
        assert!(served.len() < before.len(), "{percentage}%: {served:?}");
        before = served;
        // Nobody is let in who only begins once more.
        let again = [send(&url, "", "", INITIALIZE).await.0, send(&url, "", "", INITIALIZE).await.0];
        assert_eq!(again[0], again[1]);
    }
    assert!(before.is_empty());
}
