//! An OAuth 2 token endpoint on loopback, for the grant `client_credentials`, that can be told to
//! refuse, and can go away and come back.

#![allow(dead_code, reason = "no test binary needs all of it")]

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The client that the endpoint knows.
pub const CLIENT: &str = "perch-client";

#[derive(Debug)]
struct Facts {
    /// Begins each token.
    prefix: String,
    secret: String,
    /// Seconds that a token lasts.
    lifetime: u64,
    issued: usize,
}

type Shared = Arc<Mutex<Facts>>;

/// A token endpoint.
pub struct TokenEndpoint {
    pub url: String,
    address: SocketAddr,
    facts: Shared,
    running: Option<(CancellationToken, std::thread::JoinHandle<()>)>,
}

impl TokenEndpoint {
    /// Gives tokens `PREFIX-1`, `PREFIX-2` and so on to the client with this secret.
    pub fn start(prefix: &str, secret: &str, lifetime: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let facts = Facts { prefix: prefix.into(), secret: secret.into(), lifetime, issued: 0 };
        let mut endpoint =
            Self { url: format!("http://{address}/token"), address, facts: Arc::new(Mutex::new(facts)), running: None };
        endpoint.serve(listener);
        endpoint
    }

    /// How many tokens were given.
    pub fn issued(&self) -> usize {
        self.facts.lock().unwrap().issued
    }

    /// Tokens last so long from now on.
    pub fn last(&self, lifetime: u64) {
        self.facts.lock().unwrap().lifetime = lifetime;
    }

    /// The client has another secret from now on.
    pub fn change_secret(&self, secret: &str) {
        self.facts.lock().unwrap().secret = secret.into();
    }

    /// Nobody listens any more.
    pub fn stop(&mut self) {
        let (stop, thread) = self.running.take().unwrap();
        stop.cancel();
        thread.join().unwrap();
    }

    /// Listens again where it did before.
    pub fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let (facts, stop) = (Arc::clone(&self.facts), CancellationToken::new());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let app = axum::Router::new().route("/token", post(token)).with_state(facts);
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    served = axum::serve(listener, app) => served.unwrap(),
                    () = stopped.cancelled() => {}
                }
            });
        });
        self.running = Some((stop, thread));
    }
}

impl Drop for TokenEndpoint {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.stop();
        }
    }
}

async fn token(State(facts): State<Shared>, headers: HeaderMap, body: String) -> (StatusCode, axum::Json<Value>) {
    let mut facts = facts.lock().unwrap();
    let known = format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{}", facts.secret)));
    let shown = headers.get("authorization").and_then(|v| v.to_str().ok());
    if shown != Some(known.as_str()) {
        return (StatusCode::UNAUTHORIZED, axum::Json(json!({"error": "invalid_client"})));
    }
    if !body.split('&').any(|pair| pair == "grant_type=client_credentials") {
        return (StatusCode::BAD_REQUEST, axum::Json(json!({"error": "unsupported_grant_type"})));
    }
    facts.issued += 1;
    let token = format!("{}-{}", facts.prefix, facts.issued);
    let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": facts.lifetime});
    (StatusCode::OK, axum::Json(answer))
}
