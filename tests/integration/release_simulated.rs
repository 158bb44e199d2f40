//! The release of the documentation: internal for 48 h, pilot with 10% for 72 h, gradual from 25% to
//! 100% over 72 h. The controller and the control plane are real; hours pass in seconds, and the
//! controller dies at random: while it looks, before a write, after a write, and in between.
//!
//! Time is tokio's, which stands still while anything is done and jumps to the next moment at which
//! something is to be done. All times are an n-th of the documentation's, with n times its traffic;
//! `PERCH_TEST_SCALE=n` says which (24), and with 1 it runs as it is written, which takes a while
//! (`cargo test --release`). `PERCH_TEST_SEED=N` repeats a run.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::response::IntoResponse;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use perch::{
    api::{
        canary_release::{CELLS, CanaryRelease, CanaryReleaseStatus, Counts, Outcome, Phase},
        crds,
        mcp_server::{McpServer, RunSpec, revision_of},
    },
    canary::{Gateway, InFlight, Reading, Series},
    controllers::{
        canary_release::{self, Clock, Measure, Metrics},
        handshake::GatewayAccess,
    },
    local::ControlPlane,
    metrics::{Measured, Question, http_client},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::support::PATIENCE;

/// So much faster is the clock of decisions than that of timers: the controller looks every ten
/// seconds, and a gap of two minutes counts.
const HASTE: u32 = 5;

/// By what the times are divided.
fn scale() -> i64 {
    let scale = std::env::var("PERCH_TEST_SCALE").map_or(24, |n| n.parse().expect("PERCH_TEST_SCALE is a number"));
    assert!((1..=48).contains(&scale), "PERCH_TEST_SCALE is from 1 to 48");
    scale
}

/// So many hours of the documentation in seconds.
fn hours(hours: i64) -> i64 {
    hours * 3600 / scale()
}

/// The spec of the documentation. The metric that no stage uses makes looks as seldom as writes, as
/// for every release that asks others than the gateways: so a run takes seconds.
fn spec() -> Value {
    let time = |h: i64| format!("{}s", hours(h));
    json!({
        "targetRef": {"name": "everything"},
        "stages": [
            {"name": "internal", "groups": ["infrastructure-team", "qa-team"], "duration": time(48), "successCriteria": [
                {"metric": "errorRate", "threshold": "< 0.1%"}, {"metric": "latencyP99", "threshold": "< 200ms"}]},
            {"name": "pilot", "users": ["dana@example.com"], "percentage": 10, "duration": time(72), "successCriteria": [
                {"metric": "errorRate", "threshold": "< 0.5%"}, {"metric": "latencyP99", "threshold": "< 300ms"}]},
            {"name": "gradual", "schedule": [{"after": time(0), "percentage": 25}, {"after": time(24), "percentage": 50},
                {"after": time(48), "percentage": 75}, {"after": time(72), "percentage": 100}]},
        ],
        "metrics": [{"name": "unused", "provider": "Prometheus", "address": "http://127.0.0.1:9", "bad": "a", "total": "b"}],
    })
}

/// Where the controller dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
enum Death {
    /// It has asked, and has not decided.
    Looking,
    /// It has decided, and has not written.
    Deciding,
    /// It has written, and does not know.
    Written,
    /// It waits for the next look.
    Waiting,
}

/// Who decides when the controller dies.
struct Fate {
    random: Mutex<StdRng>,
    /// Off until the release has begun.
    on: AtomicBool,
    dies: mpsc::UnboundedSender<Death>,
}

impl Fate {
    /// Goes on, or never.
    async fn pass(&self, point: Death) {
        // About as many deaths in a run, however many looks it has.
        let share = f64::from(i32::try_from(scale()).unwrap()) * 0.0008;
        if self.on.load(Ordering::Relaxed) && self.random.lock().unwrap().random_bool(share) {
            self.dies.send(point).unwrap();
            pending::<()>().await;
        }
    }

    fn between(&self, from: u64, to: u64) -> Duration {
        Duration::from_secs(self.random.lock().unwrap().random_range(from..to))
    }
}

#[derive(Default)]
struct Traffic {
    last: Option<Timestamp>,
    /// Seconds of calls that were not made yet, for they are whole.
    owed: [f64; 2],
    total: [i64; 2],
    bad: [i64; 2],
    /// The epoch that the gateway runs.
    epoch: i64,
}

/// The gateways, and their users: three calls a minute for each percent of them.
struct World {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    fate: Arc<Fate>,
    /// How many times the traffic of the documentation there is.
    haste: f64,
    /// From when on 2% of the candidate's calls fail.
    bad_from: Option<Timestamp>,
    draws: Mutex<StdRng>,
    traffic: Mutex<Traffic>,
}

