//! Mistakes of MCP clients on the wire: each gets the HTTP status and the JSON-RPC error that it
//! deserves, nobody else notices, and the gateway's memory stays what it was.
//!
//! What servers do wrong is in `src/gateway/tests/bad_upstreams.rs`; sessions of other users are in
//! `access`, headers that disagree with the body in `eras`.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use perch::api::mcp_server::StdioSessions;
use serde_json::{Value, json};

use crate::{
    bridge::Bridge,
    support::{PATIENCE, Perch, Session, fixture, post, send},
};

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

fn http() -> Value {
    json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp"}})
}

/// A perch with a server of each kind, and their URLs.
fn both(dir: &tempfile::TempDir) -> (Perch, [String; 2]) {
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("stdio", &json!({"command": [fixture(), "stdio"]}));
    up.apply("http", &http());
    let urls = ["stdio", "http"].map(|name| {
        up.until(name, "Ready");
        format!("{}/default/{name}/mcp", up.gateway)
    });
    (up, urls)
}

fn code(body: &str) -> i64 {
    let message: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{body}"));
    assert_eq!(message["jsonrpc"], "2.0", "{body}");
    message["error"]["code"].as_i64().unwrap_or_else(|| panic!("{body}"))
}

/// Sends bytes and reads until the server closes the connection.
fn raw(url: &str, write: impl FnOnce(&mut TcpStream, &str, &str)) -> String {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write(&mut stream, address, path);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // A connection that is reset after the answer has been read is over as well.
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn head(path: &str, address: &str, more: &str) -> String {
    format!(
        "POST /{path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nConnection: close\r\n{more}\r\n"
    )
}

/// Sends a body of any bytes, and gives status and body of the answer.
fn bytes(url: &str, session: &str, body: &[u8]) -> (u16, String) {
    let answer = raw(url, |stream, address, path| {
        let more = format!("Mcp-Session-Id: {session}\r\nContent-Length: {}\r\n", body.len());
        stream.write_all(head(path, address, &more).as_bytes()).unwrap();
        stream.write_all(body).unwrap();
    });
    (answer[9..12].parse().unwrap(), answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[test]
fn what_is_no_message_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, urls) = both(&dir);
    for url in &urls {
        let session = Session::open(url);
        let deep = |depth: usize| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}{}}}"#,
                "[".repeat(depth),
                "]".repeat(depth)
            )
        };
        let whole = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#;
        let cases: Vec<(&str, Vec<u8>, i64)> = vec![
            ("nothing", Vec::new(), -32700),
            ("no JSON", b"hello".to_vec(), -32700),
            ("two messages", format!("{LIST}\n{LIST}").into(), -32700),
            (
                "no UTF-8 in an argument",
                [&whole.as_bytes()[..whole.len() - 4], b"{\"text\":\"\xff\"}}}"].concat(),
                -32700,
            ),
            ("no UTF-8 in the method", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}".to_vec(), -32700),
            (
                "no UTF-8 where nobody looks",
                b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\",\"x\":\"\xff\"}".to_vec(),
                -32700,
            ),
            ("no object", b"7".to_vec(), -32600),
            ("another version", LIST.replace("2.0", "1.0").into(), -32600),
            ("a member twice", LIST.replace("\"id\":1", "\"id\":1,\"id\":2").into(), -32600),
            (
                "a message in a list of members",
                br#"["2.0",1,"tools/list",{"jsonrpc":"2.0","id":2,"method":"tools/list"}]"#.to_vec(),
                -32600,
            ),
            ("deep", deep(100).into(), 0),
            ("too deep", deep(128).into(), -32600),
            ("very deep", deep(1_000_000).into(), -32600),
            ("deep and truncated", "[".repeat(1_000_000).into(), -32600),
        ];
        for (what, body, expected) in cases {
            let (status, answer) = bytes(url, &session.id, &body);
            if what == "a message in a list of members" && url.contains("/http/") {
                // A batch, for a server that reads batches itself and from which nothing is hidden.
                assert_eq!(status, 202, "{what} at {url}: {answer}");
            } else if expected == 0 {
                assert_eq!(status, 200, "{what} at {url}: {answer}");
            } else {
                assert_eq!((status, code(&answer)), (400, expected), "{what} at {url}: {answer}");
            }
        }
        // Cut anywhere, it is never taken for something else.
        for end in 0..whole.len() {
            let (status, answer) = bytes(url, &session.id, &whole.as_bytes()[..end]);
            assert_eq!((status, code(&answer)), (400, -32700), "{} at {url}: {answer}", &whole[..end]);
        }
        assert_eq!(session.text("echo", &json!({"text": "still here"})), "still here");
    }
}

