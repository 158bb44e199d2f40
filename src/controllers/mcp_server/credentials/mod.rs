//! Credentials that Perch fetches for servers: kept in a Secret, and fetched again before they end.
//!
//! # Guarantees
//! * A value is fetched beside the reconciles: an OAuth server that hangs holds up nobody.
//! * What was fetched stands in a Secret that belongs to the server, so the next life of Perch, or
//!   another operator, goes on with it. The Secret is written only when a value changed.
//! * While a value cannot be renewed, the server keeps the one that it has, also when that has
//!   ended; the condition `CredentialsReady` says so. Only a server of which nothing runs yet waits.
//! * A value is in no log line, event, condition or label.

mod report;
mod secret;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use futures::future::join_all;
use jiff::Timestamp;
use kube::Client;
use secrecy::SecretSlice;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::mcp_server::{Credential, McpServer},
    credentials::{ObtainError, Obtained, schedule},
    error::Category,
    names::ServerKey,
};
pub use report::Report;
use secret::Owner;

/// Fetches at the same time, over all servers.
const CONCURRENCY: usize = 32;

/// What is known of one credential.
#[derive(Clone, Debug)]
struct Entry {
    /// Digest of where the value comes from.
    source: String,
    /// Secrets that are read to fetch it.
    reads: Vec<String>,
    value: Option<SecretSlice<u8>>,
    fetched: Timestamp,
    expires: Option<Timestamp>,
    failure: Option<Failure>,
    /// Fetches that failed in a row.
    failures: u32,
    /// When it is fetched next; never when none.
    next: Option<Timestamp>,
}

/// Why the last fetch failed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    reason: &'static str,
    message: String,
}

impl From<&ObtainError> for Failure {
    fn from(error: &ObtainError) -> Self {
        Self { reason: error.category(), message: error.to_string() }
    }
}

impl Entry {
    fn new(credential: &Credential, now: Timestamp) -> Self {
        Self {
            source: credential.source_digest(),
            reads: credential.secrets_to_fetch().map(|s| s.name.clone()).collect(),
            value: None,
            fetched: now,
            expires: None,
            failure: None,
            failures: 0,
            next: Some(now),
        }
    }

    fn has_ended(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }

    fn succeed(&mut self, credential: &Credential, obtained: Obtained, now: Timestamp) {
        let interval = credential.vault.as_ref().map(|v| v.refresh_interval.to_std());
        self.next = schedule::after_success(now, obtained.expires, interval);
        self.value = Some(obtained.value);
        (self.fetched, self.expires) = (now, obtained.expires);
        (self.failure, self.failures) = (None, 0);
    }

    fn fail(&mut self, error: &ObtainError, now: Timestamp) {
        self.failures = self.failures.saturating_add(1);
        self.failure = Some(error.into());
        self.next = Some(schedule::after_failure(now, self.failures, rand::random()));
    }
}

/// What is known of the credentials under one key of a server.
#[derive(Debug, Default)]
struct Kept {
    /// Whether the Secret was read.
    loaded: bool,
    /// Whether a fetch is under way.
    busy: bool,
    /// When to write the Secret because it holds something that nobody wants.
    stale: Option<Timestamp>,
    entries: BTreeMap<String, Entry>,
}

impl Kept {
    /// Keeps to what is wanted.
    fn want(&mut self, wanted: &[&Credential], now: Timestamp) {
        let known = self.entries.len();
        self.entries.retain(|name, _| wanted.iter().any(|c| c.name == *name));
        if self.entries.len() < known {
            self.stale = Some(now);
        }
        for credential in wanted {
            let entry = self.entries.entry(credential.name.clone()).or_insert_with(|| Entry::new(credential, now));
            if entry.source != credential.source_digest() {
                *entry = Entry::new(credential, now);
            }
        }
    }

    /// Takes what is due, unless something is under way. An empty list means that the Secret alone is
    /// to be written.
    fn begin(&mut self, wanted: &[&Credential], now: Timestamp) -> Option<Vec<Credential>> {
        let is_due = |c: &&&Credential| self.entries[&c.name].next.is_some_and(|next| next <= now);
        let due: Vec<Credential> = wanted.iter().filter(is_due).map(|c| (*c).clone()).collect();
        let cleans = self.stale.is_some_and(|at| at <= now);
        if self.busy || !self.loaded || (due.is_empty() && !cleans) {
            return None;
        }
        self.busy = true;
        // Set again meanwhile, it means that the fetch came too early.
        let under_way = self.entries.iter_mut().filter(|(name, _)| due.iter().any(|c| c.name == **name));
        under_way.for_each(|(_, entry)| entry.next = None);
        Some(due)
    }

