//! Asking others over HTTP: whom, for how long, and what their silence means.

use std::{error::Error, time::Duration};

use secrecy::{ExposeSecret, SecretSlice};
use serde_json::Value;
use tokio_rustls::rustls;
use url::Url;

use super::ObtainError;

/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer.
const LONGEST: usize = 1 << 20;

/// An answer: its status and its body.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body. It may hold a secret, and is wiped when dropped.
    pub body: Body,
}

/// A body that is wiped from memory when dropped.
pub struct Body(SecretSlice<u8>);

impl Body {
    /// The body as JSON; none when it is not.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(self.0.expose_secret()).ok()
    }
}

/// A URL that nobody on the way can tamper with or listen to: https, or this very machine.
pub fn sound_url(field: &str, text: &str) -> Result<Url, ObtainError> {
    let bad = || {
        ObtainError::Invalid(format!(
            "{field} {text:?} is no https URL without user name (http is for this machine alone)"
        ))
    };
    let url = Url::parse(text).map_err(|_| bad())?;
    let local = match url.host().ok_or_else(bad)? {
        url::Host::Domain(name) => name == "localhost",
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    };
    let sound = url.scheme() == "https" || url.scheme() == "http" && local;
    if sound && url.username().is_empty() && url.password().is_none() { Ok(url) } else { Err(bad()) }
}

/// A client that follows nobody elsewhere and believes the certificates of `authority`, or those
/// of the machine.
pub fn client(url: &Url, authority: Option<&[u8]>) -> Result<reqwest::Client, ObtainError> {
    // Another part of the program may have chosen first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        // Each value is fetched seldom: no connection is worth keeping.
        .pool_max_idle_per_host(0);
    let builder = match authority {
        Some(pem) => {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).ok().filter(|c| !c.is_empty());
            builder.tls_certs_only(certificates.ok_or_else(|| {
                ObtainError::Invalid("certificateAuthorityFrom leads to no certificates in PEM".into())
            })?)
        }
        // Without certificates on the machine, as in an empty image, loading them would fail.
        None if url.scheme() == "http" => builder.tls_certs_only([]),
        None => builder,
    };
    builder.build().map_err(|error| {
        ObtainError::Invalid(format!(
            "no client can be made for {}: {error}; set certificateAuthorityFrom to the certificates to believe",
            shown(url)
        ))
    })
}

/// Sends a request and takes the whole answer.
pub async fn ask(url: &Url, request: reqwest::RequestBuilder) -> Result<Answer, ObtainError> {
    let mut response = request.send().await.map_err(|error| away(url, &error))?;
    let status = response.status().as_u16();
    if response.status().is_redirection() {
        let why = "it leads elsewhere, and secrets are sent nowhere but where the spec says: name the last URL".into();
        return Err(ObtainError::Answer { url: shown(url), why });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| away(url, &error))? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST {
            return Err(ObtainError::Answer { url: shown(url), why: format!("it is longer than {LONGEST} bytes") });
        }
    }
    Ok(Answer { status, body: Body(body.into()) })
}

/// A URL without its query, which may hold anything.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.into()
}

/// What it means that no answer came.
fn away(url: &Url, error: &reqwest::Error) -> ObtainError {
    let url = shown(url);
    if let Some(why) = certificate_problem(error) {
        return ObtainError::Certificate { url, why };
    }
    let why = if error.is_timeout() { format!("no answer within {} s", PATIENCE.as_secs()) } else { root(error) };
    ObtainError::Unreachable { url, why }
}

fn certificate_problem(error: &reqwest::Error) -> Option<String> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        // An I/O error does not count what it wraps as its source.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = inner.and_then(|e| e.downcast_ref()).or_else(|| error.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(why)) = tls {
            return Some(match why {
                rustls::CertificateError::UnknownIssuer => "nobody whom Perch believes has signed it".into(),
                other => format!("{other}"),
            });
        }
        next = inner.map(|e| e as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

/// The innermost error, which says most.
fn root(error: &reqwest::Error) -> String {
    let mut error: &dyn Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
