//! What the gateway counts for releases: bad calls and all calls of each revision, by signal and by
//! cell of users. Counting takes no lock: a counter is an atomic that only rises.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{by_server::ByServer, outcome::Outcome};
use crate::{
    api::{
        canary_release::{CELLS, CanaryReleaseSpec, Counts, Provider},
        gateway_report::{CountedSignal, Counter, GatewayReport, RevisionReport, ServerReport},
    },
    canary::{Plan, plan::Signal},
    names::{Revision, ServerKey},
    routing::{RouteTable, Seat, Side, Split},
};

/// The tools of a metric of the release's own.
type Tools = Arc<HashSet<String>>;

/// A signal, and the tools whose calls count for it; all calls when none are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    signal: CountedSignal,
    tools: Option<Tools>,
}

/// Everything that a release judges by and that a gateway can count.
pub fn watched(spec: &CanaryReleaseSpec) -> Vec<Watched> {
    let plain = |signal| Watched { signal, tools: None };
    let mut all =
        vec![plain(CountedSignal::Errors), plain(CountedSignal::Unavailable), plain(CountedSignal::SchemaErrors)];
    // Whoever judges by a spec that cannot be read will say so.
    let Ok(plan) = Plan::new(spec) else { return all };
    for criterion in plan.stages.iter().flat_map(|stage| &stage.criteria) {
        let found = match criterion.signal {
            Signal::SlowerThan(micros) => Some(plain(CountedSignal::SlowerThan(micros))),
            Signal::IncompleteTraces => Some(plain(CountedSignal::IncompleteTraces)),
            Signal::Dissatisfied => Some(plain(CountedSignal::Dissatisfied)),
            Signal::Custom => {
                let metric =
                    spec.metrics.iter().find(|m| m.name == criterion.metric && m.provider == Provider::Gateway);
                metric.and_then(|metric| {
                    let tools: HashSet<String> = metric.tools.as_ref()?.iter().cloned().collect();
                    Some(Watched { signal: CountedSignal::OfTools(metric.name.clone()), tools: Some(tools.into()) })
                })
            }
            _ => None,
        };
        all.extend(found.filter(|found| !all.contains(found)));
    }
    all
}

/// The latencies that a release has limits for, in microseconds.
pub fn latencies(watched: &[Watched]) -> impl Iterator<Item = u64> {
    watched.iter().filter_map(|w| match w.signal {
        CountedSignal::SlowerThan(micros) => Some(micros),
        _ => None,
    })
}

/// The counters of one signal.
#[derive(Debug, Default)]
struct Cells {
    bad: [AtomicU64; CELLS],
    total: [AtomicU64; CELLS],
}

impl Cells {
    fn add(&self, cell: usize, is_bad: bool) {
        self.total[cell].fetch_add(1, Ordering::Release);
        if is_bad {
            self.bad[cell].fetch_add(1, Ordering::Release);
        }
    }

    fn read(&self) -> Counts {
        let mut counts = Counts::default();
        let number = |counter: &AtomicU64| i64::try_from(counter.load(Ordering::Acquire)).unwrap_or(i64::MAX);
        for cell in 0..CELLS {
            // Bad events first: those that come meanwhile are in the total, and never the other
            // way round.
            counts.bad[cell] = number(&self.bad[cell]);
            counts.total[cell] = number(&self.total[cell]);
        }
        counts
    }
}

/// What stays of a revision's counters whatever its release judges by.
#[derive(Debug, Default)]
struct Presence {
    in_flight: AtomicI64,
    users: AtomicI64,
}

/// The counters of one revision.
#[derive(Debug)]
pub struct RevisionCounters {
    revision: Revision,
    since: Timestamp,
    presence: Arc<Presence>,
    signals: Vec<(Watched, Arc<Cells>)>,
}

impl RevisionCounters {
    fn new(revision: Revision, since: Timestamp, watched: &[Watched]) -> Self {
        let signals = watched.iter().map(|w| (w.clone(), Arc::default())).collect();
        Self { revision, since, presence: Arc::default(), signals }
    }

    fn meet(&self, seat: Seat) {
        let users = &self.presence.users;
        if users.load(Ordering::Relaxed) & seat.user_bit == 0 {
            users.fetch_or(seat.user_bit, Ordering::Relaxed);
        }
    }

    /// Counts what a user says about the revision.
    pub fn judge(&self, seat: Seat, satisfied: bool) {
        self.meet(seat);
        for (_, cells) in self.signals.iter().filter(|(w, _)| w.signal == CountedSignal::Dissatisfied) {
            cells.add(seat.cell, !satisfied);
        }
    }

    /// Counts a call that is over. `traced`: it brought a trace context.
    pub fn count(&self, seat: Seat, outcome: Outcome, duration: Duration, tool: Option<&str>, traced: bool) {
        if !outcome.counts() {
            return;
        }
        self.meet(seat);
        for (watched, cells) in &self.signals {
            let is_bad = match &watched.signal {
                CountedSignal::Errors | CountedSignal::OfTools(_) => outcome.is_failure(),
                CountedSignal::Unavailable => outcome.is_unavailable(),
                CountedSignal::SchemaErrors => outcome.is_schema_error(),
                CountedSignal::SlowerThan(micros) => duration > Duration::from_micros(*micros),
                CountedSignal::IncompleteTraces => !traced || outcome.is_unavailable(),
                CountedSignal::Dissatisfied => continue,
            };
            let is_of = watched.tools.as_ref().is_none_or(|tools| tool.is_some_and(|tool| tools.contains(tool)));
            if is_of {
                cells.add(seat.cell, is_bad);
            }
        }
    }

