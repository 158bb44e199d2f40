//! Who may use the gateway, what they may do, and how often.
//!
//! Every request is asked for credentials before anything else is done with it: a token of an
//! OAuth 2 or OpenID issuer ([`issuer`]), an API key ([`api_key`]), or a token that the Kubernetes
//! API server knows ([`token_review`]). What nobody allowed is refused. Credentials go no further
//! than here: not to a server, not into a log, not into an answer.

pub mod api_key;
mod cache;
mod challenge;
mod credential;
mod file;
mod issuer;
mod jwt;
mod policy;
mod rate;
mod rules;
#[cfg(test)]
mod tests;
mod token_review;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{Method, Response, StatusCode, request::Parts};
use jiff::Timestamp;
use serde_json::json;

pub use policy::{OperatorKey, Source};

use super::{
    config_file::FileError,
    handler::Call,
    listen::Peer,
    message::{Entries, Message},
    reply::{self, Body, Failure},
    session::{Groups, Principal},
    toolbox,
};
use crate::{
    api::{mcp_server::ToolFilter, mcp_toolbox::ToolboxAccess},
    names::ServerKey,
    routing::Upstream,
};
use challenge::Refusal;
use policy::{Material, Policy};
use rate::Buckets;
use rules::{Allowed, Subjects};

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(5);
/// Longest name of a user or group, in bytes.
const LONGEST_NAME: usize = 256;
/// What Perch's own probes are called.
const OPERATOR: &str = "system:perch:operator";

/// Somebody who was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name; empty for somebody whom nobody asked.
    user: Arc<str>,
    groups: Arc<[String]>,
    /// Whether it is Perch itself, which asks servers how they are and calls no tools.
    operator: bool,
}

impl Default for Identity {
    fn default() -> Self {
        Self { user: "".into(), groups: Arc::new([]), operator: false }
    }
}

impl Identity {
    fn operator() -> Self {
        Self { user: OPERATOR.into(), groups: Arc::new([]), operator: true }
    }
}

/// An identity from names that somebody else gave, or what is wrong with them.
fn identity(user: String, groups: impl IntoIterator<Item = String>) -> Result<Identity, String> {
    let groups: Vec<String> = groups.into_iter().collect();
    for name in std::iter::once(&user).chain(&groups) {
        let why = match name.as_str() {
            "" => "or one of its groups is empty",
            name if name.len() > LONGEST_NAME => "or one of its groups is too long",
            name if name.chars().any(char::is_control) => "or one of its groups has control characters",
            // Kubernetes keeps these names for itself, and so does Perch.
            name if name.starts_with("system:") => {
                "or one of its groups begins with system:, which only a cluster may give"
            }
            _ => continue,
        };
        return Err(why.into());
    }
    Ok(Identity { user: user.into(), groups: groups.into(), operator: false })
}

/// Who may use a gateway. Copies are one and the same.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    /// None lets everybody do everything.
    policy: Option<ArcSwap<Policy>>,
    source: Source,
    read: Mutex<Option<Material>>,
    buckets: Buckets,
}

/// What somebody may do with the server that a request is for, in its extensions.
#[derive(Clone)]
struct Grant {
    access: Access,
    policy: Arc<Policy>,
    who: Identity,
    allowed: Allowed,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.policy.is_some() { "Access(asked)" } else { "Access(anonymous)" })
    }
}

impl Access {
    /// Lets in whoever reaches the gateway, and lets them do everything.
    #[must_use]
    pub fn anonymous() -> Self {
        let inner =
            Inner { policy: None, source: Source::default(), read: Mutex::default(), buckets: Buckets::default() };
        Self(Arc::new(inner))
    }

    /// Access as it is written.
    ///
    /// # Errors
    /// When a file cannot be read, makes no sense, or lets nobody in.
    pub fn load(source: Source) -> Result<Self, FileError> {
        let material = Material::read(&source)?;
        let policy = Policy::new(&source, &material, None)?;
        Ok(Self(Arc::new(Inner {
            policy: Some(ArcSwap::from_pointee(policy)),
            source,
            read: Mutex::new(Some(material)),
            buckets: Buckets::default(),
        })))
    }

