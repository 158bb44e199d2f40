//! Credentials in containers: renewed under the running server, and seen by nobody else.

use serde_json::json;

use crate::{
    containers, docker, down, inspect, label, setting,
    support::{Perch, Session, wait},
    token_endpoint::{CLIENT, TokenEndpoint},
};

/// The client's secret.
const SECRET: &str = "hunter2-client-secret";
/// Begins each token.
const TOKEN: &str = "hunter2-token";

fn read(session: &Session, variable: &str) -> String {
    let path = session.text("env", &json!({"name": variable}));
    session.text("read", &json!({"path": path}))
}

#[test]
fn a_rotated_credential_is_seen_by_the_running_server() {
    let dir = tempfile::tempdir().unwrap();
    let (data, log) = (dir.path().join("data"), dir.path().join("perch.log"));
    let up = Perch::up_logging(
        &data,
        &["--runtime", "docker", "--log", "debug,bollard=trace"],
        std::fs::File::create(&log).unwrap(),
    );
    up.ok(&["create", "secret", "generic", "client", &format!("--from-literal=secret={SECRET}")]);
    up.ok(&["create", "secret", "generic", "plain", "--from-literal=k=hunter2-plain-1"]);
    let mut endpoint = TokenEndpoint::start(TOKEN, SECRET, 8);
    up.apply(
        "a",
        &json!({
            "image": setting("PERCH_TEST_FIXTURE_IMAGE"), "args": ["http"], "transport": {"type": "StreamableHttp"},
            "credentials": [
                {"name": "api", "oauth2": {
                    "tokenURL": endpoint.url, "clientID": CLIENT,
                    "clientSecretFrom": {"secretKeyRef": {"name": "client", "key": "secret"}},
                }},
                {"name": "plain", "variable": "PLAIN_PATH", "secret": {"name": "plain", "key": "k"}},
            ],
        }),
    );
    up.until("a", "Ready");
    let filter = label(&up);
    let before = containers(&filter);
    let started = inspect(&before[0])["State"]["StartedAt"].clone();
    let session = up.session("a");
    assert_eq!(session.text("env", &json!({"name": "API_FILE"})), "/run/perch/credentials/api");
    let first = read(&session, "API_FILE");
    assert!(first.starts_with(TOKEN), "{first}");
    assert_eq!(read(&session, "PLAIN_PATH"), "hunter2-plain-1");
    let revision = up.status("a")["currentRevision"].clone();

    wait("the next token", || Some(read(&session, "API_FILE")).filter(|token| *token != first));
    let patch = json!({"stringData": {"k": "hunter2-plain-2"}}).to_string();
    up.ok(&["patch", "secret", "plain", "--type=merge", "-p", &patch]);
    wait("the new value", || (read(&session, "PLAIN_PATH") == "hunter2-plain-2").then_some(()));
    let refused = session.text("write", &json!({"path": "/run/perch/credentials/x"}));
    assert!(refused.contains("ead-only") || refused.contains("denied"), "{refused}");

    // The token's server goes away for good: the container lives on with what it has.
    endpoint.stop();
    wait("the end of the token", || {
        let conditions = up.status("a")["conditions"].take();
        let found = conditions.as_array()?.iter().find(|c| c["type"] == "CredentialsReady")?.clone();
        (found["reason"] == "Expired").then_some(())
    });
    assert!(read(&session, "API_FILE").starts_with(TOKEN));
    assert_eq!(up.status("a")["phase"], "Ready");
    assert_eq!(containers(&filter), before, "the same container");
    let found = inspect(&before[0]);
    assert_eq!(found["State"]["StartedAt"], started, "and never started again");
    assert_eq!(up.status("a")["currentRevision"], revision);
    let source =
        found["Mounts"].as_array().unwrap().iter().find(|m| m["Destination"] == "/run/perch/credentials").unwrap();
    let source = std::path::PathBuf::from(source["Source"].as_str().unwrap());
    let file = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(source.join("api")).unwrap());
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(source.join("api")).unwrap());
    assert_eq!((file & 0o777, owner), (0o400, 10001));

    let told = ["mcpservers,events,controllerrevisions,configmaps", "namespaces"]
        .map(|kinds| up.ok(&["get", kinds, "-A", "-o", "yaml"]));
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("DEBUG"));
    let container = docker(&["inspect", &before[0]]) + &docker(&["logs", &before[0]]);
    for hidden in [told.concat(), log, container, up.output()] {
        for value in [SECRET, TOKEN, "hunter2-plain"] {
            assert!(!hidden.contains(value), "{value} is told");
        }
    }
    assert_eq!(up.stop(), Some(0));
    down(&data, &filter);
    assert!(!source.exists(), "nothing is left of the files");
}
