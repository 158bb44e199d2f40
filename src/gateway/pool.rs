//! Connections to instances, kept and used again.
//!
//! A connection has no task of its own: whoever waits for an answer drives it, first for the head
//! and then, inside [`Driven`], for the body. So a request costs no hand-over between tasks, and a
//! client that goes away takes its upstream connection with it, which is how a call is cancelled.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1::{self, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Time to open a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an unused connection is good for, when the instance does not say.
const IDLE: Duration = Duration::from_secs(15);
/// Most unused connections to one instance.
const MOST: usize = 256;
/// Time between two looks at what grew too old.
const SWEEP: Duration = Duration::from_secs(10);

type Conn = Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// Unused connections by instance address.
#[derive(Default)]
pub struct Pool {
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    by_authority: HashMap<Arc<str>, Vec<Wire>>,
    swept: Option<Instant>,
}

/// One connection.
struct Wire {
    sender: SendRequest<Full<Bytes>>,
    /// None when it is over.
    conn: Option<Box<Conn>>,
    /// Unused after this moment it is dropped.
    fresh_until: Instant,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// No connection: nothing was sent.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

impl Wire {
    async fn open(authority: &str) -> Result<Self, PoolError> {
        let connect = tokio::time::timeout(CONNECT, TcpStream::connect(authority));
        let stream =
            connect.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(PoolError::Connect)?;
        stream.set_nodelay(true).map_err(PoolError::Connect)?;
        let (sender, conn) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Self { sender, conn: Some(Box::new(conn)), fresh_until: Instant::now() })
    }

    /// Moves the connection on; true when it is over.
    fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(conn) = &mut self.conn
            && Pin::new(conn).poll(cx).is_ready()
        {
            self.conn = None;
        }
        self.conn.is_none()
    }

    fn is_usable(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        !self.drive(&mut cx) && self.sender.is_ready()
    }
}

