//! Step one: fetch what the spec refers to.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, ResourceExt};
use secrecy::SecretSlice;

use crate::{
    api::mcp_server::{Credential, McpServer},
    error::Category,
};

/// The contents of what a spec refers to, by object name and key.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Secrets that exist.
    pub secrets: BTreeMap<String, Contents>,
    /// ConfigMaps that exist.
    pub config_maps: BTreeMap<String, Contents>,
}

/// What the spec refers to, or that it is not the controller who follows it.
#[derive(Debug)]
pub enum References {
    /// Fetched.
    Resolved(Resolved),
    /// The backend hands them to instances without the controller.
    LeftToBackend,
}

/// Keys and values of one Secret or ConfigMap.
pub type Contents = BTreeMap<String, SecretSlice<u8>>;

/// Why a reference cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum DereferenceError {
    /// The object is not there.
    #[error("{kind} {name:?} does not exist in namespace {namespace:?}: create it, or mark the reference optional")]
    Missing {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// The control plane did not answer.
    #[error("a reference cannot be followed: {0}")]
    Api(#[from] kube::Error),
}

impl Category for DereferenceError {
    fn category(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "ReferenceNotFound",
            Self::Api(_) => "ApiUnavailable",
        }
    }
}

/// A name, and whether the server can start without it.
type Reference<'a> = (&'a str, bool);

fn secrets(server: &McpServer) -> Vec<Reference<'_>> {
    let spec = &server.spec;
    let env = spec.env.iter().filter_map(|e| e.value_from.as_ref()?.secret_key_ref.as_ref());
    let from = spec.env_from.iter().filter_map(|e| e.secret_ref.as_ref());
    let volumes = spec.volumes.iter().filter_map(|v| v.secret.as_ref());
    let credentials = spec.credentials.iter().filter_map(|c| c.secret.as_ref());
    env.map(|r| (r.name.as_str(), r.optional))
        .chain(from.map(|r| (r.name.as_str(), r.optional)))
        .chain(volumes.map(|v| (v.secret_name.as_str(), false)))
        .chain(credentials.map(|c| (c.name.as_str(), false)))
        .collect()
}

/// Whether a credential of a server is fetched by means of a Secret.
pub fn fetches_by(server: &McpServer, secret: &str) -> bool {
    server.spec.credentials.iter().flat_map(Credential::secrets_to_fetch).any(|s| s.name == secret)
}

fn config_maps(server: &McpServer) -> Vec<Reference<'_>> {
    let spec = &server.spec;
    let env = spec.env.iter().filter_map(|e| e.value_from.as_ref()?.config_map_key_ref.as_ref());
    let from = spec.env_from.iter().filter_map(|e| e.config_map_ref.as_ref());
    let volumes = spec.volumes.iter().filter_map(|v| v.config_map.as_ref());
    env.map(|r| (r.name.as_str(), r.optional))
        .chain(from.map(|r| (r.name.as_str(), r.optional)))
        .chain(volumes.map(|v| (v.name.as_str(), false)))
        .collect()
}

/// Whether a server refers to a Secret.
pub fn names_secret(server: &McpServer, name: &str) -> bool {
    secrets(server).iter().any(|(n, _)| *n == name)
}

/// Whether a server refers to a ConfigMap.
pub fn names_config_map(server: &McpServer, name: &str) -> bool {
    config_maps(server).iter().any(|(n, _)| *n == name)
}

/// Fetches everything that a server refers to.
pub async fn dereference(client: &Client, server: &McpServer) -> Result<Resolved, DereferenceError> {
    let namespace = server.namespace().unwrap_or_default();
    let mut resolved = Resolved::default();
    let missing =
        |kind, name: &str| DereferenceError::Missing { kind, name: name.to_owned(), namespace: namespace.clone() };
    let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    for (name, optional) in secrets(server) {
        match api.get_opt(name).await? {
            Some(secret) => {
                let data = secret.data.unwrap_or_default();
                let contents = data.into_iter().map(|(key, value)| (key, SecretSlice::from(value.0))).collect();
                resolved.secrets.insert(name.to_owned(), contents);
            }
            None if optional => {}
            None => return Err(missing("Secret", name)),
        }
    }
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    for (name, optional) in config_maps(server) {
        match api.get_opt(name).await? {
            Some(map) => {
                let texts = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
                let bytes = map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
                let contents = texts.chain(bytes).map(|(key, value)| (key, SecretSlice::from(value))).collect();
                resolved.config_maps.insert(name.to_owned(), contents);
            }
            None if optional => {}
            None => return Err(missing("ConfigMap", name)),
        }
    }
    Ok(resolved)
}
