//! Credentials on a real API server, with just the rights that the chart gives for them.

use base64::{Engine, engine::general_purpose::STANDARD};
use perch::{
    api::mcp_server::{NetworkTier, SeccompProfile},
    names::{Revision, ServerKey},
    runtime::{
        Workload,
        kubernetes::{
            Config,
            objects::{self, Kind},
        },
        workload::{Declared, Limits, Privileges, Program, Wire},
    },
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Level, Namespace},
    operator::{Operator, defined},
    rbac::install,
    token_endpoint::{CLIENT, TokenEndpoint},
    wait,
};

/// The client's secret.
const SECRET: &str = "hunter2-client-secret";
/// Begins each token.
const TOKEN: &str = "hunter2-token";

fn server(endpoint: &TokenEndpoint) -> Value {
    json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a"},
        "spec": {"image": "example.invalid/x:1", "command": ["x"], "credentials": [
            {"name": "api", "oauth2": {
                "tokenURL": endpoint.url, "clientID": CLIENT,
                "clientSecretFrom": {"secretKeyRef": {"name": "client", "key": "secret"}},
            }},
            {"name": "mine", "secret": {"name": "client", "key": "secret"}},
        ]},
    })
}

fn client() -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "client"}, "stringData": {"secret": SECRET}})
}

fn get(namespace: &Namespace<'_>, kind: &str, name: &str) -> Option<Value> {
    let output = namespace.kubectl(&["get", kind, name, "-o", "json"]);
    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
}

fn until_credentials(namespace: &Namespace<'_>, reason: &str) -> String {
    wait(&format!("the credentials to be {reason}"), || {
        let status = get(namespace, "mcpserver", "a")?["status"].take();
        let condition = status["conditions"].as_array()?.iter().find(|c| c["type"] == "CredentialsReady")?.clone();
        (condition["reason"] == reason).then(|| condition["message"].as_str().unwrap().to_owned())
    })
}

/// The Secret where Perch keeps what it fetched, once the token is another than `old`.
fn kept(namespace: &Namespace<'_>, old: &str) -> (Value, String) {
    wait("a token", || {
        let secret = get(namespace, "secret", "mcp-a-credentials")?;
        let token = String::from_utf8(STANDARD.decode(secret["data"]["api"].as_str()?).unwrap()).unwrap();
        (token != old).then_some((secret, token))
    })
}

#[test]
fn a_token_is_kept_in_a_secret_of_the_server_and_mounted() {
    let cluster = defined();
    let home = cluster.namespace("credentials", &json!({}));
    let other = cluster.namespace("credentials-not", &json!({}));
    let here = format!("credentials.namespaces={{{}}}", home.name());
    let [account, _] = install(&cluster, home.name(), &["--set", "credentials.enabled=true", "--set", &here]);
    let endpoint = TokenEndpoint::start(TOKEN, SECRET, 8);
    home.apply(&[client(), server(&endpoint)]);
    other.apply(&[client(), server(&endpoint)]);

    let start = || Operator::account_logging(&cluster, &account, home.name(), "debug,reqwest=trace");
    let operator = start();
    let deployment = wait("the Deployment", || get(&home, "deployment", "mcp-a"));
    assert_eq!(until_credentials(&home, "Ready"), "2 credentials are in place");
    let (secret, first) = kept(&home, "");
    assert!(first.starts_with(TOKEN), "{first}");
    let uid = get(&home, "mcpserver", "a").unwrap()["metadata"]["uid"].clone();
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], uid);
    assert_eq!(secret["data"].as_object().unwrap().keys().collect::<Vec<_>>(), ["api"], "nothing that others keep");
    let pod = &deployment["spec"]["template"]["spec"];
    let volume = pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "credentials").unwrap();
    let source = |secret: &str, key: &str, path: &str| json!({"secret": {"name": secret, "items": [{"key": key, "path": path}], "optional": false}});
    assert_eq!(
        volume["projected"],
        json!({"defaultMode": 0o400, "sources": [source("mcp-a-credentials", "api", "api"), source("client", "secret", "mine")]})
    );

    // A new token is a new value in the Secret, and nothing else.
    endpoint.last(3600);
    let (before, second) = wait("a token that lasts", || {
        let (secret, token) = kept(&home, &first);
        let records = secret["metadata"]["annotations"]["perch.dev/credentials"].as_str()?;
        let records: Value = serde_json::from_str(records).unwrap();
        let time = |field: &str| records["api"][field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        (time("expires").as_second() - time("fetched").as_second() == 3600).then_some((secret, token))
    });
    let same = get(&home, "deployment", "mcp-a").unwrap();
    assert_eq!(same["metadata"]["resourceVersion"], deployment["metadata"]["resourceVersion"], "no rollout");

    // Where it may not, it says so.
    let said = until_credentials(&other, "NotPermitted");
    assert!(said.contains("credentials.enabled") && said.contains("mcp-a-credentials"), "{said}");
    assert!(get(&other, "deployment", "mcp-a").is_none(), "no pod could start");

    // Another operator goes on with what is kept.
    let mut log = operator.log();
    drop(operator);
    let issued = endpoint.issued();
    let operator = start();
    home.ok(&["scale", "mcpserver", "a", "--replicas=2"]);
    wait("the new operator", || (get(&home, "deployment", "mcp-a")?["spec"]["replicas"] == 2).then_some(()));
    assert_eq!(until_credentials(&home, "Ready"), "2 credentials are in place");
    let (after, token) = kept(&home, "");
    assert_eq!(token, second);
    assert_eq!(
        after["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"],
        "written only when it changed"
    );
    assert_eq!(endpoint.issued(), issued);

    let kinds = cluster.ok(&["api-resources", "--verbs=list", "-o", "name"]);
    let kinds: Vec<&str> = kinds.lines().filter(|kind| *kind != "secrets").collect();
    assert!(kinds.contains(&"events") && kinds.contains(&"mcpservers.perch.dev"), "{kinds:?}");
    let everything = cluster.ok(&["get", &kinds.join(","), "-A", "-o", "yaml", "--show-managed-fields"]);
    log += &operator.log();
    assert!(everything.contains("CredentialsReady") && log.contains("DEBUG"));
    for value in [SECRET, TOKEN, &STANDARD.encode(SECRET), &STANDARD.encode(&second)] {
        assert!(!everything.contains(value) && !log.contains(value), "{value} is told");
    }
}

