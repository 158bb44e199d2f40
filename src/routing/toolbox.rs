//! Which servers a toolbox has, and which names stand for what in it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kube::core::{ParseExpressionError, Selector, SelectorExt};

use crate::{
    api::{
        mcp_server::ToolFilter,
        mcp_toolbox::{ConflictPolicy, McpToolbox, ToolboxAccess, ToolboxServer},
    },
    names::ServerKey,
};

/// A toolbox as requests meet it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolbox {
    /// Who may use it, of those who may use the gateway; nobody in particular when none.
    pub access: Option<ToolboxAccess>,
    /// What becomes of names that several members have.
    pub policy: ConflictPolicy,
    /// Its servers, the first one first.
    pub members: Vec<Member>,
    listed: Vec<ToolboxServer>,
    selector: Option<Selector>,
    selected: BTreeSet<String>,
}

/// A server of a toolbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The server, which need not exist.
    pub server: ServerKey,
    /// Stands before names of tools and prompts.
    pub prefix: String,
    /// Stands before URIs of resources.
    pub uri_prefix: String,
    /// Which of its tools are in, by their own names.
    pub tools: ToolFilter,
    /// Names in the toolbox by own names.
    renames: BTreeMap<String, String>,
    /// The other way round.
    originals: BTreeMap<String, String>,
}

/// The key of a toolbox object.
pub fn key_of(toolbox: &McpToolbox) -> ServerKey {
    let metadata = &toolbox.metadata;
    ServerKey::toolbox(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// What a toolbox selects beside the servers that it lists.
///
/// # Errors
/// When an expression makes no sense.
pub fn selector_of(toolbox: &McpToolbox) -> Result<Option<Selector>, ParseExpressionError> {
    toolbox.spec.selector.clone().map(Selector::try_from).transpose()
}

impl Toolbox {
    /// A toolbox, and the servers of its namespace with their labels. A selector that makes no sense
    /// selects nothing.
    pub fn compile<'a>(
        toolbox: &McpToolbox,
        servers: impl IntoIterator<Item = (&'a str, &'a BTreeMap<String, String>)>,
    ) -> Self {
        let selector = selector_of(toolbox).ok().flatten();
        let is_selected = |labels: &BTreeMap<String, String>| selector.as_ref().is_some_and(|s| s.matches(labels));
        let servers = servers.into_iter().filter(|(_, labels)| is_selected(labels));
        let selected = servers.map(|(name, _)| name.to_owned()).collect();
        let new = Self {
            access: toolbox.spec.access.clone(),
            policy: toolbox.spec.conflict_policy,
            members: Vec::new(),
            listed: toolbox.spec.servers.clone(),
            selector,
            selected,
        };
        new.with_members(toolbox.metadata.namespace.as_deref().unwrap_or_default())
    }

    fn with_members(mut self, namespace: &str) -> Self {
        let listed = |name: &String| self.listed.iter().any(|server| server.name == *name);
        let more = self.selected.iter().filter(|name| !listed(name));
        let more = more.map(|name| ToolboxServer { name: name.clone(), ..ToolboxServer::default() });
        let all = self.listed.iter().cloned().chain(more);
        self.members = all.map(|server| Member::new(namespace, server, self.policy)).collect();
        self
    }

    /// The toolbox when a server of its namespace has these labels, or is gone; none when that makes
    /// no difference.
    #[must_use]
    pub fn with_server(&self, server: &ServerKey, labels: Option<&BTreeMap<String, String>>) -> Option<Self> {
        let selector = self.selector.as_ref()?;
        let is_selected = labels.is_some_and(|labels| selector.matches(labels));
        if is_selected == self.selected.contains(&server.name) {
            return None;
        }
        let mut new = self.clone();
        if is_selected {
            new.selected.insert(server.name.clone());
        } else {
            new.selected.remove(&server.name);
        }
        Some(new.with_members(&server.namespace))
    }

    /// Members that may have a tool of this name, each with its own name for it.
    pub fn tool<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a Member, &'a str)> {
        self.members.iter().filter_map(move |member| Some((member, member.own_tool(name)?)))
    }

    /// Members that may have a prompt of this name, each with its own name for it.
    pub fn prompt<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a Member, &'a str)> {
        self.members.iter().filter_map(move |member| Some((member, name.strip_prefix(&*member.prefix)?)))
    }

    /// Members that may have a resource of this URI, each with its own URI for it.
    pub fn resource<'a>(&'a self, uri: &'a str) -> impl Iterator<Item = (&'a Member, &'a str)> {
        self.members.iter().filter_map(move |member| Some((member, uri.strip_prefix(&*member.uri_prefix)?)))
    }
}

impl Member {
    fn new(namespace: &str, server: ToolboxServer, policy: ConflictPolicy) -> Self {
        let prefixed = policy == ConflictPolicy::Prefix;
        let default = || if prefixed { format!("{}_", server.name) } else { String::new() };
        let renames = server.tools.renames();
        Self {
            uri_prefix: if prefixed { format!("{}+", server.name) } else { String::new() },
            tools: server.tools.filter(),
            originals: renames.iter().map(|(own, new)| (new.clone(), own.clone())).collect(),
            renames,
            prefix: server.prefix.unwrap_or_else(default),
            server: ServerKey::new(namespace, server.name),
        }
    }

