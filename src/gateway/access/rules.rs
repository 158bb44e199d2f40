//! Who may use which server and which tool. Pure.

use std::sync::Arc;

use super::{
    Identity,
    file::{AllowEntry, RateLimitEntry},
};
use crate::{api::mcp_toolbox::ToolboxAccess, names::ServerKey};

/// Everybody who has a name.
const AUTHENTICATED: &str = "system:authenticated";
/// Everybody who has none.
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// Whom a rule is for.
#[derive(Clone, Debug, Default)]
pub struct Subjects {
    users: Vec<String>,
    groups: Vec<String>,
}

impl Subjects {
    /// Those whom a toolbox is for.
    pub fn of(access: &ToolboxAccess) -> Self {
        Self { users: access.users.clone(), groups: access.groups.clone() }
    }

    /// Whether somebody is among them.
    pub fn has(&self, who: &Identity) -> bool {
        let named = !who.user.is_empty();
        named && self.users.iter().any(|user| user == "*" || **user == *who.user)
            || self.groups.iter().any(|group| match group.as_str() {
                AUTHENTICATED => named,
                UNAUTHENTICATED => !named,
                group => who.groups.iter().any(|own| own == group),
            })
    }
}

/// A server, all of a namespace, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ServerPattern {
    All,
    Namespace(String),
    One(ServerKey),
}

/// Which servers a rule is for.
#[derive(Clone, Debug)]
pub struct Servers(Vec<ServerPattern>);

impl Servers {
    fn parse(patterns: Option<&[String]>) -> Result<Self, String> {
        let Some(patterns) = patterns else { return Ok(Self(vec![ServerPattern::All])) };
        if patterns.is_empty() {
            return Err("`servers` is empty: leave it out for all servers".into());
        }
        let parse = |pattern: &String| {
            let sound = |part: &str| !part.is_empty() && !part.contains(['*', '/', ' ']);
            match pattern.split_once('/') {
                None if pattern == "*" => Ok(ServerPattern::All),
                Some((namespace, "*")) if sound(namespace) => Ok(ServerPattern::Namespace(namespace.into())),
                Some((namespace, name)) if sound(namespace) && sound(name) => {
                    Ok(ServerPattern::One(ServerKey::new(namespace, name)))
                }
                _ => Err(format!("{pattern:?} names no servers: write namespace/name, namespace/* or *")),
            }
        };
        Ok(Self(patterns.iter().map(parse).collect::<Result<_, _>>()?))
    }

    /// Whether a server is among them.
    pub fn has(&self, server: &ServerKey) -> bool {
        self.0.iter().any(|pattern| match pattern {
            ServerPattern::All => true,
            ServerPattern::Namespace(namespace) => *namespace == server.namespace,
            ServerPattern::One(one) => one == server,
        })
    }
}

/// Which tools a rule is for.
#[derive(Clone, Debug)]
pub struct Tools(Arc<[String]>);

impl Tools {
    fn parse(patterns: &[String]) -> Result<Self, String> {
        if patterns.is_empty() {
            return Err("`tools` is empty: leave it out for all tools".into());
        }
        for pattern in patterns {
            if pattern.is_empty() || pattern.strip_suffix('*').unwrap_or(pattern).contains('*') {
                return Err(format!(
                    "{pattern:?} names no tools: write a name, or how names begin followed by one * at the end"
                ));
            }
        }
        Ok(Self(patterns.into()))
    }

    /// Whether a tool is among them.
    pub fn has(&self, tool: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => tool.starts_with(beginning),
            None => pattern == tool,
        })
    }
}

/// What somebody may do with a server.
#[derive(Clone, Debug)]
pub enum Allowed {
    /// Nothing.
    Nothing,
    /// Everything.
    Everything,
    /// Everything but calls of tools that are in none of these.
    Tools(Vec<Tools>),
}

impl Allowed {
    /// Whether a tool may be called.
    pub fn tool(&self, tool: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Tools(tools) => tools.iter().any(|t| t.has(tool)),
        }
    }
}

/// All rules; none at all when nobody wrote any.
#[derive(Clone, Debug, Default)]
pub struct Rules(Option<Vec<Rule>>);

#[derive(Clone, Debug)]
struct Rule {
    subjects: Subjects,
    servers: Servers,
    tools: Option<Tools>,
}

impl Rules {
    /// The rules of these entries, or what is wrong with one of them.
    pub fn new(entries: Option<&[AllowEntry]>) -> Result<Self, String> {
        let Some(entries) = entries else { return Ok(Self(None)) };
        let parse = |(index, entry): (usize, &AllowEntry)| {
            let bad = |why: String| format!("allow[{index}]: {why}");
            if entry.users.is_empty() && entry.groups.is_empty() {
                return Err(bad("it is for nobody: name users or groups, such as users: [\"*\"]".into()));
            }
            Ok(Rule {
                subjects: Subjects { users: entry.users.clone(), groups: entry.groups.clone() },
                servers: Servers::parse(entry.servers.as_deref()).map_err(bad)?,
                tools: entry.tools.as_deref().map(Tools::parse).transpose().map_err(bad)?,
            })
        };
        Ok(Self(Some(entries.iter().enumerate().map(parse).collect::<Result<_, _>>()?)))
    }

