//! Whether a server is as the policies ask: the condition `Compliant`, the broken rules in the
//! status, an event when it changes, and the count of all servers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use kube::ResourceExt;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::status::condition;
use crate::{
    admission::Gate,
    api::mcp_server::{ConditionType, McpServer, McpServerStatus, PolicyAction, PolicyViolation},
    names::ServerKey,
    policy::level_name,
};

/// Broken rules that a status tells.
const TOLD: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Compliant {
    compliant: &'static str,
}

/// How many servers are as the policies ask. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Census {
    known: Arc<Mutex<HashMap<ServerKey, bool>>>,
    servers: Family<Compliant, Gauge>,
}

impl Census {
    /// Makes the count visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "perch_servers_compliant",
            "Servers, by whether a policy rule is broken that their level insists on",
            self.servers.clone(),
        );
    }

    /// Counts a server; none when it is gone.
    pub(super) fn count(&self, server: &ServerKey, compliant: Option<bool>) {
        let mut known = self.known.lock().expect("nobody panics while counting");
        let before = match compliant {
            Some(compliant) => known.insert(server.clone(), compliant),
            None => known.remove(server),
        };
        if before == compliant {
            return;
        }
        for (value, word) in [(true, "true"), (false, "false")] {
            let n = known.values().filter(|v| **v == value).count();
            self.servers.get_or_create(&Compliant { compliant: word }).set(i64::try_from(n).unwrap_or(i64::MAX));
        }
    }
}

/// Judges a server and puts what was found into its status. Returns whether it is compliant; none
/// while that is not known, and then what was said before stays.
pub fn judge(gate: &Gate, server: &McpServer, status: &mut McpServerStatus, now: Timestamp) -> Option<bool> {
    let scope = gate.scope_of(&server.namespace().unwrap_or_default());
    let mut object = serde_json::to_value(server).unwrap_or_default();
    // What is reported is not what is judged.
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    let Some(judgement) = gate.judge(&object, scope, now) else {
        if let Some(before) = &server.status {
            status.conditions.extend(of(before).cloned());
            status.violations = before.violations.clone();
        }
        return None;
    };
    let compliant = judgement.is_compliant();
    let level = level_name(scope.level_of(&object));
    let (word, reason, message) = summary(&judgement.violations, level);
    let before = server.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    status.conditions.push(condition(before, server, ConditionType::Compliant, word, reason, &message, now));
    status.violations = judgement.violations;
    status.violations.truncate(TOLD);
    Some(compliant)
}

/// Status, reason and message of the condition.
fn summary(violations: &[PolicyViolation], level: &str) -> (&'static str, &'static str, String) {
    let names = |action: PolicyAction| {
        let mut rules: Vec<&str> = violations.iter().filter(|v| v.action == action).map(|v| v.rule.as_str()).collect();
        rules.dedup();
        rules.join(", ")
    };
    let (denied, warned) = (names(PolicyAction::Deny), names(PolicyAction::Warn));
    if !denied.is_empty() {
        let message = format!("at level {level} it breaks {denied}; status.violations says where, and what to do");
        ("False", "PolicyViolated", message)
    } else if warned.is_empty() {
        ("True", "Compliant", format!("it is as the policies of level {level} ask"))
    } else {
        ("True", "CompliantWithWarnings", format!("at level {level} there are warnings: {warned}"))
    }
}

/// The condition in a status.
fn of(status: &McpServerStatus) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    status.conditions.iter().find(|c| c.type_ == ConditionType::Compliant.as_str())
}

/// What an event should say: whether it is bad, the reason and a note. None where there is no news;
/// that a new server is compliant is none.
pub fn news(before: Option<&McpServerStatus>, after: &McpServerStatus) -> Option<(bool, String, String)> {
    let now = of(after)?;
    let was = before.and_then(of);
    let bad = now.status != "True";
    let news = match was {
        None => bad,
        Some(was) => was.status != now.status || (bad && was.message != now.message),
    };
    news.then(|| (bad, now.reason.clone(), now.message.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::mcp_server::GovernanceLevel,
        policy::{Mode, Scope},
    };

    fn server(spec: &str) -> McpServer {
        let mut server = McpServer::new("a", serde_yaml_ng::from_str(spec).unwrap());
        server.metadata.namespace = Some("default".into());
        server
    }

    fn judged(level: GovernanceLevel, server: &McpServer) -> McpServerStatus {
        let gate = Gate::new(Scope { level, mode: Mode::Deny });
        let mut status = McpServerStatus::default();
        judge(&gate, server, &mut status, Timestamp::UNIX_EPOCH);
        status
    }

    #[test]
    fn the_condition_names_the_rules() {
        let root = server("{image: 'x:1', podTemplate: {spec: {securityContext: {runAsUser: 0}}}}");
        let status = judged(GovernanceLevel::Medium, &root);
        let condition = of(&status).unwrap();
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "PolicyViolated"));
        assert!(condition.message.starts_with("at level Medium it breaks run-as-non-root;"), "{}", condition.message);
        assert_eq!(status.violations[0].rule, "run-as-non-root");
        let low = judged(GovernanceLevel::Low, &root);
        assert_eq!(of(&low).unwrap().reason, "CompliantWithWarnings");
        let high = judged(GovernanceLevel::Low, &server("{image: 'x:1', governance: {level: High}}"));
        assert_eq!(of(&high).unwrap().status, "False", "the server's own level counts where it is stricter");
    }

    #[test]
    fn looking_again_changes_nothing() {
        let mut server = server("{image: 'x:1'}");
        let gate = Gate::new(Scope { level: GovernanceLevel::Medium, mode: Mode::Warn });
        let mut first = McpServerStatus::default();
        judge(&gate, &server, &mut first, Timestamp::UNIX_EPOCH);
        server.status = Some(first.clone());
        let mut second = McpServerStatus::default();
        let later = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(2);
        judge(&gate, &server, &mut second, later);
        assert_eq!(first, second);
        assert_eq!(news(Some(&first), &second), None);
    }

    #[test]
    fn an_event_is_for_news() {
        let good = judged(GovernanceLevel::Low, &server("{image: 'x:1'}"));
        let bad = judged(GovernanceLevel::High, &server("{image: 'x:1'}"));
        assert_eq!(news(None, &good), None);
        assert!(news(None, &bad).unwrap().0);
        assert!(news(Some(&good), &bad).unwrap().0);
        assert!(!news(Some(&bad), &good).unwrap().0);
    }

    #[test]
    fn servers_are_counted_until_they_go() {
        let (census, mut registry) = (Census::default(), Registry::default());
        census.register(&mut registry);
        let key = |n: &str| ServerKey::new("default", n);
        for (name, compliant) in [("a", Some(true)), ("b", Some(true)), ("a", Some(false)), ("b", None)] {
            census.count(&key(name), compliant);
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("perch_servers_compliant{compliant=\"true\"} 0"), "{text}");
        assert!(text.contains("perch_servers_compliant{compliant=\"false\"} 1"), "{text}");
    }
}
