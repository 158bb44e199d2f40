//! The contract of `runtime::Backend`, as tests that run against every implementation.
//!
//! A backend joins with a [`Machine`] and one line, `backend_contract!(ItsMachine);`. The tests
//! know nothing of the machinery: what they need from it (what really runs, kill it, what is left)
//! they ask the machine, which looks past the backend at the processes or the engine itself.
//!
//! Nothing here polls a backend: [`until`] looks again only when `changes()` says so, so that a
//! change that is not told fails the test.

#![allow(dead_code, reason = "no test binary needs all of it")]

pub mod bounds;
pub mod ends;
pub mod failures;
pub mod lifecycle;
pub mod streams;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use perch::{
    api::mcp_server::{NetworkTier, SeccompProfile, StdioSessions},
    names::{Revision, ServerKey},
    runtime::{
        Backend, InstanceState, Observed, Workload,
        workload::{Declared, EnvEntry, EnvValue, Limits, Privileges, Program, Wire},
    },
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt},
    sync::broadcast,
};

use crate::support::PATIENCE;

/// What the tests need of the machinery under a backend. Dropping it removes what a failed test
/// left behind.
pub trait Machine: Send + Sync + Sized + 'static {
    /// Whether servers run in containers: confined, with files of their own and a limit on
    /// processes.
    const CONTAINED: bool;

    /// A machine with nothing on it, or the machine of an earlier life.
    fn new(place: &Place) -> Self;

    /// Begins a life of the backend.
    fn open(&self) -> impl Future<Output = Arc<dyn Backend>> + Send;

    /// The fixture server with these arguments.
    fn fixture(&self, args: &[&str]) -> Program;

    /// A program that this backend can never run.
    fn impossible(&self) -> Program;

    /// What really runs of a server, without what it started in turn.
    fn running(&self, server: &ServerKey) -> BTreeSet<String>;

    /// Ends one of [`running`](Machine::running) behind the backend's back.
    fn kill(&self, handle: &str);

    /// Everything that is left of a server, running or not, in words.
    fn left(&self, server: &ServerKey) -> Vec<String>;

    /// What other users of the machine see of one of [`running`](Machine::running): labels, names,
    /// arguments.
    fn exposed(&self, handle: &str) -> String;

    /// Removes everything of this machine, and says what is left all the same.
    fn end(&self) -> impl Future<Output = Vec<String>> + Send;
}

/// What makes a machine the same machine in a second life.
#[derive(Clone, Debug)]
pub struct Place {
    /// The mark on everything of it.
    pub instance: String,
    /// Where its files are.
    pub dir: PathBuf,
}

/// One test: a machine, its place, and a life of its backend.
pub struct Stage<M> {
    pub machine: M,
    pub backend: Arc<dyn Backend>,
    pub place: Place,
    dir: tempfile::TempDir,
}

impl<M: Machine> Stage<M> {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { instance: uuid::Uuid::new_v4().to_string(), dir: dir.path().to_owned() };
        let machine = M::new(&place);
        let backend = machine.open().await;
        Self { machine, backend, place, dir }
    }

    /// A Stdio server that runs the fixture.
    pub fn stdio(&self, name: &str, args: &[&str]) -> Workload {
        let args: Vec<&str> = std::iter::once(&"stdio").chain(args).copied().collect();
        workload(name, self.machine.fixture(&args), Wire::Stdio(StdioSessions::Shared))
    }

    /// An HTTP server that runs the fixture.
    pub fn http(&self, name: &str) -> Workload {
        workload(name, self.machine.fixture(&["http"]), Wire::Http { port: None, path: "/mcp".into() })
    }

    /// Applies a workload and waits until all of its replicas run.
    pub async fn run(&self, workload: &Workload) -> Observed {
        run(&self.machine, &*self.backend, workload).await
    }

    /// Waits until `holds` of what the backend sees of a server.
    pub async fn until(&self, server: &ServerKey, what: &str, holds: impl Fn(&Observed) -> bool) -> Observed {
        let mut changes = self.backend.changes();
        until(&*self.backend, &mut changes, server, what, holds).await
    }

    /// Ends the test: nothing of the machine is left.
    pub async fn end(self) {
        drop(self.backend);
        assert_eq!(self.machine.end().await, Vec::<String>::new(), "left of the machine");
    }
}

