//! Only one of several operators works at a time: the one that holds a `coordination.k8s.io`
//! Lease.
//!
//! # Protocol
//! As in client-go: the holder renews every [`Timing::retry`]; a candidate takes the Lease over
//! once it has seen no renewal for [`Timing::lease`] on its own monotonic clock, so clocks that
//! differ between nodes do not matter. A holder that could not renew for [`Timing::renew`] stops
//! before anybody else may start. A holder that ends gives the Lease back, and the next takes over
//! within one [`Timing::retry`]. All writes carry the resourceVersion, so of two candidates one
//! wins.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How patient holders and candidates are. `lease > renew > retry`.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A Lease that was not renewed for so long is free.
    pub lease: Duration,
    /// A holder that could not renew for so long stops.
    pub renew: Duration,
    /// Time between two looks.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

impl Timing {
    /// Time between the moment that a holder stops because it could not renew and the first moment
    /// that another may start.
    fn left(&self) -> Duration {
        self.lease.saturating_sub(self.renew).saturating_sub(self.retry)
    }
}

/// A place among the candidates.
pub struct Candidate {
    /// Where the Lease is.
    pub leases: Api<Lease>,
    /// Name of the Lease.
    pub name: String,
    /// This candidate: unique, such as the name of its pod.
    pub identity: String,
    /// How patient it is.
    pub timing: Timing,
}

/// What to do about a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is none: make it.
    Create,
    /// It is ours: renew it.
    Renew,
    /// It is free: take it.
    TakeOver,
    /// It is somebody else's.
    Wait,
}

/// What a candidate that sees a Lease, unchanged for so long, does about it. Pure.
fn step(lease: Option<&LeaseSpec>, identity: &str, unchanged: Duration, timing: &Timing) -> Step {
    let Some(lease) = lease else { return Step::Create };
    match lease.holder_identity.as_deref() {
        Some(holder) if holder == identity => Step::Renew,
        None | Some("") => Step::TakeOver,
        Some(_) if unchanged >= timing.lease => Step::TakeOver,
        Some(_) => Step::Wait,
    }
}

impl Candidate {
    /// Waits until this candidate holds the Lease, runs `lead`, and stops it when the Lease is
    /// lost; then waits again. Returns once `shutdown` came and the Lease was given back, or when
    /// `lead` ended by itself.
    pub async fn run<F, Fut>(&self, shutdown: &CancellationToken, mut lead: F)
    where
        F: FnMut(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        while self.win(shutdown).await {
            tracing::info!(identity = self.identity, lease = self.name, "leading");
            let term = shutdown.child_token();
            let mut work = Box::pin(lead(term.clone()));
            let ended = tokio::select! {
                () = &mut work => true,
                () = self.hold(shutdown) => false,
            };
            if !ended {
                term.cancel();
                // What is still under way when another may start is dropped: whoever takes over
                // looks at everything anew.
                let left = if shutdown.is_cancelled() { self.timing.renew } else { self.timing.left() };
                if tokio::time::timeout(left, &mut work).await.is_err() {
                    tracing::warn!(identity = self.identity, "work under way did not end in time and was given up");
                }
            }
            drop(work);
            if shutdown.is_cancelled() || ended {
                self.give_back().await;
                return;
            }
            tracing::warn!(identity = self.identity, lease = self.name, "the lease was lost: another operator leads");
        }
    }

    /// Waits for the Lease; false when `shutdown` came first.
    async fn win(&self, shutdown: &CancellationToken) -> bool {
        let mut seen: Option<(LeaseSpec, Instant)> = None;
        loop {
            match self.attempt(&mut seen).await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, lease = self.name, "the lease cannot be read or written"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.timing.retry) => {}
                () = shutdown.cancelled() => return false,
            }
        }
    }

    /// Renews until that fails for too long, somebody else holds the Lease, or `shutdown` comes.
    async fn hold(&self, shutdown: &CancellationToken) {
        let mut renewed = Instant::now();
        let mut seen = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.timing.retry) => {}
                () = shutdown.cancelled() => return,
            }
            let left = self.timing.renew.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt(&mut seen)).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, lease = self.name, "the lease was not renewed"),
                Err(_) => {}
            }
            if renewed.elapsed() >= self.timing.renew {
                return;
            }
        }
    }

    /// One look and one step; true when this candidate holds the Lease now.
    async fn attempt(&self, seen: &mut Option<(LeaseSpec, Instant)>) -> kube::Result<bool> {
        let found = self.leases.get_opt(&self.name).await?;
        let spec = found.as_ref().and_then(|l| l.spec.clone()).unwrap_or_default();
        if seen.as_ref().is_none_or(|(before, _)| *before != spec) {
            *seen = Some((spec.clone(), Instant::now()));
        }
        let unchanged = seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let step = step(found.as_ref().map(|_| &spec), &self.identity, unchanged, &self.timing);
        let now = Some(MicroTime(Timestamp::now()));
        let taken = |transitions: i32| LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.lease.as_secs()).ok(),
            acquire_time: now.clone(),
            renew_time: now.clone(),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        let result = match (step, found) {
            (Step::Wait, _) => return Ok(false),
            (Step::Create, _) | (_, None) => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(taken(0)) };
                self.leases.create(&PostParams::default(), &lease).await
            }
            (Step::Renew, Some(found)) => {
                let lease = Lease { spec: Some(LeaseSpec { renew_time: now, ..spec }), ..found };
                self.leases.replace(&self.name, &PostParams::default(), &lease).await
            }
            (Step::TakeOver, Some(found)) => {
                let transitions = spec.lease_transitions.unwrap_or(0).saturating_add(1);
                let lease = Lease { spec: Some(taken(transitions)), ..found };
                self.leases.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match result {
            Ok(_) => Ok(true),
            // Somebody else was first.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets the next candidate start at once.
    async fn give_back(&self) {
        let free = async {
            let Some(found) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
            let spec = found.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
                return Ok(());
            }
            let spec = LeaseSpec { holder_identity: Some(String::new()), ..spec };
            let lease = Lease { spec: Some(spec), ..found };
            self.leases.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
        };
        let limit = self.timing.renew;
        match tokio::time::timeout(limit, free).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lease was not given back; it runs out by itself"),
            Err(_) => tracing::warn!("the lease was not given back in time; it runs out by itself"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_when_it_is_free_or_stale() {
        let timing = Timing::default();
        let held = |by: &str| LeaseSpec { holder_identity: Some(by.to_owned()), ..LeaseSpec::default() };
        let now = Duration::ZERO;
        assert_eq!(step(None, "me", now, &timing), Step::Create);
        assert_eq!(step(Some(&held("me")), "me", now, &timing), Step::Renew);
        assert_eq!(step(Some(&held("")), "me", now, &timing), Step::TakeOver);
        assert_eq!(step(Some(&held("you")), "me", Duration::from_secs(14), &timing), Step::Wait);
        assert_eq!(step(Some(&held("you")), "me", timing.lease, &timing), Step::TakeOver);
    }

    #[test]
    fn a_holder_stops_before_another_may_start() {
        let timing = Timing::default();
        assert!(timing.renew + timing.retry < timing.lease);
        assert!(timing.renew + timing.left() < timing.lease);
    }
}
