//! AdmissionReview v1 (<https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>):
//! from a request to its response.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    admission::{Gate, Labels, Request},
    policy::{Images, Wanted},
};

/// Why a review gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// It is no review.
    #[error("the body is no AdmissionReview of admission.k8s.io/v1: {0}")]
    Malformed(String),
}

/// What is asked.
pub struct Review {
    uid: String,
    /// Namespace of the object.
    pub namespace: String,
    object: Value,
    old: Option<Value>,
    judged: bool,
}

impl Review {
    /// Reads a review.
    pub fn read(body: &[u8]) -> Result<Self, ReviewError> {
        let mut review: Value =
            serde_json::from_slice(body).map_err(|error| ReviewError::Malformed(error.to_string()))?;
        let malformed = |what: &str| ReviewError::Malformed(what.to_owned());
        if review["apiVersion"] != "admission.k8s.io/v1" || review["kind"] != "AdmissionReview" {
            return Err(malformed("apiVersion or kind differs"));
        }
        let request = &mut review["request"];
        let uid =
            request["uid"].as_str().filter(|u| !u.is_empty()).ok_or_else(|| malformed("it has no request.uid"))?;
        let uid = uid.to_owned();
        let written = matches!(request["operation"].as_str(), Some("CREATE" | "UPDATE"));
        let is_server = request["kind"]["group"] == "perch.dev" && request["kind"]["kind"] == "McpServer";
        let whole = request["subResource"].as_str().unwrap_or_default().is_empty();
        let object = request["object"].take();
        if written && is_server && whole && !object.is_object() {
            return Err(malformed("it has no request.object"));
        }
        let old = request["oldObject"].take();
        Ok(Self {
            uid,
            namespace: request["namespace"].as_str().unwrap_or_default().to_owned(),
            object,
            old: old.is_object().then_some(old),
            judged: written && is_server && whole,
        })
    }

    fn request<'a>(&'a self, labels: Option<&'a Labels>, images: &'a Images, now: Timestamp) -> Request<'a> {
        Request { object: &self.object, old: self.old.as_ref(), labels, images, now }
    }

    /// The images about which registries must be asked first.
    pub fn wanted(&self, gate: &Gate, labels: Option<&Labels>, now: Timestamp) -> Vec<Wanted> {
        if self.judged { gate.wanted(&self.request(labels, &Images::new(), now)) } else { Vec::new() }
    }

    /// Judges it, with what registries say about its images.
    pub fn answer(&self, gate: &Gate, labels: Option<&Labels>, images: &Images, now: Timestamp) -> Value {
        let mut response = json!({"uid": self.uid, "allowed": true});
        if self.judged {
            let decision = gate.decide(&self.request(labels, images, now));
            if let Some(message) = decision.message() {
                let causes = decision.denied.iter().map(|v| {
                    json!({"reason": "FieldValueForbidden", "message": format!("{}: {}", v.rule, v.message), "field": v.field})
                });
                response["allowed"] = false.into();
                response["status"] = json!({
                    "status": "Failure", "code": 403, "reason": "Forbidden", "message": message,
                    "details": {"causes": causes.collect::<Vec<_>>()},
                });
            }
            if !decision.warnings.is_empty() {
                response["warnings"] = decision.warnings.into();
            }
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::mcp_server::GovernanceLevel,
        policy::{Mode, Scope},
    };

    fn review(operation: &str, object: Value) -> Value {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u1", "operation": operation, "namespace": "default",
            "kind": {"group": "perch.dev", "version": "v1alpha1", "kind": "McpServer"},
            "object": object, "oldObject": null}})
    }

    fn server() -> Value {
        json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a"},
            "spec": {"image": "x:1", "podTemplate": {"spec": {"securityContext": {"runAsUser": 0}}}}})
    }

    fn answer(review: &Value, mode: Mode) -> Value {
        let gate = Gate::new(Scope { level: GovernanceLevel::Medium, mode });
        let review = Review::read(review.to_string().as_bytes()).unwrap();
        review.answer(&gate, None, &Images::new(), Timestamp::UNIX_EPOCH)["response"].take()
    }

    #[test]
    fn a_root_server_is_denied_or_warned_about() {
        let denied = answer(&review("CREATE", server()), Mode::Deny);
        assert_eq!((&denied["uid"], &denied["allowed"]), (&json!("u1"), &json!(false)));
        assert_eq!(denied["status"]["code"], 403);
        let message = denied["status"]["message"].as_str().unwrap();
        assert!(message.contains("run-as-non-root") && message.contains("runAsUser: 10001"), "{message}");
        let warned = answer(&review("CREATE", server()), Mode::Warn);
        assert_eq!(warned["allowed"], true);
        assert!(warned["warnings"][0].as_str().unwrap().contains("run-as-non-root"), "{warned}");
    }

    #[test]
    fn what_is_not_asked_about_is_allowed() {
        assert_eq!(answer(&review("DELETE", Value::Null), Mode::Deny)["allowed"], true);
        let mut status = review("UPDATE", server());
        status["request"]["subResource"] = "status".into();
        assert_eq!(answer(&status, Mode::Deny)["allowed"], true);
        let mut other = review("CREATE", server());
        other["request"]["kind"]["kind"] = "Other".into();
        assert_eq!(answer(&other, Mode::Deny)["allowed"], true);
    }

    #[test]
    fn what_is_no_review_is_an_error_and_no_yes() {
        for body in ["", "{}", "[1]", r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}"#] {
            assert!(Review::read(body.as_bytes()).is_err(), "{body}");
        }
        assert!(Review::read(review("CREATE", json!("text")).to_string().as_bytes()).is_err());
        assert!(Review::read("[".repeat(100_000).as_bytes()).is_err(), "depth is bounded");
    }
}
