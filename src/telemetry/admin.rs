//! What a program tells operators about itself, on a listener that clients never see: `/healthz`
//! (it lives), `/readyz` (it can do its work), `/metrics` (OpenMetrics text).

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Why a program cannot do its work now, in words; or that it can.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Serves until `shutdown`; `more` is what only this program has to tell.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    ready: Readiness,
    registry: Arc<Mutex<Registry>>,
    more: Router,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(move || std::future::ready(readyz(&ready))))
        .route("/metrics", get(move || std::future::ready(metrics(&registry))))
        .merge(more);
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

fn readyz(ready: &Readiness) -> Response {
    match ready() {
        Ok(()) => "ok".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

fn metrics(registry: &Mutex<Registry>) -> Response {
    let mut text = String::new();
    let registry = registry.lock().expect("nobody panics while holding the registry");
    match encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be written: {error}")).into_response()
        }
    }
}