    /// Follows the files, for ever. While they make no sense, what they said before stands.
    pub async fn follow(&self) {
        if self.0.policy.is_none() {
            return std::future::pending().await;
        }
        let mut told = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let access = self.clone();
            let looked = tokio::task::spawn_blocking(move || access.look()).await;
            match looked {
                Ok(Err(error)) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::error!(error, "the file of access cannot be used: what it said before stands");
                        told = Some(error);
                    }
                }
                Ok(Ok(changed)) => {
                    told = None;
                    if changed {
                        tracing::info!("access changed");
                    }
                }
                Err(error) => tracing::error!(%error, "the file of access was not read"),
            }
        }
    }

    /// Looks at the files once; true when they say something new.
    fn look(&self) -> Result<bool, FileError> {
        let inner = &*self.0;
        let Some(policy) = &inner.policy else { return Ok(false) };
        let material = Material::read(&inner.source)?;
        let mut read = inner.read.lock().expect("nobody panics while holding what was read");
        if read.as_ref() == Some(&material) {
            return Ok(false);
        }
        let new = Policy::new(&inner.source, &material, Some(&policy.load()))?;
        policy.store(Arc::new(new));
        *read = Some(material);
        Ok(true)
    }

    /// Lets a request in, or answers it. Whoever comes in is named in its extensions; credentials
    /// are taken out of it.
    pub(super) async fn admit(&self, parts: &mut Parts) -> Result<(), Response<Body>> {
        let Some(policy) = &self.0.policy else { return Ok(()) };
        let policy = policy.load_full();
        let path = parts.uri.path();
        if let Some(resource) = path.strip_prefix(challenge::WELL_KNOWN)
            && parts.method == Method::GET
        {
            return Err(policy.guide.metadata(resource));
        }
        let server = server_of(path);
        let refuse = |refusal: &Refusal| policy.guide.refuse(refusal, path);
        let who = match credential::take(&mut parts.headers) {
            Ok(shown) => policy.identify(shown, server.as_ref(), Timestamp::now()).await,
            Err(refusal) => Err(refusal),
        };
        let who = who.map_err(|refusal| refuse(&refusal))?;
        let allowed = match &server {
            // Rules are about the servers in it; it is itself asked whom it is for.
            Some(server) if server.as_toolbox().is_some() => Allowed::Everything,
            Some(server) if !who.operator => policy.rules.allowed(&who, server),
            _ => Allowed::Everything,
        };
        if let (Allowed::Nothing, Some(server)) = (&allowed, &server) {
            return Err(refuse(&Refusal::Forbidden(format!("you may not use server {server}: no rule allows it"))));
        }
        parts.extensions.insert(Principal(Arc::clone(&who.user)));
        parts.extensions.insert(Groups(Arc::clone(&who.groups)));
        parts.extensions.insert(Grant { access: self.clone(), policy, who, allowed });
        Ok(())
    }
}

/// Which tools of a server a caller sees.
#[derive(Clone, Debug)]
pub(super) struct VisibleTools {
    offered: ToolFilter,
    allowed: Allowed,
}

/// Which tools of its server a caller sees: those that the server offers, and the caller may call.
pub(super) fn visible_tools(call: &Call) -> VisibleTools {
    let grant = call.parts.extensions.get::<Grant>();
    let allowed = grant.map_or(Allowed::Everything, |grant| grant.allowed.clone());
    VisibleTools { offered: call.route.tools.clone(), allowed }
}

impl VisibleTools {
    /// Whether nothing is hidden.
    pub(super) fn is_open(&self) -> bool {
        self.offered.is_open() && !self.is_personal()
    }

    /// Whether others may see more.
    pub(super) fn is_personal(&self) -> bool {
        !matches!(self.allowed, Allowed::Everything)
    }

    /// Whether a tool is seen.
    pub(super) fn admits(&self, tool: &str) -> bool {
        self.offered.admits(tool) && self.allowed.tool(tool)
    }
}

impl From<ToolFilter> for VisibleTools {
    fn from(offered: ToolFilter) -> Self {
        Self { offered, allowed: Allowed::Everything }
    }
}

/// Whether somebody who was let in may know that a server is there.
pub(super) fn may_see(parts: &Parts, server: &ServerKey) -> bool {
    let Some(grant) = parts.extensions.get::<Grant>() else { return true };
    grant.who.operator || !matches!(grant.policy.rules.allowed(&grant.who, server), Allowed::Nothing)
}

/// Whether nobody was asked who sent a request.
pub(super) fn is_anonymous(parts: &Parts) -> bool {
    parts.extensions.get::<Grant>().is_none()
}

/// Whether Perch itself sent a request, to see how a server is.
pub(super) fn is_operator(parts: &Parts) -> bool {
    parts.extensions.get::<Grant>().is_some_and(|grant| grant.who.operator)
}

