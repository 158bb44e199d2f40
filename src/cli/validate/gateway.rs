//! Gateways: whether they are reached, know what is declared, run the routing of each release, and
//! lose no traces.

use std::{path::Path, time::Duration};

use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use url::Url;

use super::finding::{Finding, Outcome};
use crate::{
    api::{
        canary_release::CanaryRelease,
        gateway_report::{GatewayReport, REPORT_PATH},
    },
    canary::wanted,
    cli::client::explain,
    controllers::handshake,
};

/// Port of the admin endpoint of a pod that does not name one.
const ADMIN_PORT: i32 = 9090;
/// A gateway hears of a new routing within a moment: one that seems to be behind is asked again.
const MOMENT: Duration = Duration::from_secs(2);

/// Where the admin endpoint of a gateway is.
pub enum Admin {
    /// At a URL.
    At(Url),
    /// At a port of a pod, through the API server.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The port.
        port: i32,
    },
}

impl Admin {
    /// That of a gateway's pod.
    pub fn of(pod: &Pod) -> Self {
        let ports = pod.spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.ports.iter().flatten());
        let named = ports.filter(|p| p.name.as_deref() == Some("admin")).map(|p| p.container_port).next();
        Self::Pod {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            port: named.unwrap_or(ADMIN_PORT),
        }
    }

    fn subject(&self) -> String {
        match self {
            Self::At(url) => url.authority().to_owned(),
            Self::Pod { namespace, name, .. } => format!("{namespace}/{name}"),
        }
    }

    async fn get(&self, path: &str, client: &Client, http: &reqwest::Client) -> Result<String, String> {
        match self {
            Self::At(url) => {
                let mut url = url.clone();
                url.set_path(path);
                let answer = http.get(url).send().await.and_then(reqwest::Response::error_for_status);
                let answer = answer.map_err(|error| error.without_url().to_string())?;
                answer.text().await.map_err(|error| error.without_url().to_string())
            }
            Self::Pod { namespace, name, port } => {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy{path}");
                let request = Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
                client.request_text(request).await.map_err(|error| explain(&error))
            }
        }
    }
}

/// What a gateway says at its public address to somebody without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// It answers.
    Open,
    /// It asks who it is.
    Asks,
    /// It does not answer.
    Shut,
}

