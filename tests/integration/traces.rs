//! Traces of operations, as a receiver of OTLP gets them. The receiver is a small one, made here: it
//! takes what is posted to it and decodes it by OpenTelemetry's own definition.

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Condvar, Mutex},
};

use axum::{Router, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value},
    trace::v1::Span,
};
use prost::Message;
use serde_json::{Value, json};

use crate::{
    eras,
    support::{PATIENCE, Perch, fixture, send},
};

#[derive(Default)]
struct Inner {
    batches: Vec<(HeaderMap, ExportTraceServiceRequest)>,
    refuses: bool,
}

#[derive(Clone, Default)]
struct Receiver(Arc<(Mutex<Inner>, Condvar)>);

impl Receiver {
    /// Starts one and gives its address. It lives as long as the test.
    fn start() -> (Self, SocketAddr) {
        let receiver = Self::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let app = Router::new().route("/v1/traces", post(take)).with_state(receiver.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap();
            });
        });
        (receiver, addr)
    }

    /// Waits until something that came passes the check.
    fn until<T>(&self, what: &str, mut check: impl FnMut(&Inner) -> Option<T>) -> T {
        let (inner, changed) = &*self.0;
        let mut found = None;
        let waits = |inner: &mut Inner| {
            found = check(inner);
            found.is_none()
        };
        drop(changed.wait_timeout_while(inner.lock().unwrap(), PATIENCE, waits).unwrap());
        found.unwrap_or_else(|| panic!("waited too long for {what}"))
    }

    /// The span of the request with this id.
    fn span(&self, id: &str) -> (Span, HashMap<String, String>) {
        self.until(&format!("the span of {id}"), |inner| {
            let spans = inner.batches.iter().flat_map(|(_, batch)| &batch.resource_spans);
            let mut spans = spans.flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans);
            spans.find_map(|span| {
                let attributes = attributes(&span.attributes);
                (attributes.get("jsonrpc.request.id")? == id).then(|| (span.clone(), attributes))
            })
        })
    }
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: bytes::Bytes) -> StatusCode {
    let (inner, changed) = &*receiver.0;
    let mut inner = inner.lock().unwrap();
    if inner.refuses {
        return StatusCode::BAD_REQUEST;
    }
    inner.batches.push((headers, ExportTraceServiceRequest::decode(body).unwrap()));
    changed.notify_all();
    StatusCode::OK
}

fn attributes(list: &[KeyValue]) -> HashMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some((pair.key.clone(), text.clone())),
        other => Some((pair.key.clone(), format!("{other:?}"))),
    };
    list.iter().filter_map(text).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A perch that sends traces, with more variables in its environment.
fn up(dir: &tempfile::TempDir, endpoint: &str, args: &[&str], environment: &[(&str, &str)]) -> Perch {
    let args = [&["--runtime", "process", "--otlp-endpoint", endpoint], args].concat();
    let environment = [&[("OTEL_BSP_SCHEDULE_DELAY", "50")], environment].concat();
    Perch::up_in(&environment, dir.path(), &args, Stdio::piped())
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn legacy(session: &crate::support::Session, url: &str, id: &str, headers: &[(&str, &str)], params: Value) -> Value {
    let body = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}).to_string();
    let headers =
        [&[("Mcp-Session-Id", session.id.as_str()), ("MCP-Protocol-Version", "2025-11-25")], headers].concat();
    let (_, _, body) = send("POST", url, &headers, &body);
    let last = body.lines().filter_map(|l| l.strip_prefix("data: ")).next_back().map(str::to_owned);
    serde_json::from_str(&last.unwrap_or(body)).unwrap()
}

/// The `_meta` that reached the server.
fn meta(answer: &Value) -> Value {
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    serde_json::from_str(text).unwrap()
}

