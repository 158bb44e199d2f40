//! Filling in defaults.

use serde_json::Value;

use super::Node;

/// Fills defaults into what is there. A null where null is no value counts as absent: it gives
/// way to the default, or goes.
pub(super) fn fill(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, value| match node.properties.get(name) {
                Some(member) => !value.is_null() || member.nullable || member.preserve_unknown,
                None => true,
            });
            for (name, member) in &node.properties {
                if let Some(default) = &member.default
                    && !map.contains_key(name)
                {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in map.iter_mut() {
                if let Some(member) = node.member(name) {
                    fill(member, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(node) = &node.items {
                for item in items {
                    fill(node, item);
                }
            }
        }
        _ => {}
    }
}
