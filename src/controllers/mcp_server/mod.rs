//! Makes what an `McpServer` declares run, and reports what was observed.
//!
//! A reconcile goes `dereference → validate → build → apply → status`. Only the first and the
//! last two touch a client. Readiness comes from [`probe`]s that run beside it: a real MCP
//! handshake and `tools/list` through the gateway.
//!
//! # Guarantees
//! * The object is deleted only after everything that ran for it is gone (a finalizer, or the
//!   garbage collection of a cluster, where there is one).
//! * A spec that can never run waits for a change; only what may heal by itself is tried again.
//! * Nothing is written when nothing changed, and details of a status not each on its own ([`writes`]).
//!
//! # Releases
//! Where a `CanaryRelease` speaks for a server, its status says what runs ([`revisions`]): the
//! stable revision under the server's own key, the candidate under [`ServerKey::candidate`]. When
//! the candidate has become the stable revision, its instances stay until the server's own ones
//! answer with it, so that there is always somebody to answer.

mod apply;
mod archive;
mod build;
mod compliance;
mod credentials;
mod decommission;
mod dereference;
mod events;
mod history;
mod lives;
mod metrics;
mod orphans;
mod probe;
mod revisions;
mod sides;
mod status;
mod usage;
mod validate;
mod writes;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        Controller, WatchStreamExt,
        controller::{Action, Config},
        events::{Recorder, Reporter},
        finalizer::{self, finalizer},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Gate,
    api::{
        canary_release::CanaryRelease,
        mcp_server::{McpServer, Phase, RunningTransport},
    },
    controllers::{
        handshake::{self, GatewayAccess},
        releases::{self, Claim, Claims},
    },
    error::Category,
    lifecycle,
    names::{Revision, ServerKey},
    runtime::Backend,
};
pub use compliance::Census;
pub use lives::Lives;
pub use metrics::Metrics;
pub use usage::UsageCounting;

use credentials::Credentials;
use decommission::Course;
use events::tell;
use history::Written;
use probe::Probes;
use revisions::{Held, Revisions};
use sides::{Beside, Found, Side};
use status::Removal;
use writes::Writes;

/// Holds an object until everything that ran for it is gone.
const FINALIZER: &str = "perch.dev/runtime";
/// Field manager of everything that the controller writes.
const MANAGER: &str = "perch-controller";
/// Reconciles at the same time.
const CONCURRENCY: u16 = 16;
/// First wait after a failure; it doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(500);
/// First wait while something that may heal is in the way; it doubles up to [`MAX_RETRY`].
const AGAIN: Duration = Duration::from_secs(2);
/// Longest wait after a failure.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// What the controller works with.
#[derive(Clone)]
pub struct Context {
    /// The control plane.
    pub client: kube::Client,
    /// What runs servers.
    pub backend: Arc<dyn Backend>,
    /// Base URL of the gateway as probes reach it.
    pub gateway: url::Url,
    /// Base URL of the gateway as clients reach it, for `status.url`.
    pub public: url::Url,
    /// What probes need to be let in by the gateway.
    pub gateway_access: GatewayAccess,
    /// The only namespace to look after; all when none.
    pub namespace: Option<String>,
    /// What reconciles cost and how they end.
    pub metrics: Metrics,
    /// What judges servers; none judges none.
    pub gate: Option<Gate>,
    /// How many servers are as the policies ask.
    pub census: Census,
    /// Counts how much servers are used; none counts nothing.
    pub usage: Option<UsageCounting>,
    /// Where servers are in their lives.
    pub lives: Lives,
}

impl Context {
    /// A context.
    pub fn new(client: kube::Client, backend: Arc<dyn Backend>, gateway: url::Url) -> Self {
        Self {
            client,
            backend,
            public: gateway.clone(),
            gateway,
            gateway_access: GatewayAccess::default(),
            namespace: None,
            metrics: Metrics::default(),
            gate: None,
            census: Census::default(),
            usage: None,
            lives: Lives::default(),
        }
    }

    /// Where probes reach a server, or one revision of it.
    fn probed_url(&self, server: &ServerKey, revision: Option<&Revision>) -> String {
        handshake::url(&self.gateway, server, revision)
    }