#[test]
fn batches_are_for_the_one_version_that_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, urls) = both(&dir);
    let batch = format!("[{LIST},{}]", LIST.replace("\"id\":1", "\"id\":2"));
    for url in &urls {
        let session = Session::open(url);
        for version in ["2024-11-05", "2025-06-18", "2025-11-25", "2026-07-28"] {
            let headers = [("Mcp-Session-Id", session.id.as_str()), ("MCP-Protocol-Version", version)];
            let (status, _, body) = send("POST", url, &headers, &batch);
            assert_eq!((status, code(&body)), (400, -32600), "{version} at {url}");
        }
        let (status, _, body) = post(url, None, &batch);
        assert_eq!((status, code(&body)), (400, -32600), "without a session at {url}");
        // Only a server that reads batches itself gets one; the fixture has no answer to it.
        let headers = [("Mcp-Session-Id", session.id.as_str()), ("MCP-Protocol-Version", "2025-03-26")];
        let expected = if url.contains("/stdio/") { 400 } else { 202 };
        assert_eq!(send("POST", url, &headers, &batch).0, expected, "{url}");
    }
}

#[test]
fn an_id_comes_back_as_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, urls) = both(&dir);
    for url in &urls {
        let session = Session::open(url);
        let list = |id: &str| post(url, Some(&session.id), &LIST.replace("\"id\":1", &format!("\"id\":{id}")));
        // The fixture behind the HTTP server reads ids, and what it says of odd numbers is its own.
        let odd: &[&str] =
            if url.contains("/stdio/") { &["1.50", "1e400", "123456789012345678901234567890"] } else { &[] };
        for id in [&["0", "1", "-7", "\"\"", "\"text\"", "\"é\\n\"", "18446744073709551615"][..], odd].concat() {
            let (status, _, body) = list(id);
            assert_eq!(status, 200, "{id} at {url}: {body}");
            assert!(body.contains(&format!("\"id\":{id}")), "{id} at {url}: {body}");
        }
        for id in ["null", "true", "{}", "[1]", "[]", "{\"id\":1}"] {
            let (status, _, body) = list(id);
            assert_eq!((status, code(&body)), (400, -32600), "{id} at {url}");
        }
    }
}

