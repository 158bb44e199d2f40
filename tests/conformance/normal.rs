//! Outcomes without what differs from one run to the next.

use std::{collections::BTreeMap, sync::LazyLock};

use regex::{Captures, Regex};
use serde_json::{Map, Value};

/// Gives values that no two runs share a name by the order in which they first appear, so that
/// "the same as before" and "another one" stay visible.
#[derive(Default)]
pub struct Normal {
    uids: BTreeMap<String, usize>,
    versions: BTreeMap<String, usize>,
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).unwrap()
}

static UID: LazyLock<Regex> = LazyLock::new(|| pattern("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"));
static TIME: LazyLock<Regex> = LazyLock::new(|| pattern(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"));
static GENERATED: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b(gen-|Bad_)[bcdfghjklmnpqrstvwxz2456789]{5}\b"));
static SERVER: LazyLock<Regex> = LazyLock::new(|| pattern(r"https://[0-9.]+:\d+"));
static AGE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(^|\s)(<invalid>|\d+m\d+s|\d+[smh])(\s+|$)"));
/// What a patch made, of which the members have no order.
static PATCHED: LazyLock<Regex> = LazyLock::new(|| pattern(r#"Invalid value: "(?:\{|map).*": (.*)$"#));
static DIFF_FILE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(---|\+\+\+|diff) .*"));
static VERSION_LINE: LazyLock<Regex> = LazyLock::new(|| pattern(r#"(?i)(resource ?version"?: *"?)(\d+)"#));
static RECORD: LazyLock<Regex> = LazyLock::new(|| pattern(r"ResourceVersion in record \(\d+\)"));
static CURRENT: LazyLock<Regex> = LazyLock::new(|| pattern(r"current: \d+"));
static OLDEST: LazyLock<Regex> = LazyLock::new(|| pattern(r"\(\d+\)$"));
static EDITED: LazyLock<Regex> = LazyLock::new(|| pattern(r"kubectl-edit-\S+"));

impl Normal {
    /// The outcome in the form that is compared.
    pub fn apply(&mut self, mut outcome: Value) -> Value {
        self.walk(&mut outcome);
        outcome
    }

    fn walk(&mut self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                let is_list = map.get("items").is_some_and(Value::is_array) || map.contains_key("columnDefinitions");
                if is_list && let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
                    // The version of a list is that of the whole store.
                    if let Some(version) = metadata.get_mut("resourceVersion") {
                        *version = "<version of the list>".into();
                    }
                    if let Some(token) = metadata.get_mut("continue").filter(|token| *token != "") {
                        *token = "<continue>".into();
                    }
                }
                if let Some(Value::Array(items)) = map.get_mut("items") {
                    // A controller of the real cluster puts it into every namespace.
                    items.retain(|item| item["metadata"]["name"] != "kube-root-ca.crt");
                }
                sort_causes(map);
                if let Some(Value::Array(managers)) = map.get_mut("managedFields") {
                    // Their order hangs on which second each was written in.
                    managers.sort_by_key(|entry| {
                        ["manager", "operation", "subresource", "apiVersion"].map(|k| entry[k].to_string())
                    });
                }
                let renamed: Vec<String> = map.keys().filter(|key| UID.is_match(key)).cloned().collect();
                for key in renamed {
                    if let Some(value) = map.remove(&key) {
                        map.insert(self.text(&key), value);
                    }
                }
                let bookmark = map.get("type").is_some_and(|t| t == "BOOKMARK");
                for (name, value) in map.iter_mut() {
                    match value {
                        Value::Array(lines) if ["stdout", "stderr", "cells"].contains(&name.as_str()) => {
                            sort_complaints(lines);
                            for line in lines.iter_mut() {
                                if let Value::String(text) = line {
                                    *text = AGE.replace_all(text, "$1<age> ").into_owned();
                                }
                            }
                            self.walk(value);
                        }
                        Value::String(text) if name == "resourceVersion" && !text.starts_with('<') => {
                            *text = self.version(text);
                        }
                        Value::Object(_) if bookmark => {
                            if let Some(version) = value.pointer_mut("/metadata/resourceVersion") {
                                *version = "<version of the watch>".into();
                            }
                            self.walk(value);
                        }
                        value => self.walk(value),
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.walk(item)),
            Value::String(text) => *text = self.text(text),
            _ => {}
        }
    }

    fn version(&mut self, text: &str) -> String {
        if text.is_empty() || text == "0" || text.parse::<u64>().is_err() {
            return text.to_owned();
        }
        let next = self.versions.len() + 1;
        format!("<version {}>", self.versions.entry(text.to_owned()).or_insert(next))
    }

    fn text(&mut self, text: &str) -> String {
        let text = UID.replace_all(text, |found: &Captures<'_>| {
            let next = self.uids.len() + 1;
            format!("<uid {}>", self.uids.entry(found[0].to_owned()).or_insert(next))
        });
        let text = TIME.replace_all(&text, "<time>");
        let text = GENERATED.replace_all(&text, "${1}<suffix>");
        let text = SERVER.replace_all(&text, "<server>");
        let text = PATCHED.replace_all(&text, "Invalid value: <object>: $1");
        let text = DIFF_FILE.replace_all(&text, "$1 <files>");
        let text = RECORD.replace_all(&text, "ResourceVersion in record (<version>)");
        let text = CURRENT.replace_all(&text, "current: <version>");
        let text = OLDEST.replace_all(&text, "(<version>)");
        let text = EDITED.replace_all(&text, "<edited file>");
        VERSION_LINE
            .replace_all(&text, |found: &Captures<'_>| format!("{}{}", &found[1], self.version(&found[2])))
            .into_owned()
    }
}

/// Kubernetes tells causes in the order of Go's maps, which is none, and some of them twice. The
/// message lists them too.
fn sort_causes(status: &mut Map<String, Value>) {
    let Some(causes) = status.get_mut("details").and_then(|d| d.get_mut("causes")).and_then(Value::as_array_mut) else {
        return;
    };
    causes.sort_by_key(Value::to_string);
    causes.dedup();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let parts: Vec<String> = causes.iter().map(|c| format!("{}: {}", text(&c["field"]), text(&c["message"]))).collect();
    let Some(Value::String(message)) = status.get_mut("message") else { return };
    let Some((head, list)) = message.split_once(" is invalid: [") else { return };
    let length: usize = parts.iter().map(|p| p.len() + 2).sum();
    if parts.iter().all(|part| list.contains(part.as_str())) && list.len() + 1 == length {
        *message = format!("{head} is invalid: [{}]", parts.join(", "));
    }
}

/// kubectl lists causes in the order in which they come.
fn sort_complaints(lines: &mut [Value]) {
    let is_cause = |line: &Value| line.as_str().is_some_and(|line| line.starts_with("* "));
    for causes in lines.chunk_by_mut(|a, b| is_cause(a) && is_cause(b)) {
        causes.sort_by_key(Value::to_string);
    }
}

/// Where two outcomes differ: JSON pointer, and what each has there.
pub fn differ(path: &str, real: &Value, local: &Value, found: &mut Vec<(String, String, String)>) {
    match (real, local) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                differ(&format!("{path}/{key}"), value, b.get(key).unwrap_or(&Value::Null), found);
                if value.is_null() && !b.contains_key(key) {
                    found.push((format!("{path}/{key}"), "null".into(), "nothing".into()));
                }
            }
            for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                found.push((format!("{path}/{key}"), "nothing".into(), value.to_string()));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differ(&format!("{path}/{index}"), a, b, found);
            }
        }
        (a, b) if a == b => {}
        // 1 and 1.0 are the same in JSON.
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        (a, b) => found.push((path.to_owned(), a.to_string(), b.to_string())),
    }
}
