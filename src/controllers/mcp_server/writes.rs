//! What the controller wrote itself, so that it neither works on what it has just replaced nor
//! writes every detail on its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::ResourceExt;
use tokio::time::Instant;

use super::key_of;
use crate::{
    api::mcp_server::{McpServer, McpServerStatus},
    names::ServerKey,
};

/// Least time between two writes of a status that differ only in words.
const WORDS: Duration = Duration::from_secs(1);
/// Least time between two writes of a status that differ only in numbers.
const NUMBERS: Duration = Duration::from_secs(5);

/// The last status that was written of each server.
#[derive(Default)]
pub struct Writes(Mutex<HashMap<ServerKey, Last>>);

struct Last {
    at: Instant,
    /// Versions of the object that were replaced since the watch last brought a new one.
    replaced: Vec<String>,
    /// The object as it was written, until the watch has brought it.
    written: Option<Arc<McpServer>>,
}

impl Writes {
    /// A server as it is now, as far as is known here: the watch may not have brought yet what was
    /// written last.
    pub fn newest(&self, server: Arc<McpServer>) -> Arc<McpServer> {
        let mut all = self.0.lock().expect("nobody panics while holding the writes");
        let Some(last) = all.get_mut(&key_of(&server)) else { return server };
        let is_old = server.resource_version().is_some_and(|version| last.replaced.contains(&version));
        match &last.written {
            Some(written) if is_old => Arc::clone(written),
            _ => {
                last.replaced.clear();
                last.written = None;
                server
            }
        }
    }

    /// Keeps what has just replaced a server.
    pub fn keep(&self, replaced: &McpServer, mut written: McpServer) {
        written.metadata.managed_fields = None;
        let mut all = self.0.lock().expect("nobody panics while holding the writes");
        let last = all.entry(key_of(replaced)).or_insert_with(|| Last {
            at: Instant::now(),
            replaced: Vec::new(),
            written: None,
        });
        last.at = Instant::now();
        last.replaced.extend(replaced.resource_version());
        last.written = Some(Arc::new(written));
    }

    /// How long a new status should wait. One that tells of more than details never does.
    pub fn wait(&self, server: &McpServer, status: &McpServerStatus) -> Option<Duration> {
        let before = server.status.as_ref()?;
        if outline(before) != outline(status) {
            return None;
        }
        let pause = if words(before).eq(words(status)) { NUMBERS } else { WORDS };
        let all = self.0.lock().expect("nobody panics while holding the writes");
        let left = pause.saturating_sub(all.get(&key_of(server))?.at.elapsed());
        (!left.is_zero()).then_some(left)
    }

    /// Forgets a server.
    pub fn forget(&self, server: &ServerKey) {
        self.0.lock().expect("nobody panics while holding the writes").remove(server);
    }
}

/// What a status says to people.
fn words(status: &McpServerStatus) -> impl Iterator<Item = &str> {
    let candidate = status.candidate.iter().map(|candidate| candidate.message.as_str());
    status.conditions.iter().map(|condition| condition.message.as_str()).chain(candidate)
}

/// A status without what may change often while the story is the same.
fn outline(status: &McpServerStatus) -> McpServerStatus {
    let mut status = status.clone();
    status.replicas = 0;
    status.ready_replicas = 0;
    status.image_id = None;
    for condition in &mut status.conditions {
        condition.message.clear();
    }
    if let Some(candidate) = &mut status.candidate {
        candidate.replicas = 0;
        candidate.ready_replicas = 0;
        candidate.message.clear();
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn server(version: &str, status: &serde_json::Value) -> McpServer {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
            "metadata": {"name": "a", "namespace": "n", "resourceVersion": version},
            "spec": {"image": "x"}, "status": status,
        }))
        .unwrap()
    }

    fn ready(status: &str, message: &str, replicas: i32) -> serde_json::Value {
        let ready = json!({"type": "Ready", "status": status, "reason": "R", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        json!({"conditions": [ready], "replicas": replicas})
    }

    #[test]
    fn what_was_replaced_is_not_worked_on() {
        let writes = Writes::default();
        let newest = |version: &str| writes.newest(Arc::new(server(version, &json!({})))).resource_version().unwrap();
        assert_eq!(newest("1"), "1");
        writes.keep(&server("1", &json!({})), server("2", &json!({})));
        assert_eq!(newest("1"), "2");
        writes.keep(&server("2", &json!({})), server("3", &json!({})));
        assert_eq!((newest("1"), newest("2")), ("3".into(), "3".into()));
        assert_eq!(newest("3"), "3");
        assert_eq!(newest("1"), "1", "the watch knows better once it has brought the last write");
        writes.keep(&server("3", &json!({})), server("4", &json!({})));
        assert_eq!(newest("9"), "9", "somebody else has written since");
    }

    #[tokio::test(start_paused = true)]
    async fn details_wait_and_news_do_not() {
        let writes = Writes::default();
        let before = server("1", &ready("False", "one", 0));
        let wait = |status: serde_json::Value| writes.wait(&before, &serde_json::from_value(status).unwrap());
        assert_eq!(wait(ready("False", "two", 1)), None, "nothing was written yet");
        writes.keep(&before, before.clone());
        tokio::time::advance(Duration::from_millis(400)).await;
        assert_eq!(wait(ready("False", "two", 1)), Some(Duration::from_millis(600)));
        assert_eq!(wait(ready("True", "two", 1)), None);
        tokio::time::advance(Duration::from_millis(600)).await;
        assert_eq!(wait(ready("False", "two", 1)), None);
        assert_eq!(wait(ready("False", "one", 1)), Some(Duration::from_secs(4)));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(wait(ready("False", "one", 1)), None);
        writes.forget(&ServerKey::new("n", "a"));
    }
}