impl World {
    /// The calls since the last look, for a candidate with a share of the users.
    fn pass(&self, percentage: i32) {
        let (now, mut traffic) = ((self.now)(), self.traffic.lock().unwrap());
        let seconds = traffic.last.map_or(0.0, |last| now.duration_since(last).as_secs_f64());
        traffic.last = Some(now);
        // The named groups are 2% of the users.
        let share = f64::from(percentage.clamp(2, 100));
        let rate = if self.bad_from.is_some_and(|from| now >= from) { 0.02 } else { 0.0002 };
        for (side, percent, rate) in [(0, 100.0 - share, 0.0002), (1, share, rate)] {
            let calls = traffic.owed[side] + percent * 3.0 / 60.0 * seconds * self.haste;
            traffic.owed[side] = calls.fract();
            #[expect(clippy::cast_possible_truncation, reason = "a few thousand calls")]
            let calls = calls as i64;
            let mut draws = self.draws.lock().unwrap();
            traffic.total[side] += calls;
            traffic.bad[side] += i64::try_from((0..calls).filter(|_| draws.random_bool(rate)).count()).unwrap();
        }
    }
}

#[async_trait::async_trait]
impl Measure for World {
    async fn measure(&self, question: &Question<'_>) -> Measured {
        let routing = &question.release.status.as_ref().unwrap().routing;
        self.pass(routing.percentage);
        let measured = {
            let mut traffic = self.traffic.lock().unwrap();
            // The gateway takes new routing soon after it was written: by the look after the next.
            let runs = std::mem::replace(&mut traffic.epoch, routing.desired_epoch);
            let traffic = &*traffic;
            let cells = |n: i64| -> [i64; CELLS] {
                let number = i64::try_from(CELLS).unwrap();
                std::array::from_fn(|i| n / number + i64::from(n % number > i64::try_from(i).unwrap()))
            };
            let series = |revision: &str, side: usize, counts: bool| Series {
                source: "gateway".into(),
                revision: revision.into(),
                since: None,
                counts: Counts {
                    bad: cells(if counts { traffic.bad[side] } else { 0 }),
                    total: cells(traffic.total[side]),
                },
                users: Some(0xffff_ffff),
            };
            let reading = |counts| {
                Reading::Counters(vec![series(question.stable, 0, counts), series(question.candidate, 1, counts)])
            };
            let readings = [("errorRate", true), ("latencyP99", false), ("schemaErrors", false)];
            Measured {
                gateways: vec![Gateway { name: "gateway".into(), epoch: Some(runs) }],
                in_flight: InFlight { candidate: Some(0), stable: Some(0) },
                readings: readings.map(|(name, counts)| (name.to_owned(), reading(counts))).into(),
            }
        };
        self.fate.pass(Death::Looking).await;
        measured
    }
}

/// A client of the control plane. While it works, time stands still; and on the way to a status and
/// back the controller may die.
fn client(plane: &ControlPlane, fate: Option<&Arc<Fate>>) -> kube::Client {
    let (service, fate) = (plane.service(), fate.cloned());
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (service, fate) = (service.clone(), fate.clone());
        let decides = request.method() == http::Method::PUT && request.uri().path().ends_with("/status");
        let fate = fate.filter(|_| decides);
        async move {
            if let Some(fate) = &fate {
                fate.pass(Death::Deciding).await;
            }
            let runtime = tokio::runtime::Handle::current();
            // Tokio's time does not jump while a thread works that may block.
            let work = tokio::task::spawn_blocking(move || runtime.block_on(service.oneshot(request)));
            let answer = work.await.expect("the control plane answers");
            if let Some(fate) = &fate {
                fate.pass(Death::Written).await;
            }
            answer
        }
    });
    kube::Client::new(service, "default")
}

