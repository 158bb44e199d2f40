//! Brings new revisions of servers to their users as their `CanaryRelease`s say.
//!
//! A reconcile goes `dereference → validate → observe → decide → status`, one file a step; the
//! fourth is the pure [`canary::decide`]. It writes the status of the release and nothing else: the
//! controller of servers runs what the status wants, and the gateways divide the users by it. The one exception are
//! the weights of an HTTPRoute that a release names ([`http_route`]).
//!
//! # Guarantees
//! * A decision is one write, with the resource version of the status that it was made from: of two
//!   operators one wins, and the other looks again.
//! * Whatever is told (events, alerts, metrics) is told after that write.
//! * Nothing that matters is kept in memory: a controller that dies after any write is taken over by
//!   one that reads the status.
//! * Of several releases of one server only the oldest acts; the others say so and wait.

pub mod alerts;
mod dereference;
mod http_route;
pub mod incident;
pub mod metrics;
mod observe;
mod status;
mod tick;
mod validate;

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    runtime::{
        Controller, PredicateConfig, WatchStreamExt,
        controller::{Action, Config},
        events::{Event, EventType, Recorder, Reporter},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{
        canary_release::{COMMAND_ANNOTATION, CanaryRelease},
        mcp_server::McpServer,
    },
    canary::{self, EventKind, Progress, StoryEvent},
    controllers::{
        handshake::GatewayAccess,
        releases::{Claims, belongs_to, target_of},
    },
    metrics::{Measured, Providers, Question},
    names::ServerKey,
};
use alerts::{Alerts, Patience};
pub use metrics::Metrics;
use validate::{Refusal, Verdict};

/// Field manager of everything that the controller writes.
const MANAGER: &str = "perch-release-controller";
/// Reconciles at the same time.
const CONCURRENCY: u16 = 64;
/// Wait before a look again after a write that came too late, or that failed.
const RETRY: Duration = Duration::from_millis(500);

/// Who finds out how the revisions of a release do.
#[async_trait]
pub trait Measure: Send + Sync + 'static {
    /// Finds out everything that is asked. It never fails: what cannot be found out says so.
    async fn measure(&self, question: &Question<'_>) -> Measured;
}

#[async_trait]
impl Measure for Providers {
    async fn measure(&self, question: &Question<'_>) -> Measured {
        Self::measure(self, question).await
    }
}

/// What time it is, for whoever decides. Tests have one of their own, in which days pass in seconds.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock that is asked for the time each time.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for Clock {
    /// The machine's clock.
    fn default() -> Self {
        Self::new(Timestamp::now)
    }
}

/// What the controller works with.
#[derive(Clone)]
pub struct Context {
    /// The control plane.
    pub client: kube::Client,
    /// Base URL of the gateway, through which the tools of both revisions are listed.
    pub gateway: url::Url,
    /// What the gateway asks for.
    pub gateway_access: GatewayAccess,
    /// Who finds out how revisions do.
    pub measure: Arc<dyn Measure>,
    /// Sends alerts.
    pub http: reqwest::Client,
    /// The only namespace to look after; all when none.
    pub namespace: Option<String>,
    /// What is shown of releases.
    pub metrics: Metrics,
    /// What time it is.
    pub clock: Clock,
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
    releases: Store<CanaryRelease>,
    claims: Claims,
    alerts: Alerts,
    /// Commands that could not be read, so that each is complained about once.
    complained: Mutex<std::collections::HashSet<u64>>,
}