    /// Where clients reach a server.
    fn url(&self, server: &ServerKey) -> String {
        handshake::url(&self.public, server, None)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        super::watched(&self.client, self.namespace.as_deref())
    }
}

struct State {
    context: Context,
    recorder: Recorder,
    probes: Probes,
    credentials: Credentials,
    claims: Arc<Claims>,
    held: Arc<Held>,
    written: Written,
    writes: Writes,
    /// Reconciles that failed in a row, by server.
    failures: Mutex<HashMap<ServerKey, u32>>,
    /// Reconciles in a row that told of something which may heal, by server.
    ailing: Mutex<HashMap<ServerKey, u32>>,
}

impl State {
    /// Forgets what is kept of a server that goes away.
    fn forget(&self, server: &ServerKey) {
        self.probes.forget(server);
        self.probes.forget(&server.candidate());
        self.credentials.forget(server);
        self.credentials.forget(&server.candidate());
        self.held.forget(server);
        self.written.forget(server);
        self.writes.forget(server);
        self.context.census.count(server, None);
        self.context.lives.forget(server);
        self.look_again(server, false);
    }

    /// When to look again at a server: soon where something is in the way that may go away by
    /// itself, and ever less soon while it stays.
    fn look_again(&self, server: &ServerKey, ails: bool) -> Option<Duration> {
        let mut ailing = self.ailing.lock().expect("nobody panics while holding the ailing");
        if !ails {
            ailing.remove(server);
            return None;
        }
        let times = ailing.entry(server.clone()).or_insert(0);
        *times += 1;
        Some((AGAIN * 2_u32.saturating_pow((*times).min(10) - 1)).min(MAX_RETRY))
    }
}

/// A step that the controller could not finish; it is tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The control plane refused or did not answer.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// What runs servers did not answer.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::RuntimeError),
}

/// Reconciles every `McpServer` until `shutdown`; returns when all work under way has ended.
pub async fn run(context: Context, shutdown: CancellationToken) {
    let client = context.client.clone();
    let servers: Api<McpServer> = context.api();
    let (secrets, maps): (Api<Secret>, Api<ConfigMap>) = (context.api(), context.api());
    // Who does not follow references needs no right to read what they lead to.
    let follows = !context.backend.follows_references();
    let reporter = Reporter { controller: MANAGER.into(), instance: None };
    let (probes, probed) = Probes::new(context.gateway_access.clone());
    let (credentials, fetched) = Credentials::new(client.clone());
    let changes = BroadcastStream::new(context.backend.changes());
    let state = Arc::new(State {
        recorder: Recorder::new(client.clone(), reporter),
        probes,
        credentials,
        claims: Arc::default(),
        held: Arc::default(),
        written: Written::default(),
        writes: Writes::default(),
        failures: Mutex::default(),
        ailing: Mutex::default(),
        context,
    });
    let releases: Api<CanaryRelease> = state.context.api();
    let (claimed, claims) = tokio::sync::mpsc::unbounded_channel();

    // Who manages which field is the longest part of an object, and nothing here asks for it.
    let (store, writer) = reflector::store();
    let watched = watcher(servers, watcher::Config::default())
        .default_backoff()
        .modify(|server| server.metadata.managed_fields = None)
        .reflect(writer)
        .applied_objects();
    let controller = Controller::for_stream(watched, store.clone());
    let (of_secrets, of_maps) = (store.clone(), store.clone());
    // A listener that fell behind looks at everything.
    let (changed, lagged) = split(changes);
    let policies = policies(state.context.gate.as_ref());
    let mut controller = controller.with_config(Config::default().concurrency(CONCURRENCY));
    if follows {
        let (of_secret, also_held) = (Arc::clone(&state), Arc::clone(&state.held));
        controller = controller
            .watches(secrets, watcher::Config::default(), move |secret| {
                let name = secret.name_any();
                users(&of_secrets, &of_secret.held, &secret.namespace().unwrap_or_default(), |s| {
                    let fetches = dereference::fetches_by(s, &name);
                    if fetches {
                        of_secret.credentials.poke(&key_of(s), &name);
                    }
                    fetches || dereference::names_secret(s, &name)
                })
            })
            .watches(maps, watcher::Config::default(), move |map| {
                users(&of_maps, &also_held, &map.namespace().unwrap_or_default(), |s| {
                    dereference::names_config_map(s, &map.name_any())
                })
            });
    }
    let reconciled = controller
        .reconcile_on(changed)
        .reconcile_on(tokio_stream::wrappers::UnboundedReceiverStream::new(claims).map(|key| object_ref(&key)))
        .reconcile_on(tokio_stream::wrappers::UnboundedReceiverStream::new(probed).map(|key| object_ref(&key)))
        .reconcile_on(tokio_stream::wrappers::UnboundedReceiverStream::new(fetched).map(|key| object_ref(&key)))
        .reconcile_all_on(stream::select(lagged, policies))
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(reconcile, retry, Arc::clone(&state))
        // Failures were told by `retry`.
        .for_each(|_| async {});
    let used = Box::pin(usage::follow(Arc::clone(&state), store.clone(), shutdown.clone()));
    let orphans = orphans::collect(Arc::clone(&state), store, shutdown.clone());
    let work = async {
        // Without the releases nobody knows what may run.
        let known = tokio::select! {
            () = state.claims.ready() => true,
            () = shutdown.cancelled() => false,
        };
        if known {
            if let Some(gate) = &state.context.gate {
                // What is judged before all policies are known is judged wrongly.
                tokio::select! {
                    () = gate.ready() => {}
                    () = shutdown.cancelled() => return,
                }
            }
            tokio::join!(reconciled, orphans, used);
        }
    };
    tokio::select! {
        () = work => {}
        () = state.claims.follow(releases, claimed) => {}
    }
    state.credentials.close().await;
    state.probes.close().await;
    state.context.lives.clear();
}

