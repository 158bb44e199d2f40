//! What the gateway tells operators about itself, on a listener of its own.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    listen,
    reply::{self, Body},
};
use crate::routing::RouteTable;

/// Time for the head of a request.
const RECEIVE: Duration = Duration::from_secs(10);

/// What a gateway says about itself, for a program that tells it on a listener of its own.
#[derive(Clone, Debug, Default)]
pub struct Reports(pub(super) Arc<ArcSwap<RouteTable>>);

impl Reports {
    /// Whether the gateway knows which servers there are.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.0.load().is_synced()
    }

    /// What `/-/epoch` answers.
    #[must_use]
    pub fn epoch(&self) -> Value {
        epoch(&self.0.load())
    }
}

/// Serves for ever; without a listener it does nothing for ever.
pub async fn serve(listener: Option<TcpListener>, table: Arc<ArcSwap<RouteTable>>) {
    let Some(listener) = listener else { return std::future::pending().await };
    let answer = move |request: Request<hyper::body::Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &table.load());
        async move { answer }
    };
    listen::serve(listener, RECEIVE, CancellationToken::new(), Duration::ZERO, answer).await;
}

fn answer(method: &Method, path: &str, table: &RouteTable) -> Response<Body> {
    match (method, path) {
        (&Method::GET, "/healthz") => reply::json(StatusCode::OK, "\"ok\""),
        (&Method::GET, "/-/epoch") => reply::json(StatusCode::OK, epoch(table).to_string()),
        _ => reply::empty(StatusCode::NOT_FOUND),
    }
}

/// Which table the gateway runs on, and the epoch of each release in it.
fn epoch(table: &RouteTable) -> Value {
    let releases: serde_json::Map<String, Value> = table
        .splits()
        .into_iter()
        .map(|(server, split)| (server.to_string(), json!({"releaseId": split.release_id, "epoch": split.epoch})))
        .collect();
    json!({"generation": table.generation(), "releases": releases})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_of_an_empty_table_is_told() {
        assert_eq!(epoch(&RouteTable::default()), json!({"generation": 0, "releases": {}}));
        assert_eq!(answer(&Method::POST, "/-/epoch", &RouteTable::default()).status(), 404);
        assert_eq!(answer(&Method::GET, "/-/epoch", &RouteTable::default()).status(), 200);
    }
}
