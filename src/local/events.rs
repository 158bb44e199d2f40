//! Core `v1` and `events.k8s.io/v1` events are two views of the same objects; the store has the
//! core form. Old ones go after an hour, as in Kubernetes.

use serde_json::Value;

/// How long an event is kept.
pub const KEEP: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// Members with another name in the two forms: core, `events.k8s.io`.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// From `events.k8s.io` to core.
pub fn to_core(event: &mut Value) {
    rename(event, "v1", NAMES.iter().map(|(core, new)| (*new, *core)));
}

/// From core to `events.k8s.io`.
pub fn from_core(event: &mut Value) {
    rename(event, "events.k8s.io/v1", NAMES.iter().copied());
}

fn rename<'a>(event: &mut Value, api_version: &str, names: impl Iterator<Item = (&'a str, &'a str)>) {
    let Value::Object(map) = event else { return };
    for (from, to) in names {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
    map.insert("apiVersion".into(), api_version.into());
}

/// When an event was written last. What it says of itself does not count: a client may tell late of
/// what happened long ago.
pub fn written(event: &Value) -> Option<jiff::Timestamp> {
    let time = |value: Option<&Value>| value?.as_str()?.parse().ok();
    let metadata = event.get("metadata")?;
    let managed = metadata.get("managedFields").and_then(Value::as_array).into_iter().flatten();
    managed.map(|entry| time(entry.get("time"))).chain([time(metadata.get("creationTimestamp"))]).flatten().max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_as_old_as_its_last_write() {
        let created = "2026-01-01T00:00:00Z";
        let mut event = json!({"lastTimestamp": "2020-01-01T00:00:00Z", "metadata": {"creationTimestamp": created}});
        assert_eq!(written(&event), created.parse().ok(), "whatever it says of itself");
        event["metadata"]["managedFields"] = json!([{"time": "2026-01-01T00:30:00Z"}, {"time": created}]);
        assert_eq!(written(&event), "2026-01-01T00:30:00Z".parse().ok());
        assert_eq!(written(&json!({})), None);
    }

    #[test]
    fn the_two_forms_convert_both_ways() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "regarding": {"name": "x"}, "note": "hi", "reportingController": "perch", "type": "Normal"});
        let mut event = new.clone();
        to_core(&mut event);
        assert_eq!(event["involvedObject"]["name"], "x");
        assert_eq!(event["message"], "hi");
        assert_eq!(event["apiVersion"], "v1");
        from_core(&mut event);
        assert_eq!(event, new);
    }
}
