//! Where a request goes: an immutable table compiled from resources. Pure.
//!
//! [`cohort`] says who gets which revision while a release is on, [`drain`] what becomes of work
//! that began before, and [`split`] reads both from a `CanaryRelease`. [`toolbox`] says which servers
//! are behind one endpoint, and under which names. [`notice`] is the end of a server, as users meet it.
//!
//! May import: `api`, `names`.

pub mod cohort;
pub mod drain;
pub mod notice;
pub mod split;
pub mod toolbox;

use std::{collections::BTreeMap, sync::Arc};

use rpds::HashTrieMapSync as HashMap;

pub use cohort::{Seat, Side, Subject};
pub use notice::Notice;
pub use split::Split;
pub use toolbox::Toolbox;

use crate::{
    api::{
        mcp_server::{ConditionType, McpServer, McpServerStatus, Phase, StdioSessions, ToolFilter, TransportType},
        mcp_toolbox::McpToolbox,
    },
    names::ServerKey,
};

/// All routes at one moment. Swapped as a whole; a new table shares what did not change with the
/// one before, so a change costs the same whether there are ten servers or ten thousand.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    servers: HashMap<ServerKey, Arc<Route>>,
    /// A release may be known before its server is.
    splits: HashMap<ServerKey, Arc<Split>>,
    /// What toolboxes select servers by.
    labels: HashMap<ServerKey, Arc<Labels>>,
    toolboxes: HashMap<ServerKey, Arc<Route>>,
    generation: u64,
    synced: bool,
    toolboxes_synced: bool,
}

type Labels = BTreeMap<String, String>;

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
    /// Whether it has failed: somebody must change something, or it is started again ever more seldom.
    pub has_failed: bool,
    /// What a release says about its revisions, if there is one.
    pub split: Option<Arc<Split>>,
    /// Whether arguments of tools are checked against their schemas.
    pub validates_arguments: bool,
    /// There while the server comes to its end.
    pub notice: Option<Arc<Notice>>,
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
    /// The servers of a toolbox.
    Toolbox(Arc<Toolbox>),
}

