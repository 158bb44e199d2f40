//! Whether something can be applied: server-side apply refuses what the schema does not declare,
//! even where other writes only drop it. See `sigs.k8s.io/structured-merge-diff/typed`.

use serde_json::Value;

use super::{
    field_set::list_element,
    schema::{ListType, Node},
};

/// Everything that keeps `applied` from being applied, as one message; none when nothing does.
pub fn problems(root: &Node, applied: &Value) -> Option<String> {
    let mut found = Vec::new();
    walk(root, applied, "", &mut found);
    match found.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("errors:\n  {}", many.join("\n  "))),
    }
}

fn walk(node: &Node, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut say = |what: String| {
        found.push(if path.is_empty() { what } else { format!("{path}: {what}") });
    };
    if value.is_null() || (node.preserve_unknown && node.properties.is_empty() && node.values.is_none()) {
        return;
    }
    match node.type_.as_deref() {
        Some("object") => {
            let Value::Object(map) = value else { return say(format!("expected map, got &{{{}}}", go(value))) };
            for (name, value) in map {
                let path = format!("{path}.{name}");
                match node.member(name) {
                    Some(member) => walk(member, value, &path, found),
                    None if node.preserve_unknown => {}
                    None => found.push(format!("{path}: field not declared in schema")),
                }
            }
        }
        Some("array") => {
            let Value::Array(items) = value else { return say(format!("expected list, got &{{{}}}", go(value))) };
            let Some(child) = node.items.as_deref() else { return };
            let mut seen = Vec::new();
            for (index, item) in items.iter().enumerate() {
                let place = match &node.list_type {
                    ListType::Atomic => format!("[{index}]"),
                    ListType::Set => format!("[={item}]"),
                    ListType::Map(keys) => {
                        if !item.is_object() {
                            return found.push(format!(
                                "{path}: element {index}: associative list with keys may not have non-map elements"
                            ));
                        }
                        let has_key = keys.iter().any(|key| {
                            item.get(key).is_some() || child.properties.get(key).is_some_and(|n| n.default.is_some())
                        });
                        if !has_key {
                            let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                            return found.push(format!(
                                "{path}: element {index}: associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                                keys.join(" ")
                            ));
                        }
                        let shown: Vec<String> =
                            keys.iter().filter_map(|key| Some(format!("{key}={}", item.get(key)?))).collect();
                        format!("[{}]", shown.join(","))
                    }
                };
                if let Some(element) = list_element(node, item) {
                    if seen.contains(&element) {
                        found.push(format!("{path}: duplicate entries for key {place}"));
                    }
                    seen.push(element);
                }
                walk(child, item, &format!("{path}{place}"), found);
            }
        }
        Some("string") if !value.is_string() && !node.int_or_string => {
            say(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go(value)));
        }
        Some("boolean") if !value.is_boolean() => say(format!("expected boolean, got &{{{}}}", go(value))),
        Some("integer" | "number") if !value.is_number() => {
            let given = match value {
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                Value::Array(_) => "[]interface {}",
                _ => "map[string]interface {}",
            };
            say(format!("expected numeric (int or float), got {given}"));
        }
        _ => {}
    }
}

/// A value as Go prints it.
pub fn go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let members: Vec<String> = map.iter().map(|(name, value)| format!("{name}:{}", go(value))).collect();
            format!("map[{}]", members.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::local::objects::builtin;

    #[test]
    fn what_is_not_declared_is_not_applied() {
        let schema = builtin::schema("", "ConfigMap");
        assert_eq!(problems(schema.root(), &json!({"data": {"a": "b"}})), None);
        assert_eq!(
            problems(schema.root(), &json!({"data": {"k": 1}})).unwrap(),
            ".data.k: expected string, got &value.valueUnstructured{Value:1}"
        );
        assert_eq!(
            problems(schema.root(), &json!({"unknown": 1, "other": 2})).unwrap(),
            "errors:\n  .other: field not declared in schema\n  .unknown: field not declared in schema"
        );
    }
}
