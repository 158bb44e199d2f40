//! Letters to real receivers on loopback, with Secrets from an API on loopback.

use std::sync::Mutex;

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::canary::EventKind;

type Handler = Arc<dyn Fn(&str, Value) -> Response + Send + Sync>;

async fn serve(handler: impl Fn(&str, Value) -> Response + Send + Sync + 'static) -> Url {
    let handler: Handler = Arc::new(handler);
    let app = Router::new()
        .fallback(async |State(handler): State<Handler>, uri: Uri, body: Bytes| {
            handler(uri.path(), serde_json::from_slice(&body).unwrap_or_default())
        })
        .with_state(handler);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// An API that knows one Secret, `team/hooks`, with these URLs.
async fn api(urls: Vec<(&'static str, String)>) -> Client {
    let data: serde_json::Map<String, Value> =
        urls.into_iter().map(|(key, url)| (key.to_owned(), json!(BASE64_STANDARD.encode(url)))).collect();
    let url = serve(move |path, _| {
        if path == "/api/v1/namespaces/team/secrets/hooks" {
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hooks"}, "data": data});
            return axum::Json(secret).into_response();
        }
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403,
            "reason": "Forbidden", "message": "secrets \"other\" is forbidden"});
        (StatusCode::FORBIDDEN, axum::Json(status)).into_response()
    })
    .await;
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    Client::try_from(kube::Config::new(url.as_str().parse().unwrap())).unwrap()
}

/// A receiver that answers with these codes, then with 200, and gives what it got.
async fn receiver_of(codes: &'static [u16]) -> (Url, UnboundedReceiver<(String, Value)>) {
    let (sender, receiver) = unbounded_channel();
    let count = Mutex::new(0);
    let url = serve(move |path, body| {
        let mut count = count.lock().unwrap();
        let code = codes.get(*count).copied().unwrap_or(200);
        *count += 1;
        sender.send((path.to_owned(), body)).unwrap();
        StatusCode::from_u16(code).unwrap().into_response()
    })
    .await;
    (url, receiver)
}

const SOON: Patience =
    Patience { attempts: 3, first_wait: Duration::from_millis(5), attempt: Duration::from_millis(300) };

fn release(alerts: Value) -> CanaryRelease {
    serde_json::from_value(json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "rel", "namespace": "team"},
        "spec": {"targetRef": {"name": "srv"}, "alerts": alerts,
            "stages": [{"name": "pilot", "percentage": 10, "duration": "1h"}]},
        "status": {"phase": "RollingBack", "releaseId": "srv-2.1", "stableRevision": "srv-1", "candidateRevision": "srv-2",
            "stage": {"index": 0, "name": "pilot", "attempt": 1, "activeSeconds": 9, "percentage": 10},
            "lastTick": "2026-01-02T04:00:01Z",
            "ending": {"outcome": "RolledBack", "reason": "CriterionBreached",
                "message": "errorRate < 1%: 9 of 100 calls were bad", "at": "2026-01-02T04:00:00Z"}}
    }))
    .unwrap()
}

fn alert(name: &str, type_: &str, key: &str) -> Value {
    json!({"name": name, "type": type_, "urlFrom": {"secretName": "hooks", "key": key}})
}

fn told(reason: &'static str) -> StoryEvent {
    StoryEvent { kind: EventKind::Warning, reason, message: format!("{reason} & <more>") }
}

