//! Removing what a schema does not know.

use serde_json::Value;

use super::Node;

pub(super) fn prune(node: &Node, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if node.properties.is_empty() && node.values.is_none() && node.preserve_unknown {
                return;
            }
            map.retain(|name, _| {
                let known = node.preserve_unknown || node.member(name).is_some();
                if !known {
                    unknown.push(join(path, name));
                }
                known
            });
            for (name, value) in map.iter_mut() {
                if let Some(member) = node.member(name) {
                    prune(member, value, &join(path, name), unknown);
                }
            }
        }
        Value::Array(items) => {
            if let Some(node) = &node.items {
                for (index, item) in items.iter_mut().enumerate() {
                    prune(node, item, &format!("{path}[{index}]"), unknown);
                }
            }
        }
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