impl Pool {
    /// Sends a request to `host:port` and gives the head of the answer; the body comes as it comes.
    ///
    /// # Errors
    /// When no connection can be had, or it breaks before the answer begins. A request is sent
    /// again only when nothing of it was sent.
    pub async fn send(
        self: &Arc<Self>,
        authority: &Arc<str>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Driven>, PoolError> {
        loop {
            let (mut wire, reused) = match self.take(authority) {
                Some(wire) => (wire, true),
                None => (Wire::open(authority).await?, false),
            };
            let answer = wire.sender.try_send_request(request);
            let mut answer = std::pin::pin!(answer);
            let answer = poll_fn(|cx| {
                wire.drive(cx);
                answer.as_mut().poll(cx)
            });
            match answer.await {
                Ok(response) => return Ok(self.follow(authority, wire, response)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => request = unsent,
                    _ => return Err(error.into_error().into()),
                },
            }
        }
    }

    fn follow(
        self: &Arc<Self>,
        authority: &Arc<str>,
        mut wire: Wire,
        response: Response<Incoming>,
    ) -> Response<Driven> {
        wire.fresh_until = Instant::now() + promised(&response).unwrap_or(IDLE);
        let (parts, incoming) = response.into_parts();
        let pool = Arc::downgrade(self);
        let mut body = Driven { incoming, wire: Some(wire), pool, authority: Arc::clone(authority) };
        body.finish_if_over();
        Response::from_parts(parts, body)
    }

    fn take(&self, authority: &str) -> Option<Wire> {
        let now = Instant::now();
        loop {
            let mut wire = {
                let mut idle = self.idle.lock().expect("nobody panics while holding the connections");
                idle.by_authority.get_mut(authority)?.pop()?
            };
            if wire.fresh_until > now && wire.is_usable() {
                return Some(wire);
            }
        }
    }

    fn give_back(&self, authority: &Arc<str>, mut wire: Wire) {
        if !wire.is_usable() {
            return;
        }
        let now = Instant::now();
        let mut idle = self.idle.lock().expect("nobody panics while holding the connections");
        if idle.swept.is_none_or(|swept| now - swept > SWEEP) {
            idle.swept = Some(now);
            idle.by_authority.retain(|_, wires| {
                wires.retain(|wire| wire.fresh_until > now);
                !wires.is_empty()
            });
        }
        let wires = idle.by_authority.entry(Arc::clone(authority)).or_default();
        if wires.len() < MOST {
            wires.push(wire);
        }
    }
}

/// What the instance says about how long it keeps an unused connection, less a second.
fn promised<B>(response: &Response<B>) -> Option<Duration> {
    let header = response.headers().get("keep-alive")?.to_str().ok()?;
    let seconds: u64 = header.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?.parse().ok()?;
    Some(Duration::from_secs(seconds.saturating_sub(1)).min(Duration::from_secs(60)))
}

/// The body of an answer together with the connection that it comes over.
pub struct Driven {
    incoming: Incoming,
    wire: Option<Wire>,
    pool: Weak<Pool>,
    authority: Arc<str>,
}

impl Driven {
    fn finish_if_over(&mut self) {
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let (Some(wire), Some(pool)) = (self.wire.take(), self.pool.upgrade()) {
            pool.give_back(&self.authority, wire);
        }
    }
}

impl Body for Driven {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        // Asking for the body is what lets the connection read it, so it is moved on after that.
        for _ in 0..2 {
            if let Some(wire) = &mut this.wire {
                wire.drive(cx);
            }
            match Pin::new(&mut this.incoming).poll_frame(cx) {
                Poll::Pending => {}
                Poll::Ready(Some(frame)) => {
                    this.finish_if_over();
                    return Poll::Ready(Some(frame));
                }
                Poll::Ready(None) => {
                    this.finish();
                    return Poll::Ready(None);
                }
            }
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers each connection's requests with `answer`, and counts the connections.
    async fn server(answer: &'static str, per_connection: usize) -> (Arc<str>, Arc<std::sync::atomic::AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority: Arc<str> = listener.local_addr().unwrap().to_string().into();
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    for _ in 0..per_connection {
                        if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                            return;
                        }
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        (authority, count)
    }

    fn request() -> Request<Full<Bytes>> {
        Request::post("/mcp").header("host", "x").body(Full::new(Bytes::from_static(b"{}"))).unwrap()
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

    #[tokio::test]
    async fn a_connection_is_used_again() {
        let (authority, count) = server(OK, 100).await;
        let pool = Arc::new(Pool::default());
        for _ in 0..5 {
            let response = pool.send(&authority, request()).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "{}");
        }
        assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_connection_that_the_server_closed_is_replaced() {
        let (authority, count) = server(OK, 1).await;
        let pool = Arc::new(Pool::default());
        for _ in 0..3 {
            let response = pool.send(&authority, request()).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "{}");
            // Until the end of the connection is seen here, if it was not when it came back.
            let kept = || pool.idle.lock().unwrap().by_authority.remove(&authority);
            for mut wire in kept().into_iter().flatten() {
                poll_fn(|cx| if wire.drive(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
                pool.idle.lock().unwrap().by_authority.entry(Arc::clone(&authority)).or_default().push(wire);
            }
        }
        assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_body_that_nobody_wants_ends_its_connection() {
        let (authority, count) = server("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}", 100).await;
        let pool = Arc::new(Pool::default());
        for _ in 0..2 {
            drop(pool.send(&authority, request()).await.unwrap());
        }
        assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 2, "half an answer must not meet the next request");
    }

    #[tokio::test]
    async fn promises_of_the_server_are_kept() {
        let with = |value: &str| Response::builder().header("keep-alive", value).body(()).unwrap();
        assert_eq!(promised(&with("timeout=5, max=100")), Some(Duration::from_secs(4)));
        assert_eq!(promised(&with("max=100")), None);
        assert_eq!(promised(&Response::new(())), None);
    }
}