    fn report(&self) -> RevisionReport {
        let counters = self.signals.iter().map(|(w, cells)| Counter { signal: w.signal.clone(), counts: cells.read() });
        RevisionReport {
            revision: self.revision.0.clone(),
            since: self.since,
            in_flight: self.presence.in_flight.load(Ordering::Relaxed),
            users: self.presence.users.load(Ordering::Relaxed),
            counters: counters.collect(),
        }
    }
}

/// A request in the hands of a revision, until it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<RevisionCounters>);

impl InFlight {
    /// One more.
    pub fn new(counters: Arc<RevisionCounters>) -> Self {
        counters.presence.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(counters)
    }

    /// The counters of the revision.
    pub fn counters(&self) -> &RevisionCounters {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.presence.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A release, as the gateway counts for it.
#[derive(Clone, Debug)]
pub struct Release {
    release_id: String,
    watched: Vec<Watched>,
    stable: Arc<RevisionCounters>,
    candidate: Option<Arc<RevisionCounters>>,
    /// Ends what only listens to the candidate, when its time is over.
    over: CancellationToken,
}

impl Release {
    /// The counters of a side.
    pub fn counters(&self, side: Side) -> Option<&Arc<RevisionCounters>> {
        match side {
            Side::Stable => Some(&self.stable),
            Side::Candidate => self.candidate.as_ref(),
        }
    }

    /// Is cancelled when the candidate's time is over.
    pub fn over(&self) -> &CancellationToken {
        &self.over
    }
}

/// All releases that the gateway counts for.
#[derive(Debug, Default)]
pub struct Releases {
    by_server: ByServer<Release>,
}

impl Releases {
    /// The release of a server.
    pub fn get(&self, server: &ServerKey) -> Option<Arc<Release>> {
        self.by_server.get(server)
    }

    /// Whether a server's release judges by traces.
    pub fn wants_traces(&self, server: &ServerKey) -> bool {
        let all = self.by_server.all();
        all.get(server).is_some_and(|release| {
            release.watched.iter().any(|watched| watched.signal == CountedSignal::IncompleteTraces)
        })
    }

    /// Makes counters for a release before its routing goes live. What was counted for the same
    /// release, revision and signal goes on.
    pub fn prepare(&self, server: &ServerKey, split: &Split, watched: &[Watched], now: Timestamp) {
        let known = self.get(server);
        let same = known.as_ref().filter(|known| known.release_id == split.release_id);
        let counters = |revision: &Revision| {
            let before = same.and_then(|same| {
                [Some(&same.stable), same.candidate.as_ref()].into_iter().flatten().find(|c| c.revision == *revision)
            });
            match before {
                Some(before) if same.is_some_and(|same| same.watched == watched) => Arc::clone(before),
                before => Arc::new(renewed(revision, before.map(|b| &**b), watched, now)),
            }
        };
        let over = same.map_or_else(CancellationToken::new, |same| same.over.clone());
        let release = Release {
            release_id: split.release_id.clone(),
            watched: watched.to_vec(),
            stable: counters(&split.stable),
            candidate: split.candidate.as_ref().map(counters),
            // A release that was over may begin again after a retry, under another id.
            over: if over.is_cancelled() && split.running_candidate().is_some() {
                CancellationToken::new()
            } else {
                over
            },
        };
        if let Some(known) = known.filter(|known| known.release_id != release.release_id) {
            known.over.cancel();
        }
        self.by_server.set(server, Arc::new(release));
    }

    /// Ends what listens to candidates whose time is over, and forgets releases that are gone, once
    /// the routing without them is live.
    pub fn settle(&self, server: &ServerKey, split: Option<&Split>) {
        let Some(known) = self.get(server) else { return };
        if split.is_none_or(|split| split.running_candidate().is_none()) {
            known.over.cancel();
        }
        if split.is_none() {
            self.by_server.remove(server);
        }
    }

    /// What the gateway reports, with the epochs of the table that it runs.
    pub fn report(&self, gateway: &str, started_at: Timestamp, synced: bool, table: &RouteTable) -> GatewayReport {
        let all = self.by_server.all();
        let servers = table.splits().into_iter().filter_map(|(server, split)| {
            let release = all.get(server).filter(|release| release.release_id == split.release_id)?;
            let revisions = [Some(&release.stable), release.candidate.as_ref()];
            Some(ServerReport {
                namespace: server.namespace.clone(),
                name: server.name.clone(),
                release_id: split.release_id.clone(),
                epoch: split.epoch,
                revisions: revisions.into_iter().flatten().map(|counters| counters.report()).collect(),
            })
        });
        GatewayReport { gateway: gateway.to_owned(), started_at, synced, servers: servers.collect() }
    }
}

/// Counters for other signals, which go on where the signal is the same.
fn renewed(
    revision: &Revision,
    before: Option<&RevisionCounters>,
    watched: &[Watched],
    now: Timestamp,
) -> RevisionCounters {
    let mut counters = RevisionCounters::new(revision.clone(), before.map_or(now, |b| b.since), watched);
    let Some(before) = before else { return counters };
    counters.presence = Arc::clone(&before.presence);
    for (watched, cells) in &mut counters.signals {
        if let Some((_, known)) = before.signals.iter().find(|(w, _)| w == watched) {
            *cells = Arc::clone(known);
        }
    }
    counters
}

#[cfg(test)]
mod tests;
