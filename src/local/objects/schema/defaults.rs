//! Filling in defaults, and giving values the form in which they are stored.

use serde_json::{Number, Value};

use super::Node;

/// Fills defaults into what is there. A null where null is no value counts as absent: it gives
/// way to the default, or goes. A whole number that is written with a fraction (`1.0`, `1e2`)
/// becomes an integer where the schema wants one.
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
        Value::Number(number) if node.type_.as_deref() == Some("integer") => {
            if let Some(whole) = whole(number) {
                *value = whole.into();
            }
        }
        _ => {}
    }
}

/// The integer that a fractional number equals, if it does and a double holds it exactly.
fn whole(number: &Number) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let number = number.as_f64().filter(|n| number.is_f64() && n.fract() == 0.0 && n.abs() <= EXACT)?;
    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction and the range is checked")]
    Some(number as i64)
}
