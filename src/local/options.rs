//! The options in the query of a request, and what is wrong with them in the words of
//! `k8s.io/apimachinery/pkg/apis/meta`.

use http::{HeaderMap, Uri, header};

use super::{
    objects::names,
    status::{ApiError, Cause},
};

/// How strictly a body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Unknown fields go silently.
    Ignore,
    /// Unknown fields go, with a warning.
    Warn,
    /// Unknown fields are an error.
    Strict,
}

/// The options in a query.
#[derive(Clone, Debug)]
pub struct Options {
    /// `dryRun=All`
    pub dry_run: bool,
    /// Every `dryRun`.
    pub dry_runs: Vec<String>,
    /// `fieldManager`, or the program's name from the user agent.
    pub manager: String,
    /// Whether `fieldManager` was given.
    pub manager_given: bool,
    /// `fieldValidation`
    pub field_validation: FieldValidation,
    /// `fieldValidation` as it was given.
    pub field_validation_given: String,
    /// `force`, for apply.
    pub force: Option<bool>,
    /// `watch`
    pub watch: bool,
    /// `limit`
    pub limit: Option<usize>,
    /// `continue`
    pub continue_: Option<String>,
    /// `labelSelector`
    pub labels: String,
    /// `fieldSelector`
    pub fields: String,
    /// `resourceVersion`
    pub resource_version: Option<String>,
    /// `resourceVersionMatch`
    pub resource_version_match: Option<String>,
    /// `allowWatchBookmarks`
    pub bookmarks: bool,
    /// `sendInitialEvents`
    pub initial_events: Option<bool>,
    /// `timeoutSeconds`
    pub timeout_seconds: Option<u64>,
    /// `propagationPolicy`
    pub propagation: Option<String>,
    /// `includeObject`, for tables.
    pub include_object: Option<String>,
}

impl Options {
    /// Reads the query and the user agent.
    pub fn parse(uri: &Uri, headers: &HeaderMap) -> Result<Self, ApiError> {
        let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
        let mut options = Self {
            dry_run: false,
            dry_runs: Vec::new(),
            manager: agent.split('/').next().unwrap_or("unknown").chars().take(128).collect(),
            manager_given: false,
            field_validation: FieldValidation::Warn,
            field_validation_given: String::new(),
            force: None,
            watch: false,
            limit: None,
            continue_: None,
            labels: String::new(),
            fields: String::new(),
            resource_version: None,
            resource_version_match: None,
            bookmarks: false,
            initial_events: None,
            timeout_seconds: None,
            propagation: None,
            include_object: None,
        };
        for (key, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let value = value.into_owned();
            let truth = || !matches!(value.as_str(), "false" | "0");
            let number = || {
                value
                    .parse::<i64>()
                    .map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax")))
            };
            match key.as_ref() {
                "dryRun" => {
                    options.dry_run |= value == "All";
                    options.dry_runs.push(value);
                }
                "fieldManager" if !value.is_empty() => {
                    options.manager = value;
                    options.manager_given = true;
                }
                "fieldValidation" => {
                    options.field_validation = match value.as_str() {
                        "Ignore" => FieldValidation::Ignore,
                        "Strict" => FieldValidation::Strict,
                        _ => FieldValidation::Warn,
                    };
                    options.field_validation_given = value;
                }
                "force" => options.force = Some(truth()),
                "watch" => options.watch = truth(),
                "limit" => options.limit = usize::try_from(number()?).ok().filter(|n| *n > 0),
                "continue" if !value.is_empty() => options.continue_ = Some(value),
                "labelSelector" => options.labels = value,
                "fieldSelector" => options.fields = value,
                "resourceVersion" if !value.is_empty() => options.resource_version = Some(value),
                "resourceVersionMatch" if !value.is_empty() => options.resource_version_match = Some(value),
                "allowWatchBookmarks" => options.bookmarks = truth(),
                "sendInitialEvents" => options.initial_events = Some(truth()),
                "timeoutSeconds" => options.timeout_seconds = u64::try_from(number()?).ok(),
                "propagationPolicy" => options.propagation = Some(value),
                "includeObject" => options.include_object = Some(value),
                _ => {}
            }
        }
        Ok(options)
    }

