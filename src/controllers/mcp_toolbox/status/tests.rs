use serde_json::json;

use super::*;
use crate::controllers::mcp_toolbox::observe::{Conflict, Unavailable};

fn toolbox(status: Option<McpToolboxStatus>) -> McpToolbox {
    let mut toolbox: McpToolbox = serde_json::from_value(json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpToolbox",
        "metadata": {"name": "dev", "namespace": "default", "generation": 3},
        "spec": {"servers": [{"name": "a"}]},
    }))
    .unwrap();
    toolbox.status = status;
    toolbox
}

fn member(name: &str, ready: bool, reason: &str) -> MemberStatus {
    MemberStatus { name: name.into(), ready, reason: reason.into(), message: format!("{name} says {reason}") }
}

fn found(members: &[MemberStatus]) -> Found {
    Found { members: members.to_vec(), bad_selector: None }
}

fn derived_at(
    now: &str,
    status: Option<McpToolboxStatus>,
    found: &Found,
    offer: &Result<Offer, ProbeError>,
) -> McpToolboxStatus {
    let toolbox = toolbox(status);
    let url = "http://x/default/toolboxes/dev/mcp".to_owned();
    derive(&Facts { toolbox: &toolbox, found, offer, url, now: now.parse().unwrap() })
}

fn derived(found: &Found, offer: &Result<Offer, ProbeError>) -> McpToolboxStatus {
    derived_at("2026-01-01T00:00:00.7Z", None, found, offer)
}

fn told(status: &McpToolboxStatus, type_: ConditionType) -> Option<(&str, &str, &str)> {
    condition(status, type_).map(|c| (&*c.status, &*c.reason, &*c.message))
}

#[expect(clippy::unnecessary_wraps, reason = "it stands for an observation, which may fail")]
fn tools(tools: usize) -> Result<Offer, ProbeError> {
    Ok(Offer { tools, ..Offer::default() })
}

#[test]
fn a_toolbox_is_ready_when_all_its_servers_are() {
    let all = found(&[member("a", true, "Ready"), member("b", true, "Ready"), member("c", false, SUSPENDED)]);
    let status = derived(&all, &tools(7));
    assert_eq!(told(&status, ConditionType::Ready), Some(("True", "Ready", "all 2 servers answer")));
    assert_eq!(told(&status, ConditionType::Degraded).unwrap().0, "False");
    assert_eq!(told(&status, ConditionType::Conflicting), None);
    assert_eq!((status.servers_ready.as_deref(), status.tools), (Some("2/2"), Some(7)));
    assert_eq!(status.observed_generation, Some(3));
    assert!(is_ready(&status));
}

#[test]
fn a_dead_server_is_named() {
    let some = found(&[member("a", true, "Ready"), member("b", false, "Crashing")]);
    let status = derived(&some, &tools(3));
    let expected = "1 of 2 servers answer; without b (Crashing: b says Crashing)";
    assert_eq!(told(&status, ConditionType::Ready), Some(("False", "ServersNotReady", expected)));
    assert_eq!(told(&status, ConditionType::Degraded), Some(("True", "ServersNotReady", expected)));
    assert_eq!(status.servers_ready.as_deref(), Some("1/2"));
    let none = derived(&found(&[member("b", false, "Crashing")]), &tools(0));
    assert_eq!(told(&none, ConditionType::Degraded).unwrap().0, "False", "nothing is served at all");
}

#[test]
fn what_the_gateway_sees_counts() {
    let all = found(&[member("a", true, "Ready"), member("b", true, "Ready")]);
    let without = Unavailable { server: "b".into(), reason: "it did not list its tools within 5s".into() };
    let offer = Ok(Offer { tools: 1, unavailable: vec![without], conflicts: vec![] });
    let status = derived(&all, &offer);
    assert_eq!((status.servers_ready.as_deref(), &*status.servers[1].reason), (Some("1/2"), "NotListed"));
    assert!(told(&status, ConditionType::Degraded).unwrap().2.contains("did not list its tools"));
    let toolbox = toolbox(None);
    let disagree = |offer: &Result<Offer, ProbeError>| {
        Facts { toolbox: &toolbox, found: &all, offer, url: String::new(), now: Timestamp::UNIX_EPOCH }.disagree()
    };
    let silent = Err(ProbeError::Handshake("connection refused".into()));
    assert!(disagree(&offer) && disagree(&silent) && !disagree(&tools(1)));
    let before = McpToolboxStatus { tools: Some(9), ..McpToolboxStatus::default() };
    let status = derived_at("2026-01-01T00:00:00Z", Some(before), &all, &silent);
    let (is_so, reason, message) = told(&status, ConditionType::Ready).unwrap();
    assert_eq!((is_so, reason), ("False", "NotAnswering"));
    assert!(message.contains("connection refused") && status.tools == Some(9));
}

#[test]
fn a_toolbox_without_servers_says_why() {
    assert_eq!(told(&derived(&found(&[]), &tools(0)), ConditionType::Ready).unwrap().1, "NoServers");
    let stopped = derived(&found(&[member("a", false, SUSPENDED)]), &tools(0));
    assert_eq!(told(&stopped, ConditionType::Ready).unwrap().2, "all servers are suspended");
    let bad = Found { members: vec![], bad_selector: Some("no operator Like".into()) };
    assert_eq!(told(&derived(&bad, &tools(0)), ConditionType::Ready).unwrap().1, "InvalidSelector");
}

#[test]
fn names_that_meet_are_told() {
    let conflicts = vec![Conflict { name: "search".into(), servers: vec!["a".into(), "b".into()] }];
    let offer = Ok(Offer { tools: 1, unavailable: vec![], conflicts });
    let status = derived(&found(&[member("a", true, "Ready")]), &offer);
    let (is_so, reason, message) = told(&status, ConditionType::Conflicting).unwrap();
    assert_eq!((is_so, reason), ("True", "NamesConflict"));
    assert!(message.contains("search (a, b)"), "{message}");
    assert!(is_ready(&status), "what is not in conflict is served");
}

#[test]
fn nothing_changes_while_nothing_happens() {
    let all = found(&[member("a", true, "Ready")]);
    let first = derived(&all, &tools(1));
    let again = derived_at("2026-02-02T00:00:00Z", Some(first.clone()), &all, &tools(1));
    assert_eq!(again, first, "and so nothing is written");
    let bad = derived_at("2026-02-02T00:00:00Z", Some(first.clone()), &found(&[member("a", false, "X")]), &tools(0));
    let at = |status: &McpToolboxStatus| condition(status, ConditionType::Ready).unwrap().last_transition_time.0;
    assert!(at(&bad) > at(&first));
}

#[test]
fn events_tell_the_story() {
    let starting = derived(&found(&[member("a", false, "Starting")]), &tools(0));
    let good = derived(&found(&[member("a", true, "Ready")]), &tools(1));
    let story = |before: Option<&McpToolboxStatus>, after: &McpToolboxStatus| {
        news(before, after).into_iter().map(|n| (n.reason, n.is_warning)).collect::<Vec<_>>()
    };
    let unseen = McpToolboxStatus { observed_generation: Some(-1), ..McpToolboxStatus::default() };
    assert_eq!(story(Some(&unseen), &starting), [("ServersNotReady", false)], "a start is no failure");
    assert_eq!(story(Some(&starting), &good), [("Ready", false)]);
    assert_eq!(story(Some(&good), &starting), [("ServersNotReady", true)]);
    assert_eq!(story(Some(&good), &good), []);
}
