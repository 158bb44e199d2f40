//! All CustomResourceDefinitions of Perch, as they are written to `crds/` and served by the
//! embedded control plane.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::{canary_release::CanaryRelease, mcp_server::McpServer};

/// Every definition, in the order in which they are installed.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![McpServer::crd(), CanaryRelease::crd()]
}