    /// When to look again. The end of what is under way tells itself.
    fn again(&self, now: Timestamp) -> Option<Timestamp> {
        let ends = self.entries.values().filter_map(|e| e.expires.filter(|end| *end > now));
        let tries = self.entries.values().filter_map(|e| e.next).chain(self.stale).filter(|_| !self.busy);
        ends.chain(tries).min()
    }
}

/// The credentials of a server as they are now.
#[derive(Debug, Default)]
pub struct Found {
    /// The values that there are.
    pub values: BTreeMap<String, SecretSlice<u8>>,
    /// Why the server cannot start yet.
    pub missing: Option<String>,
    /// The condition of the server; none without credentials.
    pub report: Option<Report>,
    /// When to look again.
    pub again: Option<Timestamp>,
}

/// The credentials of all servers.
pub struct Credentials {
    shared: Arc<Shared>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

struct Shared {
    client: Client,
    kept: Mutex<HashMap<ServerKey, Kept>>,
    changed: mpsc::UnboundedSender<ServerKey>,
    turns: Semaphore,
}

impl Shared {
    fn with<T>(&self, key: &ServerKey, change: impl FnOnce(&mut Kept) -> T) -> Option<T> {
        self.kept.lock().expect("nobody panics while holding the credentials").get_mut(key).map(change)
    }
}

impl Credentials {
    /// No credentials yet, and where to learn whose have changed.
    pub fn new(client: Client) -> (Self, mpsc::UnboundedReceiver<ServerKey>) {
        let (changed, news) = mpsc::unbounded_channel();
        let shared = Shared { client, kept: Mutex::default(), changed, turns: Semaphore::new(CONCURRENCY) };
        (Self { shared: Arc::new(shared), tracker: TaskTracker::new(), cancel: CancellationToken::new() }, news)
    }

    /// What there is of the credentials that a server declares, to be run under a key. What is due
    /// is fetched behind it.
    pub async fn of(&self, server: &McpServer, key: &ServerKey) -> Found {
        let declared = &server.spec.credentials;
        let wanted: Vec<&Credential> = declared.iter().filter(|c| c.is_fetched()).collect();
        let now = Timestamp::now();
        if wanted.is_empty() && !report::was_told(server) {
            return Found { report: report::of(declared, &BTreeMap::new(), now), ..Found::default() };
        }
        let owner = Owner::of(server, key);
        if self.shared.with(key, |kept| kept.loaded) != Some(true) {
            self.load(&owner, &wanted, now).await;
        }
        let (entries, due, again) = {
            let mut all = self.shared.kept.lock().expect("nobody panics while holding the credentials");
            let kept = all.entry(key.clone()).or_default();
            kept.want(&wanted, now);
            let due = kept.begin(&wanted, now);
            (kept.entries.clone(), due, kept.again(now))
        };
        if let Some(due) = due {
            let (shared, cancel) = (Arc::clone(&self.shared), self.cancel.clone());
            self.tracker.spawn(async move {
                tokio::select! {
                    () = refresh(&shared, owner, due) => {}
                    () = cancel.cancelled() => {}
                }
            });
        }
        Found { again, ..found(server, declared, &entries, now) }
    }

    /// Reads what an earlier life has kept.
    async fn load(&self, owner: &Owner, wanted: &[&Credential], now: Timestamp) {
        let waits = self.shared.with(&owner.key, |kept| kept.entries.values().filter_map(|e| e.next).min());
        if waits.flatten().is_some_and(|next| next > now) {
            // It did not work a moment ago.
            return;
        }
        let read = secret::read(&self.shared.client, owner, wanted).await;
        let mut all = self.shared.kept.lock().expect("nobody panics while holding the credentials");
        let kept = all.entry(owner.key.clone()).or_default();
        match read {
            Ok((entries, stale)) => {
                (kept.loaded, kept.stale) = (true, stale.then_some(now));
                kept.entries = entries;
            }
            Err(error) => {
                for credential in wanted {
                    let new = || Entry::new(credential, now);
                    kept.entries.entry(credential.name.clone()).or_insert_with(new).fail(&error, now);
                }
            }
        }
    }

