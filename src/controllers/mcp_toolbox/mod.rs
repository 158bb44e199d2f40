//! Tells how toolboxes are. It runs nothing: a gateway serves a toolbox from what its servers are.
//!
//! A reconcile goes `dereference → observe → status`, one file a step: which servers the toolbox
//! has, how these are and what the gateway lists for it, and what that amounts to.
//!
//! # Guarantees
//! * Ready means that a handshake and `tools/list` at the toolbox succeeded, on the path of its
//!   users, with every server that is not suspended.
//! * Nothing is written when nothing changed.

mod dereference;
mod observe;
mod status;

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    runtime::{
        Controller, PredicateConfig, WatchStreamExt,
        controller::{Action, Config},
        events::{Event, EventType, Recorder, Reporter},
        predicates,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{mcp_server::McpServer, mcp_toolbox::McpToolbox},
    controllers::handshake::{self, GatewayAccess},
    names::ServerKey,
    routing::toolbox::key_of,
};
use status::{Facts, News};

/// Field manager of everything that the controller writes.
const MANAGER: &str = "perch-toolbox-controller";
/// Reconciles at the same time.
const CONCURRENCY: u16 = 16;
/// Changes within this time are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Time between two looks at a toolbox that is as it should be.
const CALM: Duration = Duration::from_secs(30);
/// Time between two looks at one that is not.
const ALERT: Duration = Duration::from_secs(5);
/// Wait before a look again when servers and gateway do not agree, or a write failed.
const SOON: Duration = Duration::from_millis(500);

/// What the controller works with.
#[derive(Clone)]
pub struct Context {
    /// The control plane.
    pub client: kube::Client,
    /// Base URL of the gateway as probes reach it.
    pub gateway: url::Url,
    /// Base URL of the gateway as clients reach it, for `status.url`.
    pub public: url::Url,
    /// What probes need to be let in by the gateway.
    pub gateway_access: GatewayAccess,
    /// The only namespace to look after; all when none.
    pub namespace: Option<String>,
}

impl Context {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        super::watched(&self.client, self.namespace.as_deref())
    }
}

struct State {
    context: Context,
    servers: Store<McpServer>,
    recorder: Recorder,
}

/// Looks after every `McpToolbox` until `shutdown`; returns when all work under way has ended.
pub async fn run(context: Context, shutdown: CancellationToken) {
    let (servers, server_writer) = reflector::store();
    let (toolboxes, toolbox_writer) = reflector::store();
    let (changed, changes) = mpsc::unbounded_channel();
    let reporter = Reporter { controller: MANAGER.into(), instance: None };
    let state = Arc::new(State {
        servers: servers.clone(),
        recorder: Recorder::new(context.client.clone(), reporter),
        context: context.clone(),
    });
    let events = watcher(context.api::<McpToolbox>(), watcher::Config::default())
        .default_backoff()
        .reflect(toolbox_writer)
        .applied_objects()
        // Its own writes are no reason to look again.
        .predicate_filter(predicates::generation, PredicateConfig::default());
    let of_server = {
        let toolboxes = toolboxes.clone();
        move |server: ServerKey| {
            let all = toolboxes.state();
            let its = all.iter().filter(|toolbox| dereference::may_have(toolbox, &server));
            futures::stream::iter(its.map(|toolbox| ObjectRef::from_obj(&**toolbox)).collect::<Vec<_>>())
        }
    };
    let controller = Controller::for_stream(events, toolboxes)
        .with_config(Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE))
        .reconcile_on(UnboundedReceiverStream::new(changes).flat_map(of_server))
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(reconcile, retry, state)
        // Failures were told by `retry`.
        .for_each(|_| async {});
    let work = async {
        // Without the servers nobody knows how a toolbox is.
        let known = tokio::select! {
            known = servers.wait_until_ready() => known.is_ok(),
            () = shutdown.cancelled() => false,
        };
        if known {
            controller.await;
        }
    };
    tokio::select! {
        () = work => {}
        () = follow(context.api(), server_writer, changed) => {}
    }
}

/// Follows the servers for ever, and tells of each that changed.
async fn follow(
    servers: Api<McpServer>,
    writer: reflector::store::Writer<McpServer>,
    changed: mpsc::UnboundedSender<ServerKey>,
) {
    let events = watcher(servers, watcher::Config::default())
        .default_backoff()
        .modify(|server| server.metadata.managed_fields = None)
        .reflect(writer)
        .touched_objects();
    futures::pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            // Nobody to tell: the controller is ending.
            Ok(server) => drop(changed.send(ServerKey::new(server.namespace().unwrap_or_default(), server.name_any()))),
            Err(error) => tracing::warn!(%error, "the servers cannot be watched"),
        }
    }
}

async fn reconcile(toolbox: Arc<McpToolbox>, state: Arc<State>) -> Result<Action, kube::Error> {
    if toolbox.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let context = &state.context;
    let found = dereference::dereference(&toolbox, &state.servers);
    let url = |base| handshake::url(base, &key_of(&toolbox), None);
    let offer = observe::observe(&url(&context.gateway), &context.gateway_access).await;
    let facts =
        Facts { toolbox: &toolbox, found: &found, offer: &offer, url: url(&context.public), now: Timestamp::now() };
    let derived = status::derive(&facts);
    let next = match (status::is_ready(&derived), facts.disagree()) {
        (true, _) => CALM,
        // One of them is a moment behind.
        (false, true) => SOON,
        (false, false) => ALERT,
    };
    if toolbox.status.as_ref() == Some(&derived) {
        return Ok(Action::requeue(next));
    }
    let news = status::news(toolbox.status.as_ref(), &derived);
    match status::write(&context.client, &toolbox, derived).await {
        Ok(()) => {}
        // It went away, or somebody changed it: then the watch brings it.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(Action::requeue(SOON)),
        Err(error) => return Err(error),
    }
    for news in &news {
        tell(&toolbox, news, &state).await;
    }
    Ok(Action::requeue(next))
}

async fn tell(toolbox: &McpToolbox, news: &News, state: &State) {
    tracing::info!(toolbox = %key_of(toolbox), reason = news.reason, message = news.message, "toolbox");
    let event = Event {
        type_: if news.is_warning { EventType::Warning } else { EventType::Normal },
        reason: news.reason.into(),
        note: Some(news.message.chars().take(1000).collect()),
        action: "Observe".into(),
        secondary: None,
    };
    if let Err(error) = state.recorder.publish(&event, &kube::Resource::object_ref(toolbox, &())).await {
        tracing::warn!(%error, "an event was not recorded");
    }
}

fn retry(toolbox: Arc<McpToolbox>, error: &kube::Error, _: Arc<State>) -> Action {
    tracing::warn!(toolbox = %key_of(&toolbox), %error, "the status of a toolbox was not written");
    Action::requeue(ALERT)
}
