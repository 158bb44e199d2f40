//! `Mcp-Param-*`: arguments of a tool that its schema wants repeated in headers.
//!
//! A legacy client knows nothing of them, so the gateway adds them for it, from the schemas that
//! the server lists. They are read once for each revision, and again when a tool is not among them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use http::{HeaderName, HeaderValue};
use serde_json::{Value, json, value::RawValue};

use super::{
    era::{self, META_CAPABILITIES, META_VERSION, MODERN},
    message::{self, Message, member, raw, text},
    peer::{HttpPeer, Peer},
};
use crate::names::ServerKey;

/// Pages of tools that are read.
const MOST_PAGES: usize = 100;
/// Revisions whose tools are kept.
const MOST_KNOWN: usize = 1024;

/// An argument that goes into a header.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parameter {
    path: Vec<String>,
    header: HeaderName,
}

type Tools = HashMap<String, Vec<Parameter>>;

/// What the tools of servers want repeated.
#[derive(Default)]
pub struct ParameterHeaders {
    known: Mutex<HashMap<(ServerKey, String), Arc<Tools>>>,
}

impl ParameterHeaders {
    /// The headers for a call of a tool.
    pub async fn headers(&self, peer: &HttpPeer, call: &Message<'_>) -> Vec<(HeaderName, HeaderValue)> {
        let Some(tool) = call.param("name") else { return Vec::new() };
        let key = (peer.call.route.server.clone(), peer.target.place.revision.clone());
        let known = self.known.lock().expect("nobody panics while holding the tools").get(&key).cloned();
        let tools = match known.filter(|tools| tools.contains_key(&*tool)) {
            Some(tools) => tools,
            None => {
                let tools = Arc::new(read(peer).await);
                let mut known = self.known.lock().expect("nobody panics while holding the tools");
                if known.len() >= MOST_KNOWN {
                    known.clear();
                }
                known.insert(key, Arc::clone(&tools));
                tools
            }
        };
        let Some(parameters) = tools.get(&*tool) else { return Vec::new() };
        let arguments = call.param_raw("arguments");
        parameters
            .iter()
            .filter_map(|parameter| {
                let value = parameter.path.iter().try_fold(arguments?, |value, name| member(value, name))?;
                let value = HeaderValue::from_str(&era::encode(&plain(value)?)).ok()?;
                Some((parameter.header.clone(), value))
            })
            .collect()
    }
}

/// A text, number or truth value as text.
fn plain(value: &RawValue) -> Option<String> {
    match value.get().as_bytes().first()? {
        b'"' => text(value).map(Into::into),
        b'{' | b'[' | b'n' => None,
        _ => Some(value.get().to_owned()),
    }
}

/// The tools of a server; none of one that does not list them.
async fn read(peer: &HttpPeer) -> Tools {
    let peer = Peer::Http(peer.clone());
    let mut tools = Tools::new();
    let mut cursor: Option<String> = None;
    for _ in 0..MOST_PAGES {
        let mut params = json!({"_meta": {META_VERSION: MODERN, META_CAPABILITIES: {}}});
        if let Some(cursor) = &cursor {
            params["cursor"] = cursor.clone().into();
        }
        let request = message::request(Some(&raw("perch-tools")), "tools/list", Some(&raw(params)));
        let Ok(answer) = peer.ask(&request).await else { return tools };
        let page: Option<Value> = Message::parse(&answer).and_then(|m| serde_json::from_str(m.result?.get()).ok());
        let Some(page) = page else { return tools };
        for tool in page["tools"].as_array().into_iter().flatten() {
            let mut parameters = Vec::new();
            collect(&tool["inputSchema"], &mut Vec::new(), &mut parameters);
            tools.insert(tool["name"].as_str().unwrap_or_default().to_owned(), parameters);
        }
        cursor = page["nextCursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    tools
}

/// The annotated properties of a schema, those of objects within it too.
fn collect(schema: &Value, path: &mut Vec<String>, into: &mut Vec<Parameter>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        path.push(name.clone());
        let header =
            property["x-mcp-header"].as_str().map(|header| format!("mcp-param-{}", header.to_ascii_lowercase()));
        if let Some(header) = header.and_then(|header| HeaderName::try_from(header).ok()) {
            into.push(Parameter { path: path.clone(), header });
        }
        collect(property, path, into);
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotated_properties_are_found_at_any_depth() {
        let schema = json!({"type": "object", "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "plain": {"type": "string"},
            "where": {"type": "object", "properties": {"zone": {"type": "integer", "x-mcp-header": "Zone"}}},
        }});
        let mut found = Vec::new();
        collect(&schema, &mut Vec::new(), &mut found);
        let found: Vec<(String, String)> = found.iter().map(|p| (p.path.join("."), p.header.to_string())).collect();
        assert_eq!(
            found,
            [("region".into(), "mcp-param-region".into()), ("where.zone".into(), "mcp-param-zone".into())]
        );
        assert_eq!(plain(&raw("x")).as_deref(), Some("x"));
        assert_eq!(plain(&raw(1)).as_deref(), Some("1"));
        assert_eq!(plain(&raw(json!(null))), None);
    }
}
