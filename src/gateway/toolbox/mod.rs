//! Several servers behind one endpoint.
//!
//! To its clients a toolbox is one server of the modern era, which legacy clients meet through the
//! same translation as any other ([`legacy_client`]). To each of its servers it is one client of the
//! modern era: what it asks them takes the way of every other request ([`member`]), so that access,
//! filters, releases, translation, counters and the audit log are those of the server itself.
//!
//! * What a client **lists** comes from lists that the gateway keeps ([`catalog`]) and puts together
//!   by the toolbox's rule ([`offer`]). A server that has none in time is left out, and the answer
//!   says so.
//! * What a client **calls** goes to the server whose it is, under the server's own name for it; the
//!   bytes of arguments and answers stay as they are, but for names and URIs ([`uri`]).
//! * What a client **listens** to are changes of what it would be shown ([`listen`]).

mod catalog;
mod listen;
mod member;
mod offer;
mod uri;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::{Method, Response, StatusCode, header, request::Parts};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde_json::{Value, json, value::RawValue};

pub use catalog::Catalog;
pub use member::{ToolboxPeer, is_own};

use super::{
    access,
    era::{self, Era, LEGACY_VERSIONS, META_SERVER, MODERN},
    handler::{Call, Gateway},
    message::{self, Kind as MessageKind, Message, raw, with_member},
    peer::Peer,
    reply::{self, Body, Failure, SESSION},
    session::{Home, Translated},
    translate::{legacy_client, modern_client},
};
use crate::{
    names::ServerKey,
    routing::{RouteTable, Toolbox, toolbox::Member},
};
use catalog::{Kind, Wanted};

/// What the gateway keeps for its toolboxes.
#[derive(Default)]
pub struct Toolboxes {
    catalog: Catalog,
    left_out: Family<LeftOut, Counter>,
}

/// Which server of which toolbox was left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeftOut {
    namespace: String,
    toolbox: String,
    server: String,
}

impl Toolboxes {
    /// Adds what is counted.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "perch_gateway_toolbox_servers_left_out",
            "Lists that a toolbox gave without one of its servers, because that did not answer in time",
            self.left_out.clone(),
        );
    }

    fn count_left_out(&self, toolbox: &ServerKey, server: &ServerKey) {
        let label = LeftOut {
            namespace: toolbox.namespace.clone(),
            toolbox: toolbox.as_toolbox().unwrap_or_default().to_owned(),
            server: server.name.clone(),
        };
        self.left_out.get_or_create(&label).inc();
    }
}

/// Methods that become a request to one of the servers.
pub fn goes_on(method: &str) -> bool {
    matches!(method, "tools/call" | "prompts/get" | "resources/read" | "completion/complete")
}

/// What is said where there is no such toolbox.
pub fn unknown(toolbox: &ServerKey) -> String {
    let name = toolbox.as_toolbox().unwrap_or_default();
    format!(
        "there is no toolbox {name} in namespace {}: `kubectl get mcptoolboxes -A` lists those that there are",
        toolbox.namespace
    )
}

/// The toolboxes that somebody may use.
pub fn index(table: &RouteTable, parts: &Parts, host: &str) -> Vec<Value> {
    let may_use = |key: &ServerKey| {
        let route = table.find(key)?;
        let crate::routing::Upstream::Toolbox(toolbox) = &route.upstream else { return None };
        may_enter(parts, toolbox).then_some(())
    };
    let toolboxes = table.toolboxes().into_iter().filter(|key| may_use(key).is_some());
    toolboxes
        .map(|key| json!({"namespace": key.namespace, "name": key.as_toolbox(), "url": format!("http://{host}/{key}/mcp")}))
        .collect()
}

/// Whether somebody may use a toolbox: it is for them, and they may use one of its servers at least.
fn may_enter(parts: &Parts, toolbox: &Toolbox) -> bool {
    toolbox.access.as_ref().is_none_or(|access| access::is_for(parts, access))
        && (toolbox.members.is_empty() || toolbox.members.iter().any(|m| access::may_see(parts, &m.server)))
}