/// Whether the gateway answers at its public address; any HTTP answer will do. `path` is that of a
/// server, where there is one.
pub async fn reach(base: &Url, path: &str, authority: Option<&Path>, patience: Duration) -> (Finding, Door) {
    let asked = async {
        let authority = match authority {
            Some(file) => Some(tokio::fs::read(file).await.map_err(|error| format!("{}: {error}", file.display()))?),
            None => None,
        };
        let http = handshake::http_client(base.as_str(), authority.as_deref()).map_err(|error| error.to_string())?;
        let url = format!("{}{path}", base.as_str().trim_end_matches('/'));
        let answer = http.get(url).header("Accept", "text/event-stream").send().await;
        answer.map(|answer| answer.status().as_u16()).map_err(|error| innermost(&error))
    };
    let late = || Err(format!("no answer within {} s", patience.as_secs_f64()));
    let subject = base.authority();
    match tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| late()) {
        Ok(401) => {
            let message = format!("{base} answers, and asks who it is");
            (Finding::new("Gateway", subject, Outcome::Pass, "Reachable", message), Door::Asks)
        }
        Ok(_) => (Finding::new("Gateway", subject, Outcome::Pass, "Reachable", format!("{base} answers")), Door::Open),
        Err(why) => {
            let message = format!("{base} does not answer: {why}; say with --gateway-url how it is reached from here");
            (Finding::new("Gateway", subject, Outcome::Fail, "NotReachable", message), Door::Shut)
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// What a gateway says about itself.
pub async fn check(admin: &Admin, client: &Client, releases: &[CanaryRelease], patience: Duration) -> Vec<Finding> {
    let subject = admin.subject();
    let http = match crate::metrics::http_client() {
        Ok(http) => http,
        Err(error) => return vec![Finding::new("Gateway", subject, Outcome::Warn, "NotAsked", error.to_string())],
    };
    let late = || Err(format!("no answer within {} s", patience.as_secs_f64()));
    let get = async |path: &str| {
        tokio::time::timeout(patience, admin.get(path, client, &http)).await.unwrap_or_else(|_| late())
    };
    let report = match get(REPORT_PATH).await.and_then(|text| read(&text)) {
        Ok(report) => report,
        Err(why) => {
            let message = format!("its admin endpoint cannot be asked: {why}");
            return vec![Finding::new("Gateway", subject, Outcome::Warn, "NotAsked", message)];
        }
    };
    let mut findings = vec![if report.synced {
        Finding::new("Gateway", &*subject, Outcome::Pass, "Synced", "it knows all servers and releases")
    } else {
        let message = "it does not know the servers and releases yet: see whether it reaches the API server";
        Finding::new("Gateway", &*subject, Outcome::Fail, "NotSynced", message)
    }];
    let mut behind = behind(&report, releases);
    if !behind.is_empty() && report.synced {
        tokio::time::sleep(MOMENT).await;
        if let Ok(report) = get(REPORT_PATH).await.and_then(|text| read(&text)) {
            behind.retain(|release| self::behind(&report, releases).contains(release));
        }
    }
    findings.push(if behind.is_empty() {
        let message = format!("it runs the routing of all {} releases", releases.len());
        Finding::new("Epoch", &*subject, Outcome::Pass, "Current", message)
    } else {
        let message =
            format!("it does not run the wished routing of {}: users may get what nobody decided", behind.join(", "));
        Finding::new("Epoch", &*subject, Outcome::Fail, "Behind", message)
    });
    if let Ok(metrics) = get("/metrics").await {
        findings.push(traces(&subject, &metrics));
    }
    findings
}

fn read(text: &str) -> Result<GatewayReport, String> {
    serde_json::from_str(text).map_err(|_| "it answered something that is no report".to_owned())
}

/// The releases whose wished routing a gateway does not run. Pure.
fn behind(report: &GatewayReport, releases: &[CanaryRelease]) -> Vec<String> {
    let lags = |release: &&CanaryRelease| {
        let Some(status) = &release.status else { return false };
        let namespace = release.namespace().unwrap_or_default();
        let name = &release.spec.target_ref.name;
        match report.servers.iter().find(|s| s.namespace == namespace && s.name == *name) {
            Some(s) => Some(&s.release_id) != status.release_id.as_ref() || s.epoch != status.routing.desired_epoch,
            // Without a candidate there is nothing to divide.
            None => wanted(status).candidate.is_some(),
        }
    };
    let name = |r: &CanaryRelease| format!("{}/{}", r.namespace().unwrap_or_default(), r.name_any());
    releases.iter().filter(lags).map(name).collect()
}

/// Whether traces arrive, by the gateway's metrics. Pure.
fn traces(subject: &str, metrics: &str) -> Finding {
    let lost = metrics.lines().find_map(|line| line.strip_prefix("perch_otlp_spans_lost_total "));
    let finding = |result, reason: &str, message: String| Finding::new("Tracing", subject, result, reason, message);
    match lost.map(|n| n.trim().parse::<f64>().unwrap_or(f64::NAN)) {
        None => finding(Outcome::Skip, "NotConfigured", "it makes no traces: --otlp-endpoint would have it".into()),
        Some(0.0) => finding(Outcome::Pass, "Exported", "no span was lost".into()),
        Some(n) => finding(
            Outcome::Warn,
            "SpansLost",
            format!("{n} spans were lost since it started: see whether the receiver of --otlp-endpoint answers"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn release(status: &Value) -> CanaryRelease {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "r", "namespace": "n"},
            "spec": {"targetRef": {"name": "a"}, "stages": []}, "status": status,
        }))
        .unwrap()
    }

    fn report(servers: &Value) -> GatewayReport {
        serde_json::from_value(
            json!({"gateway": "g", "startedAt": "2026-01-01T00:00:00Z", "synced": true, "servers": servers}),
        )
        .unwrap()
    }

    #[test]
    fn a_gateway_is_behind_until_it_runs_the_wished_epoch_of_the_same_release() {
        let mut status = json!({"phase": "Progressing", "releaseId": "x", "candidateRevision": "a-2",
            "stableRevision": "a-1", "routing": {"desiredEpoch": 7}});
        let server = |id: &str, epoch: i64| {
            report(&json!([{"namespace": "n", "name": "a", "releaseId": id, "epoch": epoch, "revisions": []}]))
        };
        let under_way = release(&status);
        assert!(behind(&server("x", 7), std::slice::from_ref(&under_way)).is_empty());
        assert_eq!(behind(&server("x", 6), std::slice::from_ref(&under_way)), ["n/r"]);
        assert_eq!(behind(&server("w", 7), std::slice::from_ref(&under_way)), ["n/r"]);
        assert_eq!(behind(&report(&json!([])), std::slice::from_ref(&under_way)), ["n/r"]);
        status["phase"] = "Succeeded".into();
        assert!(behind(&report(&json!([])), &[release(&status)]).is_empty());
    }

    #[test]
    fn lost_spans_are_told() {
        assert_eq!(traces("g", "other 1\n").result, Outcome::Skip);
        assert_eq!(traces("g", "perch_otlp_spans_lost_total 0\n").result, Outcome::Pass);
        assert_eq!(traces("g", "perch_otlp_spans_lost_total 3\n").reason, "SpansLost");
    }
}
