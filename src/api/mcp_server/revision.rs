//! Which changes make a new revision.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Credential, EnvFrom, EnvVar, McpServerSpec, Network, Package, PodTemplateOverlay, Remote, Resources, Security,
    Transport, Volume,
};
use crate::names::Revision;

/// The part of a spec that decides what runs. Labels, replicas, probes, tool filters, governance,
/// suspension and decommission are not in it: changing them replaces no instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of McpServerSpec, documented there")]
pub struct RunSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<Package>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    pub transport: Transport,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFrom>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<Credential>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    pub resources: Resources,
    pub security: Security,
    pub network: Network,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplateOverlay>,
}

impl From<&McpServerSpec> for RunSpec {
    fn from(spec: &McpServerSpec) -> Self {
        Self {
            image: spec.image.clone(),
            package: spec.package.clone(),
            remote: spec.remote.clone(),
            command: spec.command.clone(),
            args: spec.args.clone(),
            transport: spec.transport.clone(),
            env: spec.env.clone(),
            env_from: spec.env_from.clone(),
            credentials: spec.credentials.clone(),
            volumes: spec.volumes.clone(),
            resources: spec.resources.clone(),
            security: spec.security.clone(),
            network: spec.network.clone(),
            pod_template: spec.pod_template.clone(),
        }
    }
}

impl RunSpec {
    /// A spec that runs this, and is otherwise like `spec`.
    #[must_use]
    pub fn within(&self, spec: &McpServerSpec) -> McpServerSpec {
        let run = self.clone();
        McpServerSpec {
            image: run.image,
            package: run.package,
            remote: run.remote,
            command: run.command,
            args: run.args,
            transport: run.transport,
            env: run.env,
            env_from: run.env_from,
            credentials: run.credentials,
            volumes: run.volumes,
            resources: run.resources,
            security: run.security,
            network: run.network,
            pod_template: run.pod_template,
            ..spec.clone()
        }
    }
}

/// The revision of a server: its name, and the first 40 bits of the SHA-256 of its [`RunSpec`]
/// as JSON. Equal specs give equal revisions on every machine.
///
/// # Panics
/// Never: a `RunSpec` has only string keys, so it always serialises.
#[must_use]
pub fn revision_of(server: &str, run: &RunSpec) -> Revision {
    let json = serde_json::to_vec(run).expect("a RunSpec serialises");
    let digest = Sha256::digest(&json);
    let hash = format!("{digest:x}");
    Revision(format!("{server}-{}", &hash[..10]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> McpServerSpec {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    #[test]
    fn what_runs_decides_the_revision() {
        let a = spec("{image: 'x:1'}");
        let same = spec("{image: 'x:1', replicas: 3, suspend: true, governance: {owner: me}}");
        let other = spec("{image: 'x:2'}");
        let of = |s: &McpServerSpec| revision_of("s", &RunSpec::from(s));
        assert_eq!(of(&a), of(&same));
        assert_ne!(of(&a), of(&other));
    }

    #[test]
    fn what_runs_can_be_put_into_another_spec() {
        let old = RunSpec::from(&spec("{image: 'x:1', env: [{name: A, value: b}], resources: {limits: {cpu: '2'}}}"));
        let new = spec("{image: 'x:2', replicas: 3, suspend: true}");
        let mixed = old.within(&new);
        assert_eq!(RunSpec::from(&mixed), old);
        assert_eq!((mixed.replicas, mixed.suspend), (3, true));
        assert_eq!(RunSpec::from(&new).within(&mixed), new);
    }

    #[test]
    fn a_revision_is_the_same_on_every_machine() {
        let revision = revision_of("time", &RunSpec::from(&spec("{command: [mcp-server-time]}")));
        assert!(revision.as_str().starts_with("time-"), "{revision}");
        assert_eq!(revision.as_str().len(), "time-".len() + 10);
    }
}
