//! Step three: what should be there. It cannot fail.

use std::time::Duration;

use super::validate::ValidatedServer;
use crate::{api::mcp_server::RunSpec, names::Revision, runtime::Workload};

/// What should be there for a server.
#[derive(Debug)]
pub struct Built {
    /// Its revision.
    pub revision: Revision,
    /// What the revision is made of, for history.
    pub run: RunSpec,
    /// What should run; none for a remote server.
    pub workload: Option<Workload>,
}

/// Time between asking an instance to stop and killing it.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// What should be there for a server that makes sense.
pub fn build(valid: ValidatedServer) -> Built {
    let revision = valid.revision.clone();
    let network = valid.run.network.tier;
    let workload = valid.program.map(|program| Workload {
        server: valid.key,
        uid: valid.uid,
        revision: valid.revision,
        program,
        wire: valid.wire,
        replicas: valid.replicas,
        env: valid.env,
        volumes: valid.volumes,
        limits: valid.limits,
        security: valid.security,
        network,
        stop_grace: STOP_GRACE,
        declared: valid.declared,
    });
    Built { revision, run: valid.run, workload }
}
