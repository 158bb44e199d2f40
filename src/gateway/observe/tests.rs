//! How operations are judged, from their answers on the wire.

use futures::{StreamExt, stream};
use http::{HeaderMap, Method, Request};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::json;

use super::{
    releases::{InFlight, RevisionCounters, watched},
    *,
};
use crate::{
    api::{
        canary_release::{CanaryReleaseSpec, Routing},
        gateway_report::CountedSignal,
        mcp_server::ToolFilter,
    },
    gateway::{reply, session::Principal},
    names::{Revision, ServerKey},
    routing::{Route, Side, Split, Upstream},
};

const CALL: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"x"}}}"#;
const OK: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#;
const FAILED: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[],"isError":true}}"#;

/// A gateway's observer with one release, whose candidate serves every call.
struct Scene {
    observer: Arc<Observer>,
    split: Split,
}

impl Scene {
    fn new() -> Self {
        let observer = Arc::new(Observer::new("g".into(), None).unwrap());
        let routing = Routing { percentage: 100, ..Routing::default() };
        let split = Split::between("r", &routing, Revision("a-1".into()), Revision("a-2".into()));
        let spec: CanaryReleaseSpec = serde_json::from_value(json!({
            "targetRef": {"name": "a"}, "stages": [{"name": "s", "percentage": 10, "duration": "1h"}],
        }))
        .unwrap();
        observer.releases.prepare(&ServerKey::new("default", "a"), &split, &watched(&spec), Timestamp::now());
        Self { observer, split }
    }

    fn counters(&self) -> Arc<RevisionCounters> {
        let release = self.observer.releases.get(&ServerKey::new("default", "a")).unwrap();
        Arc::clone(release.counters(Side::Candidate).unwrap())
    }

    /// A call in a session, on its way at the candidate.
    fn call(&self, body: &'static str) -> Call {
        let mut headers = HeaderMap::new();
        headers.insert("mcp-session-id", "s".parse().unwrap());
        let (mut parts, ()) = Request::builder().method(Method::POST).body(()).unwrap().into_parts();
        parts.headers = headers;
        let call = Call {
            parts,
            body: Bytes::from_static(body.as_bytes()),
            route: Arc::new(Route {
                server: ServerKey::new("default", "a"),
                upstream: Upstream::Http,
                tools: ToolFilter::default(),
                not_ready: None,
                has_failed: false,
                split: None,
                validates_arguments: false,
                notice: None,
            }),
            principal: Principal("dana".into()),
            revision: None,
            trail: Arc::default(),
            patience: Duration::ZERO,
        };
        call.trail.serve(&Revision("a-2".into()), || {
            let subject = crate::routing::Subject { user: Some("dana"), ..crate::routing::Subject::default() };
            Some(Counted { in_flight: InFlight::new(self.counters()), seat: self.split.seat(&subject), over: None })
        });
        call
    }

    fn answer(&self, body: &'static str, done: Result<Response<Body>, Failure>) -> Response<Body> {
        let call = self.call(body);
        let message = Message::parse(&call.body).unwrap();
        let watch = Watch::new(&self.observer, &call, &message);
        follow(watch, &call.trail, done, message.id)
    }

    /// Failed calls, refused calls, all calls, and those still in hand.
    fn counts(&self) -> (i64, i64, i64, i64) {
        let report = self.observer.releases.report("g", Timestamp::UNIX_EPOCH, true, &table(&self.split));
        let revision = report.servers[0].revisions.iter().find(|r| r.revision == "a-2").unwrap();
        let counter = |signal: CountedSignal| revision.counters.iter().find(|c| c.signal == signal).unwrap().counts;
        let (errors, refused) = (counter(CountedSignal::Errors), counter(CountedSignal::SchemaErrors));
        let sum = |cells: [i64; 16]| cells.iter().sum();
        (sum(errors.bad), sum(refused.bad), sum(errors.total), revision.in_flight)
    }
}

fn table(split: &Split) -> RouteTable {
    let route = Route {
        server: ServerKey::new("default", "a"),
        upstream: Upstream::Http,
        tools: ToolFilter::default(),
        not_ready: None,
        has_failed: false,
        split: None,
        validates_arguments: false,
        notice: None,
    };
    RouteTable::of([route]).with_split(&ServerKey::new("default", "a"), Some(split.clone()))
}

#[expect(clippy::unnecessary_wraps, reason = "as it comes from a server")]
fn json_answer(body: &'static str) -> Result<Response<Body>, Failure> {
    Ok(reply::json(StatusCode::OK, body))
}