/// What the server in a pod reads at a path: a session with the fixture, and one call.
async fn read(pod: &str, path: &str) -> String {
    // The second time there is one already.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().tls_certs_only([]).build().unwrap();
    let url = format!("http://{pod}:3000/mcp");
    let post = |session: String, body: Value| {
        let request = http.post(&url).header("Content-Type", "application/json").header("Mcp-Session-Id", session);
        request.body(body.to_string()).send()
    };
    let begun =
        post(String::new(), json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}})).await.unwrap();
    let session = begun.headers()["mcp-session-id"].to_str().unwrap().to_owned();
    let params = json!({"name": "read", "arguments": {"path": path}});
    let answer =
        post(session, json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    answer["result"]["content"][0]["text"].as_str().unwrap().to_owned()
}

#[test]
fn a_pod_reads_its_credentials_and_the_kubelet_brings_new_ones() {
    let cluster = Cluster::shared(Level::Node);
    let home = cluster.namespace("credentials-pod", &json!({"pod-security.kubernetes.io/enforce": "restricted"}));
    let image = std::env::var("PERCH_TEST_FIXTURE_IMAGE").expect("PERCH_TEST_FIXTURE_IMAGE: run `make test`");
    let perch = std::env::var("PERCH_TEST_IMAGE").expect("PERCH_TEST_IMAGE: run `make test`");
    cluster.load_image(&image);
    cluster.load_image(&perch);
    let secret = |name: &str, key: &str, value: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: value}});
    // The second is what Perch writes.
    home.apply(&[secret("mine", "k", "one"), secret("mcp-a-credentials", "api", "token-1")]);
    let declared = json!([
        {"name": "plain", "secret": {"name": "mine", "key": "k"}},
        {"name": "api", "oauth2": {
            "tokenURL": "https://idp.example/t", "clientID": "c", "clientSecretFrom": {"secretKeyRef": {"name": "s", "key": "k"}},
        }},
        {"name": "account", "serviceAccount": {"audience": "elsewhere"}},
    ]);
    let overlay = json!({"spec": {"containers": [{"name": "server", "imagePullPolicy": "Never"}]}});
    let workload = Workload {
        server: ServerKey::new(home.name(), "a"),
        uid: uuid::Uuid::new_v4().to_string(),
        revision: Revision("a-1".into()),
        program: Program::Image { image, command: Vec::new(), args: vec!["http".into()] },
        wire: Wire::Http { port: None, path: "/mcp".into() },
        replicas: 1,
        env: Vec::new(),
        credentials: Vec::new(),
        volumes: Vec::new(),
        limits: Limits { cpu_millis: 500, memory_bytes: 1 << 28, pids: 512 },
        security: Privileges {
            user: 10001,
            read_only_root: true,
            add_capabilities: Vec::new(),
            seccomp: SeccompProfile::RuntimeDefault,
        },
        network: NetworkTier::Public,
        stop_grace: std::time::Duration::from_secs(1),
        declared: Declared {
            credentials: serde_json::from_value(declared).unwrap(),
            pod_template: Some(serde_json::from_value(overlay).unwrap()),
            ..Declared::default()
        },
    };
    let config = Config {
        image: perch,
        image_pull_policy: Some("Never".into()),
        npm_base: String::new(),
        pypi_base: String::new(),
        package_pull_policy: None,
        install_env: Vec::new(),
        gateway_namespace: home.name().into(),
        gateway_labels: std::collections::BTreeMap::new(),
        namespace: None,
    };
    let wanted = objects::build(&workload, &config, None).unwrap();
    let made = wanted.into_iter().filter(|w| matches!(w.kind, Kind::ServiceAccount | Kind::Deployment));
    // Its owner is not there, and the garbage collector would notice.
    let made = made.map(|mut wanted| {
        wanted.object["metadata"]["ownerReferences"] = json!([]);
        wanted.object
    });
    home.apply(&made.collect::<Vec<_>>());
    home.ok(&["rollout", "status", "deployment/mcp-a", "--timeout=120s"]);
    let pod = |field: &str| home.ok(&["get", "pods", "-o", &format!("jsonpath={{.items[0].{field}}}")]);
    let (name, address) = (pod("metadata.name"), pod("status.podIP"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let read = |file: &str| runtime.block_on(read(&address, &format!("/run/perch/credentials/{file}")));
    assert_eq!((read("plain").as_str(), read("api").as_str()), ("one", "token-1"));
    assert_eq!(read("account").split('.').count(), 3, "a token of the ServiceAccount");
    assert!(
        read("../../../var/run/secrets/kubernetes.io/serviceaccount/token").contains("No such file"),
        "and none for the cluster"
    );

    home.apply(&[secret("mine", "k", "two"), secret("mcp-a-credentials", "api", "token-2")]);
    wait("the new values", || (read("plain") == "two" && read("api") == "token-2").then_some(()));
    assert_eq!((pod("metadata.name"), pod("status.containerStatuses[0].restartCount")), (name, "0".to_owned()));
}
