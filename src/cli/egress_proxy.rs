//! `perch egress-proxy`: the way out of one server, on a cluster.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{args::EgressProxy, exit::Failure, stop::Stop};
use crate::{
    api::mcp_server::EgressRule,
    egress::AllowList,
    names::ServerKey,
    runtime::egress_proxy::{self, Client, Peers, Refusals},
    telemetry::admin,
};

/// Whoever comes is the one server: the network lets nobody else in.
struct One(Client);

#[async_trait]
impl Peers for One {
    async fn find(&self, _address: IpAddr) -> Option<Client> {
        Some(self.0.clone())
    }
}

/// Serves until it is told to stop.
pub async fn run(args: EgressProxy) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let (namespace, name) = args
        .server
        .split_once('/')
        .ok_or_else(|| Failure::usage(format!("--server {}: write it as NAMESPACE/NAME", args.server)))?;
    let rules: Vec<EgressRule> =
        serde_yaml_ng::from_str(&args.rules).map_err(|error| Failure::usage(format!("--rules: {error}")))?;
    let allow = AllowList::new(&rules).map_err(|error| Failure::usage(error.to_string()))?;
    let listener = super::listen_anywhere(args.listen, "egress proxy", "--listen").await?;
    let admin_listener = super::listen_anywhere(args.admin_addr, "admin endpoint", "--admin-addr").await?;
    let (refusals, shutdown) = (Refusals::default(), CancellationToken::new());
    let mut registry = Registry::default();
    refusals.register(&mut registry);
    let ready: admin::Readiness = Arc::new(|| Ok(()));
    let registry = Arc::new(Mutex::new(registry));
    let told = admin::serve(admin_listener, ready, registry, axum::Router::new(), shutdown.clone());
    let peers = Arc::new(One(Client { server: ServerKey::new(namespace, name), allow }));
    let served = egress_proxy::serve(listener, peers, refusals, shutdown.clone());
    tokio::select! {
        () = stop.wait() => {}
        () = served => {}
        told = told => told.map_err(|error| Failure::failed(format!("the admin endpoint: {error}")))?,
    }
    shutdown.cancel();
    Ok(())
}
