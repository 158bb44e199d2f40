//! Every provider against real servers on loopback.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::{Query, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Redirect, Response},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::{
    api::{
        canary_release::{CanaryReleaseStatus, Counts, Phase},
        gateway_report::{CountedSignal, Counter, GatewayReport, REPORT_PATH, RevisionReport, ServerReport},
    },
    canary::{Series, wanted},
};

const STABLE: &str = "srv-1";
const CANDIDATE: &str = "srv-2";

type Answers = Arc<dyn Fn(&str, &HashMap<String, String>) -> Response + Send + Sync>;

/// A server that answers as it is told, and counts how often it was asked.
struct Server {
    url: Url,
    asked: Arc<AtomicUsize>,
}

impl Server {
    async fn start(answer: impl Fn(&str, &HashMap<String, String>) -> Response + Send + Sync + 'static) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let state: (Arc<AtomicUsize>, Answers) = (Arc::clone(&asked), Arc::new(answer));
        let app = Router::new()
            .fallback(
                async |State((asked, answer)): State<(Arc<AtomicUsize>, Answers)>,
                       uri: Uri,
                       Query(query): Query<HashMap<String, String>>| {
                    asked.fetch_add(1, Ordering::Relaxed);
                    answer(uri.path(), &query)
                },
            )
            .with_state(state);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, asked }
    }
}

/// An address at which nobody listens.
async fn nobody() -> Url {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap()
}

fn http() -> reqwest::Client {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    http_client().unwrap()
}

fn quick() -> Limits {
    Limits { gateway: Duration::from_millis(300), provider: Duration::from_millis(300), bytes: 1 << 20 }
}

fn counts(bad: i64, total: i64) -> Counts {
    let mut counts = Counts::default();
    (counts.bad[5], counts.total[5]) = (bad, total);
    counts
}

