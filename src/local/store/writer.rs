//! The one thread that writes.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use bytes::Bytes;
use redb::Database;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::{COUNTERS, Change, ChangeType, Key, OBJECTS, Objects, REVISION, Shared, State, Stored};
use crate::local::status::ApiError;

/// Writes that share one sync at most.
const BATCH: usize = 256;
/// Bytes of one object, as etcd's `--max-request-bytes`.
const OBJECT_LIMIT: usize = 1536 * 1024;

type Job = Box<dyn FnOnce(&mut Transaction<'_>) -> Outcome + Send>;

/// What a job does when its batch is on disk, or is not.
struct Outcome {
    keep: bool,
    answer: Box<dyn FnOnce(Result<(), ApiError>) + Send>,
}

#[derive(Clone)]
pub(super) struct Handle {
    jobs: mpsc::UnboundedSender<Job>,
}

/// The objects as the transaction sees them, and what it changes.
pub struct Transaction<'a> {
    objects: &'a Objects,
    /// Changes of earlier transactions in this batch, and of this one on top.
    overlay: &'a mut BTreeMap<Key, Option<Arc<Stored>>>,
    changes: Vec<Change>,
    undo: Vec<(Key, Option<Option<Arc<Stored>>>)>,
    revision: u64,
}

impl Transaction<'_> {
    /// An object as of now.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        match self.overlay.get(key) {
            Some(changed) => changed.clone(),
            None => self.objects.get(key).cloned(),
        }
    }

    /// Every object for which `select` holds, in the order of their keys.
    pub fn select(&self, mut select: impl FnMut(&Key) -> bool) -> Vec<Arc<Stored>> {
        let mut found: BTreeMap<&Key, &Arc<Stored>> =
            self.objects.iter().filter(|(key, _)| !self.overlay.contains_key(*key) && select(key)).collect();
        found.extend(
            self.overlay
                .iter()
                .filter_map(|(key, object)| Some((key, object.as_ref()?)))
                .filter(|(key, _)| select(key)),
        );
        found.into_values().cloned().collect()
    }

    /// Writes an object, sets its `metadata.resourceVersion`, and returns it as written.
    ///
    /// # Panics
    /// When `object` is no JSON object with a `metadata` object; callers have checked that.
    pub fn put(&mut self, key: Key, mut object: Value) -> Arc<Stored> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = Value::String(self.revision.to_string());
        let json = Bytes::from(serde_json::to_vec(&object).expect("a JSON value serialises"));
        let stored = Arc::new(Stored { key: key.clone(), revision: self.revision, json });
        let previous = self.get(&key);
        let type_ = if previous.is_some() { ChangeType::Modified } else { ChangeType::Added };
        self.changes.push(Change { revision: self.revision, type_, object: Arc::clone(&stored), previous });
        self.set(key, Some(Arc::clone(&stored)));
        stored
    }

    /// Deletes an object and returns its last state, with the revision of the deletion.
    pub fn delete(&mut self, key: &Key) -> Option<Arc<Stored>> {
        let previous = self.get(key)?;
        self.revision += 1;
        let mut object = previous.value();
        object["metadata"]["resourceVersion"] = Value::String(self.revision.to_string());
        let json = Bytes::from(serde_json::to_vec(&object).expect("a JSON value serialises"));
        let last = Arc::new(Stored { key: key.clone(), revision: self.revision, json });
        self.changes.push(Change {
            revision: self.revision,
            type_: ChangeType::Deleted,
            object: Arc::clone(&last),
            previous: Some(previous),
        });
        self.set(key.clone(), None);
        Some(last)
    }

    /// Refuses objects that a cluster's store would not take.
    fn check_sizes(&self) -> Result<(), ApiError> {
        let written = self.changes.iter().filter(|change| change.type_ != ChangeType::Deleted);
        match written.map(|change| change.object.json.len()).max() {
            Some(size) if size > OBJECT_LIMIT => Err(ApiError::too_large(OBJECT_LIMIT)),
            _ => Ok(()),
        }
    }

    fn set(&mut self, key: Key, object: Option<Arc<Stored>>) {
        let before = self.overlay.insert(key.clone(), object);
        self.undo.push((key, before));
    }

    /// Takes all writes back.
    fn revert(&mut self) {
        for (key, before) in self.undo.drain(..).rev() {
            match before {
                Some(before) => self.overlay.insert(key, before),
                None => self.overlay.remove(&key),
            };
        }
        self.changes.clear();
    }
}

