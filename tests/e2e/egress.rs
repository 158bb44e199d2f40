//! What a server reaches that names what it reaches, tried from inside of containers.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpListener,
};

use serde_json::{Value, json};

use crate::{
    containers, docker, down, label,
    network::{enforced, outside, until_enforced},
    setting,
    support::{Perch, send, wait},
};

/// A web server on the loopback address of this machine, until the process ends; gives its port.
fn web() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            // Who does not ask gets no answer.
            if stream.read(&mut request).is_ok_and(|n| n > 0) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello from outside");
            }
        }
    });
    port
}

fn server(transport: &str, egress: &Value) -> Value {
    let wire = if transport == "http" { "StreamableHttp" } else { "Stdio" };
    json!({
        "image": setting("PERCH_TEST_FIXTURE_IMAGE"), "args": [transport],
        "transport": {"type": wire}, "network": {"egress": egress},
    })
}

fn tunnel(up: &Perch, name: &str, target: &str) -> String {
    up.session(name).text("tunnel", &json!({"target": target, "send": "GET / HTTP/1.0\r\n\r\n"}))
}

#[test]
fn only_what_is_listed_is_reached_and_only_through_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let (data, log) = (dir.path().join("data"), dir.path().join("perch.log"));
    let args = ["--runtime", "docker", "--gateway-admin-addr", "127.0.0.1:0"];
    let start = || Perch::up_logging(&data, &args, File::options().create(true).append(true).open(&log).unwrap());
    let up = start();
    let filter = label(&up);
    let port = web();
    let host = json!({"host": "localhost", "ports": [port]});
    let block = json!({"cidr": "127.0.0.1/32", "ports": [port]});
    up.apply("listed", &server("http", &json!([host, block])));
    up.apply("stdio", &server("stdio", &json!([host, block])));
    // The name leads to an address of the inside, and nothing says that this is meant.
    up.apply("rebound", &server("http", &json!([host])));
    for name in ["listed", "stdio", "rebound"] {
        up.until(name, "Ready");
        let message = until_enforced(&up, name);
        assert!(message.contains("the proxy refused a name that is not on the list"), "{name}: {message}");
        let said = up.session(name).text("connect", &json!({"addr": outside()}));
        assert_ne!(said, "connected", "{name} gets out without the proxy");
    }
    let listed = format!("localhost:{port}");
    for (name, target, status, part) in [
        ("listed", listed.as_str(), "200", "hello from outside"),
        ("stdio", &listed, "200", "hello from outside"),
        ("listed", "localhost:1", "403", "not with this port"),
        ("listed", "other.example:443", "403", "is not on the list"),
        ("listed", &outside(), "403", "is not on the list"),
        ("listed", "169.254.169.254:80", "403", "is not on the list"),
        ("rebound", &listed, "403", "(the machine itself)"),
    ] {
        let said = tunnel(&up, name, target);
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains(part), "{name} {target}: {said}");
    }

    // Somebody else on the machine finds the proxy, and it answers nobody whom it does not know.
    let proxy = up.session("listed").text("env", &json!({"name": "https_proxy"}));
    let mut internal = server("http", &json!([]));
    internal["env"] = json!([{"name": "HTTPS_PROXY", "value": proxy}]);
    up.apply("internal", &internal);
    up.until("internal", "Ready");
    let said = tunnel(&up, "internal", &listed);
    assert!(!said.contains("HTTP/1.1") && !said.contains("hello"), "{said}");

    // What was refused is told.
    wait("the condition", || {
        let (_, message) = enforced(&up, "rebound")?;
        message.contains(&format!("refused last: {listed} (SpecialAddress)")).then_some(())
    });
    let output = up.output();
    let metrics = output.lines().find_map(|l| l.strip_prefix("Metrics  ")).unwrap();
    let text = send("GET", metrics, &[], "").2;
    let count = "perch_egress_refused_total{namespace=\"default\",server=\"listed\",reason=\"NotListed\"} 3\n";
    assert!(text.contains(count), "{text}");
    let told = std::fs::read_to_string(&log).unwrap();
    let line =
        told.lines().find(|l| l.contains("the egress proxy refused a connection") && l.contains("other.example"));
    assert!(line.is_some_and(|l| l.contains("default/listed") && l.contains("NotListed")), "{told}");

    // The next life of Perch is the proxy of the same containers.
    let before = containers(&filter);
    up.kill();
    let up = start();
    up.until("listed", "Ready");
    let said = tunnel(&up, "listed", &listed);
    assert!(said.contains("hello from outside"), "{said}");
    let now = containers(&filter);
    assert!(before.iter().all(|id| now.contains(id)), "{before:?} {now:?}");

    // Another list is another revision.
    let before_list = up.status("listed")["currentRevision"].clone();
    let elsewhere = json!({"spec": {"network": {"egress": [{"host": "elsewhere.example"}]}}}).to_string();
    up.ok(&["patch", "mcps", "listed", "--type=merge", "-p", &elsewhere]);
    wait("the new list", || {
        let (serves, _) = up.status_when("listed", "Ready");
        (serves["currentRevision"] != before_list).then_some(())
    });
    let said = tunnel(&up, "listed", &listed);
    assert!(said.contains("is not on the list"), "{said}");
    assert_eq!(up.stop(), Some(0));
    down(&data, &filter);
}

#[test]
fn a_way_out_beside_the_proxy_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "docker"]);
    let filter = label(&up);
    let mine = filter.trim_start_matches("label=");
    let instance = mine.split_once('=').unwrap().1;
    let network = format!("perch-{}-egress", &instance[..8]);
    let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    // It has the name and the labels of Perch's own, but it is not internal.
    docker(&["network", "create", "--label", mine, "--label", &format!("perch.dev/egress-port={port}"), &network]);
    up.apply("a", &server("http", &json!([{"host": "api.example.com"}])));
    up.until("a", "Ready");
    let (status, message) = wait("the condition", || enforced(&up, "a").filter(|(_, m)| m.contains("got out")));
    assert_eq!(status, "False", "{message}");
    assert!(message.contains("which spec.network.egress forbids"), "{message}");
    assert_eq!(up.stop(), Some(0));
    down(dir.path(), &filter);
}