    /// Checks the options of a write: `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    pub fn check_write(&self, kind: &str, is_apply: bool) -> Result<(), ApiError> {
        const MANAGER_LIMIT: usize = 128;
        let mut causes = Vec::new();
        let mut refuse = |reason, field: &str, message: String| {
            causes.push(Cause { reason, message, field: field.to_owned() });
        };
        if is_apply && !self.manager_given {
            let message = "Required value: is required for apply patch".to_owned();
            refuse("FieldValueRequired", "fieldManager", message);
        }
        if kind == "PatchOptions" && !is_apply && self.force.is_some() {
            let message = "Forbidden: may not be specified for non-apply patch".to_owned();
            refuse("FieldValueForbidden", "force", message);
        }
        if self.manager_given {
            if self.manager.len() > MANAGER_LIMIT {
                let message = format!("Too long: may not be more than {MANAGER_LIMIT} bytes");
                refuse("FieldValueTooLong", "fieldManager", message);
            }
            for (at, c) in self.manager.char_indices().filter(|(_, c)| c.is_control()) {
                let manager = names::quoted(&self.manager);
                let message =
                    format!("Invalid value: {manager}: invalid character U+{:04X} (at position {at})", c as u32);
                refuse("FieldValueInvalid", "fieldManager", message);
            }
        }
        if self.dry_runs.iter().any(|value| value != "All") {
            let message = format!("Unsupported value: {:?}: supported values: \"All\"", self.dry_runs);
            refuse("FieldValueNotSupported", "dryRun", message);
        }
        if !["", "Ignore", "Strict", "Warn"].contains(&self.field_validation_given.as_str()) {
            let given = names::quoted(&self.field_validation_given);
            let message =
                format!("Unsupported value: {given}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"");
            refuse("FieldValueNotSupported", "fieldValidation", message);
        }
        if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid_options(kind, &causes)) }
    }

    /// Checks the options of a list or watch.
    pub fn check_list(&self) -> Result<(), ApiError> {
        let mut causes = Vec::new();
        let mut forbid = |field: &str, what: &str| {
            let message = format!("Forbidden: {what}");
            causes.push(Cause { reason: "FieldValueForbidden", message, field: field.to_owned() });
        };
        let match_ = self.resource_version_match.as_deref();
        let mut supported: &[&str] = &[];
        if self.watch {
            if self.initial_events.is_some() && match_ != Some("NotOlderThan") {
                forbid(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                );
            }
            if match_.is_some() && self.initial_events.is_none() {
                forbid(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                );
            }
            supported = &["NotOlderThan"];
        } else {
            if match_.is_some() && self.resource_version.is_none() {
                forbid("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if match_ == Some("Exact") && self.resource_version.as_deref() == Some("0") {
                forbid("resourceVersionMatch", "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
            }
            if self.initial_events.is_some() {
                forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
            }
            if match_.is_some() {
                supported = &["Exact", "NotOlderThan", ""];
            }
        }
        // A watch from now on is taken as one that asks for the state first.
        let as_list = self.watch && self.resource_version.as_deref().is_none_or(|v| v == "0");
        if (match_.is_some() || as_list) && self.continue_.is_some() {
            forbid("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided");
        }
        if let Some(given) = match_.filter(|given| !supported.contains(given)) {
            let supported: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
            let given = names::quoted(given);
            let message = format!("Unsupported value: {given}: supported values: {}", supported.join(", "));
            causes.push(Cause { reason: "FieldValueNotSupported", message, field: "resourceVersionMatch".into() });
        }
        if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid_options("ListOptions", &causes)) }
    }
}
