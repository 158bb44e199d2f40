//! Which instance takes a request, and how many requests each has in hand.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::runtime::{Endpoint, InstanceId};

/// Requests in hand, by instance.
#[derive(Default)]
pub struct Balancer {
    counts: Mutex<HashMap<InstanceId, Arc<AtomicUsize>>>,
    turn: AtomicUsize,
}

/// A request in the hands of an instance, until it is dropped.
#[derive(Debug)]
pub struct InHand(Arc<AtomicUsize>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Balancer {
    /// The endpoint with the fewest requests in hand; among equals they take turns.
    pub fn choose<'e>(&self, endpoints: &'e [Endpoint]) -> Option<&'e Endpoint> {
        if let [only] = endpoints {
            return Some(only);
        }
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let counts = self.counts.lock().expect("nobody panics while holding the counts");
        let load = |endpoint: &Endpoint| counts.get(&endpoint.instance).map_or(0, |c| c.load(Ordering::Relaxed));
        (0..endpoints.len()).map(|i| &endpoints[(start.wrapping_add(i)) % endpoints.len()]).min_by_key(|e| load(e))
    }

    /// Counts a request for an instance.
    pub fn take(&self, instance: &InstanceId) -> InHand {
        let mut counts = self.counts.lock().expect("nobody panics while holding the counts");
        let count = if let Some(count) = counts.get(instance) {
            Arc::clone(count)
        } else {
            // Instances come and go; those without requests need no memory.
            counts.retain(|_, count| count.load(Ordering::Relaxed) > 0);
            Arc::clone(counts.entry(instance.clone()).or_default())
        };
        count.fetch_add(1, Ordering::Relaxed);
        InHand(count)
    }
}

/// A body that holds something until its end: a request in hand, a count.
pub struct Holding<B: Body, H> {
    body: B,
    _held: H,
    /// Ends the body, for streams that have no end of their own.
    until: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// What went wrong, not told yet: a connection is closed at once when it is, and what came before
    /// must have been sent by then.
    failed: Option<B::Error>,
}

impl<B: Body, H> Holding<B, H> {
    /// Holds `held` as long as the body lasts, and ends the body at `until`.
    pub fn new(body: B, held: H, until: Option<CancellationToken>) -> Self {
        Self { body, _held: held, until: until.map(|token| Box::pin(token.cancelled_owned())), failed: None }
    }
}

impl<B: Body<Data = Bytes, Error: Unpin> + Unpin, H: Unpin> Body for Holding<B, H> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(until) = &mut self.until
            && until.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(None);
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = polled {
            self.failed = Some(error);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.failed.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{names::Revision, runtime::Address};

    fn endpoint(name: &str) -> Endpoint {
        Endpoint { instance: InstanceId(name.into()), revision: Revision("r".into()), address: Address::Stdio }
    }

    #[test]
    fn the_least_busy_instance_is_chosen() {
        let balancer = Balancer::default();
        let all = [endpoint("a"), endpoint("b"), endpoint("c")];
        let busy: Vec<InHand> = ["a", "a", "c"].iter().map(|n| balancer.take(&InstanceId((*n).into()))).collect();
        for _ in 0..5 {
            assert_eq!(balancer.choose(&all).unwrap().instance.0, "b");
        }
        drop(busy);
        let chosen: std::collections::HashSet<_> =
            (0..3).map(|_| balancer.choose(&all).unwrap().instance.0.clone()).collect();
        assert_eq!(chosen.len(), 3, "equals take turns");
        assert!(balancer.choose(&[]).is_none());
    }
}
