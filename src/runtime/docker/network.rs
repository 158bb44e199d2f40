//! The networks of an instance: one that leads nowhere, one that leads to the egress proxy, and one that
//! leads out. On none can containers reach each other.
//!
//! An engine lets two networks have one name, and then refuses to use it; so networks are made one
//! after the other, and addressed by id.

use std::{collections::HashMap, sync::Arc};

use bollard::{models::NetworkCreateRequest, query_parameters::ListNetworksOptionsBuilder};

use super::{Engine, egress, is_gone, label, unavailable, way_out::Tried};
use crate::{
    api::mcp_server::NetworkTier,
    runtime::{NetworkReport, RuntimeError, Workload, workload::Wire},
};

/// Where a workload's containers can get to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Nowhere: they have no network.
    Nowhere,
    /// To this machine, from which the gateway reaches them.
    Machine,
    /// To this machine, and through its egress proxy to what is listed.
    Listed,
    /// Wherever the machine gets to.
    Out,
}

fn reach(workload: &Workload) -> Reach {
    match (workload.network, &workload.wire) {
        (NetworkTier::Public | NetworkTier::Internal, _) if egress::is_listed(workload) => Reach::Listed,
        (NetworkTier::Public, _) => Reach::Out,
        (NetworkTier::Internal, Wire::Http { .. }) => Reach::Machine,
        // The gateway talks to it through its standard streams.
        (NetworkTier::Internal, Wire::Stdio(_)) | (NetworkTier::Secure, _) => Reach::Nowhere,
    }
}

/// Name of the network of a workload's containers; none for those without network.
pub(super) fn name(engine: &Engine, workload: &Workload) -> Option<String> {
    let short = engine.config.short();
    match reach(workload) {
        Reach::Out => Some(format!("perch-{short}-public")),
        Reach::Listed => Some(format!("perch-{short}-egress")),
        Reach::Machine => Some(format!("perch-{short}-internal")),
        Reach::Nowhere => None,
    }
}

/// What a try from inside of a workload's containers comes to where its tier holds.
pub(super) fn as_declared(workload: &Workload) -> Tried {
    match reach(workload) {
        Reach::Out => Tried::GotOut,
        Reach::Listed => Tried::Filtered,
        Reach::Machine | Reach::Nowhere => Tried::Closed,
    }
}

/// The tier as the containers have it: each was compared with it at the last look, and each that runs
/// was tried from inside.
pub(super) fn report<'a>(
    workload: &Workload,
    tried: impl Iterator<Item = &'a Tried>,
    refused: Option<String>,
) -> NetworkReport {
    let tried: Vec<&Tried> = tried.collect();
    let reach = reach(workload);
    let place = match reach {
        Reach::Out => "on a network that leads out and not to other servers",
        Reach::Listed => "on a network that leads to the egress proxy of this machine and not to other servers",
        Reach::Machine => "on a network that leads to this machine alone and not to other servers",
        Reach::Nowhere => "without a network",
    };
    let as_declared = as_declared(workload);
    let found = match reach {
        Reach::Out => "a way out",
        Reach::Listed => "no way out, and the proxy refused a name that is not on the list",
        Reach::Machine | Reach::Nowhere => "no way out",
    };
    let why = |of: fn(&Tried) -> Option<&String>| tried.iter().find_map(|tried| of(tried));
    let (enforced, message) = if tried.is_empty() {
        (Some(false), "no container runs yet".into())
    } else if let Some(why) = why(|t| if let Tried::Unknown(why) = t { Some(why) } else { None }) {
        (None, format!("{place}; whether it gets out could not be tried: {why}"))
    } else if let Some(why) = why(|t| if let Tried::NoProxy(why) = t { Some(why) } else { None }) {
        (Some(false), format!("there is no way out, not even to what is listed: {why}"))
    } else if tried.iter().all(|t| **t == as_declared) {
        let last = refused.filter(|_| reach == Reach::Listed).map(|last| format!("; refused last: {last}"));
        (Some(true), format!("{place}; a connection from inside found {found}{}", last.unwrap_or_default()))
    } else if reach == Reach::Out {
        (Some(false), "the tier is Public, and yet there is no way out: does the Docker network have a gateway?".into())
    } else {
        let forbids = if reach == Reach::Listed { "spec.network.egress forbids" } else { "the tier forbids" };
        let remedy =
            "remove the Docker network that the container is on while the server is suspended; Perch makes it anew";
        (Some(false), format!("a connection from inside got out, which {forbids}: {remedy}"))
    };
    NetworkReport { enforced, message }
}

/// Name and id of every network of this instance.
async fn all(engine: &Engine) -> Result<Vec<(String, String)>, RuntimeError> {
    let filters = HashMap::from([("label", vec![format!("{}={}", label::INSTANCE, engine.config.instance)])]);
    let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
    let networks = engine.docker.list_networks(Some(options)).await.map_err(unavailable("list networks"))?;
    Ok(networks.into_iter().filter_map(|n| Some((n.name?, n.id?))).collect())
}

/// Makes the network of a workload if it is not there, and starts the proxy that it needs.
pub(super) async fn ensure(engine: &Arc<Engine>, workload: &Workload) -> Result<(), RuntimeError> {
    let Some(name) = name(engine, workload) else { return Ok(()) };
    let reach = reach(workload);
    let _turn = engine.networks.lock().await;
    if !all(engine).await?.iter().any(|(found, _)| *found == name) {
        let mut labels = HashMap::from([(label::INSTANCE.to_owned(), engine.config.instance.clone())]);
        if reach == Reach::Listed {
            labels.insert(label::EGRESS_PORT.to_owned(), egress::free_port()?.to_string());
        }
        let request = NetworkCreateRequest {
            name: name.clone(),
            driver: Some("bridge".into()),
            internal: Some(reach != Reach::Out),
            options: Some(HashMap::from([("com.docker.network.bridge.enable_icc".into(), "false".into())])),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        engine.docker.create_network(request).await.map_err(unavailable("create a network"))?;
    }
    if reach == Reach::Listed { egress::ensure(engine, &name).await } else { Ok(()) }
}

/// Removes the networks of this instance.
pub(super) async fn remove(engine: &Engine) -> Result<Vec<String>, RuntimeError> {
    let mut removed = Vec::new();
    for (name, id) in all(engine).await? {
        match engine.docker.remove_network(&id).await {
            Err(error) if !is_gone(&error) => return Err(unavailable("remove a network")(error)),
            _ => removed.push(format!("network {name}")),
        }
    }
    Ok(removed)
}
