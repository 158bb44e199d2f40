//! Asks both servers and compares.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};

use crate::{
    case::{Action, Call, Case, Step},
    cluster,
    differences::DIFFERENCES,
    normal::{Normal, differ},
    servers::{Server, both, runtime},
};

/// How long a watch is listened to after which it counts as silent, and how long a state is awaited.
const LISTEN: Duration = Duration::from_secs(8);
const AWAIT: Duration = Duration::from_secs(60);

/// An answer to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub warnings: Vec<String>,
    pub body: Value,
}

/// Runs the cases on both servers and fails with everything that differs and is not listed.
pub fn run(cases: Vec<Case>) {
    let servers = both();
    let filter = std::env::var("PERCH_CONFORMANCE").unwrap_or_default();
    let mut report = String::new();
    for case in cases.iter().filter(|case| case.name.contains(&filter)) {
        let (real, local) =
            runtime().block_on(async { join(outcomes(&servers[0], case), outcomes(&servers[1], case)).await });
        report.push_str(&judge(case, &real, &local));
    }
    assert!(report.is_empty(), "\n{report}");
}

/// What differs and should not, and what should and does not.
fn judge(case: &Case, real: &[Value], local: &[Value]) -> String {
    let mut report = String::new();
    let show = std::env::var_os("PERCH_CONFORMANCE_SHOW").is_some();
    let listed: Vec<_> = DIFFERENCES.iter().filter(|d| d.case == case.name).collect();
    let mut occurred = vec![false; listed.len()];
    for (index, step) in case.steps.iter().enumerate() {
        if show {
            println!("{} {index}: {}\n{:#}", case.name, step.label(), real[index]);
        }
        let mut found = Vec::new();
        differ("", &real[index], &local[index], &mut found);
        found.retain(|(path, _, _)| {
            let at = format!("{index}{path}");
            let place = listed.iter().position(|d| at == d.at || at.starts_with(&format!("{}/", d.at)));
            if let Some(place) = place {
                occurred[place] = true;
            }
            place.is_none()
        });
        if !found.is_empty() {
            let _ = writeln!(report, "case {}, step {index}: {}", case.name, step.label());
        }
        for (path, real, local) in found {
            let _ = writeln!(report, "  {index}{path}\n    kube-apiserver: {real}\n    local:          {local}");
        }
    }
    for (difference, _) in listed.iter().zip(occurred).filter(|(_, occurred)| !occurred) {
        let _ = writeln!(report, "case {}: no difference at {} any more", case.name, difference.at);
    }
    report
}

/// What a server answers to all steps, in the form that is compared.
async fn outcomes(server: &Server, case: &Case) -> Vec<Value> {
    let mut words = BTreeMap::from([("ns".to_owned(), case.name.clone())]);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": case.name}});
    let made = Call {
        method: "POST",
        path: "/api/v1/namespaces".into(),
        headers: vec![("Content-Type".into(), "application/json".into())],
        body: namespace.to_string(),
    };
    let made = send(server, &made, &words).await;
    assert_eq!(made.status, 201, "{}: {}: {}", server.name, case.name, made.body);
    let mut normal = Normal::default();
    let mut outcomes = Vec::new();
    for step in &case.steps {
        let (mut outcome, body) = outcome(server, step, &words).await;
        for (name, pointer) in &step.keep {
            let value = body.pointer(pointer).unwrap_or(&Value::Null);
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            words.insert((*name).to_owned(), text);
        }
        if let Some(project) = step.project {
            project(&mut outcome);
        }
        outcomes.push(normal.apply(outcome));
    }
    outcomes
}

