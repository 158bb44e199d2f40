//! How much servers are used, from all gateways.

use std::collections::HashMap;

use futures::future::join_all;
use jiff::Timestamp;

use super::{GatewayAddresses, Limits, discovery, fetch, gateway::Address};
use crate::{
    api::gateway_report::{USAGE_PATH, UsageReport},
    lifecycle::usage::Counted,
    names::ServerKey,
};

/// Asks gateways how much servers are used.
#[derive(Clone)]
pub struct UsageReader {
    addresses: GatewayAddresses,
    http: reqwest::Client,
    limits: Limits,
}

/// What gateways answered at about the same moment.
#[derive(Clone, Debug, Default)]
pub struct UsageRound {
    /// What was counted, by server.
    pub servers: HashMap<ServerKey, Vec<Counted>>,
    /// Whether all gateways that there are answered.
    pub all: bool,
}

impl UsageReader {
    /// Asks these gateways, by a client such as [`super::http_client`] makes.
    #[must_use]
    pub fn new(addresses: GatewayAddresses, http: reqwest::Client) -> Self {
        Self { addresses, http, limits: Limits::default() }
    }

    /// Asks all gateways. One that does not answer is told in the log, and is asked again with the
    /// next round: its counters only rise.
    pub async fn read(&self) -> UsageRound {
        let addresses = match &self.addresses {
            GatewayAddresses::Fixed(urls) => Ok(urls.iter().map(Address::fixed).collect()),
            GatewayAddresses::Discovered { client, namespace, service } => {
                let listed = discovery::addresses(client, namespace, service);
                let late = || Err("the API server did not answer in time".to_owned());
                tokio::time::timeout(self.limits.provider, listed).await.unwrap_or_else(|_| late())
            }
        };
        let addresses: Vec<Address> = match addresses {
            Ok(addresses) => addresses,
            Err(error) => {
                tracing::warn!(error, "nobody knows which gateways there are: use of servers is counted later");
                return UsageRound::default();
            }
        };
        let answers = join_all(addresses.iter().map(|address| self.ask(address))).await;
        let mut round = UsageRound { servers: HashMap::new(), all: true };
        let mut lives: Vec<String> = Vec::new();
        for (address, answer) in addresses.iter().zip(answers) {
            match answer {
                Ok(report) => {
                    let source = source(&report.gateway, report.started_at);
                    // A gateway with several addresses is still one.
                    if !lives.contains(&source) {
                        add(&mut round, &source, report);
                        lives.push(source);
                    }
                }
                Err(error) => {
                    tracing::debug!(gateway = address.name, error, "a gateway does not say how much servers are used");
                    round.all = false;
                }
            }
        }
        // No gateway at all is more likely a mistake than the truth.
        round.all &= !lives.is_empty();
        round
    }

    async fn ask(&self, address: &Address) -> Result<UsageReport, String> {
        let mut url = address.url.clone();
        url.set_path(USAGE_PATH);
        let answer = fetch::get(&self.http, url, self.limits.gateway, self.limits.bytes).await?;
        if answer.status != 200 {
            return Err(format!("it answered {}", answer.status));
        }
        serde_json::from_slice(&answer.body).map_err(|_| "it answered something that is no report".to_owned())
    }
}

fn source(gateway: &str, started_at: Timestamp) -> String {
    format!("{gateway}@{started_at}")
}

fn add(round: &mut UsageRound, source: &str, report: UsageReport) {
    for server in report.servers {
        let counted = Counted {
            source: source.to_owned(),
            last_request: Some(server.last_request),
            requests: server.requests,
            days: server.days.iter().map(|day| (day.date, day.requests, day.users)).collect(),
        };
        round.servers.entry(ServerKey::new(server.namespace, server.name)).or_default().push(counted);
    }
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, routing::get};
    use serde_json::{Value, json};
    use url::Url;

    use super::*;

    async fn gateway(answer: Value) -> Url {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let app = Router::new().route(USAGE_PATH, get(move || std::future::ready(Json(answer.clone()))));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        url
    }

    fn report(gateway: &str, requests: i64) -> Value {
        json!({"gateway": gateway, "startedAt": "2026-01-01T00:00:00Z", "servers": [{
            "namespace": "n", "name": "a", "lastRequest": "2026-01-02T00:00:00Z", "requests": requests,
            "days": [{"date": "2026-01-02", "requests": requests, "users": 1}],
        }]})
    }

    async fn read(urls: Vec<Url>) -> UsageRound {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        UsageReader::new(GatewayAddresses::Fixed(urls), super::super::http_client().unwrap()).read().await
    }

    #[tokio::test]
    async fn all_gateways_are_added_and_one_with_two_addresses_once() {
        let (a, b) = (gateway(report("a", 3)).await, gateway(report("b", 4)).await);
        let round = read(vec![a.clone(), b, a]).await;
        let mut counted: Vec<(String, i64)> =
            round.servers[&ServerKey::new("n", "a")].iter().map(|c| (c.source.clone(), c.requests)).collect();
        counted.sort();
        assert_eq!(counted, [("a@2026-01-01T00:00:00Z".into(), 3), ("b@2026-01-01T00:00:00Z".into(), 4)]);
        assert!(round.all);
    }

    #[tokio::test]
    async fn a_gateway_that_is_not_heard_keeps_its_place() {
        let good = gateway(report("a", 3)).await;
        for bad in [gateway(json!({"nonsense": true})).await, Url::parse("http://127.0.0.1:1/").unwrap()] {
            let round = read(vec![good.clone(), bad]).await;
            assert!(!round.all && round.servers.len() == 1);
        }
        assert!(!read(Vec::new()).await.all, "no gateway says nothing");
    }
}
