//! Who set which field: `metadata.managedFields` and server-side apply.
//!
//! * An **update** (create, PUT, patch) makes its manager the owner of what it changed.
//! * An **apply** makes its manager the owner of what it gives. What another manager owns with a
//!   different value is a conflict, unless forced; what this manager applied before and no longer
//!   gives is removed, unless somebody else owns it too.
//!
//! See <https://kubernetes.io/docs/reference/using-api/server-side-apply/>.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    field_set::{FieldSet, is_granular, list_element},
    schema::{ListType, Node},
};
use crate::local::status::Cause;

/// Who writes, through what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer<'a> {
    /// Field manager.
    pub manager: &'a str,
    /// API version of the request.
    pub api_version: &'a str,
    /// `status` or `scale`, or empty.
    pub subresource: &'a str,
    /// The member of the object that is not written this way, as path element: `f:status`. A default
    /// of the schema may appear in it, and nobody owns that.
    pub untouched: Option<&'a str>,
    /// The moment of the request, RFC 3339.
    pub now: &'a str,
}

impl Writer<'_> {
    /// What of some fields can have been written this way, and belongs to somebody.
    fn written(&self, fields: FieldSet) -> FieldSet {
        let mut fields = owned(fields);
        if let Some(element) = self.untouched {
            fields.remove(&[element]);
        }
        fields
    }
}

/// Other managers own what is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts {
    /// `Apply failed with 1 conflict: …`.
    pub message: String,
    /// One for each field.
    pub causes: Vec<Cause>,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: FieldSet,
}

/// Fields that belong to the server, whoever sends them.
const SERVER_FIELDS: &[&[&str]] = &[
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
];

/// Records that `writer` made `new` out of `old` by an update. Earlier entries are those that
/// `new` carries: a client may edit them, as `kubectl apply --server-side` does when it takes over
/// an object that was applied by the client before.
pub fn update(schema: &Node, old: &Value, new: &mut Value, writer: &Writer<'_>) {
    let changed = writer.written(FieldSet::changed(schema, old, new));
    let present = FieldSet::of(schema, new).with_parents();
    let mut entries = read(new);
    for entry in &mut entries {
        let mine = entry.manager == writer.manager
            && entry.operation == "Update"
            && entry.subresource == writer.subresource
            && entry.api_version == writer.api_version;
        // What is gone has no owner, and what this write changed has a new one.
        entry.fields = entry.fields.intersection(&present);
        if !mine {
            entry.fields = entry.fields.difference(&changed);
        }
    }
    if !changed.is_empty() {
        add(&mut entries, writer, "Update", |fields| fields.union(&changed));
    }
    write(new, entries);
}

