//! What should be in the cluster for a workload. Pure: the same workload always gives the same
//! objects.

mod around;
mod egress;
mod pod;

/// Names of the containers of a pod.
pub mod container {
    pub use super::pod::{INSTALL, PREPARE, SERVER};
}

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::{
    Metadata,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Config, naming};
use crate::runtime::{RuntimeError, Workload};

/// The kinds of object that a server is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Identity of the pods, without a token.
    ServiceAccount,
    /// What may reach the pods, and what they may reach.
    NetworkPolicy,
    /// A stable name for the pods.
    Service,
    /// The pods.
    Deployment,
    /// How many pods a drain may take at once.
    PodDisruptionBudget,
    /// Chooses the number of pods.
    HorizontalPodAutoscaler,
}

impl Kind {
    /// All of them, in the order in which they are applied.
    pub const ALL: [Self; 6] = [
        Self::ServiceAccount,
        Self::NetworkPolicy,
        Self::Service,
        Self::Deployment,
        Self::PodDisruptionBudget,
        Self::HorizontalPodAutoscaler,
    ];
}

/// An object that should be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Its kind.
    pub kind: Kind,
    /// Its name in the server's namespace.
    pub name: String,
    /// The whole object, for server-side apply, with `apiVersion` and `kind`.
    pub object: Value,
    /// Digest of `object` without itself.
    pub digest: String,
}

impl Wanted {
    /// The object without its `apiVersion` and `kind`, which lists leave out.
    pub fn fields(&self) -> Value {
        let mut fields = self.object.clone();
        if let Some(fields) = fields.as_object_mut() {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        fields
    }
}

/// The egress proxy of a workload that reaches something by name; else nothing. The address of its
/// Service is what [`build`] wants to know.
///
/// # Errors
/// [`RuntimeError::Invalid`] when the list cannot be used.
pub fn egress_proxy(workload: &Workload, config: &Config) -> Result<Vec<Wanted>, RuntimeError> {
    if !egress::list(workload)?.has_names() {
        return Ok(Vec::new());
    }
    Ok(vec![
        finish(Kind::NetworkPolicy, egress::network_policy(workload), workload)?,
        finish(Kind::Service, egress::service(workload), workload)?,
        finish(Kind::Deployment, egress::deployment(workload, config)?, workload)?,
    ])
}

/// Everything else that should be there for a workload, whose egress proxy has this address.
///
/// # Errors
/// [`RuntimeError::Unsupported`] or [`RuntimeError::Invalid`] when pods cannot run it.
pub fn build(workload: &Workload, config: &Config, proxy: Option<IpAddr>) -> Result<Vec<Wanted>, RuntimeError> {
    let proxy = proxy.map(|address| SocketAddr::new(address, egress::PORT));
    let mut wanted = vec![
        finish(Kind::ServiceAccount, around::service_account(workload), workload)?,
        finish(Kind::NetworkPolicy, around::network_policy(workload, config)?, workload)?,
        finish(Kind::Service, around::service(workload), workload)?,
        finish(Kind::Deployment, pod::deployment(workload, config, proxy)?, workload)?,
    ];
    if let Some(policy) = around::install_policy(workload) {
        wanted.push(finish(Kind::NetworkPolicy, policy, workload)?);
    }
    if let Some(budget) = around::disruption_budget(workload) {
        wanted.push(finish(Kind::PodDisruptionBudget, budget, workload)?);
    }
    if let Some(autoscaler) = around::autoscaler(workload) {
        wanted.push(finish(Kind::HorizontalPodAutoscaler, autoscaler, workload)?);
    }
    Ok(wanted)
}

/// Metadata of an object of a server: it goes away with the server.
fn metadata(workload: &Workload, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(workload.server.namespace.clone()),
        labels: Some(naming::labels(workload)),
        annotations: Some([(naming::SERVER_NAME.to_owned(), workload.server.name.clone())].into()),
        owner_references: Some(vec![OwnerReference {
            api_version: "perch.dev/v1alpha1".into(),
            kind: "McpServer".into(),
            name: workload.server.declared().name,
            uid: workload.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

fn finish<K>(kind: Kind, object: K, workload: &Workload) -> Result<Wanted, RuntimeError>
where
    K: Serialize + Metadata<Ty = ObjectMeta>,
{
    let name = object.metadata().name.clone().unwrap_or_default();
    let invalid = |error: serde_json::Error| RuntimeError::Invalid(format!("{}: {error}", workload.server));
    let mut object = serde_json::to_value(&object).map_err(invalid)?;
    let text = serde_json::to_vec(&object).map_err(invalid)?;
    let digest = format!("{:x}", Sha256::digest(&text))[..16].to_owned();
    object["metadata"]["annotations"][naming::APPLIED] = Value::String(digest.clone());
    Ok(Wanted { kind, name, object, digest })
}

#[cfg(test)]
mod tests;