/// Why a look was not finished; it is done again.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The control plane refused or did not answer.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Judges every `CanaryRelease` until `shutdown`; returns when all work under way has ended.
pub async fn run(context: Context, shutdown: CancellationToken) {
    let (alerts, postman) = Alerts::new();
    let (servers, server_writer) = reflector::store();
    let (releases, release_writer) = reflector::store();
    let (changed, changes) = mpsc::unbounded_channel();
    let state = Arc::new(State {
        servers: servers.clone(),
        releases: releases.clone(),
        claims: Claims::default(),
        alerts,
        complained: Mutex::default(),
        context: context.clone(),
    });

    let forget = context.metrics.clone();
    let (deleted, left) = mpsc::unbounded_channel();
    let events = watcher(context.api::<CanaryRelease>(), watcher::Config::default())
        .default_backoff()
        // Larger than the rest of a status, and of no use here; a write without them keeps them.
        .modify(|release| release.metadata.managed_fields = None)
        .inspect(move |event| {
            if let Ok(watcher::Event::Delete(release)) = event {
                forget.forget(&release.namespace().unwrap_or_default(), &release.name_any());
                // Nobody to tell: the controller is ending.
                let _ = deleted.send(release.clone());
            }
        })
        .reflect(release_writer)
        .applied_objects()
        // Its own writes are no reason to look again: the next look has its time.
        .predicate_filter(|release: &CanaryRelease| Some(wishes(release)), PredicateConfig::default());
    let to_releases = {
        let state = Arc::clone(&state);
        move |server: ServerKey| {
            let claims = state.claims.all(&server).into_iter();
            let refs = claims.map(move |claim| ObjectRef::new(&claim.release).within(&server.namespace));
            futures::stream::iter(refs.collect::<Vec<_>>())
        }
    };
    let controller = Controller::for_stream(events, releases)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(UnboundedReceiverStream::new(changes).flat_map(to_releases))
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(reconcile, retry, Arc::clone(&state))
        // Failures were told by `retry`.
        .for_each(|_| async {});
    let follow_servers = follow(context.api(), server_writer, changed.clone());
    let work = async {
        // Without all servers and releases nobody knows what is so.
        let known = async {
            state.claims.ready().await;
            servers.wait_until_ready().await.is_ok()
        };
        let known = tokio::select! {
            known = known => known,
            () = shutdown.cancelled() => false,
        };
        if known {
            controller.await;
        }
    };
    let post = postman.run(context.client.clone(), context.http.clone(), Patience::default(), shutdown.clone());
    let watched = async {
        tokio::select! {
            () = work => {}
            () = follow_servers => {}
            () = state.claims.follow(context.api(), changed) => {}
            () = Box::pin(give_back(&context.client, left)) => {}
        }
    };
    tokio::join!(watched, post);
    context.metrics.forget_all();
}

