//! Which release speaks for which server, kept in step with the control plane.
//!
//! Several `CanaryRelease`s may name one server; only the oldest counts. What is kept of each is
//! what another controller needs to know, so thousands of them cost little.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Mutex,
    time::Duration,
};

use futures::TryStreamExt;
use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::ListParams,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::{mpsc, watch};

use crate::{
    api::canary_release::{CanaryRelease, Phase},
    canary::{Wanted, wanted},
    names::{Revision, ServerKey},
};

/// What a release wants for its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Name of the `CanaryRelease`.
    pub release: String,
    /// When it was made.
    created: Option<Timestamp>,
    /// Where it is.
    pub phase: Phase,
    /// The revision that everybody falls back to, once that is known.
    pub stable: Option<Revision>,
    /// The revision that is being released, while it must run.
    pub candidate: Option<Revision>,
    /// Longest time that calls in flight get to finish.
    pub drain: Duration,
}

impl Claim {
    /// What a release wants.
    pub fn of(release: &CanaryRelease) -> Self {
        let server = &release.spec.target_ref.name;
        let status = release.status.as_ref();
        // A status that speaks of another server is from before the target was changed.
        let mine = status.filter(|s| s.stable_revision.as_ref().is_some_and(|r| belongs_to(r, server)));
        let Wanted { stable, candidate } = mine.map(wanted).unwrap_or_default();
        Self {
            release: release.name_any(),
            created: release.metadata.creation_timestamp.as_ref().map(|time| time.0),
            phase: mine.map(|s| s.phase).unwrap_or_default(),
            candidate: candidate.filter(|c| Some(c) != stable.as_ref()).map(Revision),
            stable: stable.map(Revision),
            drain: release.spec.drain_timeout.to_std(),
        }
    }

    /// The older one comes first; of two that were made in the same second the one whose name does.
    fn age(&self) -> (bool, Option<Timestamp>, &str) {
        (self.created.is_none(), self.created, &self.release)
    }
}

/// Whether a revision is one of a server: see [`crate::api::mcp_server::revision_of`].
pub fn belongs_to(revision: &str, server: &str) -> bool {
    let hash = revision.strip_prefix(server).and_then(|rest| rest.strip_prefix('-'));
    hash.is_some_and(|hash| !hash.is_empty() && !hash.contains(['-', '.']))
}

/// The server that a release is for.
pub fn target_of(release: &CanaryRelease) -> ServerKey {
    ServerKey::new(release.namespace().unwrap_or_default(), release.spec.target_ref.name.clone())
}

/// Of several claims the one that counts.
fn first(claims: impl IntoIterator<Item = Claim>) -> Option<Claim> {
    claims.into_iter().min_by(|a, b| a.age().cmp(&b.age()))
}

/// Asks the control plane itself which release counts for a server now.
pub async fn ask(client: &kube::Client, server: &ServerKey) -> kube::Result<Option<Claim>> {
    let api: Api<CanaryRelease> = Api::namespaced(client.clone(), &server.namespace);
    let all = api.list(&ListParams::default()).await?;
    Ok(first(all.items.iter().filter(|r| r.spec.target_ref.name == server.name).map(Claim::of)))
}

#[derive(Default)]
struct Kept {
    /// Claims by server, and in it by release.
    claims: HashMap<ServerKey, BTreeMap<String, Claim>>,
    /// The server of each release, by namespace and name of the release.
    targets: HashMap<(String, String), ServerKey>,
}

/// All claims.
pub struct Claims {
    kept: Mutex<Kept>,
    ready: watch::Sender<bool>,
}

impl Default for Claims {
    fn default() -> Self {
        Self { kept: Mutex::default(), ready: watch::Sender::new(false) }
    }
}

