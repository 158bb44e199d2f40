//! An issuer of tokens: its keys, where they come from and how long they are believed.
//!
//! Keys are fetched when the first token needs them and again when they are old, or when a token
//! names one that is not among them, though only so often: whoever can send a token could else make
//! the gateway flood the issuer. While the issuer is away, keys that are known go on to be good, and
//! others are not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use serde_json::Value;
use url::Url;

use super::{
    Identity,
    api_key::Hash,
    cache::Cache,
    challenge::Refusal,
    file::IssuerEntry,
    identity,
    jwt::{self, Algorithm, Key, Token, TokenError},
};

/// Longest answer of an issuer.
const LONGEST: usize = 1 << 20;
/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time after which one more fetch for unknown keys is free.
const PAUSE: Duration = Duration::from_secs(10);
/// Fetches for unknown keys that may follow at once.
const FETCHES: u32 = 5;
/// Tokens whose signature was found good, by issuer.
const VERIFIED: usize = 20_000;
/// Longest that a verified token is remembered.
const REMEMBERED: Duration = Duration::from_secs(300);

/// An issuer.
#[derive(Debug)]
pub struct Issuer {
    /// What was written about it.
    pub entry: IssuerEntry,
    /// The certificates that its own must be signed by, if they were given.
    pub authority: Option<Vec<u8>>,
    /// Audiences that stand for the whole gateway.
    audiences: Vec<String>,
    algorithms: Vec<Algorithm>,
    leeway: i64,
    refresh: Duration,
    url: Url,
    jwks: Option<Url>,
    http: reqwest::Client,
    keys: ArcSwapOption<KeySet>,
    fetching: tokio::sync::Mutex<Fetches>,
}

/// Keys, and the tokens that they verified.
#[derive(Debug)]
struct KeySet {
    keys: HashMap<String, Key>,
    fetched: Mutex<Instant>,
    verified: Cache<Hash, Arc<Verified>>,
}

/// A token that is good, as long as its time is.
#[derive(Clone, Debug)]
struct Verified {
    identity: Identity,
    audiences: Vec<String>,
    scopes: Vec<String>,
    until: i64,
    from: i64,
}

#[derive(Debug)]
struct Fetches {
    /// When as many fetches as may follow at once are free again.
    full: Option<Instant>,
    /// Why the last one failed.
    failure: Option<String>,
}

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0} did not answer: {1}")]
    Away(Url, String),
    #[error("{0} answered HTTP {1}")]
    Status(Url, u16),
    #[error("{0} is longer than {LONGEST} bytes")]
    TooLong(Url),
    #[error("{0} is no JSON")]
    NoJson(Url),
    #[error("{url} is the metadata of {found:?}, not of {wanted:?}")]
    WrongIssuer { url: Url, found: String, wanted: String },
    #[error("{0} names no keys at an https URL (jwks_uri)")]
    NoKeys(Url),
    #[error("{0} holds no key that verifies signatures")]
    Empty(Url),
}

