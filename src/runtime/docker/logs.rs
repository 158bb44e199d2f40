//! What the containers of a server wrote.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bollard::query_parameters::LogsOptionsBuilder;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use jiff::Timestamp;

use super::{Engine, is_gone, unavailable};
use crate::{
    names::ServerKey,
    runtime::{InstanceId, LogLine, LogOptions, RuntimeError},
};

/// Time between two looks of a follower for containers that started.
const LOOK: Duration = Duration::from_millis(500);

/// A start of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    container: String,
    started: String,
    /// Whether its standard output is MCP and not for people.
    stdio: bool,
}

impl Source {
    fn instance(&self) -> InstanceId {
        InstanceId(self.container.get(..12).unwrap_or(&self.container).to_owned())
    }
}

async fn sources(engine: &Engine, server: &ServerKey) -> Result<Vec<Source>, RuntimeError> {
    let mut all = Vec::new();
    for container in engine.containers(Some(server)).await? {
        let Some(container) = container.id else { continue };
        let found = match engine.docker.inspect_container(&container, None).await {
            Err(error) if is_gone(&error) => continue,
            other => other.map_err(unavailable("inspect a container"))?,
        };
        let stdio = found.config.and_then(|c| c.open_stdin).unwrap_or(false);
        all.push(Source { container, started: found.state.and_then(|s| s.started_at).unwrap_or_default(), stdio });
    }
    Ok(all)
}

/// The lines of one container, from its first start on.
fn read(engine: &Engine, source: &Source, options: &LogOptions) -> BoxStream<'static, LogLine> {
    let mut query =
        LogsOptionsBuilder::new().stderr(true).stdout(!source.stdio).timestamps(true).follow(options.follow);
    if let Some(tail) = options.tail {
        query = query.tail(&tail.to_string());
    }
    if let Some(since) = options.since {
        query = query.since(i32::try_from(since.as_second()).unwrap_or(i32::MAX));
    }
    let instance = source.instance();
    let lines = engine.docker.logs(&source.container, Some(query.build())).filter_map(move |output| {
        let instance = instance.clone();
        async move { Some(parse(&instance, &output.ok()?.into_bytes())) }
    });
    lines.flat_map(stream::iter).boxed()
}

/// What was written until now, by time.
pub(super) async fn past(
    engine: &Engine,
    server: &ServerKey,
    options: &LogOptions,
) -> Result<Vec<LogLine>, RuntimeError> {
    let sources = sources(engine, server).await?;
    let streams = sources.iter().map(|source| read(engine, source, options));
    let mut lines: Vec<LogLine> = stream::select_all(streams).collect().await;
    lines.sort_by_key(|line| line.at);
    if let Some(tail) = options.tail {
        lines.drain(..lines.len().saturating_sub(tail));
    }
    Ok(lines)
}

/// What was written until now, and what will be, by containers that start later as well.
pub(super) async fn follow(
    engine: Arc<Engine>,
    server: ServerKey,
    options: LogOptions,
) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
    let past = past(&engine, &server, &LogOptions { follow: false, ..options.clone() }).await?;
    // The last line of each container: what is read again from there on is known already.
    let mut last = HashMap::new();
    for line in &past {
        last.insert(line.instance.clone(), line.at);
    }
    let (begun, last) = (Timestamp::now(), Arc::new(Mutex::new(last)));
    let rounds = stream::unfold((engine, server), move |(engine, server)| {
        let last = Arc::clone(&last);
        async move {
            // While the engine does not answer there is nothing to follow.
            let now = sources(&engine, &server).await.unwrap_or_default();
            let streams: Vec<_> = now
                .iter()
                .map(|source| {
                    // The engine counts in seconds, so some lines come twice.
                    let known = last.lock().expect("nobody panics while holding the last lines");
                    let since = known.get(&source.instance()).copied().flatten().or(Some(begun));
                    read(&engine, source, &LogOptions { tail: None, since, follow: true })
                })
                .collect();
            let known = Arc::clone(&last);
            let news = stream::select_all(streams).filter(move |line| {
                let mut known = known.lock().expect("nobody panics while holding the last lines");
                let before = known.get(&line.instance).copied().flatten();
                let new = line.at > before;
                if new {
                    known.insert(line.instance.clone(), line.at);
                }
                std::future::ready(new)
            });
            // Containers that ended have no news; what starts next is a change.
            let changed = changed(Arc::clone(&engine), server.clone(), now);
            Some((news.chain(stream::pending()).take_until(changed), (engine, server)))
        }
    });
    Ok(stream::iter(past).chain(rounds.flatten()).boxed())
}

/// Waits until other containers run than those that are followed.
async fn changed(engine: Arc<Engine>, server: ServerKey, followed: Vec<Source>) {
    loop {
        tokio::time::sleep(LOOK).await;
        if sources(&engine, &server).await.is_ok_and(|now| now != followed) {
            return;
        }
    }
}

fn parse(instance: &InstanceId, bytes: &[u8]) -> Vec<LogLine> {
    String::from_utf8_lossy(bytes)
        .lines()
        .map(|line| {
            let (at, text) = line.split_once(' ').unwrap_or(("", line));
            LogLine { instance: instance.clone(), at: at.parse::<Timestamp>().ok(), text: text.to_owned() }
        })
        .collect()
}
