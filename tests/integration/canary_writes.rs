//! The controller of releases dies after each of its writes, or has a twin: the release goes as if
//! nothing had happened. Everything is real but the number of controllers.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use perch::{
    api::{
        canary_release::{CanaryRelease, CanaryReleaseStatus, Phase},
        crds,
        mcp_server::{McpServer, Phase as ServerPhase},
    },
    controllers::{
        canary_release::{self, Measure, Metrics},
        handshake, mcp_server,
    },
    gateway::{Config, DataPlane, access::Access},
    local::ControlPlane,
    metrics::{GatewayAddresses, Measured, Providers, Question, http_client},
    runtime::process::{self, ProcessBackend},
    telemetry::admin,
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::support::{PATIENCE, fixture};

/// Somebody whose answers are late, so that what is decided by them is out of date.
struct Late(Arc<dyn Measure>);

#[async_trait::async_trait]
impl Measure for Late {
    async fn measure(&self, question: &Question<'_>) -> Measured {
        let found = self.0.measure(question).await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        found
    }
}

/// Everything but the controller of releases.
struct Scene {
    #[expect(dead_code, reason = "held for its drop")]
    dir: tempfile::TempDir,
    servers: Api<McpServer>,
    releases: Api<CanaryRelease>,
    context: canary_release::Context,
    stop: CancellationToken,
    parts: Vec<JoinHandle<()>>,
}