impl Handle {
    pub(super) async fn run<T, F>(&self, work: F, dry_run: bool) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Transaction<'_>) -> Result<T, ApiError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |transaction| {
            let result = work(transaction).and_then(|done| transaction.check_sizes().map(|()| done));
            Outcome {
                keep: result.is_ok() && !dry_run,
                answer: Box::new(move |written| {
                    // The client may be gone; the write stands all the same.
                    let _ = answer.send(written.and(result));
                }),
            }
        });
        let closed = || ApiError::store("the store is closed: perch is shutting down, try again when it is back");
        self.jobs.send(job).map_err(|_| closed())?;
        answered.await.map_err(|_| {
            ApiError::store("the request ran into a fault of perch and changed nothing; please report it with the log")
        })?
    }
}

/// Starts the thread. It ends when the last handle is gone.
pub(super) fn start(database: Database, shared: Arc<Shared>) -> io::Result<Handle> {
    let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
    thread::Builder::new().name("perch-store".into()).spawn(move || {
        let mut batch = Vec::new();
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            run_batch(&database, &shared, batch.drain(..));
        }
    })?;
    Ok(Handle { jobs })
}

fn run_batch(database: &Database, shared: &Shared, jobs: impl Iterator<Item = Job>) {
    let mut overlay = BTreeMap::new();
    let mut changes = Vec::new();
    let mut answers = Vec::new();
    let revision = {
        // Only this thread writes the state, so what is read here stays true until the commit.
        let state = shared.state.read().expect("no reader or writer of the state panics");
        let mut revision = state.revision;
        for job in jobs {
            let mut transaction = Transaction {
                objects: &state.objects,
                overlay: &mut overlay,
                changes: Vec::new(),
                undo: Vec::new(),
                revision,
            };
            // A request that trips over a fault must not take the writes of all others along.
            let outcome = catch_unwind(AssertUnwindSafe(|| job(&mut transaction)));
            if outcome.as_ref().is_ok_and(|o| o.keep) {
                revision = transaction.revision;
                changes.append(&mut transaction.changes);
            } else {
                transaction.revert();
            }
            // After a panic the sender is gone, and the client is told so.
            answers.extend(outcome.ok().map(|o| o.answer));
        }
        revision
    };
    let written = if changes.is_empty() { Ok(()) } else { commit(database, &overlay, revision) };
    let written = written.map_err(|error| {
        tracing::error!(%error, "the store did not take a write");
        ApiError::store(format!("the store did not take the write: {error}; check the disk of the data directory"))
    });
    if written.is_ok() && !changes.is_empty() {
        publish(
            &mut shared.state.write().expect("no reader or writer of the state panics"),
            overlay,
            changes,
            revision,
        );
        shared.revision.send_replace(revision);
    }
    for answer in answers {
        answer(written.clone());
    }
}

fn commit(database: &Database, overlay: &BTreeMap<Key, Option<Arc<Stored>>>, revision: u64) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut objects = write.open_table(OBJECTS)?;
        for (key, object) in overlay {
            match object {
                Some(object) => objects.insert(key.path().as_str(), object.json.as_ref())?,
                None => objects.remove(key.path().as_str())?,
            };
        }
        write.open_table(COUNTERS)?.insert(REVISION, revision)?;
    }
    write.commit()?;
    Ok(())
}

fn publish(state: &mut State, overlay: BTreeMap<Key, Option<Arc<Stored>>>, changes: Vec<Change>, revision: u64) {
    for (key, object) in overlay {
        match object {
            Some(object) => state.objects.insert(key, object),
            None => state.objects.remove(&key),
        };
    }
    for change in changes {
        state.history.push(change);
    }
    state.revision = revision;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Key, Store};

    #[tokio::test]
    async fn a_write_that_panics_changes_nothing_and_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.redb")).unwrap();
        let key = |name: &str| Key { resource: "r".into(), namespace: String::new(), name: name.into() };
        let broken = store.write(move |transaction| {
            transaction.put(key("a"), json!({"metadata": {}}));
            let text = json!("text");
            Ok(text.as_object().expect("a fault, for this test").len())
        });
        assert!(broken.await.unwrap_err().message.contains("changed nothing"));
        assert!(store.get(&key("a")).is_none());
        store.write(move |transaction| Ok(transaction.put(key("b"), json!({"metadata": {}})).revision)).await.unwrap();
        assert_eq!(store.get(&key("b")).unwrap().revision, 2);
    }
}
