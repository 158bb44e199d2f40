//! Failures as the Kubernetes `Status` object that every client understands.
//!
//! Codes, reasons and messages are those of `k8s.io/apimachinery/pkg/api/errors`.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use super::service::{Body, full};

/// A request that was refused, and what the client is told.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: StatusCode,
    /// Machine-readable reason in `CamelCase`, empty where Kubernetes gives none.
    pub reason: &'static str,
    /// What, why, and what to do.
    pub message: String,
    /// `details` of the Status, without empty members; none where Kubernetes gives none.
    pub details: Option<Map<String, Value>>,
    /// For `Warning` headers: what the client should know beside the error.
    pub warnings: Vec<String>,
    /// Whether the answer is the message alone.
    pub plain: bool,
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
        let mut cause = json!({"reason": self.reason, "message": self.message});
        if !self.field.is_empty() {
            cause["field"] = self.field.clone().into();
        }
        cause
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
        Self { code, reason, message: message.into(), details: None, warnings: Vec::new(), plain: false }
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
        Self {
            details: Some(subject.details(&subject.resource)),
            ..Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
        }
    }

    /// 403: admission refused it; the words are those of the API server for a webhook.
    pub fn denied(webhook: &str, why: &str) -> Self {
        let message = format!("admission webhook {webhook:?} denied the request: {why}");
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// 404: the object does not exist.
    pub fn not_found(subject: &Subject) -> Self {
        let message = format!("{} not found", subject.resource_name());
        Self {
            details: Some(subject.details(&subject.resource)),
            ..Self::new(StatusCode::NOT_FOUND, "NotFound", message)
        }
    }

    /// 404: the path is not served.
    pub fn no_such_path() -> Self {
        Self {
            details: Some(Map::new()),
            ..Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
        }
    }

    /// 405: the subresource is served, the verb is not.
    pub fn not_supported(subject: &Subject, verb: &str) -> Self {
        let message =
            format!("{verb} is not supported on resources of kind {:?}", subject.qualified(&subject.resource));
        let unnamed = Subject { name: String::new(), ..subject.clone() };
        Self {
            details: Some(unnamed.details(&subject.resource)),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
        }
    }

    /// 422: an error of which clients learn no more than that it is theirs.
    pub fn rejected() -> Self {
        Self {
            details: Some(Map::new()),
            ..Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid",
                "the server rejected our request due to an error in our request",
            )
        }
    }

    /// 500 without a reason, which is how Kubernetes answers what it does not expect.
    pub fn unexpected(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    /// 504: the client has seen a version that this server has not, and so talked to another one.
    /// `again` says that it may come to know it.
    pub fn version_too_large(asked: u64, current: u64, again: bool) -> Self {
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        let mut details = Map::new();
        details.insert("causes".into(), json!([cause]));
        if again {
            details.insert("retryAfterSeconds".into(), 1.into());
        }
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        Self { details: Some(details), ..Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message) }
    }

    /// The same with causes.
    #[must_use]
    pub fn because(mut self, causes: &[Cause]) -> Self {
        let details = self.details.get_or_insert_with(Map::new);
        details.insert("causes".into(), causes.iter().map(Cause::json).collect());
        self
    }

    /// The same with warnings.
    #[must_use]
    pub fn warn(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }

    /// The same with warnings before its own.
    #[must_use]
    pub fn also(mut self, warnings: &[String]) -> Self {
        self.warnings = [warnings, &self.warnings].concat();
        self
    }

    /// 404: no handler at all, which is not told as a `Status`.
    pub fn no_handler() -> Self {
        Self { plain: true, ..Self::new(StatusCode::NOT_FOUND, "", "404 page not found\n") }
    }

    /// 405: the resource is served, the verb is not.
    pub fn method_not_allowed() -> Self {
        Self {
            details: Some(Map::new()),
            ..Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )
        }
    }

    /// 406: no form of answer that the client accepts.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// 406: as built-in kinds answer it.
    pub fn no_representation(available: &[&str]) -> Self {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {}", available.join(", "));
        Self { details: Some(Map::new()), ..Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message) }
    }

    /// 406: what is asked for is not a list, or is one.
    pub fn not_that_form(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// 409: the name is taken.
    pub fn already_exists(subject: &Subject) -> Self {
        let message = format!("{} already exists", subject.resource_name());
        Self {
            details: Some(subject.details(&subject.resource)),
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
        Self {
            details: Some(subject.details(&subject.resource)),
            ..Self::new(StatusCode::CONFLICT, "Conflict", message)
        }
    }

    /// 409: other field managers own what is applied.
    pub fn apply_conflict(message: impl Into<String>, causes: &[Cause]) -> Self {
        let mut error = Self::new(StatusCode::CONFLICT, "Conflict", message);
        let mut details = Map::new();
        details.insert("causes".into(), causes.iter().map(Cause::json).collect());
        error.details = Some(details);
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
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// 415: a patch in a form that is not read, as built-in kinds answer it.
    pub fn unsupported_patch() -> Self {
        let message = "415: Unsupported Media Type";
        Self {
            details: Some(Map::new()),
            ..Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
        }
    }

    /// 422: the object breaks its schema.
    pub fn invalid(subject: &Subject, causes: &[Cause]) -> Self {
        let mut list: Vec<String> = Vec::new();
        for cause in causes {
            let said = format!("{}: {}", cause.field, cause.message);
            if !list.contains(&said) {
                list.push(said);
            }
        }
        let list = if list.len() == 1 { list[0].clone() } else { format!("[{}]", list.join(", ")) };
        let message = format!("{} \"{}\" is invalid: {list}", subject.qualified(&subject.kind), subject.name);
        let mut details = subject.details(&subject.kind);
        details.insert("causes".into(), causes.iter().map(Cause::json).collect());
        Self { details: Some(details), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message) }
    }

    /// 422: the options of a request (`CreateOptions`, `ListOptions`…) are not those that it takes.
    pub fn invalid_options(kind: &str, causes: &[Cause]) -> Self {
        let subject = Subject { group: "meta.k8s.io".into(), kind: kind.into(), ..Subject::default() };
        Self::invalid(&subject, causes)
    }

    /// 422: what a patch makes of an object is not one.
    pub fn invalid_patch(patched: &str, why: &str) -> Self {
        let message = format!("Invalid value: {}: {why}", crate::local::objects::names::quoted(patched));
        Self::invalid(&Subject::default(), &[Cause { reason: "FieldValueInvalid", message, field: "patch".into() }])
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
            "code": self.code.as_u16(),
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = Value::Object(details.clone());
        }
        status
    }

    /// The HTTP answer.
    pub fn into_response(self) -> Response<Body> {
        if self.plain {
            let mut response = Response::new(full(self.message));
            *response.status_mut() = self.code;
            let type_ = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, type_);
            return response;
        }
        let mut response = Response::new(full(self.status().to_string()));
        *response.status_mut() = self.code;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        add_warnings(response.headers_mut(), &self.warnings);
        response
    }
}

/// Adds `Warning` headers to an answer.
pub fn add_warnings(headers: &mut HeaderMap, warnings: &[String]) {
    for warning in warnings {
        let text = format!("299 - {:?}", warning.replace(['\r', '\n'], " "));
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.append(header::WARNING, value);
        }
    }
}
