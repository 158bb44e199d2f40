//! `perch canary` as a process, against the embedded control plane; the test decides, as the
//! operator would, whenever a command arrives.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
};

use futures::StreamExt;
use jiff::Timestamp;
use kube::{Api, CustomResourceExt, api::PostParams, runtime::watcher::watch_object};
use perch::{
    api::canary_release::{self, COMMAND_ANNOTATION, CanaryRelease, Counts, Phase},
    canary::{Gateway, Health, InFlight, Observation, Plan, Reading, Series, contract::Contract, decide},
    local::{ControlPlane, Credentials},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::PATIENCE;

struct World {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    api: Api<CanaryRelease>,
    shutdown: CancellationToken,
}

/// What an operator sees of a release that goes well but for the share of bad calls.
fn decided(release: &CanaryRelease, bad: i64, calls: i64, seconds: i64) -> CanaryRelease {
    let mut release = release.clone();
    let status = release.status.clone().unwrap_or_default();
    let series = |revision: &str, bad: i64| Series {
        source: "g".into(),
        revision: revision.into(),
        since: None,
        counts: Counts { bad: [bad; 16], total: [calls; 16] },
        users: Some(0xffff),
    };
    let reading = |bad| Reading::Counters(vec![series("srv-1", 0), series("srv-2", bad)]);
    let annotation = release.metadata.annotations.as_ref().and_then(|a| a.get(COMMAND_ANNOTATION));
    let first = status.stable_revision.is_none();
    let seen = Observation {
        generation: release.metadata.generation,
        declared: Some(if first { "srv-1".into() } else { "srv-2".into() }),
        candidate: Health::Ready,
        waits: String::new(),
        stable: Health::Ready,
        contract: Some(Contract::default()),
        gateways: vec![Gateway { name: "g".into(), epoch: Some(status.routing.desired_epoch) }],
        readings: vec![("errorRate".into(), reading(bad)), ("schemaErrors".into(), reading(0))],
        in_flight: InFlight { candidate: Some(0), stable: Some(0) },
        command: annotation.map(|text| canary_release::Command::parse(text).unwrap()),
        route: None,
    };
    let plan = Plan::new(&release.spec).unwrap();
    let last = status.last_tick.as_ref().map_or_else(Timestamp::now, |tick| tick.0);
    let now = last.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap();
    release.status = Some(decide(&plan, &status, &seen, now).progress);
    release
}

impl World {
    /// A release in its first stage.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let api = runtime.block_on(async {
            let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
            let plane = ControlPlane::open(dir.path(), vec![CanaryRelease::crd()]).await.unwrap();
            let credentials = Credentials::load_or_create(&dir.path().join("tls")).unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            std::fs::write(dir.path().join("kubeconfig"), credentials.kubeconfig(&url)).unwrap();
            let api: Api<CanaryRelease> = Api::namespaced(plane.client(), "default");
            let stop = shutdown.clone();
            tokio::spawn(async move { plane.serve(listener, &credentials, stop).await });
            let spec = json!({"targetRef": {"name": "srv"}, "stages": [
                {"name": "pilot", "percentage": 10, "duration": "60s", "successCriteria": [{"metric": "errorRate", "threshold": "< 5%"}]},
                {"name": "wide", "percentage": 50, "duration": "60s"}]});
            let release = CanaryRelease::new("srv", serde_json::from_value(spec).unwrap());
            api.create(&PostParams::default(), &release).await.unwrap();
            api
        });
        let world = Self { dir, runtime, api, shutdown };
        world.until(Phase::Progressing, 0);
        world.turn(0, 100, 10);
        world
    }

    fn release(&self) -> CanaryRelease {
        self.runtime.block_on(self.api.get("srv")).unwrap()
    }

    /// Decides once, and writes it.
    fn turn(&self, bad: i64, calls: i64, seconds: i64) {
        let next = decided(&self.release(), bad, calls, seconds);
        self.runtime.block_on(self.api.replace_status("srv", &PostParams::default(), &next)).unwrap();
    }

    fn until(&self, phase: Phase, bad: i64) {
        for calls in 1..100 {
            if self.release().status.is_some_and(|s| s.phase == phase) {
                return;
            }
            self.turn(bad * calls, 100 * calls, 10);
        }
        panic!("{phase:?} did not come: {:?}", self.release().status);
    }

    /// Decides whenever a command arrives.
    fn operate(&self) {
        let api = self.api.clone();
        self.runtime.spawn(async move {
            let mut changes = std::pin::pin!(watch_object(api.clone(), "srv"));
            while let Some(change) = changes.next().await {
                let Some(release) = change.unwrap() else { return };
                let annotation = release.metadata.annotations.as_ref().and_then(|a| a.get(COMMAND_ANNOTATION));
                let Some(command) = annotation.map(|t| canary_release::Command::parse(t).unwrap()) else { continue };
                if !release.status.as_ref().unwrap().seen_commands.contains(&command.id) {
                    api.replace_status("srv", &PostParams::default(), &decided(&release, 0, 100, 0)).await.unwrap();
                }
            }
        });
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perch"));
        let kubeconfig: PathBuf = self.dir.path().join("kubeconfig");
        command.arg("canary").args(args).arg("--kubeconfig").arg(kubeconfig).stdin(Stdio::null());
        command
    }

    fn perch(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command says that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.perch(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command complains about that must fail with 1.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.perch(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A `perch canary watch` that is no terminal: a line a change.
struct Watch {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watch {
    fn start(world: &World, args: &[&str]) -> Self {
        let args = [&["watch", "srv"], args].concat();
        let mut child = world.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// The next line, without its time.
    fn next(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE).expect("a line");
        line.split_once("  ").expect("time, then what is so").1.to_owned()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn people_see_a_release_and_steer_it() {
    let world = World::start();
    let status = world.ok(&["status", "srv"]);
    for said in
        ["● srv  Progressing", "server     default/srv", "10% of the users; all gateways do so", "errorRate < 5%"]
    {
        assert!(status.contains(said), "{said} is not in\n{status}");
    }
    let list = world.ok(&["status"]);
    assert!(list.contains("srv") && list.contains("pilot") && list.contains("Progressing"), "{list}");
    let object: Value = serde_json::from_str(&world.ok(&["status", "srv", "-o", "json"])).unwrap();
    assert_eq!(object["status"]["stage"]["name"], "pilot");

    world.operate();
    assert_eq!(world.ok(&["pause", "srv", "--by", "dana"]), "srv: the release is paused\n");
    let told = world.release();
    assert_eq!(told.status.as_ref().unwrap().phase, Phase::Paused);
    let command = canary_release::Command::parse(&told.metadata.annotations.unwrap()[COMMAND_ANNOTATION]).unwrap();
    assert_eq!((command.by.as_deref(), command.stage.as_deref()), (Some("dana"), Some("pilot")));
    let paused = world.ok(&["status", "srv"]);
    assert!(paused.contains("‖ srv  Paused") && paused.contains("Pause by dana"), "{paused}");
    let refused = world.fails(&["pause", "srv", "--by", "eve"]);
    assert_eq!(refused, "error: Pause was refused: the release is Paused and cannot be paused\n");
    assert_eq!(world.ok(&["resume", "srv"]), "srv: the release goes on\n");
    assert_eq!(world.ok(&["skip", "srv"]), "srv: stage pilot is skipped\n");
    assert_eq!(world.ok(&["promote", "srv"]), "srv: everybody gets the candidate\n");
    world.until(Phase::Succeeded, 0);
    assert!(world.fails(&["abort", "srv"]).contains("no release is under way"));
    assert!(world.ok(&["history", "srv"]).contains("PromotedByCommand"));
    assert_eq!(world.ok(&["history", "srv", "-o", "json"]), "[]\n", "no incident");
}

#[test]
fn a_rollback_leaves_an_incident_record() {
    let world = World::start();
    world.until(Phase::RolledBack, 40);
    let incidents: Value = serde_json::from_str(&world.ok(&["history", "srv", "-o", "json"])).unwrap();
    let incident = &incidents[0];
    assert_eq!(incident["id"], "default/srv/srv-2.1");
    assert_eq!(incident["reason"], "CriterionBreached");
    let evidence = incident["evidence"].as_array().unwrap();
    let broken = evidence.iter().find(|e| e["metric"] == "errorRate").unwrap();
    assert_eq!(broken["verdict"], "Breach");
    assert!(broken["bad"].as_i64().unwrap() >= 3 && broken["total"].as_i64() > broken["bad"].as_i64(), "{broken}");
    let history = world.ok(&["history", "srv"]);
    assert!(history.contains("RolledBack") && history.contains("errorRate < 5%"), "{history}");

    world.operate();
    assert_eq!(world.ok(&["retry", "srv"]), "srv: srv-2 is released again\n");
    assert_eq!(world.ok(&["abort", "srv", "--by", "dana"]), "srv: srv-2 is taken back\n");
}

#[test]
fn a_watch_tells_each_change_once_and_ends_with_the_release() {
    let world = World::start();
    let mut watch = Watch::start(&world, &["--until-done"]);
    assert!(watch.next().starts_with("Progressing  stage pilot  10% of the users  errorRate="));
    // Time passes, and nothing happens.
    world.turn(0, 100, 10);
    world.turn(0, 100, 10);
    world.operate();
    world.ok(&["pause", "srv", "--by", "dana"]);
    assert!(watch.next().ends_with("paused by dana: resume to go on"));
    world.ok(&["abort", "srv", "--by", "dana"]);
    assert!(watch.next().starts_with("RollingBack  stage pilot  nobody"));
    world.until(Phase::RolledBack, 0);
    let mut last = watch.next();
    while !last.starts_with("RolledBack") {
        last = watch.next();
    }
    assert!(last.ends_with("srv-2 was taken back: aborted by dana"), "{last}");
    assert_eq!(watch.child.wait().unwrap().code(), Some(1), "it was taken back");
}

#[test]
fn nobody_waits_for_ever() {
    let world = World::start();
    let said = world.fails(&["pause", "srv", "--timeout", "1"]);
    assert!(said.contains("no answer within 1 s: is an operator running?"), "{said}");
    // The command is there, and obeyed by the operator that comes.
    world.turn(0, 100, 1);
    assert_eq!(world.release().status.unwrap().phase, Phase::Paused);
    assert!(world.fails(&["status", "other"]).contains("\"other\" not found"));
    let none = Command::new(env!("CARGO_BIN_EXE_perch"))
        .args(["canary", "status", "--data-dir"])
        .arg(world.dir.path().join("nothing"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&none.stderr).contains("no perch is running"));
}

#[test]
fn a_file_is_judged_before_it_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("release.yaml");
    let simulate = |text: &str, calls: &str| {
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_perch"));
        command.args(["canary", "simulate", "--calls-per-minute", calls, "-f"]).arg(&file).output().unwrap()
    };
    let spec = "kind: CanaryRelease\napiVersion: perch.dev/v1alpha1\nmetadata: {name: srv}\nspec:\n  targetRef: {name: srv}\n  stages:\n  - {name: pilot, percentage: 10, duration: 1h, successCriteria: [{metric: errorRate, threshold: '< 1%'}]}\n";
    let good = simulate(spec, "1000");
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(String::from_utf8_lossy(&good.stdout).contains("Every stage can decide in its time."));
    let bad = simulate(spec, "10");
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("warning: stage pilot: errorRate < 1% needs about"));
    let broken = simulate(&spec.replace("percentage: 10, ", ""), "10");
    assert!(String::from_utf8_lossy(&broken.stderr).contains("stage \"pilot\" has nobody in it"));
    assert_eq!(simulate(spec, "-3").status.code(), Some(2));
    assert!(String::from_utf8_lossy(&simulate("kind: X", "3").stderr).contains("holds no CanaryRelease"));
}

#[test]
fn on_a_terminal_the_screen_is_drawn_anew() {
    let world = World::start();
    // `script` gives it a terminal.
    let watch = world.command(&["watch", "srv", "--until-done"]);
    let words: Vec<String> = std::iter::once(watch.get_program())
        .chain(watch.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut script = Command::new("script")
        .args(["-qec", &words.join(" "), "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = script.stdout.take().unwrap();
    let (sender, parts) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = std::io::Read::read(&mut output, &mut buffer) {
            if sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut shown = String::new();
    let mut until = |what: &str| {
        while !shown.contains(what) {
            shown.push_str(&parts.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{what}: {e}: {shown}")));
        }
    };
    until("● srv  Progressing");
    until("errorRate < 5%");
    world.operate();
    world.ok(&["abort", "srv", "--by", "dana"]);
    until("↩ srv  RollingBack");
    world.until(Phase::RolledBack, 0);
    until("✖ srv  RolledBack");
    until("srv: srv-2 was taken back: aborted by dana");
    assert_eq!(script.wait().unwrap().code(), Some(1));
    assert!(shown.contains("\u{1b}[K"), "lines are drawn over");
}
