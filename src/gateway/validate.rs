//! Arguments of tools against the schemas that the server lists, for servers whose spec asks for it.
//!
//! Schemas are read from the revision that would take the call, compiled once, and kept for it.
//! Nobody is refused by an old schema: before a call is refused, one that was not just read is read
//! again. What cannot be checked (no schema, one that does not compile, one that could take long)
//! passes, and is counted and logged. A server that does not ask for checks pays one comparison.
//!
//! Schemas come from servers and arguments from clients, and neither may stop the gateway:
//! references lead nowhere but into the schema itself, patterns take linear time, and what a check
//! may cost is bounded before it begins ([`Cost`]).

mod cost;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use jsonschema::{PatternOptions, Validator};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde_json::{Value, json};

use super::{
    era::{self, Era, META_CAPABILITIES, META_VERSION, MODERN},
    handler::{Call, Gateway},
    message::{self, Kind, Message, raw},
    reply::{self, Failure, Told, VERSION},
    session::{Home, Principal, Translated},
    sse,
};
use crate::{
    api::mcp_server::ToolFilter,
    names::{Revision, ServerKey},
    routing::{Route, Upstream},
};
use cost::Cost;

/// The first version in which arguments that do not fit are a result of the tool, so that a model
/// sees them and can do better (MCP 2025-11-25, "Error Handling" of tools).
const TOLD_IN_RESULT: &str = "2025-11-25";
/// A schema that was read so recently is what the server wants now; and so often tools are listed at
/// most, whatever clients send.
const FRESH: Duration = Duration::from_secs(1);
/// After this long schemas are read again in any case.
const STALE: Duration = Duration::from_secs(600);
/// Time to list tools.
const LIST: Duration = Duration::from_secs(10);
/// Pages of tools that are read.
const MOST_PAGES: usize = 100;
/// Revisions whose schemas are kept.
const MOST_KNOWN: usize = 1024;
/// Memory for one compiled pattern, in bytes.
const PATTERN: usize = 1024 * 1024;
/// Mistakes that are told at once.
const MOST_MISTAKES: usize = 5;

/// Why arguments were not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Unchecked {
    /// The tools cannot be listed.
    NoList,
    /// The schema does not compile.
    InvalidSchema,
    /// A check could take too long.
    TooCostly,
}

/// A tool's schema.
#[derive(Debug)]
struct Schema {
    validator: Validator,
    cost: Cost,
}

/// The tools of a revision.
#[derive(Debug)]
struct Tools {
    by_name: HashMap<String, Result<Schema, Unchecked>>,
    read: Instant,
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Tools>>>>;

/// Labels of what was not checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    server: String,
    reason: Unchecked,
}

/// What is known of the arguments that tools take.
#[derive(Debug, Default)]
pub struct Arguments {
    known: Mutex<HashMap<(ServerKey, String), Slot>>,
    unchecked: Family<Labels, Counter>,
}

impl Arguments {
    /// Adds its metric.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "perch_gateway_unchecked_arguments",
            "Calls of tools whose arguments should have been checked and were not",
            self.unchecked.clone(),
        );
    }

    fn slot(&self, key: (ServerKey, String)) -> Slot {
        let mut known = self.known.lock().expect("nobody panics while holding the schemas");
        if known.len() >= MOST_KNOWN && !known.contains_key(&key) {
            known.clear();
        }
        Arc::clone(known.entry(key).or_default())
    }

    fn pass(&self, server: &ServerKey, tool: &str, reason: Unchecked) {
        tracing::debug!(%server, tool, ?reason, "arguments pass unchecked");
        self.unchecked.get_or_create(&Labels { server: server.to_string(), reason }).inc();
    }
}

/// Whether a message has arguments to check.
pub fn concerns(route: &Route, message: &Message<'_>) -> bool {
    route.validates_arguments && message.kind() == Kind::Request && message.method() == "tools/call"
}

/// Refuses a call whose arguments the tool's schema does not take.
///
/// # Errors
/// When they do not fit, or the call's session is gone.
pub fn check<'a>(
    gateway: &'a Arc<Gateway>,
    call: &'a Call,
    message: &'a Message<'_>,
    era: Era,
) -> BoxFuture<'a, Result<(), Failure>> {
    // It lists tools by the very function that it is called from.
    checked(gateway, call, message, era).boxed()
}

