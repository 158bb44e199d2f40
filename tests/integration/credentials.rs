//! Credentials of servers that run as processes: given, renewed under the running server, and seen by
//! nobody else.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    credentials_vault::Vault,
    support::{Perch, Session, fixture, wait},
    token_endpoint::{CLIENT, TokenEndpoint},
};

/// The client's secret.
const SECRET: &str = "hunter2-client-secret";

fn up(dir: &tempfile::TempDir) -> Perch {
    Perch::up(dir.path(), &["--runtime", "process"])
}

fn client_secret(up: &Perch, secret: &str) {
    let secret = format!("--from-literal=secret={secret}");
    let made = up.ok(&["create", "secret", "generic", "client", &secret, "--dry-run=client", "-o", "yaml"]);
    up.ok_with(&["apply", "-f", "-"], &made);
}

fn oauth2(name: &str, url: &str) -> Value {
    json!({"name": name, "oauth2": {
        "tokenURL": url, "clientID": CLIENT, "clientSecretFrom": {"secretKeyRef": {"name": "client", "key": "secret"}},
    }})
}

fn server(credentials: &[Value]) -> Value {
    json!({"command": [fixture(), "stdio"], "credentials": credentials})
}

/// The condition of a server's credentials: its reason and message.
fn credentials(up: &Perch, name: &str) -> Option<(String, String)> {
    let status = up.status(name);
    let condition = status["conditions"].as_array()?.iter().find(|c| c["type"] == "CredentialsReady")?.clone();
    let good = condition["reason"] == "Ready" || condition["reason"] == "Referenced";
    assert_eq!(condition["status"] == "True", good, "{condition}");
    Some((condition["reason"].as_str()?.to_owned(), condition["message"].as_str()?.to_owned()))
}

fn until_credentials(up: &Perch, name: &str, reason: &str) -> String {
    wait(&format!("the credentials of {name} to be {reason}"), || {
        credentials(up, name).filter(|(r, _)| r == reason).map(|(_, message)| message)
    })
}

/// The path in a variable of a server, and what the server reads there.
fn read(session: &Session, variable: &str) -> (PathBuf, String) {
    let path = session.text("env", &json!({"name": variable}));
    let value = session.text("read", &json!({"path": path}));
    (path.into(), value)
}

fn pid(session: &Session) -> String {
    let status = session.text("whoami", &json!({}));
    status.lines().find_map(|l| l.strip_prefix("Pid:")).unwrap().trim().to_owned()
}

/// Every file below a folder but those below `except`, as bytes.
fn files(dir: &Path, except: &[&Path]) -> Vec<(PathBuf, Vec<u8>)> {
    let all = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok).filter(|e| e.file_type().is_file());
    let all = all.map(walkdir::DirEntry::into_path).filter(|p| !except.iter().any(|e| p.starts_with(e)));
    all.map(|path| (path.clone(), std::fs::read(path).unwrap_or_default())).collect()
}

fn holds(content: &[u8], value: &str) -> bool {
    memchr::memmem::find(content, value.as_bytes()).is_some()
}

