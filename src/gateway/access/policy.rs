//! The file of access, read and understood as a whole.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use subtle::ConstantTimeEq;
use url::Url;

use super::{
    Identity,
    api_key::{self, ApiKeys, Hash, PREFIX},
    challenge::{Guide, Refusal},
    credential::Shown,
    file::{AccessFile, KeyEntry},
    issuer::Issuer,
    jwt::Token,
    rate::Limits,
    rules::Rules,
    token_review::Reviewer,
};
use crate::{
    gateway::config_file::{FileError, read},
    names::ServerKey,
};

/// Longest token.
const LONGEST: usize = 16 * 1024;

/// Where access is written, and what the program knows beside it.
#[derive(Clone, Default)]
pub struct Source {
    /// The file of access.
    pub path: PathBuf,
    /// `resource`, where the file has none.
    pub resource: Option<String>,
    /// The key with which Perch's own probes ask servers how they are.
    pub operator_key: Option<OperatorKey>,
    /// Asks the Kubernetes API server about tokens.
    pub client: Option<kube::Client>,
}

/// The key of Perch's own probes.
#[derive(Clone)]
pub enum OperatorKey {
    /// As it is.
    Key(String),
    /// In a file.
    File(PathBuf),
}

/// Everything that was read, to see whether it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Material {
    file: AccessFile,
    keys: Vec<KeyEntry>,
    authorities: BTreeMap<PathBuf, Vec<u8>>,
    operator: Option<Hash>,
}

impl Material {
    /// Reads all files.
    pub fn read(source: &Source) -> Result<Self, FileError> {
        let file: AccessFile = yaml(&source.path)?;
        let beside = |path: &PathBuf| source.path.parent().unwrap_or(Path::new("")).join(path);
        let mut keys = file.api_keys.clone();
        for path in &file.api_key_files {
            keys.extend(yaml::<Vec<KeyEntry>>(&beside(path))?);
        }
        let mut authorities = BTreeMap::new();
        for path in file.issuers.iter().filter_map(|issuer| issuer.certificate_authority.as_ref()) {
            authorities.insert(path.clone(), read(&beside(path))?);
        }
        let operator = match &source.operator_key {
            None => None,
            Some(OperatorKey::Key(key)) => Some(key.clone()),
            Some(OperatorKey::File(path)) => Some(String::from_utf8_lossy(&read(path)?).trim().to_owned()),
        };
        if let (Some(key), Some(OperatorKey::File(path))) = (&operator, &source.operator_key)
            && key.len() < 32
        {
            let why = "the key of the operator has fewer than 32 characters: make one with `perch access key create`";
            return Err(FileError::Invalid { path: path.clone(), why: why.into() });
        }
        Ok(Self { file, keys, authorities, operator: operator.map(|key| api_key::hash(&key)) })
    }
}

fn yaml<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let invalid = |why| FileError::Invalid { path: path.to_owned(), why };
    serde_yaml_ng::from_slice(&read(path)?).map_err(|error| invalid(error.to_string()))
}

/// Who may come in, and what they may do.
#[derive(Debug)]
pub struct Policy {
    anonymous: bool,
    keys: ApiKeys,
    operator: Option<Hash>,
    issuers: Vec<Arc<Issuer>>,
    review: Option<Reviewer>,
    resource: Option<String>,
    /// What somebody may do who came in.
    pub rules: Rules,
    /// And how often.
    pub limits: Limits,
    /// What somebody is told who did not.
    pub guide: Guide,
}

