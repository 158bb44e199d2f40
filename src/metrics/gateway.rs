//! What the gateways report. One round asks all of them once, and answers for all releases.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio::sync::Mutex;
use url::Url;

use super::{GatewayAddresses, Limits, Question, discovery, fetch, own_metric};
use crate::{
    api::{
        canary_release::Provider,
        gateway_report::{CountedSignal, GatewayReport, REPORT_PATH, ServerReport},
    },
    canary::{
        Gateway, InFlight, Reading, Series,
        plan::{CriterionPlan, Signal},
        wanted,
    },
    names::ServerKey,
};

/// Shortest and longest time that a round serves for others.
const FRESH: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// A round serves this many times as long as it took to read: so reading never takes more than a
/// fortieth of a core, however many servers are released.
const REST: u32 = 40;

/// An admin endpoint of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The gateway's name as far as it is known before it answers.
    pub name: String,
    /// Base URL.
    pub url: Url,
    /// Whether it takes new clients. One that does not, and does not answer, is not missed.
    pub takes_clients: bool,
}

/// Asks gateways.
pub(super) struct Scraper {
    addresses: GatewayAddresses,
    http: reqwest::Client,
    limits: Limits,
    /// The last round, and until when it serves.
    last: Mutex<Option<(Instant, Arc<Round>)>>,
}

/// What all gateways answered at about the same moment.
#[derive(Debug, Default)]
pub(super) struct Round {
    gateways: Vec<Asked>,
}

/// What one gateway answered.
#[derive(Debug)]
struct Asked {
    name: String,
    /// The report, or in a few words why there is none.
    report: Result<Report, String>,
}

#[derive(Debug)]
struct Report {
    /// Name and start of its life.
    source: String,
    synced: bool,
    servers: HashMap<ServerKey, ServerReport>,
}

impl Scraper {
    pub(super) fn new(addresses: GatewayAddresses, http: reqwest::Client, limits: Limits) -> Self {
        Self { addresses, http, limits, last: Mutex::new(None) }
    }

    /// A fresh round. Whoever comes while one is under way waits for it.
    pub(super) async fn round(&self) -> Arc<Round> {
        let mut last = self.last.lock().await;
        if let Some((until, round)) = last.as_ref()
            && Instant::now() < *until
        {
            return Arc::clone(round);
        }
        let (round, work) = self.ask_all().await;
        let round = Arc::new(round);
        *last = Some((Instant::now() + (work * REST).clamp(FRESH.0, FRESH.1), Arc::clone(&round)));
        round
    }

    /// Asks all gateways, and says how long it took to read what they said.
    async fn ask_all(&self) -> (Round, Duration) {
        let addresses = match &self.addresses {
            GatewayAddresses::Fixed(urls) => urls.iter().map(Address::fixed).collect(),
            GatewayAddresses::Discovered { client, namespace, service } => {
                let listed = discovery::addresses(client, namespace, service);
                let late = || Err("the API server did not answer in time".to_owned());
                match tokio::time::timeout(self.limits.provider, listed).await.unwrap_or_else(|_| late()) {
                    Ok(addresses) => addresses,
                    Err(why) => {
                        // Gateways that are not known may run anything.
                        let name = format!("service {namespace}/{service}");
                        let gateways = vec![Asked { name, report: Err(why) }];
                        return (Round { gateways }, Duration::ZERO);
                    }
                }
            }
        };
        let answers = join_all(addresses.into_iter().map(async |address| {
            let answer = self.ask(&address).await;
            (address, answer)
        }));
        let answers = answers.await;
        let begun = Instant::now();
        let mut reports: Vec<_> =
            answers.into_iter().map(|(address, answer)| (address, answer.and_then(|body| read(&body)))).collect();
        let work = begun.elapsed();
        // Those that answered come first: a gateway with several addresses is still one, and one
        // that answers is enough.
        reports.sort_by_key(|(_, report)| report.is_err());
        let mut gateways: Vec<Asked> = Vec::with_capacity(reports.len());
        let mut answered: Vec<String> = Vec::new();
        for (address, report) in reports {
            let (name, report) = match report {
                Ok((name, report)) => {
                    let twice = |g: &Asked| g.report.as_ref().is_ok_and(|other| other.source == report.source);
                    answered.push(address.name);
                    if gateways.iter().any(twice) || !(address.takes_clients || report.synced) {
                        continue;
                    }
                    (name, Ok(report))
                }
                Err(_) if !address.takes_clients || answered.contains(&address.name) => continue,
                Err(why) => (address.name, Err(why)),
            };
            gateways.push(Asked { name, report });
        }
        gateways.sort_by(|a, b| a.name.cmp(&b.name));
        (Round { gateways }, work)
    }

    async fn ask(&self, address: &Address) -> Result<Vec<u8>, String> {
        let mut url = address.url.clone();
        url.set_path(REPORT_PATH);
        let answer = fetch::get(&self.http, url, self.limits.gateway, self.limits.bytes).await?;
        if answer.status == 200 { Ok(answer.body) } else { Err(format!("it answered {}", answer.status)) }
    }
}

