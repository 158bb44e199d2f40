//! An issuer of tokens on loopback, with keys that are made for each test.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::routing::get;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// A key of an issuer.
pub struct SigningKey {
    id: String,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    pub fn new(id: &str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        Self { id: id.into(), pair }
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id, "x": x, "y": y})
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": self.id});
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// An issuer that serves its metadata and keys.
pub struct Issuer {
    pub url: String,
    address: SocketAddr,
    keys: Arc<Mutex<Value>>,
    fetches: Arc<AtomicUsize>,
    running: Option<(CancellationToken, std::thread::JoinHandle<()>)>,
}

impl Issuer {
    pub fn start(keys: &[&SigningKey]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let keys = Arc::new(Mutex::new(set(keys)));
        let mut issuer =
            Self { url: format!("http://{address}/realm"), address, keys, fetches: Arc::default(), running: None };
        issuer.serve(listener);
        issuer
    }

    /// The keys from now on.
    pub fn rotate(&self, keys: &[&SigningKey]) {
        *self.keys.lock().unwrap() = set(keys);
    }

    /// How often somebody asked for the keys.
    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
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

    /// Claims of an access token for a resource, which is good for an hour.
    pub fn claims(&self, user: &str, resource: &str) -> Value {
        json!({"iss": self.url, "sub": user, "aud": resource, "exp": now() + 3600, "scope": "mcp:tools other"})
    }

    fn serve(&mut self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let (keys, fetches, url) = (Arc::clone(&self.keys), Arc::clone(&self.fetches), self.url.clone());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let keys_at = format!("{url}/keys");
                let metadata = move || async move { axum::Json(json!({"issuer": url, "jwks_uri": keys_at})) };
                let keys = move || {
                    fetches.fetch_add(1, Ordering::SeqCst);
                    let keys = keys.lock().unwrap().clone();
                    async move { axum::Json(keys) }
                };
                let app = axum::Router::new()
                    // The last place where a client looks.
                    .route("/realm/.well-known/openid-configuration", get(metadata))
                    .route("/realm/keys", get(keys));
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

fn set(keys: &[&SigningKey]) -> Value {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()})
}
