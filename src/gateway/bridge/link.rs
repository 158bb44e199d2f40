//! The conversation with one process: who asked what, and where its answers go.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use serde_json::value::RawValue;
use tokio::{
    io::AsyncWriteExt,
    sync::{OnceCell, broadcast, mpsc},
};
use tokio_util::{
    codec::{FramedRead, LinesCodec, LinesCodecError},
    sync::CancellationToken,
};

use crate::{
    gateway::{
        era::{META_LOG, META_SUBSCRIPTION},
        message::{self, Kind, Message, member, object, raw, with_member},
        reply,
    },
    runtime::StdioStreams,
};

/// Lines that wait to be read by the process.
const OUTGOING: usize = 256;
/// Messages that wait for the client of one call.
const ANSWERS: usize = 64;
/// Notifications that a slow listener may be behind.
const NEWS: usize = 256;

/// Whose messages go over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Those of many sessions: ids are rewritten, and the server may not ask back.
    Many,
    /// Those of one: everything passes as it is.
    One,
}

/// A call that a process has in hand.
pub struct Call {
    /// Its id there.
    pub key: String,
    /// What comes for it, the response last.
    pub answers: mpsc::Receiver<Bytes>,
}

/// The conversation with one process.
pub struct Link {
    sharing: Sharing,
    outgoing: mpsc::Sender<Vec<u8>>,
    state: Arc<State>,
    next: AtomicU64,
    /// Cancelled when the process is gone, or this link is dropped.
    dead: CancellationToken,
    /// What the server said when the bridge introduced itself.
    pub spoken: OnceCell<Spoken>,
}

/// The era in which a process is spoken to, with what it said of itself.
#[derive(Debug)]
pub enum Spoken {
    /// The result of `initialize`.
    Legacy(Arc<RawValue>),
    /// The result of `server/discover`.
    Modern(Arc<RawValue>),
}

struct State {
    pending: Mutex<HashMap<String, Pending>>,
    news: broadcast::Sender<Bytes>,
}

struct Pending {
    /// The id that the client gave, to be put back.
    id: Box<RawValue>,
    /// The progress token that the client gave, to be put back.
    progress: Option<Box<RawValue>>,
    /// Whether it wants log messages.
    logs: bool,
    /// Whose call it is, for cancellation.
    session: u64,
    answers: mpsc::Sender<Bytes>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.dead.cancel();
    }
}

/// Why a process does not get a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The process is gone.
    Gone,
    /// It has more calls in hand than it may have.
    Busy,
    /// Its only client has a call of the same id in hand: whose the answer is could not be told.
    Duplicate,
}

/// Calls that one process may have in hand.
pub const MOST_PENDING: usize = 4096;

impl Link {
    /// Starts to read and write. `what` names the server in errors.
    pub fn start(streams: StdioStreams, sharing: Sharing, line_limit: usize, what: String) -> Self {
        let (outgoing, lines) = mpsc::channel(OUTGOING);
        let state = Arc::new(State { pending: Mutex::default(), news: broadcast::Sender::new(NEWS) });
        let dead = CancellationToken::new();
        tokio::spawn(write(streams.stdin, lines, dead.clone()));
        let reader =
            Reader { state: Arc::clone(&state), sharing, outgoing: outgoing.clone(), what, dead: dead.clone() };
        tokio::spawn(reader.run(streams.stdout, line_limit));
        Self { sharing, outgoing, state, next: AtomicU64::new(1), dead, spoken: OnceCell::new() }
    }

    /// Whether the process is gone.
    pub fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    /// Sends a request. Its answers, the response last, come from the returned channel; when the
    /// process ends first, the response is an error.
    pub async fn request(&self, message: &Message<'_>, session: u64) -> Result<Call, Refused> {
        let Some(id) = message.id else { return Err(Refused::Gone) };
        if self.pending() >= MOST_PENDING {
            return Err(Refused::Busy);
        }
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let progress = message.progress_token();
        let (key, line) = match self.sharing {
            Sharing::One => (id.get().to_owned(), message.line(Some(id), message.params)),
            Sharing::Many => {
                let number = raw(self.next.fetch_add(1, Ordering::Relaxed));
                let params = match (&progress, message.params) {
                    (Some(_), Some(params)) => with_member(params, &["_meta", "progressToken"], &number),
                    _ => None,
                };
                let line = message.line(Some(&number), params.as_deref().or(message.params));
                (number.get().to_owned(), line)
            }
        };
        let logs = message.meta(META_LOG).is_some();
        let pending = Pending { logs, id: id.to_owned(), progress: progress.map(ToOwned::to_owned), session, answers };
        match self.state.pending.lock().expect("nobody panics while holding the calls").entry(key.clone()) {
            Entry::Vacant(free) => drop(free.insert(pending)),
            Entry::Occupied(_) => return Err(Refused::Duplicate),
        }
        // The reader empties the calls once when it ends; a call that came later would wait for ever.
        if self.is_dead() || self.outgoing.send(line).await.is_err() {
            self.state.pending.lock().expect("nobody panics while holding the calls").remove(&key);
            return Err(Refused::Gone);
        }
        Ok(Call { key, answers: receiver })
    }

