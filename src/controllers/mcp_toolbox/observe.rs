//! Step two: what the gateway offers at the toolbox, seen as its users see it.

use std::time::Duration;

use serde::Deserialize;

use crate::controllers::handshake::{self, GatewayAccess, ProbeError};

/// How long the gateway may take. It waits a while for servers that do not answer.
const LIMIT: Duration = Duration::from_secs(20);
/// What the gateway calls servers that are not in a list.
const META_UNAVAILABLE: &str = "perch.dev/unavailable";
/// What the gateway calls names that several servers have.
const META_CONFLICTS: &str = "perch.dev/conflicts";

/// What a toolbox offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Number of tools.
    pub tools: usize,
    /// Servers that are not in it.
    pub unavailable: Vec<Unavailable>,
    /// Names that are not in it, or only from one of their servers.
    pub conflicts: Vec<Conflict>,
}

/// A server that the gateway left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Unavailable {
    /// Its name.
    pub server: String,
    /// Why.
    pub reason: String,
}

/// A name that several servers have.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Conflict {
    /// The name.
    pub name: String,
    /// The servers.
    pub servers: Vec<String>,
}

/// Asks the gateway.
pub async fn observe(url: &str, access: &GatewayAccess) -> Result<Offer, ProbeError> {
    let (tools, mut meta) = handshake::list(url, access, LIMIT).await?;
    // What another gateway puts there is no reason to know nothing.
    Ok(Offer {
        tools,
        unavailable: serde_json::from_value(meta[META_UNAVAILABLE].take()).unwrap_or_default(),
        conflicts: serde_json::from_value(meta[META_CONFLICTS].take()).unwrap_or_default(),
    })
}
