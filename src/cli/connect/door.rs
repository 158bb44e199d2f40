//! The way to the gateway: where it is, what is shown to it, and how a request gets there.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::time::Instant;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use url::Url;

use crate::{
    cli::{args::Connect, data_dir::DataDir, exit::Failure},
    gateway::reply::RESTARTING,
};

/// The variable with the token or API key.
pub const TOKEN: &str = "PERCH_TOKEN";

/// Time to open a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// First and longest pause between two tries to reach a gateway.
const PAUSE: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));
/// Largest answer that is read as a whole.
pub const LIMIT: usize = 64 * 1024 * 1024;

/// Where the gateway is.
#[derive(Debug)]
enum Place {
    /// Where the perch that holds this directory says.
    Data(DataDir),
    /// At one address.
    Fixed,
}

/// Reaches one endpoint of the gateway.
pub struct Door {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    place: Place,
    /// The gateway's base URL, as it was last.
    base: Mutex<Url>,
    /// Path of the endpoint, on the base; the base is the endpoint when it is empty.
    path: String,
    token_file: Option<PathBuf>,
    token: Mutex<Option<HeaderValue>>,
    /// How long a gateway that is not there is waited for.
    pub patience: Duration,
}

/// An answer, its body still on the way.
pub type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing was done.
    #[error("the gateway cannot be reached: {0}")]
    Unsent(String),
    /// The request was sent; whether it was done, nobody knows.
    #[error("the gateway broke off: {0}")]
    Broken(String),
}

impl Door {
    /// Finds the gateway, and the endpoint that the arguments name.
    pub async fn find(args: &Connect) -> Result<Self, Failure> {
        let (place, base) = match &args.url {
            Some(url) if matches!(url.scheme(), "http" | "https") => (Place::Fixed, url.clone()),
            Some(url) => return Err(Failure::usage(format!("{url} is no http:// or https:// URL"))),
            None => {
                let data = DataDir::find(&args.data_dir)?;
                let base = running(&data).ok_or_else(|| {
                    Failure::failed(format!(
                        "no perch is running on {}: start one with `perch up`, say with --data-dir where it is, or with --url which gateway to use",
                        data.root().display()
                    ))
                })?;
                (Place::Data(data), base)
            }
        };
        let mut door = Self {
            client: client(args.ca_file.as_ref())?,
            place,
            base: Mutex::new(base),
            path: String::new(),
            token_file: args.token_file.clone(),
            token: Mutex::default(),
            patience: Duration::from_secs(args.wait),
        };
        door.read_token()?;
        let is_endpoint = args.url.as_ref().is_some_and(|url| url.path().trim_end_matches('/').ends_with("/mcp"));
        match (is_endpoint, &args.name) {
            (true, Some(_)) => {
                return Err(Failure::usage("--url names an endpoint already: leave the name out, or the path"));
            }
            (true, None) => {}
            (false, name) => door.path = door.choose(name.as_deref(), &args.namespace).await?,
        }
        Ok(door)
    }

    /// The endpoint's URL, for people.
    pub fn url(&self) -> String {
        self.uri(&self.path)
    }

