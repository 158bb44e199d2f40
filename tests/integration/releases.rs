//! What tests of releases begin with and ask: a server, its release, and who gets which revision.

use serde_json::{Value, json};

use crate::support::{Perch, fixture, wait};

/// A perch that runs servers as processes.
pub fn up(dir: &tempfile::TempDir) -> Perch {
    Perch::up(dir.path(), &["--runtime", "process"])
}

/// A server that calls itself so.
pub fn named(name: &str) -> Value {
    json!({"command": [fixture(), "stdio", "--name", name]})
}

/// Two stages of seconds without criteria.
pub fn quick() -> Value {
    json!([
        {"name": "half", "percentage": 50, "duration": "2s"},
        {"name": "all", "percentage": 100, "duration": "2s"},
    ])
}

/// A stage that nobody sees the end of.
pub fn long(percentage: i32) -> Value {
    json!([{"name": "long", "percentage": percentage, "duration": "10h"}])
}

/// What a test asks of releases.
pub trait Releases {
    fn release(&self, name: &str, server: &str, stages: &Value);
    fn canary(&self, name: &str) -> Value;
    fn until_phase(&self, name: &str, phase: &str) -> Value;
    fn tell(&self, name: &str, id: &str, verb: &str);
    fn answering(&self, name: &str) -> String;
    fn story(&self) -> String;
}

impl Releases for Perch {
    fn release(&self, name: &str, server: &str, stages: &Value) {
        let object = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": name},
            "spec": {"targetRef": {"name": server}, "drainTimeout": "2s", "stages": stages}});
        self.ok_with(&["apply", "-f", "-"], &object.to_string());
        wait("the release to be looked at", || {
            let conditions = self.canary(name)["conditions"].clone();
            conditions.as_array().is_some_and(|c| !c.is_empty()).then_some(())
        });
    }

    fn canary(&self, name: &str) -> Value {
        serde_json::from_str::<Value>(&self.ok(&["get", "canary", name, "-o", "json"])).unwrap()["status"].take()
    }

    fn until_phase(&self, name: &str, phase: &str) -> Value {
        wait(&format!("{name} to be {phase}"), || Some(self.canary(name)).filter(|status| status["phase"] == phase))
    }

    fn tell(&self, name: &str, id: &str, verb: &str) {
        let status = self.canary(name);
        let command = json!({"id": id, "verb": verb, "releaseId": status["releaseId"], "stage": status["stage"]["name"], "by": "dana"});
        self.ok(&["annotate", "--overwrite", "canary", name, &format!("perch.dev/command={command}")]);
    }

    /// The name that a server gives itself to a new client.
    fn answering(&self, name: &str) -> String {
        who(&format!("{}/default/{name}/mcp", self.gateway))
    }

    fn story(&self) -> String {
        self.ok(&["get", "events", "--sort-by=.metadata.creationTimestamp"])
    }
}

/// The name that a server gives itself.
pub fn who(url: &str) -> String {
    greeted(url).unwrap_or_else(|body| panic!("{body}"))
}

/// The name that a server gives itself, or what is said instead.
pub fn greeted(url: &str) -> Result<String, String> {
    let request = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"},
    }});
    let (status, _, body) = crate::support::post(url, None, &request.to_string());
    if status != 200 {
        return Err(body);
    }
    let body = body.lines().find_map(|line| line.strip_prefix("data: ")).map_or(body.clone(), str::to_owned);
    let answer: Value = serde_json::from_str(&body).unwrap();
    answer["result"]["serverInfo"]["name"].as_str().map(str::to_owned).ok_or(body)
}

/// Status, reason and message of a condition.
pub fn condition(status: &Value, type_: &str) -> (String, String, String) {
    let all = status["conditions"].as_array().unwrap();
    let found = all.iter().find(|c| c["type"] == type_).cloned().unwrap_or_default();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}

/// A revision that a status must have.
pub fn revision(status: &Value, key: &str) -> String {
    status[key].as_str().unwrap_or_else(|| panic!("no {key} in {status}")).to_owned()
}

/// A perch whose server `a` calls itself `one` and has a release with these stages.
pub fn held(dir: &tempfile::TempDir, stages: &Value) -> Perch {
    let up = up(dir);
    up.apply("a", &named("one"));
    up.until("a", "Ready");
    up.release("a", "a", stages);
    up
}

/// Like [`held`], with `two` in the first stage of its release, whose status is given too.
pub fn released(dir: &tempfile::TempDir, stages: &Value) -> (Perch, Value) {
    let up = held(dir, stages);
    up.apply("a", &named("two"));
    let status = up.until_phase("a", "Progressing");
    (up, status)
}
