//! The weights of an HTTPRoute of the Gateway API, for people whose users do not come through Perch's gateway.
//!
//! * Every rule that sends to the Service of the server and to that of its candidate, and to nobody else, is divided
//!   between the two. Everything else of the route belongs to others and is never written.
//! * The weights follow the status that was written, so a controller that dies is taken over here as well.
//! * A write names what it found: a route that changed meanwhile is left as it is, and looked at again.
//!
//! May import: `api`, `canary`, `names`, `runtime::kubernetes::naming`.

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use super::MANAGER;
use crate::{
    api::mcp_server::{McpServer, Phase},
    canary::{Progress, RouteWeights, wanted},
    names::ServerKey,
    runtime::kubernetes::naming::object_name,
};

/// Share of the requests that the candidate's Service should get, in percent.
pub fn share(progress: &Progress, server: Option<&McpServer>) -> i32 {
    let Some(status) = server.and_then(|server| server.status.as_ref()) else { return 0 };
    // Without instances its Service answers nobody.
    let Some(beside) = &status.candidate else { return 0 };
    if Some(&beside.revision) == progress.stable_revision.as_ref() {
        // It was promoted: it answers for everybody until the server's own instances are what it is.
        let own = status.current_revision.as_ref() == Some(&beside.revision)
            && matches!(status.phase, Some(Phase::Ready | Phase::Suspended));
        return if own { 0 } else { 100 };
    }
    if wanted(progress).candidate.as_ref() == Some(&beside.revision) { progress.routing.percentage } else { 0 }
}

/// Gives the candidate's Service its share of what a route sends to a server.
pub async fn divide(client: &Client, server: &ServerKey, name: &str, share: i32) -> RouteWeights {
    match write(client, server, name, share).await {
        Ok(()) => {
            let (stable, candidate) = services(server);
            let message = match share {
                0 => format!("HTTPRoute {name} sends all requests to Service {stable}"),
                _ => format!(
                    "HTTPRoute {name} sends {share}% of the requests to Service {candidate}, the rest to {stable}"
                ),
            };
            RouteWeights { name: name.to_owned(), percentage: Some(share), reason: "Weighted", message }
        }
        Err(trouble) => RouteWeights {
            name: name.to_owned(),
            percentage: None,
            reason: trouble.reason(),
            message: format!("HTTPRoute {name}: {trouble}"),
        },
    }
}

/// Sends everything that a route has for a server to its own Service again, because the release does not name the
/// route any more. A route that is gone sends nothing.
pub async fn give_back(client: &Client, server: &ServerKey, name: &str) -> RouteWeights {
    let found = divide(client, server, name, 0).await;
    let gone = [Trouble::NotFound.reason(), Trouble::NoKind.reason()].contains(&found.reason);
    RouteWeights { percentage: if gone { Some(0) } else { found.percentage }, ..found }
}

/// Names of the Services of a server and of its candidate.
fn services(server: &ServerKey) -> (String, String) {
    (object_name(&server.name), object_name(&server.candidate().name))
}

/// Why weights are not what they should be.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(
        "the control plane knows no httproutes.gateway.networking.k8s.io/v1: install the Gateway API, or take \
         spec.traffic.httpRoute away"
    )]
    NoKind,
    #[error("there is none of this name in the namespace of the release: create it, or name another")]
    NotFound,
    #[error("the operator may not write it: set httpRoutes.enabled of the chart ({0})")]
    NotPermitted(String),
    #[error("no rule of it sends to both Services {stable} and {candidate}: name both in spec.rules[].backendRefs")]
    NoBackendRefs { stable: String, candidate: String },
    #[error(
        "spec.rules[{0}] sends to others beside the server's two Services, and the weights would change their share: \
         give the server a rule of its own"
    )]
    Shared(usize),
    #[error("it could not be written, which is tried again: {0}")]
    Unavailable(String),
}

impl Trouble {
    const fn reason(&self) -> &'static str {
        match self {
            Self::NoKind => "HttpRouteKindNotInstalled",
            Self::NotFound => "HttpRouteNotFound",
            Self::NotPermitted(_) => "HttpRouteNotPermitted",
            Self::NoBackendRefs { .. } => "BackendRefsMissing",
            Self::Shared(_) => "BackendRefsShared",
            Self::Unavailable(_) => "HttpRouteUnavailable",
        }
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                403 => Self::NotPermitted(status.message.clone()),
                // An answer about an object says which; one about an unknown path does not.
                404 if status.details.as_ref().is_some_and(|details| !details.name.is_empty()) => Self::NotFound,
                404 => Self::NoKind,
                _ => Self::Unavailable(status.message.clone()),
            },
            error => Self::Unavailable(error.to_string()),
        }
    }
}

async fn write(client: &Client, server: &ServerKey, name: &str, share: i32) -> Result<(), Trouble> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute"));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &server.namespace, &kind);
    let route = api.get(name).await?;
    let operations = operations(&route.data, server, share)?;
    if operations.is_empty() {
        return Ok(());
    }
    let patch = serde_json::from_value(Value::Array(operations)).map_err(|e| Trouble::Unavailable(e.to_string()))?;
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Json::<()>(patch)).await?;
    Ok(())
}

/// What changes the weights of a route, as a JSON patch (RFC 6902); nothing when they are as they should be.
fn operations(route: &Value, server: &ServerKey, share: i32) -> Result<Vec<Value>, Trouble> {
    let (stable, candidate) = services(server);
    let names = |backend: &Value, service: &str| {
        // What is left out has these defaults.
        let is = |field: &str, default: &str| backend[field].as_str().unwrap_or(default) == default;
        is("group", "") && is("kind", "Service") && is("namespace", &server.namespace) && backend["name"] == service
    };
    let (mut operations, mut divided) = (Vec::new(), false);
    for (rule, backends) in
        route["spec"]["rules"].as_array().into_iter().flatten().map(|rule| &rule["backendRefs"]).enumerate()
    {
        let backends = backends.as_array().map(Vec::as_slice).unwrap_or_default();
        let has = |service: &str| backends.iter().any(|backend| names(backend, service));
        if !has(&stable) || !has(&candidate) {
            continue;
        }
        if backends.len() != 2 {
            return Err(Trouble::Shared(rule));
        }
        divided = true;
        for (place, backend) in backends.iter().enumerate() {
            let weight = if names(backend, &candidate) { share } else { 100 - share };
            if backend["weight"].as_i64().unwrap_or(1) != i64::from(weight) {
                let path = format!("/spec/rules/{rule}/backendRefs/{place}");
                operations.push(json!({"op": "test", "path": path, "value": backend}));
                operations.push(json!({"op": "add", "path": format!("{path}/weight"), "value": weight}));
            }
        }
    }
    if divided { Ok(operations) } else { Err(Trouble::NoBackendRefs { stable, candidate }) }
}

#[cfg(test)]
mod tests;
