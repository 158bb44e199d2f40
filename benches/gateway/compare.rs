//! The same calls directly, through nginx, and through Perch.

use std::time::Duration;

use serde_json::json;

use crate::{
    load::{Load, Outcome, run},
    proxy::{Ended, Gateway, Target, example, nginx, upstream},
    report::{Report, ms},
};

/// Runs of each line; the median counts.
const ROUNDS: usize = 3;

/// What is called, and what is in its answer.
const CALLS: [(&str, &str, &str); 4] = [
    (
        "tools/call, JSON",
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"tool_1","arguments":{"text":"x"}}}"#,
        "pong",
    ),
    (
        "tools/call, SSE",
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"tool_1","arguments":{"stream":true}}}"#,
        "pong",
    ),
    ("tools/list, JSON", r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#, "tool_9"),
    (
        "tools/list, SSE",
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"stream":true}}}"#,
        "tool_9",
    ),
];

/// All that is compared.
struct Bench {
    _dir: tempfile::TempDir,
    _running: Vec<Ended>,
    _gateway: Gateway,
    targets: Vec<Target>,
}

impl Bench {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, address) = upstream();
        let direct = Target {
            name: "direct",
            address: address.clone(),
            path: "/mcp".into(),
            credential: String::new(),
            pids: Vec::new(),
        };
        let (mut running, mut targets) = (vec![server], vec![direct]);
        match nginx(dir.path(), &address) {
            Some((process, target)) => {
                running.push(process);
                targets.push(target);
            }
            None => eprintln!("no nginx: it is not compared"),
        }
        let gateway = Gateway::start(dir.path());
        let spec = json!({"command": [example("mcp-bench-upstream")], "transport": {"type": "StreamableHttp"}});
        targets.push(gateway.serve("bench", &spec));
        Self { _dir: dir, _running: running, _gateway: gateway, targets }
    }
}

/// Prints the comparison.
pub async fn measure() {
    let seconds = std::env::var("PERCH_BENCH_SECONDS").map_or(2.0, |s| s.parse().unwrap());
    let bench = Bench::start();
    println!("| What | Sessions | Proxy | Calls/s | p99 ms | CPU ms for 1,000 calls | of nginx |");
    println!("|---|---|---|---|---|---|---|");
    for (what, body, says) in CALLS {
        for clients in [1, 16, 64] {
            let load = Load { body, says, clients, time: Duration::from_secs_f64(seconds), pace: None };
            let mut rounds = vec![Vec::new(); bench.targets.len()];
            for _ in 0..ROUNDS {
                for (target, rounds) in bench.targets.iter().zip(&mut rounds) {
                    rounds.push(run(target, load).await);
                }
            }
            let mut nginx = None;
            for (target, rounds) in bench.targets.iter().zip(rounds) {
                let cost = median(&rounds, Outcome::cost);
                if target.name == "nginx" {
                    nginx = Some(cost);
                }
                let ratio = nginx.filter(|_| target.name == "Perch").map(|nginx| format!("{:.2}", cost / nginx));
                let line = format!(
                    "| {what} | {clients} | {} | {:.0} | {:.2} | {} | {} |",
                    target.name,
                    median(&rounds, Outcome::rate),
                    median(&rounds, |o| ms(o.p99)),
                    if target.pids.is_empty() { "-".into() } else { format!("{cost:.1}") },
                    ratio.unwrap_or_default(),
                );
                eprintln!("{line}");
                println!("{line}");
            }
        }
    }
    println!();
}

fn median(rounds: &[Outcome], of: impl Fn(&Outcome) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What Perch adds to the time of a call where nothing is at its limit.
pub async fn paced(report: &mut Report) {
    let bench = Bench::start();
    let (_, body, says) = CALLS[0];
    let pace = Some(Duration::from_millis(8));
    let mut seen = Vec::new();
    for target in &bench.targets {
        let load = Load { body, says, clients: 16, time: Duration::from_secs(5), pace };
        // The first run is for connections to be there.
        run(target, Load { time: Duration::from_secs(1), ..load }).await;
        seen.push((target.name, ms(run(target, load).await.p99)));
    }
    let direct = seen[0].1;
    for (name, p99) in &seen[1..] {
        let goal = if *name == "Perch" { "under 1 ms" } else { "-" };
        let what = format!("what {name} adds to the 99th percentile, 16 sessions, 2,000 calls a second");
        report.line(&what, goal, format!("{:.2} ms ({p99:.2} instead of {direct:.2})", p99 - direct));
    }
}
