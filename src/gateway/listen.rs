//! Takes connections, limits what a slow client can hold up, and drains at the end.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{reply::Body, tls::Tls};

/// Wait after a connection could not be taken, which happens when file descriptors run out.
const BREATH: Duration = Duration::from_millis(100);

/// Time at the end for a request on a connection that was just opened.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// How long nothing may be asked on a connection that was used before. Clients keep theirs for up to
/// 90 s, and lose what they send just when one is closed.
const REST: Duration = Duration::from_secs(120);

/// The address of the client of a request, in the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Ends when nothing was asked on a connection in time, or before the end. The limit for a request's
/// head begins only when it is known which version of HTTP the client speaks.
async fn silence(asked: Arc<AtomicBool>, limit: Duration, shutdown: CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(limit) => {}
        () = async { shutdown.cancelled().await; tokio::time::sleep(LAST_CHANCE).await } => {}
    }
    if asked.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Serves until `shutdown`, over TLS where there is a certificate, then lets requests in flight finish
/// for up to `drain`.
pub async fn serve<F, A>(
    tls: Option<Tls>,
    listener: TcpListener,
    receive_timeout: Duration,
    shutdown: CancellationToken,
    drain: Duration,
    answer: F,
) where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let mut server = auto::Builder::new(TokioExecutor::new());
    // The time for the first head is `silence`'s.
    server.http1().timer(TokioTimer::new()).header_read_timeout(receive_timeout.max(REST)).pipeline_flush(true);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30));
    let graceful = GracefulShutdown::new();
    loop {
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            () = shutdown.cancelled() => break,
        };
        let (stream, address) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(%error, "a connection was not taken");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        // Small answers must not wait for more.
        let _ = stream.set_nodelay(true);
        let answer = answer.clone();
        let asked = Arc::new(AtomicBool::new(false));
        let silence = silence(Arc::clone(&asked), receive_timeout, shutdown.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(Peer(address));
            let answer = answer(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let (server, watcher, tls, shutdown) = (server.clone(), graceful.watcher(), tls.clone(), shutdown.clone());
        tokio::spawn(async move {
            let done = match tls {
                None => {
                    let served = watcher.watch(server.serve_connection(TokioIo::new(stream), service).into_owned());
                    tokio::select! {
                        done = served => done,
                        () = silence => return,
                    }
                }
                Some(tls) => {
                    let shaken = tokio::select! {
                        shaken = tokio::time::timeout(receive_timeout, tls.acceptor().accept(stream)) => shaken,
                        () = shutdown.cancelled() => return,
                    };
                    let Ok(shaken) = shaken else { return };
                    match shaken {
                        Ok(stream) => {
                            let served =
                                watcher.watch(server.serve_connection(TokioIo::new(stream), service).into_owned());
                            tokio::select! {
                                done = served => done,
                                () = silence => return,
                            }
                        }
                        Err(error) => Err(error.into()),
                    }
                }
            };
            if let Err(error) = done {
                tracing::debug!(%error, "a client's connection broke");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in hand when the time to finish them was over");
    }
}