#[test]
fn an_id_that_is_in_hand_is_not_given_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (up, urls) = both(&dir);
    let own = json!({"command": [fixture(), "stdio"], "transport": {"sessions": "PerSession"}});
    up.apply("own", &own);
    up.until("own", "Ready");
    let call = |tool: &str, arguments: Value| {
        json!({"jsonrpc": "2.0", "id": "same", "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
            .to_string()
    };
    let own = format!("{}/default/own/mcp", up.gateway);
    for url in urls.iter().chain([&own]) {
        let session = Session::open(url);
        let slow = call("slow", json!({"ms": 3000}));
        let (slow, quick) = std::thread::scope(|scope| {
            let slow = scope.spawn(|| post(url, Some(&session.id), &slow));
            let quick = loop {
                // The first may not have arrived.
                let quick = post(url, Some(&session.id), &call("echo", json!({"text": "quick"})));
                if url != &own || quick.0 != 200 || slow.is_finished() {
                    break quick;
                }
            };
            (slow.join().unwrap(), quick)
        });
        if url == &own {
            // Whichever came second: whose the answer is could not be told.
            let refused: Vec<_> = [&slow, &quick].into_iter().filter(|answer| answer.0 != 200).collect();
            assert_eq!(refused.len(), 1, "{slow:?} {quick:?}");
            assert_eq!((refused[0].0, code(&refused[0].2)), (400, -32600), "{slow:?} {quick:?}");
        } else {
            assert!(slow.0 == 200 && slow.2.contains("done"), "{url}: {slow:?}");
            assert!(quick.0 == 200 && quick.2.contains("quick"), "{url}: {quick:?}");
        }
    }
}

#[test]
fn a_body_of_any_size_costs_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (up, urls) = both(&dir);
    let session = Session::open(&urls[0]);
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", up.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = peak();
    let chunk = vec![b' '; 1 << 20];
    for announced in [true, false] {
        let answers: Vec<String> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        raw(&urls[0], |stream, address, path| {
                            let length = if announced {
                                format!("Content-Length: {}\r\n", 100 << 20)
                            } else {
                                "Transfer-Encoding: chunked\r\n".into()
                            };
                            let more = format!("Mcp-Session-Id: {}\r\n{length}", session.id);
                            stream.write_all(head(path, address, &more).as_bytes()).unwrap();
                            for _ in 0..100 {
                                let sent = if announced {
                                    stream.write_all(&chunk)
                                } else {
                                    stream.write_all(&[b"100000\r\n", &chunk[..], b"\r\n"].concat())
                                };
                                // The gateway may have had enough.
                                if sent.is_err() {
                                    break;
                                }
                            }
                        })
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        // Who sends and does not listen loses the answer with the connection.
        for answer in answers.iter().filter(|answer| !answer.is_empty()) {
            assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
            assert_eq!(code(answer.split_once("\r\n\r\n").unwrap().1), -32600, "{answer}");
        }
    }
    let listening = raw(&urls[0], |stream, address, path| {
        stream.write_all(head(path, address, &format!("Content-Length: {}\r\n", 100 << 20)).as_bytes()).unwrap();
    });
    assert!(listening.starts_with("HTTP/1.1 413 "), "{listening}");
    let grown = peak() - before;
    assert!(grown < 40 << 10, "800 MiB were sent, and memory grew by {grown} KiB: 4 MiB of a body are kept at most");
    assert_eq!(session.text("echo", &json!({"text": "still here"})), "still here");
}

#[test]
fn who_sends_too_slowly_is_not_waited_for() {
    let bridge = Bridge::start_with(&[&fixture(), "stdio"], StdioSessions::Shared, |config| {
        config.receive_timeout = Duration::from_millis(500);
    });
    let url = bridge.url();
    let session = Session::open(&url);
    let started = Instant::now();
    // A head that never ends.
    let answer = raw(&url, |stream, address, path| {
        stream.write_all(format!("POST /{path} HTTP/1.1\r\nHost: {address}\r\nX-Slow: ").as_bytes()).unwrap();
        while started.elapsed() < Duration::from_millis(400) {
            stream.write_all(b"x").unwrap();
            std::thread::park_timeout(Duration::from_millis(20));
        }
    });
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    // Not even enough to tell what it will be.
    let answer = raw(&url, |stream, _, _| stream.write_all(b"P").unwrap());
    assert!(answer.is_empty(), "{answer}");
    // A body that never ends.
    let answer = raw(&url, |stream, address, path| {
        let more = format!("Mcp-Session-Id: {}\r\nContent-Length: 1000\r\n", session.id);
        stream.write_all(head(path, address, &more).as_bytes()).unwrap();
        stream.write_all(b"{").unwrap();
    });
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(code(answer.split_once("\r\n\r\n").unwrap().1), -32600, "{answer}");
    assert!(started.elapsed() < Duration::from_secs(60));
    // A body that stops.
    let answer = raw(&url, |stream, address, path| {
        stream.write_all(head(path, address, "Content-Length: 1000\r\n").as_bytes()).unwrap();
        stream.write_all(b"{").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    });
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(session.text("echo", &json!({"text": "still here"})), "still here");
    bridge.end().unwrap();
}
