//! What a request asks for, read from its path, query and headers.

use std::sync::Arc;

use http::{HeaderMap, Method, Uri, header};
use serde_json::Value;

use super::{
    registry::{Kind, Registry},
    status::ApiError,
};

/// What a path leads to.
#[derive(Debug)]
pub enum Target {
    /// `/version`
    Version,
    /// `/healthz`, `/livez`, `/readyz`
    Health,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/{group}`
    Group(String),
    /// `/api/v1`, `/apis/{group}/{version}`
    GroupVersion(String, String),
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiIndex,
    /// `/openapi/v3/apis/{group}/{version}`
    OpenApi(String, String),
    /// `…/selfsubjectaccessreviews`, `…/selfsubjectrulesreviews`, `…/selfsubjectreviews`
    Review(Review),
    /// A resource or one of its objects.
    Resource(Place),
}

/// What a client asks about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Review {
    /// Whether it may do something: `kubectl auth can-i`.
    Access,
    /// What it may do: `kubectl auth can-i --list`.
    Rules,
    /// Who it is: `kubectl auth whoami`.
    Identity,
}

/// A resource or one of its objects.
#[derive(Clone, Debug)]
pub struct Place {
    /// The kind.
    pub kind: Arc<Kind>,
    /// The namespace in the path.
    pub namespace: Option<String>,
    /// The object's name in the path.
    pub name: Option<String>,
    /// The part of the object that is meant.
    pub subresource: Subresource,
}

/// Part of an object with an address of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subresource {
    /// The object itself.
    #[default]
    None,
    /// Its status.
    Status,
    /// Its number of replicas, as `autoscaling/v1` Scale.
    Scale,
    /// The end of a namespace's finalizers.
    Finalize,
}

impl Subresource {
    /// As it stands in a path and in managed fields.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Finalize => "finalize",
        }
    }
}

/// Finds what a path leads to.
pub fn target(registry: &Registry, path: &str) -> Result<Target, ApiError> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    Ok(match parts.as_slice() {
        ["version"] => Target::Version,
        ["healthz" | "livez" | "readyz", ..] => Target::Health,
        ["api"] => Target::CoreVersions,
        ["apis"] => Target::Groups,
        ["openapi", "v2"] => Target::OpenApiV2,
        ["openapi", "v3"] => Target::OpenApiIndex,
        ["openapi", "v3", "api", version] => Target::OpenApi(String::new(), (*version).to_owned()),
        ["openapi", "v3", "apis", group, version] => Target::OpenApi((*group).to_owned(), (*version).to_owned()),
        ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] => Target::Review(Review::Access),
        ["apis", "authorization.k8s.io", "v1", "selfsubjectrulesreviews"] => Target::Review(Review::Rules),
        ["apis", "authentication.k8s.io", "v1", "selfsubjectreviews"] => Target::Review(Review::Identity),
        ["api", version] => Target::GroupVersion(String::new(), (*version).to_owned()),
        ["apis", group] => Target::Group((*group).to_owned()),
        ["apis", group, version] => Target::GroupVersion((*group).to_owned(), (*version).to_owned()),
        ["api", version, rest @ ..] => Target::Resource(place(registry, "", version, rest)?),
        ["apis", group, version, rest @ ..] => Target::Resource(place(registry, group, version, rest)?),
        _ => return Err(ApiError::no_such_path()),
    })
}

fn place(registry: &Registry, group: &str, version: &str, rest: &[&str]) -> Result<Place, ApiError> {
    let find = |plural: &str| registry.find(group, version, plural).cloned().ok_or_else(ApiError::no_such_path);
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && !matches!(rest, ["status" | "finalize"]) => {
            (Some((*namespace).to_owned()), rest)
        }
        rest => (None, rest),
    };
    let (kind, name, subresource) = match rest {
        [plural] => (find(plural)?, None, Subresource::None),
        [plural, name] => (find(plural)?, Some((*name).to_owned()), Subresource::None),
        [plural, name, subresource] => {
            let kind = find(plural)?;
            let subresource = match *subresource {
                "status" if kind.status || kind.is_namespace() => Subresource::Status,
                "scale" if kind.scale.is_some() => Subresource::Scale,
                "finalize" if kind.is_namespace() => Subresource::Finalize,
                _ => return Err(ApiError::no_such_path()),
            };
            (kind, Some((*name).to_owned()), subresource)
        }
        _ => return Err(ApiError::no_such_path()),
    };
    if namespace.is_some() != kind.namespaced && (namespace.is_some() || name.is_some()) {
        return Err(ApiError::no_such_path());
    }
    Ok(Place { kind, namespace, name, subresource })
}

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
    /// `fieldManager`, or the program's name from the user agent.
    pub manager: String,
    /// Whether `fieldManager` was given.
    pub manager_given: bool,
    /// `fieldValidation`
    pub field_validation: FieldValidation,
    /// `force`, for apply.
    pub force: bool,
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
            manager: agent.split('/').next().unwrap_or("unknown").chars().take(128).collect(),
            manager_given: false,
            field_validation: FieldValidation::Warn,
            force: false,
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
            let truth = || matches!(value.as_str(), "true" | "1" | "");
            let bad = |what: &str| ApiError::bad_request(format!("invalid value {value:?} for {key}: {what}"));
            match key.as_ref() {
                "dryRun" if value == "All" => options.dry_run = true,
                "dryRun" if !value.is_empty() => return Err(bad("the only dry run is \"All\"")),
                "fieldManager" if !value.is_empty() => {
                    if value.len() > 128 {
                        return Err(bad("may not be more than 128 bytes"));
                    }
                    options.manager = value;
                    options.manager_given = true;
                }
                "fieldValidation" => {
                    options.field_validation = match value.as_str() {
                        "Ignore" => FieldValidation::Ignore,
                        "" | "Warn" => FieldValidation::Warn,
                        "Strict" => FieldValidation::Strict,
                        _ => return Err(bad("supported values: \"Ignore\", \"Warn\", \"Strict\"")),
                    }
                }
                "force" => options.force = truth(),
                "watch" => options.watch = truth(),
                "limit" => options.limit = Some(value.parse().map_err(|_| bad("must be a number"))?).filter(|n| *n > 0),
                "continue" if !value.is_empty() => options.continue_ = Some(value),
                "labelSelector" => options.labels = value,
                "fieldSelector" => options.fields = value,
                "resourceVersion" if !value.is_empty() => options.resource_version = Some(value),
                "resourceVersionMatch" if !value.is_empty() => options.resource_version_match = Some(value),
                "allowWatchBookmarks" => options.bookmarks = truth(),
                "sendInitialEvents" => options.initial_events = Some(truth()),
                "timeoutSeconds" => options.timeout_seconds = value.parse().ok(),
                "propagationPolicy" => options.propagation = Some(value),
                "includeObject" => options.include_object = Some(value),
                _ => {}
            }
        }
        Ok(options)
    }
}

/// The form of answer that a client prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object as it is.
    Object,
    /// A `Table`.
    Table,
    /// Metadata alone.
    Metadata,
}

/// Reads the `Accept` header: the first form that is served wins.
pub fn form(headers: &HeaderMap) -> Result<Form, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    for choice in accept.split(',') {
        let mut parts = choice.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !matches!(media, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let as_ = parts.find_map(|p| p.strip_prefix("as="));
        match as_ {
            None => return Ok(Form::Object),
            Some("Table") => return Ok(Form::Table),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => return Ok(Form::Metadata),
            Some(_) => {}
        }
    }
    Err(ApiError::not_acceptable())
}

/// What is done with a resource, by method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// GET of an object.
    Get,
    /// GET of a resource.
    List,
    /// GET of a resource with `watch`.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE of an object.
    Delete,
    /// DELETE of a resource.
    DeleteCollection,
}

/// The verb of a request.
pub fn verb(method: &Method, place: &Place, options: &Options) -> Result<Verb, ApiError> {
    let object = place.name.is_some();
    Ok(match (method.as_str(), object) {
        ("GET", _) if options.watch => Verb::Watch,
        ("GET", true) => Verb::Get,
        ("GET", false) => Verb::List,
        ("POST", false) => Verb::Create,
        ("PUT", true) => Verb::Update,
        ("PATCH", true) => Verb::Patch,
        ("DELETE", true) => Verb::Delete,
        ("DELETE", false) => Verb::DeleteCollection,
        _ => return Err(ApiError::method_not_allowed()),
    })
}

/// The name in an object's metadata, empty when absent.
pub fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
