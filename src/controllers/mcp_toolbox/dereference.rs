//! Step one: which servers a toolbox has, and how they say that they are.

use std::{collections::BTreeMap, sync::Arc};

use kube::{ResourceExt, runtime::reflector::Store};

use crate::{
    api::{
        mcp_server::{McpServer, McpServerStatus},
        mcp_toolbox::{McpToolbox, MemberStatus},
    },
    names::ServerKey,
    routing::{Toolbox, toolbox::selector_of},
};

/// The servers of a toolbox.
#[derive(Debug, Default)]
pub struct Found {
    /// How each of them is.
    pub members: Vec<MemberStatus>,
    /// Why the selector selects nothing, if it makes no sense.
    pub bad_selector: Option<String>,
}

/// `reason` of a server that is stopped on purpose.
pub const SUSPENDED: &str = "Suspended";

/// Whether a change of a server may be one of a toolbox.
pub fn may_have(toolbox: &McpToolbox, server: &ServerKey) -> bool {
    toolbox.namespace().as_deref() == Some(&*server.namespace)
        && (toolbox.spec.selector.is_some() || toolbox.spec.servers.iter().any(|s| s.name == server.name))
}

/// Finds the servers of a toolbox.
pub fn dereference(toolbox: &McpToolbox, servers: &Store<McpServer>) -> Found {
    let namespace = toolbox.namespace();
    let near: BTreeMap<String, Arc<McpServer>> = servers
        .state()
        .into_iter()
        .filter(|server| server.namespace() == namespace)
        .map(|server| (server.name_any(), server))
        .collect();
    of(toolbox, &near)
}

fn of(toolbox: &McpToolbox, near: &BTreeMap<String, Arc<McpServer>>) -> Found {
    let compiled = Toolbox::compile(toolbox, near.iter().map(|(name, server)| (&**name, server.labels())));
    let members = compiled.members.iter().map(|m| member(&m.server.name, near.get(&m.server.name).map(|s| &**s)));
    Found { members: members.collect(), bad_selector: selector_of(toolbox).err().map(|error| error.to_string()) }
}

fn member(name: &str, server: Option<&McpServer>) -> MemberStatus {
    let with = |ready, reason: &str, message: &str| MemberStatus {
        name: name.to_owned(),
        ready,
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let Some(server) = server else { return with(false, "NotFound", "there is no such McpServer") };
    if server.spec.suspend {
        return with(false, SUSPENDED, "it is suspended: set spec.suspend to false to start it");
    }
    let headline = server.status.as_ref().and_then(McpServerStatus::headline);
    match headline {
        Some(c) if c.type_ == "Ready" && c.status == "True" => with(true, "Ready", ""),
        Some(c) => with(false, &c.reason, &c.message),
        None => with(false, "Pending", "nobody has looked at it yet"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_server_says_how_it_is() {
        let server = |name: &str, suspend: bool, status: &str| {
            let server: McpServer = serde_json::from_value(json!({
                "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
                "metadata": {"name": name, "namespace": "default", "labels": {"team": "red"}},
                "spec": {"image": "x", "suspend": suspend},
                "status": {"conditions": [{"type": "Ready", "status": status, "reason": "R", "message": "m",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap();
            (name.to_owned(), Arc::new(server))
        };
        let near =
            BTreeMap::from([server("good", false, "True"), server("bad", false, "False"), server("off", true, "True")]);
        let mut toolbox = McpToolbox::new(
            "dev",
            serde_json::from_value(
                json!({"servers": [{"name": "gone"}], "selector": {"matchLabels": {"team": "red"}}}),
            )
            .unwrap(),
        );
        toolbox.metadata.namespace = Some("default".into());
        let found = of(&toolbox, &near);
        let told: Vec<_> = found.members.iter().map(|m| (&*m.name, m.ready, &*m.reason)).collect();
        assert_eq!(
            told,
            [("gone", false, "NotFound"), ("bad", false, "R"), ("good", true, "Ready"), ("off", false, SUSPENDED)]
        );
        let key = |namespace: &str, name: &str| ServerKey::new(namespace, name);
        assert!(may_have(&toolbox, &key("default", "any")) && !may_have(&toolbox, &key("other", "gone")));
        toolbox.spec.selector =
            serde_json::from_value(json!({"matchExpressions": [{"key": "a", "operator": "Like"}]})).ok();
        assert!(of(&toolbox, &near).bad_selector.is_some());
        toolbox.spec.selector = None;
        assert!(may_have(&toolbox, &key("default", "gone")) && !may_have(&toolbox, &key("default", "any")));
    }
}
