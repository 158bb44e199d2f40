//! Routes that change while calls are made.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::{
    proxy::{Gateway, example},
    report::Report,
    support::wait,
    wire::Wire,
};

/// Changes.
const SWAPS: u64 = 1_000;
/// Calls in hand at each moment.
const CLIENTS: usize = 16;

const CALL: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"tool_1","arguments":{"text":"x"}}}"#;

/// Calls go on while the table is replaced; each is answered.
pub async fn measure(report: &mut Report) {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path());
    let spec = json!({"command": [example("mcp-bench-upstream")], "transport": {"type": "StreamableHttp"}});
    let target = gateway.serve("bench", &spec);
    let api = gateway.servers().await;
    let first = gateway.generation();
    let (over, calls) = (Cell::new(false), Cell::new(0_u64));
    let callers = (0..CLIENTS).map(async |_| {
        let mut wire = Wire::open(&target.address).await.unwrap();
        let session = target.initialize(&mut wire).await;
        let request = target.request(&session, "POST", CALL);
        while !over.get() {
            let answer = wire.ask(&request).await.unwrap();
            let text = String::from_utf8_lossy(&answer.body);
            assert!(answer.status == 200 && text.contains("pong"), "a lost call: {} {text}", answer.status);
            calls.set(calls.get() + 1);
        }
    });
    let started = Instant::now();
    let swap = async {
        let mut swaps = 0;
        while swaps < SWAPS {
            for n in 0..50 {
                // Which tools are hidden is in the table; this one does not exist.
                let patch = json!({"spec": {"tools": {"deny": [format!("none-{swaps}-{n}")]}}});
                api.patch("bench", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
            }
            swaps = gateway.generation() - first;
        }
        over.set(true);
        swaps
    };
    let (_, swaps) = futures::future::join(futures::future::join_all(callers), swap).await;
    let seen = format!("0 of {} lost while it was swapped {swaps} times in {:.0} s", calls.get(), seconds(started));
    report.line("calls lost while the table is swapped 1,000 times", "0", seen);
    wait("the server to be ready at the end", || {
        (gateway.perch.status("bench")["conditions"][0]["status"] == "True").then_some(())
    });
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().max(Duration::from_millis(1)).as_secs_f64()
}