async fn checked(gateway: &Arc<Gateway>, call: &Call, message: &Message<'_>, era: Era) -> Result<(), Failure> {
    let Some(tool) = message.param("name") else { return Ok(()) };
    let server = &call.route.server;
    let revision = revision(gateway, call).await?;
    let mut oldest = STALE;
    loop {
        let Some(known) = tools(gateway, call, &revision, &tool, oldest).await else {
            gateway.arguments.pass(server, &tool, Unchecked::NoList);
            return Ok(());
        };
        let mistakes = match known.by_name.get(&*tool) {
            // It is the server's to say that there is no such tool.
            None => return Ok(()),
            Some(Err(reason)) => Err(*reason),
            Some(Ok(schema)) => schema.mistakes(message),
        };
        match mistakes {
            Err(reason) => {
                gateway.arguments.pass(server, &tool, reason);
                return Ok(());
            }
            Ok(None) => return Ok(()),
            Ok(Some(mistakes)) if oldest == FRESH || known.read.elapsed() < FRESH => {
                return Err(refusal(call, era, &mistakes));
            }
            // The server may take other arguments by now.
            Ok(Some(_)) => oldest = FRESH,
        }
    }
}

/// The tools of a revision, read again when they were read longer ago than `oldest`, or when the
/// tool is not among them. They are listed once at a time.
async fn tools(
    gateway: &Arc<Gateway>,
    call: &Call,
    revision: &str,
    tool: &str,
    oldest: Duration,
) -> Option<Arc<Tools>> {
    let slot = gateway.arguments.slot((call.route.server.clone(), revision.to_owned()));
    let mut slot = slot.lock().await;
    if let Some(tools) = &*slot {
        let age = tools.read.elapsed();
        if age < FRESH || age < oldest && tools.by_name.contains_key(tool) {
            return Some(Arc::clone(tools));
        }
    }
    let tools = Arc::new(list(gateway, call, revision).await?);
    *slot = Some(Arc::clone(&tools));
    Some(tools)
}

impl Schema {
    fn compile(schema: &Value) -> Result<Self, Unchecked> {
        let cost = Cost::of(schema).ok_or(Unchecked::TooCostly)?;
        let patterns = PatternOptions::regex().size_limit(PATTERN).dfa_size_limit(PATTERN);
        let options = jsonschema::options().with_pattern_options(patterns).offline();
        match options.build(schema) {
            Ok(validator) => Ok(Self { validator, cost }),
            Err(error) => {
                tracing::debug!(%error, "a schema does not compile");
                Err(Unchecked::InvalidSchema)
            }
        }
    }

    /// What is wrong with the arguments of a call, if anything is. Values are left out: the caller
    /// knows them, and logs need not.
    fn mistakes(&self, message: &Message<'_>) -> Result<Option<String>, Unchecked> {
        let arguments = message.param_raw("arguments");
        if !self.cost.admits(arguments.map_or("{}", serde_json::value::RawValue::get)) {
            return Err(Unchecked::TooCostly);
        }
        let arguments: Value = match arguments {
            Some(arguments) => serde_json::from_str(arguments.get()).map_err(|_| Unchecked::TooCostly)?,
            None => json!({}),
        };
        if self.validator.is_valid(&arguments) {
            return Ok(None);
        }
        let mut found = self.validator.iter_errors(&arguments);
        let mut told: Vec<String> = found
            .by_ref()
            .take(MOST_MISTAKES)
            .map(|error| {
                let path = error.instance_path().to_string();
                let at = if path.is_empty() { "the arguments".to_owned() } else { path };
                format!("{at}: {}", error.masked())
            })
            .collect();
        if found.next().is_some() {
            told.push("and more".into());
        }
        Ok(Some(told.join("; ")))
    }
}

/// How a call is told that its arguments do not fit, which depends on the version.
fn refusal(call: &Call, era: Era, mistakes: &str) -> Failure {
    let version = call.parts.headers.get(VERSION).and_then(|version| version.to_str().ok()).unwrap_or_default();
    let told = match era {
        Era::Modern => Told::ToolResult { modern: true },
        Era::Legacy if version >= TOLD_IN_RESULT => Told::ToolResult { modern: false },
        Era::Legacy => Told::Error,
    };
    let text = format!("Invalid arguments: {mistakes}. Look at the tool's inputSchema and call it again.");
    Failure { arguments: Some(told), ..Failure::new(StatusCode::OK, reply::INVALID_PARAMS, text) }
}

