//! What the proxy refused: counted, logged, and the last of each server kept for its condition.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::{
    egress::{Refusal, Target},
    names::ServerKey,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    server: String,
    reason: &'static str,
}

/// What was refused so far. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    counts: Family<Labels, Counter>,
    last: Arc<Mutex<HashMap<ServerKey, String>>>,
}

impl Refusals {
    /// Makes the counts visible.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Connections of servers that the egress proxy refused, by reason";
        registry.register("perch_egress_refused", help, self.counts.clone());
    }

    /// What was refused to a server last, such as `example.com:443 (NotListed)`.
    ///
    /// # Panics
    /// Never: nobody panics while holding the refusals.
    #[must_use]
    pub fn last(&self, server: &ServerKey) -> Option<String> {
        self.last.lock().expect("nobody panics while holding the refusals").get(server).cloned()
    }

    /// Forgets a server.
    ///
    /// # Panics
    /// Never: nobody panics while holding the refusals.
    pub fn forget(&self, server: &ServerKey) {
        self.last.lock().expect("nobody panics while holding the refusals").remove(server);
    }

    pub(super) fn note(&self, server: &ServerKey, target: &Target, refusal: &Refusal) {
        let reason = refusal.reason();
        let (host, why) = (target.to_string(), refusal.to_string());
        tracing::warn!(%server, target = ?host, reason, why = ?why, "the egress proxy refused a connection");
        let declared = server.declared();
        let labels = Labels { namespace: declared.namespace, server: declared.name, reason };
        self.counts.get_or_create(&labels).inc();
        let last = format!("{host} ({reason})");
        self.last.lock().expect("nobody panics while holding the refusals").insert(server.clone(), last);
    }
}
