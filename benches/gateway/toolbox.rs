//! One list of the tools of many servers.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    proxy::{Ended, Gateway, example, free_port},
    report::{Report, ms},
    support::wait,
    wire::Wire,
};

/// Servers behind the toolbox.
const SERVERS: usize = 100;
/// Lists, of which the first is not counted.
const LISTS: usize = 501;

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

/// The list of a toolbox that everybody asks for again.
pub async fn measure(report: &mut Report) {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path());
    let port = free_port();
    let mut server = Command::new(example("mcp-fixture"));
    let server = server.arg("http").env("PORT", port.to_string()).stderr(Stdio::null());
    let _running = Ended(server.spawn().unwrap());
    let servers = (0..SERVERS).map(|number| {
        json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
            "metadata": {"name": format!("s{number}"), "labels": {"team": "bench"}},
            "spec": {"remote": {"url": format!("http://127.0.0.1:{port}/mcp")}, "transport": {"type": "StreamableHttp"}},
        })
    });
    let toolbox = json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpToolbox", "metadata": {"name": "all"},
        "spec": {"selector": {"matchLabels": {"team": "bench"}}, "access": {"users": ["*"]}},
    });
    let all: Vec<Value> = servers.chain([toolbox]).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": all});
    gateway.perch.ok_with(&["apply", "-f", "-"], &list.to_string());
    wait("all servers to be in the toolbox", || {
        let ready = gateway.perch.ok(&["get", "mcpt", "all", "-o", "jsonpath={.status.serversReady}"]);
        (ready == format!("{SERVERS}/{SERVERS}")).then_some(())
    });
    let target = gateway.target("toolboxes/all");
    let mut wire = Wire::open(&target.address).await.unwrap();
    let session = target.initialize(&mut wire).await;
    let request = target.request(&session, "POST", LIST);
    let mut times = Vec::with_capacity(LISTS);
    let mut size = 0;
    let mut cpu = Duration::ZERO;
    for number in 0..LISTS {
        if number == 1 {
            cpu = target.cpu();
        }
        let began = Instant::now();
        let head = wire.send(&request).await.unwrap();
        let (tools, bytes) = wire.finish(&head, |body| (count(body, b"_echo\""), body.len())).await.unwrap();
        times.push(began.elapsed());
        assert_eq!((head.status, tools), (200, SERVERS), "a list without some of the tools");
        size = bytes;
    }
    let cpu = target.cpu().checked_sub(cpu).unwrap() / u32::try_from(LISTS - 1).unwrap();
    let cold = times.remove(0);
    times.sort_unstable();
    report.line(
        &format!("tools/list of a toolbox of {SERVERS} servers with seven tools each, warm, one at a time"),
        "under 10 ms",
        format!(
            "median {:.1} ms, 99 of 100 within {:.1} ms, CPU {:.1} ms; the first {:.1} ms; {} KiB",
            ms(times[times.len() / 2]),
            ms(times[times.len() * 99 / 100]),
            ms(cpu),
            ms(cold),
            size / 1024
        ),
    );
}

fn count(text: &[u8], part: &[u8]) -> usize {
    memchr::memmem::find_iter(text, part).count()
}
