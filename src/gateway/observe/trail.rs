//! Where an operation went, for those who count it.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::sync::CancellationToken;

use super::releases::InFlight;
use crate::{names::Revision, routing::Seat};

/// Where an operation went, as far as it is known.
#[derive(Debug, Default)]
pub struct Trail {
    served: Mutex<Option<Served>>,
    /// Whether it is told of elsewhere.
    handed_on: AtomicBool,
}

/// The revision that an operation went to.
#[derive(Debug)]
pub struct Served {
    /// The revision.
    pub revision: Revision,
    /// There when the operation is in the hands of one side of a release.
    pub counted: Option<Counted>,
}

/// Where an operation is counted.
#[derive(Debug)]
pub struct Counted {
    /// The revision's counters.
    pub in_flight: InFlight,
    /// Whom the operation is for.
    pub seat: Seat,
    /// Ends what only listens, for the candidate.
    pub over: Option<CancellationToken>,
}

impl Trail {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Option<Served>> {
        self.served.lock().expect("nobody panics while holding a trail")
    }

    /// The operation became one of another server, and is told of there.
    pub fn hand_on(&self) {
        self.handed_on.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_handed_on(&self) -> bool {
        self.handed_on.load(Ordering::Relaxed)
    }

    /// The operation goes to a revision, if it does not already.
    pub fn serve(&self, revision: &Revision, counted: impl FnOnce() -> Option<Counted>) {
        let mut served = self.lock();
        if served.as_ref().is_none_or(|served| served.revision != *revision) {
            *served = Some(Served { revision: revision.clone(), counted: counted() });
        }
    }

    /// The revision that the operation went to.
    pub fn revision(&self) -> Option<Revision> {
        self.lock().as_ref().map(|served| served.revision.clone())
    }

    /// Ends what only listens, when it listens to a candidate.
    pub fn over(&self) -> Option<CancellationToken> {
        self.lock().as_ref()?.counted.as_ref()?.over.clone()
    }

    pub(super) fn is_counted(&self) -> bool {
        self.lock().as_ref().is_some_and(|served| served.counted.is_some())
    }

    pub(super) fn take(&self) -> Option<Served> {
        self.lock().take()
    }
}