    /// The name in the toolbox of one of the member's tools; none when it is not in.
    #[must_use]
    pub fn tool(&self, own: &str) -> Option<String> {
        let renamed = || self.renames.get(own).cloned().unwrap_or_else(|| format!("{}{own}", self.prefix));
        self.tools.admits(own).then(renamed)
    }

    /// The member's own name of a tool of the toolbox; none when it cannot be one of the member's.
    #[must_use]
    pub fn own_tool<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let own = match self.originals.get(name) {
            Some(own) => own,
            None => name.strip_prefix(&*self.prefix).filter(|own| !self.renames.contains_key(*own))?,
        };
        self.tools.admits(own).then_some(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolbox(spec: &str) -> McpToolbox {
        let mut toolbox = McpToolbox::new("dev", serde_yaml_ng::from_str(spec).unwrap());
        toolbox.metadata.namespace = Some("default".into());
        toolbox
    }

    fn labels(team: &str) -> BTreeMap<String, String> {
        [("team".to_owned(), team.to_owned())].into()
    }

    fn names(toolbox: &Toolbox) -> Vec<&str> {
        toolbox.members.iter().map(|m| &*m.server.name).collect()
    }

    fn owners(toolbox: &Toolbox, name: &str) -> Vec<(String, String)> {
        toolbox.tool(name).map(|(member, own)| (member.server.name.clone(), own.to_owned())).collect()
    }

    #[test]
    fn names_lead_there_and_back() {
        let compiled = Toolbox::compile(
            &toolbox(
                "{servers: [{name: a}, {name: b, prefix: bee-}, {name: c, prefix: '', tools: {deny: [x], rename: [{name: y, to: why}]}}]}",
            ),
            [],
        );
        let exposed = |index: usize, own: &str| compiled.members[index].tool(own);
        assert_eq!(exposed(0, "x").as_deref(), Some("a_x"));
        assert_eq!(exposed(1, "x").as_deref(), Some("bee-x"));
        assert_eq!(exposed(2, "x"), None, "denied");
        assert_eq!((exposed(2, "y").as_deref(), exposed(2, "z").as_deref()), (Some("why"), Some("z")));
        let is = |name: &str, own: &str| vec![(name.to_owned(), own.to_owned())];
        assert_eq!(owners(&compiled, "bee-x"), [is("b", "x"), is("c", "bee-x")].concat());
        assert_eq!(owners(&compiled, "why"), is("c", "y"));
        assert_eq!(owners(&compiled, "y"), [], "a renamed tool has lost its old name");
        assert_eq!(owners(&compiled, "x"), [], "a denied tool cannot be called");
        assert_eq!(compiled.resource("b+file:///x").next().unwrap().1, "file:///x");
        assert_eq!(compiled.resource("file:///x").count(), 0);
    }

    #[test]
    fn only_one_policy_has_prefixes_of_its_own() {
        for policy in ["First", "Reject"] {
            let spec = format!("{{conflictPolicy: {policy}, servers: [{{name: a}}, {{name: b, prefix: b-}}]}}");
            let compiled = Toolbox::compile(&toolbox(&spec), []);
            assert_eq!(owners(&compiled, "x"), [("a".to_owned(), "x".to_owned())]);
            assert_eq!(compiled.prompt("b-x").count(), 2);
            assert_eq!(compiled.resource("file:///x").count(), 2);
        }
    }

    #[test]
    fn selected_servers_come_after_those_that_are_listed() {
        let object = toolbox("{servers: [{name: z}], selector: {matchLabels: {team: red}}}");
        let (red, blue) = (labels("red"), labels("blue"));
        let compiled = Toolbox::compile(&object, [("b", &red), ("a", &red), ("z", &red), ("c", &blue)]);
        assert_eq!(names(&compiled), ["z", "a", "b"]);
        let key = |name: &str| ServerKey::new("default", name);
        assert!(compiled.with_server(&key("a"), Some(&red)).is_none(), "nothing changed");
        assert!(compiled.with_server(&key("c"), Some(&blue)).is_none());
        let more = compiled.with_server(&key("c"), Some(&red)).unwrap();
        assert_eq!(names(&more), ["z", "a", "b", "c"]);
        let less = more.with_server(&key("a"), None).unwrap();
        assert_eq!(names(&less.with_server(&key("b"), Some(&blue)).unwrap()), ["z", "c"]);
        assert_eq!(names(&less.with_server(&key("z"), None).unwrap()), ["z", "b", "c"], "it is still listed");
        let listed = Toolbox::compile(&toolbox("{servers: [{name: z}]}"), [("a", &red)]);
        assert!(names(&listed) == ["z"] && listed.with_server(&key("a"), Some(&red)).is_none());
    }

    #[test]
    fn a_selector_that_makes_no_sense_selects_nothing() {
        let object = toolbox("{selector: {matchExpressions: [{key: team, operator: Like, values: [r]}]}}");
        assert!(selector_of(&object).is_err());
        assert_eq!(names(&Toolbox::compile(&object, [("a", &labels("red"))])), Vec::<&str>::new());
        let all = Toolbox::compile(&toolbox("{selector: {}}"), [("a", &labels("red"))]);
        assert_eq!(names(&all), ["a"], "an empty selector takes all");
    }
}
