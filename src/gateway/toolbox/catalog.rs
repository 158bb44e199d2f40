//! What the servers of toolboxes have: lists that are asked for once and kept.
//!
//! A list is kept for each server, revision, kind and set of client capabilities. Servers never
//! learn who a client's user is, so what they list is the same for all users; what a user may see
//! of it is decided each time. A list is asked for anew
//! * when the server says that it changed, for which the gateway listens while the list is in use
//!   ([`follow`]);
//! * when its time is over, which the server says or [`DEFAULT_TTL`] is; for [`GRACE`] it is still
//!   given meanwhile;
//! * for another revision, which has a list of its own.
//!
//! Nobody waits longer than `list_timeout` for a server, and hardly at all for one that failed a
//! moment ago: a list on its way lands when it does, for whoever asks next.

mod follow;
mod read;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::FutureExt;
use serde_json::value::RawValue;
use tokio::sync::{broadcast::error::RecvError, watch};

use super::{
    capabilities, member,
    offer::{Lists, Missing, Part},
};
use crate::{
    api::mcp_server::ToolFilter,
    gateway::{
        access,
        handler::{Call, Gateway},
        message::Message,
        reply::{self, Failure},
    },
    names::ServerKey,
    routing::{Route, Upstream, toolbox::Member},
};

/// For how long a list is good whose server does not say.
const DEFAULT_TTL: Duration = Duration::from_secs(60);
/// For how long a list is given after its time, while it is asked for anew.
const GRACE: Duration = Duration::from_secs(10);
/// Longest time in which a list may land, when nobody waits any more.
const FLIGHT: Duration = Duration::from_secs(60);
/// How long somebody waits for a server that failed a moment ago.
const FAILED: Duration = Duration::from_millis(250);
/// A list that nobody asked for in this time is not followed any more.
const IDLE: Duration = Duration::from_secs(300);
/// A list that nobody asked for in this time is not kept.
const KEEP: Duration = Duration::from_secs(3600);
/// Most lists that are kept.
const MOST: usize = 8192;
/// Time between two looks for instances when no change was told.
const LOOK: Duration = Duration::from_secs(1);

/// A kind of thing that servers list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Tools.
    Tools,
    /// Prompts.
    Prompts,
    /// Resources.
    Resources,
    /// Templates of resources.
    Templates,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tools, Self::Prompts, Self::Resources, Self::Templates];

    /// The kind that a method lists.
    pub fn of_method(method: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.method() == method)
    }

    /// The method that lists it.
    pub const fn method(self) -> &'static str {
        match self {
            Self::Tools => "tools/list",
            Self::Prompts => "prompts/list",
            Self::Resources => "resources/list",
            Self::Templates => "resources/templates/list",
        }
    }

    /// The member of the result that holds the list.
    pub const fn member(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
        }
    }

    /// The member of an item by which it is told from others.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Tools | Self::Prompts => "name",
            Self::Resources => "uri",
            Self::Templates => "uriTemplate",
        }
    }

    /// The lists in which something of the kind may be.
    pub const fn where_to_look(self) -> &'static [Self] {
        match self {
            Self::Tools => &[Self::Tools],
            Self::Prompts => &[Self::Prompts],
            Self::Resources => &[Self::Resources, Self::Templates],
            Self::Templates => &[Self::Templates],
        }
    }

    /// The answer about something that is not there.
    pub fn unknown(self, name: &str) -> Failure {
        let text = match self {
            Self::Tools => format!("Unknown tool: {name}"),
            Self::Prompts => format!("Unknown prompt: {name}"),
            Self::Resources | Self::Templates => format!("Resource not found: {name}"),
        };
        Failure::new(http::StatusCode::OK, reply::INVALID_PARAMS, text)
    }
}

/// Whose list it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    server: ServerKey,
    /// Empty for a remote server.
    revision: String,
    capabilities: Arc<str>,
    kind: Kind,
    /// Which tools the server shows.
    filter: ToolFilter,
}

/// What a server has.
#[derive(Debug)]
pub struct List {
    /// In the server's order.
    pub items: Vec<Item>,
    /// Equal lists have equal ones.
    digest: u64,
    good_until: Instant,
}

/// One thing that a server has.
#[derive(Debug)]
pub struct Item {
    /// By what it is told from others.
    pub id: String,
    /// As the server put it.
    pub raw: Box<RawValue>,
}

impl List {
    #[cfg(test)]
    pub(super) fn of(items: Vec<Item>) -> Self {
        Self { items, digest: 0, good_until: Instant::now() + DEFAULT_TTL }
    }

    /// For how long it is good.
    pub fn remaining(&self) -> Duration {
        self.good_until.saturating_duration_since(Instant::now())
    }
}

/// What is known of a list, to see whether it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nobody asked for it.
    Unasked,
    /// It could not be had.
    Failed,
    /// Equal lists have equal numbers.
    List(u64),
}

struct Entry {
    key: Key,
    state: Mutex<State>,
    /// Counts what landed.
    landed: watch::Sender<u64>,
}