fn http() -> reqwest::Client {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn start(client: Client) -> (Alerts, CancellationToken, tokio::task::JoinHandle<()>) {
    let (alerts, postman) = Alerts::new();
    let shutdown = CancellationToken::new();
    let work = tokio::spawn(postman.run(client, http(), SOON, shutdown.clone()));
    (alerts, shutdown, work)
}

#[tokio::test]
async fn each_receiver_gets_its_form_once() {
    let (hook, mut hooks) = receiver_of(&[]).await;
    let (slack, mut slacks) = receiver_of(&[]).await;
    let (manager, mut managers) = receiver_of(&[]).await;
    let client =
        api(vec![("hook", format!("{hook}in\n")), ("slack", slack.to_string()), ("am", manager.to_string())]).await;
    let (alerts, shutdown, work) = start(client);
    let release =
        release(json!([alert("h", "Webhook", "hook"), alert("s", "Slack", "slack"), alert("a", "Alertmanager", "am")]));
    // Only the decision is told: not that it was carried out, nor what is of no interest.
    alerts.tell(&release, &[told("RollingBack"), told("Draining"), told("RolledBack"), told("CommandDone")]);

    let (path, body) = hooks.recv().await.unwrap();
    assert_eq!(path, "/in");
    assert_eq!(body["event"], "RolledBack");
    assert_eq!(body["id"], "team/rel/srv-2.1/RolledBack/2026-01-02T04:00:00Z");
    assert_eq!(body["incident"]["message"], "errorRate < 1%: 9 of 100 calls were bad");
    let (_, body) = slacks.recv().await.unwrap();
    let text = body["text"].as_str().unwrap();
    assert!(
        text.contains("team/srv: srv-2 is taken back") && text.contains("RollingBack &amp; &lt;more&gt;"),
        "{text}"
    );
    let (path, body) = managers.recv().await.unwrap();
    assert_eq!(path, "/api/v2/alerts");
    assert_eq!(body[0]["labels"]["alertname"], "PerchCanaryRolledBack");
    assert_eq!(body[0]["labels"]["severity"], "critical");
    assert_eq!(body[0]["startsAt"], "2026-01-02T04:00:00Z");
    assert_eq!(body[0]["endsAt"], "2026-01-02T05:00:00Z");
    shutdown.cancel();
    work.await.unwrap();
    assert!(hooks.try_recv().is_err() && slacks.try_recv().is_err() && managers.try_recv().is_err(), "once each");
}

#[tokio::test]
async fn only_what_was_asked_for_is_told() {
    let (hook, mut hooks) = receiver_of(&[]).await;
    let (alerts, shutdown, work) = start(api(vec![("hook", hook.to_string())]).await);
    let mut only = alert("h", "Webhook", "hook");
    only["events"] = json!(["Promoted"]);
    let release = release(json!([only]));
    alerts.tell(&release, &[told("RollingBack"), told("InsufficientData"), told("Promoted")]);
    assert_eq!(hooks.recv().await.unwrap().1["event"], "Promoted");
    shutdown.cancel();
    work.await.unwrap();
    assert!(hooks.try_recv().is_err());
}

#[test]
fn every_hold_is_told_as_what_it_is() {
    let kinds = |story: &[StoryEvent]| notices(&release(json!([])), story).iter().map(|n| n.event).collect::<Vec<_>>();
    for reason in [
        "SharedDegradation",
        "InsufficientData",
        "MetricsOutage",
        "ToolContractBroken",
        "PausedBySpec",
        "PausedByCommand",
    ] {
        assert_eq!(kinds(&[told(reason)]), [AlertEvent::Paused], "{reason}");
    }
    for reason in ["ApprovalNeeded", "ToolReview"] {
        assert_eq!(kinds(&[told(reason)]), [AlertEvent::ApprovalNeeded], "{reason}");
    }
    assert!(kinds(&[told("StageStarted"), told("Resumed"), told("ReleaseStarted")]).is_empty());
}

async fn outcome(codes: &'static [u16], key: &str) -> (Result<(), AlertError>, usize) {
    let (hook, mut hooks) = receiver_of(codes).await;
    let client = api(vec![("hook", hook.to_string()), ("bad", "ftp://example.com".into())]).await;
    let release = release(json!([alert("h", "Webhook", key)]));
    let notice = notices(&release, &[told("RollingBack")]).swap_remove(0);
    let letter = Letter { alert: release.spec.alerts[0].clone(), notice };
    let result = deliver(&client, &http(), SOON, &letter).await;
    let mut attempts = 0;
    while hooks.try_recv().is_ok() {
        attempts += 1;
    }
    (result, attempts)
}

#[tokio::test]
async fn retries_are_bounded_and_only_for_what_may_pass() {
    assert_eq!(outcome(&[503, 429], "hook").await, (Ok(()), 3));
    let given_up = AlertError::GaveUp { attempts: 3, why: "status 500".into() };
    assert_eq!(outcome(&[500, 500, 500, 500], "hook").await, (Err(given_up), 3));
    assert_eq!(outcome(&[404], "hook").await, (Err(AlertError::Refused(404)), 1));
    for key in ["bad", "missing"] {
        let (result, attempts) = outcome(&[], key).await;
        assert_eq!((result, attempts), (Err(AlertError::Url { secret: "hooks".into(), key: key.into() }), 0));
    }
}

#[tokio::test]
async fn a_secret_that_may_not_be_read_is_told_and_not_tried_again() {
    let mut release = release(json!([alert("h", "Webhook", "hook")]));
    release.spec.alerts[0].url_from.secret_name = "other".into();
    let notice = notices(&release, &[told("RollingBack")]).swap_remove(0);
    let letter = Letter { alert: release.spec.alerts[0].clone(), notice };
    let error = deliver(&api(vec![]).await, &http(), SOON, &letter).await.unwrap_err();
    assert!(error.to_string().contains("secrets \"other\" is forbidden"), "{error}");
}

#[tokio::test]
async fn the_url_is_in_no_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/services/T0/secret", listener.local_addr().unwrap());
    drop(listener);
    let client = api(vec![("hook", url)]).await;
    let release = release(json!([alert("h", "Webhook", "hook")]));
    let notice = notices(&release, &[told("RollingBack")]).swap_remove(0);
    let letter = Letter { alert: release.spec.alerts[0].clone(), notice };
    let error = deliver(&client, &http(), SOON, &letter).await.unwrap_err();
    assert!(matches!(error, AlertError::GaveUp { attempts: 3, .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_nobody() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = format!("http://{}", listener.local_addr().unwrap());
    let (hook, mut hooks) = receiver_of(&[]).await;
    let (alerts, shutdown, work) = start(api(vec![("mute", mute), ("hook", hook.to_string())]).await);
    let release = release(json!([alert("m", "Webhook", "mute"), alert("h", "Webhook", "hook")]));
    let begun = std::time::Instant::now();
    // More than can wait: telling takes no time all the same.
    for _ in 0..1000 {
        alerts.tell(&release, &[told("RollingBack")]);
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    hooks.recv().await.unwrap();
    shutdown.cancel();
    work.await.unwrap();
}
