//! What ran before, kept as `apps/v1` ControllerRevisions, so that there is a way back.

use std::{collections::HashMap, sync::Mutex};

use k8s_openapi::{api::apps::v1::ControllerRevision, apimachinery::pkg::runtime::RawExtension};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams},
};

use super::{MANAGER, key_of};
use crate::{
    api::{
        crds,
        mcp_server::{McpServer, RunSpec},
    },
    names::{Revision, ServerKey},
};

/// The newest entry that this process wrote of each server. Lists come from the API server's cache,
/// which may be a moment behind: asking its store for the entries of one server would make it read
/// those of all servers of the namespace.
#[derive(Default)]
pub struct Written(Mutex<HashMap<ServerKey, (i64, Revision)>>);

impl Written {
    fn of(&self, server: &ServerKey) -> Option<(i64, Revision)> {
        self.0.lock().expect("nobody panics while holding what was written").get(server).cloned()
    }

    fn keep(&self, server: ServerKey, number: i64, revision: Revision) {
        self.0.lock().expect("nobody panics while holding what was written").insert(server, (number, revision));
    }

    /// Forgets a server.
    pub fn forget(&self, server: &ServerKey) {
        self.0.lock().expect("nobody panics while holding what was written").remove(server);
    }
}

/// The number of an entry for a revision, when the newest one is not already for it.
fn number(listed: Option<(i64, &str)>, written: Option<&(i64, Revision)>, revision: &Revision) -> Option<i64> {
    let listed_number = listed.map_or(0, |(number, _)| number);
    match written {
        // What is known here is newer than what was listed.
        Some((number, newest)) if *number > listed_number => {
            Some(if newest == revision { *number } else { number + 1 })
        }
        _ if listed.is_some_and(|(_, name)| name == revision.as_str()) => None,
        _ => Some(listed_number + 1),
    }
}

/// Names the server of a revision.
const LABEL: &str = "perch.dev/server";

/// Makes sure that the declared revision is in the history as the newest one, and that the history
/// is no longer than the spec allows. What is in use stays whatever its place. A revision that is
/// declared again keeps its name and gets a new number.
pub async fn record(
    client: &Client,
    written: &Written,
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
        all = self::all(client, server).await?;
    }
    all.sort_by_key(|r| r.revision);
    let key = key_of(server);
    let listed =
        all.last().map(|newest| (newest.revision.unwrap_or(0), newest.metadata.name.as_deref().unwrap_or_default()));
    if let Some(number) = number(listed, written.of(&key).as_ref(), revision) {
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
        written.keep(key, number, revision.clone());
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

/// The history of a server, as far as it is known.
pub async fn all(client: &Client, server: &McpServer) -> kube::Result<Vec<ControllerRevision>> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &server.namespace().unwrap_or_default());
    let selector = ListParams::default().labels(&format!("{LABEL}={}", server.name_any())).match_any();
    Ok(api.list(&selector).await?.items)
}

/// What a revision of a server consists of; none when the history does not have it.
pub async fn find(client: &Client, server: &McpServer, revision: &Revision) -> kube::Result<Option<RunSpec>> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &server.namespace().unwrap_or_default());
    let found = api.get_opt(revision.as_str()).await?;
    // Another server's revision may have the name of one of ours, but not its label.
    let mine = found.filter(|found| found.labels().get(LABEL) == Some(&server.name_any()));
    mine.map(|found| serde_json::from_value(found.data.0).map_err(kube::Error::SerdeError)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_whatever_an_old_list_says() {
        let revision = Revision("a-2".into());
        let mine = |number, name: &str| (number, Revision(name.to_owned()));
        assert_eq!(number(None, None, &revision), Some(1));
        assert_eq!(number(Some((4, "a-1")), None, &revision), Some(5));
        assert_eq!(number(Some((4, "a-2")), None, &revision), None);
        assert_eq!(number(Some((4, "a-2")), Some(&mine(5, "a-3")), &revision), Some(6), "declared again since");
        assert_eq!(number(Some((4, "a-1")), Some(&mine(5, "a-2")), &revision), Some(5), "the same entry again");
        assert_eq!(number(None, Some(&mine(5, "a-2")), &revision), Some(5), "somebody deleted it");
        assert_eq!(number(Some((7, "a-2")), Some(&mine(5, "a-2")), &revision), None);
    }
}
