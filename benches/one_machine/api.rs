//! The embedded API with 10,000 servers, over loopback HTTPS as kubectl uses it. They are
//! suspended, so that it is the API that works and not what runs servers.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use perch::api::mcp_server::McpServer;
use serde_json::json;

use crate::{Report, client, mib, multiplexed, resident, spread, support::Perch};

const OBJECTS: usize = 10_000;
const WATCHES: usize = 1_000;

pub async fn measure(report: &mut Report) {
    let dir = tempfile::tempdir().unwrap();
    let perch = Perch::up(dir.path(), &["--runtime", "process"]);
    let api: Api<McpServer> = Api::namespaced(client(&perch).await, "default");
    let started = Instant::now();
    stream::iter(0..OBJECTS)
        .for_each_concurrent(32, |i| {
            let api = api.clone();
            async move {
                let server = serde_json::from_value(json!({
                    "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
                    "metadata": {"name": format!("s{i}"), "labels": {"team": format!("t{}", i % 50)}},
                    "spec": {"command": ["mcp-server", "--number", i.to_string()], "suspend": true},
                }));
                api.create(&PostParams::default(), &server.unwrap()).await.unwrap();
            }
        })
        .await;
    let time = started.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = OBJECTS as f64 / time.as_secs_f64();
    report.line(
        "10,000 servers created, 32 at a time",
        "-",
        format!("{:.1} s, {rate:.0} a second", time.as_secs_f64()),
    );
    settle(&api).await;
    report.line("memory with 10,000 servers", "-", mib(resident(perch.pid())));

    let mut lists = Vec::new();
    for _ in 0..21 {
        let started = Instant::now();
        let page = api.list(&ListParams::default().limit(500)).await.unwrap();
        lists.push(started.elapsed());
        assert_eq!(page.items.len(), 500);
    }
    report.line("list of 500 among 10,000, parsed by the client", "under 20 ms", spread(lists));

    let mut writes = Vec::new();
    for i in 0..201 {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"n": i.to_string()}}}));
        let started = Instant::now();
        api.patch(&format!("s{}", i * 7), &PatchParams::default(), &patch).await.unwrap();
        writes.push(started.elapsed());
    }
    report.line("a write acknowledged durably", "median under 5 ms", spread(writes));

    watches(report, &perch, "kept open on connections of 100 each (HTTP/2)", WATCHES / 100).await;
    watches(report, &perch, "kept open on a connection each (HTTP/1.1, TLS)", WATCHES).await;
}

/// 1,000 watches from now on, and one change that reaches them all.
async fn watches(report: &mut Report, perch: &Perch, how: &str, connections: usize) {
    let api = |client| Api::<McpServer>::namespaced(client, "default");
    let one = api(client(perch).await);
    let now = one.list(&ListParams::default().limit(1)).await.unwrap().metadata.resource_version.unwrap();
    let before = resident(perch.pid());
    let mut watches = Vec::new();
    for _ in 0..connections {
        let many = api(if connections == WATCHES { client(perch).await } else { multiplexed(perch).await });
        for _ in 0..WATCHES / connections {
            watches.push(Box::pin(many.watch(&WatchParams::default().timeout(290), &now).await.unwrap()));
        }
    }
    let opened = resident(perch.pid());
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"seen": how}}}));
    let started = Instant::now();
    one.patch("s1", &PatchParams::default(), &patch).await.unwrap();
    for watch in &mut watches {
        loop {
            let event = watch.next().await.expect("a watch lasts longer than this");
            if let WatchEvent::Modified(server) = event.unwrap()
                && server.annotations().get("seen").is_some_and(|seen| seen == how)
            {
                break;
            }
        }
    }
    let fanned = started.elapsed();
    let after = resident(perch.pid());
    report.line(
        &format!("memory of 1,000 watches, {how}"),
        "at most 10 MiB",
        format!(
            "{}, {} after a change reached them all",
            mib(opened - before.min(opened)),
            mib(after - before.min(after))
        ),
    );
    report.line(
        &format!("one change seen by 1,000 watches, {how}"),
        "-",
        format!("{:.0} ms", fanned.as_secs_f64() * 1000.0),
    );
}

/// Waits until the controller has said of the last server what it has to say.
async fn settle(api: &Api<McpServer>) {
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        let page = api.list(&ListParams::default()).await.unwrap();
        if page.items.iter().all(|s| s.status.is_some()) {
            return;
        }
        assert!(Instant::now() < deadline, "the controller does not keep up");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
