//! What a gateway does with those whom it let in, in front of a real server.

use async_trait::async_trait;
use axum::{Json, Router, routing::post};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tokio::{net::TcpListener, sync::broadcast};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    gateway::{Config, handler::Gateway, instances::Instances, listen},
    routing::{Route, RouteTable, Upstream},
    runtime::{Endpoint, InstanceId, RuntimeError, StdioStreams},
};

/// Nothing runs here: the server is elsewhere.
struct Nowhere(broadcast::Sender<ServerKey>);

#[async_trait]
impl Instances for Nowhere {
    fn endpoints(&self, _server: &ServerKey) -> Vec<Endpoint> {
        Vec::new()
    }

    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        Err(RuntimeError::NotRunning(instance.to_string()))
    }

    async fn start_session(&self, server: &ServerKey) -> Result<InstanceId, RuntimeError> {
        Err(RuntimeError::NotRunning(server.to_string()))
    }

    async fn end_session(&self, _instance: &InstanceId) -> Result<(), RuntimeError> {
        Ok(())
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.0.subscribe()
    }
}

/// A server that repeats what it was asked, and lists two tools.
async fn server() -> String {
    let answer = |Json(message): Json<Value>| async move {
        let tools = json!([{"name": "safe"}, {"name": "strong"}]);
        let result = json!({"asked": message, "tools": tools, "cacheScope": "public"});
        ([("mcp-session-id", "s")], Json(json!({"jsonrpc": "2.0", "id": 1, "result": result})))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", post(answer))).await.unwrap() });
    url
}

/// A gateway with that access, and the key of its operator.
async fn gateway(access: &Value) -> (String, String) {
    // As the chart makes it: no key of ours by its looks.
    let key = "q8ZbF2uD6mXw4sJk1RtYv9NcLh3PeGa7Qy5TiUo0WdBnMfSx".to_owned();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.yaml");
    std::fs::write(&path, access.to_string()).unwrap();
    let operator_key = Some(OperatorKey::Key(key.clone()));
    let access = Access::load(Source { path, operator_key, ..Source::default() }).unwrap();
    let route = Route {
        server: ServerKey::new("default", "a"),
        upstream: Upstream::Remote(server().await),
        tools: ToolFilter::default(),
        not_ready: None,
        has_failed: false,
        split: None,
        validates_arguments: false,
        notice: None,
    };
    let table = Arc::new(ArcSwap::from_pointee(RouteTable::of([route])));
    let stop = CancellationToken::new();
    let nowhere = Arc::new(Nowhere(broadcast::Sender::new(1)));
    let gateway = Arc::new(Gateway::new(Config::new([5; 32], access), table, nowhere, stop.clone(), None));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/default/a/mcp", listener.local_addr().unwrap());
    let answer = move |request: Request<hyper::body::Incoming>| Arc::clone(&gateway).answer(request);
    tokio::spawn(listen::serve(Arc::default(), None, listener, Duration::from_secs(5), stop, Duration::ZERO, answer));
    (url, key)
}

async fn send(url: &str, key: &str, session: &str, body: &str) -> (u16, String, Value) {
    let mut request = Request::post(url).header("content-type", "application/json").header("x-api-key", key);
    if !session.is_empty() {
        request = request.header("mcp-session-id", session);
    }
    let request = request.body(Full::new(bytes::Bytes::from(body.to_owned()))).unwrap();
    let response = Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap();
    let id = response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned()).unwrap_or_default();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, id, serde_json::from_slice(&body).unwrap_or_default())
}

fn message(method: &str, params: Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()
}

fn key(user: &str) -> (String, Value) {
    let (key, hash) = api_key::create();
    (key, json!({"name": user, "hash": hash, "user": user}))
}

async fn open(url: &str, key: &str) -> String {
    let (status, session, body) =
        send(url, key, "", &message("initialize", json!({"protocolVersion": "2025-03-26"}))).await;
    assert_eq!(status, 200, "{body}");
    session
}