    /// Gives up a call: nobody waits for its answer any more.
    pub fn give_up(&self, key: &str) {
        let call = self.state.pending.lock().expect("nobody panics while holding the calls").remove(key);
        if call.is_some() {
            let params = format!(r#"{{"requestId":{key}}}"#);
            if let Ok(params) = RawValue::from_string(params) {
                let mut line = message::request(None, "notifications/cancelled", Some(&params));
                line.push(b'\n');
                // A process that reads nothing hears nothing.
                let _ = self.outgoing.try_send(line);
            }
        }
    }

    /// Sends a notification or a response as it is.
    pub async fn pass(&self, message: &Message<'_>) -> Result<(), Refused> {
        self.outgoing.send(message.line(message.id, message.params)).await.map_err(|_| Refused::Gone)
    }

    /// Tells the server that a session gave up one of its calls. A call that was given up may
    /// never be answered, so it does not wait any more.
    pub async fn cancel(&self, message: &Message<'_>, session: u64) -> Result<(), Refused> {
        let Some(wanted) = message.param_raw("requestId") else { return Ok(()) };
        let found = {
            let mut pending = self.state.pending.lock().expect("nobody panics while holding the calls");
            let found = pending.iter().find(|(_, p)| p.session == session && p.id.get() == wanted.get());
            let found = found.map(|(key, _)| key.clone());
            found.inspect(|key| drop(pending.remove(key)))
        };
        let Some(key) = found else { return Ok(()) };
        let number = RawValue::from_string(key).map_err(|_| Refused::Gone)?;
        let params = message.params.and_then(|params| with_member(params, &["requestId"], &number));
        self.outgoing.send(message.line(None, params.as_deref())).await.map_err(|_| Refused::Gone)
    }

    /// What the server says to nobody in particular.
    pub fn news(&self) -> broadcast::Receiver<Bytes> {
        self.state.news.subscribe()
    }

    /// How many calls wait for their answer.
    pub fn pending(&self) -> usize {
        self.state.pending.lock().expect("nobody panics while holding the calls").len()
    }

    /// Ends when the process does.
    pub async fn ended(&self) {
        self.dead.cancelled().await;
    }
}

async fn write(
    mut stdin: std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>,
    mut lines: mpsc::Receiver<Vec<u8>>,
    dead: CancellationToken,
) {
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            () = dead.cancelled() => None,
        };
        let Some(line) = line else { return };
        let written = async {
            stdin.write_all(&line).await?;
            stdin.flush().await
        };
        let written = tokio::select! {
            written = written => written.is_ok(),
            () = dead.cancelled() => false,
        };
        if !written {
            dead.cancel();
            return;
        }
    }
}

struct Reader {
    state: Arc<State>,
    sharing: Sharing,
    outgoing: mpsc::Sender<Vec<u8>>,
    what: String,
    dead: CancellationToken,
}

