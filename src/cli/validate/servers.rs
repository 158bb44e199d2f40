//! Servers: what their status says, and whether they answer an MCP handshake through the gateway.

use futures::{StreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use std::time::Duration;
use url::Url;

use super::finding::{Finding, Outcome};
use crate::{
    api::mcp_server::{ConditionType, GovernanceLevel, McpServer, NetworkTier, PolicyAction},
    controllers::handshake::{self, GatewayAccess},
    names::ServerKey,
};

/// Handshakes at the same time.
const AT_ONCE: usize = 8;

fn key(server: &McpServer) -> ServerKey {
    ServerKey::new(server.namespace().unwrap_or_default(), server.name_any())
}

fn condition(server: &McpServer, type_: ConditionType) -> Option<&Condition> {
    server.status.as_ref()?.conditions.iter().find(|c| c.type_ == type_.as_str())
}

/// What the status of a server says. Pure.
pub fn judge(server: &McpServer) -> Vec<Finding> {
    let subject = key(server).to_string();
    let seen = server.status.as_ref().and_then(|s| s.observed_generation);
    if server.metadata.deletion_timestamp.is_some() {
        let message = "the server is being removed";
        return vec![Finding::new("Ready", subject, Outcome::Skip, "Terminating", message)];
    }
    let mut findings = Vec::new();
    let of = |check, result, c: &Condition| Finding::new(check, subject.clone(), result, &*c.reason, &*c.message);
    let (ready, suspended) = (condition(server, ConditionType::Ready), condition(server, ConditionType::Suspended));
    findings.push(match ready.or(suspended) {
        _ if seen.is_none() || seen != server.metadata.generation => {
            let message =
                "no controller has looked at the server as it is declared now: see whether the operator works";
            Finding::new("Ready", subject.clone(), Outcome::Fail, "NotObserved", message)
        }
        None => {
            let message = "no controller has said how the server is";
            Finding::new("Ready", subject.clone(), Outcome::Fail, "NotObserved", message)
        }
        Some(c) if c.type_ == ConditionType::Suspended.as_str() => of("Ready", Outcome::Skip, c),
        Some(c) => of("Ready", if c.status == "True" { Outcome::Pass } else { Outcome::Fail }, c),
    });
    findings.push(match condition(server, ConditionType::Compliant) {
        None => {
            let message = "nobody judges servers by policies: start the operator with --policies";
            Finding::new("Compliant", subject.clone(), Outcome::Skip, "NotJudged", message)
        }
        Some(c) if c.status != "True" => {
            let mut finding = of("Compliant", Outcome::Fail, c);
            let violations = server.status.as_ref().map(|s| s.violations.as_slice()).unwrap_or_default();
            if let Some(first) = violations.iter().find(|v| v.action == PolicyAction::Deny) {
                finding.message = format!("{}: {} ({}); {}", first.rule, first.message, first.field, first.remedy);
            }
            finding
        }
        Some(c) if c.reason == "CompliantWithWarnings" => of("Compliant", Outcome::Warn, c),
        Some(c) => of("Compliant", Outcome::Pass, c),
    });
    if let Some(c) = condition(server, ConditionType::NetworkEnforced) {
        findings.push(of("NetworkEnforced", network(server, &c.status), c));
    }
    if let Some(c) = condition(server, ConditionType::CredentialsReady) {
        let result = if c.status == "True" { Outcome::Pass } else { Outcome::Fail };
        findings.push(of("CredentialsReady", result, c));
    }
    findings
}

/// A tier that is not in force is a failure where somebody relies on it: a Secure server, and one of
/// the level High.
fn network(server: &McpServer, status: &str) -> Outcome {
    let level = server.spec.governance.as_ref().map(|g| g.level);
    let relied_on = server.spec.network.tier == NetworkTier::Secure || level == Some(GovernanceLevel::High);
    match status {
        "True" => Outcome::Pass,
        "False" if relied_on => Outcome::Fail,
        _ => Outcome::Warn,
    }
}

/// Whether a handshake is to be tried. Of a server that comes to its end somebody may no longer be
/// served.
fn is_ready(server: &McpServer) -> bool {
    let end = server.status.as_ref().and_then(|status| status.decommission.as_ref());
    end.is_none_or(|end| end.percentage == 100)
        && condition(server, ConditionType::Ready).is_some_and(|c| c.status == "True")
        && server.metadata.deletion_timestamp.is_none()
}

/// An MCP handshake and `tools/list` with each ready server, through the gateway.
pub async fn shake_hands(
    servers: &[McpServer],
    gateway: &Url,
    access: &GatewayAccess,
    patience: Duration,
) -> Vec<Finding> {
    let asked = servers.iter().filter(|s| is_ready(s)).map(|server| async move {
        let subject = key(server);
        let asked = handshake::ask(&handshake::url(gateway, &subject, None), access, patience).await;
        match asked {
            Ok((seen, _)) => {
                let message =
                    format!("{} {}, protocol {}, {} tools", seen.name, seen.version, seen.protocol, seen.tools);
                Finding::new("Handshake", subject.to_string(), Outcome::Pass, "Answered", message)
            }
            Err(error) => {
                let message = format!("the server says that it is ready, but: {error}");
                Finding::new("Handshake", subject.to_string(), Outcome::Fail, "NoAnswer", message)
            }
        }
    });
    stream::iter(asked).buffered(AT_ONCE).collect().await
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn server(spec: &Value, conditions: &Value) -> McpServer {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
            "metadata": {"name": "a", "namespace": "n", "generation": 2},
            "spec": spec,
            "status": {"observedGeneration": 2, "conditions": conditions, "violations": [
                {"rule": "warned", "severity": "Critical", "action": "Warn", "message": "w"},
                {"rule": "run-as-non-root", "severity": "High", "action": "Deny", "message": "it runs as root",
                 "field": "spec.x", "remedy": "do not"},
            ]},
        }))
        .unwrap()
    }

    fn one(type_: &str, status: &str, reason: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    fn found(findings: &[Finding], check: &str) -> (Outcome, String) {
        let finding = findings.iter().find(|f| f.check == check).unwrap();
        (finding.result, finding.reason.clone())
    }

    #[test]
    fn conditions_become_findings() {
        let conditions = json!([
            one("Ready", "True", "Ready"),
            one("Compliant", "True", "CompliantWithWarnings"),
            one("NetworkEnforced", "False", "NotEnforced"),
            one("CredentialsReady", "False", "Expired")
        ]);
        let findings = judge(&server(&json!({"image": "x"}), &conditions));
        assert_eq!(found(&findings, "Ready"), (Outcome::Pass, "Ready".into()));
        assert_eq!(found(&findings, "Compliant"), (Outcome::Warn, "CompliantWithWarnings".into()));
        assert_eq!(found(&findings, "NetworkEnforced"), (Outcome::Warn, "NotEnforced".into()));
        assert_eq!(found(&findings, "CredentialsReady"), (Outcome::Fail, "Expired".into()));
        for relied_on in [json!({"network": {"tier": "Secure"}}), json!({"governance": {"level": "High"}})] {
            let mut spec = relied_on;
            spec["image"] = "x".into();
            let findings = judge(&server(&spec, &conditions));
            assert_eq!(found(&findings, "NetworkEnforced").0, Outcome::Fail);
        }
    }

    #[test]
    fn a_broken_rule_comes_with_its_remedy() {
        let findings = judge(&server(&json!({"image": "x"}), &json!([one("Compliant", "False", "PolicyViolated")])));
        let finding = findings.iter().find(|f| f.check == "Compliant").unwrap();
        assert_eq!(finding.result, Outcome::Fail);
        assert_eq!(finding.message, "run-as-non-root: it runs as root (spec.x); do not");
    }

    #[test]
    fn a_status_of_another_generation_says_nothing() {
        let mut server = server(&json!({"image": "x"}), &json!([one("Ready", "True", "Ready")]));
        server.metadata.generation = Some(3);
        assert_eq!(found(&judge(&server), "Ready"), (Outcome::Fail, "NotObserved".into()));
        server.status = None;
        assert_eq!(found(&judge(&server), "Ready"), (Outcome::Fail, "NotObserved".into()));
    }

    #[test]
    fn what_is_stopped_on_purpose_is_not_asked() {
        let stopped = server(&json!({"image": "x", "suspend": true}), &json!([one("Suspended", "True", "Suspended")]));
        assert_eq!(found(&judge(&stopped), "Ready"), (Outcome::Skip, "Suspended".into()));
        assert!(!is_ready(&stopped));
        let mut going = server(&json!({"image": "x"}), &json!([one("Ready", "True", "Ready")]));
        assert!(is_ready(&going));
        going.status.as_mut().unwrap().decommission = serde_json::from_value(json!({
            "since": "2026-01-01T00:00:00Z", "phase": "Reducing", "percentage": 90,
            "reducesAt": "2026-01-01T00:00:00Z", "stopsAt": "2026-02-01T00:00:00Z", "removesAt": "2026-03-01T00:00:00Z"}))
        .unwrap();
        assert!(!is_ready(&going), "whoever validates may be one of those who are out");
    }
}
