//! Values that a server needs and that nobody else may see.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::api::quantity::Duration;

/// A value that the server needs and that nobody else may see. Only where it comes from stands
/// here; the value appears in no spec, status, event or log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("[has(self.secret), has(self.oauth2), has(self.vault), has(self.serviceAccount)].filter(x, x).size() == 1")
        .message("set exactly one of secret, oauth2, vault and serviceAccount"),
    validation = Rule::new("!(has(self.serviceAccount) && self.__as__ == 'Env')")
        .message("a ServiceAccount's token is renewed while the server runs, and an environment variable is not: use as: File")
)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// Name of the credential within this server, and of its file.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// How the server gets the value. A File is replaced when the value changes; a value in Env
    /// stays what it was when the instance started.
    #[serde(rename = "as", default)]
    pub form: CredentialForm,
    /// Environment variable that holds the value (Env) or the path of the file (File). Made from
    /// the name when absent: `github-token` gives `GITHUB_TOKEN` and `GITHUB_TOKEN_FILE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub variable: Option<String>,
    /// A key of a Secret in the server's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretKey>,
    /// A token that an OAuth 2 server gives for client credentials (RFC 6749, section 4.4). It is
    /// renewed before it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth2: Option<OAuth2Credential>,
    /// A key of a secret in a key-value engine, version 2, of HashiCorp Vault or OpenBao.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<VaultCredential>,
    /// A token of the server's ServiceAccount, for others than the cluster itself. On Kubernetes
    /// only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountCredential>,
}

impl Credential {
    /// The environment variable that the server finds the value or the file by.
    #[must_use]
    pub fn variable(&self) -> String {
        self.variable.clone().unwrap_or_else(|| {
            let name = self.name.to_uppercase().replace('-', "_");
            let name = if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name };
            match self.form {
                CredentialForm::File => format!("{name}_FILE"),
                CredentialForm::Env => name,
            }
        })
    }

    /// Whether Perch itself must fetch the value.
    #[must_use]
    pub fn is_fetched(&self) -> bool {
        self.oauth2.is_some() || self.vault.is_some()
    }

    /// A digest of where the value comes from. It changes when another value is meant, and not when
    /// the value is renewed.
    ///
    /// # Panics
    /// Never: a credential has only string keys, so it always serialises.
    #[must_use]
    pub fn source_digest(&self) -> String {
        let source = serde_json::to_vec(&(&self.oauth2, &self.vault)).expect("a credential serialises");
        format!("{:x}", Sha256::digest(&source))[..16].to_owned()
    }

    /// The Secrets that Perch reads to fetch the value.
    pub fn secrets_to_fetch(&self) -> impl Iterator<Item = &SecretKey> {
        let oauth2 = self.oauth2.iter().flat_map(|o| {
            [o.client_id_from.as_ref(), Some(&o.client_secret_from), o.certificate_authority_from.as_ref()]
        });
        let vault = self.vault.iter().flat_map(|v| [v.auth.token_from.as_ref(), v.certificate_authority_from.as_ref()]);
        oauth2.chain(vault).flatten().map(|from| &from.secret_key_ref)
    }
}

/// How a server gets a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum CredentialForm {
    /// A file that only the server's user can read (0400).
    #[default]
    File,
    /// An environment variable. Whoever may inspect the container sees it.
    Env,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key whose value is used.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Where a value is that is needed to fetch another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretSource {
    /// A key of a Secret in the server's namespace.
    pub secret_key_ref: SecretKey,
}

/// Client credentials of OAuth 2.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.clientID) != has(self.clientIDFrom)").message("set exactly one of clientID and clientIDFrom"))]
#[serde(rename_all = "camelCase")]
pub struct OAuth2Credential {
    /// The token endpoint: https, or http on this machine.
    #[serde(rename = "tokenURL")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^\s?#]+(\?[^\s#]*)?$"))]
    pub token_url: String,
    /// The client, in plain sight.
    #[serde(rename = "clientID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub client_id: Option<String>,
    /// Where the client's name is.
    #[serde(rename = "clientIDFrom", default, skip_serializing_if = "Option::is_none")]
    pub client_id_from: Option<SecretSource>,
    /// Where the client's secret is.
    pub client_secret_from: SecretSource,
    /// What the token is to be good for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub scopes: Vec<String>,
    /// Whom the token is to be shown to, where the OAuth server asks for `audience`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub audience: Option<String>,
    /// How the client shows its secret.
    #[serde(default)]
    pub client_authentication: ClientAuthentication,
    /// Where the certificates are (PEM) that the OAuth server's own must be signed by. Those of the
    /// machine when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority_from: Option<SecretSource>,
}