/// The object that results from applying `applied` to `live`, with its managed fields.
///
/// # Errors
/// With every conflict, unless `force`.
pub fn apply(
    schema: &Node,
    live: &Value,
    applied: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Conflicts> {
    let given = owned(FieldSet::of(schema, applied));
    let mut entries = read(live);
    if entries.is_empty() && live["metadata"].get("uid").is_some() {
        // Whoever made it owns all of it.
        let before = Writer { manager: "before-first-apply", subresource: "", ..*writer };
        let all = writer.written(FieldSet::changed(schema, &json!({"metadata": {}}), live));
        add(&mut entries, &before, "Update", |_| all);
    }
    let mut merged = live.clone();
    merge(schema, &mut merged, applied);
    let changed = owned(FieldSet::changed(schema, live, &merged));

    let is_mine =
        |e: &Entry| e.manager == writer.manager && e.operation == "Apply" && e.subresource == writer.subresource;
    let conflicts: Vec<(&Entry, FieldSet)> = entries
        .iter()
        .filter(|e| !is_mine(e))
        .map(|e| (e, e.fields.intersection(&changed)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect();
    let allowed = if writer.manager == KUBECTL { last_applied_fields(schema, live) } else { FieldSet::default() };
    let conflicts: Vec<(&Entry, FieldSet)> = conflicts
        .into_iter()
        .map(|(entry, fields)| (entry, fields.difference(&allowed)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect();
    if !conflicts.is_empty() && !force {
        return Err(describe(&conflicts));
    }

    let before = entries.iter().find(|e| is_mine(e)).map(|e| e.fields.clone()).unwrap_or_default();
    for entry in entries.iter_mut().filter(|e| !is_mine(e)) {
        entry.fields = entry.fields.difference(&changed);
    }
    let elsewhere = entries.iter().filter(|e| !is_mine(e)).fold(FieldSet::default(), |all, e| all.union(&e.fields));
    let gone = before.difference(&given.with_parents()).difference(&elsewhere.with_parents());
    gone.erase(schema, &mut merged, &elsewhere.union(&given));
    // Time tells when a manager last changed the object, not when it last said the same.
    let time = if without_managers(&merged) == without_managers(live) { "" } else { writer.now };
    add(&mut entries, &Writer { now: time, ..*writer }, "Apply", |_| given.clone());
    if writer.manager == KUBECTL {
        note_applied(&mut merged, applied);
    }
    write(&mut merged, entries);
    Ok(merged)
}

/// Manager of `kubectl apply --server-side`. It takes over what was applied by the client before.
const KUBECTL: &str = "kubectl";
/// What the client applied, as `kubectl apply` notes it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The fields that the client applied, which the server-side apply of the same tool may change.
fn last_applied_fields(schema: &Node, live: &Value) -> FieldSet {
    let noted = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    let applied: Option<Value> = noted.and_then(|noted| serde_json::from_str(noted).ok());
    applied.map(|applied| FieldSet::of(schema, &applied)).unwrap_or_default()
}

/// Keeps the note of what was applied, so that a later apply by the client goes on from there.
fn note_applied(merged: &mut Value, applied: &Value) {
    let Some(note) = merged["metadata"].get_mut("annotations").and_then(|a| a.get_mut(LAST_APPLIED)) else { return };
    let mut applied = applied.clone();
    if let Some(metadata) = applied["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
        if metadata.get("annotations").is_some_and(|a| a.as_object().is_some_and(serde_json::Map::is_empty)) {
            metadata.remove("annotations");
        }
    }
    *note = format!("{applied}\n").into();
}

fn without_managers(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

fn owned(mut fields: FieldSet) -> FieldSet {
    fields.disown("f:metadata");
    for path in SERVER_FIELDS {
        fields.remove(path);
    }
    fields
}

/// Merges `applied` into `live` as the schema says.
fn merge(node: &Node, live: &mut Value, applied: &Value) {
    match (&mut *live, applied) {
        (Value::Object(target), Value::Object(given)) if is_granular(node, applied) => {
            for (name, value) in given {
                match (target.get_mut(name), node.member(name)) {
                    (Some(current), Some(child)) => merge(child, current, value),
                    _ => {
                        target.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Object(_), Value::Object(given)) if given.is_empty() && !node.atomic_map => {}
        (Value::Array(target), Value::Array(given)) if node.list_type != ListType::Atomic => {
            if let Some(child) = node.items.as_deref() {
                *target = merge_lists(node, child, target, given);
            }
        }
        _ => *live = applied.clone(),
    }
}

/// Items in the order of `given`; those that only `current` has keep their place between them.
fn merge_lists(node: &Node, child: &Node, current: &[Value], given: &[Value]) -> Vec<Value> {
    let element = |item: &Value| list_element(node, item);
    let is_given = |item: &Value| given.iter().any(|g| element(g) == element(item));
    let mut merged: Vec<Value> = Vec::new();
    let mut rest = current.iter().peekable();
    for item in given {
        // Up to the next item that is given too, in whatever order.
        while let Some(own) = rest.next_if(|c| !is_given(c)) {
            merged.push(own.clone());
        }
        rest.next_if(|c| is_given(c));
        let mut item_merged = current.iter().find(|c| element(c) == element(item)).cloned().unwrap_or(Value::Null);
        merge(child, &mut item_merged, item);
        merged.push(item_merged);
    }
    merged.extend(rest.filter(|c| !is_given(c)).cloned());
    merged
}

/// In the words of `structured-merge-diff/merge`: one conflict in one line, more by manager.
fn describe(conflicts: &[(&Entry, FieldSet)]) -> Conflicts {
    let mut causes = Vec::new();
    let mut by_manager: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (entry, fields) in conflicts {
        let using = if entry.operation == "Apply" { String::new() } else { format!(" using {}", entry.api_version) };
        let subresource = if entry.subresource.is_empty() {
            String::new()
        } else {
            format!(" with subresource {:?}", entry.subresource)
        };
        let who = format!("{:?}{subresource}{using}", entry.manager);
        for path in fields.paths() {
            causes.push(Cause {
                reason: "FieldManagerConflict",
                message: format!("conflict with {who}"),
                field: path.clone(),
            });
            by_manager.entry(who.clone()).or_default().push(path);
        }
    }
    let message = match causes.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        many => {
            let parts: Vec<String> = by_manager
                .iter()
                .map(|(who, paths)| format!("conflicts with {who}:\n- {}", paths.join("\n- ")))
                .collect();
            format!("Apply failed with {} conflicts: {}", many.len(), parts.join("\n"))
        }
    };
    Conflicts { message, causes }
}

fn add(entries: &mut Vec<Entry>, writer: &Writer<'_>, operation: &str, fields: impl FnOnce(&FieldSet) -> FieldSet) {
    let same = |e: &&mut Entry| {
        e.manager == writer.manager
            && e.operation == operation
            && e.subresource == writer.subresource
            && (operation == "Apply" || e.api_version == writer.api_version)
    };
    if let Some(entry) = entries.iter_mut().find(same) {
        let updated = fields(&entry.fields);
        if !writer.now.is_empty() {
            entry.time = writer.now.to_owned();
        }
        entry.fields = updated;
        entry.api_version = writer.api_version.to_owned();
    } else {
        entries.push(Entry {
            manager: writer.manager.to_owned(),
            operation: operation.to_owned(),
            api_version: writer.api_version.to_owned(),
            subresource: writer.subresource.to_owned(),
            time: writer.now.to_owned(),
            fields: fields(&FieldSet::default()),
        });
    }
}

fn read(object: &Value) -> Vec<Entry> {
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let entries = object["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .map(|entry| Entry {
            manager: text(entry, "manager"),
            operation: text(entry, "operation"),
            api_version: text(entry, "apiVersion"),
            subresource: text(entry, "subresource"),
            time: text(entry, "time"),
            fields: FieldSet::from_json(&entry["fieldsV1"]),
        })
        .collect()
}

fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.fields.is_empty());
    // As in Kubernetes: appliers first, then by time, then by name.
    entries.sort_by(|a, b| {
        (a.operation != "Apply", &a.time, &a.manager).cmp(&(b.operation != "Apply", &b.time, &b.manager))
    });
    let entries: Vec<Value> = entries
        .into_iter()
        .map(|e| {
            let mut entry = json!({
                "manager": e.manager,
                "operation": e.operation,
                "apiVersion": e.api_version,
                "fieldsType": "FieldsV1",
                "fieldsV1": e.fields.to_json(),
            });
            if !e.time.is_empty() {
                entry["time"] = e.time.into();
            }
            if !e.subresource.is_empty() {
                entry["subresource"] = e.subresource.into();
            }
            entry
        })
        .collect();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        if entries.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".into(), entries.into());
        }
    }
}

#[cfg(test)]
mod tests;
