//! What a request asks for, read from its path, query and headers.

use std::sync::Arc;

use http::{HeaderMap, Method, header};
use serde_json::Value;

use super::{
    decode,
    options::Options,
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

impl Review {
    /// The kind of object that asks.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Access => "SelfSubjectAccessReview",
            Self::Rules => "SelfSubjectRulesReview",
            Self::Identity => "SelfSubjectReview",
        }
    }
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
        _ => return Err(ApiError::no_handler()),
    })
}

fn place(registry: &Registry, group: &str, version: &str, rest: &[&str]) -> Result<Place, ApiError> {
    // The core group answers for itself; what belongs to no other group, nobody does.
    let nothing = || if group.is_empty() { ApiError::no_such_path() } else { ApiError::no_handler() };
    let find = |plural: &str| registry.find(group, version, plural).cloned().ok_or_else(nothing);
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
                _ if kind.custom => return Err(ApiError::not_found(&kind.subject(name))),
                _ => return Err(ApiError::no_such_path()),
            };
            (kind, Some((*name).to_owned()), subresource)
        }
        _ => return Err(nothing()),
    };
    if namespace.is_some() != kind.namespaced && (namespace.is_some() || name.is_some()) {
        return Err(nothing());
    }
    Ok(Place { kind, namespace, name, subresource })
}

/// The form of answer that a client prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object as it is.
    Object,
    /// A `Table`.
    Table,
    /// Metadata alone, of an object.
    Metadata,
    /// Metadata alone, of a list.
    MetadataList,
}

/// Reads the `Accept` header: the first form that is served wins.
pub fn form(headers: &HeaderMap, custom: bool) -> Result<Form, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    for choice in accept.split(',') {
        let mut parts = choice.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !matches!(media, "application/json" | "application/*" | "*/*" | "") {
            continue;
        }
        let as_ = parts.find_map(|p| p.strip_prefix("as="));
        match as_ {
            None => return Ok(Form::Object),
            Some("Table") => return Ok(Form::Table),
            Some("PartialObjectMetadata") => return Ok(Form::Metadata),
            Some("PartialObjectMetadataList") => return Ok(Form::MetadataList),
            Some(_) => {}
        }
    }
    Err(if custom || accept.contains("as=") {
        ApiError::not_acceptable(&decode::ACCEPTED)
    } else {
        ApiError::no_representation(&decode::ACCEPTED)
    })
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
    let subject = place.kind.subject("");
    let verb = match (method.as_str(), object) {
        ("GET", true) => Verb::Get,
        ("GET", false) if options.watch => Verb::Watch,
        ("GET", false) => Verb::List,
        ("POST", false) => Verb::Create,
        ("POST", true) if place.kind.custom => Verb::Create,
        ("PUT", true) => Verb::Update,
        ("PATCH", true) => Verb::Patch,
        ("DELETE", true) => Verb::Delete,
        ("DELETE", false) => Verb::DeleteCollection,
        ("PUT" | "PATCH", false) if place.kind.custom => return Err(ApiError::bad_request("name must be provided")),
        _ => return Err(ApiError::method_not_allowed()),
    };
    // Parts of an object are read and written, but do not come and go.
    match verb {
        Verb::Create | Verb::Delete if place.subresource != Subresource::None => {
            if !place.kind.custom {
                return Err(ApiError::method_not_allowed());
            }
            let word = if verb == Verb::Create { "create" } else { "delete" };
            Err(ApiError::not_supported(&subject, word))
        }
        verb => Ok(verb),
    }
}

/// The name in an object's metadata, empty when absent.
pub fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
