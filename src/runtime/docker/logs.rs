//! What the containers of a server wrote.
//!
//! The engine counts lines of standard output among the last ones even when they are not asked
//! for, and knows only whole seconds; so lines are chosen here.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bollard::query_parameters::{EventsOptionsBuilder, LogsOptionsBuilder};
use futures::{StreamExt, stream, stream::BoxStream};
use jiff::Timestamp;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use super::{Engine, is_gone, label, unavailable};
use crate::{
    names::ServerKey,
    runtime::{InstanceId, LogLine, LogOptions, RuntimeError},
};

/// Lines that may wait for a slow follower.
const BUFFER: usize = 256;
/// Wait before an engine that went away is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// The lines of all containers of a server, by time, and those to come if wished.
pub(super) async fn read(
    engine: Arc<Engine>,
    server: ServerKey,
    options: LogOptions,
) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
    // From before anything is read, so that no start falls between.
    let starts = options.follow.then(|| starts(&engine, &server));
    let mut past = Vec::new();
    let mut seen = HashMap::new();
    for id in containers(&engine, &server).await? {
        let mut lines = match lines(&engine, &id, options.since, false).await {
            Ok(lines) => lines,
            // It went away meanwhile, and its lines with it.
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(unavailable("read logs")(error)),
        };
        let mut kept = VecDeque::new();
        let mut last = None;
        while let Some(line) = lines.next().await {
            last = line.at.max(last);
            kept.push_back(line);
            if options.tail.is_some_and(|tail| kept.len() > tail) {
                kept.pop_front();
            }
        }
        seen.insert(id, last);
        past.extend(kept);
    }
    past.sort_by_key(|line| line.at);
    if let Some(tail) = options.tail {
        past.drain(..past.len().saturating_sub(tail));
    }
    let past = stream::iter(past);
    let Some(starts) = starts else { return Ok(past.boxed()) };
    let (to, news) = mpsc::channel(BUFFER);
    tokio::spawn(async move {
        tokio::select! {
            () = follow(&engine, &server, options.since, seen, starts, &to) => {}
            // Nobody listens any more.
            () = to.closed() => {}
        }
    });
    Ok(past.chain(ReceiverStream::new(news)).boxed())
}

/// Ids of the containers of a server.
async fn containers(engine: &Engine, server: &ServerKey) -> Result<Vec<String>, RuntimeError> {
    Ok(engine.containers(Some(server)).await?.into_iter().filter_map(|c| c.id).collect())
}

/// The id of each container of a server that starts from now on.
fn starts(engine: &Engine, server: &ServerKey) -> BoxStream<'static, String> {
    let labels = [
        (label::INSTANCE, engine.config.instance.as_str()),
        (label::NAMESPACE, server.namespace.as_str()),
        (label::SERVER, server.name.as_str()),
    ];
    let filters = HashMap::from([
        ("type", vec!["container".to_owned()]),
        ("event", vec!["start".to_owned()]),
        ("label", labels.iter().map(|(name, value)| format!("{name}={value}")).collect()),
    ]);
    // The stream opens when it is first looked at, so the engine is told from when on.
    let since = Timestamp::now().as_second().to_string();
    let events = engine.docker.events(Some(EventsOptionsBuilder::new().since(&since).filters(&filters).build()));
    events.filter_map(|event| async { event.ok()?.actor?.id }).boxed()
}

/// Sends what containers write from now on. The engine ends a log when its container ends, so
/// each start is followed anew from where the last one was left.
async fn follow(
    engine: &Engine,
    server: &ServerKey,
    since: Option<Timestamp>,
    mut seen: HashMap<String, Option<Timestamp>>,
    mut starts: BoxStream<'static, String>,
    to: &mpsc::Sender<LogLine>,
) {
    let mut readers = JoinSet::new();
    let mut reading = HashSet::new();
    // Started again while the log of the last run was still read.
    let mut again = HashSet::new();
    // What is there already, and what started while the past was read.
    let mut due: Vec<String> = containers(engine, server).await.unwrap_or_default();
    loop {
        for id in due.drain(..) {
            if !reading.insert(id.clone()) {
                again.insert(id);
                continue;
            }
            let after = seen.get(&id).copied().flatten();
            let lines = lines(engine, &id, after.max(since), true).await;
            let to = to.clone();
            readers.spawn(async move {
                let mut last = after;
                let Ok(mut lines) = lines else { return (id, last) };
                while let Some(line) = lines.next().await {
                    if line.at <= after && after.is_some() {
                        continue;
                    }
                    last = line.at.max(last);
                    if to.send(line).await.is_err() {
                        break;
                    }
                }
                (id, last)
            });
        }
        tokio::select! {
            started = starts.next() => if let Some(id) = started {
                due.push(id);
            } else {
                // The engine is gone. Whatever it runs when it is back is new or goes on.
                tokio::time::sleep(RETRY).await;
                starts = self::starts(engine, server);
                due = containers(engine, server).await.unwrap_or_default();
            },
            Some(Ok((id, last))) = readers.join_next() => {
                reading.remove(&id);
                seen.insert(id.clone(), last);
                if again.remove(&id) {
                    due.push(id);
                }
            }
        }
    }
}

/// The lines of one container from a moment on; of a Stdio server without its standard output.
async fn lines(
    engine: &Engine,
    id: &str,
    since: Option<Timestamp>,
    follow: bool,
) -> Result<BoxStream<'static, LogLine>, bollard::errors::Error> {
    let stdio = engine.docker.inspect_container(id, None).await?.config.and_then(|c| c.open_stdin).unwrap_or(false);
    let mut query = LogsOptionsBuilder::new().stderr(true).stdout(!stdio).timestamps(true).follow(follow);
    if let Some(since) = since {
        query = query.since(i32::try_from(since.as_second()).unwrap_or(i32::MAX));
    }
    let instance = InstanceId(id.get(..12).unwrap_or(id).to_owned());
    let lines = engine.docker.logs(id, Some(query.build())).flat_map(move |output| {
        let bytes = output.map(bollard::container::LogOutput::into_bytes).unwrap_or_default();
        stream::iter(parse(&instance, &bytes))
    });
    Ok(lines.filter(move |line| std::future::ready(since.is_none() || line.at >= since)).boxed())
}

fn parse(instance: &InstanceId, bytes: &[u8]) -> Vec<LogLine> {
    String::from_utf8_lossy(bytes)
        .lines()
        .map(|line| {
            let (at, text) = line.split_once(' ').unwrap_or((line, ""));
            LogLine { instance: instance.clone(), at: at.parse::<Timestamp>().ok(), text: text.to_owned() }
        })
        .collect()
}
