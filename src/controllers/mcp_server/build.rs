//! Step three: what should be there. It cannot fail.

use std::time::Duration;

use super::validate::ValidatedServer;
use crate::{
    api::mcp_server::RunSpec,
    names::{Revision, ServerKey},
    runtime::Workload,
};

/// What should be there for a server.
#[derive(Debug)]
pub struct Built {
    /// The key under which it runs.
    pub key: ServerKey,
    /// Its revision.
    pub revision: Revision,
    /// What the revision is made of, for history.
    pub run: RunSpec,
    /// What should run; none for a remote server.
    pub workload: Option<Workload>,
}

/// Time between asking an instance to stop and killing it.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// What should be there for a server that makes sense, under one of its keys.
pub fn build(valid: ValidatedServer, key: &ServerKey, revision: &Revision) -> Built {
    let network = valid.run.network.tier;
    let workload = valid.program.map(|program| Workload {
        server: key.clone(),
        uid: valid.uid,
        revision: revision.clone(),
        program,
        wire: valid.wire,
        replicas: valid.replicas,
        env: valid.env,
        credentials: valid.credentials,
        volumes: valid.volumes,
        limits: valid.limits,
        security: valid.security,
        network,
        stop_grace: STOP_GRACE,
        declared: valid.declared,
    });
    Built { key: key.clone(), revision: revision.clone(), run: valid.run, workload }
}