impl Issuer {
    /// An issuer, or what is wrong with what was written about it.
    pub fn new(entry: IssuerEntry, authority: Option<Vec<u8>>, resource: &str) -> Result<Self, String> {
        let bad = |why: String| format!("the issuer {:?} {why}", entry.issuer);
        let url = sound_url(&entry.issuer).ok_or_else(|| {
            bad("is no https URL without query and fragment (http only on this machine), as tokens have it in `iss`".into())
        })?;
        let jwks = entry.jwks_uri.as_ref().map(|uri| {
            sound_url(uri).ok_or_else(|| bad("has a jwksUri that is no https URL (http only on this machine)".into()))
        });
        let jwks = jwks.transpose()?;
        let algorithms = match &entry.algorithms {
            None => Algorithm::ALL.to_vec(),
            Some(names) => {
                let named = names.iter().map(|name| {
                    let known = Algorithm::ALL.map(|a| format!("{a:?}")).join(", ");
                    Algorithm::named(name)
                        .ok_or_else(|| bad(format!("has the algorithm {name:?}: take some of {known}")))
                });
                named.collect::<Result<_, _>>()?
            }
        };
        let audiences = entry.audiences.clone().unwrap_or_else(|| vec![resource.to_owned(), format!("{resource}/")]);
        if algorithms.is_empty() || audiences.iter().any(String::is_empty) {
            return Err(bad("has no algorithm, or an empty audience".into()));
        }
        let http = client(&url, authority.as_deref()).map_err(|error| {
            bad(format!("cannot be asked for its keys: {error}; set certificateAuthority to a file with certificates"))
        })?;
        let leeway = entry.leeway.map_or(30, |l| i64::try_from(l.to_std().as_secs()).unwrap_or(i64::MAX));
        let refresh = entry.refresh.map_or(Duration::from_secs(600), crate::api::quantity::Duration::to_std);
        let fetching = tokio::sync::Mutex::new(Fetches { full: None, failure: None });
        let keys = ArcSwapOption::empty();
        Ok(Self { entry, authority, audiences, algorithms, leeway, refresh, url, jwks, http, keys, fetching })
    }

    /// Who shows a token that was found good before; nothing when it must be looked at.
    pub fn known(self: &Arc<Self>, hash: &Hash, own: &[String], now: Timestamp) -> Option<Result<Identity, Refusal>> {
        let keys = self.keys.load_full()?;
        self.keep_fresh(&keys);
        let verified = keys.verified.get(hash, Instant::now())?;
        Some(self.admit(&verified, own, now.as_second()))
    }

    /// Who shows a token. `own` are the audiences that stand for what is asked for.
    pub async fn identify(
        self: &Arc<Self>,
        token: Token<'_>,
        hash: Hash,
        own: &[String],
        now: Timestamp,
    ) -> Result<Identity, Refusal> {
        let id = token.key_id().ok_or_else(|| invalid(TokenError::NoKey))?.to_owned();
        let (keys, key) = self.key(&id).await?;
        let claims = token.verify(&key, &self.algorithms).map_err(invalid)?;
        let until = jwt::check_times(&claims, now.as_second(), self.leeway).map_err(invalid)?;
        if claims.get("iss").and_then(Value::as_str) != Some(&self.entry.issuer) {
            return Err(Refusal::Invalid("another issuer made it".into()));
        }
        let verified = Arc::new(Verified {
            identity: self.user(&claims)?,
            audiences: jwt::audiences(&claims),
            scopes: jwt::scopes(&claims),
            until,
            from: now.as_second(),
        });
        keys.verified.put(hash, Arc::clone(&verified), Instant::now(), REMEMBERED);
        self.admit(&verified, own, now.as_second())
    }

    /// What can change although a token's signature stays good.
    fn admit(&self, token: &Verified, own: &[String], now: i64) -> Result<Identity, Refusal> {
        // A clock that was set back must not bring a token back either.
        if now >= token.until || now < token.from.saturating_sub(self.leeway) {
            return Err(invalid(TokenError::Expired));
        }
        if !token.audiences.iter().any(|a| self.audiences.contains(a) || own.contains(a)) {
            return Err(Refusal::Invalid("it is meant for another resource (audience)".into()));
        }
        if !self.entry.required_scopes.iter().all(|scope| token.scopes.contains(scope)) {
            return Err(Refusal::Scope(self.entry.required_scopes.clone()));
        }
        Ok(token.identity.clone())
    }

