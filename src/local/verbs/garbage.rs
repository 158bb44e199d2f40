//! What goes along when an object goes: the objects that it owned, and namespaces that are empty.
//!
//! In a cluster the garbage collector does this some time later; here it is part of the same
//! transaction, so nothing is left behind by a crash in between.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Call, update::finalizers};
use crate::local::store::{Key, Stored, Transaction};

/// Holds an owner until what it owns is gone.
pub const FOREGROUND: &str = "foregroundDeletion";

/// Removes an object that nothing holds any more, and then what hung on it. Returns its last
/// state.
pub fn remove(transaction: &mut Transaction<'_>, key: &Key, now: Timestamp) -> Option<Value> {
    let last = transaction.delete(key)?.value();
    delete_owned(transaction, &last, now);
    release_owners(transaction, &last, now);
    if !key.namespace.is_empty() {
        settle_namespace(transaction, &key.namespace, now);
    }
    Some(last)
}

/// The objects that name this one as their owner.
pub fn dependents(transaction: &Transaction<'_>, owner: &Value) -> Vec<Arc<Stored>> {
    let Some(uid) = owner["metadata"]["uid"].as_str() else { return Vec::new() };
    let namespace = owner["metadata"]["namespace"].as_str().unwrap_or_default();
    let in_reach = |key: &Key| namespace.is_empty() || key.namespace == namespace;
    // A UID is found in the bytes much faster than in trees; few objects pass to the second test.
    let mut found = transaction.select(in_reach);
    found.retain(|s| {
        memchr::memmem::find(&s.json, uid.as_bytes()).is_some() && owner_uids(&s.value()).any(|u| u == uid)
    });
    found
}

fn owner_uids(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["ownerReferences"].as_array().into_iter().flatten().filter_map(|o| o["uid"].as_str())
}

/// Takes an owner out of the references of everything that it owns.
pub fn orphan(transaction: &mut Transaction<'_>, owner: &Value) {
    for stored in dependents(transaction, owner) {
        disown(transaction, &stored, owner);
    }
}

fn disown(transaction: &mut Transaction<'_>, stored: &Stored, owner: &Value) {
    let mut object = stored.value();
    if let Some(owners) = object["metadata"]["ownerReferences"].as_array_mut() {
        owners.retain(|o| o["uid"] != owner["metadata"]["uid"]);
        if owners.is_empty()
            && let Some(metadata) = object["metadata"].as_object_mut()
        {
            metadata.remove("ownerReferences");
        }
    }
    forget_owner(&mut object, owner["metadata"]["uid"].as_str().unwrap_or_default());
    transaction.put(stored.key.clone(), object);
}

/// Nobody owns a field that is gone.
fn forget_owner(object: &mut Value, uid: &str) {
    let element = format!("k:{}", json!({"uid": uid}));
    let all = object["metadata"].get("ownerReferences").is_none();
    let entries = object["metadata"]["managedFields"].as_array_mut().into_iter().flatten();
    for fields in entries.filter_map(|entry| entry["fieldsV1"].get_mut("f:metadata")?.as_object_mut()) {
        if all {
            fields.remove("f:ownerReferences");
        } else if let Some(owners) = fields.get_mut("f:ownerReferences").and_then(Value::as_object_mut) {
            owners.remove(&element);
        }
    }
    if let Some(entries) = object["metadata"]["managedFields"].as_array_mut() {
        for entry in entries.iter_mut() {
            let empty = entry["fieldsV1"].get("f:metadata").and_then(Value::as_object).is_some_and(Map::is_empty);
            if let Some(fields) = entry["fieldsV1"].as_object_mut().filter(|_| empty) {
                fields.remove("f:metadata");
            }
        }
        entries.retain(|entry| entry["fieldsV1"].as_object().is_some_and(|fields| !fields.is_empty()));
    }
}

/// Deletes an object whose owners are all gone already. A controller that makes an object for an
/// owner that was deleted in the meantime would leave it behind. Owners of kinds that are not here
/// may live elsewhere, and count as there.
pub fn collect_if_orphaned(transaction: &mut Transaction<'_>, call: &Call, key: &Key) {
    let Some(stored) = transaction.get(key) else { return };
    let object = stored.value();
    let Some(owners) = object["metadata"]["ownerReferences"].as_array().filter(|owners| !owners.is_empty()) else {
        return;
    };
    let text = |owner: &Value, field: &str| owner[field].as_str().unwrap_or_default().to_owned();
    let gone = owners.iter().all(|owner| {
        let kind = call.registry.of_owner(&text(owner, "apiVersion"), &text(owner, "kind"));
        kind.is_some_and(|kind| {
            let namespace = if kind.namespaced { key.namespace.clone() } else { String::new() };
            let key = Key { resource: kind.storage.clone(), namespace, name: text(owner, "name") };
            transaction.get(&key).is_none_or(|found| found.value()["metadata"]["uid"] != owner["uid"])
        })
    });
    if gone {
        begin(transaction, key, call.now);
    }
}

