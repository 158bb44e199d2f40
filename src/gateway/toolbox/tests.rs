//! Toolboxes over servers that count what they are asked.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    api::{mcp_server::McpServer, mcp_toolbox::McpToolbox},
    gateway::{Config, access::Access, instances::Instances, session::Principal},
    names::Revision,
    runtime::{Address, Endpoint, InstanceId, RuntimeError, StdioStreams},
};

/// One program that stands for every server, and says which one it is asked as. It is modern.
struct World {
    address: String,
    /// Servers that have an instance, with its revision.
    running: Mutex<Vec<(String, String)>>,
    changes: broadcast::Sender<ServerKey>,
    told: broadcast::Sender<()>,
    lists: AtomicUsize,
    listeners: AtomicUsize,
    /// For how long a list is good.
    ttl: AtomicUsize,
    /// Whether lists have another tool.
    more: AtomicBool,
    /// Whether lists never come.
    silent: AtomicBool,
    /// Whether each page names the second one as the next.
    endless: AtomicBool,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn whole(body: &Value) -> Answer {
    let mut response = Response::new(Full::from(body.to_string()).boxed_unsync());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

impl World {
    async fn start(servers: usize) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = Arc::new(Self {
            address: listener.local_addr().unwrap().to_string(),
            running: Mutex::new((0..servers).map(|n| (format!("s{n}"), format!("s{n}-1"))).collect()),
            changes: broadcast::Sender::new(16),
            told: broadcast::Sender::new(16),
            lists: AtomicUsize::new(0),
            listeners: AtomicUsize::new(0),
            ttl: AtomicUsize::new(60_000),
            more: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            endless: AtomicBool::new(false),
        });
        let server = Arc::clone(&world);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = Arc::clone(&server);
                let service = service_fn(move |request| {
                    let server = Arc::clone(&server);
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        world
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let message: Value = serde_json::from_slice(&body).unwrap();
        let done = |result: Value| whole(&json!({"jsonrpc": "2.0", "id": message["id"], "result": result}));
        match message["method"].as_str().unwrap() {
            "server/discover" => {
                done(json!({"resultType": "complete", "supportedVersions": [MODERN], "capabilities": {}}))
            }
            "tools/list" => {
                self.lists.fetch_add(1, Ordering::SeqCst);
                if self.silent.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                let extra = usize::from(self.more.load(Ordering::SeqCst));
                let tools: Vec<Value> =
                    (0..5 + extra).map(|n| json!({"name": format!("t{n}"), "inputSchema": {}})).collect();
                // In two pages, the second one marked by its cursor.
                let (first, second) = tools.split_at(3);
                let ttl = self.ttl.load(Ordering::SeqCst);
                let page = match message["params"]["cursor"].as_str() {
                    None => json!({"tools": first, "nextCursor": "two", "ttlMs": ttl}),
                    Some(_) if self.endless.load(Ordering::SeqCst) => {
                        json!({"tools": second, "nextCursor": "two", "ttlMs": ttl})
                    }
                    Some(_) => json!({"tools": second, "ttlMs": ttl}),
                };
                done(page)
            }
            "subscriptions/listen" => {
                let told = self.told.subscribe();
                self.listeners.fetch_add(1, Ordering::SeqCst);
                let event = |method: &str| {
                    let message = json!({"jsonrpc": "2.0", "method": method, "params": {}});
                    Ok(Frame::data(Bytes::from(format!("data: {message}\n\n"))))
                };
                let first = event("notifications/subscriptions/acknowledged");
                let told = tokio_stream::wrappers::BroadcastStream::new(told);
                let events =
                    futures::stream::iter([first]).chain(told.map(move |_| event("notifications/tools/list_changed")));
                let mut response = Response::new(StreamBody::new(events).boxed_unsync());
                response.headers_mut().insert("content-type", HeaderValue::from_static("text/event-stream"));
                response
            }
            "tools/call" => {
                let mut response = done(json!({"content": [{"type": "text", "text": message["params"]["name"]}]}));
                // As a server that keeps sessions would.
                response.headers_mut().insert(SESSION, HeaderValue::from_static("of-the-server"));
                response
            }
            _ => whole(&json!({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no"}})),
        }
    }

    fn lists(&self) -> usize {
        self.lists.load(Ordering::SeqCst)
    }

    fn run(&self, server: &str, revision: Option<&str>) {
        let mut running = self.running.lock().unwrap();
        running.retain(|(name, _)| name != server);
        running.extend(revision.map(|revision| (server.to_owned(), revision.to_owned())));
        drop(running);
        let _ = self.changes.send(ServerKey::new("default", server));
    }
}

#[async_trait]
impl Instances for World {
    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint> {
        let running = self.running.lock().unwrap();
        let its = running.iter().filter(|(name, _)| *name == server.name);
        its.map(|(name, revision)| Endpoint {
            instance: InstanceId(format!("{name}-i")),
            revision: Revision(revision.clone()),
            address: Address::Http(format!("http://{}/mcp", self.address).parse().unwrap()),
        })
        .collect()
    }

    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        Err(RuntimeError::NotRunning(instance.to_string()))
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.changes.subscribe()
    }
}

fn gateway(world: &Arc<World>, servers: usize) -> Arc<Gateway> {
    gateway_with(world, servers, Config::new([7; 32], Access::anonymous()))
}

fn gateway_with(world: &Arc<World>, servers: usize, config: Config) -> Arc<Gateway> {
    let server = |n: usize| -> McpServer {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": format!("s{n}"), "namespace": "default"},
            "spec": {"image": "x", "transport": {"type": "StreamableHttp"}},
        }))
        .unwrap()
    };
    let all: Vec<McpServer> = (0..servers).map(server).collect();
    let mut toolbox = McpToolbox::new("dev", serde_json::from_value(json!({"selector": {}})).unwrap());
    toolbox.metadata.namespace = Some("default".into());
    let table = RouteTable::compile(&all).with_toolboxes([&toolbox]);
    let config = Config { list_timeout: Duration::from_millis(300), ..config };
    let table = Arc::new(ArcSwap::from_pointee(table));
    Arc::new(Gateway::new(config, table, Arc::clone(world) as _, CancellationToken::new(), None))
}

fn request(method: &str, params: Value) -> Bytes {
    let mut params = params;
    params["_meta"] = json!({era::META_VERSION: MODERN, era::META_CAPABILITIES: {}});
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string().into()
}

fn call(gateway: &Gateway, body: Bytes) -> Call {
    let route = gateway.table.load().find(&ServerKey::toolbox("default", "dev")).cloned().unwrap();
    let message = Message::parse(&body).unwrap();
    let name = message.param("name").unwrap_or_default().into_owned();
    let mut request = Request::post("/").header("content-type", "application/json");
    request = request.header("mcp-protocol-version", MODERN).header("mcp-method", message.method());
    if !name.is_empty() {
        request = request.header("mcp-name", name);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let patience = gateway.config.start_timeout;
    Call { parts, body, route, principal: Principal::default(), revision: None, patience, trail: Arc::default() }
}

async fn ask(gateway: &Arc<Gateway>, method: &str, params: Value) -> Value {
    let response = Arc::clone(gateway).forward(call(gateway, request(method, params))).await;
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

async fn tools(gateway: &Arc<Gateway>) -> usize {
    ask(gateway, "tools/list", json!({})).await["result"]["tools"].as_array().unwrap().len()
}

/// Looks until something is so. The test has a limit of its own.
async fn until<F: Future<Output = bool>>(mut look: impl FnMut() -> F) {
    let looked = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looked).await.expect("it comes to be so");
}

#[tokio::test]
async fn a_hundred_servers_are_listed_from_memory() {
    let world = World::start(100).await;
    let gateway = gateway(&world, 100);
    // A hundred connections may take longer than a server gets: what is late, lands.
    until(|| async { tools(&gateway).await == 500 }).await;
    let asked = world.lists();
    let began = std::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(tools(&gateway).await, 500);
    }
    println!("a list of 100 servers takes {:?}", began.elapsed() / 20);
    assert_eq!(world.lists(), asked, "nobody was asked again");
}

#[tokio::test]
async fn a_list_follows_what_its_server_says() {
    let world = World::start(1).await;
    let gateway = gateway(&world, 1);
    assert_eq!(tools(&gateway).await, 5, "both pages");
    until(|| async { world.listeners.load(Ordering::SeqCst) == 1 }).await;
    let body = request("subscriptions/listen", json!({"notifications": {"toolsListChanged": true}}));
    let response = Arc::clone(&gateway).forward(call(&gateway, body)).await;
    let mut events = member::messages(response, 1 << 20).await.unwrap();
    let acknowledged = events.next().await.unwrap();
    assert!(String::from_utf8_lossy(&acknowledged).contains("acknowledged"));
    // A change that changes nothing is no news; the next one is.
    world.told.send(()).unwrap();
    until(|| async { world.lists() == 4 }).await;
    world.more.store(true, Ordering::SeqCst);
    world.told.send(()).unwrap();
    let changed = tokio::time::timeout(Duration::from_secs(30), events.next()).await.unwrap().unwrap();
    let changed: Value = serde_json::from_slice(&changed).unwrap();
    assert_eq!(changed["method"], "notifications/tools/list_changed");
    assert_eq!(changed["params"]["_meta"][era::META_SUBSCRIPTION], 1);
    assert_eq!(tools(&gateway).await, 6);
    assert_eq!(world.lists(), 6, "asked for once for each change");
}

#[tokio::test]
async fn a_list_is_asked_for_again_when_its_time_is_over() {
    let world = World::start(1).await;
    world.ttl.store(0, Ordering::SeqCst);
    let gateway = gateway(&world, 1);
    assert_eq!(tools(&gateway).await, 5);
    world.more.store(true, Ordering::SeqCst);
    assert_eq!(tools(&gateway).await, 5, "what was there is given while the next one is on its way");
    until(|| async { tools(&gateway).await == 6 }).await;
    let answer = ask(&gateway, "tools/list", json!({})).await;
    assert_eq!(answer["result"]["ttlMs"], 0, "{answer}");
}

#[tokio::test]
async fn another_revision_has_a_list_of_its_own() {
    let world = World::start(1).await;
    let gateway = gateway(&world, 1);
    assert_eq!(tools(&gateway).await, 5);
    world.more.store(true, Ordering::SeqCst);
    assert_eq!(tools(&gateway).await, 5);
    world.run("s0", Some("s0-2"));
    assert_eq!(tools(&gateway).await, 6);
    world.run("s0", Some("s0-1"));
    assert_eq!(tools(&gateway).await, 5);
    assert_eq!(world.lists(), 4, "two lists of two pages");
}

#[tokio::test]
async fn who_has_no_instance_is_waited_for_once() {
    let world = World::start(2).await;
    world.run("s1", None);
    let gateway = gateway(&world, 2);
    let began = std::time::Instant::now();
    let answer = ask(&gateway, "tools/list", json!({})).await;
    assert!(began.elapsed() >= Duration::from_millis(300), "it may be just starting");
    assert_eq!(answer["result"]["tools"].as_array().unwrap().len(), 5);
    assert_eq!(answer["result"]["_meta"]["perch.dev/unavailable"][0]["server"], "s1", "{answer}");
    let began = std::time::Instant::now();
    assert_eq!(tools(&gateway).await, 5);
    assert!(began.elapsed() < Duration::from_millis(250), "{:?}", began.elapsed());
    let (listing, start) = (Arc::clone(&gateway), Arc::clone(&world));
    world.run("s1", Some("s1-1"));
    assert_eq!(tools(&listing).await, 10);
    // One that has just gone is waited for again.
    world.run("s1", None);
    let listing = tokio::spawn(async move { tools(&listing).await });
    tokio::task::yield_now().await;
    start.run("s1", Some("s1-1"));
    assert_eq!(listing.await.unwrap(), 10);
}

#[tokio::test]
async fn who_is_silent_is_left_out_and_lands_later() {
    let world = World::start(1).await;
    world.silent.store(true, Ordering::SeqCst);
    let gateway = gateway(&world, 1);
    let answer = ask(&gateway, "tools/list", json!({})).await;
    let reason = answer["result"]["_meta"]["perch.dev/unavailable"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("did not list its tools within 300ms"), "{answer}");
    assert_eq!(answer["result"]["tools"], json!([]));
    assert_eq!(world.lists(), 1, "one question is on its way, however many wait for it");
    assert_eq!(ask(&gateway, "tools/list", json!({})).await["result"]["tools"], json!([]));
    assert_eq!(world.lists(), 1);
    let said = ask(&gateway, "tools/call", json!({"name": "s0_t1", "arguments": {}})).await;
    assert_eq!(said["result"]["content"][0]["text"], "t1", "calls need no list: {said}");
}

#[tokio::test]
async fn a_list_has_an_end() {
    let world = World::start(1).await;
    world.endless.store(true, Ordering::SeqCst);
    let gateway = gateway(&world, 1);
    assert_eq!(tools(&gateway).await, 5);
    assert_eq!(world.lists(), 2, "the same page again is no more");
    let answer = ask(&gateway, "tools/list", json!({"cursor": "two"})).await;
    assert_eq!(answer["error"]["code"], -32602, "the whole list came at once: {answer}");
}

#[tokio::test]
async fn a_list_of_many_pages_is_bounded_as_one() {
    let world = World::start(1).await;
    // Each page fits, and both together do not.
    let config = Config { line_limit: 200, ..Config::new([7; 32], Access::anonymous()) };
    let gateway = gateway_with(&world, 1, config);
    let answer = ask(&gateway, "tools/list", json!({})).await;
    let reason = answer["result"]["_meta"]["perch.dev/unavailable"][0]["reason"].as_str().unwrap_or_default();
    assert_eq!(reason, "its tools are larger than 200 bytes", "{answer}");
    assert_eq!(world.lists(), 2);
}

#[tokio::test]
async fn a_session_of_a_server_is_not_one_of_the_toolbox() {
    let world = World::start(1).await;
    let gateway = gateway(&world, 1);
    let body = request("tools/call", json!({"name": "s0_t1", "arguments": {}}));
    let response = Arc::clone(&gateway).forward(call(&gateway, body)).await;
    assert_eq!((response.status().as_u16(), response.headers().get(SESSION)), (200, None));
}

#[test]
fn clients_differ_by_few_capabilities() {
    let of = |capabilities: Value| {
        let params = json!({"_meta": {era::META_CAPABILITIES: capabilities}});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params}).to_string();
        capabilities_of(&body)
    };
    assert_eq!(
        &*of(json!({"sampling": {"tools": {}}, "elicitation": {"form": {}}})),
        r#"{"elicitation":{"form":{}},"sampling":{"tools":{}}}"#
    );
    assert_eq!(&*of(json!({"roots": {"listChanged": true}, "x": {"y": 1}})), r#"{"roots":{"listChanged":true}}"#);
    assert_eq!(of(json!({"elicitation": {"n": 1}})), of(json!({"elicitation": {"n": 2}, "extensions": {}})));
    assert_eq!(&*of(json!({"roots": {"listChanged": false}})), r#"{"roots":{}}"#);
}

fn capabilities_of(body: &str) -> Arc<str> {
    capabilities(&Message::parse(body.as_bytes()).unwrap())
}
