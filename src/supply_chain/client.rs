//! A client of registries that only reads, and takes in only so much
//! (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md>).

use std::{error::Error as _, sync::Mutex, time::Duration};

use http::StatusCode;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::reference::{Reference, is_loopback};

/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Largest manifest: what the specification asks registries to take.
const MANIFEST: usize = 4 << 20;
/// Largest blob that is read: payloads and bundles, never layers of an image.
const BLOB: usize = 1 << 20;
/// Largest answer of a token server.
const TOKEN: usize = 64 << 10;
/// Redirects that are followed: registries send readers of blobs to their stores.
const REDIRECTS: usize = 3;

/// Every form that a manifest may have.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";

/// Why a registry said nothing of use. The words never hold anything that it sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    #[error("registry {0} does not answer: {1}")]
    Unreachable(String, String),
    #[error("registry {0} answered {1}")]
    Refused(String, u16),
    #[error("registry {0} asks who it is, and Perch has no credentials for registries: let everybody read there")]
    Unauthorized(String),
    #[error("registry {0} sent more than {1} bytes")]
    TooLarge(String, usize),
    #[error("registry {0} sent something else than what it was asked for")]
    Mismatch(String),
}

/// Connections to registries.
#[derive(Clone, Debug)]
pub(super) struct Client {
    far: reqwest::Client,
    /// For this machine: never by way of a proxy.
    near: reqwest::Client,
}

/// Questions about one repository; what it takes to be let in is kept between them.
pub(super) struct Session<'a> {
    client: &'a Client,
    reference: &'a Reference,
    token: Mutex<Option<String>>,
}

impl Client {
    pub fn new() -> reqwest::Result<Self> {
        let builder = || {
            let follow = reqwest::redirect::Policy::custom(|attempt| {
                let secure = attempt.url().scheme() == "https";
                let begin = attempt.previous().first();
                let near = |url: &Url| url.host_str().is_some_and(is_loopback);
                let stays = near(attempt.url()) && begin.is_some_and(near);
                if (secure || stays) && attempt.previous().len() <= REDIRECTS {
                    attempt.follow()
                } else {
                    attempt.stop()
                }
            });
            reqwest::Client::builder()
                .redirect(follow)
                .connect_timeout(CONNECT)
                .user_agent(concat!("perch/", env!("CARGO_PKG_VERSION")))
        };
        Ok(Self { far: builder().build()?, near: builder().no_proxy().build()? })
    }

    pub fn session<'a>(&'a self, reference: &'a Reference) -> Session<'a> {
        Session { client: self, reference, token: Mutex::default() }
    }

    fn http(&self, near: bool) -> &reqwest::Client {
        if near { &self.near } else { &self.far }
    }
}

impl Session<'_> {
    /// A manifest, by tag or digest, with its digest; none where there is no such one.
    pub async fn manifest(&self, name: &str) -> Result<Option<(Value, String)>, Trouble> {
        let Some(body) = self.get(&format!("manifests/{name}"), MANIFEST).await? else { return Ok(None) };
        let digest = digest_of(&body);
        // A registry is not trusted to give what was asked for.
        if name.starts_with("sha256:") && name != digest {
            return Err(Trouble::Mismatch(self.host()));
        }
        let manifest = serde_json::from_slice(&body).map_err(|_| Trouble::Mismatch(self.host()))?;
        Ok(Some((manifest, digest)))
    }

    /// A small blob; none where there is no such one.
    pub async fn blob(&self, digest: &str) -> Result<Option<Vec<u8>>, Trouble> {
        let Some(body) = self.get(&format!("blobs/{digest}"), BLOB).await? else { return Ok(None) };
        if digest_of(&body) == digest { Ok(Some(body)) } else { Err(Trouble::Mismatch(self.host())) }
    }

    /// What refers to a digest; none where the registry does not know such a question.
    pub async fn referrers(&self, digest: &str) -> Result<Option<Value>, Trouble> {
        let Some(body) = self.get(&format!("referrers/{digest}"), MANIFEST).await? else { return Ok(None) };
        Ok(serde_json::from_slice(&body).ok())
    }

    fn host(&self) -> String {
        self.reference.host.clone()
    }

    async fn get(&self, path: &str, most: usize) -> Result<Option<Vec<u8>>, Trouble> {
        let near = self.reference.is_near();
        let url = self.reference.url(path);
        let mut asked = false;
        loop {
            let mut request = self.client.http(near).get(&url).header("Accept", ACCEPT);
            let token = self.token.lock().expect("nobody panics while holding a token").clone();
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.map_err(|error| self.unreachable(&error))?;
            match response.status() {
                StatusCode::OK => return self.body(response, most).await.map(Some),
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    let token = self.token(&response).await?;
                    *self.token.lock().expect("nobody panics while holding a token") = Some(token);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Trouble::Unauthorized(self.host())),
                status => return Err(Trouble::Refused(self.host(), status.as_u16())),
            }
        }
    }

    /// A token for everybody, from where the registry says.
    async fn token(&self, response: &reqwest::Response) -> Result<String, Trouble> {
        let unauthorized = || Trouble::Unauthorized(self.host());
        let header = response.headers().get("www-authenticate").and_then(|h| h.to_str().ok()).unwrap_or_default();
        let challenge = header.strip_prefix("Bearer ").ok_or_else(unauthorized)?;
        let realm = parameter(challenge, "realm").ok_or_else(unauthorized)?;
        let mut url = Url::parse(realm).map_err(|_| unauthorized())?;
        let near = url.host_str().is_some_and(is_loopback);
        // A registry elsewhere has no business with what listens on this machine.
        if (url.scheme() != "https" && !near) || (near && !self.reference.is_near()) {
            return Err(unauthorized());
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = parameter(challenge, "service") {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &format!("repository:{}:pull", self.reference.repository));
        }
        let answer = self.client.http(near).get(url).send().await.map_err(|error| self.unreachable(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(unauthorized());
        }
        let answer: Value = serde_json::from_slice(&self.body(answer, TOKEN).await?).map_err(|_| unauthorized())?;
        let token = answer["token"].as_str().or_else(|| answer["access_token"].as_str());
        token.map(str::to_owned).ok_or_else(unauthorized)
    }

    async fn body(&self, mut response: reqwest::Response, most: usize) -> Result<Vec<u8>, Trouble> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + chunk.len() > most {
                return Err(Trouble::TooLarge(self.host(), most));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Trouble {
        // The innermost cause says it: "Connection refused", "dns error".
        let mut cause: Option<&dyn std::error::Error> = error.source();
        let mut said =
            if error.is_timeout() { "not in time".to_owned() } else { "the connection broke off".to_owned() };
        while let Some(deeper) = cause {
            said = deeper.to_string();
            cause = deeper.source();
        }
        Trouble::Unreachable(self.host(), said)
    }
}

/// The SHA-256 of some bytes, as registries write it.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// A parameter of a challenge: `realm="https://…",service="…"`.
fn parameter<'a>(challenge: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = challenge;
    loop {
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = after.split_once('"')?;
        if key.trim_start_matches([',', ' ']).eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let challenge = r#"realm="https://auth.example.com/token",service="registry.example.com",scope="a,b""#;
        assert_eq!(parameter(challenge, "realm"), Some("https://auth.example.com/token"));
        assert_eq!(parameter(challenge, "service"), Some("registry.example.com"));
        assert_eq!(parameter(challenge, "error"), None);
        assert_eq!(parameter("realm=", "realm"), None);
    }
}
