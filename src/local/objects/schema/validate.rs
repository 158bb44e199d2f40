//! Validation with the words of `kube-openapi` and `apimachinery/pkg/util/validation/field`.

use serde_json::Value;

use super::{ListType, Node, type_name};
use crate::local::{objects::names, status::Cause};

/// Checks `value`, which is at `path`; messages name it without the prefix `base`.
pub(super) fn validate(node: &Node, value: &Value, path: &str, base: &str, causes: &mut Vec<Cause>) {
    let said = path.strip_prefix(base).unwrap_or(path);
    if value.is_null() && node.nullable {
        return;
    }
    if !type_fits(node, value) {
        let (mut expected, mut given) = (node.type_.as_deref().unwrap_or_default(), type_name(Some(value)));
        if node.int_or_string {
            expected = "integer,string";
        }
        if expected == "integer" && value.is_f64() && node.format.is_some() {
            (expected, given) = (node.format.as_deref().unwrap_or_default(), "float64");
            causes.push(unchecked(node, said));
        }
        let message = format!("Invalid value: {given:?}: {said} in body must be of type {expected}: {given:?}");
        causes.push(cause("FieldValueTypeInvalid", path, message));
        if let Some(number) = value.as_f64() {
            range(node, number, value, path, said, causes);
        }
        return;
    }
    if !node.enum_.is_empty() && !node.enum_.contains(value) {
        let supported: Vec<String> = node.enum_.iter().map(ToString::to_string).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", supported.join(", "));
        causes.push(cause("FieldValueNotSupported", path, message));
    }
    match value {
        Value::String(text) => string(node, text, path, said, causes),
        Value::Number(number) => {
            if let Some(number) = number.as_f64() {
                range(node, number, value, path, said, causes);
            }
        }
        Value::Array(items) => array(node, items, path, base, causes),
        Value::Object(map) => {
            for name in &node.required {
                if !map.contains_key(name) {
                    causes.push(cause("FieldValueRequired", &join(path, name), "Required value".into()));
                }
            }
            if let Some(max) = node.max_properties
                && map.len() as u64 > max
            {
                let message = format!("Too many: {}: must have at most {max} items", map.len());
                causes.push(cause("FieldValueTooMany", path, message));
            }
            // Metadata has checks of its own.
            for (name, value) in map.iter().filter(|(name, _)| !path.is_empty() || *name != "metadata") {
                if let Some(member) = node.member(name) {
                    validate(member, value, &join(path, name), base, causes);
                }
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn type_fits(node: &Node, value: &Value) -> bool {
    if node.int_or_string {
        return value.is_string() || value.is_i64();
    }
    match node.type_.as_deref() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    }
}

/// The first thing that is wrong with a text.
fn string(node: &Node, text: &str, path: &str, said: &str, causes: &mut Vec<Cause>) {
    let length = text.chars().count() as u64;
    let quoted = names::quoted(text);
    if let Some(max) = node.max_length
        && length > max
    {
        causes.push(cause("FieldValueTooLong", path, format!("Too long: may not be more than {max} bytes")));
    } else if let Some(min) = node.min_length
        && length < min
    {
        let message = format!("Invalid value: {quoted}: {said} in body should be at least {min} chars long");
        causes.push(cause("FieldValueInvalid", path, message));
    } else if let Some(pattern) = &node.pattern
        && !pattern.is_match(text)
    {
        let message = format!("Invalid value: {quoted}: {said} in body should match '{pattern}'");
        causes.push(cause("FieldValueInvalid", path, message));
    }
    if node.format.as_deref() == Some("date-time") && text.parse::<jiff::Timestamp>().is_err() {
        let message = format!("Invalid value: {quoted}: {said} in body must be of type date-time: {quoted}");
        causes.push(cause("FieldValueTypeInvalid", path, message));
    }
}

fn range(node: &Node, number: f64, value: &Value, path: &str, said: &str, causes: &mut Vec<Cause>) {
    if let Some(max) = node.maximum
        && number > max
    {
        let message = format!("Invalid value: {value}: {said} in body should be less than or equal to {max}");
        causes.push(cause("FieldValueInvalid", path, message));
    }
    if let Some(min) = node.minimum
        && number < min
    {
        let message = format!("Invalid value: {value}: {said} in body should be greater than or equal to {min}");
        causes.push(cause("FieldValueInvalid", path, message));
    }
    // Clients read an integer into so many bits.
    if node.type_.as_deref() == Some("integer") && !value.is_f64() {
        let fits = match node.format.as_deref() {
            Some("int32") => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            _ => value.is_i64(),
        };
        if !fits {
            causes.push(unchecked(node, said));
        }
    }
}

/// A number that is too large, or no integer, for its format.
fn unchecked(node: &Node, said: &str) -> Cause {
    let format = node.format.as_deref().unwrap_or("int64");
    let message = format!("Invalid value: \"\": Checked value must be of type integer with format {format} in {said}");
    cause("FieldValueInvalid", "<nil>", message)
}

fn array(node: &Node, items: &[Value], path: &str, base: &str, causes: &mut Vec<Cause>) {
    let said = path.strip_prefix(base).unwrap_or(path);
    let length = items.len() as u64;
    if let Some(max) = node.max_items
        && length > max
    {
        let message = format!("Too many: {length}: must have at most {max} items");
        causes.push(cause("FieldValueTooMany", path, message));
    }
    if let Some(min) = node.min_items
        && length < min
    {
        let message = format!("Invalid value: {length}: {said} in body should have at least {min} items");
        causes.push(cause("FieldValueInvalid", path, message));
    }
    let mut seen = Vec::new();
    for (index, item) in items.iter().enumerate() {
        if matches!(node.list_type, ListType::Map(_)) && !item.is_object() {
            let message = format!("Invalid value: {item}: must be an object for an array of list-type map");
            causes.push(cause("FieldValueInvalid", &format!("{path}[{index}]"), message));
        }
        let identity = match &node.list_type {
            ListType::Atomic => None,
            ListType::Set => Some(item.clone()),
            ListType::Map(_) if !item.is_object() => None,
            ListType::Map(keys) => {
                Some(keys.iter().filter_map(|k| Some((k.clone(), item.get(k)?.clone()))).collect::<Value>())
            }
        };
        if let Some(identity) = identity {
            if seen.contains(&identity) {
                let message = format!("Duplicate value: {identity}");
                causes.push(cause("FieldValueDuplicate", &format!("{path}[{index}]"), message));
            } else {
                seen.push(identity);
            }
        }
        if let Some(node) = &node.items {
            validate(node, item, &format!("{path}[{index}]"), base, causes);
        }
    }
}

fn cause(reason: &'static str, field: &str, message: String) -> Cause {
    Cause { reason, message, field: field.to_owned() }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