#[tokio::test]
async fn the_operator_may_look_and_nothing_else() {
    let (_, entry) = key("dana");
    // Rules and limits are not for it.
    let access = json!({"apiKeys": [entry], "allow": [], "rateLimits": [{"requests": 1, "period": "1h"}]});
    let (url, operator) = gateway(&access).await;
    let session = open(&url, &operator).await;
    for _ in 0..3 {
        let (status, _, body) = send(&url, &operator, &session, &message("tools/list", json!({}))).await;
        assert_eq!((status, body["result"]["tools"].as_array().unwrap().len()), (200, 2));
    }
    let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(send(&url, &operator, &session, initialized).await.0, 200);
    for method in ["tools/call", "prompts/list", "resources/read", "completion/complete", "tasks/list"] {
        let (status, _, body) = send(&url, &operator, &session, &message(method, json!({"name": "safe"}))).await;
        assert_eq!(status, 403, "{method}: {body}");
    }
    let batch = format!("[{}]", message("tools/call", json!({"name": "safe"})));
    assert_eq!(send(&url, &operator, &session, &batch).await.0, 400);
}

#[tokio::test]
async fn tools_that_somebody_may_not_call_are_not_listed() {
    let ((dana, first), (eve, second)) = (key("dana"), key("eve"));
    let access = json!({"apiKeys": [first, second], "allow": [
        {"users": ["dana"], "tools": ["sa*"]}, {"users": ["eve"]},
    ]});
    let (url, _) = gateway(&access).await;
    let list = message("tools/list", json!({}));
    for (key, tools, scope) in
        [(&dana, json!([{"name": "safe"}]), "private"), (&eve, json!([{"name": "safe"}, {"name": "strong"}]), "public")]
    {
        let session = open(&url, key).await;
        let (_, _, body) = send(&url, key, &session, &list).await;
        assert_eq!((&body["result"]["tools"], &body["result"]["cacheScope"]), (&tools, &json!(scope)));
        let (status, _, body) = send(&url, key, &session, &message("tools/call", json!({"name": "strong"}))).await;
        assert_eq!(status, if tools.as_array().unwrap().len() == 1 { 403 } else { 200 }, "{body}");
        // What nobody looks into message by message is for those alone who may send any.
        let (status, _, body) = send(&url, key, &session, &format!("[{list}]")).await;
        assert_eq!(status, if tools.as_array().unwrap().len() == 1 { 400 } else { 200 }, "{body}");
    }
}

#[tokio::test]
async fn deep_json_is_refused() {
    let (dana, entry) = key("dana");
    let (url, _) = gateway(&json!({"apiKeys": [entry]})).await;
    let session = open(&url, &dana).await;
    let deep = |levels: usize| {
        let arguments: Value = serde_json::from_str(&format!("{}{}", "[".repeat(levels), "]".repeat(levels))).unwrap();
        message("tools/call", json!({"name": "safe", "arguments": arguments}))
    };
    assert_eq!(send(&url, &dana, &session, &deep(120)).await.0, 200);
    let deeper = deep(120).replace("[]", &format!("{}{}", "[".repeat(10), "]".repeat(10)));
    let (status, _, body) = send(&url, &dana, &session, &deeper).await;
    let said = body["error"]["message"].as_str().unwrap_or_default();
    assert!(status == 400 && said.contains("nests more than 128"), "it never reaches a server: {status} {body}");
}

#[test]
fn names_that_only_a_cluster_gives_are_nobody_elses() {
    let named = |user: &str, group: &str| identity(user.into(), [group.to_owned()]);
    assert!(named("dana", "dev").is_ok());
    for (user, group) in [
        ("", "dev"),
        ("dana", ""),
        ("system:perch:operator", "dev"),
        ("dana", "system:masters"),
        ("da\0na", "dev"),
        ("dana", "a\nb"),
    ] {
        assert!(named(user, group).is_err(), "{user:?} {group:?}");
    }
    assert!(named(&"x".repeat(257), "dev").is_err());
}
