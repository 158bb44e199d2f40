//! Sessions, releases and balancing, against real HTTP servers.

mod bad_upstreams;
mod decommission;
mod fuzz;
mod introduction;
mod shared_session;

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{client::legacy::Client, rt::TokioExecutor, rt::TokioIo};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_util::sync::CancellationToken;

use super::{Config, Principal, access::Access, handler::Gateway, instances::Instances, listen};
use crate::{
    api::{canary_release::Routing, mcp_server::ToolFilter},
    names::{Revision, ServerKey},
    routing::{Route, RouteTable, Split, Upstream},
    runtime::{Address, Endpoint, InstanceId, RuntimeError, StdioStreams},
};

/// HTTP servers that say which revision they are, with sessions of their own.
struct Servers {
    endpoints: Mutex<Vec<Endpoint>>,
    changes: broadcast::Sender<ServerKey>,
    counts: Mutex<Vec<(String, Arc<AtomicUsize>)>>,
}

impl Servers {
    async fn start(revisions: &[(&str, u64)]) -> Arc<Self> {
        let servers =
            Self { endpoints: Mutex::default(), changes: broadcast::Sender::new(1), counts: Mutex::default() };
        for (index, (revision, slowness)) in revisions.iter().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/mcp", listener.local_addr().unwrap()).parse().unwrap();
            let instance = format!("{revision}-{index}");
            let count = Arc::new(AtomicUsize::new(0));
            servers.counts.lock().unwrap().push((instance.clone(), Arc::clone(&count)));
            let slowness = Duration::from_millis(*slowness);
            tokio::spawn(serve(listener, instance.clone(), slowness, count));
            servers.endpoints.lock().unwrap().push(Endpoint {
                instance: InstanceId(instance),
                revision: Revision((*revision).into()),
                address: Address::Http(url),
            });
        }
        Arc::new(servers)
    }

    fn counts(&self) -> Vec<usize> {
        self.counts.lock().unwrap().iter().map(|(_, count)| count.load(Ordering::SeqCst)).collect()
    }
}

