//! What a check of arguments may cost, known before it begins.

use std::collections::HashMap;

use serde_json::Value;

/// Largest expanded schema: its parts, each as often as it is referred to.
const MOST_PARTS: u64 = 10_000;
/// Most parts of a schema times parts of arguments. A step takes some 50 ns, so that a check takes
/// a tenth of a second at most.
const MOST_STEPS: u64 = 2_000_000;
/// So many bytes of a text count as one more part, for patterns that go over it.
const BYTES: u64 = 64;
/// Deepest nesting that is followed.
const DEEPEST: usize = 128;

/// How large a schema is when every reference is replaced by what it refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost(u64);

impl Cost {
    /// The cost of a schema; none of one that is too large, refers to itself, or to something that
    /// is not in it. What refers to itself could be made to grow with the depth of arguments as
    /// fast as its author likes.
    pub fn of(schema: &Value) -> Option<Self> {
        let mut known = HashMap::new();
        let parts = Walk { root: schema, known: &mut known }.parts(schema, 0)?;
        (parts <= MOST_PARTS).then_some(Self(parts))
    }

    /// Whether arguments may be checked.
    pub fn admits(self, arguments: &str) -> bool {
        let bytes = arguments.len() as u64;
        // Whatever separates parts; within a text it makes the estimate larger, which is harmless.
        let parts = 1 + arguments.bytes().filter(|b| matches!(b, b',' | b'[' | b'{')).count() as u64;
        self.0.saturating_mul(parts + bytes / BYTES) <= MOST_STEPS
    }
}

struct Walk<'s, 'k> {
    root: &'s Value,
    /// The parts below each reference; none while it is being followed.
    known: &'k mut HashMap<String, Option<u64>>,
}

impl Walk<'_, '_> {
    fn parts(&mut self, value: &Value, depth: usize) -> Option<u64> {
        if depth > DEEPEST {
            return None;
        }
        let mut parts: u64 = 1;
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    let more = match (name.as_str(), member) {
                        ("$dynamicRef" | "$recursiveRef", _) => return None,
                        ("$ref", Value::String(target)) => self.followed(target, depth)?,
                        // What nobody refers to costs nothing.
                        ("$defs" | "definitions", Value::Object(_)) => 0,
                        _ => self.parts(member, depth + 1)?,
                    };
                    parts = parts.saturating_add(more);
                }
            }
            Value::Array(items) => {
                for item in items {
                    parts = parts.saturating_add(self.parts(item, depth + 1)?);
                }
            }
            _ => {}
        }
        Some(parts)
    }

    fn followed(&mut self, target: &str, depth: usize) -> Option<u64> {
        if let Some(known) = self.known.get(target) {
            return *known;
        }
        let referred = self.root.pointer(target.strip_prefix('#')?)?;
        self.known.insert(target.to_owned(), None);
        let parts = self.parts(referred, depth + 1)?;
        self.known.insert(target.to_owned(), Some(parts));
        Some(parts)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_referred_to_counts_each_time() {
        let one = json!({"$defs": {"a": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a"}}});
        let two = json!({"$defs": {"a": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a"}, "y": {"$ref": "#/$defs/a"}}});
        let (one, two) = (Cost::of(&one).unwrap(), Cost::of(&two).unwrap());
        assert!(two > one, "{two:?} {one:?}");
    }

    impl PartialOrd for Cost {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            self.0.partial_cmp(&other.0)
        }
    }

    #[test]
    fn what_could_grow_without_bounds_has_no_cost() {
        // Twice as large with each step.
        let mut defs = json!({"a0": {"type": "string"}});
        for step in 1..60 {
            let inner = json!({"$ref": format!("#/$defs/a{}", step - 1)});
            defs[format!("a{step}")] = json!({"allOf": [inner, inner]});
        }
        let doubling = json!({"$defs": defs, "$ref": "#/$defs/a59"});
        let deep = (0..200).fold(json!({}), |inner, _| json!({"items": inner}));
        for (what, schema) in [
            ("itself", json!({"$ref": "#"})),
            ("itself, below", json!({"properties": {"child": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}})),
            (
                "each other",
                json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
            ),
            ("elsewhere", json!({"$ref": "https://example.com/schema"})),
            ("nothing", json!({"$ref": "#/$defs/none"})),
            ("dynamic", json!({"$dynamicRef": "#node"})),
            ("doubling", doubling),
            ("deep", deep),
            ("large", json!({"enum": (0..20_000).collect::<Vec<_>>()})),
        ] {
            assert_eq!(Cost::of(&schema), None, "{what}");
        }
    }

    #[test]
    fn large_arguments_are_worth_small_schemas_only() {
        let large = format!("[{}1]", "1,".repeat(100_000));
        assert!(Cost(10).admits(&large) && !Cost(1000).admits(&large));
        let text = format!("{:?}", "x".repeat(1_000_000));
        assert!(Cost(50).admits(&text) && !Cost(5000).admits(&text));
    }
}