/// What of a release the user decides: a change of it is looked at at once.
fn wishes(release: &CanaryRelease) -> u64 {
    let mut hash = DefaultHasher::new();
    let metadata = &release.metadata;
    metadata.uid.hash(&mut hash);
    metadata.generation.hash(&mut hash);
    metadata.deletion_timestamp.is_some().hash(&mut hash);
    release.annotations().get(COMMAND_ANNOTATION).hash(&mut hash);
    hash.finish()
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

/// Sends everybody of an HTTPRoute to the server itself when the release that divided them is deleted.
async fn give_back(client: &kube::Client, mut deleted: mpsc::UnboundedReceiver<CanaryRelease>) {
    while let Some(release) = deleted.recv().await {
        let written = release.status.as_ref().and_then(|status| status.http_route.as_deref());
        // Its status may not say yet what was written last.
        let routes: BTreeSet<&str> = written.into_iter().chain(release.spec.http_route()).collect();
        for route in routes {
            let found = http_route::give_back(client, &target_of(&release), route).await;
            tracing::info!(release = release.name_any(), message = found.message, "a release was deleted");
        }
    }
    std::future::pending::<()>().await;
}

async fn reconcile(release: Arc<CanaryRelease>, state: Arc<State>) -> Result<Action, Error> {
    if release.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let found = dereference::dereference(&release, &state.servers, &state.claims);
    let now = state.context.clock.now();
    let plan = match validate::validate(&release, &found) {
        Verdict::Sound(plan) => plan,
        Verdict::Refused(refusal) => return refuse(&release, &refusal, now, &state).await,
    };
    complain(&release, &found, &state).await;
    let before = found.progress.clone();
    let seen = observe::observe(&release, &found, &plan, &state.context).await;
    // The clock is read after the observation, which may take a while.
    let now = state.context.clock.now();
    let decision = canary::decide(&plan, &before, &seen, now);
    let releases = state.releases.len();
    let next = |moved| tick::after(&release, &plan, &decision.progress, moved, releases);
    let is_news = status::is_news(release.status.as_ref(), &decision.progress);
    if !is_news || !tick::is_due(&plan, &before, &decision, now, releases) {
        state.context.metrics.show(&release, &[]);
        return Ok(next(false));
    }
    let Some(written) = status::write(&state.context.client, &release, decision.progress.clone()).await? else {
        return Ok(Action::await_change());
    };
    tell(&written, &decision.story, &state).await;
    Ok(next(!decision.story.is_empty()))
}

/// Says why nothing is done about a release, and waits for a change.
async fn refuse(release: &CanaryRelease, refusal: &Refusal, now: Timestamp, state: &State) -> Result<Action, Error> {
    let progress = status::refused(release, refusal, now);
    if release.status.as_ref() == Some(&progress) {
        state.context.metrics.show(release, &[]);
        return Ok(Action::await_change());
    }
    if let Some(written) = status::write(&state.context.client, release, progress).await? {
        let message = refusal.message.clone();
        tell(&written, &[StoryEvent { kind: EventKind::Warning, reason: refusal.reason, message }], state).await;
    }
    Ok(Action::await_change())
}

/// Tells once of a command that cannot be read.
async fn complain(release: &CanaryRelease, found: &dereference::Found, state: &State) {
    let Err(error) = &found.command else { return };
    let known = {
        let mut complained = state.complained.lock().expect("nobody panics while holding the complaints");
        if complained.len() > 1000 {
            complained.clear();
        }
        !complained.insert(wishes(release))
    };
    if !known {
        let event = StoryEvent { kind: EventKind::Warning, reason: "CommandUnreadable", message: error.to_string() };
        publish(release, &event, state).await;
    }
}

/// Tells everybody what has happened.
async fn tell(release: &CanaryRelease, story: &[StoryEvent], state: &State) {
    state.context.metrics.show(release, story);
    state.alerts.tell(release, story);
    for event in story {
        tracing::info!(
            release = release.name_any(),
            server = %target_of(release),
            reason = event.reason,
            message = event.message,
            "release"
        );
        publish(release, event, state).await;
    }
}

async fn publish(release: &CanaryRelease, event: &StoryEvent, state: &State) {
    let event = Event {
        type_: match event.kind {
            EventKind::Normal => EventType::Normal,
            EventKind::Warning => EventType::Warning,
        },
        reason: event.reason.to_owned(),
        note: Some(event.message.chars().take(1000).collect()),
        action: "Release".into(),
        secondary: None,
    };
    // Each is a sentence of a story. A recorder that is kept would count the second stage as one more
    // first stage.
    let reporter = Reporter { controller: MANAGER.into(), instance: None };
    let recorder = Recorder::new(state.context.client.clone(), reporter);
    if let Err(error) = recorder.publish(&event, &kube::Resource::object_ref(release, &())).await {
        tracing::warn!(%error, "an event was not recorded");
    }
}

fn retry(release: Arc<CanaryRelease>, error: &Error, _: Arc<State>) -> Action {
    let Error::Api(api) = error;
    if matches!(api, kube::Error::Api(status) if status.code == 409) {
        // Somebody wrote meanwhile: what they wrote is what the next decision is made from.
        tracing::debug!(release = release.name_any(), "the release changed during a look");
    } else {
        tracing::warn!(release = release.name_any(), %error, "a decision was not written");
    }
    Action::requeue(RETRY)
}

/// What was decided so far, unless it was about another server.
fn progress_of(release: &CanaryRelease) -> Progress {
    let status = release.status.clone().unwrap_or_default();
    let server = &release.spec.target_ref.name;
    let other = status.stable_revision.as_deref().is_some_and(|r| !belongs_to(r, server));
    if other { status::at_rest(&status) } else { status }
}