/// Whether a toolbox is for whoever sent a request. It is Perch's own, too, which lists its tools.
pub(super) fn is_for(parts: &Parts, access: &ToolboxAccess) -> bool {
    let nobody = Identity::default();
    let who = parts.extensions.get::<Grant>().map_or(&nobody, |grant| &grant.who);
    who.operator || Subjects::of(access).has(who)
}

/// Makes a request of a toolbox one of a server in it. False when its sender may not use that server.
pub(super) fn enter(parts: &mut Parts, server: &ServerKey) -> bool {
    let Some(grant) = parts.extensions.get_mut::<Grant>() else { return true };
    if !grant.who.operator {
        grant.allowed = grant.policy.rules.allowed(&grant.who, server);
    }
    !matches!(grant.allowed, Allowed::Nothing)
}

/// Whether every message of somebody may be sent, so that nobody need look into each.
pub(super) fn is_unlimited(parts: &Parts) -> bool {
    parts.extensions.get::<Grant>().is_none_or(|grant| {
        !grant.who.operator && matches!(grant.allowed, Allowed::Everything) && grant.policy.limits.is_empty()
    })
}

/// Refuses a message that its sender may not send, or not yet.
pub(super) fn check(call: &Call, message: &Message<'_>) -> Result<(), Failure> {
    let Some(grant) = call.parts.extensions.get::<Grant>() else { return Ok(()) };
    if is_unlimited(&call.parts) {
        return Ok(());
    }
    let refuse = |status, why: String| Err(Failure::new(status, reply::INVALID_REQUEST, why));
    if !is_unambiguous(&call.body, message) {
        return refuse(StatusCode::BAD_REQUEST, "a member is there twice, or spelt like another one".into());
    }
    let method = message.method();
    if grant.who.operator {
        let asks = matches!(method, "" | "initialize" | "ping" | "tools/list" | "server/discover");
        if asks || method.starts_with("notifications/") {
            return Ok(());
        }
        return refuse(
            StatusCode::FORBIDDEN,
            format!("the operator asks servers how they are, and may not send {method}"),
        );
    }
    // What goes on to a server is looked at there, and counts there.
    if matches!(call.route.upstream, Upstream::Toolbox(_)) && toolbox::goes_on(method) {
        return Ok(());
    }
    let tool = if method == "tools/call" { message.param("name") } else { None };
    let server = &call.route.server;
    if method == "tools/call"
        && !tool.as_ref().map_or(matches!(grant.allowed, Allowed::Everything), |tool| grant.allowed.tool(tool))
    {
        let tool = tool.unwrap_or_default();
        return refuse(
            StatusCode::FORBIDDEN,
            format!("you may not call the tool {tool:?} of server {server}: no rule allows it"),
        );
    }
    let address = call.parts.extensions.get::<Peer>().map(|peer| peer.0.ip());
    let (limits, buckets) = (&grant.policy.limits, &grant.access.0.buckets);
    limits.take(buckets, &grant.who, address, server, tool.as_deref(), Instant::now()).map_err(|wait| {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let what = tool.map_or_else(|| "requests".into(), |tool| format!("calls of {tool:?}, or requests"));
        let mut failure = Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            reply::UNAVAILABLE,
            format!("too many {what}: try again in {seconds} s"),
        );
        failure.data = Some(json!({"retryAfterSeconds": seconds}));
        failure
    })
}

/// Whether every reader of a message sees the same method and the same tool. Some readers do not
/// tell small letters from capitals, and some take the first of two members with one name.
fn is_unambiguous(body: &[u8], message: &Message<'_>) -> bool {
    fn once(entries: &Entries<'_>, names: &[&str]) -> bool {
        names.iter().all(|name| {
            let mut like = entries.0.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
            like.next().is_none_or(|(key, _)| key == name) && like.next().is_none()
        })
    }
    let whole: Option<Entries<'_>> = serde_json::from_slice(body).ok();
    whole.is_some_and(|whole| once(&whole, &["jsonrpc", "id", "method", "params", "result", "error"]))
        && message.params.is_none_or(|params| once(&Entries::of(params), &["name", "arguments"]))
}

/// The server that a path leads to.
pub(super) fn server_of(path: &str) -> Option<ServerKey> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        // A revision that is asked for by name is one of the server.
        [namespace, "toolboxes", name, _] => Some(ServerKey::toolbox(namespace, name)),
        [namespace, name, _] => Some(ServerKey::new(*namespace, name.split_once('@').map_or(*name, |(name, _)| name))),
        _ => None,
    }
}
