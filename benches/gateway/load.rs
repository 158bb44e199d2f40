//! Calls as fast as they are answered, or at a pace.

use std::time::{Duration, Instant};

use crate::{proxy::Target, wire::Wire};

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Calls that were answered.
    pub calls: usize,
    /// For so long.
    pub time: Duration,
    /// 99th percentile of the time from the call to its whole answer.
    pub p99: Duration,
    /// Processor time of the proxy.
    pub cpu: Duration,
}

impl Outcome {
    /// Calls in a second.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn rate(&self) -> f64 {
        self.calls as f64 / self.time.as_secs_f64()
    }

    /// Milliseconds of the proxy's processor time for 1,000 calls.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn cost(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.calls.max(1) as f64
    }
}

/// What is called.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The message.
    pub body: &'static str,
    /// What is in its answer.
    pub says: &'static str,
    /// Sessions, each with a connection.
    pub clients: usize,
    /// For so long.
    pub time: Duration,
    /// Time between two calls of a session; none for as fast as they are answered.
    pub pace: Option<Duration>,
}

/// Calls. Any answer but the right one ends the benchmark.
pub async fn run(target: &Target, load: Load) -> Outcome {
    let mut clients = Vec::new();
    for _ in 0..load.clients {
        let mut wire = Wire::open(&target.address).await.unwrap();
        let session = target.initialize(&mut wire).await;
        clients.push((wire, target.request(&session, "POST", load.body)));
    }
    let finder = memchr::memmem::Finder::new(load.says);
    let (started, before) = (Instant::now(), target.cpu());
    let end = started + load.time;
    let calls = clients.into_iter().enumerate().map(|(index, (mut wire, request))| {
        let finder = finder.clone();
        async move {
            let mut times: Vec<u32> = Vec::with_capacity(1 << 16);
            let mut ticks = load.pace.map(|pace| {
                let offset = pace * u32::try_from(index).unwrap() / u32::try_from(load.clients).unwrap();
                tokio::time::interval_at(tokio::time::Instant::now() + offset, pace)
            });
            loop {
                if let Some(ticks) = &mut ticks {
                    ticks.tick().await;
                }
                let began = Instant::now();
                if began >= end {
                    return times;
                }
                let head = wire.send(&request).await.unwrap();
                let right = wire.finish(&head, |body| finder.find(body).is_some()).await.unwrap();
                assert!(head.status == 200 && right, "{} answered {}", target.name, head.status);
                times.push(u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
        }
    });
    let times = futures::future::join_all(calls).await;
    let (time, cpu) = (started.elapsed(), target.cpu().saturating_sub(before));
    let mut times = times.concat();
    times.sort_unstable();
    let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or_default();
    Outcome { calls: times.len(), time, p99: Duration::from_nanos(p99.into()), cpu }
}
