//! The way out of servers that name what they reach: a network that leads to this machine alone, and the
//! egress proxy of this Perch on the machine's address there.
//!
//! * A container's list is in a label that it was made with, so the proxy keeps nothing: each connection asks the
//!   engine whose address it comes from. A list that changes is another revision, and so another container.
//! * The port is in a label of the network, so containers that outlive Perch find the proxy of its next life.
//!   While there is no Perch, there is no way out.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, Weak},
};

use async_trait::async_trait;
use bollard::{models::ContainerSummary, query_parameters::ListContainersOptionsBuilder};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Engine, key_of, label, unavailable};
use crate::{
    api::mcp_server::EgressRule,
    egress::AllowList,
    runtime::{
        RuntimeError, Workload,
        egress_proxy::{self, Client, Peers, Refusals},
    },
};

/// The proxy of an engine.
#[derive(Debug, Default)]
pub(super) struct Egress {
    running: Mutex<Option<Running>>,
    pub(super) refusals: Refusals,
}

#[derive(Debug)]
struct Running {
    address: SocketAddr,
    /// Ends the proxy when it is replaced.
    _guard: DropGuard,
}

impl Egress {
    /// Where containers reach the proxy.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.running.lock().expect("nobody panics while holding the proxy").as_ref().map(|running| running.address)
    }
}

/// Whether a workload's containers get out through the proxy alone.
pub(super) fn is_listed(workload: &Workload) -> bool {
    !workload.declared.egress.is_empty()
}

/// What a container's label says that it may reach.
pub(super) fn list(workload: &Workload) -> Option<String> {
    let rules = &workload.declared.egress;
    // Rules are texts and numbers.
    (!rules.is_empty()).then(|| serde_json::to_string(rules).unwrap_or_default())
}

/// A port that nobody listens on, whatever the address.
pub(super) fn free_port() -> Result<u16, RuntimeError> {
    let port = TcpListener::bind(("0.0.0.0", 0)).and_then(|listener| listener.local_addr());
    port.map(|address| address.port())
        .map_err(|error| RuntimeError::unavailable("find a port for the egress proxy", error))
}

/// Starts the proxy on this machine's address of a network, if it does not run there.
pub(super) async fn ensure(engine: &Arc<Engine>, network: &str) -> Result<(), RuntimeError> {
    let what = "inspect a network";
    let found = engine.docker.inspect_network(network, None).await.map_err(unavailable(what))?;
    let blocks = found.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    let gateway = blocks.into_iter().find_map(|block| block.gateway?.parse::<IpAddr>().ok());
    let port = found.labels.and_then(|labels| labels.get(label::EGRESS_PORT)?.parse::<u16>().ok());
    let (Some(gateway), Some(port)) = (gateway, port) else {
        let remedy = "remove it while no server with spec.network.egress runs; Perch makes it anew";
        let why =
            format!("the Docker network {network} has no address of this machine, or was not made by Perch: {remedy}");
        return Err(RuntimeError::unavailable("start the egress proxy", why));
    };
    let address = SocketAddr::new(gateway, port);
    if engine.egress.address() == Some(address) {
        return Ok(());
    }
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        let why = format!("it cannot listen on {address}: {error}");
        RuntimeError::unavailable("start the egress proxy", why)
    })?;
    let shutdown = CancellationToken::new();
    let peers = Arc::new(Containers { engine: Arc::downgrade(engine), network: network.to_owned() });
    tokio::spawn(egress_proxy::serve(listener, peers, engine.egress.refusals.clone(), shutdown.clone()));
    let running = Running { address, _guard: shutdown.drop_guard() };
    *engine.egress.running.lock().expect("nobody panics while holding the proxy") = Some(running);
    Ok(())
}

/// The containers on the network, as the engine knows them.
struct Containers {
    engine: Weak<Engine>,
    network: String,
}

#[async_trait]
impl Peers for Containers {
    async fn find(&self, address: IpAddr) -> Option<Client> {
        let engine = self.engine.upgrade()?;
        let filters = HashMap::from([
            ("label", vec![format!("{}={}", label::INSTANCE, engine.config.instance)]),
            ("network", vec![self.network.clone()]),
        ]);
        let options = ListContainersOptionsBuilder::new().filters(&filters).build();
        match engine.docker.list_containers(Some(options)).await {
            Ok(found) => found.into_iter().find_map(|container| client(container, &self.network, address)),
            Err(error) => {
                tracing::warn!(%error, "the engine does not say whose connection it is");
                None
            }
        }
    }
}

fn client(container: ContainerSummary, network: &str, address: IpAddr) -> Option<Client> {
    let networks = container.network_settings?.networks?;
    let own: IpAddr = networks.get(network)?.ip_address.as_ref()?.parse().ok()?;
    let labels = container.labels.filter(|_| own == address)?;
    let rules: Vec<EgressRule> = serde_json::from_str(labels.get(label::EGRESS)?).ok()?;
    Some(Client { server: key_of(&labels)?, allow: AllowList::new(&rules).ok()? })
}