/// The outcome of a step, and the body of its answer as it came.
async fn outcome(server: &Server, step: &Step, words: &BTreeMap<String, String>) -> (Value, Value) {
    match &step.action {
        Action::Call(call) => {
            let answer = send(server, call, words).await;
            (shown(&answer), answer.body)
        }
        Action::Eventually(call, wished) => {
            let deadline = Instant::now() + AWAIT;
            loop {
                let answer = send(server, call, words).await;
                if wished(&answer) || Instant::now() > deadline {
                    return (shown(&answer), answer.body);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Action::Watch(call, last) => {
            let (events, ended) = watch(server, call, last, words).await;
            (json!({"events": events, "ended": ended}), events.into())
        }
        Action::Kubectl(args, stdin) => {
            let server = server.clone();
            let args: Vec<String> = args.iter().map(|arg| fill(arg, words)).collect();
            let (stdin, namespace) = (fill(stdin, words), words["ns"].clone());
            let outcome =
                tokio::task::spawn_blocking(move || kubectl(&server, &namespace, &args, &stdin)).await.unwrap();
            (outcome.clone(), outcome)
        }
    }
}

fn shown(answer: &Answer) -> Value {
    let mut shown = json!({"status": answer.status, "type": answer.content_type, "body": answer.body});
    if !answer.warnings.is_empty() {
        shown["warnings"] = json!(answer.warnings);
    }
    shown
}

fn fill(text: &str, words: &BTreeMap<String, String>) -> String {
    words.iter().fold(text.to_owned(), |text, (word, value)| text.replace(&format!("$({word})"), value))
}

async fn respond(server: &Server, call: &Call, words: &BTreeMap<String, String>) -> http::Response<Body> {
    let mut request = http::Request::builder().method(call.method).uri(fill(&call.path, words));
    for (name, value) in &call.headers {
        request = request.header(name, fill(value, words));
    }
    if !call.headers.iter().any(|(name, _)| name == "User-Agent") {
        request = request.header("User-Agent", "conformance/1.0");
    }
    // A server that refuses a body without reading it closes the connection, which the next request
    // would find out too late.
    request = request.header("Connection", "close");
    let request = request.body(Body::from(fill(&call.body, words).into_bytes())).unwrap();
    let sent = server.client.send(request).await;
    sent.unwrap_or_else(|error| panic!("{}: {} {}: {error:?}", server.name, call.method, call.path))
}

async fn send(server: &Server, call: &Call, words: &BTreeMap<String, String>) -> Answer {
    let response = respond(server, call, words).await;
    let text = |name: &str| -> Vec<String> {
        response.headers().get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    };
    let (content_type, warnings) = (text("content-type").concat(), text("warning"));
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let body =
        serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Answer { status, content_type, warnings, body }
}

/// The events of a watch, and how it ended.
async fn watch(server: &Server, call: &Call, last: &str, words: &BTreeMap<String, String>) -> (Vec<Value>, String) {
    let response = respond(server, call, words).await;
    if response.status() != 200 {
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        return (vec![body], format!("status {status}"));
    }
    let mut pieces = response.into_body().into_data_stream();
    let (mut events, mut rest) = (Vec::new(), Vec::new());
    let deadline = tokio::time::Instant::now() + LISTEN;
    loop {
        let Ok(piece) = tokio::time::timeout_at(deadline, pieces.next()).await else {
            return (events, "silent".into());
        };
        let Some(piece) = piece else {
            // What is no stream of events may end without a line end.
            events.extend(serde_json::from_slice::<Value>(&rest).ok());
            return (events, "ended".into());
        };
        rest.extend_from_slice(&piece.unwrap());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).unwrap();
            let about = |event: &Value| {
                event.pointer("/object/metadata/name") == Some(&json!(last))
                    || event["type"] == last
                    || event.pointer("/object/rows/0/object/metadata/name") == Some(&json!(last))
            };
            let done = about(&event);
            events.push(event);
            if done {
                return (events, "seen".into());
            }
        }
    }
}

fn kubectl(server: &Server, namespace: &str, args: &[String], stdin: &str) -> Value {
    let mut child = Command::new(cluster::kubectl())
        .args(args)
        .args(["--namespace", namespace])
        .env("HOME", &server.home)
        .env("KUBECONFIG", &server.kubeconfig)
        .env("KUBECTL_EXTERNAL_DIFF", "diff -u -N")
        .env("KUBE_EDITOR", "sed -i -e s/example.invalid/edited.invalid/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl: hack/cluster-tools.sh builds it");
    // kubectl may end without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let lines = |bytes: &[u8]| -> Vec<String> { String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect() };
    json!({"code": output.status.code(), "stdout": lines(&output.stdout), "stderr": said(lines(&output.stderr))})
}

#[test]
fn every_listed_difference_names_a_case() {
    let names: Vec<String> = crate::cases::all().into_iter().map(|case| case.name).collect();
    for difference in DIFFERENCES {
        assert!(names.iter().any(|name| name == difference.case), "no case {}", difference.case);
        assert!(difference.reason.len() > 20, "{} {}: say why", difference.case, difference.at);
    }
    let mut once = names.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), names.len(), "each case has a name of its own");
}

/// Without what the client logs for itself, such as a watch that was short because the machine was
/// slow: `I1121 09:53:31.011008 …`.
fn said(lines: Vec<String>) -> Vec<String> {
    let logged = |line: &String| {
        let (level, rest) = line.split_at_checked(1).unwrap_or_default();
        "IWE".contains(level) && rest.get(..4).is_some_and(|date| date.bytes().all(|b| b.is_ascii_digit()))
    };
    lines.into_iter().filter(|line| line.is_empty() || !logged(line)).collect()
}