/// Answers a request to a toolbox.
///
/// # Errors
/// When whoever asks may not use it, or asks for what is not there.
pub async fn answer(
    gateway: &Arc<Gateway>,
    call: &Call,
    message: &Message<'_>,
    era: Era,
    toolbox: &Arc<Toolbox>,
) -> Result<Response<Body>, Failure> {
    if !may_enter(&call.parts, toolbox) {
        let name = call.route.server.as_toolbox().unwrap_or_default();
        let text =
            format!("you may not use toolbox {name}: it is for others, or no rule allows you any of its servers");
        return Err(Failure::new(StatusCode::FORBIDDEN, reply::INVALID_REQUEST, text));
    }
    if era == Era::Modern {
        if message.kind() != MessageKind::Request {
            return Ok(reply::empty(StatusCode::ACCEPTED));
        }
        era::check_meta(message)?;
        return modern(gateway, call, message, toolbox).await;
    }
    if message.method() == "initialize" {
        let session = legacy_client::introduce(message, String::new());
        let body = legacy_client::initialized(message, &discovered(&call.route.server), name_of(call));
        let mut response = reply::json(StatusCode::OK, body);
        response.headers_mut().insert(SESSION, gateway.seal(call, &Home::Translated(session))?);
        return Ok(response);
    }
    let session = session(gateway, call)?;
    let peer = Peer::Toolbox(ToolboxPeer::new(gateway, call));
    match call.parts.method {
        Method::DELETE => Ok(legacy_client::delete(gateway, &session)),
        Method::GET => Ok(legacy_client::listen(gateway, &session, peer)),
        _ => Ok(legacy_client::answer(gateway, call, message, session, peer).await?),
    }
}

fn session(gateway: &Gateway, call: &Call) -> Result<Translated, Failure> {
    match gateway.session(call)? {
        Some(Home::Translated(session)) => Ok(session),
        Some(_) => Err(Failure::no_session()),
        None => Err(Failure::new(
            StatusCode::BAD_REQUEST,
            reply::INVALID_REQUEST,
            "the Mcp-Session-Id header is missing: send initialize first, and the id that it gives with every request",
        )),
    }
}

fn name_of(call: &Call) -> &str {
    call.route.server.as_toolbox().unwrap_or_default()
}

/// What a toolbox says of itself. It offers what any server may offer: servers come and go while a
/// client cannot be told of other capabilities.
fn discovered(toolbox: &ServerKey) -> Box<RawValue> {
    let mut versions = vec![MODERN];
    versions.extend(LEGACY_VERSIONS.iter().rev());
    let info = json!({"name": toolbox.as_toolbox(), "version": env!("CARGO_PKG_VERSION")});
    raw(json!({
        "resultType": "complete",
        "supportedVersions": versions,
        "capabilities": {
            "tools": {"listChanged": true},
            "prompts": {"listChanged": true},
            "resources": {"listChanged": true, "subscribe": true},
            "completions": {},
            "logging": {},
        },
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": {META_SERVER: info},
    }))
}

/// Answers a request of the modern era.
async fn modern(
    gateway: &Arc<Gateway>,
    call: &Call,
    message: &Message<'_>,
    toolbox: &Arc<Toolbox>,
) -> Result<Response<Body>, Failure> {
    let done = |result: &RawValue| Ok(reply::json(StatusCode::OK, message::result(message.id, result)));
    match message.method() {
        "server/discover" => done(&discovered(&call.route.server)),
        "subscriptions/listen" => Ok(listen::listen(gateway, call, message)),
        method if goes_on(method) => pass(gateway, call, message, toolbox).await,
        method => {
            let Some(kind) = Kind::of_method(method) else {
                let text = format!("Method not found: {method}");
                return Err(Failure::new(StatusCode::NOT_FOUND, reply::NO_METHOD, text));
            };
            if message.param_raw("cursor").is_some() {
                let text = "no such cursor: the whole list comes at once";
                return Err(Failure::new(StatusCode::OK, reply::INVALID_PARAMS, text));
            }
            let lists = Wanted::new(call, message, kind).of(gateway, &toolbox.members.iter().collect::<Vec<_>>()).await;
            done(&offer::result(toolbox, kind, &lists, |server| {
                gateway.toolboxes.count_left_out(&call.route.server, server);
            }))
        }
    }
}

fn invalid(text: impl Into<String>) -> Failure {
    Failure::new(StatusCode::OK, reply::INVALID_PARAMS, text)
}

/// What a request names, and where in its parameters.
struct Named {
    kind: Kind,
    path: &'static [&'static str],
    name: String,
}

