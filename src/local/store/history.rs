//! The last changes, for watchers.

use std::{collections::VecDeque, sync::Arc};

use super::Stored;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeType {
    /// It was created.
    Added,
    /// It was written again.
    Modified,
    /// It is gone; the change carries its last state.
    Deleted,
}

/// A change of one object.
#[derive(Debug)]
pub struct Change {
    /// Revision of the change.
    pub revision: u64,
    /// What happened.
    pub type_: ChangeType,
    /// The object after the change (for a deletion: its last state, with the revision of the
    /// deletion).
    pub object: Arc<Stored>,
    /// The object before the change.
    pub previous: Option<Arc<Stored>>,
}

/// The changes after a revision are no longer all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct Expired {
    /// The revision that was asked for.
    pub asked: u64,
    /// The oldest revision that may be asked for.
    pub oldest: u64,
}

/// How much is kept, whichever is less.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Changes.
    pub(super) changes: usize,
    /// Bytes of their objects as JSON; the states before the changes may take as much again. The newest
    /// change is kept whatever its size.
    pub(super) bytes: usize,
}

pub(super) struct History {
    limit: Limit,
    bytes: usize,
    /// Changes after this revision are all in `changes`.
    complete_after: u64,
    changes: VecDeque<Arc<Change>>,
}

impl History {
    pub(super) fn new(limit: Limit, revision: u64) -> Self {
        Self { limit, bytes: 0, complete_after: revision, changes: VecDeque::new() }
    }

    pub(super) fn push(&mut self, change: Change) {
        self.bytes += change.object.json.len();
        while (self.changes.len() >= self.limit.changes || self.bytes > self.limit.bytes)
            && let Some(dropped) = self.changes.pop_front()
        {
            self.bytes -= dropped.object.json.len();
            self.complete_after = dropped.revision;
        }
        self.changes.push_back(Arc::new(change));
    }

    pub(super) fn after(&self, revision: u64, resource: &str) -> Result<Vec<Arc<Change>>, Expired> {
        if revision < self.complete_after {
            return Err(Expired { asked: revision, oldest: self.complete_after });
        }
        let start = self.changes.partition_point(|change| change.revision <= revision);
        Ok(self.changes.range(start..).filter(|c| c.object.key.resource == resource).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{super::Key, *};

    fn change(revision: u64, resource: &str) -> Change {
        let key = Key { resource: resource.into(), namespace: "n".into(), name: "x".into() };
        let object = Arc::new(Stored { key, revision, json: Bytes::from_static(b"{}") });
        Change { revision, type_: ChangeType::Modified, object, previous: None }
    }

    #[test]
    fn a_cursor_sees_every_later_change_or_learns_that_it_is_too_old() {
        let mut history = History::new(Limit { changes: 3, bytes: 100 }, 10);
        for revision in 11..=13 {
            history.push(change(revision, if revision == 12 { "b" } else { "a" }));
        }
        let revisions =
            |r: Result<Vec<Arc<Change>>, Expired>| r.map(|c| c.iter().map(|c| c.revision).collect::<Vec<_>>());
        assert_eq!(revisions(history.after(10, "a")), Ok(vec![11, 13]));
        assert_eq!(revisions(history.after(13, "a")), Ok(vec![]));
        history.push(change(14, "a"));
        assert_eq!(revisions(history.after(10, "a")), Err(Expired { asked: 10, oldest: 11 }));
        assert_eq!(revisions(history.after(11, "a")), Ok(vec![13, 14]));
    }

    #[test]
    fn large_objects_leave_room_for_fewer_changes() {
        // Each is two bytes long.
        let mut history = History::new(Limit { changes: 100, bytes: 5 }, 10);
        for revision in 11..=13 {
            history.push(change(revision, "a"));
        }
        assert_eq!(history.after(10, "a").unwrap_err(), Expired { asked: 10, oldest: 11 });
        assert_eq!(history.after(11, "a").unwrap().len(), 2);
        let mut small = History::new(Limit { changes: 100, bytes: 1 }, 10);
        small.push(change(11, "a"));
        small.push(change(12, "a"));
        assert_eq!(small.after(11, "a").unwrap().len(), 1, "the newest is always there");
    }

    #[test]
    fn after_a_restart_only_the_present_may_be_watched() {
        let history = History::new(Limit { changes: 3, bytes: 100 }, 10);
        assert_eq!(history.after(9, "a").unwrap_err(), Expired { asked: 9, oldest: 10 });
        assert!(history.after(10, "a").unwrap().is_empty());
    }
}