fn revision(name: &str, in_flight: i64, counters: Vec<(CountedSignal, i64, i64)>) -> RevisionReport {
    RevisionReport {
        revision: name.into(),
        since: at(100),
        in_flight,
        users: 0b101,
        counters: counters
            .into_iter()
            .map(|(signal, bad, total)| Counter { signal, counts: counts(bad, total) })
            .collect(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn report(gateway: &str, epoch: i64, revisions: Vec<RevisionReport>) -> GatewayReport {
    GatewayReport {
        gateway: gateway.into(),
        started_at: at(50),
        synced: true,
        servers: vec![ServerReport {
            namespace: "default".into(),
            name: "srv".into(),
            release_id: "srv-2.1".into(),
            epoch,
            revisions,
        }],
    }
}

async fn gateway(report: GatewayReport) -> Server {
    Server::start(move |path, _| {
        assert_eq!(path, REPORT_PATH);
        axum::Json(report.clone()).into_response()
    })
    .await
}

/// A release in its first stage, with these criteria and metrics.
struct Asked {
    server: ServerKey,
    release: CanaryRelease,
    plan: Plan,
}

impl Asked {
    fn about(criteria: &Value, metrics: &Value) -> Self {
        let spec = json!({"targetRef": {"name": "srv"}, "metrics": metrics, "stages": [
            {"name": "one", "percentage": 10, "duration": "1h", "successCriteria": criteria}]});
        let mut release = CanaryRelease::new("srv", serde_json::from_value(spec).unwrap());
        let plan = Plan::new(&release.spec).unwrap();
        let status = json!({"phase": "Progressing", "releaseId": "srv-2.1", "stableRevision": STABLE,
            "candidateRevision": CANDIDATE, "routing": {"desiredEpoch": 7},
            "stage": {"index": 0, "name": "one", "attempt": 1, "activeSeconds": 0, "percentage": 10}});
        release.status = Some(serde_json::from_value(status).unwrap());
        Self { server: ServerKey::new("default", "srv"), release, plan }
    }

    fn status(&mut self) -> &mut CanaryReleaseStatus {
        self.release.status.as_mut().unwrap()
    }

    async fn measure(&self, providers: &Providers) -> Measured {
        let question = Question {
            server: &self.server,
            release: &self.release,
            plan: &self.plan,
            stable: STABLE,
            candidate: CANDIDATE,
        };
        providers.measure(&question).await
    }

    async fn ask(&self, gateways: Vec<Url>) -> Measured {
        self.measure(&Providers::with_limits(GatewayAddresses::Fixed(gateways), http(), quick())).await
    }

    /// The reading of the only metric of its own.
    async fn read(&self) -> Reading {
        self.ask(Vec::new()).await.readings.swap_remove(0).1
    }
}

fn reading(measured: &Measured, metric: &str) -> Reading {
    measured
        .readings
        .iter()
        .find(|(name, _)| name == metric)
        .unwrap_or_else(|| panic!("{metric}: {measured:?}"))
        .1
        .clone()
}

fn errors() -> Value {
    json!([{"metric": "errorRate", "threshold": "< 1%"}])
}

fn series(source: &str, revision: &str, bad: i64, total: i64) -> Series {
    Series {
        source: format!("{source}@{}", at(50)),
        revision: revision.into(),
        since: Some(at(100)),
        counts: counts(bad, total),
        users: Some(0b101),
    }
}

#[tokio::test]
async fn each_criterion_is_read_from_the_counters_of_all_gateways() {
    let criteria = json!([{"metric": "errorRate", "threshold": "< 1%"}, {"metric": "latencyP99", "threshold": "< 200ms"},
        {"metric": "availability", "threshold": "> 99%"}, {"metric": "search", "threshold": "< 5%"}]);
    let metrics = json!([{"name": "search", "provider": "Gateway", "tools": ["search"]}]);
    let all = |n: i64| {
        vec![
            (CountedSignal::Errors, n, 100),
            (CountedSignal::SlowerThan(200_000), n + 1, 100),
            (CountedSignal::SlowerThan(100_000), n + 50, 100),
            (CountedSignal::Unavailable, n + 2, 100),
            (CountedSignal::SchemaErrors, n + 3, 100),
            (CountedSignal::OfTools("search".into()), n + 4, 40),
        ]
    };
    let one = gateway(report("g1", 7, vec![revision(CANDIDATE, 3, all(10)), revision(STABLE, 1, all(0))])).await;
    let two = gateway(report("g2", 6, vec![revision(CANDIDATE, 4, all(20)), revision("srv-0", 9, all(0))])).await;
    let found = Asked::about(&criteria, &metrics).ask(vec![one.url, two.url]).await;
    for (metric, more, total) in [
        ("errorRate", 0, 100),
        ("latencyP99", 1, 100),
        ("availability", 2, 100),
        ("schemaErrors", 3, 100),
        ("search", 4, 40),
    ] {
        let expected = vec![
            series("g1", CANDIDATE, 10 + more, total),
            series("g1", STABLE, more, total),
            series("g2", CANDIDATE, 20 + more, total),
        ];
        assert_eq!(reading(&found, metric), Reading::Counters(expected), "{metric}");
    }
    assert_eq!(found.readings.len(), 5, "one for each criterion");
    let epochs: Vec<_> = found.gateways.iter().map(|g| (g.name.as_str(), g.epoch)).collect();
    assert_eq!(epochs, [("g1", Some(7)), ("g2", Some(6))]);
    assert_eq!(found.in_flight, InFlight { candidate: Some(7), stable: Some(1) });
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_is_not_forgotten() {
    let good = gateway(report("g1", 7, vec![revision(CANDIDATE, 0, vec![(CountedSignal::Errors, 0, 50)])])).await;
    let broken = Server::start(|_, _| StatusCode::INTERNAL_SERVER_ERROR.into_response()).await;
    let nonsense = Server::start(|_, _| "{\"gateway\": 1}".into_response()).await;
    let asked = Asked::about(&errors(), &json!([]));
    for (bad, why) in [(nobody().await, "cannot be reached"), (broken.url, "answered 500"), (nonsense.url, "no report")]
    {
        let name = bad.authority().to_owned();
        let found = asked.ask(vec![good.url.clone(), bad]).await;
        let late = Gateway { name: name.clone(), epoch: None };
        assert_eq!(found.gateways, [late, Gateway { name: "g1".into(), epoch: Some(7) }]);
        let Reading::Unknown(said) = reading(&found, "errorRate") else { panic!("{found:?}") };
        assert!(said.contains(why) && said.contains(&name), "{said}");
        assert_eq!(found.in_flight, InFlight::default(), "it may hold calls");
    }
    let none = asked.ask(Vec::new()).await;
    assert!(
        matches!(reading(&none, "errorRate"), Reading::Unknown(_)),
        "nobody counted, so nothing is known: {none:?}"
    );
    assert_eq!(none.in_flight, InFlight::default());
}

#[tokio::test]
async fn a_gateway_that_hangs_costs_its_time_and_no_more() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let begun = std::time::Instant::now();
    let found = Asked::about(&errors(), &json!([])).ask(vec![mute]).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(matches!(reading(&found, "errorRate"), Reading::Unknown(why) if why.contains("no answer within 300 ms")));
}

#[tokio::test]
async fn an_epoch_counts_only_for_the_release_that_it_is_of() {
    let mut asked = Asked::about(&errors(), &json!([]));
    let revisions = || vec![revision(CANDIDATE, 2, vec![(CountedSignal::Errors, 5, 50)])];
    let mut other = report("g1", 7, revisions());
    other.servers[0].release_id = "srv-2.0".into();
    let found = asked.ask(vec![gateway(other).await.url]).await;
    assert_eq!(found.gateways[0].epoch, None);
    assert_eq!(reading(&found, "errorRate"), Reading::Counters(Vec::new()), "calls of another release");
    assert_eq!(found.in_flight.candidate, Some(2), "calls are calls");

    let mut unsynced = report("g1", 7, revisions());
    unsynced.synced = false;
    assert_eq!(asked.ask(vec![gateway(unsynced).await.url]).await.gateways[0].epoch, None);

    // A gateway that divides nothing lacks nothing while nothing is to be divided.
    let mut empty = report("g1", 7, Vec::new());
    empty.servers.clear();
    let empty = gateway(empty).await;
    assert_eq!(asked.ask(vec![empty.url.clone()]).await.gateways[0].epoch, None);
    asked.status().phase = Phase::Succeeded;
    assert_eq!(wanted(asked.release.status.as_ref().unwrap()).candidate, None);
    assert_eq!(asked.ask(vec![empty.url]).await.gateways[0].epoch, Some(7));
}

#[tokio::test]
async fn what_a_gateway_does_not_count_is_no_data() {
    let counted = vec![(CountedSignal::SlowerThan(100_000), 0, 50)];
    let old = gateway(report("g1", 7, vec![revision(CANDIDATE, 0, counted)])).await;
    let criteria =
        json!([{"metric": "latencyP99", "threshold": "< 200ms"}, {"metric": "userSatisfaction", "threshold": "> 90%"}]);
    let found = Asked::about(&criteria, &json!([])).ask(vec![old.url]).await;
    assert!(
        matches!(reading(&found, "latencyP99"), Reading::NoData(why) if why.contains("g1 does not count latencyP99"))
    );
    assert!(matches!(reading(&found, "userSatisfaction"), Reading::Unknown(why) if why.contains("spec.metrics")));
}

#[tokio::test]
async fn one_round_answers_for_many_releases() {
    let server = gateway(report("g1", 7, vec![revision(CANDIDATE, 0, vec![(CountedSignal::Errors, 0, 50)])])).await;
    let providers = Providers::with_limits(GatewayAddresses::Fixed(vec![server.url.clone()]), http(), quick());
    let asked = Asked::about(&errors(), &json!([]));
    let all = join_all((0..200).map(|_| asked.measure(&providers))).await;
    assert!(all.iter().all(|m| m.gateways[0].epoch == Some(7)));
    let rounds = server.asked.load(Ordering::Relaxed);
    assert!(rounds <= 3, "{rounds} rounds for 200 releases");
    // The same process at two addresses is one gateway.
    let twice = asked.ask(vec![server.url.clone(), server.url]).await;
    assert_eq!(twice.gateways.len(), 1);
    assert!(matches!(reading(&twice, "errorRate"), Reading::Counters(series) if series.len() == 1));
}

type Refusal = Box<dyn Fn() -> Response + Send + Sync>;

/// A Prometheus that answers each query from a table.
async fn prometheus(answers: impl Fn(&str) -> Response + Send + Sync + 'static) -> Server {
    Server::start(move |path, query| {
        assert_eq!(path, "/api/v1/query");
        answers(&query["query"])
    })
    .await
}

fn vector(values: &[&str]) -> Response {
    let series = values.iter().map(|v| json!({"metric": {}, "value": [1_795_000_000.0, v]}));
    let body = json!({"status": "success", "data": {"resultType": "vector", "result": series.collect::<Vec<_>>()}});
    axum::Json(body).into_response()
}

fn custom(provider: &str, address: &Url, bad: &str, total: &str) -> Asked {
    let metric =
        json!([{"name": "mine", "provider": provider, "address": address.as_str(), "bad": bad, "total": total}]);
    Asked::about(&json!([{"metric": "mine", "threshold": "< 5%"}]), &metric)
}

fn first_cell(reading: &Reading) -> Vec<(String, i64, i64)> {
    let Reading::Counters(series) = reading else { panic!("{reading:?}") };
    series.iter().map(|s| (s.revision.clone(), s.counts.bad[0], s.counts.total[0])).collect()
}

#[tokio::test]
async fn prometheus_counts_both_revisions() {
    let server = prometheus(|query| match query {
        "bad{r=\"srv-2\"}" => vector(&["3"]),
        "all{r=\"srv-2\"}" => vector(&["1e3"]),
        "bad{r=\"srv-1\"}" => vector(&["1"]),
        "all{r=\"srv-1\"}" => vector(&["9000"]),
        other => panic!("{other}"),
    })
    .await;
    let asked = custom("Prometheus", &server.url, "bad{r=\"{{revision}}\"}", "all{r=\"{{revision}}\"}");
    assert_eq!(first_cell(&asked.read().await), [(CANDIDATE.into(), 3, 1000), (STABLE.into(), 1, 9000)]);
}

#[tokio::test]
async fn prometheus_without_one_number_is_no_data() {
    for (answer, why) in [
        (vec!["NaN"], "NaN"),
        (vec!["+Inf"], "inf"),
        (vec!["-1"], "between 0"),
        (vec![], "no series"),
        (vec!["1", "2"], "2 series"),
        (vec!["1000"], "1000 bad events of 500"),
    ] {
        let server = prometheus(move |query| match query {
            "bad srv-2" => vector(&answer),
            "bad srv-1" => vector(&["1"]),
            _ => vector(&["500"]),
        })
        .await;
        let read = custom("Prometheus", &server.url, "bad {{revision}}", "all").read().await;
        assert!(matches!(&read, Reading::NoData(said) if said.contains(why)), "{why}: {read:?}");
    }
    // A stable revision without data is no obstacle; it is not zero either.
    let server = prometheus(|query| if query.contains(STABLE) { vector(&[]) } else { vector(&["7"]) }).await;
    let read = custom("Prometheus", &server.url, "bad {{revision}}", "all {{revision}}").read().await;
    assert_eq!(first_cell(&read), [(CANDIDATE.into(), 7, 7)]);
}

#[tokio::test]
async fn prometheus_that_fails_is_unknown() {
    let error = |code: u16, message: &str| {
        let body = json!({"status": "error", "errorType": "bad_data", "error": message});
        (StatusCode::from_u16(code).unwrap(), axum::Json(body)).into_response()
    };
    let partial = json!({"status": "success", "warnings": ["a store is down"],
        "data": {"resultType": "scalar", "result": [1, "5"]}});
    let cases: Vec<(Refusal, &str)> = vec![
        (Box::new(move || error(400, "parse error: unexpected end")), "parse error"),
        (Box::new(move || error(503, "too busy")), "too busy"),
        (Box::new(|| (StatusCode::BAD_GATEWAY, "secret words").into_response()), "answered 502"),
        (Box::new(|| "not json".into_response()), "answered 200"),
        (Box::new(|| Redirect::temporary("http://127.0.0.1:1/").into_response()), "answered 307"),
        (Box::new(move || axum::Json(partial.clone()).into_response()), "may not be whole"),
        (Box::new(|| vec![b'x'; 2 << 20].into_response()), "larger than"),
    ];
    for (answer, why) in cases {
        let server = prometheus(move |_| answer()).await;
        let read = custom("Prometheus", &server.url, "bad", "all").read().await;
        let Reading::Unknown(said) = &read else { panic!("{why}: {read:?}") };
        assert!(said.contains(why) && !said.contains("secret"), "{said}");
    }
    // Only what belongs to the stable revision fails: without it nothing can be compared.
    let half = prometheus(move |query| if query.contains(STABLE) { error(503, "busy") } else { vector(&["7"]) }).await;
    let read = custom("Prometheus", &half.url, "bad {{revision}}", "all {{revision}}").read().await;
    assert!(matches!(read, Reading::Unknown(_)), "{read:?}");
    let read = custom("Prometheus", &nobody().await, "bad", "all").read().await;
    assert!(matches!(&read, Reading::Unknown(why) if why.contains("cannot be reached")), "{read:?}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let read = custom("Prometheus", &mute, "bad", "all").read().await;
    assert!(matches!(&read, Reading::Unknown(why) if why.contains("no answer within")), "{read:?}");
}

#[tokio::test]
async fn a_secret_in_an_address_stays_there() {
    let mut address = nobody().await;
    address.set_username("user").unwrap();
    address.set_password(Some("hunter2")).unwrap();
    for provider in ["Prometheus", "Web"] {
        let Reading::Unknown(said) = custom(provider, &address, "$.a", "$.b").read().await else { panic!() };
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn a_document_is_read_by_its_paths() {
    let document = json!({"of": {"srv-2": {"bad": 4, "all": 80, "text": "4", "none": null}, "srv-1": {"bad": 1, "all": 700}},
        "list": [{"bad": 1}, {"bad": 2}]});
    let server = Server::start(move |path, _| match path {
        "/counts.json" => axum::Json(document.clone()).into_response(),
        "/srv-2" => axum::Json(json!({"bad": 1, "all": 2})).into_response(),
        "/srv-1" => axum::Json(json!({"bad": 3, "all": 9})).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    })
    .await;
    let url = |path: &str| server.url.join(path).unwrap();
    let asked = custom("Web", &url("/counts.json"), "$.of['{{revision}}'].bad", "$.of['{{revision}}'].all");
    assert_eq!(first_cell(&asked.read().await), [(CANDIDATE.into(), 4, 80), (STABLE.into(), 1, 700)]);
    assert_eq!(server.asked.load(Ordering::Relaxed), 1, "one document for both");

    let metric = json!([{"name": "mine", "provider": "Web", "address": format!("{}{{{{revision}}}}", server.url),
        "bad": "$.bad", "total": "$.all"}]);
    let asked = Asked::about(&json!([{"metric": "mine", "threshold": "< 5%"}]), &metric);
    assert_eq!(first_cell(&asked.read().await), [(CANDIDATE.into(), 1, 2), (STABLE.into(), 3, 9)]);

    let candidate = "$.of['{{revision}}']";
    for (bad, why) in [
        (format!("{candidate}.missing"), "nothing is there"),
        (format!("{candidate}.text"), "no number"),
        (format!("{candidate}.none"), "no number"),
        ("$.list[*].bad".into(), "2 values"),
    ] {
        let read = custom("Web", &url("/counts.json"), &bad, &format!("{candidate}.all")).read().await;
        assert!(matches!(&read, Reading::NoData(said) if said.contains(why)), "{bad}: {read:?}");
    }
    let read = custom("Web", &url("/counts.json"), "of.bad", "$").read().await;
    assert!(matches!(&read, Reading::Unknown(said) if said.contains("no JSONPath")), "{read:?}");
    let read = custom("Web", &url("/gone"), "$.bad", "$.all").read().await;
    assert!(matches!(&read, Reading::Unknown(said) if said.contains("404")), "{read:?}");
}

#[tokio::test]
async fn a_metric_with_the_name_of_perchs_own_takes_its_place() {
    let server = prometheus(|query| vector(&[if query == "bad" { "2" } else { "10" }])).await;
    let metric = json!([{"name": "errorRate", "provider": "Prometheus", "address": server.url.as_str(), "bad": "bad", "total": "all"}]);
    let found = Asked::about(&errors(), &metric).ask(Vec::new()).await;
    assert_eq!(first_cell(&reading(&found, "errorRate"))[0], (CANDIDATE.into(), 2, 10));
    assert!(matches!(reading(&found, "schemaErrors"), Reading::Unknown(_)), "that is for the gateways");
}

#[tokio::test]
async fn scans_are_read_in_a_cluster_only() {
    let asked = Asked::about(&json!([{"metric": "vulnerabilities", "threshold": "0 critical"}]), &json!([]));
    let found = asked.ask(Vec::new()).await;
    assert!(matches!(reading(&found, "vulnerabilities"), Reading::Unknown(why) if why.contains("Kubernetes")));
}

#[tokio::test]
async fn without_a_stage_nothing_is_read_but_the_gateways() {
    let mut asked = Asked::about(&errors(), &json!([]));
    asked.status().stage = None;
    let server = gateway(report("g1", 7, Vec::new())).await;
    let found = asked.ask(vec![server.url]).await;
    assert_eq!((found.readings.len(), found.gateways[0].epoch), (0, Some(7)));
}

mod cluster;