/// The server that most tests have.
pub fn key(name: &str) -> ServerKey {
    ServerKey::new("default", name)
}

/// A server with everything at its default.
pub fn workload(name: &str, program: Program, wire: Wire) -> Workload {
    Workload {
        server: key(name),
        uid: format!("uid-of-{name}"),
        revision: Revision(format!("{name}-1")),
        program,
        wire,
        replicas: 1,
        env: Vec::new(),
        credentials: Vec::new(),
        volumes: Vec::new(),
        limits: Limits { cpu_millis: 1000, memory_bytes: 512 << 20, pids: 128 },
        security: Privileges {
            user: 10001,
            read_only_root: true,
            add_capabilities: Vec::new(),
            seccomp: SeccompProfile::RuntimeDefault,
        },
        network: NetworkTier::Internal,
        stop_grace: Duration::from_secs(5),
        declared: Declared::default(),
    }
}

/// An environment variable in plain sight.
pub fn plain(name: &str, value: &str) -> EnvEntry {
    EnvEntry { name: name.into(), value: EnvValue::Plain(value.into()) }
}

/// How many instances run.
pub fn running(observed: &Observed) -> usize {
    observed.instances.iter().filter(|i| matches!(i.state, InstanceState::Running { .. })).count()
}

/// Applies a workload and waits until all of its replicas run its revision, and the machine says so.
pub async fn run<M: Machine>(machine: &M, backend: &dyn Backend, workload: &Workload) -> Observed {
    let mut changes = backend.changes();
    backend.apply(workload).await.unwrap();
    let wanted = usize::try_from(workload.replicas).unwrap();
    let observed = until(backend, &mut changes, &workload.server, "all replicas to run", |o| {
        o.instances.len() == wanted
            && running(o) == wanted
            && o.instances.iter().all(|i| i.revision == workload.revision)
    })
    .await;
    eventually("them to run indeed", || (machine.running(&workload.server).len() >= wanted).then_some(())).await;
    observed
}

