//! Several servers in pods behind one endpoint of the gateway's Service.

use serde_json::{Value, json};

use crate::{
    release::{Release, SERVERS},
    support::wait,
    traffic::Client,
};

/// The toolbox, once its Ready condition has a reason for its last generation.
fn until(release: &Release, reason: &str) -> Value {
    wait(&format!("the toolbox to be {reason}"), || {
        let object: Value =
            serde_json::from_str(&release.kubectl(&["get", "mcptoolbox", "daily", "-o", "json"])).unwrap();
        let status = object["status"].clone();
        let ready = status["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")?;
        let current = status["observedGeneration"] == object["metadata"]["generation"];
        (current && ready["reason"] == reason).then_some(status)
    })
}

fn tools(client: &Client<'_>) -> Vec<String> {
    let (status, listed) = client.request("tools/list", &json!({}));
    let tools = listed["result"]["tools"].as_array().unwrap_or_else(|| panic!("{status} {listed}"));
    tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

fn text(client: &Client<'_>, tool: &str, arguments: &Value) -> String {
    let (status, answer) = client.call(tool, arguments);
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{tool}: {status} {answer}")).to_owned()
}

/// The very file of the guide: tools of both servers under their names in the toolbox, also while a third server is
/// not there.
pub fn samples(release: &Release) {
    release.kubectl(&["apply", "-f", "manifests/samples/toolbox.yaml"]);
    let status = until(release, "Ready");
    assert_eq!(status["serversReady"], "2/2", "{status}");
    let url = status["url"].as_str().unwrap();
    assert!(url.ends_with(&format!("/{SERVERS}/toolboxes/daily/mcp")), "{url}");
    let client = Client::open(release, "toolboxes/daily");
    let listed = tools(&client);
    assert_eq!(status["tools"], listed.len(), "{listed:?}");
    for name in ["everything_echo", "now", "clock_convert_time"] {
        assert!(listed.iter().any(|tool| tool == name), "{name}: {listed:?}");
    }
    let calls = |client: &Client<'_>| {
        assert!(text(client, "everything_echo", &json!({"message": "hello"})).contains("hello"));
        assert!(text(client, "now", &json!({"timezone": "UTC"})).contains("UTC"));
    };
    calls(&client);

    let more = json!([{"op": "add", "path": "/spec/servers/-", "value": {"name": "missing"}}]);
    release.kubectl(&["patch", "mcptoolbox", "daily", "--type=json", "-p", &more.to_string()]);
    let status = until(release, "ServersNotReady");
    let missing = status["servers"].as_array().unwrap().iter().find(|server| server["name"] == "missing");
    assert_eq!(missing.unwrap()["reason"], "NotFound", "{status}");
    assert_eq!(tools(&client), listed);
    calls(&client);
    release.kubectl(&["delete", "mcptoolbox", "daily"]);
    wait("the toolbox to be gone", || {
        let (status, _) = client.request("tools/list", &json!({}));
        (status == 404).then_some(())
    });
}
