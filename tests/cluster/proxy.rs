//! A way to the API server on which things go wrong as a test says.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;

/// What becomes of a request; nothing lets it pass.
type Fault = Box<dyn FnMut(&Parts) -> Option<Response> + Send>;

/// The way. It ends with the process.
pub struct Proxy {
    url: String,
    fault: Arc<Mutex<Fault>>,
    /// Ends the answers that are under way.
    cut: Arc<Mutex<CancellationToken>>,
}

impl Proxy {
    /// A way that works, to the administrator's entrance.
    pub fn to(cluster: &Cluster) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let proxy = Self { url, fault: Arc::new(Mutex::new(Box::new(|_| None))), cut: Arc::default() };
        let (fault, cut) = (Arc::clone(&proxy.fault), Arc::clone(&proxy.cut));
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let config =
                    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
                let client = kube::Client::try_from(config).unwrap();
                let app = Router::new().fallback(move |request: Request| {
                    let (client, fault, cut) = (client.clone(), Arc::clone(&fault), Arc::clone(&cut));
                    async move {
                        let (parts, body) = request.into_parts();
                        let broken = (fault.lock().unwrap())(&parts);
                        match broken {
                            Some(response) => response,
                            None => pass(&client, parts, body, &cut).await,
                        }
                    }
                });
                axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap();
            });
        });
        proxy
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": self.url}}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        })
    }

    /// From now on this becomes of requests.
    pub fn set(&self, fault: impl FnMut(&Parts) -> Option<Response> + Send + 'static) {
        *self.fault.lock().unwrap() = Box::new(fault);
    }

    /// From now on the way works.
    pub fn clear(&self) {
        self.set(|_| None);
    }

    /// Ends all answers that are under way, which are watches.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }
}

async fn pass(client: &kube::Client, mut parts: Parts, body: Body, cut: &Mutex<CancellationToken>) -> Response {
    let token = cut.lock().unwrap().clone();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    for name in [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::ACCEPT_ENCODING] {
        parts.headers.remove(name);
    }
    parts.version = http::Version::HTTP_11;
    let request = http::Request::from_parts(parts, kube::client::Body::from(body.to_vec()));
    match client.send(request).await {
        Ok(response) => {
            let (mut parts, body) = response.into_parts();
            for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
                parts.headers.remove(name);
            }
            let stream = http_body_util::BodyExt::into_data_stream(body).take_until(token.cancelled_owned());
            Response::from_parts(parts, Body::from_stream(stream))
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// A refusal as the API server words it.
pub fn refusal(code: u16, reason: &str, message: &str) -> Response {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::RETRY_AFTER, "1")];
    (StatusCode::from_u16(code).unwrap(), headers, status.to_string()).into_response()
}

/// The one event of a watch that begins too long ago.
pub fn expired() -> Response {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": 410, "reason": "Expired", "message": "too old resource version: 1 (2)",
    });
    let event = json!({"type": "ERROR", "object": status});
    ([(header::CONTENT_TYPE, "application/json")], format!("{event}\n")).into_response()
}

/// Whether a request is a watch.
pub fn is_watch(parts: &Parts) -> bool {
    parts.uri.query().is_some_and(|query| query.contains("watch=true"))
}
