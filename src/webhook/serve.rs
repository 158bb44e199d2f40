//! The webhook's listener.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Json, Response},
    routing::post,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::{JoinError, JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use super::{certificates::Certificate, review::Review};
use crate::admission::{Gate, Labels};

/// Largest review: an object and the one before it, each as large as an API server keeps.
const BODY: usize = 8 << 20;
/// Time for a client to complete its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections at a time. API servers keep few and use them again.
const CONNECTIONS: usize = 256;
/// Reviews judged at a time: each may take a thread.
const JUDGED: usize = 16;
/// Time for answers under way when the webhook stops.
const DRAIN: Duration = Duration::from_secs(5);

struct Shared {
    gate: Gate,
    client: Client,
    turns: Semaphore,
}

/// Serves until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    certificate: Certificate,
    gate: Gate,
    client: Client,
    shutdown: CancellationToken,
) {
    let shared = Arc::new(Shared { gate, client, turns: Semaphore::new(JUDGED) });
    let app = Router::new().route("/validate", post(validate)).layer(DefaultBodyLimit::max(BODY)).with_state(shared);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places);
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the webhook does not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Ok(place) = place.try_acquire_owned() else { continue };
        let (acceptor, app, shutdown) = (certificate.acceptor(), app.clone(), shutdown.clone());
        connections.spawn(async move {
            let _place = place;
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
            tokio::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => {}
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(DRAIN, connection).await;
                }
            }
        });
    }
    while connections.join_next().await.is_some() {}
}

async fn validate(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let review = match Review::read(&body) {
        Ok(review) => review,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let labels = labels(&shared, &review.namespace).await;
    match answer(&shared, review, labels).await {
        Ok(Some(answer)) => Json(answer).into_response(),
        Ok(None) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Err(error) => {
            tracing::error!(%error, "a review was not answered");
            (StatusCode::INTERNAL_SERVER_ERROR, "the review could not be judged").into_response()
        }
    }
}

/// The answer to a review; none when the webhook ends. Registries are asked between two turns: one
/// that is slow holds up nobody else.
async fn answer(shared: &Shared, review: Review, labels: Option<Labels>) -> Result<Option<Value>, JoinError> {
    let (review, labels) = (Arc::new(review), Arc::new(labels));
    let wanted = {
        let Ok(_turn) = shared.turns.acquire().await else { return Ok(None) };
        let (gate, review, labels) = (shared.gate.clone(), Arc::clone(&review), Arc::clone(&labels));
        spawn_blocking(move || review.wanted(&gate, (*labels).as_ref(), Timestamp::now())).await?
    };
    let images = shared.gate.look(&wanted).await;
    let Ok(_turn) = shared.turns.acquire().await else { return Ok(None) };
    let gate = shared.gate.clone();
    spawn_blocking(move || review.answer(&gate, (*labels).as_ref(), &images, Timestamp::now())).await.map(Some)
}

/// The labels of a namespace; asked for where the watch has not brought it yet.
async fn labels(shared: &Shared, namespace: &str) -> Option<Labels> {
    if let Some(labels) = shared.gate.labels_of(namespace) {
        return Some(labels);
    }
    let found = Api::<Namespace>::all(shared.client.clone()).get(namespace).await;
    found.map(|namespace| namespace.labels().clone()).ok()
}
