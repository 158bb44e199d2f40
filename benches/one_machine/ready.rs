//! From apply to Ready in a container, against the same image started by plain docker and asked
//! the same questions over its standard streams.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use perch::api::mcp_server::McpServer;
use serde_json::json;

use crate::{Report, client, spread, support::Perch};

const RUNS: usize = 9;

pub fn measure(report: &mut Report) {
    let Ok(fixture) = std::env::var("PERCH_TEST_FIXTURE_IMAGE") else {
        report.line("apply to Ready in a container", "-", "not run: no Docker engine".into());
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let perch = Perch::up(dir.path(), &["--runtime", "docker"]);
    let (mut plain, mut managed) = (Vec::new(), Vec::new());
    // In pairs, so that what else the machine does falls on both.
    for _ in 0..RUNS {
        plain.push(plain_docker(&fixture));
        managed.push(runtime.block_on(applied(&perch, &fixture)));
    }
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort();
        times[times.len() / 2]
    };
    let more = median(&managed).as_secs_f64() - median(&plain).as_secs_f64();
    report.line("`docker run` to `tools/list` answered, plain", "-", spread(plain));
    report.line("apply to Ready, the same image", "-", spread(managed));
    report.line("what Perch adds to the start of a container", "at most 300 ms", format!("{:.0} ms", more * 1000.0));
    assert_eq!(perch.stop(), Some(0));
    crate::support::perch(&["down", "--volumes", "--data-dir", dir.path().to_str().unwrap()]);
}

fn plain_docker(image: &str) -> Duration {
    let started = Instant::now();
    let mut child = Command::new("docker")
        .args(["run", "--rm", "-i", "--network=none", "--read-only", "--cap-drop=ALL", image])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for request in [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "0"}}}),
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}),
    ] {
        writeln!(stdin, "{request}").unwrap();
        assert!(lines.next().unwrap().unwrap().contains("result"));
    }
    let time = started.elapsed();
    drop(stdin);
    child.wait().unwrap();
    time
}

async fn applied(perch: &Perch, image: &str) -> Duration {
    let api: Api<McpServer> = Api::namespaced(client(perch).await, "default");
    let server: McpServer = serde_json::from_value(json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "bench"}, "spec": {"image": image},
    }))
    .unwrap();
    let mut seen = watcher(api.clone(), watcher::Config::default()).applied_objects().boxed();
    let started = Instant::now();
    api.create(&PostParams::default(), &server).await.unwrap();
    while let Some(server) = seen.try_next().await.unwrap() {
        if server.status.is_some_and(|s| s.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")) {
            break;
        }
    }
    let time = started.elapsed();
    api.delete("bench", &DeleteParams::default()).await.unwrap();
    while api.get_opt("bench").await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    time
}