    fn user(&self, claims: &serde_json::Map<String, Value>) -> Result<Identity, Refusal> {
        let entry = &self.entry;
        let refuse = |why: String| Err(Refusal::Invalid(why));
        let Some(user) = jwt::claim(claims, &entry.user_claim).and_then(Value::as_str).filter(|u| !u.is_empty()) else {
            return refuse(format!("it has no claim {:?} that names a user", entry.user_claim));
        };
        let unverified = claims.get("email_verified").is_some_and(|v| *v != Value::Bool(true));
        if entry.user_claim == "email" && unverified {
            return refuse("its email address is not verified".into());
        }
        let groups = entry.groups_claim.as_ref().and_then(|name| jwt::claim(claims, name)).map(jwt::texts);
        let groups = groups.unwrap_or_default().into_iter().map(|group| format!("{}{group}", entry.groups_prefix));
        let prefix = entry.user_prefix.as_deref().unwrap_or_default();
        identity(format!("{prefix}{user}"), groups).or_else(|why| refuse(format!("its user {why}")))
    }

    /// The key of this id, fetched if need be.
    async fn key(&self, id: &str) -> Result<(Arc<KeySet>, Key), Refusal> {
        let find = |keys: Arc<KeySet>| keys.keys.get(id).cloned().map(|key| (keys, key));
        let before = self.keys.load_full();
        if let Some(found) = before.clone().and_then(find) {
            return Ok(found);
        }
        let mut fetches = self.fetching.lock().await;
        // Who held the lock may have fetched just what is wanted.
        if let Some(found) = self.keys.load_full().and_then(find) {
            return Ok(found);
        }
        let now = Instant::now();
        let full = fetches.full.map_or(now, |full| full.max(now));
        if full.duration_since(now) <= PAUSE * (FETCHES - 1) {
            fetches.full = Some(full + PAUSE);
            self.fetch(&mut fetches).await;
            if let Some(found) = self.keys.load_full().and_then(find) {
                return Ok(found);
            }
        }
        match &fetches.failure {
            Some(_) => Err(Refusal::Unavailable(
                "the keys of the token's issuer cannot be fetched now: try again later".into(),
            )),
            None => Err(Refusal::Invalid("its issuer has no such key".into())),
        }
    }

    /// Fetches keys that are old, beside the request that needs them.
    fn keep_fresh(self: &Arc<Self>, keys: &KeySet) {
        let mut fetched = keys.fetched.lock().expect("nobody panics while holding a time");
        if fetched.elapsed() < self.refresh {
            return;
        }
        // The next try, if this one fails.
        *fetched = Instant::now();
        drop(fetched);
        let issuer = Arc::clone(self);
        tokio::spawn(async move {
            let mut fetches = issuer.fetching.lock().await;
            issuer.fetch(&mut fetches).await;
        });
    }

    async fn fetch(&self, fetches: &mut Fetches) {
        match self.fetched().await {
            Ok(keys) => {
                fetches.failure = None;
                match self.keys.load_full() {
                    // What they verified is still good.
                    Some(known) if known.keys == keys => {
                        *known.fetched.lock().expect("nobody panics while holding a time") = Instant::now();
                    }
                    _ => {
                        tracing::info!(issuer = self.entry.issuer, keys = keys.len(), "keys of an issuer");
                        let fetched = Mutex::new(Instant::now());
                        self.keys.store(Some(Arc::new(KeySet { keys, fetched, verified: Cache::new(VERIFIED) })));
                    }
                }
            }
            Err(error) => {
                tracing::warn!(issuer = self.entry.issuer, %error, "the keys of an issuer cannot be fetched");
                fetches.failure = Some(error.to_string());
            }
        }
    }