#[test]
fn an_operation_is_a_span_of_its_clients_trace_and_the_server_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (receiver, addr) = Receiver::start();
    let environment = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("OTEL_SERVICE_NAME", "edge"),
    ];
    let up = up(&dir, &format!("http://{addr}/"), &[], &environment);
    for (name, transport) in [("http", "StreamableHttp"), ("stdio", "Stdio")] {
        let command = json!([fixture(), if name == "http" { "http" } else { "stdio" }]);
        up.apply(name, &json!({"command": command, "transport": {"type": transport}}));
    }
    let parent = |span: &str, flags: &str| format!("00-{TRACE}-{span}-{flags}");
    for name in ["http", "stdio"] {
        up.until(name, "Ready");
        let url = format!("{}/default/{name}/mcp", up.gateway);
        let session = up.session(name);
        let call = |id: &str, headers: &[(&str, &str)], meta: Value| {
            let id = format!("{name}-{id}");
            let params = json!({"name": "meta", "arguments": {}, "_meta": meta});
            let answer = legacy(&session, &url, &id, headers, params);
            (answer, receiver.span(&id))
        };

        // The trace that `_meta` names, and not that of the header.
        let named = json!({"traceparent": parent("b7ad6b7169203331", "01"), "tracestate": "a=1", "k": 1.50});
        let (answer, (span, told)) = call("meta", &[("traceparent", &parent("00000000000000ff", "01"))], named);
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), "b7ad6b7169203331".into()));
        assert_eq!((span.name.as_str(), span.kind), ("tools/call meta", 2), "a server's span");
        for (key, value) in [
            ("mcp.method.name", "tools/call"),
            ("gen_ai.tool.name", "meta"),
            ("gen_ai.operation.name", "execute_tool"),
            ("mcp.protocol.version", "2025-11-25"),
            ("perch.server", &format!("default/{name}")),
            ("client.address", "127.0.0.1"),
        ] {
            assert_eq!(told.get(key).map(String::as_str), Some(value), "{key}: {told:?}");
        }
        assert!(told["perch.revision"].starts_with(name) && !told.contains_key("error.type"), "{told:?}");
        assert!(span.end_time_unix_nano > span.start_time_unix_nano);
        let reached = meta(&answer);
        assert_eq!(reached["traceparent"], parent(&hex(&span.span_id), "01"), "the server's parent is the span");
        assert_eq!((&reached["tracestate"], &reached["k"]), (&json!("a=1"), &json!(1.5)));
        if name == "http" {
            assert_eq!(reached["header"], reached["traceparent"], "headers say the same");
        }

        // The trace that the headers name, and one that begins here.
        let (answer, (span, _)) = call("header", &[("traceparent", &parent("00000000000000ff", "01"))], json!({}));
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), "00000000000000ff".into()));
        assert_eq!(meta(&answer)["traceparent"], parent(&hex(&span.span_id), "01"));
        let (answer, (span, _)) = call("none", &[], json!({}));
        assert!(hex(&span.trace_id) != TRACE && span.parent_span_id.is_empty());
        assert!(meta(&answer)["traceparent"].as_str().unwrap().contains(&hex(&span.trace_id)));

        // What the client does not keep is not kept, and goes on as it came.
        let unkept = parent("b7ad6b7169203331", "00");
        let params = json!({"name": "meta", "_meta": {"traceparent": unkept}});
        assert_eq!(meta(&legacy(&session, &url, "unkept", &[], params))["traceparent"], unkept);

        // A failure is one, and says which.
        let id = format!("{name}-failed");
        legacy(&session, &url, &id, &[], json!({"name": "fault", "arguments": {"kind": "tool"}}));
        let (span, told) = receiver.span(&id);
        assert_eq!((told["error.type"].as_str(), span.status.unwrap().code), ("tool_error", 2));

        // A modern client at a legacy server.
        let params =
            json!({"name": "meta", "arguments": {}, "_meta": {"traceparent": parent("00000000000000aa", "01")}});
        let (_, answer) = eras::modern(&url, "tools/call", params, &json!({}));
        assert!(meta(&answer)["traceparent"].as_str().unwrap().contains(TRACE), "{answer}");
    }
    let unkept = receiver.until("all", |inner| {
        let spans = inner.batches.iter().flat_map(|(_, b)| &b.resource_spans).flat_map(|r| &r.scope_spans);
        let ids = spans.flat_map(|s| &s.spans).map(|span| attributes(&span.attributes)["jsonrpc.request.id"].clone());
        Some(ids.filter(|id| id == "unkept").count())
    });
    assert_eq!(unkept, 0);
    let (headers, resource) = receiver.until("a batch", |inner| {
        let (headers, batch) = inner.batches.first()?;
        Some((headers.clone(), attributes(&batch.resource_spans[0].resource.as_ref()?.attributes)))
    });
    assert_eq!(headers["x-tenant"], "blue");
    assert_eq!((resource["service.name"].as_str(), resource["deployment.environment.name"].as_str()), ("edge", "test"));
}

#[test]
fn a_receiver_that_takes_nothing_holds_nobody_up_and_the_loss_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (receiver, addr) = Receiver::start();
    receiver.0.0.lock().unwrap().refuses = true;
    let up = up(&dir, &format!("http://{addr}"), &["--trace-ratio", "1"], &[("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")]);
    up.apply("a", &json!({"command": [fixture(), "stdio"], "transport": {"type": "Stdio"}}));
    up.until("a", "Ready");
    let session = up.session("a");
    for _ in 0..20 {
        assert_eq!(session.text("echo", &json!({"text": "on"})), "on");
    }
    let url = up.output().lines().find_map(|l| l.strip_prefix("Metrics  ").map(str::to_owned)).unwrap();
    crate::support::wait("lost spans", || {
        let metrics = send("GET", &url, &[], "").2;
        let lost = metrics.lines().find_map(|l| l.strip_prefix("perch_otlp_spans_lost_total "))?;
        (lost.parse::<u64>().unwrap() >= 20).then_some(())
    });
}

#[test]
fn only_what_is_asked_for_is_kept_and_wrong_settings_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let (receiver, addr) = Receiver::start();
    let up = up(&dir, &format!("http://{addr}"), &["--trace-ratio", "0"], &[]);
    up.apply("a", &json!({"command": [fixture(), "stdio"], "transport": {"type": "Stdio"}}));
    up.until("a", "Ready");
    let session = up.session("a");
    let url = format!("{}/default/a/mcp", up.gateway);
    assert!(
        meta(&legacy(&session, &url, "no", &[], json!({"name": "meta", "_meta": {"k": 1}})))["traceparent"].is_null()
    );
    // The client keeps its trace, so this one is.
    let named = json!({"traceparent": format!("00-{TRACE}-00000000000000aa-01")});
    legacy(&session, &url, "yes", &[], json!({"name": "meta", "_meta": named}));
    receiver.span("yes");
    receiver.until("all", |inner| (inner.batches.len() == 1).then_some(()));

    for (args, says) in [
        (["--otlp-endpoint", "collector"], "no URL that traces can be sent to"),
        (["--trace-ratio", "2"], "from 0 to 1"),
    ] {
        let output = crate::support::perch(&[
            "up",
            "--data-dir",
            dir.path().join("other").to_str().unwrap(),
            args[0],
            args[1],
            "--api-addr",
            "127.0.0.1:0",
            "--gateway-addr",
            "127.0.0.1:0",
            "--runtime",
            "process",
        ]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(says), "{said}");
    }
}
