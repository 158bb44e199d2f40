//! What ran before, kept as `apps/v1` ControllerRevisions, so that there is a way back.

use k8s_openapi::{api::apps::v1::ControllerRevision, apimachinery::pkg::runtime::RawExtension};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams},
};

use super::MANAGER;
use crate::{
    api::{
        crds,
        mcp_server::{McpServer, RunSpec},
    },
    names::Revision,
};

/// Names the server of a revision.
const LABEL: &str = "perch.dev/server";

/// Makes sure that the declared revision is in the history as the newest one, and that the history
/// is no longer than the spec allows. What is in use stays whatever its place. A revision that is
/// declared again keeps its name and gets a new number.
pub async fn record(
    client: &Client,
    server: &McpServer,
    revision: &Revision,
    run: &RunSpec,
    in_use: &[String],
) -> kube::Result<()> {
    let known = server.status.as_ref().and_then(|s| s.declared_revision.as_deref());
    let seen = server.status.as_ref().and_then(|s| s.observed_generation);
    if known == Some(revision.as_str()) && seen == server.metadata.generation {
        return Ok(());
    }
    let namespace = server.namespace().unwrap_or_default();
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &namespace);
    // A server that Perch has not looked at has no history to look at.
    let mut all = Vec::new();
    if seen.is_some_and(|generation| generation != crds::UNSEEN) {
        let selector = ListParams::default().labels(&format!("{LABEL}={}", server.name_any()));
        all = api.list(&selector).await?.items;
    }
    all.sort_by_key(|r| r.revision);
    let newest = all.last();
    if newest.is_none_or(|n| n.name_any() != revision.as_str()) {
        let number = newest.and_then(|n| n.revision).unwrap_or(0) + 1;
        let object = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(revision.to_string()),
                namespace: Some(namespace),
                labels: Some([(LABEL.to_owned(), server.name_any())].into()),
                owner_references: server.controller_owner_ref(&()).map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            data: RawExtension(serde_json::to_value(run).map_err(kube::Error::SerdeError)?),
            revision: Some(number),
        };
        let params = PatchParams::apply(MANAGER).force();
        api.patch(revision.as_str(), &params, &Patch::Apply(&object)).await?;
    }
    let limit = usize::try_from(server.spec.revision_history_limit).unwrap_or(0);
    let old: Vec<String> = all.iter().map(ResourceExt::name_any).filter(|name| name != revision.as_str()).collect();
    let surplus = old.len().saturating_sub(limit);
    for name in old.iter().filter(|name| !in_use.contains(name)).take(surplus) {
        match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other?),
        }
    }
    Ok(())
}

/// What a revision of a server consists of; none when the history does not have it.
pub async fn find(client: &Client, server: &McpServer, revision: &Revision) -> kube::Result<Option<RunSpec>> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &server.namespace().unwrap_or_default());
    let found = api.get_opt(revision.as_str()).await?;
    // Another server's revision may have the name of one of ours, but not its label.
    let mine = found.filter(|found| found.labels().get(LABEL) == Some(&server.name_any()));
    mine.map(|found| serde_json::from_value(found.data.0).map_err(kube::Error::SerdeError)).transpose()
}
