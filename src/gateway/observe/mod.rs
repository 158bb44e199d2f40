//! What the gateway learns of each operation, and who is told: the counters of releases
//! ([`releases`]), metrics ([`metrics`]), how much servers are used ([`usage`]) and the audit log
//! ([`audit`]).
//!
//! How an operation went is read from the bytes of its answer as they pass ([`scan`]). A call is
//! counted once, when its answer is over, for the revision that it went to; what nobody knows the
//! end of is not counted.

pub mod audit;
mod body;
mod by_server;
pub mod metrics;
pub mod outcome;
pub mod releases;
pub mod scan;
pub mod states;
mod trace_context;
mod trail;
pub mod usage;

use std::{
    borrow::Cow,
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::counter::ConstCounter,
};
use serde_json::{Value, value::RawValue};
use tokio_util::sync::CancellationToken;

pub use trail::{Counted, Trail};

use self::{
    audit::{Audit, AuditConfig, Decision, Record},
    metrics::{Meters, method_label},
    outcome::Outcome,
    releases::Releases,
    scan::Answer,
    states::States,
    usage::Usage,
};
use super::{
    balance::Holding,
    era,
    handler::Call,
    listen::Peer,
    message::{Kind, Message},
    reply::{Body, Failure},
    session::Principal,
    trace::{Operation, Tracing},
};
use crate::{
    api::gateway_report::{GatewayReport, UsageReport},
    names::ServerKey,
    routing::{Route, RouteTable},
};

/// Longest name of a tool or method that is recorded, in bytes.
const LONGEST_NAME: usize = 128;

/// Everything that is kept about operations.
pub struct Observer {
    name: String,
    started_at: Timestamp,
    synced: AtomicBool,
    /// What is counted for releases.
    pub releases: Releases,
    /// What is counted for Prometheus.
    pub meters: Meters,
    /// Who issued what clients bring back.
    pub states: States,
    /// How much servers are used.
    pub usage: Usage,
    audit: Option<Audit>,
    traces: Tracing,
}

impl Observer {
    /// An observer of the gateway of this name.
    ///
    /// # Errors
    /// When the audit log cannot be opened.
    pub fn new(name: String, audit: Option<AuditConfig>) -> std::io::Result<Self> {
        Ok(Self {
            name,
            started_at: Timestamp::now(),
            synced: AtomicBool::new(false),
            releases: Releases::default(),
            meters: Meters::default(),
            states: States::default(),
            usage: Usage::default(),
            audit: audit.map(Audit::open).transpose()?,
            traces: None,
        })
    }

    /// Makes spans of operations, too.
    #[must_use]
    pub fn tracing(self, traces: Tracing) -> Self {
        Self { traces, ..self }
    }

    /// The gateway knows all servers and releases from now on, or no longer does.
    pub fn set_synced(&self, synced: bool) {
        self.synced.store(synced, Ordering::Release);
    }

    /// What the gateway reports while it runs this table.
    pub fn report(&self, table: &RouteTable) -> GatewayReport {
        self.releases.report(&self.name, self.started_at, self.synced.load(Ordering::Acquire), table)
    }

    /// What the gateway reports about how much servers are used.
    pub fn usage_report(&self) -> UsageReport {
        self.usage.report(&self.name, self.started_at)
    }

    /// Forgets servers that are no more.
    pub fn retain(&self, is_there: impl Fn(&ServerKey) -> bool) {
        self.meters.retain(&is_there);
        self.usage.retain(&is_there);
    }

    /// Records a request of whom nobody let in, before anything of it was read.
    pub fn refused(&self, parts: &Parts, status: StatusCode) {
        let Some(audit) = self.audit.as_ref().filter(|_| status.is_client_error()) else { return };
        let path: Vec<&str> = parts.uri.path().split('/').filter(|p| !p.is_empty()).collect();
        let named = if path.get(1) == Some(&"toolboxes") && path.len() > 3 { 3 } else { 2 };
        audit.record(Record {
            time: Timestamp::now(),
            server: path.iter().take(named).map(|part| cut(part)).collect::<Vec<_>>().join("/"),
            revision: String::new(),
            user: Arc::default(),
            client: parts.extensions.get::<Peer>().map(|peer| peer.0.ip()),
            method: parts.method.to_string(),
            name: None,
            decision: Decision::Deny,
            outcome: if status == StatusCode::UNAUTHORIZED { "unauthenticated" } else { Outcome::Rejected.as_str() },
            duration_ms: 0.0,
            arguments: None,
        });
    }

