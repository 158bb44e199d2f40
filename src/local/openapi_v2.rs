//! OpenAPI v2, in the one form and for the one question for which kubectl still asks for it: which
//! options a PATCH of a kind takes. It asks so before it applies a `List`.
//!
//! The message numbers are those of gnostic's `openapiv2/OpenAPIv2.proto`.

use http::{HeaderMap, HeaderValue, Response, header};
use prost::Message;

use super::{
    registry::{Kind, Registry},
    service::{Body, full},
    status::ApiError,
};

const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPathItem {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "2")]
    non_body: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(message, optional, tag = "3")]
    query: Option<QueryParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    type_: String,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "2")]
    yaml: String,
}

/// `/openapi/v2`
pub fn document(registry: &Registry, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !accept.contains("proto-openapi.spec.v2") {
        return Err(ApiError::not_acceptable(&[MEDIA_TYPE]));
    }
    let document = Document {
        swagger: "2.0".into(),
        info: Some(Info { title: "Perch".into(), version: concat!("v", env!("CARGO_PKG_VERSION")).into() }),
        paths: Some(Paths { path: registry.kinds().filter(|k| k.writable).map(|k| path(k)).collect() }),
    };
    let mut response = Response::new(full(document.encode_to_vec()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    Ok(response)
}

fn path(kind: &Kind) -> NamedPathItem {
    let query = |name: &str| {
        let query = QueryParameter { place: "query".into(), name: name.into(), type_: "string".into() };
        ParametersItem { parameter: Some(Parameter { non_body: Some(NonBodyParameter { query: Some(query) }) }) }
    };
    let yaml = format!("group: {:?}\nkind: {}\nversion: {}\n", kind.group, kind.kind, kind.version);
    let patch = Operation {
        parameters: ["dryRun", "fieldManager", "fieldValidation", "force"].map(query).to_vec(),
        vendor_extension: vec![NamedAny { name: "x-kubernetes-group-version-kind".into(), value: Some(Any { yaml }) }],
    };
    let base = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let name = format!("{base}/{}{scope}/{}/{{name}}", kind.version, kind.plural);
    NamedPathItem { name, value: Some(PathItem { patch: Some(patch) }) }
}
