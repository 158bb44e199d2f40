//! Modern clients of one user at a legacy server: they share a session there, and know nothing of
//! each other.

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::sync::{Barrier, mpsc};

use super::*;

/// A legacy server. It answers two calls of `echo` once both are in hand, and no call of `hold` ever; all
/// that it hears goes to the receiver.
async fn legacy() -> (Arc<Servers>, mpsc::UnboundedReceiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap()).parse().unwrap();
    let (heard, all) = mpsc::unbounded_channel();
    let both = Arc::new(Barrier::new(2));
    let answer = move |Json(message): Json<Value>| {
        heard.send(message.clone()).unwrap();
        std::future::ready(answer(&message, Arc::clone(&both)))
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", post(answer))).await });
    let endpoint =
        Endpoint { instance: InstanceId("old".into()), revision: Revision("old".into()), address: Address::Http(url) };
    let servers =
        Servers { endpoints: Mutex::new(vec![endpoint]), changes: broadcast::Sender::new(1), counts: Mutex::default() };
    (Arc::new(servers), all)
}

fn answer(message: &Value, both: Arc<Barrier>) -> Response {
    let result = |result: Value| json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
    let event = |message: &Value| format!("data: {message}\n\n");
    match message["method"].as_str().unwrap_or_default() {
        "initialize" => {
            let said = json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "old", "version": "1"}});
            ([("mcp-session-id", "s")], Json(result(said))).into_response()
        }
        "tools/list" => Json(result(json!({"tools": []}))).into_response(),
        "tools/call" => {
            let token = &message["params"]["_meta"]["progressToken"];
            let progress = event(
                &json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}}),
            );
            let done =
                event(&result(json!({"content": [{"type": "text", "text": message["params"]["arguments"]["text"]}]})));
            let holds = message["params"]["name"] == "hold";
            let rest = async move {
                if holds {
                    std::future::pending::<()>().await;
                }
                both.wait().await;
                done
            };
            let events =
                futures::StreamExt::chain(futures::stream::once(async { progress }), futures::stream::once(rest));
            let body = axum::body::Body::from_stream(futures::StreamExt::map(events, Ok::<_, Infallible>));
            ([("content-type", "text/event-stream")], body).into_response()
        }
        "server/discover" => {
            let error = json!({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "what?"}});
            (StatusCode::BAD_REQUEST, Json(error)).into_response()
        }
        _ => StatusCode::ACCEPTED.into_response(),
    }
}

async fn gateway(servers: Arc<Servers>) -> String {
    let table = Arc::new(ArcSwap::from_pointee(table(None)));
    let stop = CancellationToken::new();
    let config = Config::new([5; 32], Access::anonymous());
    let gateway = Arc::new(Gateway::new(config, table, servers as _, stop.clone(), None));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/default/a/mcp", listener.local_addr().unwrap());
    let answer = move |request: Request<Incoming>| Arc::clone(&gateway).answer(request);
    tokio::spawn(listen::serve(Arc::default(), None, listener, Duration::from_secs(5), stop, Duration::ZERO, answer));
    url
}

/// A call as every new client makes it: its first.
async fn call(url: &str, tool: &str, text: &str) -> http::Response<Incoming> {
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": tool, "arguments": {"text": text}, "_meta": {
            "progressToken": "t", "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    }});
    let request = Request::post(url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", tool);
    let client = Client::builder(TokioExecutor::new()).build_http();
    client.request(request.body(Full::new(Bytes::from(message.to_string()))).unwrap()).await.unwrap()
}

async fn next_of(heard: &mut mpsc::UnboundedReceiver<Value>, method: &str) -> Value {
    let found = async {
        loop {
            let message = heard.recv().await.unwrap();
            if message["method"] == method {
                return message;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.unwrap_or_else(|_| panic!("{method} is not heard"))
}

#[tokio::test]
async fn clients_with_the_same_ids_get_each_their_own_answer() {
    let (servers, mut heard) = legacy().await;
    let url = gateway(servers).await;
    let whole = async |text: &'static str| {
        let body = call(&url, "echo", text).await.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let messages = text.lines().filter_map(|line| line.strip_prefix("data: "));
        messages.map(|message| serde_json::from_str(message).unwrap()).collect::<Vec<Value>>()
    };
    let both = async { tokio::join!(whole("a"), whole("b")) };
    let (a, b) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("both are answered");
    for (messages, text) in [(a, "a"), (b, "b")] {
        let [progress, answer] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!(progress["params"]["progressToken"], "t");
        assert_eq!((&answer["id"], &answer["result"]["content"][0]["text"]), (&json!(1), &json!(text)));
    }
    let (one, other) = (next_of(&mut heard, "tools/call").await, next_of(&mut heard, "tools/call").await);
    assert_ne!(one["id"], other["id"]);
    assert_ne!(one["params"]["_meta"]["progressToken"], other["params"]["_meta"]["progressToken"]);
}

#[tokio::test]
async fn a_call_whose_client_goes_away_is_cancelled() {
    let (servers, mut heard) = legacy().await;
    let url = gateway(servers).await;
    let mut response = call(&url, "hold", "x").await;
    response.body_mut().frame().await.unwrap().unwrap();
    let asked = next_of(&mut heard, "tools/call").await;
    drop(response);
    let cancelled = next_of(&mut heard, "notifications/cancelled").await;
    assert_eq!(cancelled["params"]["requestId"], asked["id"]);
}
