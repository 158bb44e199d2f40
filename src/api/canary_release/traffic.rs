//! Who else divides the traffic of a server, beside Perch's own gateways.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What Perch keeps in step with a release, beside the routing of its own gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// An HTTPRoute of the Gateway API whose weights follow the stages. Weights divide requests, not users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_route: Option<HttpRouteRef>,
}

/// An `HTTPRoute` (`gateway.networking.k8s.io/v1`) in the namespace of the release. Each of its rules that sends to
/// both Services of the server is divided between the two, and nothing else of it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteRef {
    /// Name of the `HTTPRoute`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
