//! The rules by which kstatus reads any custom resource, as `sigs.k8s.io/cli-utils` documents them
//! in `pkg/kstatus/README.md`. Flux and Helm 4 wait by them.

use serde_json::Value;

/// What kstatus calls an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KStatus {
    /// It is as declared.
    Current,
    /// On the way there.
    InProgress,
    /// It does not get there without a change.
    Failed,
    /// It is being deleted.
    Terminating,
}

/// The status of an object.
pub fn kstatus(object: &Value) -> KStatus {
    if object["metadata"]["deletionTimestamp"].is_string() {
        return KStatus::Terminating;
    }
    let (generation, observed) = (&object["metadata"]["generation"], &object["status"]["observedGeneration"]);
    if observed.is_i64() && generation.is_i64() && generation != observed {
        return KStatus::InProgress;
    }
    let conditions = object["status"]["conditions"].as_array();
    let conditions = || conditions.into_iter().flatten();
    for condition in conditions().filter(|c| c["status"] == "True") {
        match condition["type"].as_str() {
            Some("Reconciling") => return KStatus::InProgress,
            Some("Stalled") => return KStatus::Failed,
            _ => {}
        }
    }
    match conditions().find(|c| c["type"] == "Ready").and_then(|c| c["status"].as_str()) {
        Some("False" | "Unknown") => KStatus::InProgress,
        _ => KStatus::Current,
    }
}
