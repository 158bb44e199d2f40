//! The controllers, wired to what the gateways measure.

use std::{sync::Arc, time::Duration};

use kube::Client;
use url::Url;

use super::exit::Failure;
use crate::{
    controllers::{
        canary_release::{Clock, Context, Metrics},
        handshake::GatewayAccess,
        mcp_server::UsageCounting,
    },
    metrics::{GatewayAddresses, Providers, UsageReader, http_client},
};

/// Counts how much servers are used, by what the gateways at `admin` say, every so often.
pub fn usage(admin: GatewayAddresses, every: Duration) -> Result<UsageCounting, Failure> {
    let http = http_client().map_err(|error| Failure::failed(format!("no HTTP client can be made: {error}")))?;
    Ok(UsageCounting { reader: UsageReader::new(admin, http), every })
}

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
