//! What the policies say about a write, answered as the API server answers for a validating
//! webhook. Where they must know who signed an image, the write is given up, registries are asked,
//! and it is done again ([`crate::local::api`]).

use super::Call;
use crate::{
    admission::{self, Labels, Request},
    local::{
        request::Subresource,
        status::{ApiError, Cause},
        store::{Key, Transaction},
    },
};
use serde_json::Value;

/// Refuses what a policy denies; gives warnings.
pub(super) fn check(
    transaction: &Transaction<'_>,
    call: &Call,
    object: &Value,
    old: Option<&Value>,
) -> Result<Vec<String>, ApiError> {
    let Some(gate) = &call.gate else { return Ok(Vec::new()) };
    let kind = &call.kind;
    if kind.group != "perch.dev" || kind.kind != "McpServer" || call.subresource != Subresource::None {
        return Ok(Vec::new());
    }
    let labels = labels(transaction, &call.namespace);
    let request = Request { object, old, labels: labels.as_ref(), images: &call.images, now: call.now };
    let wanted = gate.wanted(&request);
    if !wanted.is_empty() {
        // No transaction waits for a registry.
        call.wanted.lock().expect("nobody panics while holding what is wanted").extend(wanted);
        return Err(ApiError::unexpected("who signed its images is not known yet"));
    }
    let decision = gate.decide(&request);
    let Some(message) = decision.message() else { return Ok(decision.warnings) };
    let causes: Vec<Cause> = decision
        .denied
        .iter()
        .map(|v| Cause {
            reason: "FieldValueForbidden",
            message: format!("{}: {}", v.rule, v.message),
            field: v.field.clone(),
        })
        .collect();
    Err(ApiError::denied(admission::NAME, &message).because(&causes).warn(decision.warnings))
}

fn labels(transaction: &Transaction<'_>, namespace: &str) -> Option<Labels> {
    let key = Key { resource: "namespaces".into(), namespace: String::new(), name: namespace.to_owned() };
    let namespace = transaction.get(&key)?.value();
    let labels = namespace["metadata"]["labels"].as_object()?;
    Some(labels.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect())
}