/// Starts the deletion of everything that an object owns, before the object itself goes.
pub fn delete_dependents(transaction: &mut Transaction<'_>, key: &Key, now: Timestamp) {
    if let Some(owner) = transaction.get(key) {
        for stored in dependents(transaction, &owner.value()) {
            begin(transaction, &stored.key, now);
        }
    }
}

/// Deletes what a removed object owned, where it was the last owner.
fn delete_owned(transaction: &mut Transaction<'_>, owner: &Value, now: Timestamp) {
    for stored in dependents(transaction, owner) {
        let object = stored.value();
        let uid = owner["metadata"]["uid"].as_str().unwrap_or_default();
        let others: Vec<&str> = owner_uids(&object).filter(|u| *u != uid).collect();
        if others.iter().all(|uid| !exists(transaction, uid)) {
            begin(transaction, &stored.key, now);
        } else {
            disown(transaction, &stored, owner);
        }
    }
}

fn exists(transaction: &Transaction<'_>, uid: &str) -> bool {
    let needle = format!("\"uid\":\"{uid}\"");
    transaction
        .select(|_| true)
        .iter()
        .any(|s| memchr::memmem::find(&s.json, needle.as_bytes()).is_some() && s.value()["metadata"]["uid"] == *uid)
}

/// Marks an object as being deleted, and removes it at once when nothing holds it.
fn begin(transaction: &mut Transaction<'_>, key: &Key, now: Timestamp) {
    let Some(stored) = transaction.get(key) else { return };
    let mut object = stored.value();
    if finalizers(&object).is_empty() {
        remove(transaction, key, now);
    } else if object["metadata"].get("deletionTimestamp").is_none() {
        object["metadata"]["deletionTimestamp"] = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        transaction.put(key.clone(), object);
    }
}

/// Lets owners go that waited for the last object that they own.
fn release_owners(transaction: &mut Transaction<'_>, gone: &Value, now: Timestamp) {
    let uids: Vec<String> = owner_uids(gone).map(str::to_owned).collect();
    if uids.is_empty() {
        return;
    }
    for stored in transaction.select(|_| true) {
        let mut object = stored.value();
        let waits = finalizers(&object).contains(&FOREGROUND) && object["metadata"].get("deletionTimestamp").is_some();
        if !waits
            || !uids.iter().any(|uid| object["metadata"]["uid"] == **uid)
            || !dependents(transaction, &object).is_empty()
        {
            continue;
        }
        let left: Vec<&str> = finalizers(&object).into_iter().filter(|f| *f != FOREGROUND).collect();
        let left = json!(left);
        let free = left.as_array().is_some_and(Vec::is_empty);
        if free {
            remove(transaction, &stored.key, now);
        } else {
            object["metadata"]["finalizers"] = left;
            transaction.put(stored.key.clone(), object);
        }
    }
}

/// Starts the deletion of everything in a namespace, and of the namespace when that is all.
pub fn empty_namespace(transaction: &mut Transaction<'_>, namespace: &str, now: Timestamp) {
    for stored in transaction.select(|key| key.namespace == namespace) {
        begin(transaction, &stored.key, now);
    }
    settle_namespace(transaction, namespace, now);
}

/// Removes a namespace that is being deleted and holds nothing any more.
pub fn settle_namespace(transaction: &mut Transaction<'_>, namespace: &str, now: Timestamp) {
    let key = Key { resource: "namespaces".into(), namespace: String::new(), name: namespace.to_owned() };
    let Some(stored) = transaction.get(&key) else { return };
    let object = stored.value();
    let terminating = object["metadata"].get("deletionTimestamp").is_some();
    if terminating && finalizers(&object).is_empty() && transaction.select(|key| key.namespace == namespace).is_empty()
    {
        transaction.delete(&key);
        delete_owned(transaction, &object, now);
    }
}
