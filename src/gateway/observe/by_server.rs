//! Something for each server, read without a lock.

use std::{collections::HashMap, sync::Arc};

use arc_swap::{ArcSwap, Guard};

use crate::names::ServerKey;

/// All of it, as it is at a moment.
type All<T> = HashMap<ServerKey, Arc<T>>;

/// Something for each server. A change copies the map, so it is for what changes seldom.
#[derive(Debug)]
pub struct ByServer<T>(ArcSwap<All<T>>);

impl<T> Default for ByServer<T> {
    fn default() -> Self {
        Self(ArcSwap::default())
    }
}

impl<T> ByServer<T> {
    /// What there is for a server.
    pub fn get(&self, server: &ServerKey) -> Option<Arc<T>> {
        self.0.load().get(server).cloned()
    }

    /// What there is for all.
    pub fn all(&self) -> Guard<Arc<All<T>>> {
        self.0.load()
    }

    /// What there is for a server, made when nothing is.
    pub fn get_or_add(&self, server: &ServerKey, make: impl FnOnce() -> T) -> Arc<T> {
        if let Some(known) = self.get(server) {
            return known;
        }
        let made = Arc::new(make());
        let before = self.change(|all| {
            all.entry(server.clone()).or_insert_with(|| Arc::clone(&made));
        });
        // Somebody else may have been faster.
        before.get(server).map_or(made, Arc::clone)
    }

    /// Puts something in the place of what there is for a server.
    pub fn set(&self, server: &ServerKey, new: Arc<T>) {
        self.change(|all| {
            all.insert(server.clone(), Arc::clone(&new));
        });
    }

    /// Forgets a server.
    pub fn remove(&self, server: &ServerKey) {
        self.change(|all| {
            all.remove(server);
        });
    }

    /// Forgets servers that are no more.
    pub fn retain(&self, is_there: impl Fn(&ServerKey) -> bool) {
        if !self.0.load().keys().all(&is_there) {
            self.change(|all| all.retain(|server, _| is_there(server)));
        }
    }

    /// Changes a copy, again if somebody else was faster; gives what was there before.
    fn change(&self, change: impl Fn(&mut All<T>)) -> Arc<All<T>> {
        self.0.rcu(|all| {
            let mut all = HashMap::clone(all);
            change(&mut all);
            all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_adds_first_is_who_all_get() {
        let all = ByServer::<usize>::default();
        let key = ServerKey::new("n", "a");
        let found: Vec<usize> = std::thread::scope(|scope| {
            let adders: Vec<_> = (0..8)
                .map(|i| {
                    scope.spawn({
                        let (all, key) = (&all, &key);
                        move || *all.get_or_add(key, || i)
                    })
                })
                .collect();
            adders.into_iter().map(|adder| adder.join().unwrap()).collect()
        });
        assert!(found.iter().all(|one| *one == found[0]), "{found:?}");
        all.set(&key, Arc::new(100));
        assert_eq!(*all.get_or_add(&key, || 200), 100);
        all.retain(|_| false);
        assert!(all.get(&key).is_none());
    }
}