    /// The path of the one that is meant, as the gateway lists it.
    async fn choose(&self, name: Option<&str>, namespace: &str) -> Result<String, Failure> {
        let index = self.index().await?;
        // The gateway lists servers, and what else has an endpoint.
        let found =
            index.as_object().into_iter().flat_map(|kinds| kinds.values().filter_map(Value::as_array)).flatten();
        let found: Vec<(String, &str)> = found
            .filter_map(|e| {
                let key = format!("{}/{}", e["namespace"].as_str()?, e["name"].as_str()?);
                Some((key, e["url"].as_str()?))
            })
            .collect();
        let list = || found.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", ");
        let path_of = |url: &str| url.parse::<Uri>().map(|uri| uri.path().to_owned()).unwrap_or_default();
        let Some(name) = name else {
            return match found.as_slice() {
                [(_, url)] => Ok(path_of(url)),
                [] => Err(Failure::failed("the gateway serves nothing that you may use: apply an McpServer first")),
                _ => Err(Failure::usage(format!("say which one of {}", list()))),
            };
        };
        let (namespace, name) = name.split_once('/').unwrap_or((namespace, name));
        let (name, revision) = name.split_once('@').map_or((name, None), |(name, revision)| (name, Some(revision)));
        let key = format!("{namespace}/{name}");
        let Some((_, url)) = found.iter().find(|(k, _)| *k == key) else {
            let there = if found.is_empty() { "nothing is there".to_owned() } else { format!("there is {}", list()) };
            return Err(Failure::failed(format!(
                "there is no server or toolbox {key} that you may use at {}: {there}",
                self.uri("/")
            )));
        };
        let path = path_of(url);
        Ok(match revision {
            Some(revision) => path.replacen(&format!("/{name}/"), &format!("/{name}@{revision}/"), 1),
            None => path,
        })
    }

    /// What the gateway serves.
    async fn index(&self) -> Result<Value, Failure> {
        let at = self.uri("/");
        let failed = |why: &dyn std::fmt::Display| Failure::failed(format!("{at}: {why}"));
        let answer = self.request(Method::GET, "/", HeaderMap::new(), Bytes::new()).await.map_err(|e| failed(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LIMIT).collect().await.map_err(|error| failed(&error))?.to_bytes();
        let said: Option<Value> = serde_json::from_slice(&body).ok();
        let why =
            said.as_ref().and_then(|said| said["error"]["message"].as_str().or(said["error_description"].as_str()));
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        match status {
            StatusCode::OK if said.as_ref().is_some_and(|said| said["servers"].is_array()) => {
                Ok(said.unwrap_or_default())
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(failed(&format!(
                "the gateway does not let you in (HTTP {status}){why}: set {TOKEN} to a token or API key, or name a file with --token-file"
            ))),
            _ => Err(failed(&format!("this is no gateway of perch (HTTP {status}){why}"))),
        }
    }

    fn uri(&self, path: &str) -> String {
        let base = self.base.lock().expect("nobody panics while holding the URL");
        if path.is_empty() { base.to_string() } else { format!("{}{path}", base.as_str().trim_end_matches('/')) }
    }

    /// Looks again where the gateway is.
    fn look(&self) {
        if let Place::Data(data) = &self.place
            && let Some(url) = running(data)
        {
            *self.base.lock().expect("nobody panics while holding the URL") = url;
        }
    }

    /// Reads the token; true when it is another one than before.
    fn read_token(&self) -> Result<bool, Failure> {
        let (read, from) = match &self.token_file {
            Some(path) => {
                let read = std::fs::read_to_string(path);
                let read = read.map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
                (Some(read), path.display().to_string())
            }
            None => (std::env::var(TOKEN).ok(), TOKEN.to_owned()),
        };
        let token = match read.as_deref().map(str::trim).filter(|token| !token.is_empty()) {
            None if self.token_file.is_some() => return Err(Failure::failed(format!("{from} is empty"))),
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                    Failure::failed(format!("{from} holds what is no token: it has control characters"))
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut known = self.token.lock().expect("nobody panics while holding the token");
        let changed = *known != token;
        *known = token;
        Ok(changed)
    }

    /// Sends a request to the endpoint and gives the head of the answer. A gateway that is not
    /// there, or that is just starting, is waited for: then nothing was done, and trying again is safe.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&self, method: Method, headers: HeaderMap, body: Bytes) -> Result<Answer, SendError> {
        self.request(method, &self.path, headers, body).await
    }

    async fn request(&self, method: Method, path: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, SendError> {
        let deadline = Instant::now() + self.patience;
        let mut pause = PAUSE.0;
        let mut may_read_token = true;
        loop {
            let why = match self.once(&method, path, &headers, &body).await? {
                Tried::Answer(answer) if answer.status() == StatusCode::UNAUTHORIZED && may_read_token => {
                    may_read_token = false;
                    match self.read_token() {
                        Ok(true) => continue,
                        Ok(false) => return Ok(answer),
                        Err(failure) => {
                            tracing::warn!(%failure, "the token cannot be read again");
                            return Ok(answer);
                        }
                    }
                }
                Tried::Answer(answer) => return Ok(answer),
                Tried::NotNow(why) => why,
            };
            if Instant::now() + pause > deadline {
                return Err(SendError::Unsent(why));
            }
            tracing::debug!(%why, "the gateway is waited for");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
            self.look();
        }
    }

    async fn once(&self, method: &Method, path: &str, headers: &HeaderMap, body: &Bytes) -> Result<Tried, SendError> {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = self.uri(path).parse().map_err(|error| SendError::Unsent(format!("{error}")))?;
        *request.headers_mut() = headers.clone();
        let token = self.token.lock().expect("nobody panics while holding the token").clone();
        if let Some(token) = token {
            request.headers_mut().insert(header::AUTHORIZATION, token);
        }
        let answer = match self.client.request(request).await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => return Ok(Tried::NotNow(innermost(&error))),
            Err(error) => return Err(SendError::Broken(innermost(&error))),
        };
        if answer.status() != StatusCode::SERVICE_UNAVAILABLE {
            return Ok(Tried::Answer(answer.map(BodyExt::boxed_unsync)));
        }
        // A server that is down is the client's news; a gateway that starts is none.
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, LIMIT).collect().await.map_err(|error| SendError::Broken(error.to_string()))?;
        let body = body.to_bytes();
        let said: Option<Value> = serde_json::from_slice(&body).ok();
        let error = said.as_ref().map(|said| &said["error"]);
        match error {
            Some(error) if error["data"]["reason"] == RESTARTING => {
                Ok(Tried::NotNow(error["message"].as_str().unwrap_or_default().to_owned()))
            }
            _ => Ok(Tried::Answer(Response::from_parts(
                parts,
                Full::new(body).map_err(|never| match never {}).boxed_unsync(),
            ))),
        }
    }
}

/// How one try went.
enum Tried {
    Answer(Answer),
    /// Nothing was done, and soon it can be.
    NotNow(String),
}

/// The gateway of the perch that holds a directory.
fn running(data: &DataDir) -> Option<Url> {
    Url::parse(&data.holder()?.gateway).ok()
}

fn client(ca_file: Option<&PathBuf>) -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>, Failure> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    let provider = Arc::new(ring::default_provider());
    let builder = HttpsConnectorBuilder::new();
    let builder = match ca_file {
        None => builder
            .with_provider_and_native_roots(provider)
            .or_else(|error| {
                // A gateway in plain HTTP needs none.
                tracing::debug!(%error, "the machine has no root certificates");
                trusting(RootCertStore::empty()).map(|config| HttpsConnectorBuilder::new().with_tls_config(config))
            })
            .map_err(|error| Failure::failed(error.to_string()))?,
        Some(path) => {
            let bad = |why: &dyn std::fmt::Display| Failure::failed(format!("{}: {why}", path.display()));
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(&error))? {
                roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
            }
            if roots.is_empty() {
                return Err(bad(&"there is no certificate in it"));
            }
            builder.with_tls_config(trusting(roots).map_err(|error| bad(&error))?)
        }
    };
    let connector = builder.https_or_http().enable_http1().wrap_connector(connector);
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

fn trusting(roots: RootCertStore) -> Result<ClientConfig, tokio_rustls::rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth())
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
