//! Whether an object in the cluster has everything that is wanted of it.
//!
//! The API server adds defaults and others add fields; neither is a reason to write. Only a
//! wanted field that is absent or different is.

use kube_quantity::ParsedQuantity;
use serde_json::Value;

/// Whether `live` has all of `wanted`.
pub fn covers(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().all(|(key, value)| match live.get(key) {
            Some(found) => covers(value, found),
            // The API server leaves empty things out.
            None => is_empty(value),
        }),
        (Value::Array(wanted), Value::Array(live)) => {
            let named = wanted.iter().all(|w| w.get("name").is_some());
            if named {
                wanted.iter().all(|w| live.iter().any(|l| l.get("name") == w.get("name") && covers(w, l)))
            } else {
                wanted.len() == live.len() && wanted.iter().zip(live).all(|(w, l)| covers(w, l))
            }
        }
        (Value::String(wanted), Value::String(live)) => wanted == live || same_quantity(wanted, live),
        (wanted, live) => wanted == live,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

/// The API server rewrites quantities: `1000m` comes back as `1`.
fn same_quantity(a: &str, b: &str) -> bool {
    match (ParsedQuantity::try_from(a), ParsedQuantity::try_from(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_and_additions_of_others_are_no_drift() {
        let wanted = json!({"spec": {"replicas": 2, "containers": [{"name": "a", "image": "x"}], "egress": [], "limits": {"cpu": "1000m"}}});
        let live = json!({"spec": {
            "replicas": 2,
            "containers": [{"name": "sidecar"}, {"name": "a", "image": "x", "imagePullPolicy": "Always"}],
            "limits": {"cpu": "1"}, "strategy": {"type": "RollingUpdate"},
        }});
        assert!(covers(&wanted, &live));
    }

    #[test]
    fn what_is_missing_or_different_is_drift() {
        let live =
            json!({"replicas": 2, "containers": [{"name": "a", "image": "x"}], "args": ["1", "2"], "cpu": "500m"});
        for wanted in [
            json!({"replicas": 3}),
            json!({"containers": [{"name": "a", "image": "y"}]}),
            json!({"containers": [{"name": "b"}]}),
            json!({"args": ["1"]}),
            json!({"cpu": "501m"}),
            json!({"more": false}),
        ] {
            assert!(!covers(&wanted, &live), "{wanted}");
        }
    }
}