/// An item whenever what counts as policy changed.
fn policies(gate: Option<&Gate>) -> stream::BoxStream<'static, ()> {
    match gate {
        Some(gate) => tokio_stream::wrappers::WatchStream::from_changes(gate.changes()).map(|_| ()).boxed(),
        None => stream::pending().boxed(),
    }
}

fn split(
    changes: BroadcastStream<ServerKey>,
) -> (impl stream::Stream<Item = ObjectRef<McpServer>> + Send + 'static, impl stream::Stream<Item = ()> + Send + 'static)
{
    let (lags, lagged) = tokio::sync::mpsc::unbounded_channel();
    let changed = changes.filter_map(move |change| {
        let found = match change {
            Ok(key) => Some(object_ref(&key)),
            Err(BroadcastStreamRecvError::Lagged(_)) => {
                // The other half is gone only when the controller is.
                let _ = lags.send(());
                None
            }
        };
        async move { found }
    });
    (changed, tokio_stream::wrappers::UnboundedReceiverStream::new(lagged))
}

/// The server that a key belongs to, be it its own or that of its candidate.
fn object_ref(key: &ServerKey) -> ObjectRef<McpServer> {
    ObjectRef::new(&key.declared().name).within(&key.namespace)
}

fn users(
    store: &Store<McpServer>,
    held: &Held,
    namespace: &str,
    uses: impl Fn(&McpServer) -> bool,
) -> Vec<ObjectRef<McpServer>> {
    let servers = store.state();
    let mine = servers.iter().filter(|s| s.namespace().as_deref() == Some(namespace) && held.any(s, &uses));
    mine.map(|s| ObjectRef::from_obj(&**s)).collect()
}

fn key_of(server: &McpServer) -> ServerKey {
    ServerKey::new(server.namespace().unwrap_or_default(), server.name_any())
}

async fn reconcile(server: Arc<McpServer>, state: Arc<State>) -> Result<Action, finalizer::Error<Error>> {
    let _timer = state.context.metrics.begin();
    let key = key_of(&server);
    let done = advance(state.writes.newest(server), &state).await;
    if done.is_ok() {
        state.failures.lock().expect("nobody panics while holding the failures").remove(&key);
    }
    done
}

