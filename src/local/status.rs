//! Failures as the Kubernetes `Status` object that every client understands.
//!
//! Codes, reasons and messages are those of `k8s.io/apimachinery/pkg/api/errors`.

use http::{Response, StatusCode, header};
use serde_json::{Map, Value, json};

use super::service::{Body, full};

/// A request that was refused, and what the client is told.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: StatusCode,
    /// Machine-readable reason in `CamelCase`.
    pub reason: &'static str,
    /// What, why, and what to do.
    pub message: String,
    /// `details` of the Status, without empty members.
    pub details: Map<String, Value>,
}

/// One cause of an invalid object, under `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable reason, for example `FieldValueInvalid`.
    pub reason: &'static str,
    /// What is wrong.
    pub message: String,
    /// Path of the field, `spec.replicas`.
    pub field: String,
}

impl Cause {
    fn json(&self) -> Value {
        json!({"reason": self.reason, "message": self.message, "field": self.field})
    }
}

/// What an error speaks of: `mcpservers.perch.dev "name"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// API group, empty for core.
    pub group: String,
    /// Plural of the kind.
    pub resource: String,
    /// Kind, where Kubernetes names it in this error.
    pub kind: String,
    /// Name of the object.
    pub name: String,
}

impl Subject {
    fn qualified(&self, what: &str) -> String {
        if self.group.is_empty() { what.to_owned() } else { format!("{what}.{}", self.group) }
    }

    fn resource_name(&self) -> String {
        format!("{} \"{}\"", self.qualified(&self.resource), self.name)
    }

    /// `details.kind` is the plural in all errors but Invalid, as in Kubernetes.
    fn details(&self, kind: &str) -> Map<String, Value> {
        let mut details = Map::new();
        for (key, value) in [("name", self.name.as_str()), ("group", self.group.as_str()), ("kind", kind)] {
            if !value.is_empty() {
                details.insert(key.into(), value.into());
            }
        }
        details
    }
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Map::new() }
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401: no or wrong credentials.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 403: refused whoever asks.
    pub fn forbidden(subject: &Subject, why: &str) -> Self {
        let message = format!("{} is forbidden: {why}", subject.resource_name());
        Self { details: subject.details(&subject.resource), ..Self::new(StatusCode::FORBIDDEN, "Forbidden", message) }
    }

    /// 404: the object does not exist.
    pub fn not_found(subject: &Subject) -> Self {
        let message = format!("{} not found", subject.resource_name());
        Self { details: subject.details(&subject.resource), ..Self::new(StatusCode::NOT_FOUND, "NotFound", message) }
    }

    /// 404: the path is not served.
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    /// 405: the resource is served, the verb is not.
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406: no form of answer that the client accepts.
    pub fn not_acceptable() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            "only the following media types are accepted: application/json",
        )
    }

    /// 409: the name is taken.
    pub fn already_exists(subject: &Subject) -> Self {
        let message = format!("{} already exists", subject.resource_name());
        Self {
            details: subject.details(&subject.resource),
            ..Self::new(StatusCode::CONFLICT, "AlreadyExists", message)
        }
    }

    /// 409: the object changed since the client read it.
    pub fn stale(subject: &Subject) -> Self {
        Self::conflict(
            subject,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409: a precondition does not hold.
    pub fn conflict(subject: &Subject, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {}: {why}", subject.resource_name());
        Self { details: subject.details(&subject.resource), ..Self::new(StatusCode::CONFLICT, "Conflict", message) }
    }

    /// 409: other field managers own what is applied.
    pub fn apply_conflict(message: impl Into<String>, causes: &[Cause]) -> Self {
        let mut error = Self::new(StatusCode::CONFLICT, "Conflict", message);
        error.details.insert("causes".into(), causes.iter().map(Cause::json).collect());
        error
    }

    /// 410: the resource version is older than what is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// 413: the body is larger than what is read.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// 413: the object is larger than what is kept.
    pub fn object_too_large(size: usize, limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: the object has {size} bytes and the limit is {limit}"),
        )
    }

    /// 415: a body in a form that is not read.
    pub fn unsupported_media_type(given: &str, accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {} (got {given:?})",
            accepted.join(", ")
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// 422: the object breaks its schema.
    pub fn invalid(subject: &Subject, causes: &[Cause]) -> Self {
        let list: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let list = if list.len() == 1 { list[0].clone() } else { format!("[{}]", list.join(", ")) };
        let message = format!("{} \"{}\" is invalid: {list}", subject.qualified(&subject.kind), subject.name);
        let mut details = subject.details(&subject.kind);
        details.insert("causes".into(), causes.iter().map(Cause::json).collect());
        Self { details, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message) }
    }

    /// 500: the store failed. The client may try again.
    pub fn store(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        if !self.details.is_empty() {
            status["details"] = Value::Object(self.details.clone());
        }
        status
    }

    /// The HTTP answer.
    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(full(self.status().to_string()));
        *response.status_mut() = self.code;
        response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        response
    }
}
