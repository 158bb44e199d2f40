//! The networks of an instance: one that leads nowhere, and one that leads out. On neither can
//! containers reach each other.

use std::collections::HashMap;

use bollard::{models::NetworkCreateRequest, query_parameters::ListNetworksOptionsBuilder};

use super::{Engine, is_gone, label, unavailable};
use crate::{api::mcp_server::NetworkTier, runtime::RuntimeError};

/// Name of the network of a tier; none for a tier without network.
pub(super) fn name(engine: &Engine, tier: NetworkTier) -> Option<String> {
    let short = engine.config.short();
    match tier {
        NetworkTier::Public => Some(format!("perch-{short}-public")),
        NetworkTier::Internal => Some(format!("perch-{short}-internal")),
        NetworkTier::Secure => None,
    }
}

/// Makes the network of a tier if it is not there.
pub(super) async fn ensure(engine: &Engine, tier: NetworkTier) -> Result<(), RuntimeError> {
    let Some(name) = name(engine, tier) else { return Ok(()) };
    match engine.docker.inspect_network(&name, None).await {
        Ok(_) => return Ok(()),
        Err(error) if is_gone(&error) => {}
        Err(error) => return Err(unavailable("inspect a network")(error)),
    }
    let request = NetworkCreateRequest {
        name,
        driver: Some("bridge".into()),
        internal: Some(tier == NetworkTier::Internal),
        options: Some(HashMap::from([("com.docker.network.bridge.enable_icc".into(), "false".into())])),
        labels: Some(HashMap::from([(label::INSTANCE.into(), engine.config.instance.clone())])),
        ..NetworkCreateRequest::default()
    };
    match engine.docker.create_network(request).await {
        Ok(_) => Ok(()),
        // Another server was first.
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(unavailable("create a network")(error)),
    }
}

/// Removes the networks of this instance.
pub(super) async fn remove(engine: &Engine) -> Result<Vec<String>, RuntimeError> {
    let filters = HashMap::from([("label", vec![format!("{}={}", label::INSTANCE, engine.config.instance)])]);
    let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
    let networks = engine.docker.list_networks(Some(options)).await.map_err(unavailable("list networks"))?;
    let mut removed = Vec::new();
    for name in networks.into_iter().filter_map(|n| n.name) {
        engine.docker.remove_network(&name).await.map_err(unavailable("remove a network"))?;
        removed.push(format!("network {name}"));
    }
    Ok(removed)
}
