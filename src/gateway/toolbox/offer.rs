//! What a toolbox offers: the lists of its servers, under the names that they have in it. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use serde_json::value::RawValue;

use super::catalog::{Kind, List};
use crate::{
    api::mcp_toolbox::ConflictPolicy,
    gateway::{
        access::VisibleTools,
        message::{raw, with_member},
    },
    names::ServerKey,
    routing::{Toolbox, toolbox::Member},
};

/// Key in `_meta` of a list: servers that are not in it, and why.
pub const META_UNAVAILABLE: &str = "perch.dev/unavailable";
/// Key in `_meta` of a list: names that several servers have.
pub const META_CONFLICTS: &str = "perch.dev/conflicts";

/// What is known of a server's list.
pub struct Part {
    /// The server.
    pub server: ServerKey,
    /// What it has; the reason where it has nothing to give.
    pub list: Result<Arc<List>, Missing>,
    /// What it had, of a server that does not answer. Its names stay its own.
    pub had: Option<Arc<List>>,
    /// Which of its tools the client sees.
    pub visible: VisibleTools,
}

/// Why a server's list is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It did not answer: the client is told.
    Failed(Arc<str>),
    /// It is not for this client, or stopped on purpose.
    Hidden,
}

/// The lists of all servers of a toolbox.
pub struct Lists(pub Vec<Part>);

/// Servers that have the same name for something.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The name.
    pub name: String,
    /// The servers, the first one first.
    pub servers: Vec<String>,
}

#[derive(Serialize)]
struct Unavailable<'a> {
    server: &'a str,
    reason: &'a str,
}

impl Part {
    fn known(&self) -> Option<&List> {
        self.list.as_ref().ok().or(self.had.as_ref()).map(|list| &**list)
    }
}

impl Lists {
    /// Whether a server is known to have something.
    pub fn has(&self, server: &ServerKey, kind: Kind, own: &str) -> bool {
        let part = self.0.iter().find(|part| part.server == *server);
        part.and_then(Part::known).is_some_and(|list| match kind {
            // A URI that is read may be one that a template stands for.
            Kind::Templates => list.items.iter().any(|item| item.id == own || super::uri::fits(&item.id, own)),
            _ => list.items.iter().any(|item| item.id == own),
        })
    }
}

/// Whose a name is, of those that have it; none when it is nobody's.
pub fn winner<'a, T>(policy: ConflictPolicy, owners: &[&'a T]) -> Option<&'a T> {
    match (owners, policy) {
        ([only], _) => Some(only),
        ([first, ..], ConflictPolicy::First) => Some(first),
        _ => None,
    }
}

/// The name of something in the toolbox; none when it is not in.
fn exposed(member: &Member, kind: Kind, own: &str) -> Option<String> {
    match kind {
        Kind::Tools => member.tool(own),
        Kind::Prompts => Some(format!("{}{own}", member.prefix)),
        Kind::Resources | Kind::Templates => Some(format!("{}{own}", member.uri_prefix)),
    }
}

/// Whether a name would be called what it stands for: of a server's tools, one may have been given
/// another's name.
fn leads_back(member: &Member, kind: Kind, name: &str, own: &str) -> bool {
    kind != Kind::Tools || member.own_tool(name) == Some(own)
}

/// An offered thing: its name, as it stands in its own server's list, and whose it is.
type Offered<'a> = (String, &'a RawValue, usize);