async fn advance(server: Arc<McpServer>, state: &State) -> Result<Action, finalizer::Error<Error>> {
    let api: Api<McpServer> = Api::namespaced(state.context.client.clone(), &server.namespace().unwrap_or_default());
    if state.context.backend.collects_garbage() {
        if let Some(place) = server.finalizers().iter().position(|f| f == FINALIZER) {
            return release(&api, &server, place).await.map_err(finalizer::Error::RemoveFinalizer);
        }
        if server.metadata.deletion_timestamp.is_some() {
            state.forget(&key_of(&server));
            return Ok(Action::await_change());
        }
        return converge(&server, state).await.map_err(finalizer::Error::ApplyFailed);
    }
    finalizer(&api, FINALIZER, server, |event| async {
        match event {
            finalizer::Event::Apply(server) => converge(&server, state).await,
            finalizer::Event::Cleanup(server) => clean_up(&server, state).await,
        }
    })
    .await
}

/// Takes the finalizer off a server that was moved here from a machine with `perch up`: where the
/// cluster collects what a server owns, it would only keep the object when Perch is gone. The watch
/// brings the object as it is then.
async fn release(api: &Api<McpServer>, server: &McpServer, place: usize) -> kube::Result<Action> {
    let path = format!("/metadata/finalizers/{place}");
    // The list may have changed since it was read.
    let patch = serde_json::json!([
        {"op": "test", "path": path, "value": FINALIZER},
        {"op": "remove", "path": path},
    ]);
    let patch: json_patch::Patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    api.patch(&server.name_any(), &params, &Patch::Json::<()>(patch)).await?;
    Ok(Action::await_change())
}

async fn converge(server: &McpServer, state: &State) -> Result<Action, Error> {
    let context = &state.context;
    let key = key_of(server);
    let course = Box::pin(decommission::advance(server, state)).await?;
    if let Course::Over = course {
        return Ok(Action::await_change());
    }
    let claim = governing(server, &key, state).await?;
    let revisions = Revisions::of(server, claim.as_ref());
    state.held.retain(&key, &revisions.in_use(server));
    let own = Side { key: &key, revision: &revisions.own, runs: true };
    let effective = course.applied_to(server);
    let runs = effective.as_deref().unwrap_or(server);
    let own = sides::run(runs, &revisions, &own, state).await;
    let mut facts = own.facts(runs, context);
    facts.held = revisions.held(claim.as_ref());
    let mut status = status::derive(&facts);
    let beside = sides::beside(runs, &revisions, &status, claim.as_ref().map(|claim| claim.drain), state).await;
    let candidate = match &beside {
        Beside::Runs(found) | Beside::Drains(found, _) => Some(&**found),
        _ => None,
    };
    let is_current = own.applied.revision().is_some_and(|r| status.current_revision.as_deref() == Some(r.as_str()));
    if is_current {
        status.transport = Some(RunningTransport::from(&own.server.spec.transport));
    }
    if own.recorded || candidate.is_some_and(|candidate| candidate.recorded) {
        status.declared_revision = Some(revisions.declared.to_string());
    }
    let retry = own.heals() || candidate.is_some_and(Found::heals) || matches!(beside, Beside::Stays(_));
    let retry = retry || course.heals();
    let credentials = [own.again(), candidate.and_then(Found::again)];
    status.candidate = match &beside {
        Beside::Nothing => None,
        Beside::Announced(status) | Beside::Stays(status) => Some(status.clone()),
        Beside::Runs(found) | Beside::Drains(found, _) => {
            Some(status::candidate(&found.facts(&found.server, context), &found.revision))
        }
    };
    let now = Timestamp::now();
    status.conditions.extend(course.condition(server, now));
    if context.usage.is_some() {
        status.usage.get_or_insert_with(|| lifecycle::usage::begin(now));
    }
    if let Some(gate) = &context.gate
        && let Some(compliant) = compliance::judge(gate, server, &mut status, now)
    {
        context.census.count(&key, Some(compliant));
    }
    let assessed = McpServer { status: Some(status.clone()), ..server.clone() };
    context.lives.set(key.clone(), lifecycle::assess(&assessed, now));
    if server.status.as_ref() != Some(&status) {
        if let Some(left) = state.writes.wait(server, &status) {
            return Ok(Action::requeue(left));
        }
        if let Some(written) = status::write(context.client.clone(), server, status.clone()).await? {
            state.writes.keep(server, written);
        }
        tell(server, &status, state).await;
    }
    let drains = if let Beside::Drains(_, left) = beside { Some(left) } else { None };
    let again = state.look_again(&key, retry && drains.is_none());
    let soonest = credentials.into_iter().chain([drains, again, course.again(now)]).flatten().min();
    Ok(soonest.map_or_else(Action::await_change, Action::requeue))
}