async fn serve(listener: TcpListener, instance: String, slowness: Duration, count: Arc<AtomicUsize>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (instance, count) = (instance.clone(), Arc::clone(&count));
        let service = service_fn(move |request: Request<Incoming>| {
            let (instance, count) = (instance.clone(), Arc::clone(&count));
            async move {
                let session = format!("plain-{instance}");
                let known = request.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let is_start = body.windows(10).any(|part| part == b"initialize");
                let is_modern = body.windows(10).any(|part| part == b"2026-07-28");
                if !is_start && !is_modern && known.as_deref() != Some(&session) {
                    return Ok::<_, Infallible>(
                        Response::builder().status(404).body(Full::<Bytes>::default()).unwrap(),
                    );
                }
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(slowness).await;
                let result = r#"{"supportedVersions":["2026-07-28"],"resultType":"complete","server":"INSTANCE"}"#;
                let result = result.replace("INSTANCE", &instance);
                let answer = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
                let response =
                    Response::builder().header("content-type", "application/json").header("mcp-session-id", session);
                Ok(response.body(Full::from(answer)).unwrap())
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

#[async_trait]
impl Instances for Servers {
    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint> {
        let all = self.endpoints.lock().unwrap();
        all.iter().filter(|e| (e.revision.as_str() == "new") == server.is_candidate()).cloned().collect()
    }

    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        Err(RuntimeError::NotRunning(instance.to_string()))
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.changes.subscribe()
    }
}

fn key() -> ServerKey {
    ServerKey::new("default", "a")
}

fn table(percentage: Option<i32>) -> RouteTable {
    let route = Route {
        server: key(),
        upstream: Upstream::Http,
        tools: ToolFilter::default(),
        not_ready: None,
        has_failed: false,
        split: None,
        validates_arguments: false,
        notice: None,
    };
    let split = percentage.map(|percentage| {
        let routing = Routing { percentage, users: vec!["dana".into()], ..Routing::default() };
        Split::between("r", &routing, Revision("old".into()), Revision("new".into()))
    });
    RouteTable::of([route]).with_split(&key(), split)
}

/// A gateway; the header `x-user` says who asks.
async fn gateway(servers: &Arc<Servers>, table: &Arc<ArcSwap<RouteTable>>) -> String {
    let config = Config::new([5; 32], Access::anonymous());
    let stop = CancellationToken::new();
    let gateway = Arc::new(Gateway::new(config, Arc::clone(table), Arc::clone(servers) as _, stop.clone(), None));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/default/a/mcp", listener.local_addr().unwrap());
    let answer = move |mut request: Request<Incoming>| {
        if let Some(user) = request.headers().get("x-user").map(|u| u.to_str().unwrap().to_owned()) {
            request.extensions_mut().insert(Principal(user.into()));
        }
        Arc::clone(&gateway).answer(request)
    };
    tokio::spawn(listen::serve(Arc::default(), None, listener, Duration::from_secs(5), stop, Duration::ZERO, answer));
    url
}

/// A request for a server that has no instance yet, and what the gateway answers. The server may
/// have failed when the request comes, or fail some time later.
async fn early(accept: &str, fails_after: Option<u64>) -> Response<super::reply::Body> {
    let servers = Servers::start(&[]).await;
    let config = Config::new([5; 32], Access::anonymous());
    let table = Arc::new(ArcSwap::from_pointee(table(None)));
    let mut route = Route::clone(table.load().find(&key()).unwrap());
    route.not_ready = Some("Starting: the image is pulled".into());
    route.has_failed = fails_after == Some(0);
    table.store(Arc::new(RouteTable::of([route.clone()])));
    if let Some(seconds) = fails_after {
        let failed = Route { not_ready: Some("CrashLoopBackOff: it exited".into()), has_failed: true, ..route.clone() };
        let table = Arc::clone(&table);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            table.store(Arc::new(RouteTable::of([failed])));
        });
    }
    let gateway = Gateway::new(config, table, servers as _, CancellationToken::new(), None);
    let request = Request::post("/default/a/mcp").header("content-type", "application/json").header("accept", accept);
    let call = super::handler::Call {
        parts: request.body(()).unwrap().into_parts().0,
        body: Bytes::from_static(INITIALIZE.as_bytes()),
        route: Arc::new(route),
        principal: Principal::default(),
        revision: None,
        trail: Arc::default(),
        patience: gateway.config.start_timeout,
    };
    Arc::new(gateway).forward(call).await
}

#[tokio::test(start_paused = true)]
async fn a_client_of_a_server_that_starts_is_kept_and_not_for_ever() {
    let begin = tokio::time::Instant::now();
    let response = early("application/json, text/event-stream", None).await;
    assert_eq!((response.status().as_u16(), begin.elapsed().as_secs()), (200, 2));
    assert!(response.headers()["mcp-session-id"].to_str().unwrap().starts_with("w."));
    let mut body = response.into_body();
    let mut heard = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap();
        heard.push((begin.elapsed().as_secs(), frame));
    }
    let (last, comments) = heard.split_last().unwrap();
    assert!(comments.iter().all(|(_, frame)| frame.starts_with(": ")), "{heard:?}");
    let gaps = heard.windows(2).map(|pair| pair[1].0 - pair[0].0);
    assert!(
        gaps.max().unwrap() <= 25 && comments.last().unwrap().0 > 40,
        "nobody may think that it is dead: {heard:?}"
    );
    assert_eq!(last.0, 180);
    let said: serde_json::Value = serde_json::from_str(last.1.split_once("data: ").unwrap().1.trim()).unwrap();
    assert_eq!((&said["id"], &said["error"]["code"]), (&1.into(), &(-32000).into()));
    assert!(said["error"]["message"].as_str().unwrap().ends_with("not ready: Starting: the image is pulled"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_failed_is_not_waited_for_longer_than_for_any_call() {
    for (fails_after, until, status) in [(0, 30, 503), (10, 30, 200), (100, 101, 200)] {
        let begin = tokio::time::Instant::now();
        let response = early("application/json, text/event-stream", Some(fails_after)).await;
        assert_eq!(response.status(), status, "{fails_after}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let waited = begin.elapsed().as_secs();
        assert!((until..=until + 1).contains(&waited), "{fails_after}: {waited}");
        let said = std::str::from_utf8(&body).unwrap();
        assert!(said.contains("is not ready: CrashLoopBackOff: it exited"), "{fails_after}: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_events_is_told_at_last() {
    let begin = tokio::time::Instant::now();
    let response = early("application/json", None).await;
    assert_eq!((response.status().as_u16(), begin.elapsed().as_secs()), (503, 30));
}

const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#;
const MODERN: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#;

/// Status, session id, and which server answered.
async fn send(url: &str, user: &str, session: &str, body: &str) -> (u16, String, String) {
    let mut request = Request::post(url).header("content-type", "application/json");
    if !user.is_empty() {
        request = request.header("x-user", user);
    }
    if !session.is_empty() {
        request = request.header("mcp-session-id", session);
    }
    if body == MODERN {
        request = request.header("mcp-protocol-version", "2026-07-28").header("mcp-method", "tools/list");
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap();
    let id = response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned()).unwrap_or_default();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    (status, id, body["result"]["server"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_session_stays_where_it_began_through_releases_restarts_and_gateways() {
    let servers = Servers::start(&[("old", 0), ("old", 0), ("new", 0)]).await;
    let shared = Arc::new(ArcSwap::from_pointee(table(Some(0))));
    let first = gateway(&servers, &shared).await;
    let (_, session, began) = send(&first, "eve", "", INITIALIZE).await;
    assert!(began.starts_with("old"), "{began}");
    shared.store(Arc::new(table(Some(100))));
    let second = gateway(&servers, &shared).await;
    for url in [&first, &second, &first] {
        assert_eq!(send(url, "eve", &session, CALL).await.2, began, "a session never moves");
    }
    assert!(send(&first, "eve", "", INITIALIZE).await.2.starts_with("new"), "new sessions follow the release");
    assert_eq!(send(&first, "mallory", &session, CALL).await.0, 404, "a session is its user's alone");
    assert_eq!(send(&first, "", &session, CALL).await.0, 404);
    assert!(!session.contains("plain") && !session.contains("old"));
    servers.endpoints.lock().unwrap().retain(|e| e.instance.0 != began);
    assert_eq!(send(&first, "eve", &session, CALL).await.0, 404, "it ends with its instance");
}

#[tokio::test]
async fn a_request_waits_for_the_first_list_and_not_for_ever() {
    let servers = Servers::start(&[("old", 0)]).await;
    let shared = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
    let url = gateway(&servers, &shared).await;
    let mut early = Box::pin(send(&url, "", "", INITIALIZE));
    let held = tokio::time::timeout(Duration::from_millis(300), &mut early).await;
    assert!(held.is_err(), "answered before anything was listed: {held:?}");
    shared.store(Arc::new(table(None)));
    assert_eq!(early.await.0, 200);

    shared.store(Arc::new(RouteTable::default()));
    assert_eq!(send(&url, "", "", INITIALIZE).await.0, 503, "the list never comes");
}

#[tokio::test]
async fn a_release_sends_each_user_to_one_side() {
    let servers = Servers::start(&[("old", 0), ("new", 0)]).await;
    let shared = Arc::new(ArcSwap::from_pointee(table(Some(50))));
    let url = gateway(&servers, &shared).await;
    assert!(send(&url, "dana", "", MODERN).await.2.starts_with("new"), "named users go first");
    let mut sides = std::collections::BTreeMap::new();
    for round in 0..3 {
        for user in 0..40 {
            let side = send(&url, &format!("user-{user}"), "", MODERN).await.2;
            let before = sides.insert(user, side.clone());
            assert!(before.is_none_or(|before| before == side), "user {user} changed sides in round {round}");
        }
    }
    let new = sides.values().filter(|side| side.starts_with("new")).count();
    assert!((8..=32).contains(&new), "{new} of 40");
    // The client's address decides for those whom nobody knows; here it is always the same.
    let sides: std::collections::HashSet<String> =
        [send(&url, "", "", MODERN).await.2, send(&url, "", "", MODERN).await.2, send(&url, "", "", MODERN).await.2]
            .into();
    assert_eq!(sides.len(), 1);
    shared.store(Arc::new(table(Some(0))));
    assert!(send(&url, "user-1", "", MODERN).await.2.starts_with("old"));
}

#[tokio::test]
async fn a_slow_instance_gets_fewer_calls() {
    let servers = Servers::start(&[("old", 200), ("old", 0)]).await;
    let shared = Arc::new(ArcSwap::from_pointee(table(None)));
    let url = gateway(&servers, &shared).await;
    send(&url, "", "", MODERN).await;
    let client = |_| {
        let url = url.clone();
        async move {
            for _ in 0..20 {
                assert_eq!(send(&url, "", "", MODERN).await.0, 200);
            }
        }
    };
    futures::future::join_all((0..4).map(client)).await;
    let counts = servers.counts();
    assert!(counts[1] > counts[0] * 4, "slow and fast instance: {counts:?}");
}

#[tokio::test]
async fn no_call_is_lost_while_the_table_is_swapped() {
    let servers = Servers::start(&[("old", 0), ("new", 0)]).await;
    let shared = Arc::new(ArcSwap::from_pointee(table(None)));
    let url = gateway(&servers, &shared).await;
    let calls = async {
        for _ in 0..200 {
            assert_eq!(send(&url, "", "", MODERN).await.0, 200);
        }
    };
    let swaps = AtomicUsize::new(0);
    let swap = async {
        loop {
            let share = swaps.fetch_add(1, Ordering::SeqCst) % 101;
            shared.store(Arc::new(table(Some(i32::try_from(share).unwrap()))));
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = calls => {}
        () = swap => {}
    }
    assert!(swaps.load(Ordering::SeqCst) >= 1000);
}
