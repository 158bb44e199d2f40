//! What was found out about credentials, for a short time, within a bound.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Remembers the values of the keys that were used last. Of two generations the younger one is
/// filled; when it is full it becomes the older one, and what nobody asked for meanwhile is gone.
#[derive(Debug)]
pub struct Cache<K, V> {
    most: usize,
    generations: Mutex<[HashMap<K, (Instant, V)>; 2]>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// A cache of at most `most` values.
    pub fn new(most: usize) -> Self {
        Self { most, generations: Mutex::new([HashMap::new(), HashMap::new()]) }
    }

    /// A value that is still good at `now`.
    pub fn get(&self, key: &K, now: Instant) -> Option<V> {
        let mut generations = self.generations.lock().expect("nobody panics while holding the cache");
        let [young, old] = &mut *generations;
        if let Some((until, value)) = young.get(key) {
            return (*until > now).then(|| value.clone());
        }
        let (key, (until, value)) = old.remove_entry(key)?;
        if until <= now {
            return None;
        }
        self.insert(&mut generations, key, (until, value.clone()));
        Some(value)
    }

    /// Keeps a value for a time.
    pub fn put(&self, key: K, value: V, now: Instant, good_for: Duration) {
        let mut generations = self.generations.lock().expect("nobody panics while holding the cache");
        self.insert(&mut generations, key, (now + good_for, value));
    }

    fn insert(&self, generations: &mut [HashMap<K, (Instant, V)>; 2], key: K, value: (Instant, V)) {
        let [young, old] = generations;
        if young.len() >= self.most.div_ceil(2) {
            *old = std::mem::take(young);
        }
        young.insert(key, value);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.generations.lock().unwrap().iter().map(HashMap::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let cache = Cache::new(100);
        let (now, long) = (Instant::now(), Duration::from_secs(60));
        cache.put(0, "used", now, long);
        for key in 1..10_000 {
            cache.put(key, "once", now, long);
            assert_eq!(cache.get(&0, now), Some("used"), "after {key}");
            assert!(cache.len() <= 100);
        }
        assert_eq!(cache.get(&1, now), None);
    }

    #[test]
    fn what_is_too_old_is_gone() {
        let cache = Cache::new(2);
        let now = Instant::now();
        cache.put("a", 1, now, Duration::from_secs(5));
        assert_eq!(cache.get(&"a", now + Duration::from_secs(4)), Some(1));
        assert_eq!(cache.get(&"a", now + Duration::from_secs(5)), None);
        cache.put("b", 2, now, Duration::from_secs(50));
        assert_eq!(cache.get(&"a", now + Duration::from_secs(5)), None, "also from the older generation");
    }
}