struct State {
    list: Option<Arc<List>>,
    /// The server said that it changed.
    changed: bool,
    error: Option<Arc<str>>,
    flying: bool,
    used: Instant,
}

/// All lists.
pub struct Catalog {
    entries: Mutex<HashMap<Key, Arc<Entry>>>,
    followed: Mutex<HashSet<follow::Channel>>,
    /// Since when servers have no instance.
    absent: Mutex<HashMap<ServerKey, Instant>>,
    news: watch::Sender<u64>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            followed: Mutex::default(),
            absent: Mutex::default(),
            news: watch::Sender::new(0),
        }
    }
}

/// Whose lists are wanted, of what, and for whom.
pub struct Wanted<'a> {
    /// What the client asked.
    pub call: &'a Call,
    /// See [`capabilities`].
    pub capabilities: Arc<str>,
    /// Of what.
    pub kind: Kind,
    /// Whether servers that are known not to answer are waited for.
    pub patient: bool,
}

impl<'a> Wanted<'a> {
    /// All that can be had in time.
    pub fn new(call: &'a Call, message: &Message<'_>, kind: Kind) -> Self {
        Self { call, capabilities: capabilities(message), kind, patient: true }
    }

    /// The lists of servers, in their order.
    pub async fn of(&self, gateway: &Arc<Gateway>, members: &[&Member]) -> Lists {
        let mut parts = Vec::with_capacity(members.len());
        for member in members {
            parts.push(part(gateway, self, member).boxed());
        }
        Lists(futures::future::join_all(parts).await)
    }
}

async fn part(gateway: &Arc<Gateway>, wanted: &Wanted<'_>, member: &Member) -> Part {
    let Wanted { call, kind, patient, .. } = *wanted;
    let capabilities = Arc::clone(&wanted.capabilities);
    let catalog = &gateway.toolboxes.catalog;
    let server = member.server.clone();
    let mut part = Part { server, list: Err(Missing::Hidden), had: None, visible: ToolFilter::default().into() };
    let Some(inner) = member::enter(gateway, call, &member.server, b"") else {
        if gateway.table.load().find(&member.server).is_none() && access::may_see(&call.parts, &member.server) {
            part.list = Err(Missing::Failed(format!("there is no server {}", member.server).into()));
        }
        return part;
    };
    part.visible = access::visible_tools(&inner);
    let list = match &inner.route.upstream {
        Upstream::Suspended | Upstream::Toolbox(_) => return part,
        Upstream::Remote(_) => {
            catalog.list(gateway, key(&inner, String::new(), kind, capabilities), &inner.route, patient).await
        }
        Upstream::Http | Upstream::Stdio(_) => match catalog.present(gateway, &inner, patient).await {
            Ok(revision) => {
                catalog.list(gateway, key(&inner, revision, kind, capabilities), &inner.route, patient).await
            }
            Err(why) => Err(why),
        },
    };
    part.list = list.map_err(Missing::Failed);
    if part.list.is_err() {
        part.had = catalog.had(&member.server, kind);
    }
    part
}

fn key(call: &Call, revision: String, kind: Kind, capabilities: Arc<str>) -> Key {
    let filter = if kind == Kind::Tools { call.route.tools.clone() } else { ToolFilter::default() };
    Key { server: call.route.server.clone(), revision, capabilities, kind, filter }
}

/// What a client would be shown of a server: the revision, and what is known of its lists.
pub fn seen(
    gateway: &Gateway,
    call: &Call,
    server: &ServerKey,
    capabilities: &Arc<str>,
) -> Option<(String, [Known; 4])> {
    let inner = member::enter(gateway, call, server, b"")?;
    let revision = match &inner.route.upstream {
        Upstream::Suspended | Upstream::Toolbox(_) => return None,
        Upstream::Remote(_) => String::new(),
        Upstream::Http | Upstream::Stdio(_) => gateway.revision_now(&inner)?.0,
    };
    let known = Kind::ALL
        .map(|kind| gateway.toolboxes.catalog.peek(&key(&inner, revision.clone(), kind, Arc::clone(capabilities))));
    Some((revision, known))
}