    async fn fetched(&self) -> Result<HashMap<String, Key>, FetchError> {
        let uri = match &self.jwks {
            Some(uri) => uri.clone(),
            None => self.discovered().await?,
        };
        let set = self.get(&uri).await?;
        let keys = set.get("keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let keys: HashMap<_, _> = keys.iter().filter_map(Key::parse).collect();
        if keys.is_empty() { Err(FetchError::Empty(uri)) } else { Ok(keys) }
    }

    /// Where the keys are, by OAuth 2 authorization server metadata (RFC 8414) or OpenID Connect
    /// discovery, in the order that the MCP specification gives.
    async fn discovered(&self) -> Result<Url, FetchError> {
        let mut failure = None;
        for url in metadata_urls(&self.url) {
            let metadata = match self.get(&url).await {
                Ok(metadata) => metadata,
                Err(error) => {
                    // Silence tells more than a 404 that follows it.
                    failure = failure.or(Some(error));
                    continue;
                }
            };
            let found = metadata.get("issuer").and_then(Value::as_str).unwrap_or_default();
            if found != self.entry.issuer {
                return Err(FetchError::WrongIssuer { url, found: found.into(), wanted: self.entry.issuer.clone() });
            }
            let uri = metadata.get("jwks_uri").and_then(Value::as_str).and_then(sound_url);
            return uri.ok_or(FetchError::NoKeys(url));
        }
        Err(failure.unwrap_or_else(|| FetchError::NoKeys(self.url.clone())))
    }

    async fn get(&self, url: &Url) -> Result<Value, FetchError> {
        let away = |error: reqwest::Error| {
            let mut error: &dyn std::error::Error = &error;
            while let Some(source) = error.source() {
                error = source;
            }
            FetchError::Away(url.clone(), error.to_string())
        };
        let request = self.http.get(url.as_str()).header(http::header::ACCEPT, "application/json");
        let mut response = request.send().await.map_err(away)?;
        if !response.status().is_success() {
            return Err(FetchError::Status(url.clone(), response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST {
                return Err(FetchError::TooLong(url.clone()));
            }
        }
        serde_json::from_slice(&body).map_err(|_| FetchError::NoJson(url.clone()))
    }
}

fn invalid(error: TokenError) -> Refusal {
    Refusal::Invalid(error.to_string())
}

/// A URL that cannot be tampered with on the way.
fn sound_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let local = match url.host()? {
        url::Host::Domain(name) => name == "localhost",
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    };
    let sound = url.scheme() == "https" || url.scheme() == "http" && local;
    (sound && url.query().is_none() && url.fragment().is_none() && url.username().is_empty()).then_some(url)
}

fn metadata_urls(issuer: &Url) -> Vec<Url> {
    let path = issuer.path().trim_end_matches('/').to_owned();
    let mut paths = vec![
        format!("/.well-known/oauth-authorization-server{path}"),
        format!("/.well-known/openid-configuration{path}"),
    ];
    if !path.is_empty() {
        paths.push(format!("{path}/.well-known/openid-configuration"));
    }
    let at = |path: String| {
        let mut url = issuer.clone();
        url.set_path(&path);
        url
    };
    paths.into_iter().map(at).collect()
}

/// A client that follows nobody elsewhere.
fn client(url: &Url, authority: Option<&[u8]>) -> reqwest::Result<reqwest::Client> {
    let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE);
    let builder = match authority {
        Some(pem) => builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?),
        // Without certificates on the machine, as in an empty image, loading them would fail.
        None if url.scheme() == "http" => builder.tls_certs_only([]),
        None => builder,
    };
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_where_the_specifications_say() {
        let urls =
            |issuer: &str| metadata_urls(&issuer.parse().unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            urls("https://login.example.com"),
            [
                "https://login.example.com/.well-known/oauth-authorization-server",
                "https://login.example.com/.well-known/openid-configuration",
            ]
        );
        assert_eq!(
            urls("https://login.example.com/realms/a/"),
            [
                "https://login.example.com/.well-known/oauth-authorization-server/realms/a",
                "https://login.example.com/.well-known/openid-configuration/realms/a",
                "https://login.example.com/realms/a/.well-known/openid-configuration",
            ]
        );
    }

    #[test]
    fn only_urls_that_nobody_can_tamper_with() {
        for sound in ["https://a.example", "http://127.0.0.1:8080/x", "http://localhost:1", "http://[::1]:1"] {
            assert!(sound_url(sound).is_some(), "{sound}");
        }
        for bad in [
            "http://a.example",
            "http://localhost.a.example",
            "https://a.example?x",
            "https://u@a.example",
            "ftp://a",
            "a",
        ] {
            assert!(sound_url(bad).is_none(), "{bad}");
        }
    }
}
