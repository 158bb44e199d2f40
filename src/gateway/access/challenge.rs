//! What somebody is told who may not come in, and where a client learns how to get in: protected
//! resource metadata (RFC 9728) and `WWW-Authenticate` (RFC 6750), as the MCP specification asks.

use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;
use url::Url;

use crate::gateway::reply::{self, Body, Failure};

/// Where the metadata is; the path of a server may follow.
pub const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// Why somebody may not come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No credentials were shown.
    Nobody,
    /// The credentials are not good, and why, in words without any part of them.
    Invalid(String),
    /// The token lacks scopes, and needs these.
    Scope(Vec<String>),
    /// Whoever it is may not use this.
    Forbidden(String),
    /// It cannot be found out now.
    Unavailable(String),
}

/// What clients are told about how to get a token.
#[derive(Clone, Debug, Default)]
pub struct Guide {
    /// Base URL of the gateway, without a slash at its end. None where no issuer is known.
    pub resource: Option<String>,
    /// Who issues tokens.
    pub issuers: Vec<String>,
    /// What tokens should have.
    pub scopes: Vec<String>,
    /// Whether API keys are known.
    pub has_api_keys: bool,
}

impl Guide {
    /// The metadata of the resource at a path below the gateway, empty for the gateway itself.
    pub fn metadata(&self, path: &str) -> Response<Body> {
        let base = self.resource.as_deref().and_then(|r| Url::parse(r).ok()).map(|url| url.path().to_owned());
        let path = base.and_then(|base| path.strip_prefix(base.trim_end_matches('/'))).unwrap_or(path);
        let path = path.trim_end_matches('/');
        let sound = path.is_empty() || path.strip_prefix('/').is_some_and(is_door);
        let Some(resource) = self.resource.as_ref().filter(|_| sound) else {
            let message = "there is no protected resource here that any authorization server issues tokens for";
            return Failure::new(StatusCode::NOT_FOUND, reply::INVALID_REQUEST, message).reply(None);
        };
        let mut metadata = json!({
            "resource": format!("{resource}{path}"),
            "authorization_servers": self.issuers,
            "bearer_methods_supported": ["header"],
            "resource_name": "Perch MCP gateway",
        });
        if !self.scopes.is_empty() {
            metadata["scopes_supported"] = json!(self.scopes);
        }
        reply::json(StatusCode::OK, metadata.to_string())
    }

    /// The answer to somebody who may not come in at a path.
    pub fn refuse(&self, refusal: &Refusal, path: &str) -> Response<Body> {
        let invalid = |status, message: &str| Failure::new(status, reply::INVALID_REQUEST, message);
        let (failure, error) = match refusal {
            Refusal::Nobody => (invalid(StatusCode::UNAUTHORIZED, &self.wanted()), None),
            Refusal::Invalid(why) => (
                invalid(StatusCode::UNAUTHORIZED, &format!("the credentials are not good: {why}")),
                Some(("invalid_token", why.as_str())),
            ),
            Refusal::Scope(_) => (
                invalid(StatusCode::FORBIDDEN, "the token lacks a scope that this gateway asks for"),
                Some(("insufficient_scope", "the token lacks a scope")),
            ),
            Refusal::Forbidden(why) => return invalid(StatusCode::FORBIDDEN, why).reply(None),
            Refusal::Unavailable(why) => return Failure::unavailable(why.clone()).reply(None),
        };
        let mut response = failure.reply(None);
        let mut parts = Vec::new();
        if let Some((error, why)) = error {
            parts.push(format!("error=\"{error}\""));
            parts.push(format!("error_description=\"{}\"", quotable(why)));
        }
        let scopes = if let Refusal::Scope(scopes) = refusal { scopes } else { &self.scopes };
        if !scopes.is_empty() {
            parts.push(format!("scope=\"{}\"", quotable(&scopes.join(" "))));
        }
        if let Some(resource) = &self.resource {
            let path = path.trim_matches('/');
            let suffix = if is_door(path) { format!("/{path}") } else { String::new() };
            parts.push(format!("resource_metadata=\"{}\"", metadata_url(resource, &suffix)));
        }
        if parts.is_empty() {
            parts.push("realm=\"perch\"".into());
        }
        if let Ok(value) = HeaderValue::from_str(&format!("Bearer {}", parts.join(", "))) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
        }
        response
    }

    fn wanted(&self) -> String {
        let mut ways = Vec::new();
        if !self.issuers.is_empty() {
            ways.push(format!("a token of {} in the header Authorization", self.issuers.join(" or ")));
        }
        if self.has_api_keys {
            ways.push("an API key in the header Authorization (Bearer) or X-API-Key".into());
        }
        if ways.is_empty() {
            ways.push("credentials in the header Authorization".into());
        }
        format!("this gateway must know who asks: send {}", ways.join(", or "))
    }
}

