//! What is measured about the two revisions of a release, for whoever judges it.
//!
//! [`Providers::measure`] asks the gateways for their own counters, Prometheus servers, JSON
//! documents and reports of vulnerability scanners, and gives one [`Reading`] for each criterion of
//! the current stage. Invariants: it always answers, within [`Limits::provider`] and a little; what
//! is no number, or not exactly one number, is [`Reading::NoData`] and never zero; a provider that
//! fails is [`Reading::Unknown`], and never a failure of the release. Nothing of what a provider
//! sends but its numbers and its own error message reaches a status.
//!
//! [`UsageReader`] asks the gateways how much servers are used.
//!
//! May import: `canary`, `lifecycle`, `api`, `names`. Never `runtime`, `controllers`, `gateway`.

mod discovery;
mod fetch;
mod gateway;
mod number;
mod prometheus;
mod scan;
mod usage;
mod web;

use std::time::Duration;

use futures::future::join_all;
use kube::Client;
use url::Url;

use crate::{
    api::canary_release::{CanaryRelease, Metric, Provider},
    canary::{
        Gateway, InFlight, Plan, Reading,
        plan::{CriterionPlan, Signal, StagePlan},
    },
    names::ServerKey,
};
use gateway::Scraper;
pub use usage::{UsageReader, UsageRound};

/// What is asked: everything about one release at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The server that is released.
    pub server: &'a ServerKey,
    /// The release, with the status of the last decision.
    pub release: &'a CanaryRelease,
    /// Its spec, parsed.
    pub plan: &'a Plan,
    /// The stable revision.
    pub stable: &'a str,
    /// The candidate.
    pub candidate: &'a str,
}

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Every gateway, with the routing that it runs.
    pub gateways: Vec<Gateway>,
    /// Work that is still bound to either revision.
    pub in_flight: InFlight,
    /// One entry for each criterion of the current stage, by the name of its metric.
    pub readings: Vec<(String, Reading)>,
}

/// Where the gateways' admin endpoints are.
#[derive(Clone)]
pub enum GatewayAddresses {
    /// These base URLs.
    Fixed(Vec<Url>),
    /// The endpoints of a Service, by its EndpointSlices.
    Discovered {
        /// The API server.
        client: Client,
        /// Namespace of the Service.
        namespace: String,
        /// Name of the Service.
        service: String,
    },
}

/// How long answers may take and how large they may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time for a gateway.
    pub gateway: Duration,
    /// Longest time for any other provider.
    pub provider: Duration,
    /// Largest answer in bytes.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { gateway: Duration::from_secs(2), provider: Duration::from_secs(5), bytes: 32 << 20 }
    }
}

/// Everybody who can be asked. Releases share it: a round of the gateways answers all of them.
pub struct Providers {
    gateways: Scraper,
    http: reqwest::Client,
    cluster: Option<Client>,
    limits: Limits,
}

/// An HTTP client as this module wants it: it follows no redirect, for the address is the user's
/// choice and the place that it leads to is not, and it uses no proxy, for gateways are reached by
/// the addresses of their pods.
///
/// # Errors
/// When the TLS library does not work.
pub fn http_client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(Duration::from_secs(2))
        .pool_idle_timeout(Duration::from_secs(60))
        .user_agent(concat!("perch/", env!("CARGO_PKG_VERSION")))
        .build()
}

impl Providers {
    /// Asks these gateways, by a client such as [`http_client`] makes.
    #[must_use]
    pub fn new(gateways: GatewayAddresses, http: reqwest::Client) -> Self {
        Self::with_limits(gateways, http, Limits::default())
    }

    /// Like [`Providers::new`], with other limits.
    #[must_use]
    pub fn with_limits(gateways: GatewayAddresses, http: reqwest::Client, limits: Limits) -> Self {
        Self { gateways: Scraper::new(gateways, http.clone(), limits), http, cluster: None, limits }
    }

    /// Reads the reports of vulnerability scanners in this cluster too.
    #[must_use]
    pub fn with_cluster(self, client: Client) -> Self {
        Self { cluster: Some(client), ..self }
    }

    /// Finds out everything that is asked. It never fails: what cannot be found out says so.
    pub async fn measure(&self, question: &Question<'_>) -> Measured {
        let criteria = stage(question).map_or(&[][..], |stage| &stage.criteria);
        let others = join_all(criteria.iter().map(|criterion| self.read_elsewhere(question, criterion)));
        let (round, others) = tokio::join!(self.gateways.round(), others);
        let readings = criteria.iter().zip(others).map(|(criterion, other)| {
            let reading = other.unwrap_or_else(|| round.read(question, criterion));
            (criterion.metric.clone(), reading)
        });
        Measured {
            readings: readings.collect(),
            gateways: round.epochs(question),
            in_flight: round.in_flight(question),
        }
    }

    /// What a provider beside the gateways reads; none when it is for the gateways to say.
    async fn read_elsewhere(&self, question: &Question<'_>, criterion: &CriterionPlan) -> Option<Reading> {
        let metric = own_metric(question, criterion);
        let work = async {
            match (metric.map(|m| m.provider), metric) {
                (Some(Provider::Prometheus), Some(metric)) => {
                    Some(prometheus::read(&self.http, &self.limits, metric, question).await)
                }
                (Some(Provider::Web), Some(metric)) => {
                    Some(web::read(&self.http, &self.limits, metric, question).await)
                }
                (Some(Provider::Scan), _) => Some(scan::read(self.cluster.as_ref(), question).await),
                (None, _) if criterion.signal == Signal::Vulnerabilities => {
                    Some(scan::read(self.cluster.as_ref(), question).await)
                }
                _ => None,
            }
        };
        // Each provider keeps its own limit; this is for the whole of it.
        let patience = self.limits.provider + Duration::from_secs(1);
        tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
            Some(Reading::Unknown(format!("the provider did not answer within {} s", patience.as_secs())))
        })
    }
}

/// The metric of the spec that measures a criterion. One with the name of Perch's own metric takes
/// its place: so people who count failures themselves can use their own count as `errorRate`.
fn own_metric<'a>(question: &Question<'a>, criterion: &CriterionPlan) -> Option<&'a Metric> {
    let metrics = question.release.spec.metrics.iter();
    metrics.filter(|_| criterion.signal != Signal::SchemaErrors).find(|m| m.name == criterion.metric)
}

/// The stage under way, found in a plan that may have been edited just now.
fn stage<'a>(question: &Question<'a>) -> Option<&'a StagePlan> {
    let here = question.release.status.as_ref()?.stage.as_ref()?;
    let stages = &question.plan.stages;
    let index = usize::try_from(here.index).unwrap_or(0);
    let by_index = stages.get(index).filter(|s| s.name == here.name);
    by_index.or_else(|| stages.iter().find(|s| s.name == here.name)).or_else(|| stages.get(index).or(stages.last()))
}

#[cfg(test)]
mod tests;
