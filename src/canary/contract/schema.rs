//! Whether everything that fits one JSON Schema fits another.
//!
//! It is decided for what tools use; where it cannot be decided, the answer is that it may not.

use serde_json::{Map, Value};

/// How deep schemas are followed. Beyond it they count as different when they differ.
const DEPTH: usize = 24;

/// Places where a value that fits `old` may not fit `new`, and why, in a few words.
pub(super) fn problems(old: &Value, new: &Value, path: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    Comparison { old_root: old, new_root: new }.within(old, new, path, DEPTH, &mut found);
    found
}

/// Words that say nothing about which values fit.
const ANNOTATIONS: [&str; 12] = [
    "title",
    "description",
    "default",
    "examples",
    "$schema",
    "$id",
    "$comment",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$defs",
    "definitions",
];

/// Words that are understood below.
const UNDERSTOOD: [&str; 20] = [
    "type",
    "enum",
    "const",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "anyOf",
    "oneOf",
    "$ref",
];

struct Comparison<'a> {
    old_root: &'a Value,
    new_root: &'a Value,
}

type Found = Vec<(String, String)>;

impl Comparison<'_> {
    fn within(&self, old: &Value, new: &Value, path: &str, depth: usize, found: &mut Found) {
        if old == new && self.old_root == self.new_root {
            return;
        }
        let (old, new) = (resolve(self.old_root, old), resolve(self.new_root, new));
        if depth == 0 {
            if old != new {
                found.push((path.to_owned(), "differs too deep inside to be compared".into()));
            }
            return;
        }
        let (old, new) = match (old, new) {
            (_, Value::Bool(true)) | (Value::Bool(false), _) => return,
            (Value::Object(old), Value::Object(new)) => (old, new),
            (Value::Bool(true), Value::Object(new)) => {
                return self.objects(&Map::new(), new, path, depth, found);
            }
            _ => return found.push((path.to_owned(), "accepts nothing now".into())),
        };
        self.objects(old, new, path, depth, found);
    }

    fn objects(&self, old: &Map<String, Value>, new: &Map<String, Value>, path: &str, depth: usize, found: &mut Found) {
        types(old, new, path, found);
        values(old, new, path, found);
        bounds(old, new, path, found);
        self.properties(old, new, path, depth, found);
        if let Some(new_items) = new.get("items") {
            let anything = Value::Bool(true);
            let old_items = old.get("items").unwrap_or(&anything);
            self.within(old_items, new_items, &format!("{path}.items"), depth - 1, found);
        }
        self.alternatives(old, new, path, depth, found);
        for (word, value) in new {
            let known = UNDERSTOOD.contains(&word.as_str()) || ANNOTATIONS.contains(&word.as_str());
            if !known && old.get(word) != Some(value) {
                found.push((path.to_owned(), format!("has another {word}")));
            }
        }
    }

    fn properties(
        &self,
        old: &Map<String, Value>,
        new: &Map<String, Value>,
        path: &str,
        depth: usize,
        found: &mut Found,
    ) {
        let empty = Map::new();
        let members = |schema: &Map<String, Value>| -> Map<String, Value> {
            schema.get("properties").and_then(Value::as_object).unwrap_or(&empty).clone()
        };
        let (old_members, new_members) = (members(old), members(new));
        let at = |name: &str| format!("{path}.properties.{name}");
        for name in strings(new.get("required")) {
            if !strings(old.get("required")).contains(&name) {
                found.push((at(name), "is required now".into()));
            }
        }
        let anything = Value::Bool(true);
        let rest =
            |schema: &Map<String, Value>| schema.get("additionalProperties").cloned().unwrap_or(Value::Bool(true));
        let (old_rest, new_rest) = (rest(old), rest(new));
        for (name, old_member) in &old_members {
            match new_members.get(name) {
                Some(new_member) => self.within(old_member, new_member, &at(name), depth - 1, found),
                None if new_rest == Value::Bool(false) => found.push((at(name), "is no longer accepted".into())),
                None if new_rest == anything => {}
                None => self.within(old_member, &new_rest, &at(name), depth - 1, found),
            }
        }
        for (name, new_member) in &new_members {
            // A caller could send it before only as one of the rest, of which callers know nothing;
            // a rest that was described is another thing.
            if !old_members.contains_key(name) && old_rest.is_object() {
                self.within(&old_rest, new_member, &at(name), depth - 1, found);
            }
        }
        if new_rest == Value::Bool(false) && old_rest != Value::Bool(false) && old.contains_key("additionalProperties")
        {
            found.push((path.to_owned(), "accepts no further properties now".into()));
        } else if new_rest.is_object() && old_rest != Value::Bool(false) {
            self.within(&old_rest, &new_rest, &format!("{path}.additionalProperties"), depth - 1, found);
        }
    }

    fn alternatives(
        &self,
        old: &Map<String, Value>,
        new: &Map<String, Value>,
        path: &str,
        depth: usize,
        found: &mut Found,
    ) {
        for word in ["anyOf", "oneOf"] {
            let Some(choices) = new.get(word).and_then(Value::as_array) else { continue };
            let old_whole;
            let before: Vec<&Value> = if let Some(before) = old.get(word).and_then(Value::as_array) {
                before.iter().collect()
            } else {
                old_whole = Value::Object(old.clone());
                vec![&old_whole]
            };
            for (index, one) in before.into_iter().enumerate() {
                let fits = choices.iter().any(|choice| {
                    let mut inner = Vec::new();
                    self.within(one, choice, path, depth - 1, &mut inner);
                    inner.is_empty()
                });
                if !fits {
                    found.push((format!("{path}.{word}[{index}]"), "fits none of the choices now".into()));
                }
            }
        }
    }
}