impl Catalog {
    /// Tells when something that is known changes.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn tell(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    fn entry(&self, key: Key) -> Arc<Entry> {
        let now = Instant::now();
        let mut entries = self.entries.lock().expect("nobody panics while holding the lists");
        if let Some(entry) = entries.get(&key) {
            return Arc::clone(entry);
        }
        // Servers and revisions come and go; what is still needed is soon there again.
        entries.retain(|_, entry| now.saturating_duration_since(entry.lock().used) < KEEP);
        if entries.len() >= MOST {
            entries.clear();
        }
        let state = State { list: None, changed: false, error: None, flying: false, used: now };
        let entry = Arc::new(Entry { key: key.clone(), state: Mutex::new(state), landed: watch::Sender::new(0) });
        entries.insert(key, Arc::clone(&entry));
        entry
    }

    fn peek(&self, key: &Key) -> Known {
        let entries = self.entries.lock().expect("nobody panics while holding the lists");
        let Some(entry) = entries.get(key) else { return Known::Unasked };
        let mut state = entry.lock();
        state.used = Instant::now();
        match (&state.error, &state.list) {
            (Some(_), _) => Known::Failed,
            (None, Some(list)) => Known::List(list.digest),
            (None, None) => Known::Unasked,
        }
    }

    /// The last list of a server that does not answer now.
    fn had(&self, server: &ServerKey, kind: Kind) -> Option<Arc<List>> {
        let entries = self.entries.lock().expect("nobody panics while holding the lists");
        let its = entries.values().filter(|entry| entry.key.server == *server && entry.key.kind == kind);
        let list = |entry: &Arc<Entry>| {
            let mut state = entry.lock();
            state.used = Instant::now();
            state.list.clone()
        };
        its.filter_map(list).max_by_key(|list| list.good_until)
    }

    /// The revision of a server that a call would go to. One that has just gone, or is just
    /// starting, is waited for.
    async fn present(&self, gateway: &Gateway, call: &Call, patient: bool) -> Result<String, Arc<str>> {
        let server = &call.route.server;
        let absent = || self.absent.lock().expect("nobody panics while holding the times");
        let mut changes = None;
        loop {
            if let Some(revision) = gateway.revision_now(call) {
                absent().remove(server);
                return Ok(revision.0);
            }
            if absent().len() >= MOST {
                absent().clear();
            }
            let since = *absent().entry(server.clone()).or_insert_with(Instant::now);
            let until = since + gateway.config.list_timeout;
            let now = Instant::now();
            if now >= until || !patient {
                return Err(gateway.not_ready(server).message.into());
            }
            // A change between the look and the subscription is seen by the next look.
            let Some(changes) = &mut changes else {
                changes = Some(gateway.instances.changes());
                continue;
            };
            let pause = LOOK.min(until - now);
            if let Ok(Err(RecvError::Closed)) = tokio::time::timeout(pause, changes.recv()).await {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// A list, from memory if it is good.
    async fn list(
        &self,
        gateway: &Arc<Gateway>,
        key: Key,
        route: &Arc<Route>,
        patient: bool,
    ) -> Result<Arc<List>, Arc<str>> {
        let entry = self.entry(key);
        let mut landed = entry.landed.subscribe();
        let (list, wait) = {
            let mut state = entry.lock();
            let now = Instant::now();
            state.used = now;
            let sound = state.list.clone().filter(|_| !state.changed && state.error.is_none());
            if let Some(list) = sound.filter(|list| now < list.good_until + GRACE) {
                if now < list.good_until {
                    return Ok(list);
                }
                entry.start(&mut state, gateway, route);
                return Ok(list);
            }
            entry.start(&mut state, gateway, route);
            let limit = match (&state.error, patient) {
                (None, _) => gateway.config.list_timeout,
                (Some(_), true) => FAILED.min(gateway.config.list_timeout),
                (Some(_), false) => Duration::ZERO,
            };
            (state.list.clone(), limit)
        };
        let in_time = tokio::time::timeout(wait, landed.changed()).await.is_ok();
        let state = entry.lock();
        match (&state.error, &state.list) {
            (Some(error), _) => Err(Arc::clone(error)),
            (None, Some(list)) if in_time => Ok(Arc::clone(list)),
            // It is slow today: what it had is better than nothing.
            _ => list.ok_or_else(|| {
                format!("server {} did not list its {} within {wait:?}", entry.key.server, entry.key.kind.member())
                    .into()
            }),
        }
    }
}

impl Entry {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding a list")
    }

    /// Asks for the list, unless somebody does.
    fn start(self: &Arc<Self>, state: &mut State, gateway: &Arc<Gateway>, route: &Arc<Route>) {
        if std::mem::replace(&mut state.flying, true) {
            return;
        }
        state.changed = false;
        let (entry, gateway, route) = (Arc::clone(self), Arc::clone(gateway), Arc::clone(route));
        tokio::spawn(async move {
            let list = tokio::select! {
                list = tokio::time::timeout(FLIGHT, read::read(&gateway, &entry.key, &route)) => list,
                () = gateway.shutdown.cancelled() => Ok(Err("the gateway is shutting down".into())),
            };
            let list = list.unwrap_or_else(|_| Err(format!("nothing came within {}s", FLIGHT.as_secs())));
            let catalog = &gateway.toolboxes.catalog;
            if entry.land(list) {
                catalog.tell();
            }
            catalog.follow(&gateway, &entry.key);
        });
    }

    /// Keeps what came; true when it is news.
    fn land(&self, list: Result<List, String>) -> bool {
        let mut state = self.lock();
        state.flying = false;
        let news = match list {
            Ok(list) => {
                let same = state.list.as_ref().is_some_and(|old| old.digest == list.digest);
                state.list = Some(Arc::new(list));
                state.error.take().is_some() || !same
            }
            Err(error) => {
                tracing::debug!(server = %self.key.server, revision = self.key.revision, error, "a list was not had");
                state.error.replace(error.into()).is_none()
            }
        };
        drop(state);
        self.landed.send_modify(|count| *count += 1);
        news
    }
}
