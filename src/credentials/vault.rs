//! Secrets of a key-value engine, version 2, of Vault or OpenBao.
//!
//! Two calls: a login that gives a token, unless there is one, and the read. A login is made for
//! each read: reads are minutes apart, and a token that is not kept need not be renewed or wiped.

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::Url;

use super::{
    ObtainError, Obtained, Source,
    http::{self, Answer, shown},
    schedule,
};
use crate::api::mcp_server::VaultCredential;

/// Who asks.
#[derive(Debug)]
pub enum Login {
    /// The holder of a token.
    Token(SecretString),
    /// A ServiceAccount.
    Jwt {
        /// Path of the auth method.
        mount: String,
        /// Role to log in as.
        role: String,
        /// The account's token.
        jwt: SecretString,
    },
}

/// A key of a secret.
#[derive(Debug)]
pub struct KeyValue {
    base: Url,
    http: reqwest::Client,
    namespace: Option<String>,
    mount: String,
    path: String,
    key: String,
    login: Login,
}

impl KeyValue {
    /// A reader, given what its declaration refers to.
    ///
    /// # Errors
    /// When the declaration, or what it refers to, cannot be used.
    pub fn new(declared: &VaultCredential, login: Login, authority: Option<&[u8]>) -> Result<Self, ObtainError> {
        let base = http::sound_url("address", &declared.address)?;
        for path in [&declared.mount, &declared.path] {
            if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
                return Err(ObtainError::Invalid(format!("{path:?} is no path of Vault: leave out `.` and `..`")));
            }
        }
        let http = http::client(&base, authority)?;
        Ok(Self {
            base,
            http,
            namespace: declared.vault_namespace.clone(),
            mount: declared.mount.clone(),
            path: declared.path.clone(),
            key: declared.key.clone(),
            login,
        })
    }

    /// The URL of a path of the API, whose parts are escaped.
    fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1");
            path.extend(parts.iter().flat_map(|part| part.split('/')));
        }
        url
    }

    async fn ask(&self, url: &Url, request: reqwest::RequestBuilder) -> Result<Answer, ObtainError> {
        let request = request.header("X-Vault-Request", "true");
        let request = match &self.namespace {
            Some(namespace) => request.header("X-Vault-Namespace", namespace),
            None => request,
        };
        http::ask(url, request).await
    }

    async fn token(&self) -> Result<SecretString, ObtainError> {
        let (mount, role, jwt) = match &self.login {
            Login::Token(token) => return Ok(token.clone()),
            Login::Jwt { mount, role, jwt } => (mount, role, jwt),
        };
        let url = self.url(&["auth", mount, "login"]);
        let body = json!({"role": role, "jwt": jwt.expose_secret()}).to_string();
        let request = self.http.post(url.as_str()).header(::http::header::CONTENT_TYPE, "application/json");
        let answer = self.ask(&url, request.body(body)).await?;
        if answer.status != 200 {
            let remedy = "check that the role is bound to the ServiceAccount, its namespace and the audience, and that auth.kubernetes.mount is right";
            return Err(refusal(&url, answer.status, remedy));
        }
        let json = answer.body.json().unwrap_or_default();
        match json["auth"]["client_token"].as_str().filter(|token| !token.is_empty()) {
            Some(token) => Ok(token.to_owned().into()),
            None => Err(ObtainError::Answer { url: shown(&url), why: "its login gives no token".into() }),
        }
    }

    fn read(&self, url: &Url, answer: &Answer, now: Timestamp) -> Result<Obtained, ObtainError> {
        let json = answer.body.json();
        let (mount, path, key) = (&self.mount, &self.path, &self.key);
        let absent = |why: String| Err(ObtainError::NotFound(format!("{}: {why}", shown(&self.base))));
        match answer.status {
            200 => {}
            // A version that was deleted is a 404 with its metadata.
            404 if json.as_ref().is_some_and(|j| j["data"]["metadata"].is_object()) => {
                return absent(format!(
                    "the newest version of {path:?} in {mount:?} was deleted: write a new one, or undelete it"
                ));
            }
            404 => {
                return absent(format!(
                    "there is no secret {path:?} in the engine {mount:?}: check mount and path, and that the engine is of version 2"
                ));
            }
            status => {
                let remedy = match self.login {
                    Login::Token(_) => {
                        "its token has ended, or its policy does not let it read the path: put a good token into the Secret that auth.tokenFrom names"
                    }
                    Login::Jwt { .. } => "let the policy of the role read the path",
                };
                return Err(refusal(url, status, remedy));
            }
        }
        let unfit = |why: &str| ObtainError::Answer { url: shown(url), why: why.into() };
        let json = json.ok_or_else(|| unfit("it is no JSON"))?;
        let data = &json["data"]["data"];
        if !data.is_object() || !json["data"]["metadata"].is_object() {
            return Err(unfit("it is not that of a key-value engine of version 2: check mount"));
        }
        let value = match &data[key] {
            Value::Null => return absent(format!("the secret {path:?} in {mount:?} has no key {key:?}: check key")),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let lease = json["lease_duration"].as_u64().filter(|s| *s > 0).map(|s| schedule::end(now, s));
        // When the version is to be deleted (delete_version_after); empty when never.
        let deletion = json["data"]["metadata"]["deletion_time"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
        let expires = lease.into_iter().chain(deletion).min();
        Ok(Obtained { value: value.into_bytes().into(), expires })
    }
}

fn refusal(url: &Url, status: u16, remedy: &'static str) -> ObtainError {
    let url = shown(url);
    match status {
        400..=428 | 430..=499 => ObtainError::Refused { url, why: format!("HTTP {status}"), remedy },
        503 => ObtainError::Unreachable { url, why: "HTTP 503: Vault is sealed or in maintenance".into() },
        status => ObtainError::Unreachable { url, why: format!("HTTP {status}") },
    }
}

#[async_trait]
impl Source for KeyValue {
    async fn obtain(&self, now: Timestamp) -> Result<Obtained, ObtainError> {
        let token = self.token().await?;
        let mut header = ::http::HeaderValue::from_str(token.expose_secret())
            .map_err(|_| ObtainError::Invalid("the Vault token has characters that no token has".into()))?;
        header.set_sensitive(true);
        let url = self.url(&[&self.mount, "data", &self.path]);
        let answer = self.ask(&url, self.http.get(url.as_str()).header("X-Vault-Token", header)).await?;
        self.read(&url, &answer, now)
    }
}
