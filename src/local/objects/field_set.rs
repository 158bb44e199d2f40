//! Sets of fields of an object, in the `FieldsV1` form of `metadata.managedFields`.
//!
//! `f:name` is a member, `k:{…}` an element of a list-map by its keys, `v:…` an element of a set,
//! and `.` the item itself. See `sigs.k8s.io/structured-merge-diff/fieldpath`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::schema::{ListType, Node};

/// A set of fields: for each path element, whether it is itself in the set, and what is below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(BTreeMap<String, Entry>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    member: bool,
    below: FieldSet,
}

impl FieldSet {
    /// Every field that `value` gives: leaves, and the items that hold nothing or are list items.
    pub fn of(node: &Node, value: &Value) -> Self {
        let mut set = Self::default();
        set.collect(node, value);
        set
    }

    fn collect(&mut self, node: &Node, value: &Value) {
        for (element, child, value) in children(node, value) {
            let entry = self.0.entry(element.clone()).or_default();
            let mut below = Self::default();
            if is_granular(child, value) {
                below.collect(child, value);
            }
            // An item of a list is itself owned; an object only when nothing below it is.
            entry.member = below.is_empty() || !element.starts_with("f:");
            entry.below = below;
        }
    }

    /// Every field whose value differs between two objects, additions included.
    pub fn changed(node: &Node, old: &Value, new: &Value) -> Self {
        let mut set = Self::default();
        let before: BTreeMap<String, (&Node, &Value)> =
            children(node, old).into_iter().map(|(element, child, value)| (element, (child, value))).collect();
        for (element, child, value) in children(node, new) {
            let entry = match before.get(&element) {
                Some((_, previous)) if *previous == value => continue,
                Some((_, previous)) if are_merged(child, previous, value) => {
                    Entry { member: false, below: Self::changed(child, previous, value) }
                }
                // All of it is new, the objects and lists between as well.
                _ => {
                    let mut below = Self::default();
                    if is_granular(child, value) {
                        below.collect(child, value);
                    }
                    Entry { member: true, below: below.with_parents() }
                }
            };
            if entry.member || !entry.below.is_empty() {
                set.0.insert(element, entry);
            }
        }
        set
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is in either set.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (element, entry) in &other.0 {
            let mine = all.0.entry(element.clone()).or_default();
            mine.member |= entry.member;
            mine.below = mine.below.union(&entry.below);
        }
        all
    }

