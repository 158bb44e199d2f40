//! Where a request goes: an immutable table compiled from resources. Pure.
//!
//! May import: `api`, `names`.

use std::{collections::HashMap, sync::Arc};

use crate::{
    api::mcp_server::{ConditionType, McpServer, StdioSessions, ToolFilter, TransportType},
    names::ServerKey,
};

/// All routes at one moment. Swapped as a whole.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    servers: HashMap<ServerKey, Arc<Route>>,
}

/// Where the requests for one server go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The server.
    pub server: ServerKey,
    /// How it is reached.
    pub upstream: Upstream,
    /// Which tools clients see.
    pub tools: ToolFilter,
    /// Why the server does not answer, as far as its status says: for clients that wait in vain.
    pub not_ready: Option<String>,
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Instances that speak Streamable HTTP.
    Http,
    /// Instances that speak on their standard streams.
    Stdio(StdioSessions),
    /// A URL elsewhere.
    Remote(String),
    /// Nobody: the server is suspended.
    Suspended,
}

impl RouteTable {
    /// The table of all servers.
    pub fn compile<'a>(servers: impl IntoIterator<Item = &'a McpServer>) -> Self {
        Self { servers: servers.into_iter().map(route).map(|r| (r.server.clone(), Arc::new(r))).collect() }
    }

    /// This table with one server as it is now.
    #[must_use]
    pub fn with(&self, server: &McpServer) -> Self {
        let route = route(server);
        let mut servers = self.servers.clone();
        servers.insert(route.server.clone(), Arc::new(route));
        Self { servers }
    }

    /// This table without one server.
    #[must_use]
    pub fn without(&self, server: &ServerKey) -> Self {
        let mut servers = self.servers.clone();
        servers.remove(server);
        Self { servers }
    }

    /// The route of a server.
    pub fn find(&self, server: &ServerKey) -> Option<&Arc<Route>> {
        self.servers.get(server)
    }

    /// All servers, in order.
    pub fn servers(&self) -> Vec<&ServerKey> {
        let mut servers: Vec<_> = self.servers.keys().collect();
        servers.sort();
        servers
    }
}

/// The key of a server object.
pub fn key_of(server: &McpServer) -> ServerKey {
    let metadata = &server.metadata;
    ServerKey::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn route(server: &McpServer) -> Route {
    let spec = &server.spec;
    let upstream = match (&spec.remote, spec.transport.type_) {
        _ if spec.suspend => Upstream::Suspended,
        (Some(remote), _) => Upstream::Remote(remote.url.clone()),
        (None, TransportType::StreamableHttp) => Upstream::Http,
        (None, TransportType::Stdio) => Upstream::Stdio(spec.transport.sessions),
    };
    let conditions = server.status.iter().flat_map(|s| &s.conditions);
    let not_ready = conditions
        .filter(|c| c.type_ == ConditionType::Ready.as_str() && c.status != "True")
        .map(|c| format!("{}: {}", c.reason, c.message))
        .next();
    Route { server: key_of(server), upstream, tools: spec.tools.clone(), not_ready }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, spec: &str) -> McpServer {
        let mut server = McpServer::new(name, serde_yaml_ng::from_str(spec).unwrap());
        server.metadata.namespace = Some("default".into());
        server
    }

    #[test]
    fn each_kind_of_server_has_its_upstream() {
        let servers = [
            server("a", "{image: x}"),
            server("b", "{image: x, transport: {type: StreamableHttp}}"),
            server("c", "{remote: {url: 'https://x.example/mcp'}, transport: {type: StreamableHttp}}"),
            server("d", "{image: x, suspend: true}"),
        ];
        let table = RouteTable::compile(&servers);
        let upstream = |name: &str| table.find(&ServerKey::new("default", name)).unwrap().upstream.clone();
        assert_eq!(upstream("a"), Upstream::Stdio(StdioSessions::Shared));
        assert_eq!(upstream("b"), Upstream::Http);
        assert_eq!(upstream("c"), Upstream::Remote("https://x.example/mcp".into()));
        assert_eq!(upstream("d"), Upstream::Suspended);
    }

    #[test]
    fn a_changed_table_leaves_the_old_one_as_it_was() {
        let old = RouteTable::compile(&[server("a", "{image: x}")]);
        let new = old.with(&server("b", "{image: x}")).without(&ServerKey::new("default", "a"));
        assert_eq!(old.servers(), [&ServerKey::new("default", "a")]);
        assert_eq!(new.servers(), [&ServerKey::new("default", "b")]);
    }
}
