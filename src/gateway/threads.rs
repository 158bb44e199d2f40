//! The threads that requests are answered in.
//!
//! A connection and all that is done for it stay with one thread. Where threads take work from each
//! other, each request wakes several of them, which costs about as much as the request itself.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Threads with a runtime each, which end when this is dropped. Without any, work is done by the
/// runtime that it comes from.
#[derive(Debug, Default)]
pub struct Threads {
    runtimes: Vec<Handle>,
    next: AtomicUsize,
    _stop: Option<DropGuard>,
}

impl Threads {
    /// Starts so many.
    ///
    /// # Errors
    /// When the system has no more threads or file descriptors.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let start = |number| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (handle, stop) = (runtime.handle().clone(), stop.clone());
            let name = format!("gateway-{number}");
            std::thread::Builder::new().name(name).spawn(move || runtime.block_on(stop.cancelled()))?;
            Ok(handle)
        };
        let runtimes = (0..count).map(start).collect::<io::Result<_>>()?;
        Ok(Self { runtimes, next: AtomicUsize::new(0), _stop: Some(stop.drop_guard()) })
    }

    /// Where the next connection goes: to one after the other.
    pub fn next(&self) -> Handle {
        match self.runtimes.len() {
            0 => Handle::current(),
            count => self.runtimes[self.next.fetch_add(1, Ordering::Relaxed) % count].clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_divided_and_ends_with_the_threads() {
        let name = async || std::thread::current().name().unwrap_or_default().to_owned();
        let threads = Threads::start(2).unwrap();
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(threads.next().spawn(name()).await.unwrap());
        }
        assert_eq!(seen, ["gateway-0", "gateway-1", "gateway-0", "gateway-1"]);
        let endless = threads.next().spawn(std::future::pending::<()>());
        drop(threads);
        assert!(endless.await.unwrap_err().is_cancelled());
        assert_eq!(Threads::default().next().id(), Handle::current().id());
    }
}
