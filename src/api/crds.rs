//! All CustomResourceDefinitions of Perch, as they are written to `crds/` and served by the
//! embedded control plane.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps,
};
use kube::CustomResourceExt;

use super::{canary_release::CanaryRelease, mcp_server::McpServer, mcp_toolbox::McpToolbox};

/// Every definition, in the order in which they are installed.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    [McpServer::crd(), CanaryRelease::crd(), McpToolbox::crd()].map(with_unseen_status).into()
}

/// `status.observedGeneration` of an object that Perch has not looked at yet.
pub const UNSEEN: i64 = -1;

/// Gives objects a status from the moment of their creation on. kstatus takes an object that has
/// none for one that is as declared, so that `flux` and `helm --wait` would go on too early.
fn with_unseen_status(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let schemas = crd.spec.versions.iter_mut().filter_map(|v| v.schema.as_mut()?.open_api_v3_schema.as_mut());
    for status in schemas.filter_map(|schema| schema.properties.as_mut()?.get_mut("status")) {
        if has(status, "observedGeneration") {
            status.default = Some(JSON(serde_json::json!({"observedGeneration": UNSEEN})));
        }
    }
    crd
}

fn has(schema: &JSONSchemaProps, property: &str) -> bool {
    schema.properties.as_ref().is_some_and(|properties| properties.contains_key(property))
}
