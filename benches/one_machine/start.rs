//! From the command to an API that answers, and memory at rest.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Report, mib, resident, spread,
    support::{Perch, fixture, wait},
};

pub fn measure(report: &mut Report) {
    let first: Vec<Duration> = (0..15)
        .map(|_| {
            let dir = tempfile::tempdir().unwrap();
            until_answering(dir.path())
        })
        .collect();
    report.line("`perch up` to API answering, new data directory", "under 150 ms", spread(first));
    let dir = tempfile::tempdir().unwrap();
    until_answering(dir.path());
    let again: Vec<Duration> = (0..15).map(|_| until_answering(dir.path())).collect();
    report.line("`perch up` to API answering, known data directory", "under 150 ms", spread(again));

    let dir = tempfile::tempdir().unwrap();
    let perch = Perch::up(dir.path(), &["--runtime", "process"]);
    let empty = resident(perch.pid());
    for i in 0..20 {
        let transport = if i % 2 == 0 { "Stdio" } else { "StreamableHttp" };
        let mode = if i % 2 == 0 { "stdio" } else { "http" };
        perch.apply(&format!("s{i}"), &json!({"command": [fixture(), mode], "transport": {"type": transport}}));
    }
    perch.ok(&["wait", "mcps", "--all", "--for=condition=Ready", "--timeout=120s"]);
    // Three probe periods, so that what is done again and again has been done.
    std::thread::sleep(Duration::from_secs(30));
    report.line("memory of an empty `perch up`", "-", mib(empty));
    report.line("memory with 20 servers at rest (10 Stdio, 10 HTTP)", "under 40 MiB", mib(resident(perch.pid())));
}

/// Starts perch and asks `/readyz` until it answers.
fn until_answering(dir: &Path) -> Duration {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (api, gateway) = (free(), free());
    let started = Instant::now();
    let mut child: Child = Command::new(env!("CARGO_BIN_EXE_perch"))
        .args(["up", "--runtime", "process", "--api-addr", &api, "--gateway-addr", &gateway, "--data-dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let kubeconfig = dir.join("kubeconfig");
    let time = runtime.block_on(async {
        loop {
            if std::net::TcpStream::connect(&api).is_ok()
                && let Ok(found) = kube::config::Kubeconfig::read_from(&kubeconfig)
                && let Ok(config) =
                    kube::Config::from_custom_kubeconfig(found, &kube::config::KubeConfigOptions::default()).await
                && let Ok(client) = kube::Client::try_from(config)
                && client.request_text(http::Request::get("/readyz").body(Vec::new()).unwrap()).await.is_ok()
            {
                return started.elapsed();
            }
            assert!(started.elapsed() < Duration::from_secs(20), "perch does not start");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    wait("perch to stop", || child.try_wait().unwrap());
    time
}