/// Where the metadata of a resource is: its path follows the well-known one (RFC 9728, 3.1).
fn metadata_url(resource: &str, suffix: &str) -> String {
    let base = Url::parse(resource)
        .map(|url| (url.origin().ascii_serialization(), url.path().trim_end_matches('/').to_owned()));
    let (origin, path) = base.unwrap_or_default();
    format!("{origin}{WELL_KNOWN}{path}{suffix}")
}

/// Whether a path, without a slash at its start, is `namespace/name/door`, or that of a toolbox.
fn is_door(path: &str) -> bool {
    let sound = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let parts: Vec<&str> = path.split('/').collect();
    (parts.len() == 3 || parts.len() == 4 && parts[1] == "toolboxes") && parts.iter().all(|part| sound(part))
}

/// Text as a quoted string may hold it.
fn quotable(text: &str) -> String {
    text.chars().filter(|c| (' '..='~').contains(c) && !matches!(c, '"' | '\\')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guide() -> Guide {
        Guide {
            resource: Some("https://mcp.example.com/base".into()),
            issuers: vec!["https://login.example.com".into()],
            scopes: vec!["mcp:tools".into()],
            has_api_keys: false,
        }
    }

    fn challenge(guide: &Guide, refusal: &Refusal, path: &str) -> (u16, String) {
        let response = guide.refuse(refusal, path);
        let header = response.headers().get(header::WWW_AUTHENTICATE).map(|v| v.to_str().unwrap().to_owned());
        (response.status().as_u16(), header.unwrap_or_default())
    }

    #[test]
    fn a_challenge_leads_to_the_metadata() {
        let metadata = "https://mcp.example.com/.well-known/oauth-protected-resource/base";
        assert_eq!(
            challenge(&guide(), &Refusal::Nobody, "/default/a/mcp"),
            (401, format!("Bearer scope=\"mcp:tools\", resource_metadata=\"{metadata}/default/a/mcp\""))
        );
        assert_eq!(
            challenge(&guide(), &Refusal::Invalid("it \"expired\"".into()), "/\"x"),
            (
                401,
                format!(
                    "Bearer error=\"invalid_token\", error_description=\"it expired\", scope=\"mcp:tools\", resource_metadata=\"{metadata}\""
                )
            )
        );
        let (status, header) = challenge(&guide(), &Refusal::Scope(vec!["a".into(), "b".into()]), "/");
        assert_eq!(status, 403);
        assert!(
            header.starts_with("Bearer error=\"insufficient_scope\"") && header.contains("scope=\"a b\""),
            "{header}"
        );
        assert_eq!(challenge(&Guide::default(), &Refusal::Nobody, "/"), (401, "Bearer realm=\"perch\"".into()));
        assert_eq!(challenge(&guide(), &Refusal::Forbidden("no".into()), "/"), (403, String::new()));
        assert_eq!(challenge(&guide(), &Refusal::Unavailable("later".into()), "/"), (503, String::new()));
    }

    #[test]
    fn metadata_is_only_of_what_can_be_there() {
        assert_eq!(guide().metadata("/default/a/mcp").status(), 200);
        assert_eq!(guide().metadata("/default/toolboxes/dev/mcp").status(), 200);
        assert_eq!(guide().metadata("/default/other/dev/mcp").status(), 404);
        assert_eq!(guide().metadata("").status(), 200);
        assert_eq!(guide().metadata("/base/default/a/mcp").status(), 200, "as it is known behind a proxy");
        for path in ["/default/a", "/default/a/mcp/x", "/a\"b/c/mcp"] {
            assert_eq!(guide().metadata(path).status(), 404, "{path}");
        }
        assert_eq!(Guide::default().metadata("").status(), 404);
    }
}