#[test]
fn a_running_server_sees_each_new_value_and_nobody_else_sees_any() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("perch.log");
    let data = dir.path().join("data");
    let up = Perch::up_logging(
        &data,
        &["--runtime", "process", "--log", "debug,hyper=trace,reqwest=trace,kube=trace"],
        std::fs::File::create(&log).unwrap(),
    );
    client_secret(&up, SECRET);
    let kubectl = "hunter2-from-a-secret";
    up.ok(&["create", "secret", "generic", "plain", &format!("--from-literal=k={kubectl}-1")]);
    // A token is renewed after three quarters of its four seconds.
    let endpoint = TokenEndpoint::start("hunter2-token", SECRET, 4);
    let spec =
        server(&[oauth2("api", &endpoint.url), json!({"name": "plain", "secret": {"name": "plain", "key": "k"}})]);
    up.apply("a", &spec);
    up.until("a", "Ready");
    assert_eq!(until_credentials(&up, "a", "Ready"), "2 credentials are in place");
    let session = up.session("a");
    let (path, first) = read(&session, "API_FILE");
    assert!(first.starts_with("hunter2-token-"), "{first}");
    assert_eq!(read(&session, "PLAIN_FILE").1, format!("{kubectl}-1"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o400, 0o700));

    // Whatever is renewed, the server is the same process, revision and object as before.
    let before = up.ok(&["get", "mcps", "a", "-o", "jsonpath={.metadata.resourceVersion} {.status.currentRevision}"]);
    let process = pid(&session);
    wait("the next token", || Some(read(&session, "API_FILE").1).filter(|token| *token != first));
    let patch = json!({"stringData": {"k": format!("{kubectl}-2")}}).to_string();
    up.ok(&["patch", "secret", "plain", "--type=merge", "-p", &patch]);
    wait("the new value", || Some(read(&session, "PLAIN_FILE").1).filter(|v| *v == format!("{kubectl}-2")));
    assert_eq!(pid(&session), process);
    let after = up.ok(&["get", "mcps", "a", "-o", "jsonpath={.metadata.resourceVersion} {.status.currentRevision}"]);
    assert_eq!(after, before, "nothing was written about a renewal");

    // The environment holds paths, not values.
    let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap();
    let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap();
    assert!(holds(&environment, "API_FILE=/"));
    let kinds = "mcpservers,canaryreleases,events,controllerrevisions,configmaps,leases,namespaces";
    let told = up.ok(&["get", kinds, "-A", "-o", "yaml"]) + &up.ok(&["describe", "mcps", "a"]) + &up.output();
    let labels = up.ok(&["get", "secrets", "-A", "-o", "jsonpath={.items[*].metadata}"]);
    let logs = std::fs::read(&log).unwrap();
    assert!(holds(&logs, "DEBUG") && logs.len() > 10_000, "the log is that of debugging");
    let mut hidden: Vec<(PathBuf, Vec<u8>)> = vec![
        ("/proc/environ".into(), environment),
        ("/proc/cmdline".into(), arguments),
        ("kubectl".into(), told.into_bytes()),
        ("labels of Secrets".into(), labels.into_bytes()),
        (log, logs),
    ];
    // Secrets are in the store, as they are in etcd; it is closed to others.
    let store = data.join("store.redb");
    assert_eq!(mode(&store), 0o600);
    let kept = data.join("processes/credentials");
    assert!(path.starts_with(&kept), "{}", path.display());
    let others = files(&data, &[&store, &kept]);
    assert!(!others.is_empty());
    hidden.extend(others);
    for (place, content) in hidden {
        for value in [SECRET, "hunter2-token", kubectl] {
            assert!(!holds(&content, value), "{value} is in {}", place.display());
        }
    }
    let revision: Value = serde_json::from_str(&up.ok(&["get", "mcps", "a", "-o", "json"])).unwrap();
    assert_eq!(revision["status"]["restarts"], 0);

    up.ok(&["delete", "mcps", "a"]);
    assert!(!path.exists() && !path.parent().unwrap().exists(), "{}", path.display());
    wait("the Secret to go", || {
        (!up.ok(&["get", "secrets", "-o", "name"]).contains("mcp-a-credentials")).then_some(())
    });
}

#[test]
fn an_old_token_is_used_while_its_server_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    client_secret(&up, SECRET);
    let mut endpoint = TokenEndpoint::start("token", SECRET, 8);
    up.apply("a", &server(&[oauth2("api", &endpoint.url)]));
    up.until("a", "Ready");
    let session = up.session("a");
    let process = pid(&session);
    endpoint.stop();
    let said = until_credentials(&up, "a", "Unreachable");
    assert!(said.contains("\"api\": ") && said.contains(&endpoint.url) && said.contains("good until"), "{said}");
    let old = read(&session, "API_FILE").1;
    let said = until_credentials(&up, "a", "Expired");
    assert!(said.contains("cannot be renewed") && said.contains("the server runs on with the old value"), "{said}");
    assert_eq!(read(&session, "API_FILE").1, old);
    assert_eq!(up.status("a")["phase"], "Ready", "the server runs on");
    let events = up.ok(&["get", "events", "-o", "jsonpath={.items[*].reason}"]);
    for reason in ["CredentialsUnreachable", "CredentialsExpired"] {
        assert!(events.contains(reason), "{events}");
    }
    endpoint.resume();
    until_credentials(&up, "a", "Ready");
    assert_ne!(read(&session, "API_FILE").1, old);
    assert_eq!(pid(&session), process);
    // A client that is not known any more; then the Secret is put right.
    endpoint.change_secret("another");
    let said = until_credentials(&up, "a", "Refused");
    assert!(said.contains("invalid_client): check clientID and the Secret"), "{said}");
    client_secret(&up, "another");
    until_credentials(&up, "a", "Ready");
    assert_eq!(pid(&session), process);
}