/// What is offered, in the order of the servers, and which names are not, or not all.
fn offered<'a>(toolbox: &Toolbox, kind: Kind, lists: &'a Lists) -> (Vec<Offered<'a>>, Vec<Conflict>) {
    let mut all: Vec<(String, &str, &RawValue, usize)> = Vec::new();
    for (index, member) in toolbox.members.iter().enumerate() {
        let Some(list) = lists.0.get(index).and_then(Part::known) else { continue };
        let mut own = HashSet::new();
        for item in &list.items {
            // A server that lists a name twice has it once.
            let name = exposed(member, kind, &item.id).filter(|name| leads_back(member, kind, name, &item.id));
            if let Some(name) = name.filter(|_| own.insert(&*item.id)) {
                all.push((name, &item.id, &item.raw, index));
            }
        }
    }
    let mut owners: HashMap<&str, Vec<usize>> = HashMap::with_capacity(all.len());
    for (name, _, _, index) in &all {
        let owners = owners.entry(name).or_default();
        if owners.last() != Some(index) {
            owners.push(*index);
        }
    }
    let server = |index: &usize| toolbox.members[*index].server.name.clone();
    let mut conflicts: Vec<Conflict> = owners
        .iter()
        .filter(|(_, owners)| owners.len() > 1)
        .map(|(name, owners)| Conflict { name: (*name).to_owned(), servers: owners.iter().map(server).collect() })
        .collect();
    conflicts.sort_by(|a, b| a.name.cmp(&b.name));
    let is_in = |name: &str, own: &str, index: usize| {
        let part = &lists.0[index];
        let owners: Vec<&usize> = owners[name].iter().collect();
        part.list.is_ok()
            && winner(toolbox.policy, &owners) == Some(&index)
            && (kind != Kind::Tools || part.visible.admits(own))
    };
    let chosen: Vec<bool> = all.iter().map(|(name, own, _, index)| is_in(name, own, *index)).collect();
    let items = all.into_iter().zip(chosen).filter(|(_, is_in)| *is_in);
    (items.map(|((name, _, item, index), _)| (name, item, index)).collect(), conflicts)
}

/// The result of a list: all in one page. `left_out` is told of each server that is missing.
pub fn result(toolbox: &Toolbox, kind: Kind, lists: &Lists, left_out: impl Fn(&ServerKey)) -> Box<RawValue> {
    let (items, conflicts) = offered(toolbox, kind, lists);
    let size: usize = items.iter().map(|(_, item, _)| item.get().len() + 32).sum();
    let mut text = String::with_capacity(size + 256);
    text.extend(["{\"", kind.member(), "\":["]);
    for (position, (name, item, _)) in items.iter().enumerate() {
        if position > 0 {
            text.push(',');
        }
        let renamed = with_member(item, &[kind.id()], &raw(name));
        text.push_str(renamed.as_deref().unwrap_or(item).get());
    }
    let failed = lists.0.iter().filter_map(|part| match &part.list {
        Err(Missing::Failed(reason)) => Some((&part.server, reason)),
        _ => None,
    });
    let unavailable: Vec<Unavailable<'_>> = failed
        .inspect(|(server, _)| left_out(server))
        .map(|(server, reason)| Unavailable { server: &server.name, reason })
        .collect();
    // What is not complete is not worth keeping.
    let ttl = lists.0.iter().filter_map(|part| part.list.as_ref().ok()).map(|list| list.remaining()).min();
    let ttl = if unavailable.is_empty() { ttl.unwrap_or_default() } else { Duration::ZERO };
    text.push_str("],\"resultType\":\"complete\",\"ttlMs\":");
    text.push_str(&ttl.as_millis().to_string());
    // Who asks may matter.
    text.push_str(",\"cacheScope\":\"private\"");
    let mut meta = serde_json::Map::new();
    if !unavailable.is_empty() {
        meta.insert(META_UNAVAILABLE.into(), serde_json::json!(unavailable));
    }
    if !conflicts.is_empty() {
        meta.insert(META_CONFLICTS.into(), serde_json::json!(conflicts));
    }
    if !meta.is_empty() {
        text.extend([",\"_meta\":", &serde_json::Value::Object(meta).to_string()]);
    }
    text.push('}');
    RawValue::from_string(text).unwrap_or_else(|_| crate::gateway::message::object())
}

#[cfg(test)]
mod tests;