/// A body in pieces, which breaks at the end if it is told to.
#[expect(clippy::unnecessary_wraps, reason = "as it comes from a server")]
fn pieces(media: &'static str, pieces: Vec<&'static str>, breaks: bool) -> Result<Response<Body>, Failure> {
    let broken = breaks.then(|| Err::<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>("reset".into()));
    let frames = stream::iter(pieces.into_iter().map(|p| Ok(Frame::data(Bytes::from_static(p.as_bytes())))))
        .chain(stream::iter(broken));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, media.parse().unwrap());
    Ok(response)
}

const EVENTS: &str = "text/event-stream";

#[tokio::test]
async fn every_way_to_fail_is_counted_once() {
    let failure = |status: u16, code| Err(Failure::new(StatusCode::from_u16(status).unwrap(), code, "x"));
    let mut bad_gateway = reply::json(StatusCode::OK, OK);
    *bad_gateway.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let error = |code: &'static str| json_answer(code);
    let cases = vec![
        ("fine", json_answer(OK), (0, 0)),
        ("a tool that failed", json_answer(FAILED), (1, 0)),
        ("an internal error", error(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"x"}}"#), (1, 0)),
        ("invalid parameters", error(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"x"}}"#), (0, 1)),
        ("an unknown tool", error(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"x"}}"#), (0, 1)),
        ("another error", error(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32002,"message":"x"}}"#), (0, 0)),
        ("more input", json_answer(r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required"}}"#), (0, 0)),
        ("status 500", Ok(bad_gateway), (1, 0)),
        ("no connection", failure(502, -32000), (1, 0)),
        ("no instance", failure(503, -32000), (1, 0)),
        ("a timeout", failure(504, -32000), (1, 0)),
        ("a process that ended", failure(200, -32603), (1, 0)),
        (
            "in pieces",
            pieces("application/json", vec![r#"{"jsonrpc":"2.0","id":1,"result":{"isErr"#, r#"or":true}}"#], false),
            (1, 0),
        ),
        ("broken off", pieces("application/json", vec![r#"{"jsonrpc":"2.0","#], true), (1, 0)),
        ("ended early", pieces("application/json", vec![r#"{"jsonrpc":"2.0","#], false), (1, 0)),
        ("no body", Ok(reply::empty(StatusCode::ACCEPTED)), (1, 0)),
        (
            "events",
            pieces(
                EVENTS,
                vec![
                    "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n\n",
                    "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n",
                ],
                false,
            ),
            (0, 0),
        ),
        (
            "events of a tool that failed",
            pieces(EVENTS, vec!["data: {\"id\":1,\"result\":{\"isError\":tr", "ue}}\n\n"], false),
            (1, 0),
        ),
        ("events without an answer", pieces(EVENTS, vec![": hello\n\n"], false), (1, 0)),
        ("events that broke off", pieces(EVENTS, vec!["id: 1\ndata: {}\n\n"], true), (1, 0)),
    ];
    let mut expected = (0, 0, 0, 0);
    let scene = Scene::new();
    for (what, answer, (failed, refused)) in cases {
        let response = scene.answer(CALL, answer);
        // A client that reads to the end, or until it breaks.
        let _ = response.into_body().collect().await;
        expected = (expected.0 + failed, expected.1 + refused, expected.2 + 1, 0);
        assert_eq!(scene.counts(), expected, "{what}");
    }
}

#[tokio::test]
async fn what_nobody_knows_the_end_of_is_left_out() {
    let scene = Scene::new();
    // The client goes away, before and in the middle of the answer.
    let call = scene.call(CALL);
    drop(Watch::new(&scene.observer, &call, &Message::parse(&call.body).unwrap()));
    assert_eq!(scene.counts(), (0, 0, 0, 0));
    let mut body = scene.answer(CALL, pieces(EVENTS, vec![": hello\n\n", "data: {}\n\n"], false)).into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(scene.counts(), (0, 0, 0, 1), "in hand");
    drop(body);
    assert_eq!(scene.counts(), (0, 0, 0, 0));
    // The server lets the client take the stream up again.
    let _ = scene.answer(CALL, pieces(EVENTS, vec!["id: 1\n\n"], false)).into_body().collect().await;
    assert_eq!(scene.counts(), (0, 0, 0, 0));
    // The client gives a call of its session up; the server then need not answer.
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
    drop(scene.answer(cancel, Ok(reply::empty(StatusCode::ACCEPTED))));
    let _ = scene.answer(CALL, pieces(EVENTS, vec![": x\n\n"], false)).into_body().collect().await;
    assert_eq!(scene.counts(), (0, 0, 0, 0));
    let _ = scene.answer(CALL, pieces(EVENTS, vec![": x\n\n"], false)).into_body().collect().await;
    assert_eq!(scene.counts(), (1, 0, 1, 0), "one call was given up, not the next one with its id");
}

#[tokio::test]
async fn only_calls_of_tools_count() {
    let scene = Scene::new();
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let _ = scene
        .answer(list, json_answer(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603}}"#))
        .into_body()
        .collect()
        .await;
    assert_eq!(scene.counts(), (0, 0, 0, 0));
    let text = encoded(&scene);
    assert!(text.contains(r#"method="tools/list",tool="",outcome="internal_error"} 1"#), "{text}");
}

fn encoded(scene: &Scene) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(Box::new(Arc::clone(&scene.observer)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

#[tokio::test]
async fn a_client_that_has_the_whole_answer_need_not_ask_for_its_end() {
    let scene = Scene::new();
    let mut body = scene.answer(CALL, pieces("application/json", vec![FAILED], false)).into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert_eq!(scene.counts(), (1, 0, 1, 0));
}

#[tokio::test]
async fn state_is_remembered_for_who_got_it() {
    let scene = Scene::new();
    let answer = r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","requestState":"a\u00e9b"}}"#;
    let _ = scene.answer(CALL, json_answer(answer)).into_body().collect().await;
    let back = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"echo","requestState":"aéb"}}"#;
    let mut call = scene.call(back);
    assert_eq!(scene.observer.states.bond(&call), Some(Revision("a-2".into())), "however it is written");
    call.principal = Principal("eve".into());
    assert_eq!(scene.observer.states.bond(&call), None);
    assert_eq!(scene.observer.states.bond(&scene.call(CALL)), None);
}

#[tokio::test]
async fn a_stream_that_listens_is_in_hand_until_the_candidate_is_over() {
    let scene = Scene::new();
    let over = CancellationToken::new();
    let call = scene.call(r#"{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen"}"#);
    let listener = Arc::<Trail>::default();
    listener.serve(&Revision("a-2".into()), || {
        let mut served = call.trail.take()?.counted?;
        served.over = Some(over.clone());
        Some(served)
    });
    let endless = stream::pending::<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>();
    let mut response = Response::new(StreamBody::new(endless).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, EVENTS.parse().unwrap());
    let call = Call { trail: Arc::clone(&listener), ..call };
    let watch = Watch::new(&scene.observer, &call, &Message::parse(&call.body).unwrap());
    let mut body = follow(watch, &listener, Ok(response), None).into_body();
    assert_eq!(scene.counts(), (0, 0, 0, 1));
    over.cancel();
    assert!(body.frame().await.is_none(), "it ends cleanly");
    drop(body);
    assert_eq!(scene.counts(), (0, 0, 0, 0));
}

#[tokio::test]
async fn an_operation_leaves_one_audit_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let config = AuditConfig { arguments: true, ..AuditConfig::new(path.clone()) };
    let scene = Scene { observer: Arc::new(Observer::new("g".into(), Some(config)).unwrap()), ..Scene::new() };
    let scene = Scene { split: scene.split.clone(), ..scene };
    let call = Scene::new().call(CALL);
    let message = Message::parse(&call.body).unwrap();
    let watch = Watch::new(&scene.observer, &call, &message);
    let _ = follow(watch, &call.trail, json_answer(FAILED), None).into_body().collect().await;
    let mut refused = Watch::new(&scene.observer, &call, &message).unwrap();
    refused.deny();
    drop(follow(Some(refused), &call.trail, Err(Failure::new(StatusCode::OK, -32602, "Unknown tool")), None));
    scene.observer.close().await;
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    let said = |line: &Value| {
        json!([line["user"], line["method"], line["name"], line["decision"], line["outcome"], line["revision"]])
    };
    assert_eq!(said(&lines[0]), json!(["dana", "tools/call", "echo", "allow", "tool_error", "a-2"]));
    assert_eq!(said(&lines[1]), json!(["dana", "tools/call", "echo", "deny", "rejected", null]));
    assert_eq!(lines[0]["arguments"], json!({"text": "x"}));
}

#[tokio::test]
async fn who_is_not_let_in_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let observer = Observer::new("g".into(), Some(AuditConfig::new(path.clone()))).unwrap();
    let (parts, ()) = Request::post("/default/a/mcp").body(()).unwrap().into_parts();
    observer.refused(&parts, StatusCode::UNAUTHORIZED);
    observer.refused(&parts, StatusCode::OK);
    observer.close().await;
    let text = std::fs::read_to_string(&path).unwrap();
    let line: Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(
        json!([line["server"], line["decision"], line["outcome"], line["method"]]),
        json!(["default/a", "deny", "unauthenticated", "POST"])
    );
}
