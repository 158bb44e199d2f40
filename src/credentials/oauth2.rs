//! Tokens for client credentials (RFC 6749, section 4.4).

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::{
    ObtainError, Obtained, Source,
    http::{self, Answer, shown},
    schedule,
};
use crate::api::mcp_server::{ClientAuthentication, OAuth2Credential};

/// Seconds that a token is taken to last when its server does not say (RFC 6749 leaves it open).
const UNSAID: u64 = 3600;

/// A client of an OAuth 2 server.
#[derive(Debug)]
pub struct ClientCredentials {
    url: Url,
    http: reqwest::Client,
    client_id: String,
    client_secret: SecretString,
    scope: String,
    audience: Option<String>,
    authentication: ClientAuthentication,
}

impl ClientCredentials {
    /// A client, given what its declaration refers to.
    ///
    /// # Errors
    /// When the declaration, or what it refers to, cannot be used.
    pub fn new(
        declared: &OAuth2Credential,
        client_id: String,
        client_secret: SecretString,
        authority: Option<&[u8]>,
    ) -> Result<Self, ObtainError> {
        let url = http::sound_url("tokenURL", &declared.token_url)?;
        let http = http::client(&url, authority)?;
        Ok(Self {
            url,
            http,
            client_id,
            client_secret,
            scope: declared.scopes.join(" "),
            audience: declared.audience.clone(),
            authentication: declared.client_authentication,
        })
    }

    fn request(&self) -> reqwest::RequestBuilder {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !self.scope.is_empty() {
            form.append_pair("scope", &self.scope);
        }
        if let Some(audience) = &self.audience {
            form.append_pair("audience", audience);
        }
        let request = self.http.post(self.url.as_str()).header(::http::header::ACCEPT, "application/json");
        let request = match self.authentication {
            ClientAuthentication::Basic => {
                // Both parts are form-encoded first (RFC 6749, section 2.3.1).
                let part = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let pair = format!("{}:{}", part(&self.client_id), part(self.client_secret.expose_secret()));
                let value = ::http::HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)));
                let mut value = value.expect("Base64 makes a header value");
                value.set_sensitive(true);
                request.header(::http::header::AUTHORIZATION, value)
            }
            ClientAuthentication::Body => {
                form.append_pair("client_id", &self.client_id);
                form.append_pair("client_secret", self.client_secret.expose_secret());
                request
            }
        };
        request.header(::http::header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.finish())
    }

    fn read(&self, answer: &Answer, now: Timestamp) -> Result<Obtained, ObtainError> {
        let url = || shown(&self.url);
        let json = answer.body.json();
        if answer.status != 200 {
            return Err(self.refusal(answer.status, json.as_ref()));
        }
        let unfit = |why: &str| ObtainError::Answer { url: url(), why: why.into() };
        let json = json.ok_or_else(|| unfit("it is no JSON"))?;
        let token = json["access_token"].as_str().unwrap_or_default();
        // What a header can carry (RFC 6750, section 2.1, and RFC 6749, appendix A.12).
        if token.is_empty() || !token.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
            return Err(unfit("it has no access_token of visible characters"));
        }
        let seconds = match &json["expires_in"] {
            Value::Null => UNSAID,
            // Some servers write the number as a text.
            Value::String(text) => text.parse().unwrap_or(0),
            number => number.as_u64().unwrap_or_else(|| number.as_f64().map_or(0, whole)),
        };
        if seconds == 0 {
            return Err(unfit("its token has ended already, or expires_in is no number of seconds"));
        }
        Ok(Obtained { value: token.as_bytes().to_vec().into(), expires: Some(schedule::end(now, seconds)) })
    }

    /// Why there is no token, by the codes of RFC 6749, section 5.2. Nothing else of the answer is
    /// shown: it may repeat what was sent.
    fn refusal(&self, status: u16, json: Option<&Value>) -> ObtainError {
        const KNOWN: [&str; 6] = [
            "invalid_request",
            "invalid_client",
            "invalid_grant",
            "unauthorized_client",
            "unsupported_grant_type",
            "invalid_scope",
        ];
        let code = json.and_then(|j| j["error"].as_str()).and_then(|code| KNOWN.into_iter().find(|k| *k == code));
        let url = shown(&self.url);
        let why = code.map_or_else(|| format!("HTTP {status}"), |code| format!("HTTP {status}, {code}"));
        if matches!(status, 429 | 500..) {
            return ObtainError::Unreachable { url, why };
        }
        let remedy = match code {
            Some("invalid_client") => "check clientID and the Secret that clientSecretFrom names",
            Some("invalid_scope") => "check scopes",
            Some("unauthorized_client" | "unsupported_grant_type") => {
                "let the OAuth server's client use the grant client_credentials"
            }
            _ if status == 404 => "check tokenURL",
            _ => "check clientID, the Secret that clientSecretFrom names, scopes and audience",
        };
        ObtainError::Refused { url, why, remedy }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "such a cast ends at the type's bounds")]
fn whole(number: f64) -> u64 {
    number as u64
}

#[async_trait]
impl Source for ClientCredentials {
    async fn obtain(&self, now: Timestamp) -> Result<Obtained, ObtainError> {
        let answer = http::ask(&self.url, self.request()).await?;
        self.read(&answer, now)
    }
}