/// How an OAuth client shows its secret (RFC 6749, section 2.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ClientAuthentication {
    /// In the Authorization header, which every OAuth server must take.
    #[default]
    Basic,
    /// In the body, for servers that take nothing else.
    Body,
}

/// A key of a secret in Vault.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VaultCredential {
    /// Base URL of Vault: https, or http on this machine.
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^\s?#]+$"))]
    pub address: String,
    /// Vault's own namespace, where it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[^\s]+$"))]
    pub vault_namespace: Option<String>,
    /// Path at which the key-value engine (version 2) is mounted.
    #[serde(default = "secret")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$"))]
    pub mount: String,
    /// Path of the secret in the engine, without `data/`.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[A-Za-z0-9_. -]+(/[A-Za-z0-9_. -]+)*$"))]
    pub path: String,
    /// The key of the secret whose value is used.
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
    /// Who asks.
    pub auth: VaultAuth,
    /// Time between two looks for a new value. A value whose lease ends sooner is fetched sooner.
    #[serde(default = "five_minutes")]
    pub refresh_interval: Duration,
    /// Where the certificates are (PEM) that Vault's own must be signed by. Those of the machine
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority_from: Option<SecretSource>,
}

fn secret() -> String {
    "secret".into()
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

/// Who asks Vault.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.kubernetes) != has(self.tokenFrom)").message("set exactly one of kubernetes and tokenFrom"))]
#[serde(rename_all = "camelCase")]
pub struct VaultAuth {
    /// A ServiceAccount of the server's namespace, through Vault's auth method for Kubernetes or
    /// JWT. On Kubernetes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<VaultKubernetesAuth>,
    /// Where a Vault token is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_from: Option<SecretSource>,
}

/// Login at Vault with a token of a ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VaultKubernetesAuth {
    /// Path at which the auth method is mounted.
    #[serde(default = "kubernetes")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$"))]
    pub mount: String,
    /// Role of Vault to log in as.
    #[schemars(length(min = 1, max = 512))]
    pub role: String,
    /// The ServiceAccount whose token is shown.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub service_account_name: String,
    /// Audience of that token.
    #[serde(default = "vault")]
    #[schemars(length(min = 1, max = 2048))]
    pub audience: String,
}

fn kubernetes() -> String {
    "kubernetes".into()
}

fn vault() -> String {
    "vault".into()
}

/// A token of the server's ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("duration(self.expiration) >= duration('10m')").message("a cluster gives tokens for 10 minutes at least: raise expiration"))]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountCredential {
    /// Whom the token is to be shown to.
    #[schemars(length(min = 1, max = 2048))]
    pub audience: String,
    /// How long a token is good; the kubelet replaces it before.
    #[serde(default = "an_hour")]
    pub expiration: Duration,
}

fn an_hour() -> Duration {
    Duration::from_secs(3600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(yaml: &str) -> Credential {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    #[test]
    fn a_variable_is_named_after_the_credential() {
        let of = |yaml: &str| credential(yaml).variable();
        assert_eq!(of("{name: github-token, secret: {name: s, key: k}}"), "GITHUB_TOKEN_FILE");
        assert_eq!(of("{name: github-token, as: Env, secret: {name: s, key: k}}"), "GITHUB_TOKEN");
        assert_eq!(of("{name: 1password, as: Env, secret: {name: s, key: k}}"), "_1PASSWORD");
        assert_eq!(of("{name: x, variable: TOKEN_PATH, secret: {name: s, key: k}}"), "TOKEN_PATH");
    }

    #[test]
    fn another_source_is_another_value_and_another_form_is_not() {
        let of = |form: &str, scope: &str| {
            credential(&format!(
                "{{name: x, as: {form}, oauth2: {{tokenURL: 'https://a/t', clientID: c, scopes: [{scope}], clientSecretFrom: {{secretKeyRef: {{name: s, key: k}}}}}}}}"
            ))
        };
        assert_eq!(of("File", "a").source_digest(), of("Env", "a").source_digest());
        assert_ne!(of("File", "a").source_digest(), of("File", "b").source_digest());
        let names: Vec<String> = of("File", "a").secrets_to_fetch().map(|s| format!("{}/{}", s.name, s.key)).collect();
        assert_eq!(names, ["s/k"]);
    }
}