/// The release that counts for a server. Before what runs is changed, the control plane itself is
/// asked: the watch may not have brought a release that was made just before the change. Where
/// nothing has run yet there is no stable revision that a new release could hold, so nobody asks.
async fn governing(server: &McpServer, key: &ServerKey, state: &State) -> Result<Option<Claim>, Error> {
    let seen = state.claims.of(key);
    let runs = server.status.as_ref().and_then(|s| s.current_revision.as_deref());
    if runs.is_none() || runs == Some(Revisions::of(server, seen.as_ref()).own.as_str()) {
        return Ok(seen);
    }
    Ok(releases::ask(&state.context.client, key).await?)
}

async fn clean_up(server: &McpServer, state: &State) -> Result<Action, Error> {
    let key = key_of(server);
    let (client, now) = (&state.context.client, Timestamp::now());
    state.forget(&key);
    let mut server = server.clone();
    let before = server.status.as_ref().and_then(|s| s.phase);
    if before != Some(Phase::Terminating) {
        // The end may take a while, and whoever looks meanwhile must not read that it is Ready.
        let status = status::terminating(&server, Removal::Begun, now);
        match status::write(client.clone(), &server, status).await? {
            Some(written) => server = written,
            None => return Ok(Action::await_change()),
        }
    }
    let result = match state.context.backend.remove(&key.candidate()).await {
        Ok(()) => state.context.backend.remove(&key).await,
        failed => failed,
    };
    let failed = result.as_ref().err().map(ToString::to_string);
    let status = status::terminating(&server, failed.as_deref().map_or(Removal::Done, Removal::Failed), now);
    // Without other finalizers the object is gone the next moment.
    let stays = result.is_err() || server.finalizers().iter().any(|f| f != FINALIZER);
    if stays && server.status.as_ref() != Some(&status) {
        status::write(client.clone(), &server, status.clone()).await?;
        if result.is_err() {
            tell(&server, &status, state).await;
        }
    }
    result?;
    Ok(Action::await_change())
}

/// What went wrong, in the API server's own words where it spoke.
fn explain(error: &finalizer::Error<Error>) -> String {
    match error {
        finalizer::Error::ApplyFailed(Error::Api(kube::Error::Api(status)))
        | finalizer::Error::CleanupFailed(Error::Api(kube::Error::Api(status)))
        | finalizer::Error::AddFinalizer(kube::Error::Api(status))
        | finalizer::Error::RemoveFinalizer(kube::Error::Api(status)) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The error's kind, as a metric label.
fn category(error: &finalizer::Error<Error>) -> &'static str {
    match error {
        finalizer::Error::ApplyFailed(Error::Runtime(error))
        | finalizer::Error::CleanupFailed(Error::Runtime(error)) => error.category(),
        _ => "ApiRefused",
    }
}

fn retry(server: Arc<McpServer>, error: &finalizer::Error<Error>, state: Arc<State>) -> Action {
    let conflict = |e: &kube::Error| matches!(e, kube::Error::Api(status) if status.code == 409);
    let stale = match error {
        finalizer::Error::ApplyFailed(Error::Api(e)) | finalizer::Error::CleanupFailed(Error::Api(e)) => conflict(e),
        // The patch tests that the list is as it was read.
        finalizer::Error::AddFinalizer(e) | finalizer::Error::RemoveFinalizer(e) => {
            matches!(e, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 422))
        }
        _ => false,
    };
    if stale {
        // The object changed meanwhile; the watch brings the new one, this is for the case that
        // it was seen already.
        tracing::debug!(server = %key_of(&server), %error, "the object changed during a reconcile");
        return Action::requeue(RETRY);
    }
    state.context.metrics.failed(category(error));
    let failures = {
        let mut all = state.failures.lock().expect("nobody panics while holding the failures");
        let failures = all.entry(key_of(&server)).or_insert(0);
        *failures += 1;
        *failures
    };
    tracing::warn!(server = %key_of(&server), error = explain(error), failures, "a reconcile failed");
    Action::requeue((RETRY * 2_u32.saturating_pow(failures.min(10) - 1)).min(MAX_RETRY))
}
