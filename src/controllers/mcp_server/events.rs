//! What events say: the story of a server, a sentence for each step.

use kube::runtime::events::{Event, EventType};

use super::{State, compliance, decommission, status};
use crate::api::mcp_server::{ConditionType, McpServer, McpServerStatus, Phase};

/// An event whenever the story goes on: the reason of readiness changed, how the credentials are, or
/// whether the server is as the policies ask. That a new server starts goes without saying.
pub async fn tell(server: &McpServer, status: &McpServerStatus, state: &State) {
    if let Some((bad, reason, note)) = compliance::news(server.status.as_ref(), status) {
        publish(server, bad, &reason, &note, state).await;
    }
    if let Some((bad, reason, note)) = decommission::news(server.status.as_ref(), status) {
        publish(server, bad, &reason, &note, state).await;
    }
    let before = server.status.as_ref().and_then(McpServerStatus::headline);
    if let Some(now) = status.headline()
        && before.is_none_or(|b| b.reason != now.reason || b.status != now.status)
    {
        let bad = status::is_failure(&now.reason);
        if bad || before.is_some() || status.phase != Some(Phase::Starting) {
            publish(server, bad, &now.reason, &now.message, state).await;
        }
    }
    let of = |status: &McpServerStatus| {
        status.conditions.iter().find(|c| c.type_ == ConditionType::CredentialsReady.as_str()).cloned()
    };
    let before = server.status.as_ref().and_then(of);
    if let Some(now) = of(status).filter(|now| now.reason != "Fetching")
        && before.is_none_or(|b| b.reason != now.reason || b.status != now.status)
    {
        publish(server, now.status != "True", &format!("Credentials{}", now.reason), &now.message, state).await;
    }
}

/// Records an event.
pub async fn publish(server: &McpServer, bad: bool, reason: &str, note: &str, state: &State) {
    let event = Event {
        type_: if bad { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note.chars().take(1000).collect()),
        action: "Reconcile".into(),
        secondary: None,
    };
    let reference = kube::Resource::object_ref(server, &());
    if let Err(error) = state.recorder.publish(&event, &reference).await {
        tracing::warn!(%error, "an event was not recorded");
    }
}
