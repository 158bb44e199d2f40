//! Credentials on a real API server, with just the rights that the chart gives for them.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    cluster::Namespace,
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