    /// Fetches again what is fetched by means of a Secret that changed.
    pub fn poke(&self, server: &ServerKey, secret: &str) {
        for key in [server.clone(), server.candidate()] {
            self.shared.with(&key, |kept| {
                let through = kept.entries.values_mut().filter(|e| e.reads.iter().any(|name| name == secret));
                through.for_each(|entry| entry.next = Some(Timestamp::UNIX_EPOCH));
            });
        }
    }

    /// Forgets what is kept under a key; what is stored stays.
    pub fn forget(&self, key: &ServerKey) {
        self.shared.kept.lock().expect("nobody panics while holding the credentials").remove(key);
    }

    /// Forgets what is kept and stored under the key of a candidate that is gone. The Secret itself
    /// goes away with its server.
    pub async fn release(&self, server: &McpServer, key: &ServerKey) {
        let known = self.shared.with(key, |_| ()).is_some();
        self.forget(key);
        if (known || server.spec.credentials.iter().any(Credential::is_fetched))
            && let Err(error) = secret::clear(&self.shared.client, &Owner::of(server, key)).await
        {
            tracing::warn!(server = %key, %error, "the credentials of a candidate that is gone are still stored");
        }
    }

    /// Ends all fetches and waits for it.
    pub async fn close(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// What a server can be told and given.
fn found(server: &McpServer, declared: &[Credential], entries: &BTreeMap<String, Entry>, now: Timestamp) -> Found {
    // What runs keeps a value that has ended; what is yet to start gets only good ones.
    let runs = server.status.as_ref().is_some_and(|s| s.replicas > 0);
    let usable = |entry: &Entry| entry.value.is_some() && (runs || !entry.has_ended(now));
    let absent = entries.iter().find(|(_, entry)| !usable(entry));
    let missing = absent.map(|(name, entry)| match &entry.failure {
        Some(failure) => format!("the server waits for its credential {name:?}: {}", failure.message),
        None => format!("the server waits for its credential {name:?}, which is being fetched"),
    });
    let values = entries.iter().filter_map(|(name, entry)| Some((name.clone(), entry.value.clone()?)));
    Found { values: values.collect(), missing, report: report::of(declared, entries, now), again: None }
}

/// Fetches what is due and stores it. Nothing is known of what was fetched before it is stored.
async fn refresh(shared: &Shared, owner: Owner, due: Vec<Credential>) {
    let fetched = {
        let _turn = shared.turns.acquire().await;
        join_all(due.iter().map(|c| secret::obtain(&shared.client, &owner.key.namespace, c))).await
    };
    let now = Timestamp::now();
    let Some((mut entries, stale)) = shared.with(&owner.key, |kept| (kept.entries.clone(), kept.stale)) else {
        return;
    };
    let (mut succeeded, mut changed) = (Vec::new(), stale.is_some());
    for (credential, result) in due.iter().zip(fetched) {
        // The spec may mean another value by now.
        let Some(entry) = entries.get_mut(&credential.name).filter(|e| e.source == credential.source_digest()) else {
            continue;
        };
        match result {
            Ok(obtained) => {
                changed |= !secret::same(entry.value.as_ref(), &obtained.value) || entry.expires != obtained.expires;
                entry.succeed(credential, obtained, now);
                succeeded.push(credential);
            }
            Err(error) => {
                // The first failure is news, the ones that follow it are not.
                if entry.failures == 0 {
                    tracing::warn!(server = %owner.key, credential = credential.name, %error, "a credential cannot be fetched");
                }
                entry.fail(&error, now);
            }
        }
    }
    let stored = if changed { secret::write(&shared.client, &owner, &entries).await } else { Ok(()) };
    shared.with(&owner.key, |kept| {
        kept.busy = false;
        // What was found stale meanwhile is written at the next look.
        if kept.stale == stale {
            kept.stale = stale.filter(|_| stored.is_err()).map(|_| schedule::after_failure(now, 4, 0.0));
        }
        for credential in &due {
            let source = credential.source_digest();
            let Some(entry) = kept.entries.get_mut(&credential.name).filter(|e| e.source == source) else { continue };
            match (&stored, entries.remove(&credential.name)) {
                (Err(error), _) if succeeded.iter().any(|c| c.name == credential.name) => entry.fail(error, now),
                (_, Some(new)) => {
                    let again = entry.next;
                    *entry = new;
                    entry.next = again.or(entry.next);
                }
                _ => {}
            }
        }
    });
    // Nobody to tell: the controller is ending.
    let _ = shared.changed.send(owner.key);
}

#[cfg(test)]
mod tests;