#[test]
fn a_server_waits_for_its_first_token_and_another_life_goes_on_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = up(&dir);
    let mut endpoint = TokenEndpoint::start("token", SECRET, 3600);
    endpoint.stop();
    first.apply("a", &server(&[oauth2("api", &endpoint.url)]));
    let said = until_credentials(&first, "a", "ReferenceNotFound");
    assert!(said.contains("Secret \"client\" does not exist"), "{said}");
    assert!(first.until("a", "CredentialsNotReady").contains("waits for its credential \"api\""));
    client_secret(&first, SECRET);
    until_credentials(&first, "a", "Unreachable");
    assert_eq!(first.status("a")["replicas"], 0, "nothing starts without");
    endpoint.resume();
    first.until("a", "Ready");
    assert_eq!(read(&first.session("a"), "API_FILE").1, "token-1");
    assert_eq!(first.stop(), Some(0));

    endpoint.stop();
    let second = up(&dir);
    second.until("a", "Ready");
    assert_eq!(until_credentials(&second, "a", "Ready"), "the credential is in place");
    assert_eq!(read(&second.session("a"), "API_FILE").1, "token-1");
    // Another scope is another token.
    let mut other = oauth2("api", &endpoint.url);
    other["oauth2"]["scopes"] = json!(["more"]);
    second.apply("a", &server(&[other]));
    until_credentials(&second, "a", "Unreachable");
    endpoint.resume();
    second.until("a", "Ready");
    wait("the token of the new revision", || {
        let session = second.session("a");
        (read(&session, "API_FILE").1 == "token-2").then_some(())
    });
    // What is taken out of the spec is taken out of the Secret.
    second.apply("a", &server(&[]));
    second.until("a", "Ready");
    wait("the token to be forgotten", || {
        let data = second.ok(&["get", "secret", "mcp-a-credentials", "-o", "jsonpath={.data}"]);
        (data.is_empty() || data == "{}").then_some(())
    });
    assert_eq!(credentials(&second, "a"), None);
    assert_eq!(endpoint.issued(), 2);
}

#[test]
fn a_value_of_vault_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let vault = Vault::start("vault-1");
    vault.put("team/app", &json!({"password": "one", "other": "x"}));
    up.ok(&["create", "secret", "generic", "vault", "--from-literal=token=vault-1"]);
    let credential = json!({"name": "db", "vault": {
        "address": vault.url, "path": "team/app", "key": "password", "refreshInterval": "500ms",
        "auth": {"tokenFrom": {"secretKeyRef": {"name": "vault", "key": "token"}}},
    }});
    up.apply("a", &server(&[credential]));
    up.until("a", "Ready");
    let session = up.session("a");
    let process = pid(&session);
    assert_eq!(read(&session, "DB_FILE").1, "one");
    let stored = || up.ok(&["get", "secret", "mcp-a-credentials", "-o", "jsonpath={.metadata.resourceVersion}"]);
    let (before, reads) = (stored(), vault.reads());
    wait("more looks", || (vault.reads() >= reads + 3).then_some(()));
    assert_eq!(stored(), before, "the same value is not written again");
    vault.put("team/app", &json!({"password": "two"}));
    wait("the new version", || (read(&session, "DB_FILE").1 == "two").then_some(()));
    vault.allow(&["vault-2"]);
    let said = until_credentials(&up, "a", "Refused");
    assert!(said.contains("its token has ended") && said.contains("the server has the value from before"), "{said}");
    let patch = json!({"stringData": {"token": "vault-2"}}).to_string();
    up.ok(&["patch", "secret", "vault", "--type=merge", "-p", &patch]);
    until_credentials(&up, "a", "Ready");
    vault.delete("team/app");
    assert!(until_credentials(&up, "a", "ValueNotFound").contains("was deleted"));
    assert_eq!((read(&session, "DB_FILE").1.as_str(), pid(&session)), ("two", process));
    vault.put("team/app", &json!({"password": "three"}));
    wait("the version after", || (read(&session, "DB_FILE").1 == "three").then_some(()));
    assert_eq!(up.status("a")["restarts"], 0);
}

