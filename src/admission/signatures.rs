//! Who signed the images of what is there: asked beside, kept, and asked again now and then.

use std::{
    collections::{HashMap, hash_map},
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::Gate;
use crate::{
    policy::{ImageFacts, Images, Wanted},
    supply_chain::Registries,
};

/// Time between two looks for what is due.
const ROUND: Duration = Duration::from_secs(15);
/// When it is asked again about an image that is signed.
const SIGNED: Duration = Duration::from_secs(1800);
/// When it is asked again about one that is not, or of which nothing is known.
const UNSIGNED: Duration = Duration::from_secs(60);
/// How long an image is followed after somebody wanted to know. What is there is judged each hour.
const WANTED: Duration = Duration::from_secs(3 * 3600);
/// Images that are asked about in one round.
const BATCH: usize = 64;

/// What is known of images, and whom to ask.
#[derive(Debug)]
pub(super) struct Signatures {
    registries: Option<Registries>,
    known: Mutex<HashMap<Wanted, Entry>>,
    news: Notify,
}

#[derive(Debug)]
struct Entry {
    /// None until somebody looked.
    facts: Option<ImageFacts>,
    looked: Instant,
    wanted: Instant,
}

impl Entry {
    fn is_due(&self, now: Instant) -> bool {
        let Some(facts) = &self.facts else { return true };
        let signed = facts.problem.is_none() && !facts.signed_by.is_empty();
        now.duration_since(self.looked) >= if signed { SIGNED } else { UNSIGNED }
    }
}

impl Signatures {
    pub fn new(registries: Option<Registries>) -> Self {
        Self { registries, known: Mutex::default(), news: Notify::new() }
    }

    /// What is known of these images; none when nobody looked at one of them yet, which is done then.
    pub fn known(&self, wanted: Vec<Wanted>) -> Option<Images> {
        let mut known = self.known.lock().expect("nobody panics while holding what is known");
        let now = Instant::now();
        let mut images = Some(Images::new());
        for wanted in wanted {
            let image = wanted.image.clone();
            let entry = known.entry(wanted).or_insert_with(|| Entry { facts: None, looked: now, wanted: now });
            entry.wanted = now;
            match (&entry.facts, &mut images) {
                (Some(facts), Some(images)) => {
                    images.insert(image, facts.clone());
                }
                (Some(_), None) => {}
                (None, _) => {
                    images = None;
                    self.news.notify_one();
                }
            }
        }
        images
    }

    /// Asks now, and keeps the answers; returns whether one of them is another than before, too.
    pub async fn look(&self, wanted: &[Wanted]) -> (Images, bool) {
        let images = match &self.registries {
            Some(registries) => registries.look(wanted).await,
            None => Images::new(),
        };
        let differs = self.keep(wanted, &images);
        (images, differs)
    }

    fn keep(&self, wanted: &[Wanted], images: &Images) -> bool {
        let mut known = self.known.lock().expect("nobody panics while holding what is known");
        let now = Instant::now();
        let mut differs = false;
        for wanted in wanted {
            let facts = images.get(&wanted.image).cloned().unwrap_or_default();
            match known.entry(wanted.clone()) {
                hash_map::Entry::Occupied(mut known) => {
                    let entry = known.get_mut();
                    differs |= entry.facts.as_ref() != Some(&facts);
                    (entry.facts, entry.looked) = (Some(facts), now);
                }
                // Nothing that is there was judged by it.
                hash_map::Entry::Vacant(place) => {
                    place.insert(Entry { facts: Some(facts), looked: now, wanted: now });
                }
            }
        }
        differs
    }

    /// What is to be asked about now. Images about which nobody wants to know any more are forgotten.
    fn due(&self) -> Vec<Wanted> {
        let mut known = self.known.lock().expect("nobody panics while holding what is known");
        let now = Instant::now();
        known.retain(|_, entry| now.duration_since(entry.wanted) < WANTED);
        known.iter().filter(|(_, entry)| entry.is_due(now)).map(|(wanted, _)| wanted.clone()).take(BATCH).collect()
    }
}

/// Asks about the images of what is there, for ever.
pub(super) async fn follow(gate: &Gate) {
    let signatures = &gate.0.signatures;
    loop {
        let due = signatures.due();
        if due.is_empty() {
            tokio::select! {
                () = signatures.news.notified() => {}
                () = tokio::time::sleep(ROUND) => {}
            }
            continue;
        }
        // One round tells once, however many images it is about.
        gate.look(&due).await;
    }
}