impl Policy {
    /// The policy that was written. Issuers that stay as they were keep their keys.
    pub fn new(source: &Source, material: &Material, before: Option<&Self>) -> Result<Self, FileError> {
        let invalid = |why: String| FileError::Invalid { path: source.path.clone(), why };
        let file = &material.file;
        let keys = ApiKeys::new(&material.keys).map_err(invalid)?;
        if !file.anonymous && keys.is_empty() && file.issuers.is_empty() && file.token_review.is_none() {
            return Err(invalid(
                "it lets nobody in: give it issuers, apiKeys, apiKeyFiles or tokenReview; or, if whoever reaches the gateway may use it, anonymous: true".into(),
            ));
        }
        let resource = resource(file.resource.as_ref().or(source.resource.as_ref())).map_err(invalid)?;
        let several = file.issuers.len() > 1;
        let mut issuers: Vec<Arc<Issuer>> = Vec::new();
        for entry in &file.issuers {
            let Some(resource) = &resource else {
                return Err(invalid("issuers need `resource`: the base URL under which clients reach the gateway, for which tokens are issued".into()));
            };
            if several && entry.user_prefix.is_none() {
                return Err(invalid(format!(
                    "the issuer {:?} has no userPrefix: of several issuers, each could name the others' users (\"\" says that they may)",
                    entry.issuer
                )));
            }
            if issuers.iter().any(|i| i.entry.issuer == entry.issuer) {
                return Err(invalid(format!("the issuer {:?} is there twice", entry.issuer)));
            }
            let authority =
                entry.certificate_authority.as_ref().and_then(|path| material.authorities.get(path)).cloned();
            let same = before.filter(|b| b.resource.as_ref() == Some(resource)).into_iter().flat_map(|b| &b.issuers);
            let same = same.into_iter().find(|i| i.entry == *entry && i.authority == authority).cloned();
            issuers.push(match same {
                Some(same) => same,
                None => Arc::new(Issuer::new(entry.clone(), authority, resource).map_err(invalid)?),
            });
        }
        let review = match (&file.token_review, &source.client) {
            (None, _) => None,
            (Some(entry), Some(client)) => Some(Reviewer::new(entry, client.clone()).map_err(invalid)?),
            (Some(_), None) => return Err(invalid("tokenReview needs a cluster, and here is none".into())),
        };
        let mut scopes: Vec<String> = file.issuers.iter().flat_map(|i| i.required_scopes.clone()).collect();
        scopes.sort();
        scopes.dedup();
        let guide = Guide {
            resource: resource.clone().filter(|_| !issuers.is_empty()),
            issuers: file.issuers.iter().map(|i| i.issuer.clone()).collect(),
            scopes,
            has_api_keys: !keys.is_empty(),
        };
        Ok(Self {
            anonymous: file.anonymous,
            keys,
            operator: material.operator,
            issuers,
            review,
            resource,
            rules: Rules::new(file.allow.as_deref()).map_err(invalid)?,
            limits: Limits::new(&file.rate_limits).map_err(invalid)?,
            guide,
        })
    }

    /// Whose credentials these are. `server` is what they are shown to.
    pub async fn identify(
        &self,
        shown: Shown,
        server: Option<&ServerKey>,
        now: Timestamp,
    ) -> Result<Identity, Refusal> {
        match shown {
            Shown::Nothing if self.anonymous => Ok(Identity::default()),
            Shown::Nothing => Err(Refusal::Nobody),
            Shown::ApiKey(key) => self.key(&key, now),
            // The operator's key is whatever its administrator made, and need not look like one of ours.
            Shown::Bearer(token) if token.starts_with(PREFIX) || self.is_operators(&api_key::hash(&token)) => {
                self.key(&token, now)
            }
            Shown::Bearer(token) => self.token(&token, server, now).await,
        }
    }

    fn is_operators(&self, hash: &Hash) -> bool {
        self.operator.is_some_and(|operator| bool::from(operator.ct_eq(hash)))
    }

    fn key(&self, key: &str, now: Timestamp) -> Result<Identity, Refusal> {
        let hash = api_key::hash(key);
        if self.is_operators(&hash) {
            return Ok(Identity::operator());
        }
        let found = self.keys.find(&hash, now).cloned();
        found.ok_or_else(|| Refusal::Invalid("no such API key, or it expired".into()))
    }

    async fn token(&self, token: &str, server: Option<&ServerKey>, now: Timestamp) -> Result<Identity, Refusal> {
        let invalid = |why: &str| Refusal::Invalid(why.into());
        if token.len() > LONGEST {
            return Err(invalid("the token is too long"));
        }
        let hash = api_key::hash(token);
        let own = self.audiences(server);
        for issuer in &self.issuers {
            if let Some(known) = issuer.known(&hash, &own, now) {
                return known;
            }
        }
        let parsed = Token::parse(token).map_err(|error| Refusal::Invalid(error.to_string()))?;
        let issuer = self.issuers.iter().find(|i| parsed.issuer() == Some(&i.entry.issuer));
        match (issuer, &self.review) {
            (Some(issuer), _) => issuer.identify(parsed, hash, &own, now).await,
            (None, Some(review)) => review.identify(token, &parsed, hash, now).await,
            (None, None) => Err(invalid("nobody whom this gateway trusts issued it")),
        }
    }

    /// The audiences that stand for a server alone.
    fn audiences(&self, server: Option<&ServerKey>) -> Vec<String> {
        let (Some(resource), Some(server)) = (&self.resource, server) else { return Vec::new() };
        let url = format!("{resource}/{server}");
        vec![format!("{url}/mcp"), format!("{url}/sse"), url]
    }
}

/// A base URL without a slash at its end.
fn resource(text: Option<&String>) -> Result<Option<String>, String> {
    let Some(text) = text else { return Ok(None) };
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    match url.filter(|url| url.query().is_none() && url.fragment().is_none()) {
        Some(url) => Ok(Some(url.as_str().trim_end_matches('/').to_owned())),
        None => Err(format!("resource {text:?} is no http or https URL without query and fragment")),
    }
}
