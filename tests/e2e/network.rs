//! Network tiers, tried from inside of containers.

use serde_json::{Value, json};

use crate::{
    containers, docker, down, label, setting,
    support::{Perch, wait},
};

/// A neighbour of this machine that takes connections: its resolver.
pub fn outside() -> String {
    let file = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let resolvers =
        file.lines().filter_map(|line| line.strip_prefix("nameserver")).map(|ip| format!("{}:53", ip.trim()));
    let mut answers = resolvers.filter(|a| !a.starts_with("127.") && std::net::TcpStream::connect(a).is_ok());
    answers.next().expect("a resolver that this machine reaches over TCP")
}

fn server(transport: &str, tier: &str) -> Value {
    let wire = if transport == "http" { "StreamableHttp" } else { "Stdio" };
    json!({
        "image": setting("PERCH_TEST_FIXTURE_IMAGE"), "args": [transport],
        "transport": {"type": wire}, "network": {"tier": tier},
    })
}

/// Waits until a server's tier is proved, and gives the message: a neighbour of the machine that did
/// not answer in time is asked again.
pub fn until_enforced(up: &Perch, name: &str) -> String {
    wait(&format!("the tier of {name}"), || enforced(up, name).filter(|(status, _)| status == "True")).1
}

/// Status and message of a server's condition NetworkEnforced.
pub fn enforced(up: &Perch, name: &str) -> Option<(String, String)> {
    let conditions = up.status(name)["conditions"].take();
    let found = conditions.as_array()?.iter().find(|c| c["type"] == "NetworkEnforced")?.clone();
    Some((found["status"].as_str()?.to_owned(), found["message"].as_str()?.to_owned()))
}

#[test]
fn only_a_public_server_gets_out_and_the_condition_is_what_was_tried() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "docker"]);
    let filter = label(&up);
    up.apply("public", &server("http", "Public"));
    up.apply("internal", &server("http", "Internal"));
    up.apply("secure", &server("stdio", "Secure"));
    let address = outside();
    for (name, gets_out, part) in [
        ("public", true, "found a way out"),
        ("internal", false, "found no way out"),
        ("secure", false, "found no way out"),
    ] {
        up.until(name, "Ready");
        let said = up.session(name).text("connect", &json!({"addr": address}));
        assert_eq!(said == "connected", gets_out, "{name}: {said}");
        let message = until_enforced(&up, name);
        assert!(message.contains(part), "{name}: {message}");
    }
    assert_eq!(up.stop(), Some(0));
    down(dir.path(), &filter);
}

#[test]
fn a_network_that_leads_out_behind_its_back_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "docker"]);
    let filter = label(&up);
    let mine = filter.trim_start_matches("label=");
    let instance = mine.split_once('=').unwrap().1;
    let network = format!("perch-{}-internal", &instance[..8]);
    // It has the name and the label of Perch's own, but it is not internal.
    docker(&["network", "create", "--label", mine, &network]);
    up.apply("a", &server("http", "Internal"));
    up.until("a", "Ready");
    let (status, message) = wait("the condition", || enforced(&up, "a").filter(|(_, m)| m.contains("got out")));
    assert_eq!(status, "False", "{message}");
    assert!(message.contains("remove the Docker network"), "{message}");

    // The remedy that it names.
    up.ok(&["patch", "mcps", "a", "--type=merge", "-p", r#"{"spec": {"suspend": true}}"#]);
    up.until("a", "Suspended");
    wait("the container to go", || containers(&filter).is_empty().then_some(()));
    docker(&["network", "rm", &network]);
    up.ok(&["patch", "mcps", "a", "--type=merge", "-p", r#"{"spec": {"suspend": false}}"#]);
    up.until("a", "Ready");
    let message = until_enforced(&up, "a");
    assert!(message.contains("found no way out"), "{message}");
    assert_eq!(up.stop(), Some(0));
    down(dir.path(), &filter);
}