fn object<T: serde::de::DeserializeOwned>(kind: &str, spec: &Value) -> T {
    let object = json!({"apiVersion": "perch.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

fn named(name: &str) -> Value {
    json!({"command": [fixture(), "stdio", "--name", name]})
}

/// A client whose watches of releases begin only when the gate is open; lists and everything else
/// pass.
fn behind(plane: &ControlPlane, gate: &watch::Receiver<bool>) -> kube::Client {
    let (service, gate) = (plane.service(), gate.clone());
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (service, mut gate) = (service.clone(), gate.clone());
        let uri = request.uri();
        let waits = uri.path().ends_with("/canaryreleases") && uri.query().is_some_and(|q| q.contains("watch="));
        async move {
            if waits {
                gate.wait_for(|open| *open).await.expect("the test holds the gate");
            }
            service.oneshot(request).await
        }
    });
    kube::Client::new(service, "default")
}

impl Scene {
    async fn new() -> Self {
        let (_open, gate) = watch::channel(true);
        Self::behind(&gate).await
    }

    /// The controller of servers sees releases through a gate.
    async fn behind(gate: &watch::Receiver<bool>) -> Self {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let config = process::Config {
            instance: format!("canary-writes-{}", dir.path().display()),
            state_dir: dir.path().join("processes"),
            launcher: env!("CARGO_BIN_EXE_perch").into(),
            search_path: std::env::var_os("PATH").unwrap(),
            environment: vec![("PATH".into(), std::env::var("PATH").unwrap())],
            installs: tokio::sync::Mutex::default(),
            ports: process::Ports::default(),
        };
        let backend = Arc::new(tokio::task::spawn_blocking(|| ProcessBackend::open(config)).await.unwrap());
        let plane = ControlPlane::open(&dir.path().join("control"), crds::all()).await.unwrap();
        let client = plane.client();
        let stop = CancellationToken::new();
        let config = Config { name: "test".into(), ..Config::new([7; 32], Access::anonymous()) };
        let gateways = DataPlane::new(config, client.clone(), Arc::clone(&backend) as _, stop.clone()).unwrap();
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (gateway, told) = (listen().await.unwrap(), listen().await.unwrap());
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (gateway_url, told_url): (url::Url, url::Url) = (url(&gateway), url(&told));
        let routes = gateways.admin_routes();
        let registry = Arc::new(std::sync::Mutex::new(Registry::default()));
        let serve = admin::serve(told, Arc::new(|| Ok(())), registry, routes, stop.clone());
        let http = http_client().unwrap();
        let servers = mcp_server::Context::new(behind(&plane, gate), backend, gateway_url.clone());
        let parts = vec![
            tokio::spawn(async { serve.await.unwrap() }),
            tokio::spawn(gateways.serve(gateway)),
            tokio::spawn(mcp_server::run(servers, stop.clone())),
        ];
        Self {
            dir,
            servers: Api::namespaced(client.clone(), "default"),
            releases: Api::namespaced(client.clone(), "default"),
            context: canary_release::Context {
                gateway_access: handshake::GatewayAccess::default(),
                measure: Arc::new(Providers::new(GatewayAddresses::Fixed(vec![told_url]), http.clone())),
                client,
                gateway: gateway_url,
                http,
                namespace: None,
                metrics: Metrics::default(),
                clock: canary_release::Clock::default(),
            },
            stop,
            parts,
        }
    }

    fn controller(&self) -> JoinHandle<()> {
        tokio::spawn(canary_release::run(self.context.clone(), self.stop.clone()))
    }

    /// A controller that decides by what was so some time ago.
    fn late_controller(&self) -> JoinHandle<()> {
        let measure = Arc::new(Late(Arc::clone(&self.context.measure)));
        tokio::spawn(canary_release::run(
            canary_release::Context { measure, ..self.context.clone() },
            self.stop.clone(),
        ))
    }

    async fn end(self) {
        self.stop.cancel();
        for part in self.parts {
            part.await.unwrap();
        }
    }
}

/// Follows a release from the first stable revision to its success, with some controllers of which
/// each dies and is replaced after every write, or not. Gives every status that was written.
async fn follow(controllers: usize, late: usize, mortal: bool) -> Vec<CanaryReleaseStatus> {
    let scene = Scene::new().await;
    let mut running: Vec<_> = (0..controllers).map(|_| scene.controller()).collect();
    running.extend((0..late).map(|_| scene.late_controller()));
    let stages = json!([
        {"name": "half", "schedule": [{"after": "0s", "percentage": 25}, {"after": "3s", "percentage": 50}], "duration": "5s"},
        {"name": "all", "percentage": 100, "duration": "3s"},
    ]);
    scene.servers.create(&PostParams::default(), &object("McpServer", &named("one"))).await.unwrap();
    let spec = json!({"targetRef": {"name": "a"}, "stages": stages, "drainTimeout": "1s"});
    scene.releases.create(&PostParams::default(), &object("CanaryRelease", &spec)).await.unwrap();
    let written = watcher(scene.releases.clone(), watcher::Config::default()).applied_objects();
    futures::pin_mut!(written);
    let mut all: Vec<CanaryReleaseStatus> = Vec::new();
    let mut changed = false;
    let look = async {
        while let Some(release) = written.next().await {
            let Some(status) = release.unwrap().status else { continue };
            let ends = status.phase == Phase::Succeeded;
            if mortal {
                for controller in &mut running {
                    controller.abort();
                    *controller = scene.controller();
                }
            }
            if !changed && status.stable_revision.is_some() {
                changed = true;
                let patch = Patch::Merge(json!({"spec": named("two")}));
                scene.servers.patch("a", &PatchParams::default(), &patch).await.unwrap();
            }
            all.push(status);
            if ends {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("the release to succeed");
    scene.stop.cancel();
    for controller in running {
        // Of an aborted one nothing is to be learned.
        let _ = controller.await;
    }
    scene.end().await;
    all
}

/// One release, each step once and in order, none before its time.
fn check(all: &[CanaryReleaseStatus]) {
    let last = all.last().unwrap();
    assert_eq!((last.releases, last.history.len()), (1, 1));
    // Two steps, another stage, everybody, and the end: one change of routing for each.
    assert_eq!(last.routing.desired_epoch, 5, "{:?}", all.iter().map(|s| s.routing.desired_epoch).collect::<Vec<_>>());
    let mut steps: Vec<(String, i32, i32)> = all
        .iter()
        .filter(|s| s.phase == Phase::Progressing)
        .filter_map(|s| s.stage.as_ref().map(|stage| (stage.name.clone(), stage.step, s.routing.percentage)))
        .collect();
    steps.dedup();
    let expected = [("half", 0, 25), ("half", 1, 50), ("all", 0, 100)];
    assert_eq!(steps, expected.map(|(name, step, percentage)| (name.to_owned(), step, percentage)));
    for (before, after) in all.iter().zip(&all[1..]) {
        let step = after.routing.desired_epoch - before.routing.desired_epoch;
        assert!((0..=1).contains(&step), "one advance at a time, and none back: {step}");
        assert!(after.stage.is_some() || before.stage.is_none(), "from {:?} back to {:?}", before.phase, after.phase);
        let (Some(from), Some(to)) = (&before.stage, &after.stage) else { continue };
        if from.name == to.name && from.step == to.step && before.phase == Phase::Progressing {
            let counted = to.active_seconds - from.active_seconds;
            let passed =
                after.last_tick.as_ref().unwrap().0.as_second() - before.last_tick.as_ref().unwrap().0.as_second();
            assert!((0..=passed).contains(&counted), "{counted} of {passed} seconds counted");
        }
    }
    // The moment at which a stage was entered, and when it was left, by the clock of the writes.
    let entered = |name: &str| {
        let found = all.iter().find(|s| s.stage.as_ref().is_some_and(|stage| stage.name == name)).unwrap();
        found.stage.as_ref().unwrap().entered_at.as_ref().unwrap().0.as_second()
    };
    let promoted = all.iter().find(|s| s.phase == Phase::Promoting).unwrap().last_tick.as_ref().unwrap().0.as_second();
    assert!(entered("all") - entered("half") >= 5, "the first stage was cut short");
    assert!(promoted - entered("all") >= 3, "the second stage was cut short");
    assert!(promoted - entered("half") <= 40, "dying cost {} seconds", promoted - entered("half") - 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_dies_after_each_write_skips_and_repeats_nothing() {
    check(&follow(1, 0, true).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_controllers_one_write_wins_also_when_one_is_late() {
    check(&follow(2, 1, false).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_that_die_after_each_write_do_no_more_harm_than_one() {
    tokio::time::timeout(Duration::from_secs(300), async { check(&follow(2, 0, true).await) }).await.unwrap();
}

/// Looks at a server whenever it is written, until it is as wished.
async fn until(servers: &Api<McpServer>, what: &str, is: impl Fn(&McpServer) -> bool) -> McpServer {
    let seen = watcher(servers.clone(), watcher::Config::default()).applied_objects();
    futures::pin_mut!(seen);
    let look = async {
        loop {
            let server = seen.next().await.expect("watches do not end").unwrap();
            if is(&server) {
                return server;
            }
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// A release is made, and a moment later the server changes. The controller of servers, whose watch
/// has not brought the release, asks before it replaces what runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_the_watch_has_not_brought_holds_its_server_all_the_same() {
    let (open, gate) = watch::channel(false);
    let scene = Scene::behind(&gate).await;
    let controller = scene.controller();
    scene.servers.create(&PostParams::default(), &object("McpServer", &named("one"))).await.unwrap();
    let phase = |server: &McpServer| server.status.as_ref().and_then(|s| s.phase);
    let first = until(&scene.servers, "the server", |s| phase(s) == Some(ServerPhase::Ready)).await;
    let runs = first.status.unwrap().current_revision.unwrap();
    let stages = json!([{"name": "half", "percentage": 50, "duration": "2s"}]);
    let spec = json!({"targetRef": {"name": "a"}, "stages": stages, "drainTimeout": "1s"});
    scene.releases.create(&PostParams::default(), &object("CanaryRelease", &spec)).await.unwrap();
    let next = async |is: &dyn Fn(&CanaryReleaseStatus) -> bool| {
        let mut written = std::pin::pin!(watcher(scene.releases.clone(), watcher::Config::default()).applied_objects());
        let look = async {
            loop {
                let status = written.next().await.expect("watches do not end").unwrap().status.unwrap_or_default();
                if is(&status) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, look).await.expect("the release to go on");
    };
    next(&|status| status.stable_revision.is_some()).await;

    let patch = Patch::Merge(json!({"spec": named("two")}));
    let changed = scene.servers.patch("a", &PatchParams::default(), &patch).await.unwrap();
    let seen = until(&scene.servers, "the change to be seen", |server| {
        server.status.as_ref().and_then(|s| s.observed_generation) == changed.metadata.generation
    })
    .await;
    let status = seen.status.unwrap();
    assert_eq!(status.current_revision.as_deref(), Some(runs.as_str()), "what runs was not replaced: {status:?}");
    let held = status.conditions.iter().find(|c| c.type_ == "RevisionHeld").expect("it says that it is held");
    assert_eq!(held.reason, "ReleaseUnderWay");

    open.send(true).unwrap();
    next(&|status| status.phase == Phase::Succeeded).await;
    scene.stop.cancel();
    controller.await.unwrap();
    scene.end().await;
}