impl Reader {
    async fn run(self, stdout: std::pin::Pin<Box<dyn tokio::io::AsyncRead + Send>>, line_limit: usize) {
        let mut lines = FramedRead::new(stdout, LinesCodec::new_with_max_length(line_limit));
        loop {
            let line = tokio::select! {
                line = lines.next() => line,
                () = self.dead.cancelled() => None,
            };
            match line {
                Some(Ok(line)) if line.trim().is_empty() => {}
                Some(Ok(line)) => self.take(line).await,
                Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                    // Whose answer it was cannot be told any more.
                    let text = format!("server {} sent a message of more than {line_limit} bytes", self.what);
                    self.fail_all(&text).await;
                }
                Some(Err(LinesCodecError::Io(_))) | None => break,
            }
        }
        self.dead.cancel();
        self.fail_all(&format!("the process of server {} ended before it answered", self.what)).await;
    }

    async fn fail_all(&self, text: &str) {
        let all: Vec<Pending> = {
            let mut pending = self.state.pending.lock().expect("nobody panics while holding the calls");
            pending.drain().map(|(_, p)| p).collect()
        };
        for call in all {
            let error = message::error(Some(&call.id), reply::SERVER_FAILED, text, None);
            // A client that is gone needs no answer.
            let _ = tokio::time::timeout(Duration::from_secs(1), call.answers.send(error.into())).await;
        }
    }

    async fn take(&self, line: String) {
        let line = Bytes::from(line);
        let Some(message) = Message::parse(&line) else {
            // Some servers print a banner; it is no message.
            tracing::debug!(server = %self.what, bytes = line.len(), "skipped a line that is no JSON-RPC message");
            return;
        };
        match message.kind() {
            Kind::Response => self.response(&message).await,
            Kind::Request if self.sharing == Sharing::Many => self.refuse(&message),
            Kind::Notification if self.sharing == Sharing::Many && message.meta(META_SUBSCRIPTION).is_some() => {
                self.subscribed(&message).await;
            }
            Kind::Notification if self.sharing == Sharing::Many && message.method() == "notifications/progress" => {
                self.progress(&message).await;
            }
            Kind::Notification if self.sharing == Sharing::Many && message.method() == "notifications/message" => {
                self.log(&line).await;
            }
            Kind::Request | Kind::Notification => self.tell(&message, line.clone()).await,
        }
    }

    async fn response(&self, message: &Message<'_>) {
        let Some(id) = message.id else { return };
        let call = self.state.pending.lock().expect("nobody panics while holding the calls").remove(id.get());
        if let Some(call) = call {
            let mut line = message.line(Some(&call.id), None);
            let result =
                message.result.filter(|r| member(r, "_meta").is_some_and(|m| member(m, META_SUBSCRIPTION).is_some()));
            if let Some(result) = result.and_then(|r| with_member(r, &["_meta", META_SUBSCRIPTION], &call.id)) {
                line = message::result(Some(&call.id), &result);
            }
            let _ = call.answers.send(line.into()).await;
        }
    }

    /// A shared server was offered no client capabilities, so it may ask for nothing but a sign of
    /// life.
    fn refuse(&self, message: &Message<'_>) {
        let answer = if message.method() == "ping" {
            message::result(message.id, &object())
        } else {
            let text = format!("{} is not offered: several clients share this server", message.method());
            message::error(message.id, -32601, &text, None)
        };
        // One that asks and reads nothing would wait for this reader, and this reader for it.
        let _ = self.outgoing.try_send([answer, vec![b'\n']].concat());
    }

    async fn progress(&self, message: &Message<'_>) {
        let Some(token) = message.param_raw("progressToken") else { return };
        let found = {
            let pending = self.state.pending.lock().expect("nobody panics while holding the calls");
            pending.get(token.get()).and_then(|p| Some((p.progress.clone()?, p.answers.clone())))
        };
        let Some((token, answers)) = found else { return };
        let params = message.params.and_then(|params| with_member(params, &["progressToken"], &token));
        let _ = answers.send(message.line(None, params.as_deref()).into()).await;
    }

    /// Gives a log message to the call that it is about. It does not say which one that is, and may
    /// hold what is nobody else's business: with several calls in hand it is dropped.
    async fn log(&self, line: &Bytes) {
        let (calls, wanting) = {
            let pending = self.state.pending.lock().expect("nobody panics while holding the calls");
            let wanting: Vec<_> = pending.values().filter(|p| p.logs).map(|p| p.answers.clone()).collect();
            let only = pending.values().next().filter(|_| pending.len() == 1).map(|p| p.answers.clone());
            (pending.len(), if wanting.is_empty() { only.into_iter().collect() } else { wanting })
        };
        match wanting.as_slice() {
            [answers] => drop(answers.send(line.clone()).await),
            [] if calls == 0 => drop(self.state.news.send(line.clone())),
            _ => tracing::debug!(server = %self.what, calls, "dropped a log message that names no call"),
        }
    }

    /// Gives a notification of a subscription to whoever subscribed, under the id that they know.
    async fn subscribed(&self, message: &Message<'_>) {
        let Some(subscription) = message.meta(META_SUBSCRIPTION) else { return };
        let found = {
            let pending = self.state.pending.lock().expect("nobody panics while holding the calls");
            pending.get(subscription.get()).map(|p| (p.id.clone(), p.answers.clone()))
        };
        let Some((id, answers)) = found else { return };
        let params = message.params.and_then(|params| with_member(params, &["_meta", META_SUBSCRIPTION], &id));
        let _ = answers.send(message.line(None, params.as_deref()).into()).await;
    }

    /// Gives a message to the call that it names, else to one that waits for an answer, since it
    /// most likely has to do with it, else to those who listen.
    async fn tell(&self, message: &Message<'_>, line: Bytes) {
        let to_caller = self.sharing == Sharing::One
            && (message.kind() == Kind::Request
                || message.method() == "notifications/progress"
                || message.method() == "notifications/message");
        let caller = to_caller.then(|| {
            let pending = self.state.pending.lock().expect("nobody panics while holding the calls");
            let token = message.param_raw("progressToken").map(RawValue::get);
            let named = pending.values().find(|p| token.is_some() && p.progress.as_deref().map(RawValue::get) == token);
            named.or_else(|| pending.values().next()).map(|p| p.answers.clone())
        });
        match caller.flatten() {
            Some(answers) if answers.send(line.clone()).await.is_ok() => {}
            _ => drop(self.state.news.send(line)),
        }
    }
}