impl Address {
    pub(super) fn fixed(url: &Url) -> Self {
        Self { name: url.authority().to_owned(), url: url.clone(), takes_clients: true }
    }
}

fn read(body: &[u8]) -> Result<(String, Report), String> {
    let report: GatewayReport =
        serde_json::from_slice(body).map_err(|_| "it answered something that is no report".to_owned())?;
    let source = format!("{}@{}", report.gateway, report.started_at);
    let key = |server: &ServerReport| ServerKey::new(&*server.namespace, &*server.name);
    let servers = report.servers.into_iter().map(|server| (key(&server), server)).collect();
    Ok((report.gateway, Report { source, synced: report.synced, servers }))
}

/// What gateways count for a criterion, if they do.
fn counted(question: &Question<'_>, criterion: &CriterionPlan) -> Result<CountedSignal, &'static str> {
    if own_metric(question, criterion).is_some_and(|m| m.provider == Provider::Gateway) {
        return Ok(CountedSignal::OfTools(criterion.metric.clone()));
    }
    match criterion.signal {
        Signal::Errors => Ok(CountedSignal::Errors),
        Signal::SlowerThan(micros) => Ok(CountedSignal::SlowerThan(micros)),
        Signal::Unavailable => Ok(CountedSignal::Unavailable),
        Signal::SchemaErrors => Ok(CountedSignal::SchemaErrors),
        Signal::IncompleteTraces => Ok(CountedSignal::IncompleteTraces),
        Signal::Dissatisfied => Ok(CountedSignal::Dissatisfied),
        Signal::Vulnerabilities | Signal::Custom => Err("the gateways do not count it"),
    }
}

impl Round {
    /// The routing that each gateway runs for a release.
    pub(super) fn epochs(&self, question: &Question<'_>) -> Vec<Gateway> {
        self.gateways.iter().map(|g| Gateway { name: g.name.clone(), epoch: epoch(g, question) }).collect()
    }

    /// Calls in hand. Unknown while a gateway does not answer: it may hold some.
    pub(super) fn in_flight(&self, question: &Question<'_>) -> InFlight {
        let of = |revision: &str| {
            let mut sum = 0_i64;
            for gateway in &self.gateways {
                let server = gateway.report.as_ref().ok()?.servers.get(question.server);
                let revisions = server.into_iter().flat_map(|s| &s.revisions).filter(|r| r.revision == revision);
                sum = revisions.fold(sum, |sum, r| sum.saturating_add(r.in_flight.max(0)));
            }
            (!self.gateways.is_empty()).then_some(sum)
        };
        InFlight { candidate: of(question.candidate), stable: of(question.stable) }
    }

    /// The counters of all gateways for a criterion.
    pub(super) fn read(&self, question: &Question<'_>, criterion: &CriterionPlan) -> Reading {
        let signal = match counted(question, criterion) {
            Ok(signal) => signal,
            Err(why) => return Reading::Unknown(why.into()),
        };
        if self.gateways.is_empty() {
            return Reading::Unknown("no gateway runs that could have counted".into());
        }
        let mut series = Vec::new();
        let mut silent = None;
        for gateway in &self.gateways {
            let report = match &gateway.report {
                Ok(report) => report,
                Err(why) => return Reading::Unknown(format!("gateway {}: {why}", gateway.name)),
            };
            let server = report.servers.get(question.server).filter(|s| is_meant(s, question));
            let revisions = server.into_iter().flat_map(|s| &s.revisions);
            for revision in revisions.filter(|r| [question.candidate, question.stable].contains(&r.revision.as_str())) {
                let Some(counter) = revision.counters.iter().find(|c| c.signal == signal) else {
                    silent = Some(&gateway.name);
                    continue;
                };
                series.push(Series {
                    source: report.source.clone(),
                    revision: revision.revision.clone(),
                    since: Some(revision.since),
                    counts: counter.counts,
                    users: Some(revision.users),
                });
            }
        }
        // Calls that somebody did not count would be calls that were not bad.
        match silent {
            Some(name) => Reading::NoData(format!("gateway {name} does not count {} yet", criterion.metric)),
            None => Reading::Counters(series),
        }
    }
}

fn is_meant(server: &ServerReport, question: &Question<'_>) -> bool {
    let release = question.release.status.as_ref().and_then(|s| s.release_id.as_ref());
    Some(&server.release_id) == release
}

fn epoch(gateway: &Asked, question: &Question<'_>) -> Option<i64> {
    let report = gateway.report.as_ref().ok().filter(|report| report.synced)?;
    let status = question.release.status.as_ref()?;
    match report.servers.get(question.server) {
        Some(server) => is_meant(server, question).then_some(server.epoch),
        // Without a candidate there is nothing to divide, so there is nothing that it could lack.
        None => wanted(status).candidate.is_none().then_some(status.routing.desired_epoch),
    }
}
