//! Which revision issued the state that a client without a session brings back, and which calls
//! clients gave up. Both are small, bounded, and live in this gateway's memory alone.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    gateway::{
        handler::Call,
        message::{Message, text},
        session::Principal,
    },
    names::{Revision, ServerKey},
};

/// Most of each that is remembered.
const MOST: usize = 16_384;
/// How long state is remembered.
const GOOD: Duration = Duration::from_secs(3600);
/// Most calls that clients gave up and that are remembered.
const MOST_CANCELLED: usize = 1024;

/// Remembers under keys that nobody can aim at.
#[derive(Debug, Default)]
pub struct States {
    first: RandomState,
    second: RandomState,
    count: AtomicUsize,
    known: Mutex<Known>,
}

/// Two hashes, so that no two states share one by chance.
type Key = (u64, u64);

#[derive(Debug, Default)]
struct Known {
    revisions: HashMap<Key, (Revision, Instant)>,
    order: VecDeque<Key>,
    cancelled: VecDeque<Key>,
}

impl States {
    fn key(&self, what: impl Hash + Copy) -> Key {
        (self.first.hash_one(what), self.second.hash_one(what))
    }

    fn state_key(&self, (server, principal): (&ServerKey, &Principal), state: &str) -> Key {
        self.key((server, principal, state))
    }

    /// Remembers who issued a state, given as it stands in JSON, and to whom.
    pub fn issued(&self, owner: (&ServerKey, &Principal), state: &[u8], revision: &Revision) {
        let quoted = [b"\"", state, b"\""].concat();
        let Ok(state) = serde_json::from_slice::<String>(&quoted) else { return };
        let key = self.state_key(owner, &state);
        let now = Instant::now();
        let mut known = self.known.lock().expect("nobody panics while holding the states");
        let known = &mut *known;
        if known.revisions.insert(key, (revision.clone(), now)).is_none() {
            known.order.push_back(key);
        }
        while let Some(oldest) = known.order.front() {
            let is_old = known.revisions.get(oldest).is_none_or(|(_, at)| now - *at > GOOD);
            if known.order.len() <= MOST && !is_old {
                break;
            }
            known.revisions.remove(oldest);
            known.order.pop_front();
        }
        self.count.store(known.revisions.len(), Ordering::Relaxed);
    }

    /// The revision whose state a request brings back, as far as it is known.
    pub fn bond(&self, call: &Call) -> Option<Revision> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let message = Message::parse(&call.body)?;
        let state = ["requestState", "taskId"].into_iter().find_map(|name| message.param_raw(name).and_then(text))?;
        let key = self.state_key((&call.route.server, &call.principal), &state);
        let known = self.known.lock().expect("nobody panics while holding the states");
        known.revisions.get(&key).filter(|(_, at)| at.elapsed() <= GOOD).map(|(revision, _)| revision.clone())
    }

    /// What a call is known by when its client gives it up; only calls in a session can be.
    pub fn call_key(&self, call: &Call, id: &str) -> Option<Key> {
        Some(self.key((call.session_id()?, id)))
    }

    /// A client gives up a call.
    pub fn cancel(&self, call: &Call, message: &Message<'_>) {
        let key = message.param_raw("requestId").and_then(|id| self.call_key(call, id.get()));
        let Some(key) = key else { return };
        let mut known = self.known.lock().expect("nobody panics while holding the states");
        known.cancelled.push_back(key);
        if known.cancelled.len() > MOST_CANCELLED {
            known.cancelled.pop_front();
        }
    }

    /// Whether a call was given up; it is asked once.
    pub fn was_cancelled(&self, key: Key) -> bool {
        let mut known = self.known.lock().expect("nobody panics while holding the states");
        let place = known.cancelled.iter().position(|known| *known == key);
        place.is_some_and(|place| known.cancelled.remove(place).is_some())
    }
}
