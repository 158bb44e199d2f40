//! What the condition `CredentialsReady` says. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Entry;
use crate::api::mcp_server::{ConditionType, Credential, McpServer};

/// The condition `CredentialsReady`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether all credentials are there and good.
    pub ready: bool,
    /// In one word.
    pub reason: &'static str,
    /// In a sentence for each credential that is not.
    pub message: String,
}

impl Report {
    /// One that speaks of trouble.
    pub fn trouble(reason: &'static str, message: String) -> Self {
        Self { ready: false, reason, message }
    }
}

/// The reason when nothing has to be fetched.
const REFERENCED: &str = "Referenced";

/// Whether the status of a server speaks of credentials that were fetched.
pub fn was_told(server: &McpServer) -> bool {
    let told = ConditionType::CredentialsReady.as_str();
    let conditions = server.status.iter().flat_map(|s| &s.conditions);
    conditions.filter(|c| c.type_ == told).any(|c| c.reason != REFERENCED)
}

/// What is so of the declared credentials; nothing without any.
pub fn of(declared: &[Credential], entries: &BTreeMap<String, Entry>, now: Timestamp) -> Option<Report> {
    if declared.is_empty() {
        return None;
    }
    if !declared.iter().any(Credential::is_fetched) {
        let message = "all credentials are references: an instance does not start without them".to_owned();
        return Some(Report { ready: true, reason: REFERENCED, message });
    }
    let mut troubles: Vec<(&Credential, Trouble)> =
        declared.iter().filter_map(|c| Some((c, trouble(entries.get(&c.name)?, now)?))).collect();
    // The worst gives the reason.
    troubles.sort_by_key(|(_, trouble)| trouble.rank);
    let Some((_, worst)) = troubles.first() else {
        let count = match declared.len() {
            1 => "the credential is".to_owned(),
            n => format!("{n} credentials are"),
        };
        return Some(Report { ready: true, reason: "Ready", message: format!("{count} in place") });
    };
    let reason = worst.reason;
    let each = troubles.iter().map(|(credential, trouble)| format!("{:?}: {}", credential.name, trouble.message));
    Some(Report::trouble(reason, each.collect::<Vec<_>>().join("; ")))
}

struct Trouble {
    rank: u8,
    reason: &'static str,
    message: String,
}

/// What is wrong with a credential, if anything is. The sentence is the same at each try, so that a
/// status is not written for nothing.
fn trouble(entry: &Entry, now: Timestamp) -> Option<Trouble> {
    let why = entry.failure.as_ref().map(|f| f.message.as_str());
    if entry.value.is_none() {
        let Some(failure) = &entry.failure else {
            return Some(Trouble { rank: 2, reason: "Fetching", message: "it is being fetched".into() });
        };
        let message = format!("{}; the server starts as soon as it is there", failure.message);
        return Some(Trouble { rank: 0, reason: failure.reason, message });
    }
    if let Some(end) = entry.expires.filter(|end| *end <= now) {
        let why = why.map_or_else(|| "it is being renewed".to_owned(), |why| format!("it cannot be renewed: {why}"));
        let message = format!("it ended at {}, and {why}; the server runs on with the old value", whole(end));
        return Some(Trouble { rank: 1, reason: "Expired", message });
    }
    let failure = entry.failure.as_ref()?;
    let until = entry.expires.map(|end| format!(", which is good until {}", whole(end))).unwrap_or_default();
    let message = format!("{}; the server has the value from before{until}", failure.message);
    Some(Trouble { rank: 3, reason: failure.reason, message })
}

fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
