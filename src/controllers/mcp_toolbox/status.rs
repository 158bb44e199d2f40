//! Step three: say what is so. The derivation is a pure function of what was found and observed.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Api, Client, ResourceExt, api::PostParams};

use super::{
    MANAGER,
    dereference::{Found, SUSPENDED},
    observe::Offer,
};
use crate::{
    api::mcp_toolbox::{ConditionType, ConflictPolicy, McpToolbox, McpToolboxStatus, MemberStatus},
    controllers::handshake::ProbeError,
};

/// Servers, and names, of which a message speaks.
const MOST_TOLD: usize = 10;

/// Everything that a status is derived from.
pub struct Facts<'a> {
    /// The toolbox with its last status.
    pub toolbox: &'a McpToolbox,
    /// Its servers.
    pub found: &'a Found,
    /// What the gateway offers.
    pub offer: &'a Result<Offer, ProbeError>,
    /// Where clients reach it.
    pub url: String,
    /// Now.
    pub now: Timestamp,
}

/// Something that people should hear of.
#[derive(Debug, PartialEq, Eq)]
pub struct News {
    /// In one word.
    pub reason: &'static str,
    /// In one sentence.
    pub message: String,
    /// Whether it is bad.
    pub is_warning: bool,
}

impl Facts<'_> {
    /// Whether a server says that it answers and the gateway that it does not, or that the gateway
    /// does not answer at all.
    pub fn disagree(&self) -> bool {
        let ready = self.found.members.iter().filter(|m| m.ready);
        self.offer.as_ref().map_or(true, |offer| ready.into_iter().any(|m| left_out(offer, &m.name).is_some()))
    }

    /// The servers, with what the gateway says of those that seem to be fine.
    fn members(&self) -> Vec<MemberStatus> {
        let seen = |member: &MemberStatus| {
            let reason = self.offer.as_ref().ok().and_then(|offer| left_out(offer, &member.name));
            match reason.filter(|_| member.ready) {
                Some(reason) => MemberStatus {
                    ready: false,
                    reason: "NotListed".into(),
                    message: reason.to_owned(),
                    ..member.clone()
                },
                None => member.clone(),
            }
        };
        self.found.members.iter().map(seen).collect()
    }
}

fn left_out<'a>(offer: &'a Offer, server: &str) -> Option<&'a str> {
    offer.unavailable.iter().find(|u| u.server == server).map(|u| &*u.reason)
}

fn condition(status: &McpToolboxStatus, type_: ConditionType) -> Option<&Condition> {
    status.conditions.iter().find(|c| c.type_ == type_.as_str())
}

/// Whether a toolbox is as it should be.
pub fn is_ready(status: &McpToolboxStatus) -> bool {
    condition(status, ConditionType::Ready).is_some_and(|c| c.status == "True")
}

/// The status of a toolbox.
pub fn derive(facts: &Facts<'_>) -> McpToolboxStatus {
    let before = facts.toolbox.status.clone().unwrap_or_default();
    let members = facts.members();
    let wanted = members.iter().filter(|m| m.reason != SUSPENDED).count();
    let ready = members.iter().filter(|m| m.ready).count();
    let (is_ready, reason, message) = judge(facts, &members, wanted, ready);
    let degraded = !is_ready && ready > 0 && facts.offer.is_ok();
    let mut said = vec![
        (ConditionType::Ready, is_ready, reason, message.clone()),
        (ConditionType::Degraded, degraded, reason, message),
    ];
    if let Ok(offer) = facts.offer
        && !offer.conflicts.is_empty()
    {
        said.push((ConditionType::Conflicting, true, "NamesConflict", conflicts(offer, facts.toolbox)));
    }
    let now = Timestamp::from_second(facts.now.as_second()).unwrap_or(facts.now);
    let conditions = said.into_iter().map(|(type_, is_so, reason, message)| {
        let status = if is_so { "True" } else { "False" };
        let same = condition(&before, type_).filter(|c| c.status == status);
        Condition {
            type_: type_.as_str().into(),
            status: status.into(),
            reason: reason.into(),
            message,
            observed_generation: facts.toolbox.metadata.generation,
            last_transition_time: same.map_or(Time(now), |c| c.last_transition_time.clone()),
        }
    });
    McpToolboxStatus {
        observed_generation: facts.toolbox.metadata.generation,
        url: Some(facts.url.clone()),
        servers_ready: Some(format!("{ready}/{wanted}")),
        tools: facts.offer.as_ref().ok().map(|o| i32::try_from(o.tools).unwrap_or(i32::MAX)).or(before.tools),
        servers: members,
        conditions: conditions.collect(),
    }
}

