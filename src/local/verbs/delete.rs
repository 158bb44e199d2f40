//! DELETE: an object goes, or starts to.

use serde_json::{Value, json};

use super::{Call, existing, garbage, update};
use crate::local::{
    status::{ApiError, Cause, Subject},
    store::{Stored, Transaction},
};

/// What happens to the objects that an object owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// They go after it.
    #[default]
    Background,
    /// They go before it.
    Foreground,
    /// They stay, without owner.
    Orphan,
}

/// The options of a deletion.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// What happens to owned objects.
    pub propagation: Propagation,
    /// The UID that the object must have.
    pub uid: Option<String>,
    /// The resource version that the object must have.
    pub resource_version: Option<String>,
    /// `dryRun` in the body.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the options of the body and the policy of the query.
    pub fn parse(body: &Value, query: Option<&str>) -> Result<Self, ApiError> {
        let policy = body["propagationPolicy"].as_str().or(query);
        let orphan = body["orphanDependents"].as_bool();
        let mut causes = Vec::new();
        let mut refuse = |reason, field: &str, message: String| {
            causes.push(Cause { reason, message, field: field.to_owned() });
        };
        if let (Some(policy), Some(_)) = (policy, orphan) {
            let message =
                format!("Invalid value: {policy:?}: orphanDependents and deletionPropagation cannot be both set");
            refuse("FieldValueInvalid", "propagationPolicy", message);
        }
        let propagation = match policy {
            None if orphan == Some(true) => Propagation::Orphan,
            None | Some("Background") => Propagation::Background,
            Some("Foreground") => Propagation::Foreground,
            Some("Orphan") => Propagation::Orphan,
            Some(other) => {
                let message = format!(
                    "Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                );
                refuse("FieldValueNotSupported", "propagationPolicy", message);
                Propagation::Background
            }
        };
        let dry_run: Vec<&str> = body["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if dry_run.iter().any(|value| *value != "All") {
            let message = format!("Unsupported value: {dry_run:?}: supported values: \"All\"");
            refuse("FieldValueNotSupported", "dryRun", message);
        }
        if !causes.is_empty() {
            return Err(ApiError::invalid_options("DeleteOptions", &causes));
        }
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            propagation,
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
            dry_run: !dry_run.is_empty(),
        })
    }
}

/// Deletes an object, and returns the object while finalizers hold it, else a `Status`.
pub fn delete(
    transaction: &mut Transaction<'_>,
    call: &Call,
    name: &str,
    options: &DeleteOptions,
    dry_run: bool,
) -> Result<Value, ApiError> {
    let stored = existing(transaction, call, name)?;
    check(call, &stored, options)?;
    let object = stored.value();
    if call.kind.is_namespace() && ["default", "kube-system"].contains(&name) {
        return Err(ApiError::forbidden(&call.kind.subject(name), "this namespace may not be deleted"));
    }
    let left = begin(transaction, call, &stored, options.propagation);
    if let Some(mut left) = left {
        if dry_run {
            left["metadata"]["resourceVersion"] = stored.revision.to_string().into();
        }
        call.to_shown(&mut left);
        return Ok(left);
    }
    let mut details = json!({"name": name, "kind": call.kind.plural, "uid": object["metadata"]["uid"]});
    if !call.kind.group.is_empty() {
        details["group"] = call.kind.group.clone().into();
    }
    Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}))
}

/// Marks the object, does what the policy says to what it owns, and removes it when nothing holds
/// it. Returns the object when something does.
pub(super) fn begin(
    transaction: &mut Transaction<'_>,
    call: &Call,
    stored: &Stored,
    propagation: Propagation,
) -> Option<Value> {
    let mut object = stored.value();
    let marked = object["metadata"].get("deletionTimestamp").is_some();
    if propagation == Propagation::Orphan {
        garbage::orphan(transaction, &object);
    }
    let mut finalizers: Vec<String> = update::finalizers(&object).into_iter().map(str::to_owned).collect();
    let waits = propagation == Propagation::Foreground && !garbage::dependents(transaction, &object).is_empty();
    if waits && !finalizers.iter().any(|f| f == garbage::FOREGROUND) {
        finalizers.push(garbage::FOREGROUND.into());
    }
    if finalizers.is_empty() && !call.kind.is_namespace() {
        garbage::remove(transaction, &stored.key, call.now);
        return None;
    }
    if !marked {
        object["metadata"]["deletionTimestamp"] = call.timestamp().into();
        if !call.kind.is_namespace() {
            object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        }
        if call.kind.custom {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            object["metadata"]["generation"] = generation.into();
        }
    }
    if !finalizers.is_empty() {
        object["metadata"]["finalizers"] = finalizers.into();
    }
    if call.kind.is_namespace() {
        object["status"]["phase"] = "Terminating".into();
    }
    if object != stored.value() {
        transaction.put(stored.key.clone(), object);
    }
    if call.kind.is_namespace() {
        garbage::empty_namespace(transaction, &stored.key.name, call.now);
    } else if waits {
        garbage::delete_dependents(transaction, &stored.key, call.now);
    }
    transaction.get(&stored.key).map(|left| left.value())
}

fn check(call: &Call, stored: &Stored, options: &DeleteOptions) -> Result<(), ApiError> {
    let object = stored.value();
    // This error names the kind, not its plural.
    let subject = Subject { resource: call.kind.kind.clone(), ..call.kind.subject(&stored.key.name) };
    let real = object["metadata"]["uid"].as_str().unwrap_or_default();
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != real) {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({real}). The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(&subject, &why));
    }
    let real = stored.revision.to_string();
    if let Some(version) = options.resource_version.as_deref().filter(|version| *version != real) {
        let why = format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({real}). The object might have been modified"
        );
        return Err(ApiError::conflict(&subject, &why));
    }
    Ok(())
}