    /// What somebody may do with a server: what any of the rules allows.
    pub fn allowed(&self, who: &Identity, server: &ServerKey) -> Allowed {
        let Some(rules) = &self.0 else { return Allowed::Everything };
        let mut tools = Vec::new();
        for rule in rules.iter().filter(|rule| rule.servers.has(server) && rule.subjects.has(who)) {
            match &rule.tools {
                None => return Allowed::Everything,
                Some(some) => tools.push(some.clone()),
            }
        }
        if tools.is_empty() { Allowed::Nothing } else { Allowed::Tools(tools) }
    }
}

/// Whom and what a limit is for.
#[derive(Clone, Debug)]
pub struct Scope {
    subjects: Option<Subjects>,
    servers: Servers,
    tools: Option<Tools>,
}

impl Scope {
    /// The scope of an entry, or what is wrong with it.
    pub fn new(entry: &RateLimitEntry) -> Result<Self, String> {
        let named = !entry.users.is_empty() || !entry.groups.is_empty();
        Ok(Self {
            subjects: named.then(|| Subjects { users: entry.users.clone(), groups: entry.groups.clone() }),
            servers: Servers::parse(entry.servers.as_deref())?,
            tools: entry.tools.as_deref().map(Tools::parse).transpose()?,
        })
    }

    /// Whether a message counts. `tool` is the tool that it calls.
    pub fn has(&self, who: &Identity, server: &ServerKey, tool: Option<&str>) -> bool {
        self.tools.as_ref().is_none_or(|tools| tool.is_some_and(|tool| tools.has(tool)))
            && self.servers.has(server)
            && self.subjects.as_ref().is_none_or(|subjects| subjects.has(who))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: &str, groups: &[&str]) -> Identity {
        Identity { user: user.into(), groups: groups.iter().map(ToString::to_string).collect(), operator: false }
    }

    fn rules(yaml: &str) -> Result<Rules, String> {
        let entries: Vec<AllowEntry> = serde_yaml_ng::from_str(yaml).unwrap();
        Rules::new(Some(&entries))
    }

    #[test]
    fn without_rules_everything_and_with_none_nothing() {
        let server = ServerKey::new("default", "a");
        assert!(Rules::new(None).unwrap().allowed(&who("dana", &[]), &server).tool("x"));
        assert!(matches!(rules("[]").unwrap().allowed(&who("dana", &[]), &server), Allowed::Nothing));
    }

    #[test]
    fn rules_add_up() {
        let rules = rules(
            r#"
            - {users: [dana], servers: [default/a], tools: [read_file, "list_*"]}
            - {users: [dana], servers: ["team/*"]}
            - {groups: [ops], servers: ["*"]}
            - {users: ["*"], servers: [default/open], tools: [echo]}
            - {groups: ["system:unauthenticated"], servers: [default/public]}
            - {groups: ["system:authenticated"], servers: [default/staff]}
            - {users: [dana], servers: [default/a], tools: [write]}
            "#,
        )
        .unwrap();
        let may = |user: &str, groups: &[&str], server: &str, tool: &str| {
            let (namespace, name) = server.split_once('/').unwrap();
            rules.allowed(&who(user, groups), &ServerKey::new(namespace, name)).tool(tool)
        };
        for (expected, user, groups, server, tool) in [
            (true, "dana", &[][..], "default/a", "read_file"),
            (true, "dana", &[], "default/a", "list_all"),
            (true, "dana", &[], "default/a", "write"),
            (false, "dana", &[], "default/a", "read_files"),
            (false, "dana", &[], "default/a", "a_list_"),
            (false, "dana", &[], "default/b", "read_file"),
            (false, "dana", &[], "default/ab", "read_file"),
            (false, "eve", &[], "default/a", "read_file"),
            (true, "dana", &[], "team/x", "anything"),
            (false, "dana", &[], "team-b/x", "anything"),
            (true, "eve", &["dev", "ops"], "default/a", "anything"),
            (false, "ops", &[], "default/a", "anything"),
            (true, "eve", &[], "default/open", "echo"),
            (false, "", &[], "default/open", "echo"),
            (true, "", &[], "default/public", "echo"),
            (false, "eve", &[], "default/public", "echo"),
            (true, "eve", &[], "default/staff", "echo"),
            (false, "", &[], "default/staff", "echo"),
            (false, "", &["system:authenticated"], "default/staff", "echo"),
        ] {
            assert_eq!(may(user, groups, server, tool), expected, "{user} {groups:?} {server} {tool}");
        }
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for (yaml, expected) in [
            ("[{servers: ['*']}]", "it is for nobody"),
            ("[{users: [a], servers: []}]", "`servers` is empty"),
            ("[{users: [a], tools: []}]", "`tools` is empty"),
            ("[{users: [a], servers: [a]}]", "names no servers"),
            ("[{users: [a], servers: ['*/a']}]", "names no servers"),
            ("[{users: [a], servers: ['a/b*']}]", "names no servers"),
            ("[{users: [a], servers: ['a/b/c']}]", "names no servers"),
            ("[{users: [a], tools: ['a*b']}]", "names no tools"),
            ("[{users: [a], tools: ['']}]", "names no tools"),
        ] {
            let error = rules(yaml).unwrap_err();
            assert!(error.contains(expected) && error.starts_with("allow[0]"), "{yaml}: {error}");
        }
    }
}
