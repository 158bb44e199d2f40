//! What Leases, ControllerRevisions and Events must hold beside being of their types, with the
//! words of `pkg/apis/*/validation`.

use serde_json::Value;

use super::names;
use crate::local::{events, status::Cause};

/// Everything that is wrong with the contents of an object of one of these kinds, `old` being the
/// one that it replaces.
pub fn validate(group: &str, kind: &str, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    match (group, kind) {
        ("coordination.k8s.io", "Lease") => lease(&object["spec"]),
        ("apps", "ControllerRevision") => revision(object, old),
        ("", "Event") => event(object, false),
        ("events.k8s.io", "Event") => {
            let mut core = object.clone();
            events::to_core(&mut core);
            let mut causes = event(&core, true);
            match old {
                None => causes.extend(new_event(&core)),
                Some(old) => {
                    let mut old = old.clone();
                    events::to_core(&mut old);
                    causes.extend(changed_event(&core, &old));
                }
            }
            causes
        }
        _ => Vec::new(),
    }
}

fn invalid(field: &str, value: &str, problem: &str) -> Cause {
    let message = format!("Invalid value: {value}: {problem}");
    Cause { reason: "FieldValueInvalid", message, field: field.to_owned() }
}

fn required(field: &str, detail: &str) -> Cause {
    let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
    Cause { reason: "FieldValueRequired", message: format!("Required value{detail}"), field: field.to_owned() }
}

fn lease(spec: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|s| *s <= 0) {
        causes.push(invalid("spec.leaseDurationSeconds", &seconds.to_string(), "must be greater than 0"));
    }
    if let Some(transitions) = spec["leaseTransitions"].as_i64().filter(|t| *t < 0) {
        let problem = "must be greater than or equal to 0";
        causes.push(invalid("spec.leaseTransitions", &transitions.to_string(), problem));
    }
    causes
}

fn revision(object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(number) = object["revision"].as_i64().filter(|n| *n < 0) {
        causes.push(invalid("revision", &number.to_string(), "must be greater than or equal to 0"));
    }
    let data = &object["data"];
    match old {
        Some(old) if *data != old["data"] => {
            causes.push(invalid("data", &data.to_string(), "field is immutable"));
        }
        None if data.is_null() => causes.push(required("data", "data is mandatory")),
        None if !data.is_object() => causes.push(required("data", "data must be a valid JSON object")),
        _ => {}
    }
    causes
}

/// What holds for events of both groups.
fn event(event: &Value, new_group: bool) -> Vec<Cause> {
    const LIMIT: usize = 128;
    const NOTE_LIMIT: usize = 1024;
    let mut causes = Vec::new();
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
    let about = event["involvedObject"]["namespace"].as_str().unwrap_or_default();
    let timed = !event["eventTime"].is_null();
    let fits = if about.is_empty() {
        namespace == "default" || (timed && namespace == "kube-system")
    } else {
        timed || about == namespace
    };
    if !fits {
        causes.push(invalid("involvedObject.namespace", &names::quoted(about), "does not match event.namespace"));
    }
    if !timed {
        return causes;
    }
    let controller = if new_group { "reportingController" } else { "reportingComponent" };
    let reporter = text("reportingComponent");
    if reporter.is_empty() {
        causes.push(required(controller, ""));
    }
    causes.extend(names::label_key(reporter).iter().map(|p| invalid(controller, &names::quoted(reporter), p)));
    for (field, needed, limit) in [
        ("reportingInstance", true, LIMIT),
        ("action", true, LIMIT),
        ("reason", true, LIMIT),
        ("message", false, NOTE_LIMIT),
    ] {
        if needed && text(field).is_empty() {
            causes.push(required(field, ""));
        }
        if text(field).len() > limit {
            causes.push(invalid(field, "\"\"", &format!("can have at most {limit} characters")));
        }
    }
    causes
}

/// What holds for a new event of the group `events.k8s.io`, given in core form.
fn new_event(event: &Value) -> Vec<Cause> {
    let mut causes = series(event);
    if event["eventTime"].is_null() {
        causes.push(required("eventTime", ""));
    }
    let type_ = event["type"].as_str().unwrap_or_default();
    if !["Normal", "Warning"].contains(&type_) {
        causes.push(invalid("type", "\"\"", &format!("has invalid value: {type_}")));
    }
    let is_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Object(map) => map.values().all(|v| v.is_null() || v == ""),
        _ => false,
    };
    for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        if !is_nothing(&event[field]) {
            causes.push(invalid(field, "\"\"", "needs to be unset"));
        }
    }
    causes
}

/// An event tells of one moment; only its series goes on.
fn changed_event(event: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = if event["series"] == old["series"] { Vec::new() } else { series(event) };
    for (field, name) in [
        ("involvedObject", "involvedObject"),
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        if event[field] != old[field] {
            causes.push(invalid(name, &event[field].to_string(), "field is immutable"));
        }
    }
    causes
}

fn series(event: &Value) -> Vec<Cause> {
    let Some(series) = event.get("series").filter(|s| !s.is_null()) else { return Vec::new() };
    let mut causes = Vec::new();
    if series["count"].as_i64().unwrap_or(0) < 2 {
        causes.push(invalid("series.count", "\"\"", "should be at least 2"));
    }
    if series["lastObservedTime"].is_null() {
        causes.push(required("series.lastObservedTime", ""));
    }
    causes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(group: &str, kind: &str, object: Value, old: Option<&Value>) -> Vec<String> {
        validate(group, kind, &object, old).into_iter().map(|c| c.field).collect()
    }

    #[test]
    fn leases_and_revisions_are_checked() {
        let lease = json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}});
        let found = fields("coordination.k8s.io", "Lease", lease, None);
        assert_eq!(found, ["spec.leaseDurationSeconds", "spec.leaseTransitions"]);
        let old = json!({"revision": 1, "data": {"a": 1}});
        assert_eq!(fields("apps", "ControllerRevision", json!({"revision": -1}), None), ["revision", "data"]);
        let changed = json!({"revision": 2, "data": {"a": 2}});
        assert_eq!(fields("apps", "ControllerRevision", changed, Some(&old)), ["data"]);
    }

    #[test]
    fn events_are_of_their_namespace_and_do_not_change() {
        let old = json!({"metadata": {"namespace": "n"}, "involvedObject": {"namespace": "other"}});
        assert_eq!(fields("", "Event", old, None), ["involvedObject.namespace"]);
        let event = json!({
            "metadata": {"namespace": "n"}, "regarding": {"namespace": "n"}, "eventTime": "t", "type": "Normal",
            "action": "a", "reason": "r", "note": "m", "reportingController": "x.dev/c", "reportingInstance": "i",
        });
        assert_eq!(fields("events.k8s.io", "Event", event.clone(), None), [] as [&str; 0]);
        let mut changed = event.clone();
        changed["note"] = "other".into();
        assert_eq!(fields("events.k8s.io", "Event", changed, Some(&event)), ["message"]);
    }
}