fn judge(facts: &Facts<'_>, members: &[MemberStatus], wanted: usize, ready: usize) -> (bool, &'static str, String) {
    if let Some(why) = &facts.found.bad_selector {
        return (false, "InvalidSelector", format!("spec.selector selects nothing: {why}"));
    }
    if members.is_empty() {
        return (false, "NoServers", "no server has the labels of spec.selector".into());
    }
    if wanted == 0 {
        return (false, "NoServers", "all servers are suspended".into());
    }
    if let Err(error) = facts.offer {
        return (false, "NotAnswering", format!("the gateway does not serve the toolbox: {error}"));
    }
    if ready < wanted {
        let missing: Vec<&MemberStatus> = members.iter().filter(|m| !m.ready && m.reason != SUSPENDED).collect();
        let told = missing.iter().take(MOST_TOLD).map(|m| format!("{} ({}: {})", m.name, m.reason, m.message));
        let told = told.collect::<Vec<_>>().join("; ");
        let more = missing.len().saturating_sub(MOST_TOLD);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        return (false, "ServersNotReady", format!("{ready} of {wanted} servers answer; without {told}{more}"));
    }
    let all = if wanted == 1 { "the server answers".into() } else { format!("all {wanted} servers answer") };
    (true, "Ready", all)
}

fn conflicts(offer: &Offer, toolbox: &McpToolbox) -> String {
    let told = offer.conflicts.iter().take(MOST_TOLD).map(|c| format!("{} ({})", c.name, c.servers.join(", ")));
    let told = told.collect::<Vec<_>>().join("; ");
    let more = offer.conflicts.len().saturating_sub(MOST_TOLD);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let what = match toolbox.spec.conflict_policy {
        ConflictPolicy::First => "only the first server that has them offers these tools",
        ConflictPolicy::Prefix | ConflictPolicy::Reject => "nobody offers these tools",
    };
    format!("{what}: {told}{more}; give a server a prefix, or rename a tool")
}

/// What people should hear of.
pub fn news(before: Option<&McpToolboxStatus>, after: &McpToolboxStatus) -> Vec<News> {
    let mut news = Vec::new();
    for type_ in [ConditionType::Ready, ConditionType::Conflicting] {
        let of = |status: &McpToolboxStatus| {
            condition(status, type_).map(|c| (c.status.clone(), c.reason.clone(), c.message.clone()))
        };
        let (Some(now), was) = (of(after), before.and_then(of)) else { continue };
        if was.as_ref() == Some(&now) {
            continue;
        }
        let reason = match now.1.as_str() {
            "Ready" => "Ready",
            "NoServers" => "NoServers",
            "NotAnswering" => "NotAnswering",
            "InvalidSelector" => "InvalidSelector",
            "NamesConflict" => "NamesConflict",
            _ => "ServersNotReady",
        };
        // That servers start is nothing to worry about.
        let starts = was.is_none() && type_ == ConditionType::Ready && reason != "InvalidSelector";
        news.push(News { reason, message: now.2, is_warning: reason != "Ready" && !starts });
    }
    news
}

/// Writes a status, unless the toolbox changed since it was read.
pub async fn write(client: &Client, toolbox: &McpToolbox, status: McpToolboxStatus) -> kube::Result<()> {
    let api: Api<McpToolbox> = Api::namespaced(client.clone(), &toolbox.namespace().unwrap_or_default());
    let object = McpToolbox { status: Some(status), ..toolbox.clone() };
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    api.replace_status(&toolbox.name_any(), &params, &object).await.map(drop)
}

#[cfg(test)]
mod tests;
