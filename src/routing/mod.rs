//! Where a request goes: an immutable table compiled from resources. Pure.
//!
//! May import: `api`, `names`.

use std::{collections::HashMap, sync::Arc};

use crate::{api::mcp_server::McpServer, names::ServerKey};

/// All routes at one moment. Swapped as a whole.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// One route for each server.
    pub servers: HashMap<ServerKey, Arc<()>>,
}

/// Compiles the table from every server that exists.
#[must_use]
pub fn compile(_servers: &[Arc<McpServer>]) -> RouteTable {
    RouteTable::default()
}