impl RouteTable {
    /// The table of all servers, without releases.
    pub fn compile<'a>(servers: impl IntoIterator<Item = &'a McpServer>) -> Self {
        Self::default().with_all(servers)
    }

    /// A table of given routes, for a gateway that follows no resources.
    pub fn of(routes: impl IntoIterator<Item = Route>) -> Self {
        let servers = routes.into_iter().map(|route| (route.server.clone(), Arc::new(route))).collect();
        Self { servers, synced: true, ..Self::default() }
    }

    /// This table with exactly these servers; releases and toolboxes stay.
    #[must_use]
    pub fn with_all<'a>(&self, servers: impl IntoIterator<Item = &'a McpServer>) -> Self {
        let (mut routes, mut labels) = (HashMap::new_sync(), HashMap::new_sync());
        for server in servers {
            let route = self.route(server);
            labels.insert_mut(route.server.clone(), Arc::new(labels_of(server)));
            routes.insert_mut(route.server.clone(), Arc::new(route));
        }
        let mut next = Self { servers: routes, labels, synced: true, ..self.next() };
        let gone = self.labels.keys().filter(|key| !next.labels.contains_key(key)).cloned();
        let changed: Vec<ServerKey> = gone.chain(next.labels.keys().cloned()).collect();
        for server in &changed {
            next.select(server);
        }
        next
    }

    /// This table with one server as it is now; none when that makes no difference.
    #[must_use]
    pub fn with(&self, server: &McpServer) -> Option<Self> {
        let (route, labels) = (self.route(server), labels_of(server));
        let key = route.server.clone();
        let same_labels = self.labels.get(&key).is_some_and(|known| **known == labels);
        if same_labels && self.servers.get(&key).is_some_and(|known| **known == route) {
            return None;
        }
        let servers = self.servers.insert(key.clone(), Arc::new(route));
        let mut next = Self { servers, labels: self.labels.insert(key.clone(), Arc::new(labels)), ..self.next() };
        next.select(&key);
        Some(next)
    }

    /// This table without one server.
    #[must_use]
    pub fn without(&self, server: &ServerKey) -> Self {
        let (servers, labels) = (self.servers.remove(server), self.labels.remove(server));
        let mut next = Self { servers, labels, ..self.next() };
        next.select(server);
        next
    }

    /// This table with what a release says about a server, or no longer says.
    #[must_use]
    pub fn with_split(&self, server: &ServerKey, split: Option<Split>) -> Self {
        let split = split.map(Arc::new);
        let splits = match &split {
            Some(split) => self.splits.insert(server.clone(), Arc::clone(split)),
            None => self.splits.remove(server),
        };
        let servers = match self.servers.get(server) {
            Some(route) => self.servers.insert(server.clone(), Arc::new(Route { split, ..Route::clone(route) })),
            None => self.servers.clone(),
        };
        Self { servers, splits, ..self.next() }
    }

    /// This table with exactly these toolboxes.
    #[must_use]
    pub fn with_toolboxes<'a>(&self, toolboxes: impl IntoIterator<Item = &'a McpToolbox>) -> Self {
        let routes = toolboxes.into_iter().map(|toolbox| self.toolbox(toolbox));
        let toolboxes = routes.map(|route| (route.server.clone(), Arc::new(route))).collect();
        Self { toolboxes, toolboxes_synced: true, ..self.next() }
    }

    /// This table with one toolbox as it is now; none when that makes no difference.
    #[must_use]
    pub fn with_toolbox(&self, toolbox: &McpToolbox) -> Option<Self> {
        let route = self.toolbox(toolbox);
        if self.toolboxes.get(&route.server).is_some_and(|known| **known == route) {
            return None;
        }
        Some(Self { toolboxes: self.toolboxes.insert(route.server.clone(), Arc::new(route)), ..self.next() })
    }

    /// This table without one toolbox.
    #[must_use]
    pub fn without_toolbox(&self, toolbox: &ServerKey) -> Self {
        Self { toolboxes: self.toolboxes.remove(toolbox), ..self.next() }
    }

    fn next(&self) -> Self {
        Self { generation: self.generation + 1, ..self.clone() }
    }

    /// Brings up to date which toolboxes select a server.
    fn select(&mut self, server: &ServerKey) {
        let labels = self.labels.get(server).map(|labels| &**labels);
        let near = self.toolboxes.values().filter(|route| route.server.namespace == server.namespace);
        let changed: Vec<Route> = near
            .filter_map(|route| {
                let Upstream::Toolbox(toolbox) = &route.upstream else { return None };
                let upstream = Upstream::Toolbox(Arc::new(toolbox.with_server(server, labels)?));
                Some(Route { upstream, ..Route::clone(route) })
            })
            .collect();
        for route in changed {
            self.toolboxes.insert_mut(route.server.clone(), Arc::new(route));
        }
    }

    fn toolbox(&self, toolbox: &McpToolbox) -> Route {
        let server = toolbox::key_of(toolbox);
        let near = self.labels.iter().filter(|(key, _)| key.namespace == server.namespace);
        let compiled = Toolbox::compile(toolbox, near.map(|(key, labels)| (&*key.name, &**labels)));
        Route {
            server,
            upstream: Upstream::Toolbox(Arc::new(compiled)),
            tools: ToolFilter::default(),
            not_ready: None,
            has_failed: false,
            split: None,
            // Each member checks what is its own.
            validates_arguments: false,
            notice: None,
        }
    }

    fn route(&self, server: &McpServer) -> Route {
        let route = route(server);
        let split = self.splits.get(&route.server).cloned();
        Route { split, ..route }
    }

    /// Whether all servers were listed. Before that, a server that is not here may be there.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// How often the table changed since the gateway started.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What this table applies of releases.
    pub fn splits(&self) -> BTreeMap<&ServerKey, &Split> {
        self.servers.values().filter_map(|route| Some((&route.server, &**route.split.as_ref()?))).collect()
    }

    /// What releases say about a server, which need not exist.
    pub fn split(&self, server: &ServerKey) -> Option<&Split> {
        self.splits.get(server).map(|split| &**split)
    }

    /// Whether all toolboxes were listed.
    pub fn has_toolboxes(&self) -> bool {
        self.toolboxes_synced
    }

    /// The route of a server or of a toolbox.
    pub fn find(&self, server: &ServerKey) -> Option<&Arc<Route>> {
        self.servers.get(server).or_else(|| self.toolboxes.get(server))
    }

    /// All toolboxes, in order.
    pub fn toolboxes(&self) -> Vec<&ServerKey> {
        let mut toolboxes: Vec<_> = self.toolboxes.keys().collect();
        toolboxes.sort();
        toolboxes
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

fn labels_of(server: &McpServer) -> Labels {
    server.metadata.labels.clone().unwrap_or_default()
}

fn route(server: &McpServer) -> Route {
    let spec = &server.spec;
    // A release may hold another revision than the declared one, with another transport.
    let runs = server.status.as_ref().and_then(|status| status.transport);
    let transport = runs.unwrap_or_else(|| (&spec.transport).into());
    let upstream = match (&spec.remote, transport.type_) {
        _ if spec.suspend => Upstream::Suspended,
        (Some(remote), _) => Upstream::Remote(remote.url.clone()),
        (None, TransportType::StreamableHttp) => Upstream::Http,
        (None, TransportType::Stdio) => Upstream::Stdio(transport.sessions),
    };
    let headline = server.status.as_ref().and_then(McpServerStatus::headline);
    let not_ready = headline
        .filter(|c| c.type_ != ConditionType::Ready.as_str() || c.status != "True")
        .map(|c| format!("{}: {}", c.reason, c.message))
        .or_else(|| headline.is_none().then(|| "Pending: nobody has looked at it yet".to_owned()));
    Route {
        server: key_of(server),
        upstream,
        tools: spec.tools.clone(),
        not_ready,
        has_failed: server.status.as_ref().is_some_and(|status| status.phase == Some(Phase::Failed)),
        split: None,
        validates_arguments: spec.gateway.validate_arguments,
        notice: Notice::of(server).map(Arc::new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::canary_release::Routing, names::Revision};

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
        let mut held = server("h", "{command: [x], transport: {type: StreamableHttp}}");
        held.status = serde_yaml_ng::from_str("{transport: {type: Stdio, sessions: PerSession}}").unwrap();
        assert_eq!(
            route(&held).upstream,
            Upstream::Stdio(StdioSessions::PerSession),
            "what runs, not what is declared"
        );
    }

    #[test]
    fn only_a_list_tells_which_servers_there_are_not() {
        let first =
            RouteTable::default().with(&server("a", "{image: x}")).unwrap().with_split(&ServerKey::new("x", "y"), None);
        assert!(!first.is_synced());
        let listed = first.with_all(&[server("b", "{image: x}")]);
        assert!(listed.is_synced() && listed.without(&ServerKey::new("default", "b")).is_synced());
        assert!(RouteTable::of([]).is_synced(), "nothing else will come");
    }

    #[test]
    fn a_changed_table_leaves_the_old_one_as_it_was() {
        let old = RouteTable::compile(&[server("a", "{image: x}")]);
        let new = old.with(&server("b", "{image: x}")).unwrap().without(&ServerKey::new("default", "a"));
        assert_eq!(old.servers(), [&ServerKey::new("default", "a")]);
        assert_eq!(new.servers(), [&ServerKey::new("default", "b")]);
    }

    #[test]
    fn what_changes_no_route_makes_no_table() {
        let table = RouteTable::compile(&[server("a", "{image: x}")]);
        assert!(table.with(&server("a", "{image: y}")).is_none());
        let suspended = table.with(&server("a", "{image: y, suspend: true}")).unwrap();
        assert_eq!(suspended.generation(), table.generation() + 1);
    }

    #[test]
    fn a_toolbox_follows_the_labels_of_servers() {
        let key = ServerKey::toolbox("default", "dev");
        let members = |table: &RouteTable| -> Vec<String> {
            let Upstream::Toolbox(toolbox) = &table.find(&key).unwrap().upstream else { panic!() };
            toolbox.members.iter().map(|m| m.server.name.clone()).collect()
        };
        let labelled = |name: &str, team: &str| {
            let mut server = server(name, "{image: x}");
            server.metadata.labels = Some([("team".to_owned(), team.to_owned())].into());
            server
        };
        let mut toolbox =
            McpToolbox::new("dev", serde_yaml_ng::from_str("{selector: {matchLabels: {team: red}}}").unwrap());
        toolbox.metadata.namespace = Some("default".into());
        let early = RouteTable::default().with_toolboxes([&toolbox]);
        assert!(members(&early).is_empty() && early.has_toolboxes() && !early.is_synced());
        let table = early.with_all(&[labelled("a", "red"), labelled("b", "blue")]);
        assert_eq!(members(&table), ["a"]);
        let table = table.with(&labelled("b", "red")).unwrap();
        assert_eq!(members(&table), ["a", "b"], "labels alone make a difference");
        assert!(table.with(&labelled("b", "red")).is_none() && table.with_toolbox(&toolbox).is_none());
        assert_eq!(members(&table.without(&ServerKey::new("default", "a"))), ["b"]);
        assert_eq!(members(&table.with_all(&[labelled("c", "red")])), ["c"]);
        assert_eq!(members(&RouteTable::compile(&[labelled("d", "red")]).with_toolboxes([&toolbox])), ["d"]);
        let mut elsewhere = labelled("e", "red");
        elsewhere.metadata.namespace = Some("other".into());
        assert_eq!(members(&table.with(&elsewhere).unwrap()), ["a", "b"], "a toolbox is of one namespace");
        assert_eq!(table.servers().len(), 2);
        assert_eq!(table.toolboxes(), [&key]);
        assert!(table.without_toolbox(&key).find(&key).is_none());
    }

    #[test]
    fn a_split_stays_while_its_server_changes() {
        let key = ServerKey::new("default", "a");
        let routing = Routing { desired_epoch: 7, percentage: 25, ..Routing::default() };
        let split = Split::between("r1", &routing, Revision("a-1".into()), Revision("a-2".into()));
        let early = RouteTable::default().with_split(&key, Some(split.clone()));
        assert!(early.splits().is_empty(), "nothing is applied while there is no such server");
        let table = early.with(&server("a", "{image: x}")).unwrap();
        assert_eq!(table.splits()[&key].epoch, 7);
        let table = table.with(&server("a", "{image: y, suspend: true}")).unwrap();
        assert_eq!(table.find(&key).unwrap().split.as_deref(), Some(&split));
        let table = table.with_all(&[server("a", "{image: z}"), server("b", "{image: x}")]);
        assert_eq!(table.splits().len(), 1);
        let ended = table.with_split(&key, None);
        assert_eq!(ended.find(&key).unwrap().split, None);
        assert!(ended.generation() > table.generation());
        assert!(ended.with(&server("a", "{image: x, suspend: true}")).unwrap().splits().is_empty());
    }
}
