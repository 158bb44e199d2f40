//! What an administrator writes: the file of access, and files of API keys.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;

use crate::api::quantity::Duration;

/// A file of access. Every kind of credentials that it does not name is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessFile {
    /// Lets in whoever shows no credentials, as a user without a name.
    #[serde(default)]
    pub anonymous: bool,
    /// Base URL under which clients reach the gateway. Tokens must be meant for it, or for a server
    /// below it.
    pub resource: Option<String>,
    /// Who may issue JSON Web Tokens.
    #[serde(default)]
    pub issuers: Vec<IssuerEntry>,
    /// API keys.
    #[serde(default)]
    pub api_keys: Vec<KeyEntry>,
    /// Files with more API keys, each a list like `apiKeys`.
    #[serde(default)]
    pub api_key_files: Vec<PathBuf>,
    /// Tokens that the Kubernetes API server knows.
    pub token_review: Option<TokenReviewEntry>,
    /// Who may use what. Without it, everybody who was let in may use everything.
    pub allow: Option<Vec<AllowEntry>>,
    /// How often.
    #[serde(default)]
    pub rate_limits: Vec<RateLimitEntry>,
}

/// An issuer of JSON Web Tokens: an OAuth 2 authorization server or OpenID provider.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IssuerEntry {
    /// Its name, as tokens have it in `iss`, and where its metadata is.
    pub issuer: String,
    /// Audiences that stand for the whole gateway. Defaults to `resource`.
    pub audiences: Option<Vec<String>>,
    /// Signature algorithms. Defaults to all that are asymmetric and sound.
    pub algorithms: Option<Vec<String>>,
    /// Where its keys are. Defaults to what its metadata says.
    pub jwks_uri: Option<String>,
    /// Claim with the user's name, or a JSON pointer to it.
    #[serde(default = "sub")]
    pub user_claim: String,
    /// Put before the user's name. Needed where there are several issuers: each could name the
    /// other's users.
    pub user_prefix: Option<String>,
    /// Claim with the user's groups, or a JSON pointer to it.
    pub groups_claim: Option<String>,
    /// Put before the names of groups.
    #[serde(default)]
    pub groups_prefix: String,
    /// Scopes that every token must have.
    #[serde(default)]
    pub required_scopes: Vec<String>,
    /// How far clocks may differ. Defaults to 30 s.
    pub leeway: Option<Duration>,
    /// How old its keys may become before they are fetched again. Defaults to 10 min.
    pub refresh: Option<Duration>,
    /// File with the certificates, in PEM form, that the issuer's own must be signed by. Defaults to
    /// the machine's.
    pub certificate_authority: Option<PathBuf>,
}

fn sub() -> String {
    "sub".into()
}

/// An API key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyEntry {
    /// Tells keys apart, for people.
    pub name: String,
    /// SHA-256 of the key, as `sha256:` and 64 hexadecimal digits.
    pub hash: String,
    /// Whose it is.
    pub user: String,
    /// The user's groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// When it ceases to be good.
    pub expires: Option<Timestamp>,
}

/// How tokens are shown to the Kubernetes API server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenReviewEntry {
    /// A token must be meant for one of these.
    pub audiences: Vec<String>,
    /// For how long an answer is believed. Defaults to 30 s.
    pub cache: Option<Duration>,
}

/// Who may use what.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowEntry {
    /// Users; `*` for everybody with a name.
    #[serde(default)]
    pub users: Vec<String>,
    /// Groups. `system:authenticated` is everybody with a name, `system:unauthenticated` everybody
    /// without.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Servers: `namespace/name`, `namespace/*` or `*`. Defaults to all.
    pub servers: Option<Vec<String>>,
    /// Tools: names, or their beginnings followed by `*`. Defaults to all.
    pub tools: Option<Vec<String>>,
}

/// How often something may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitEntry {
    /// Users whom it limits; with no users and no groups, everybody.
    #[serde(default)]
    pub users: Vec<String>,
    /// Groups whom it limits.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Servers, as in `allow`. Defaults to all.
    pub servers: Option<Vec<String>>,
    /// Tools whose calls count, as in `allow`. Without it, every message counts.
    pub tools: Option<Vec<String>>,
    /// How many in a period.
    pub requests: u32,
    /// The period. Defaults to a minute.
    pub period: Option<Duration>,
    /// How many at once. Defaults to `requests`.
    pub burst: Option<u32>,
    /// Whose requests are counted together.
    #[serde(default)]
    pub per: Per,
}

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Per {
    /// Those of each user; of somebody without a name, those from one address.
    #[default]
    User,
    /// Those of everybody whom the limit is for.
    Everyone,
}