    /// What is in this set and not in the other.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine && !theirs, true)
    }

    /// What is in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine && theirs, false)
    }

    fn combine(&self, other: &Self, keep: fn(bool, bool) -> bool, alone: bool) -> Self {
        let mut set = Self::default();
        for (element, mine) in &self.0 {
            let entry = match other.0.get(element) {
                Some(theirs) => Entry {
                    member: keep(mine.member, theirs.member),
                    below: mine.below.combine(&theirs.below, keep, alone),
                },
                None if alone => mine.clone(),
                None => continue,
            };
            if entry.member || !entry.below.is_empty() {
                set.0.insert(element.clone(), entry);
            }
        }
        set
    }

    /// This set with everything above its fields: an object is there when something in it is.
    pub fn with_parents(&self) -> Self {
        let parents = |entry: &Entry| Entry { member: true, below: entry.below.with_parents() };
        Self(self.0.iter().map(|(element, entry)| (element.clone(), parents(entry))).collect())
    }

    /// Takes away a field, but nothing below it.
    pub fn disown(&mut self, element: &str) {
        if let Some(entry) = self.0.get_mut(element) {
            entry.member = false;
            if entry.below.is_empty() {
                self.0.remove(element);
            }
        }
    }

    /// Takes away a field and all below it, given by its elements (`["f:metadata", "f:uid"]`).
    pub fn remove(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => {
                self.0.remove(*last);
            }
            [first, rest @ ..] => {
                if let Some(entry) = self.0.get_mut(*first) {
                    entry.below.remove(rest);
                    if !entry.member && entry.below.is_empty() {
                        self.0.remove(*first);
                    }
                }
            }
        }
    }

    /// The paths of all fields in the set, as people read them: `.spec.env[name="A"].value`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths("", &mut paths);
        paths
    }

    /// Fields of a level come before those below it.
    fn collect_paths(&self, prefix: &str, paths: &mut Vec<String>) {
        let mut below = Vec::new();
        for (element, entry) in &self.0 {
            let path = match element.split_at_checked(2).unwrap_or(("", element)) {
                ("f:", name) => format!("{prefix}.{name}"),
                ("k:", keys) => {
                    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                    let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    format!("{prefix}[{}]", keys.join(","))
                }
                (_, value) => format!("{prefix}[={value}]"),
            };
            if entry.member {
                paths.push(path.clone());
            }
            below.push((path, &entry.below));
        }
        for (path, fields) in below {
            fields.collect_paths(&path, paths);
        }
    }

    /// The `FieldsV1` form.
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.iter().map(|(element, entry)| (element.clone(), entry.to_json())).collect())
    }

    /// Reads the `FieldsV1` form; what is not of that form is left out.
    pub fn from_json(fields: &Value) -> Self {
        let Value::Object(fields) = fields else { return Self::default() };
        let entries = fields.iter().filter(|(element, _)| *element != "." && element.len() >= 2);
        Self(entries.map(|(element, below)| (element.clone(), Entry::from_json(below))).collect())
    }

    /// Removes from `value` everything in the set. An object or list that this leaves empty goes
    /// too, unless `keep` has it.
    pub fn erase(&self, node: &Node, value: &mut Value, keep: &Self) {
        let none = Self::default();
        match value {
            Value::Object(map) => {
                for (element, entry) in &self.0 {
                    let Some(name) = element.strip_prefix("f:") else { continue };
                    let (Some(child), Some(member)) = (node.member(name), map.get_mut(name)) else { continue };
                    if entry.below.is_empty() {
                        map.remove(name);
                    } else {
                        let kept = keep.0.get(element);
                        entry.below.erase(child, member, kept.map_or(&none, |k| &k.below));
                        if is_empty(member) && !kept.is_some_and(|k| k.member) {
                            map.remove(name);
                        }
                    }
                }
            }
            Value::Array(items) => {
                let Some(child) = node.items.as_deref() else { return };
                items.retain_mut(|item| {
                    let Some(element) = list_element(node, item) else { return true };
                    let Some(entry) = self.0.get(&element) else { return true };
                    if entry.member {
                        return false;
                    }
                    entry.below.erase(child, item, keep.0.get(&element).map_or(&none, |k| &k.below));
                    true
                });
            }
            _ => {}
        }
    }
}

impl Entry {
    fn to_json(&self) -> Value {
        let mut json = self.below.to_json();
        if self.member
            && !self.below.is_empty()
            && let Value::Object(map) = &mut json
        {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        json
    }

    fn from_json(json: &Value) -> Self {
        let below = FieldSet::from_json(json);
        let member = below.is_empty() || json.get(".").is_some();
        Self { member, below }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Whether ownership goes below this value, rather than of the value as a whole.
pub(super) fn is_granular(node: &Node, value: &Value) -> bool {
    match value {
        Value::Object(map) => {
            !map.is_empty() && !node.atomic_map && (!node.properties.is_empty() || node.values.is_some())
        }
        Value::Array(items) => !items.is_empty() && node.list_type != ListType::Atomic,
        _ => false,
    }
}

/// Whether two values of one place are compared part by part, be they empty or not.
fn are_merged(node: &Node, old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(_), Value::Object(_)) => {
            !node.atomic_map && (!node.properties.is_empty() || node.values.is_some())
        }
        (Value::Array(_), Value::Array(_)) => node.list_type != ListType::Atomic,
        _ => false,
    }
}

/// The path element of an item of a set or list-map.
pub(super) fn list_element(node: &Node, item: &Value) -> Option<String> {
    match &node.list_type {
        ListType::Atomic => None,
        ListType::Set => Some(format!("v:{item}")),
        ListType::Map(keys) => {
            let keys: Map<String, Value> =
                keys.iter().filter_map(|k| Some((k.clone(), item.get(k)?.clone()))).collect();
            Some(format!("k:{}", Value::Object(keys)))
        }
    }
}

/// The parts of a value that have an owner of their own: path element, schema, value.
fn children<'a>(node: &'a Node, value: &'a Value) -> Vec<(String, &'a Node, &'a Value)> {
    match value {
        Value::Object(map) if is_granular(node, value) => {
            map.iter().filter_map(|(name, value)| Some((format!("f:{name}"), node.member(name)?, value))).collect()
        }
        Value::Array(items) if is_granular(node, value) => {
            let Some(child) = node.items.as_deref() else { return Vec::new() };
            items.iter().filter_map(|item| Some((list_element(node, item)?, child, item))).collect()
        }
        _ => Vec::new(),
    }
}
