//! The controller of releases, wired to what measures them.

use std::sync::Arc;

use kube::Client;
use url::Url;

use super::exit::Failure;
use crate::{
    controllers::{
        canary_release::{Clock, Context, Metrics},
        handshake::GatewayAccess,
    },
    metrics::{GatewayAddresses, Providers, http_client},
};

/// A context for the control plane behind `client`, with the gateway at `gateway`, which asks for
/// `gateway_access` and whose admin endpoints are at `admin`.
pub fn context(
    client: Client,
    gateway: Url,
    gateway_access: GatewayAccess,
    admin: GatewayAddresses,
    namespace: Option<String>,
    metrics: Metrics,
) -> Result<Context, Failure> {
    let http = http_client().map_err(|error| Failure::failed(format!("no HTTP client can be made: {error}")))?;
    let providers = Providers::new(admin, http.clone()).with_cluster(client.clone());
    Ok(Context {
        client,
        gateway,
        gateway_access,
        measure: Arc::new(providers),
        http,
        namespace,
        metrics,
        clock: Clock::default(),
    })
}