    /// Writes what has still to be written.
    pub async fn close(&self) {
        if let Some(audit) = &self.audit {
            audit.close().await;
        }
        if let Some(traces) = &self.traces {
            traces.close().await;
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Collector for Observer {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.meters.encode(&mut encoder)?;
        let Some(audit) = &self.audit else { return Ok(()) };
        let lost = ConstCounter::new(audit.lost());
        let family = encoder.encode_descriptor(
            "perch_gateway_audit_records_lost",
            "Records of the audit log that were lost because they came faster than they could be written",
            None,
            lost.metric_type(),
        )?;
        lost.encode(family)
    }
}

/// An operation that is observed until its end. Dropped before, nobody knows how it went.
pub struct Watch {
    observer: Arc<Observer>,
    route: Arc<Route>,
    principal: Principal,
    client: Option<IpAddr>,
    trail: Arc<Trail>,
    method: Cow<'static, str>,
    name: Option<String>,
    started: Instant,
    decision: Decision,
    arguments: Option<Value>,
    /// Whether it brought a trace context; false where no release asks for it.
    traced: bool,
    /// By what its client may give it up.
    cancel_key: Option<(u64, u64)>,
    span: Option<Operation>,
    done: bool,
}

impl Watch {
    /// Observes a request; nothing else has an end to observe.
    pub fn new(observer: &Arc<Observer>, call: &Call, message: &Message<'_>) -> Option<Self> {
        if message.kind() != Kind::Request {
            if message.method() == "notifications/cancelled" {
                observer.states.cancel(call, message);
            }
            return None;
        }
        let label = method_label(message.method());
        let method = match label {
            "other" => Cow::Owned(cut(message.method())),
            known => Cow::Borrowed(known),
        };
        let wants_arguments = observer.audit.as_ref().is_some_and(Audit::wants_arguments);
        let name = era::named_by(label).and_then(|name| message.param(name)).map(|name| cut(&name));
        let traces = observer.traces.as_deref();
        Some(Self {
            span: traces.and_then(|traces| Operation::begin(traces, call, message, &method, name.as_deref())),
            observer: Arc::clone(observer),
            name,
            arguments: if wants_arguments { message.param_raw("arguments").map(audit::shown) } else { None },
            traced: label == "tools/call"
                && observer.releases.wants_traces(&call.route.server)
                && trace_context::is_there(&call.parts.headers, message),
            cancel_key: message.id.and_then(|id| observer.states.call_key(call, id.get())),
            route: Arc::clone(&call.route),
            principal: call.principal.clone(),
            client: call.parts.extensions.get::<Peer>().map(|peer| peer.0.ip()),
            trail: Arc::clone(&call.trail),
            method,
            started: Instant::now(),
            decision: Decision::Allow,
            done: false,
        })
    }

    /// Names the operation's span in the request, for the server; gives the new body if there is a
    /// span, and the body can have it.
    pub fn carry(&self, headers: &mut HeaderMap, message: &Message<'_>, body: &[u8]) -> Option<Bytes> {
        self.span.as_ref()?.carry(headers, message, body)
    }

    /// The operation is refused.
    pub fn deny(&mut self) {
        self.decision = Decision::Deny;
    }

    fn is_tool_call(&self) -> bool {
        self.method == "tools/call"
    }

    fn listens(&self) -> bool {
        self.method == "subscriptions/listen"
    }

    /// The gateway answers it itself.
    fn failed(&mut self, failure: &Failure) {
        if matches!(failure.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS) {
            self.deny();
        }
        let by_schema = failure.arguments.map(|_| Outcome::InvalidParams);
        self.complete(by_schema.unwrap_or_else(|| Outcome::of_failure(failure.status, failure.code)));
    }

    /// The operation is over, or as much of it as is recorded.
    fn complete(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.done, true) || self.trail.is_handed_on() {
            return;
        }
        let is_doubtful = outcome.is_failure() || outcome == Outcome::Rejected;
        let given_up = is_doubtful && self.cancel_key.is_some_and(|key| self.observer.states.was_cancelled(key));
        let outcome = if given_up { Outcome::Cancelled } else { outcome };
        let duration = self.started.elapsed();
        let server = &self.route.server;
        let tool = self.name.as_deref().filter(|_| self.is_tool_call());
        let served = self.trail.lock();
        let revision = served.as_ref().map_or("", |served| served.revision.as_str());
        self.observer.meters.record(server, revision, &self.method, tool, outcome, duration);
        if self.decision == Decision::Allow && usage::is_use(&self.method) {
            self.observer.usage.record(server, &self.principal.0, self.client, Timestamp::now());
        }
        if let Some(counted) =
            served.as_ref().and_then(|served| served.counted.as_ref()).filter(|_| self.is_tool_call())
        {
            counted.in_flight.counters().count(counted.seat, outcome, duration, tool, self.traced);
        }
        if let Some(span) = self.span.take() {
            span.end(outcome, revision);
        }
        if let Some(audit) = &self.observer.audit {
            audit.record(Record {
                time: Timestamp::now(),
                server: server.to_string(),
                revision: revision.to_owned(),
                user: Arc::clone(&self.principal.0),
                client: self.client,
                method: self.method.clone().into_owned(),
                name: self.name.clone(),
                decision: self.decision,
                outcome: outcome.as_str(),
                duration_ms: milliseconds(duration),
                arguments: self.arguments.take(),
            });
        }
        drop(served);
        if !self.listens() {
            self.trail.take();
        }
    }

    /// Remembers who issued what the client will bring back.
    fn remember(&self, answer: &Answer) {
        if let Some(revision) = self.trail.revision().filter(|_| !answer.states.is_empty()) {
            let owner = (&self.route.server, &self.principal);
            answer.states.iter().for_each(|state| self.observer.states.issued(owner, state, &revision));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.complete(Outcome::Cancelled);
        // What listens is over now as well.
        self.trail.take();
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST_NAME)].to_owned()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The answer to an operation, observed on its way to the client.
pub fn follow(
    watch: Option<Watch>,
    trail: &Arc<Trail>,
    done: Result<Response<Body>, Failure>,
    id: Option<&RawValue>,
) -> Response<Body> {
    match (done, watch) {
        (Err(failure), watch) => {
            if let Some(mut watch) = watch {
                watch.failed(&failure);
            }
            trail.take();
            failure.reply(id)
        }
        (Ok(response), None) => {
            let listens = is_stream(&response);
            let served = trail.take().and_then(|served| served.counted);
            match served.filter(|_| listens) {
                // A stream of a session that only listens.
                Some(counted) => {
                    let over = counted.over.clone();
                    response.map(|body| Holding::new(body, counted, over).boxed_unsync())
                }
                None => response,
            }
        }
        (Ok(response), Some(mut watch)) if watch.listens() && response.status().is_success() => {
            watch.complete(Outcome::Ok);
            let over = watch.trail.over();
            response.map(|body| Holding::new(body, Box::new(watch), over).boxed_unsync())
        }
        (Ok(mut response), Some(watch)) => {
            if let Some(over) = trail.over().filter(|_| watch.method == "initialize") {
                response.extensions_mut().insert(Over(over));
            }
            body::observed(response, watch, id)
        }
    }
}

/// Goes with the answer to `initialize` from a candidate: ends what the session's client listens to.
#[derive(Clone, Debug)]
pub struct Over(pub CancellationToken);

fn is_stream<B>(response: &Response<B>) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"))
}

#[cfg(test)]
mod tests;
