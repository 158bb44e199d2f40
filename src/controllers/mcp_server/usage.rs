//! How much servers are used, from the gateways into `status.usage`, seldom.
//!
//! Gateways keep nothing beyond their life, so they are asked each minute; what they counted goes into
//! the status at most once an hour for each server, and once more at the end. What is asked and what
//! is written is decided by [`crate::lifecycle::usage`]; without use, nothing is written.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::reflector::Store,
};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{MANAGER, State, key_of};
use crate::{
    api::mcp_server::{McpServer, UsageStatus},
    lifecycle::{self, usage},
    metrics::UsageReader,
    names::ServerKey,
};

/// How long the writes at the end may take.
const FLUSH: Duration = Duration::from_secs(5);
/// Writes at the same time.
const WRITES: usize = 4;

/// How use is counted.
#[derive(Clone)]
pub struct UsageCounting {
    /// Who asks the gateways.
    pub reader: UsageReader,
    /// Time between two rounds.
    pub every: Duration,
}

/// What is known beyond what was written.
#[derive(Default)]
struct Ledger {
    /// Figures that wait for their hour. A gateway may be gone by then, so they are kept.
    pending: HashMap<ServerKey, (Arc<McpServer>, UsageStatus)>,
    written: HashMap<ServerKey, Instant>,
}

impl Ledger {
    /// Adds a round, and gives what is to be written now.
    async fn round(&mut self, reader: &UsageReader, store: &Store<McpServer>) -> Vec<(Arc<McpServer>, UsageStatus)> {
        let round = reader.read().await;
        let now = Timestamp::now();
        let servers = store.state();
        let known: HashMap<ServerKey, Arc<McpServer>> = servers.into_iter().map(|s| (key_of(&s), s)).collect();
        self.pending.retain(|key, (server, _)| known.get(key).is_some_and(|now| now.uid() == server.uid()));
        self.written.retain(|key, _| known.contains_key(key));
        let mut due = Vec::new();
        for (key, server) in known {
            // The status says since when it is counted, from the first write on.
            let Some(before) = server.status.as_ref().and_then(|status| status.usage.clone()) else { continue };
            if server.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let held = self.pending.remove(&key).map(|(_, usage)| usage);
            let counted = round.servers.get(&key).map(Vec::as_slice).unwrap_or_default();
            let after = usage::merge(held.as_ref().unwrap_or(&before), counted, round.all, now);
            let waited = self.written.get(&key).map(|at| i64::try_from(at.elapsed().as_secs()).unwrap_or(i64::MAX));
            if usage::is_due(&before, &after, waited) {
                due.push((server, after));
            } else if after != before {
                self.pending.insert(key, (server, after));
            }
        }
        due
    }

    /// Writes figures; those that could not be written wait for the next round.
    async fn write(&mut self, client: &kube::Client, due: Vec<(Arc<McpServer>, UsageStatus)>) {
        let writes = due.into_iter().map(|(server, usage)| async move {
            let written = patch(client, &server, &usage).await;
            (server, usage, written)
        });
        let mut writes = stream::iter(writes).buffer_unordered(WRITES);
        while let Some((server, usage, written)) = writes.next().await {
            let key = key_of(&server);
            match written {
                Ok(()) => {
                    self.written.insert(key, Instant::now());
                }
                // It went away, or another of its name came.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    tracing::warn!(server = %key, %error, "how much the server is used was not written; trying again");
                    self.pending.insert(key, (server, usage));
                }
            }
        }
    }
}

async fn patch(client: &kube::Client, server: &McpServer, usage: &UsageStatus) -> kube::Result<()> {
    let api: Api<McpServer> = Api::namespaced(client.clone(), &server.namespace().unwrap_or_default());
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let patch = json!({"metadata": {"uid": server.uid()}, "status": {"usage": usage}});
    api.patch_status(&server.name_any(), &params, &Patch::Merge(patch)).await.map(drop)
}

/// Counts until `shutdown`, and then writes what waits.
pub async fn follow(state: Arc<State>, store: Store<McpServer>, shutdown: CancellationToken) {
    let Some(UsageCounting { reader, every }) = state.context.usage.clone() else { return };
    let client = &state.context.client;
    let mut ledger = Ledger::default();
    let mut turns = tokio::time::interval(every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one is at once, and nothing was used yet.
    turns.tick().await;
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            () = shutdown.cancelled() => break,
        }
        let due = ledger.round(&reader, &store).await;
        ledger.write(client, due).await;
        state.context.lives.round();
        let now = Timestamp::now();
        for server in store.state() {
            state.context.lives.set(key_of(&server), lifecycle::assess(&server, now));
        }
    }
    // The gateway may end together with this program.
    let last = async {
        let due = ledger.round(&reader, &store).await;
        let told = |server: &McpServer, usage: &UsageStatus| {
            let before = server.status.as_ref().and_then(|status| status.usage.as_ref());
            before.is_some_and(|before| usage::is_due(before, usage, None))
        };
        let waiting =
            ledger.pending.values().filter(|(server, usage)| told(server, usage)).cloned().collect::<Vec<_>>();
        ledger.write(client, due.into_iter().chain(waiting).collect()).await;
    };
    if tokio::time::timeout(FLUSH, last).await.is_err() {
        tracing::warn!("how much servers are used was not written in time: the last hour may be missing");
    }
}