fn named(message: &Message<'_>) -> Result<Named, Failure> {
    let of = |kind, path: &'static [&'static str]| {
        let mut at = message.params;
        for name in path {
            at = at.and_then(|at| message::member(at, name));
        }
        let name = at.and_then(message::text).map(std::borrow::Cow::into_owned);
        name.map(|name| Named { kind, path, name })
            .ok_or_else(|| invalid(format!("params.{} is missing", path.join("."))))
    };
    match message.method() {
        "tools/call" => of(Kind::Tools, &["name"]),
        "prompts/get" => of(Kind::Prompts, &["name"]),
        "resources/read" => of(Kind::Resources, &["uri"]),
        _ => {
            let type_ = message.param_raw("ref").and_then(|r| message::member(r, "type")).and_then(message::text);
            match type_.as_deref() {
                Some("ref/prompt") => of(Kind::Prompts, &["ref", "name"]),
                Some("ref/resource") => of(Kind::Templates, &["ref", "uri"]),
                _ => Err(invalid("params.ref.type is neither ref/prompt nor ref/resource")),
            }
        }
    }
}

/// Sends a request on to the server whose thing it names.
async fn pass(
    gateway: &Arc<Gateway>,
    call: &Call,
    message: &Message<'_>,
    toolbox: &Arc<Toolbox>,
) -> Result<Response<Body>, Failure> {
    let Named { kind, path, name } = named(message)?;
    let (member, own) = owner(gateway, call, message, toolbox, kind, &name).await?;
    let params = message.params.and_then(|params| with_member(params, path, &raw(own)));
    let body = message.line(None, params.as_deref());
    let Some(mut inner) = member::enter(gateway, call, &member.server, &body) else {
        return Err(kind.unknown(&name));
    };
    if call.parts.extensions.get::<member::FromLegacy>().is_some() && message.method() == "tools/call" {
        member::add_parameter_headers(gateway, &mut inner).await;
    }
    call.trail.hand_on();
    let mut response = member::forward(gateway, inner).await;
    // The toolbox's client has no session with the server.
    response.headers_mut().remove(SESSION);
    if member.uri_prefix.is_empty() || !response.headers().contains_key(header::CONTENT_TYPE) {
        return Ok(response);
    }
    uri::outward(response, member.uri_prefix.clone(), gateway.config.line_limit).await
}

/// Whose a name is, and what it is called there.
async fn owner<'t>(
    gateway: &Arc<Gateway>,
    call: &Call,
    message: &Message<'_>,
    toolbox: &'t Arc<Toolbox>,
    kind: Kind,
    name: &'t str,
) -> Result<(&'t Member, &'t str), Failure> {
    let candidates: Vec<(&Member, &str)> = match kind {
        Kind::Tools => toolbox.tool(name).collect(),
        Kind::Prompts => toolbox.prompt(name).collect(),
        Kind::Resources | Kind::Templates => toolbox.resource(name).collect(),
    };
    match candidates.as_slice() {
        [] => return Err(kind.unknown(name)),
        [only] => return Ok(*only),
        _ => {}
    }
    // Their lists tell. Only a name that nobody is known to have is worth waiting for those that do
    // not answer.
    let mut looks = Vec::new();
    for patient in [false, true] {
        looks.extend(kind.where_to_look().iter().map(|kind| (patient, *kind)));
    }
    let members: Vec<&Member> = candidates.iter().map(|(member, _)| *member).collect();
    for (patient, kind) in looks {
        let lists = Wanted { patient, ..Wanted::new(call, message, kind) }.of(gateway, &members).await;
        let owners: Vec<_> = candidates.iter().filter(|(member, own)| lists.has(&member.server, kind, own)).collect();
        match offer::winner(toolbox.policy, &owners) {
            Some(owner) => return Ok(*owner),
            None if owners.is_empty() => {}
            None => {
                let servers: Vec<&str> = owners.iter().map(|(member, _)| &*member.server.name).collect();
                return Err(invalid(format!("{name} is not offered: servers {} all have it", servers.join(" and "))));
            }
        }
    }
    Err(kind.unknown(name))
}

/// Capabilities of clients by which a server may decide what it lists, with their details.
const CAPABILITIES: [(&str, &[&str]); 3] =
    [("elicitation", &["form", "url"]), ("roots", &["listChanged"]), ("sampling", &["context", "tools"])];

/// The capabilities of a client by which lists may differ, always in the same form: however clients
/// put theirs, there are few different ones, and so few lists.
fn capabilities(message: &Message<'_>) -> Arc<str> {
    let told = modern_client::capabilities(message);
    let mut known = serde_json::Map::new();
    for (name, details) in CAPABILITIES {
        let Some(said) = message::member(&told, name) else { continue };
        let has = |detail: &&&str| message::member(said, detail).is_some_and(|value| value.get() != "false");
        let value = if name == "roots" { json!(true) } else { json!({}) };
        let details = details.iter().filter(has).map(|detail| ((*detail).to_owned(), value.clone()));
        known.insert(name.to_owned(), Value::Object(details.collect()));
    }
    Value::Object(known).to_string().into()
}