/// The revision that a call would go to; empty for a remote server, which has none.
async fn revision(gateway: &Arc<Gateway>, call: &Call) -> Result<String, Failure> {
    if let Upstream::Remote(_) = call.route.upstream {
        return Ok(String::new());
    }
    match gateway.session(call)? {
        Some(Home::Upstream { place, .. }) => gateway.keeper(call, &place).await.map(|e| e.revision.0),
        Some(
            Home::Shared { place: super::session::Place { revision, .. }, .. }
            | Home::Translated(Translated { revision, .. }),
        ) => gateway.bound(call, &revision).await.map(|_| revision),
        Some(Home::Own(number)) => {
            let revision = gateway.bridges.revision(number).await.ok_or_else(Failure::no_session)?;
            gateway.stays(call, &revision).map(|()| revision.0)
        }
        None => {
            let found = gateway.eligible(call, None).await?;
            found.into_iter().next().map(|e| e.revision.0).ok_or_else(|| gateway.not_ready(&call.route.server))
        }
    }
}

/// The tools of a revision, all of them, whoever calls.
async fn list(gateway: &Arc<Gateway>, call: &Call, revision: &str) -> Option<Tools> {
    let read = async {
        let route = Route { tools: ToolFilter::default(), ..Route::clone(&call.route) };
        let route = Arc::new(route);
        let mut by_name = HashMap::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let page = page(gateway, &route, revision, cursor.as_deref()).await?;
            for tool in page["tools"].as_array()? {
                let name = tool["name"].as_str().unwrap_or_default().to_owned();
                let schema = Schema::compile(&tool["inputSchema"]);
                if let Err(reason) = &schema {
                    tracing::warn!(server = %route.server, revision, tool = name, ?reason, "arguments of a tool are not checked");
                }
                by_name.insert(name, schema);
            }
            cursor = page["nextCursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                break;
            }
        }
        Some(Tools { by_name, read: Instant::now() })
    };
    let tools = tokio::time::timeout(LIST, read).await.ok().flatten();
    if tools.is_none() {
        tracing::warn!(server = %call.route.server, revision, "tools cannot be listed, so arguments are not checked");
    }
    tools
}

/// A page of tools, asked for as a client without sessions would, which every server understands
/// through the gateway.
async fn page(gateway: &Arc<Gateway>, route: &Arc<Route>, revision: &str, cursor: Option<&str>) -> Option<Value> {
    let client = json!({"name": "perch", "version": env!("CARGO_PKG_VERSION")});
    let mut params = json!({"_meta": {META_VERSION: MODERN, META_CAPABILITIES: {}, era::META_CLIENT: client}});
    if let Some(cursor) = cursor {
        params["cursor"] = cursor.into();
    }
    let body = message::request(Some(&raw("perch-arguments")), "tools/list", Some(&raw(params)));
    let mut parts = Request::new(()).into_parts().0;
    parts.method = Method::POST;
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::ACCEPT, "application/json, text/event-stream"),
        (VERSION, MODERN),
        (era::METHOD, "tools/list"),
    ];
    parts.headers.extend(headers.map(|(name, value)| (name, HeaderValue::from_static(value))));
    let call = Call {
        parts,
        body: body.clone().into(),
        route: Arc::clone(route),
        principal: Principal::default(),
        revision: (!revision.is_empty()).then(|| Revision(revision.to_owned())),
        trail: Arc::default(),
        patience: LIST,
    };
    let message = Message::parse(&body)?;
    let answer = gateway.dispatch(&call, &message, Era::Modern).await.ok()?;
    let is_stream =
        answer.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"));
    let (mut answer, mut body) = (answer.into_body(), Vec::new());
    while let Some(frame) = answer.frame().await {
        body.extend_from_slice(frame.ok()?.data_ref().map_or(&[], |data| data));
        if body.len() > gateway.config.line_limit {
            return None;
        }
    }
    if !is_stream {
        return serde_json::from_str(Message::parse(&body)?.result?.get()).ok();
    }
    let mut parser = sse::Parser::default();
    parser.feed(&body);
    std::iter::from_fn(|| parser.next())
        .find_map(|event| serde_json::from_str(Message::parse(&event.data)?.result?.get()).ok())
}

#[cfg(test)]
mod tests;
