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

/// The last moment that an event tells of.
pub fn last_seen(event: &Value) -> Option<jiff::Timestamp> {
    ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .into_iter()
        .find_map(|pointer| event.pointer(pointer)?.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