#[test]
fn a_value_in_the_environment_is_that_of_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    client_secret(&up, SECRET);
    let endpoint = TokenEndpoint::start("token", SECRET, 4);
    let mut credential = oauth2("api", &endpoint.url);
    (credential["as"], credential["variable"]) = (json!("Env"), json!("GITHUB_TOKEN"));
    up.apply("a", &server(&[credential]));
    up.until("a", "Ready");
    let session = up.session("a");
    let first = session.text("env", &json!({"name": "GITHUB_TOKEN"}));
    assert!(first.starts_with("token-"), "{first}");
    let issued = endpoint.issued();
    wait("the next token", || (endpoint.issued() > issued).then_some(()));
    assert_eq!(session.text("env", &json!({"name": "GITHUB_TOKEN"})), first);
    wait("the new token to be stored", || {
        let key = ["get", "secret", "mcp-a-credentials", "-o", "jsonpath={.data.api}"];
        (up.ok(&key) != base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &first)).then_some(())
    });
    session.call("crash", &json!({}));
    wait("the start after", || {
        let now = session.text("env", &json!({"name": "GITHUB_TOKEN"}));
        (now.starts_with("token-") && now != first).then_some(())
    });
}

#[test]
fn what_cannot_be_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let secret = json!({"name": "s", "key": "k"});
    let account = json!({"name": "c", "serviceAccount": {"audience": "a"}});
    up.apply("account", &server(&[account]));
    let said = up.until("account", "InvalidSpec");
    assert!(said.contains("only a cluster gives: on this machine use secret, oauth2 or vault"), "{said}");
    up.apply("absent", &server(&[json!({"name": "c", "secret": secret})]));
    assert!(up.until("absent", "ReferenceNotFound").contains("Secret \"s\" does not exist"));
    assert!(until_credentials(&up, "absent", "ReferenceNotFound").contains("create it"));
    up.ok(&["create", "secret", "generic", "s", "--from-literal=k=v"]);
    up.until("absent", "Ready");
    until_credentials(&up, "absent", "Referenced");
    // A Secret of somebody else is left alone.
    up.ok(&["create", "secret", "generic", "mcp-taken-credentials", "--from-literal=c=theirs"]);
    let endpoint = TokenEndpoint::start("token", SECRET, 3600);
    up.apply("taken", &server(&[oauth2("c", &endpoint.url)]));
    assert!(until_credentials(&up, "taken", "InvalidCredential").contains("is not Perch's"));
    let theirs = up.ok(&["get", "secret", "mcp-taken-credentials", "-o", "jsonpath={.data.c}"]);
    assert_eq!(theirs, "dGhlaXJz");
    // A name that is on no certificate that this machine believes.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/token", listener.local_addr().unwrap().port());
    serve_self_signed(listener);
    client_secret(&up, SECRET);
    up.apply("tls", &server(&[oauth2("c", &url)]));
    let said = until_credentials(&up, "tls", "CertificateInvalid");
    assert!(said.contains("set certificateAuthorityFrom"), "{said}");

    let object = |spec: Value| {
        json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "bad"}, "spec": spec})
            .to_string()
    };
    let remote = json!({
        "remote": {"url": "https://x.example/mcp"}, "transport": {"type": "StreamableHttp"},
        "credentials": [{"name": "c", "secret": secret}],
    });
    for (spec, expected) in [
        (server(&[json!({"name": "c"})]), "set exactly one of secret, oauth2, vault and serviceAccount"),
        (server(&[json!({"name": "c", "secret": secret, "serviceAccount": {"audience": "a"}})]), "set exactly one of"),
        (server(&[json!({"name": "c", "as": "Env", "serviceAccount": {"audience": "a"}})]), "use as: File"),
        (server(&[json!({"name": "c", "serviceAccount": {"audience": "a", "expiration": "5m"}})]), "raise expiration"),
        (remote, "remove credentials"),
    ] {
        let said = up.fails(&["apply", "-f", "-"], &object(spec));
        assert!(said.contains(expected), "{said}");
    }
}

/// Answers with a certificate that nobody has signed.
fn serve_self_signed(listener: std::net::TcpListener) {
    use tokio_rustls::rustls;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = std::sync::Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            // The client goes away when it sees the certificate.
            let _ = std::io::Read::read(&mut stream, &mut [0; 1]);
        }
    });
}