/// A gateway whose servers have one tool.
async fn tools(body: String) -> axum::response::Response {
    let message: Value = serde_json::from_str(&body).unwrap_or_default();
    let result = match message["method"].as_str() {
        Some("initialize") => {
            json!({"protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
            "serverInfo": {"name": "everything", "version": "1"}})
        }
        Some("tools/list") => json!({"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}),
        _ if message["id"].is_null() => return http::StatusCode::ACCEPTED.into_response(),
        _ => json!({}),
    };
    let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
    ([(http::header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response()
}

/// Every status that was written, the deaths of the controller, and when errors began.
struct Run {
    all: Vec<CanaryReleaseStatus>,
    deaths: Vec<Death>,
    bad_from: Option<Timestamp>,
}

/// Runs the release to its end. After some hours the candidate's calls begin to fail, if ever.
fn run(seed: u64, bad_after: Option<i64>) -> Run {
    let seed = std::env::var("PERCH_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(seed);
    println!("PERCH_TEST_SEED={seed}");
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begun = std::time::Instant::now();
    let run = runtime.block_on(follow(seed, bad_after));
    println!("{} writes and {} deaths in {:.1?}", run.all.len(), run.deaths.len(), begun.elapsed());
    run
}

async fn follow(seed: u64, bad_after: Option<i64>) -> Run {
    // In memory where there is such a place: the disk is not what is tested.
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let plane = ControlPlane::open(dir.path(), crds::all()).await.unwrap();
    let (dies, mut deaths) = mpsc::unbounded_channel();
    let random = Mutex::new(StdRng::seed_from_u64(seed));
    let fate = Arc::new(Fate { random, on: AtomicBool::new(false), dies });
    let (epoch, start) = (Timestamp::now(), tokio::time::Instant::now());
    let now: Arc<dyn Fn() -> Timestamp + Send + Sync> = Arc::new(move || {
        let passed = SignedDuration::try_from(start.elapsed() * HASTE).unwrap();
        epoch.checked_add(passed).unwrap()
    });
    let bad_from = bad_after.map(|after| epoch.checked_add(SignedDuration::from_secs(hours(after))).unwrap());
    let world = World {
        now: Arc::clone(&now),
        fate: Arc::clone(&fate),
        haste: f64::from(i32::try_from(scale()).unwrap()),
        bad_from,
        draws: Mutex::new(StdRng::seed_from_u64(seed + 1)),
        traffic: Mutex::default(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let serve = tokio::spawn(async { axum::serve(listener, axum::Router::new().fallback(tools)).await.unwrap() });
    let context = canary_release::Context {
        client: client(&plane, Some(&fate)),
        gateway,
        gateway_access: GatewayAccess::default(),
        measure: Arc::new(world),
        http: http_client().unwrap(),
        namespace: None,
        metrics: Metrics::default(),
        clock: Clock::new(move || now()),
    };

    // The server, as its own controller would run it.
    let server = |image: &str| {
        json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "everything"},
            "spec": {"image": image}})
    };
    let (one, two) = (server("everything:1"), server("everything:2"));
    let tester = client(&plane, None);
    let servers: Api<McpServer> = Api::namespaced(tester.clone(), "default");
    let releases: Api<CanaryRelease> = Api::namespaced(tester, "default");
    servers.create(&PostParams::default(), &serde_json::from_value(one.clone()).unwrap()).await.unwrap();
    let declared: McpServer = servers.get("everything").await.unwrap();
    let stable = revision_of("everything", &RunSpec::from(&declared.spec)).0;
    let release = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "everything"},
        "spec": spec()});
    releases.create(&PostParams::default(), &serde_json::from_value(release).unwrap()).await.unwrap();

    let shutdown = CancellationToken::new();
    let life = || tokio::spawn(canary_release::run(context.clone(), shutdown.clone()));
    let mut controller = life();
    let written = watcher(releases.clone(), watcher::Config::default()).applied_objects();
    futures::pin_mut!(written);
    let (mut all, mut died): (Vec<CanaryReleaseStatus>, Vec<Death>) = (Vec::new(), Vec::new());
    let mut next_death = tokio::time::Instant::now() + fate.between(60, 1200);
    let mut changed = false;
    let mut paused = false;
    let given_up = std::time::Instant::now() + PATIENCE * u32::try_from(4 + 96 / scale()).unwrap();
    loop {
        assert!(std::time::Instant::now() < given_up, "{:?}", all.last());
        let death = tokio::select! {
            release = written.next() => {
                let Some(status) = release.unwrap().unwrap().status else { continue };
                if !changed && status.stable_revision.is_some() {
                    assert_eq!(status.stable_revision.as_deref(), Some(stable.as_str()));
                    changed = true;
                    let patch = Patch::Merge(json!({"spec": two["spec"]}));
                    let next = servers.patch("everything", &PatchParams::default(), &patch).await.unwrap();
                    let candidate = revision_of("everything", &RunSpec::from(&next.spec)).0;
                    let status = json!({"status": {"phase": "Ready", "currentRevision": stable,
                        "candidate": {"revision": candidate, "phase": "Ready", "replicas": 1, "readyReplicas": 1}}});
                    servers.patch_status("everything", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
                }
                if !paused && status.phase == Phase::Progressing {
                    // The tools were compared over a real connection; from here on nothing real is waited for.
                    paused = true;
                    tokio::time::pause();
                    fate.on.store(true, Ordering::Relaxed);
                }
                let over = matches!(status.phase, Phase::Succeeded | Phase::RolledBack | Phase::Failed);
                all.push(status);
                if over {
                    break;
                }
                continue;
            }
            death = deaths.recv() => death.unwrap(),
            () = tokio::time::sleep_until(next_death), if paused => Death::Waiting,
        };
        died.push(death);
        controller.abort();
        let _ = controller.await;
        // Away for up to five minutes, by the clock of decisions.
        tokio::time::sleep(fate.between(0, 60)).await;
        controller = life();
        next_death = tokio::time::Instant::now() + fate.between(60, 1200);
    }
    shutdown.cancel();
    controller.abort();
    serve.abort();
    Run { all, deaths: died, bad_from }
}

/// What holds for every run, however it ends.
fn check(run: &Run) {
    for (before, after) in run.all.iter().zip(&run.all[1..]) {
        let step = after.routing.desired_epoch - before.routing.desired_epoch;
        assert!((0..=1).contains(&step), "one change of routing in a write: {step}");
        let tick = |s: &CanaryReleaseStatus| s.last_tick.as_ref().map_or(0, |t| t.0.as_second());
        let (Some(from), Some(to)) = (&before.stage, &after.stage) else { continue };
        let counted = to.active_seconds - from.active_seconds;
        if from.name == to.name {
            assert!((0..=120.min(tick(after) - tick(before))).contains(&counted), "{counted} seconds counted at once");
        } else {
            assert_eq!(to.index, from.index + 1, "no stage is jumped over");
        }
    }
    let mut kinds = run.deaths.clone();
    kinds.sort_unstable();
    kinds.dedup();
    let all = [Death::Looking, Death::Deciding, Death::Written, Death::Waiting];
    assert_eq!(kinds, all, "it died in every way: {:?}", run.deaths);
}

#[test]
fn the_release_of_the_documentation_reaches_everybody_whoever_dies_when() {
    let run = run(3, None);
    let last = run.all.last().unwrap();
    assert_eq!((last.phase, last.releases), (Phase::Succeeded, 1), "{}", last.message);
    check(&run);
    // Each share of the users, when it was first written, in hours since the first user.
    let first = run.all.iter().find(|s| s.phase == Phase::Progressing).unwrap();
    let at = |status: &CanaryReleaseStatus| status.last_tick.as_ref().unwrap().0.as_second();
    let mut shares: Vec<(i32, i64)> = Vec::new();
    for status in run.all.iter().filter(|s| s.phase == Phase::Progressing) {
        if shares.last().is_none_or(|(share, _)| *share != status.routing.percentage) {
            shares.push((status.routing.percentage, at(status) - at(first)));
        }
    }
    println!("shares at seconds: {shares:?}");
    assert_eq!(shares.iter().map(|(share, _)| *share).collect::<Vec<_>>(), [0, 10, 25, 50, 75, 100]);
    // Each death costs the time away and a look or two; everything else is in its time.
    let lost = i64::try_from(run.deaths.len()).unwrap() * 450 + 900;
    for ((share, seconds), after) in shares.iter().zip([0, 48, 120, 144, 168, 192]) {
        let due = hours(after);
        assert!(*seconds >= due, "{share}% came after {seconds} seconds, before its time, {due}");
        assert!(*seconds <= due + lost, "{share}% came only after {seconds} seconds, and was due after {due}");
    }
    // A stage takes its time by the clock that counts, and dying makes none shorter or longer.
    for (name, time) in [("internal", 48), ("pilot", 72), ("gradual", 72)] {
        let stages = run.all.iter().filter_map(|s| s.stage.as_ref()).filter(|stage| stage.name == name);
        let active = stages.map(|stage| stage.active_seconds).max().unwrap();
        assert!((hours(time) - 60..=hours(time) + 600).contains(&active), "{name} was active for {active} seconds");
    }
}

#[test]
fn a_regression_after_a_hundred_hours_takes_it_back_whoever_dies_when() {
    let run = run(7, Some(100));
    let last = run.all.last().unwrap();
    assert_eq!(last.phase, Phase::RolledBack, "{}", last.message);
    check(&run);
    let ended = &last.history[0];
    assert_eq!((ended.outcome, ended.stage.as_deref()), (Outcome::RolledBack, Some("pilot")), "{}", ended.message);
    let late = ended.decided_at.0.duration_since(run.bad_from.unwrap());
    println!("taken back {} seconds after the regression: {}", late.as_secs(), ended.message);
    assert!(late.as_secs() < hours(3) + 900, "it took {} seconds", late.as_secs());
}
