//! A stand-in for Vault on loopback: the read of a key-value engine of version 2, with tokens that can
//! be revoked. It is no Vault; real ones are too large to be built for a test.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::get,
};
use serde_json::{Value, json};

#[derive(Debug, Default)]
struct Facts {
    tokens: Vec<String>,
    /// Versions by path; one that was deleted is null.
    secrets: BTreeMap<String, Vec<Value>>,
    reads: usize,
}

type Shared = Arc<Mutex<Facts>>;

/// The stand-in; it ends with the test.
pub struct Vault {
    pub url: String,
    facts: Shared,
}

impl Vault {
    pub fn start(token: &str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let facts = Arc::new(Mutex::new(Facts { tokens: vec![token.into()], ..Facts::default() }));
        let state = Arc::clone(&facts);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let app = axum::Router::new().route("/v1/secret/data/{*path}", get(read)).with_state(state);
                axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap();
            });
        });
        Self { url, facts }
    }

    /// Writes a new version.
    pub fn put(&self, path: &str, data: &Value) {
        self.facts.lock().unwrap().secrets.entry(path.into()).or_default().push(data.clone());
    }

    /// Deletes the newest version.
    pub fn delete(&self, path: &str) {
        self.facts.lock().unwrap().secrets.entry(path.into()).or_default().push(Value::Null);
    }

    /// How often somebody read.
    pub fn reads(&self) -> usize {
        self.facts.lock().unwrap().reads
    }

    /// The tokens that are good from now on.
    pub fn allow(&self, tokens: &[&str]) {
        self.facts.lock().unwrap().tokens = tokens.iter().map(ToString::to_string).collect();
    }
}

async fn read(
    State(facts): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> (StatusCode, axum::Json<Value>) {
    let mut facts = facts.lock().unwrap();
    facts.reads += 1;
    let token = headers.get("x-vault-token").and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !facts.tokens.iter().any(|t| t == token) {
        return (StatusCode::FORBIDDEN, axum::Json(json!({"errors": ["permission denied"]})));
    }
    let Some(versions) = facts.secrets.get(&path) else {
        return (StatusCode::NOT_FOUND, axum::Json(json!({"errors": []})));
    };
    let newest = versions.last().unwrap();
    let deletion = if newest.is_null() { "2026-01-01T00:00:00Z" } else { "" };
    let metadata = json!({"version": versions.len(), "deletion_time": deletion, "destroyed": false});
    let status = if newest.is_null() { StatusCode::NOT_FOUND } else { StatusCode::OK };
    (status, axum::Json(json!({"lease_duration": 0, "data": {"data": newest, "metadata": metadata}})))
}
