//! What is in the cluster, as watches tell it.
//!
//! Everything that Perch made carries a label, and one watch a kind follows it. Objects are kept
//! as compact JSON without what the API server adds for itself, so that thousands of servers fit
//! into little memory; pods are kept as [`PodView`]s. Nothing here asks the API server anything
//! but these watches, so a reconcile that finds everything in place costs no request.

use std::{
    collections::{BTreeMap, HashMap},
    sync::RwLock,
};

use serde_json::Value;
use tokio::sync::{broadcast, watch};

use super::{objects::Kind, pods::PodView};
use crate::names::ServerKey;

/// An object as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The server that it is for.
    pub server: ServerKey,
    /// Compact JSON of its metadata that Perch writes, and its spec.
    pub json: Box<[u8]>,
    /// Trouble that the object's own controller tells of, for people.
    pub trouble: Option<String>,
}

/// Names an object within its kind.
pub type ObjectKey = (String, String);

/// Objects and pods of all servers.
#[derive(Debug)]
pub struct Cache {
    objects: RwLock<HashMap<Kind, HashMap<ObjectKey, Seen>>>,
    pods: RwLock<HashMap<ServerKey, BTreeMap<String, PodView>>>,
    changes: broadcast::Sender<ServerKey>,
    /// Number of watches that have not listed everything yet.
    pending: watch::Sender<usize>,
}

impl Cache {
    /// An empty cache that waits for the first lists of so many watches.
    pub fn new(watches: usize, changes: broadcast::Sender<ServerKey>) -> Self {
        Self { objects: RwLock::default(), pods: RwLock::default(), changes, pending: watch::Sender::new(watches) }
    }

    /// One more watch has listed everything.
    pub fn listed(&self) {
        self.pending.send_modify(|n| *n = n.saturating_sub(1));
    }

    /// Whether all watches have listed everything.
    pub fn is_synced(&self) -> bool {
        *self.pending.borrow() == 0
    }

    /// Waits until all watches have listed everything.
    pub async fn synced(&self) {
        let mut pending = self.pending.subscribe();
        // The sender lives as long as the cache.
        let _ = pending.wait_for(|n| *n == 0).await;
    }

    fn tell(&self, server: &ServerKey) {
        // Nobody may be listening yet.
        let _ = self.changes.send(server.clone());
    }

    /// Keeps what was seen of an object.
    pub fn keep(&self, kind: Kind, key: ObjectKey, seen: Seen) {
        let mut objects = self.objects.write().expect("nobody panics while holding the objects");
        let kept = objects.entry(kind).or_default();
        if kept.get(&key) == Some(&seen) {
            return;
        }
        let server = seen.server.clone();
        kept.insert(key, seen);
        drop(objects);
        self.tell(&server);
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, kind: Kind, key: &ObjectKey) {
        let mut objects = self.objects.write().expect("nobody panics while holding the objects");
        let gone = objects.get_mut(&kind).and_then(|kept| kept.remove(key));
        drop(objects);
        if let Some(gone) = gone {
            self.tell(&gone.server);
        }
    }

    /// Forgets every object of a kind but those that a list has just shown.
    pub fn retain(&self, kind: Kind, listed: &std::collections::HashSet<ObjectKey>) {
        let objects = self.objects.read().expect("nobody panics while holding the objects");
        let gone: Vec<ObjectKey> = objects
            .get(&kind)
            .into_iter()
            .flatten()
            .map(|(k, _)| k)
            .filter(|k| !listed.contains(*k))
            .cloned()
            .collect();
        drop(objects);
        for key in gone {
            self.forget(kind, &key);
        }
    }

    /// An object as JSON, and the trouble that it tells of.
    pub fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<(Value, Option<String>)> {
        let objects = self.objects.read().expect("nobody panics while holding the objects");
        let seen = objects.get(&kind)?.get(&(namespace.to_owned(), name.to_owned()))?;
        Some((serde_json::from_slice(&seen.json).unwrap_or_default(), seen.trouble.clone()))
    }

    /// Names of the objects of a kind that are there for a server.
    pub fn names(&self, kind: Kind, server: &ServerKey) -> Vec<String> {
        let objects = self.objects.read().expect("nobody panics while holding the objects");
        let of_kind = objects.get(&kind).into_iter().flatten();
        of_kind.filter(|(_, seen)| seen.server == *server).map(|((_, name), _)| name.clone()).collect()
    }

    /// Keeps what was seen of a pod.
    pub fn keep_pod(&self, pod: PodView) {
        let mut pods = self.pods.write().expect("nobody panics while holding the pods");
        let kept = pods.entry(pod.server.clone()).or_default();
        if kept.get(&pod.name) == Some(&pod) {
            return;
        }
        let server = pod.server.clone();
        kept.insert(pod.name.clone(), pod);
        drop(pods);
        self.tell(&server);
    }

    /// Forgets a pod that is gone.
    pub fn forget_pod(&self, server: &ServerKey, name: &str) {
        let mut pods = self.pods.write().expect("nobody panics while holding the pods");
        let Some(kept) = pods.get_mut(server) else { return };
        let gone = kept.remove(name).is_some();
        if kept.is_empty() {
            pods.remove(server);
        }
        drop(pods);
        if gone {
            self.tell(server);
        }
    }

    /// Forgets every pod but those that a list has just shown.
    pub fn retain_pods(&self, listed: &std::collections::HashSet<ObjectKey>) {
        let pods = self.pods.read().expect("nobody panics while holding the pods");
        let all = pods.iter().flat_map(|(server, pods)| pods.keys().map(move |name| (server.clone(), name.clone())));
        let gone: Vec<_> = all.filter(|(s, n)| !listed.contains(&(s.namespace.clone(), n.clone()))).collect();
        drop(pods);
        for (server, name) in gone {
            self.forget_pod(&server, &name);
        }
    }

    /// Looks at the pods of a server, in the order of their names.
    pub fn pods<T>(&self, server: &ServerKey, look: impl FnMut(&PodView) -> Option<T>) -> Vec<T> {
        let pods = self.pods.read().expect("nobody panics while holding the pods");
        pods.get(server).into_iter().flat_map(BTreeMap::values).filter_map(look).collect()
    }
}