fn types(old: &Map<String, Value>, new: &Map<String, Value>, path: &str, found: &mut Found) {
    let Some(allowed) = new.get("type") else { return };
    let allowed = strings(Some(allowed));
    let fits = |name: &str| allowed.contains(&name) || (name == "integer" && allowed.contains(&"number"));
    match old.get("type") {
        None => {
            // Values that are listed have their types.
            let listed = old.get("enum").and_then(Value::as_array).is_some_and(|l| l.iter().all(|v| fits(type_of(v))));
            let constant = old.get("const").is_some_and(|v| fits(type_of(v)));
            let choice = old.contains_key("anyOf") || old.contains_key("oneOf");
            if !listed && !constant && !choice {
                found.push((path.to_owned(), format!("must be of type {} now", allowed.join(" or "))));
            }
        }
        Some(before) => {
            let lost: Vec<_> = strings(Some(before)).into_iter().filter(|t| !fits(t)).collect();
            if !lost.is_empty() {
                found.push((path.to_owned(), format!("can no longer be of type {}", lost.join(" or "))));
            }
        }
    }
}

fn values(old: &Map<String, Value>, new: &Map<String, Value>, path: &str, found: &mut Found) {
    let listed = |schema: &Map<String, Value>| -> Option<Vec<Value>> {
        schema.get("const").map(|v| vec![v.clone()]).or_else(|| schema.get("enum")?.as_array().cloned())
    };
    let Some(now) = listed(new) else { return };
    match listed(old) {
        None => found.push((path.to_owned(), "takes only some values now".into())),
        Some(before) => {
            let lost: Vec<_> = before.iter().filter(|v| !now.contains(v)).map(ToString::to_string).collect();
            if !lost.is_empty() {
                found.push((path.to_owned(), format!("no longer takes {}", lost.join(", "))));
            }
        }
    }
}

fn bounds(old: &Map<String, Value>, new: &Map<String, Value>, path: &str, found: &mut Found) {
    let lower = ["minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"];
    let upper = ["maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"];
    for (words, is_lower) in [(lower, true), (upper, false)] {
        for word in words {
            let Some(now) = new.get(word) else { continue };
            let (now, before) = (now.as_f64(), old.get(word).and_then(Value::as_f64));
            let holds = match (now, before) {
                (Some(now), Some(before)) => {
                    if is_lower {
                        now <= before
                    } else {
                        now >= before
                    }
                }
                // No value is shorter than nothing.
                (Some(now), None) => is_lower && now <= 0.0 && word.starts_with("min") && word != "minimum",
                (None, _) => false,
            };
            if !holds {
                found.push((path.to_owned(), format!("has a stricter {word}")));
            }
        }
    }
}

fn strings(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Follows a reference within the document. One that leads elsewhere, or round in a circle, stands
/// for itself.
fn resolve<'v>(root: &'v Value, schema: &'v Value) -> &'v Value {
    let mut here = schema;
    for _ in 0..DEPTH {
        let Some(pointer) = here.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) else {
            return here;
        };
        let Some(there) = root.pointer(pointer) else { return here };
        here = there;
    }
    here
}
