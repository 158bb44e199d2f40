//! Where objects are kept: one redb file, and all of it in memory as JSON bytes.
//!
//! * **Durable before answered.** A [`Store::write`] returns after its transaction was synced to
//!   disk, and readers and watchers see it only then.
//! * **One writer.** Writes are closures that run one after the other on one thread, so a
//!   read-check-write needs no lock. Those that queue up meanwhile share one sync.
//! * **No event is lost between list and watch.** Every change has a revision, and a watcher is
//!   only a cursor into the shared history; it either finds every later change there or learns
//!   that it is too old ([`Expired`]).

mod history;
mod writer;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::{Arc, RwLock},
};

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;
use tokio::sync::watch;

pub use history::{Change, ChangeType, Expired};
pub use writer::Transaction;

use super::{LocalError, status::ApiError};
use history::{History, Limit};

/// Objects by [`Key::path`].
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
/// Counters by name.
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
/// The revision of the last write.
const REVISION: &str = "revision";

/// What is kept for watchers.
const HISTORY: Limit = Limit { changes: 10_000, bytes: 32 << 20 };
/// Bytes of the file that are kept in memory, beside the objects themselves: enough for the way to each of them.
const CACHE: usize = 16 << 20;

/// Which object: a kind's resource (`mcpservers.perch.dev`), a namespace (empty for cluster
/// scope) and a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `plural.group`, or the plural alone for the core group.
    pub resource: String,
    /// Namespace, empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// None of the parts may contain a slash; API names never do.
    fn path(&self) -> String {
        format!("{}/{}/{}", self.resource, self.namespace, self.name)
    }

    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.splitn(3, '/');
        Some(Self {
            resource: parts.next()?.to_owned(),
            namespace: parts.next()?.to_owned(),
            name: parts.next()?.to_owned(),
        })
    }
}

/// An object as it is kept.
#[derive(Debug)]
pub struct Stored {
    /// Which object.
    pub key: Key,
    /// Revision of its last write, `metadata.resourceVersion`.
    pub revision: u64,
    /// The object as JSON, resourceVersion included.
    pub json: Bytes,
}

impl Stored {
    /// The same object with another version.
    #[must_use]
    pub fn at(&self, revision: u64) -> Self {
        let mut object = self.value();
        object["metadata"]["resourceVersion"] = Value::String(revision.to_string());
        Self { key: self.key.clone(), revision, json: Bytes::from(object.to_string()) }
    }

    /// The object as a tree.
    ///
    /// # Panics
    /// Never: only serialised JSON gets into the store.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("the store holds JSON")
    }
}

/// Objects at one moment, by key.
pub type Objects = BTreeMap<Key, Arc<Stored>>;

struct Shared {
    state: RwLock<State>,
    revision: watch::Sender<u64>,
}

struct State {
    revision: u64,
    objects: Objects,
    history: History,
}

/// The store. Clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    writer: writer::Handle,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens the file at `path`, or makes it.
    pub fn open(path: &Path) -> Result<Self, LocalError> {
        let failed = |error: String| LocalError::Store { path: path.display().to_string(), message: error.clone() };
        make_private(path).map_err(|error| failed(error.to_string()))?;
        let database = Database::builder().set_cache_size(CACHE).create(path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => LocalError::InUse(path.display().to_string()),
            other => failed(other.to_string()),
        })?;
        let (revision, objects) = load(&database).map_err(|error| failed(error.to_string()))?;
        let shared = Arc::new(Shared {
            state: RwLock::new(State { revision, objects, history: History::new(HISTORY, revision) }),
            revision: watch::Sender::new(revision),
        });
        let writer = writer::start(database, Arc::clone(&shared))
            .map_err(|error| failed(format!("the writer thread does not start: {error}")))?;
        Ok(Self { shared, writer })
    }

    /// Runs `work` as one transaction: all of its writes happen, durably, or none.
    pub async fn write<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Transaction<'_>) -> Result<T, ApiError> + Send + 'static,
    {
        self.writer.run(work, false).await
    }

    /// Runs `work` like [`Store::write`] and forgets its writes.
    pub async fn dry_run<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Transaction<'_>) -> Result<T, ApiError> + Send + 'static,
    {
        self.writer.run(work, true).await
    }

    /// An object, as of the last durable write.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.read(|state| state.objects.get(key).cloned())
    }

    /// The objects of a resource in a namespace (all when `None`) after a key, in order, and the
    /// revision that they show.
    pub fn list(&self, resource: &str, namespace: Option<&str>, after: Option<&Key>) -> (Vec<Arc<Stored>>, u64) {
        let start = after.cloned().unwrap_or_else(|| Key {
            resource: resource.to_owned(),
            namespace: namespace.unwrap_or_default().to_owned(),
            name: String::new(),
        });
        self.read(|state| {
            let objects = state
                .objects
                .range(start..)
                .take_while(|(key, _)| key.resource == resource && namespace.is_none_or(|n| key.namespace == n))
                .filter(|(key, _)| Some(*key) != after)
                .map(|(_, object)| Arc::clone(object))
                .collect();
            (objects, state.revision)
        })
    }

    /// The objects of a resource in a namespace (all when `None`) as they were at a revision.
    pub fn list_at(&self, resource: &str, namespace: Option<&str>, revision: u64) -> Result<Vec<Arc<Stored>>, Expired> {
        self.read(|state| {
            let changes = state.history.after(revision, resource)?;
            let wanted =
                |key: &Key| key.resource == resource && namespace.is_none_or(|namespace| key.namespace == namespace);
            let mut objects: BTreeMap<&Key, &Arc<Stored>> =
                state.objects.iter().filter(|(key, _)| wanted(key)).collect();
            for change in changes.iter().rev().filter(|change| wanted(&change.object.key)) {
                match &change.previous {
                    Some(previous) => objects.insert(&change.object.key, previous),
                    None => objects.remove(&change.object.key),
                };
            }
            Ok(objects.into_values().cloned().collect())
        })
    }

    /// The changes after `revision` that concern `resource`, and the revision up to which they go.
    pub fn changes(&self, resource: &str, revision: u64) -> Result<(Vec<Arc<Change>>, u64), Expired> {
        self.read(|state| Ok((state.history.after(revision, resource)?, state.revision)))
    }

    /// Tells each new revision after it is readable.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.state.read().expect("no reader or writer of the state panics"))
    }
}

/// Secrets are in the file, and the directory may be one that others can look into.
fn make_private(path: &Path) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

fn load(database: &Database) -> Result<(u64, Objects), redb::Error> {
    // Made first, so that a new file can be read like an old one.
    let write = database.begin_write()?;
    write.open_table(OBJECTS)?;
    write.open_table(COUNTERS)?;
    write.commit()?;
    let read = database.begin_read()?;
    let revision = read.open_table(COUNTERS)?.get(REVISION)?.map_or(1, |value| value.value());
    let mut objects = Objects::new();
    for entry in read.open_table(OBJECTS)?.iter()? {
        let (path, json) = entry?;
        let Some(key) = Key::parse(path.value()) else { continue };
        let json = Bytes::copy_from_slice(json.value());
        let revision = revision_of(&json);
        objects.insert(key.clone(), Arc::new(Stored { key, revision, json }));
    }
    Ok((revision, objects))
}

fn revision_of(json: &[u8]) -> u64 {
    #[derive(serde::Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        resource_version: String,
    }
    serde_json::from_slice::<Object>(json).ok().and_then(|o| o.metadata.resource_version.parse().ok()).unwrap_or(0)
}