impl Claims {
    /// Waits until every release that there is was seen.
    pub async fn ready(&self) {
        // The sender is our own.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// The claim that counts for a server, as it was seen last.
    pub fn of(&self, server: &ServerKey) -> Option<Claim> {
        first(self.all(server))
    }

    /// All claims on a server, as they were seen last.
    pub fn all(&self, server: &ServerKey) -> Vec<Claim> {
        let kept = self.kept.lock().expect("nobody panics while holding the claims");
        kept.claims.get(server).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// The older release that counts for the same server, if there is one.
    pub fn elder(&self, release: &CanaryRelease) -> Option<String> {
        let own = Claim::of(release);
        let first = self.of(&target_of(release))?;
        (first.release != own.release && first.age() < own.age()).then_some(first.release)
    }

    /// Follows the releases for ever, and tells of each server for which something has changed.
    pub async fn follow(&self, releases: Api<CanaryRelease>, changed: mpsc::UnboundedSender<ServerKey>) {
        let events = watcher(releases, watcher::Config::default()).default_backoff();
        futures::pin_mut!(events);
        let mut listed = HashSet::new();
        loop {
            let news = match events.try_next().await {
                Ok(Some(watcher::Event::Init)) => {
                    listed.clear();
                    Vec::new()
                }
                Ok(Some(watcher::Event::InitApply(release))) => {
                    listed.insert((release.namespace().unwrap_or_default(), release.name_any()));
                    self.keep(&release)
                }
                Ok(Some(watcher::Event::InitDone)) => {
                    let gone = self.retain(&std::mem::take(&mut listed));
                    self.ready.send_replace(true);
                    gone
                }
                Ok(Some(watcher::Event::Apply(release))) => self.keep(&release),
                Ok(Some(watcher::Event::Delete(release))) => {
                    self.forget(&(release.namespace().unwrap_or_default(), release.name_any()))
                }
                Ok(None) => return,
                Err(error) => {
                    // The stream backs off by itself; until then the last claims stand.
                    tracing::warn!(%error, "the releases cannot be watched");
                    Vec::new()
                }
            };
            for server in news {
                // Nobody to tell: the controller is ending.
                let _ = changed.send(server);
            }
        }
    }

    fn keep(&self, release: &CanaryRelease) -> Vec<ServerKey> {
        let (server, claim) = (target_of(release), Claim::of(release));
        let key = (server.namespace.clone(), claim.release.clone());
        let mut kept = self.kept.lock().expect("nobody panics while holding the claims");
        let mut changed = Vec::new();
        let before = kept.targets.insert(key, server.clone());
        if let Some(before) = before.filter(|before| *before != server) {
            kept.remove(&before, &claim.release);
            changed.push(before);
        }
        let claims = kept.claims.entry(server.clone()).or_default();
        let name = claim.release.clone();
        if claims.get(&name) != Some(&claim) {
            claims.insert(name, claim);
            changed.push(server);
        }
        changed
    }

    fn forget(&self, key: &(String, String)) -> Vec<ServerKey> {
        let mut kept = self.kept.lock().expect("nobody panics while holding the claims");
        let server = kept.targets.remove(key);
        if let Some(server) = &server {
            kept.remove(server, &key.1);
        }
        server.into_iter().collect()
    }

    /// Forgets every release but those that a list has just shown.
    fn retain(&self, listed: &HashSet<(String, String)>) -> Vec<ServerKey> {
        let kept = self.kept.lock().expect("nobody panics while holding the claims");
        let gone: Vec<_> = kept.targets.keys().filter(|key| !listed.contains(key)).cloned().collect();
        drop(kept);
        gone.iter().flat_map(|key| self.forget(key)).collect()
    }
}

impl Kept {
    fn remove(&mut self, server: &ServerKey, release: &str) {
        if let Some(claims) = self.claims.get_mut(server) {
            claims.remove(release);
            if claims.is_empty() {
                self.claims.remove(server);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn release(name: &str, created: &str, target: &str, status: &serde_json::Value) -> CanaryRelease {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease",
            "metadata": {"name": name, "namespace": "n", "creationTimestamp": created},
            "spec": {"targetRef": {"name": target}, "stages": [{"name": "s", "percentage": 10, "duration": "1h"}]},
            "status": status,
        }))
        .unwrap()
    }

    fn running() -> serde_json::Value {
        json!({"phase": "Progressing", "stableRevision": "a-0123456789", "candidateRevision": "a-abcdef0123"})
    }

    #[test]
    fn the_oldest_release_counts() {
        let claims = Claims::default();
        let key = ServerKey::new("n", "a");
        claims.keep(&release("b", "2026-01-01T00:00:01Z", "a", &json!({})));
        claims.keep(&release("z", "2026-01-01T00:00:00Z", "a", &running()));
        claims.keep(&release("y", "2026-01-01T00:00:01Z", "a", &running()));
        assert_eq!(claims.of(&key).unwrap().release, "z");
        assert_eq!(claims.elder(&release("y", "2026-01-01T00:00:01Z", "a", &json!({}))).as_deref(), Some("z"));
        assert_eq!(claims.elder(&release("z", "2026-01-01T00:00:00Z", "a", &json!({}))), None);
        claims.forget(&("n".into(), "z".into()));
        assert_eq!(claims.of(&key).unwrap().release, "b", "made in the same second: by name");
        assert_eq!(claims.of(&ServerKey::new("m", "a")), None, "other namespaces do not count");
    }

    #[test]
    fn only_what_matters_is_news() {
        let claims = Claims::default();
        let key = ServerKey::new("n", "a");
        assert_eq!(claims.keep(&release("r", "2026-01-01T00:00:00Z", "a", &running())), std::slice::from_ref(&key));
        let mut ticked = running();
        ticked["phaseSeconds"] = json!(7);
        assert!(claims.keep(&release("r", "2026-01-01T00:00:00Z", "a", &ticked)).is_empty());
        ticked["phase"] = json!("RolledBack");
        assert_eq!(claims.keep(&release("r", "2026-01-01T00:00:00Z", "a", &ticked)), std::slice::from_ref(&key));
        let moved = release("r", "2026-01-01T00:00:00Z", "other", &json!({}));
        assert_eq!(claims.keep(&moved), [key.clone(), ServerKey::new("n", "other")]);
        assert_eq!(claims.of(&key), None);
        assert_eq!(claims.retain(&HashSet::new()), [ServerKey::new("n", "other")]);
        assert!(claims.kept.lock().unwrap().claims.is_empty());
    }

    #[test]
    fn a_status_of_another_server_wants_nothing() {
        let claim = |target: &str| Claim::of(&release("r", "2026-01-01T00:00:00Z", target, &running()));
        assert_eq!(claim("a").candidate, Some(Revision("a-abcdef0123".into())));
        assert_eq!((claim("b").stable, claim("b").candidate), (None, None));
        assert!(belongs_to("a-b-0123456789", "a-b") && !belongs_to("a-b-0123456789", "a"));
        assert!(!belongs_to("a-", "a") && !belongs_to("a", "a"));
    }
}
