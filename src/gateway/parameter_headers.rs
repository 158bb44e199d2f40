//! `Mcp-Param-*`: arguments of a tool that its schema wants repeated in headers.
//!
//! A legacy client knows nothing of them, so the gateway adds them for it, from the schemas that
//! the server lists; a server that sees no headers has them checked by the gateway. Schemas are read once for each revision, and again when a tool is not among them.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json, value::RawValue};

use super::{
    era::{self, META_CAPABILITIES, META_VERSION, MODERN},
    handler::Call,
    message::{self, Message, member, raw, text},
    peer::Peer,
    reply::{self, Failure},
};
use crate::names::ServerKey;

/// Pages of tools that are read.
const MOST_PAGES: usize = 100;
/// Time before tools are read again for one that is not among them.
const AGAIN: Duration = Duration::from_secs(10);
/// Revisions whose tools are kept.
const MOST_KNOWN: usize = 1024;

/// An argument that goes into a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    path: Vec<String>,
    header: HeaderName,
}

/// The tools of a revision, and when they were read.
struct Tools {
    by_name: HashMap<String, Vec<Parameter>>,
    read: Instant,
}

/// What the tools of servers want repeated.
pub struct ParameterHeaders {
    /// How long a server may take to list its tools.
    limit: Duration,
    known: Mutex<HashMap<(ServerKey, String), Arc<Tools>>>,
}

impl ParameterHeaders {
    /// Knows no tools yet. A server that takes longer than `limit` to list them has none here.
    pub fn new(limit: Duration) -> Self {
        Self { limit, known: Mutex::default() }
    }

    /// The headers for a call of a tool, for a client that does not know of them.
    pub async fn headers(
        &self,
        revision: &str,
        peer: &Peer,
        call: &Call,
        message: &Message<'_>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let Some((tools, name)) = self.tools(revision, peer, call, message).await else { return Vec::new() };
        let wanted = tools.by_name.get(&*name).into_iter().flatten();
        wanted.filter_map(|parameter| parameter.header(message)).collect()
    }

    /// Refuses a call of a tool whose headers do not repeat what its schema wants repeated, for a
    /// server that sees no headers.
    ///
    /// # Errors
    /// When headers and body disagree.
    pub async fn check(&self, revision: &str, peer: &Peer, call: &Call, message: &Message<'_>) -> Result<(), Failure> {
        if message.method() != "tools/call" {
            return Ok(());
        }
        let Some((tools, name)) = self.tools(revision, peer, call, message).await else { return Ok(()) };
        for parameter in tools.by_name.get(&*name).into_iter().flatten() {
            let body = parameter.value(message);
            let header = call.parts.headers.get(&parameter.header);
            let header = header.map(|value| value.to_str().ok().and_then(era::decode));
            let agree = match (&header, &body) {
                (None, None) => true,
                (Some(Some(header)), Some(body)) => header == body,
                _ => false,
            };
            if !agree {
                let text = format!(
                    "the {} header and params.arguments.{} must be the same",
                    parameter.header,
                    parameter.path.join(".")
                );
                return Err(Failure::new(StatusCode::BAD_REQUEST, reply::HEADER_MISMATCH, text));
            }
        }
        Ok(())
    }

    async fn tools<'m>(
        &self,
        revision: &str,
        peer: &Peer,
        call: &Call,
        message: &Message<'m>,
    ) -> Option<(Arc<Tools>, Cow<'m, str>)> {
        let name = message.param("name")?;
        let key = (call.route.server.clone(), revision.to_owned());
        let known = self.known.lock().expect("nobody panics while holding the tools").get(&key).cloned();
        // A name that nobody knows must not make the server list its tools each time.
        if let Some(tools) = known.filter(|t| t.by_name.contains_key(&*name) || t.read.elapsed() < AGAIN) {
            return Some((tools, name));
        }
        let by_name = tokio::time::timeout(self.limit, read(peer)).await.unwrap_or_default();
        let tools = Arc::new(Tools { by_name, read: Instant::now() });
        let mut known = self.known.lock().expect("nobody panics while holding the tools");
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(key, Arc::clone(&tools));
        Some((tools, name))
    }
}

impl Parameter {
    /// The header for a call, when the argument is there.
    pub fn header(&self, message: &Message<'_>) -> Option<(HeaderName, HeaderValue)> {
        let value = HeaderValue::from_str(&era::encode(&self.value(message)?)).ok()?;
        Some((self.header.clone(), value))
    }

    /// The argument in a call, as a header says it.
    fn value(&self, message: &Message<'_>) -> Option<String> {
        let arguments = message.param_raw("arguments")?;
        plain(self.path.iter().try_fold(arguments, |value, name| member(value, name))?)
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
async fn read(peer: &Peer) -> HashMap<String, Vec<Parameter>> {
    let mut tools = HashMap::new();
    let mut cursor: Option<String> = None;
    for _ in 0..MOST_PAGES {
        let mut params = json!({});
        if peer.is_modern() {
            params["_meta"] = json!({META_VERSION: MODERN, META_CAPABILITIES: {}});
        }
        if let Some(cursor) = &cursor {
            params["cursor"] = cursor.clone().into();
        }
        let request = message::request(Some(&raw("perch-tools")), "tools/list", Some(&raw(params)));
        let Ok(answer) = peer.ask(&request).await else { return tools };
        let page: Option<Value> = Message::parse(&answer).and_then(|m| serde_json::from_str(m.result?.get()).ok());
        let Some(page) = page else { return tools };
        tools.extend(listed(&page));
        cursor = page["nextCursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    tools
}

/// The tools of a `tools/list` result, and what each wants repeated.
pub fn listed(result: &Value) -> impl Iterator<Item = (String, Vec<Parameter>)> {
    result["tools"].as_array().into_iter().flatten().map(|tool| {
        let mut parameters = Vec::new();
        collect(&tool["inputSchema"], &mut Vec::new(), &mut parameters);
        (tool["name"].as_str().unwrap_or_default().to_owned(), parameters)
    })
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

/// How many headers a schema wants.
#[cfg(test)]
pub fn wanted(schema: &Value) -> usize {
    let mut parameters = Vec::new();
    collect(schema, &mut Vec::new(), &mut parameters);
    parameters.len()
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