/// Waits until `holds`, looking again only when a change is told.
pub async fn until(
    backend: &dyn Backend,
    changes: &mut broadcast::Receiver<ServerKey>,
    server: &ServerKey,
    what: &str,
    holds: impl Fn(&Observed) -> bool,
) -> Observed {
    let mut last = None;
    let look = async {
        loop {
            // An error is trouble with the machinery, which may pass.
            if let Ok(observed) = backend.observe(server).await {
                if holds(&observed) {
                    return observed;
                }
                last = Some(observed);
            }
            loop {
                match changes.recv().await {
                    Ok(changed) if changed != *server => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => break,
                    Err(broadcast::error::RecvError::Closed) => panic!("the backend is gone"),
                }
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, look).await.ok();
    found.unwrap_or_else(|| panic!("waited too long for {what}: {last:#?}"))
}

/// Waits for something that the machine tells nobody about.
pub async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A conversation with a Stdio server on its streams.
pub struct Talk {
    stdin: std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>,
    lines: tokio::io::Lines<tokio::io::BufReader<std::pin::Pin<Box<dyn tokio::io::AsyncRead + Send>>>>,
}

impl Talk {
    /// Takes the streams of an instance.
    pub async fn with(backend: &dyn Backend, instance: &perch::runtime::InstanceId) -> Self {
        let streams = backend.attach(instance).await.unwrap();
        Self { stdin: streams.stdin, lines: tokio::io::BufReader::new(streams.stdout).lines() }
    }

    /// Calls a tool and gives the text that it answers; nothing when the server ends instead.
    pub async fn call(&mut self, tool: &str, arguments: Value) -> Option<String> {
        let request = serde_json::json!({
            "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments},
        });
        let exchange = async {
            self.stdin.write_all(format!("{request}\n").as_bytes()).await.ok()?;
            self.stdin.flush().await.ok()?;
            self.lines.next_line().await.ok()?
        };
        let line = tokio::time::timeout(PATIENCE, exchange).await.expect("an answer, or the end")?;
        let answer: Value = serde_json::from_str(&line).unwrap();
        Some(answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned())
    }

    /// Calls a tool of a server that lives.
    pub async fn text(&mut self, tool: &str, arguments: Value) -> String {
        self.call(tool, arguments).await.expect("the server lives")
    }
}

/// Lets another process live the first life of a backend: it applies `replicas` of a server, and
/// is killed without a chance to clean up once they run.
pub fn killed_life(place: &Place, test: &str, servers: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("PERCH_TEST_LIFE", serde_json::json!([place.instance, place.dir, servers]).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let up = lines.into_iter().any(|line| line.ends_with("all of it runs"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(up, "the first life did not come up");
}

/// The other process of [`killed_life`]: runs servers with two replicas each until it is killed.
pub async fn live<M: Machine>() {
    let life: Value = serde_json::from_str(&std::env::var("PERCH_TEST_LIFE").unwrap()).unwrap();
    let place = Place { instance: life[0].as_str().unwrap().into(), dir: life[1].as_str().unwrap().into() };
    let machine = std::mem::ManuallyDrop::new(M::new(&place));
    let backend = machine.open().await;
    for name in life[2].as_str().unwrap().split(',') {
        run(&*machine, &*backend, &twins(&*machine, name)).await;
    }
    println!("\nall of it runs");
    std::future::pending::<()>().await;
}

/// A server with two replicas. It speaks HTTP, because a local process ends with its standard input.
pub fn twins<M: Machine>(machine: &M, name: &str) -> Workload {
    let program = machine.fixture(&["http"]);
    Workload { replicas: 2, ..workload(name, program, Wire::Http { port: None, path: "/mcp".into() }) }
}

/// Every test of the contract, for one machine.
#[macro_export]
macro_rules! backend_contract {
    ($machine:ty) => {
        $crate::backend_contract!($machine:
            lifecycle::applying_again_changes_nothing
            lifecycle::replicas_go_up_and_down
            lifecycle::a_new_revision_replaces_every_instance
            lifecycle::a_namesake_with_another_uid_is_another_server
            lifecycle::what_can_never_run_is_refused_at_once
            lifecycle::an_http_instance_is_reached_at_its_endpoint
            failures::an_instance_killed_behind_its_back_comes_back
            failures::a_crash_loop_is_told_with_its_last_words
            failures::a_program_that_is_not_there_cannot_start
            failures::a_failing_revision_can_be_replaced
            streams::streams_have_one_holder_at_a_time
            streams::sessions_are_instances_of_their_own
            streams::a_session_that_ends_is_gone
            streams::logs_come_in_order_and_in_part
            streams::a_follower_sees_restarts_and_new_instances
            bounds::secrets_reach_the_server_and_nobody_else
            bounds::usage_is_told_of_each_running_instance
            bounds::memory_has_a_limit
            bounds::processes_have_a_limit_or_end_together
            ends::remove_leaves_nothing
            ends::remove_at_any_moment_leaves_nothing
            ends::what_a_killed_life_left_is_listed_and_removed
            ends::after_a_kill_there_are_no_twins
            ends::after_a_drop_there_are_no_twins
            ends::shutdown_stops_everything_and_is_no_failure
        );

        /// Another process, for tests that kill a life of the backend.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "started by the tests that kill it"]
        async fn killed() {
            $crate::backend_contract::live::<$machine>().await;
        }
    };
    ($machine:ty: $($module:ident::$name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let stage = $crate::backend_contract::Stage::<$machine>::new().await;
                $crate::backend_contract::$module::$name(&stage, concat!(module_path!(), "::killed")).await;
                stage.end().await;
            }
        )*
    };
}
