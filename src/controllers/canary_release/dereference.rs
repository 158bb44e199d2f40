//! Step one: what the release is about.

use std::sync::Arc;

use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};

use super::progress_of;
use crate::{
    api::{
        canary_release::{COMMAND_ANNOTATION, CanaryRelease, Command, CommandError},
        mcp_server::{McpServer, RunSpec, revision_of},
    },
    canary::Progress,
    controllers::releases::{Claims, target_of},
    names::{Revision, ServerKey},
};

/// What the release is about.
pub struct Found {
    /// The server that is named.
    pub key: ServerKey,
    /// The server itself; none when there is none.
    pub server: Option<Arc<McpServer>>,
    /// The older release of the same server that counts instead of this one.
    pub elder: Option<String>,
    /// What was decided so far.
    pub progress: Progress,
    /// What a person told it.
    pub command: Result<Option<Command>, CommandError>,
}

impl Found {
    /// The revision that the server declares.
    pub fn declared(&self) -> Option<Revision> {
        let server = self.server.as_ref()?;
        Some(revision_of(&server.name_any(), &RunSpec::from(&server.spec)))
    }
}

/// Finds what a release is about, in what is watched anyway.
pub fn dereference(release: &CanaryRelease, servers: &Store<McpServer>, claims: &Claims) -> Found {
    let key = target_of(release);
    let server = servers.get(&ObjectRef::new(&key.name).within(&key.namespace));
    let annotation = release.annotations().get(COMMAND_ANNOTATION);
    Found {
        // A server on its way out declares nothing any more.
        server: server.filter(|server| server.metadata.deletion_timestamp.is_none()),
        elder: claims.elder(release),
        progress: progress_of(release),
        command: annotation.map(|text| Command::parse(text)).transpose(),
        key,
    }
}
