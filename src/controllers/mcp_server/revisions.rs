//! Which revisions of a server run: what it declares, unless a release says otherwise.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use kube::ResourceExt;

use super::{history, key_of, status::Applied};
use crate::{
    api::{
        canary_release::Phase,
        mcp_server::{McpServer, RunSpec, revision_of},
    },
    controllers::releases::Claim,
    names::{Revision, ServerKey},
};

/// The revisions of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revisions {
    /// What the spec declares.
    pub declared: Revision,
    /// What runs under the server's own key.
    pub own: Revision,
    /// What runs beside.
    pub candidate: Option<Revision>,
    /// Whether a release speaks for the server: users may then meet either revision at its URL.
    pub released: bool,
}

impl Revisions {
    /// What runs, given the release that counts for the server.
    pub fn of(server: &McpServer, claim: Option<&Claim>) -> Self {
        let declared = revision_of(&server.name_any(), &RunSpec::from(&server.spec));
        // What runs elsewhere is nobody's to hold: only one of the two addresses can be declared.
        let claim = claim.filter(|claim| claim.stable.is_some() && server.spec.remote.is_none());
        let own = claim.and_then(|claim| claim.stable.clone()).unwrap_or_else(|| declared.clone());
        let candidate = claim.and_then(|claim| claim.candidate.clone()).filter(|candidate| *candidate != own);
        Self { declared, own, candidate, released: claim.is_some() }
    }

    /// What must stay in the history whatever its length.
    pub fn in_use(&self, server: &McpServer) -> Vec<String> {
        let status = server.status.as_ref();
        let observed = [
            status.and_then(|s| s.current_revision.clone()),
            status.and_then(|s| s.candidate.as_ref()).map(|c| c.revision.clone()),
        ];
        let wanted = [Some(&self.declared), Some(&self.own), self.candidate.as_ref()];
        observed.into_iter().flatten().chain(wanted.into_iter().flatten().map(ToString::to_string)).collect()
    }

    /// Why not everybody gets what is declared: a reason and a sentence.
    pub fn held(&self, claim: Option<&Claim>) -> Option<(&'static str, String)> {
        let claim = claim.filter(|_| self.released && self.own != self.declared)?;
        let (declared, own, release) = (&self.declared, &self.own, &claim.release);
        Some(match claim.phase {
            Phase::RolledBack | Phase::Failed => (
                "RolledBack",
                format!(
                    "{own} runs; release {release} took the declared {declared} back: declare another revision, or `perch canary retry {release}`"
                ),
            ),
            phase => (
                "ReleaseUnderWay",
                format!(
                    "{own} is the stable revision; release {release} ({}) decides about the declared {declared}",
                    phase.as_str()
                ),
            ),
        })
    }
}

/// What revisions that are not declared consist of. A revision never changes, so nothing here is
/// ever out of date.
#[derive(Default)]
pub struct Held(Mutex<HashMap<ServerKey, HashMap<Revision, Arc<RunSpec>>>>);

impl Held {
    /// The server as if it declared a revision, which is fetched from the history when it is
    /// another than the one that it does declare.
    pub async fn server_at(
        &self,
        client: &kube::Client,
        server: &McpServer,
        revision: &Revision,
        declared: &Revision,
    ) -> Result<McpServer, Applied> {
        if revision == declared {
            return Ok(server.clone());
        }
        let key = key_of(server);
        let known = self.of(&key).into_iter().find(|(known, _)| known == revision).map(|(_, run)| run);
        let run = match known {
            Some(run) => run,
            None => match history::find(client, server, revision).await {
                Ok(Some(run)) => {
                    let run = Arc::new(run);
                    let mut all = self.0.lock().expect("nobody panics while holding what is held");
                    all.entry(key).or_default().insert(revision.clone(), Arc::clone(&run));
                    run
                }
                Ok(None) => {
                    let message = format!(
                        "ControllerRevision {revision} is not in the history: declare that revision again, or delete the release that holds it"
                    );
                    return Err(Applied::Blocked { reason: "RevisionLost", message, heals: false });
                }
                Err(error) => {
                    let message = format!("revision {revision} cannot be read: {error}");
                    return Err(Applied::Blocked { reason: "HistoryUnavailable", message, heals: true });
                }
            },
        };
        Ok(overlaid(server, &run))
    }

    /// Forgets what a server does not use.
    pub fn retain(&self, server: &ServerKey, in_use: &[String]) {
        let mut all = self.0.lock().expect("nobody panics while holding what is held");
        if let Some(runs) = all.get_mut(server) {
            runs.retain(|revision, _| in_use.iter().any(|name| name == revision.as_str()));
            if runs.is_empty() {
                all.remove(server);
            }
        }
    }

    /// Forgets a server.
    pub fn forget(&self, server: &ServerKey) {
        self.0.lock().expect("nobody panics while holding what is held").remove(server);
    }

    fn of(&self, server: &ServerKey) -> Vec<(Revision, Arc<RunSpec>)> {
        let all = self.0.lock().expect("nobody panics while holding what is held");
        all.get(server).into_iter().flatten().map(|(revision, run)| (revision.clone(), Arc::clone(run))).collect()
    }

    /// Whether something is so of a server, or of a revision of it that is held.
    pub fn any(&self, server: &McpServer, is: impl Fn(&McpServer) -> bool) -> bool {
        is(server) || self.of(&key_of(server)).iter().any(|(_, run)| is(&overlaid(server, run)))
    }
}

fn overlaid(server: &McpServer, run: &RunSpec) -> McpServer {
    McpServer { spec: run.within(&server.spec), ..server.clone() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::canary_release::CanaryRelease;

    fn server(spec: &str) -> McpServer {
        McpServer::new("a", serde_yaml_ng::from_str(spec).unwrap())
    }

    fn claim(phase: &str, stable: Option<&str>, candidate: &str) -> Claim {
        let release: CanaryRelease = serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "r"},
            "spec": {"targetRef": {"name": "a"}, "stages": [{"name": "s", "percentage": 10, "duration": "1h"}]},
            "status": {"phase": phase, "stableRevision": stable, "candidateRevision": candidate},
        }))
        .unwrap();
        Claim::of(&release)
    }

    #[test]
    fn what_is_declared_runs_unless_a_release_knows_better() {
        let server = server("{image: 'x:2'}");
        let alone = Revisions::of(&server, None);
        let declared = alone.declared.to_string();
        assert_eq!((&alone.own, &alone.candidate, alone.released), (&alone.declared, &None, false));
        assert_eq!(Revisions::of(&server, Some(&claim("Idle", None, &declared))).own, alone.declared);
        let held = |phase| {
            let claim = claim(phase, Some("a-0"), &declared);
            let found = Revisions::of(&server, Some(&claim));
            let held = found.held(Some(&claim)).map(|(reason, _)| reason);
            assert_eq!(found.own, Revision("a-0".into()), "{phase}");
            (found.candidate.is_some(), held)
        };
        assert_eq!(held("Pending"), (false, Some("ReleaseUnderWay")));
        assert_eq!(held("Progressing"), (true, Some("ReleaseUnderWay")));
        assert_eq!(held("Draining"), (true, Some("ReleaseUnderWay")));
        assert_eq!(held("RolledBack"), (false, Some("RolledBack")));
        let promoted = claim("Succeeded", Some(&declared), "a-0");
        let found = Revisions::of(&server, Some(&promoted));
        assert_eq!(
            (found.own == found.declared, found.candidate.clone(), found.held(Some(&promoted))),
            (true, None, None)
        );
    }

    #[test]
    fn what_runs_elsewhere_is_not_held() {
        let server = server("{remote: {url: 'https://x.example/mcp'}, transport: {type: StreamableHttp}}");
        let found = Revisions::of(&server, Some(&claim("Progressing", Some("a-0"), "a-1")));
        assert_eq!((found.own == found.declared, found.candidate, found.released), (true, None, false));
    }

    #[test]
    fn all_that_runs_stays_in_the_history() {
        let mut server = server("{image: 'x:2'}");
        server.status =
            serde_json::from_value(json!({"currentRevision": "a-old", "candidate": {"revision": "a-beside"}})).unwrap();
        let found = Revisions::of(&server, Some(&claim("Draining", Some("a-0"), "a-1")));
        let in_use = found.in_use(&server);
        for name in ["a-old", "a-beside", "a-0", "a-1", found.declared.as_str()] {
            assert!(in_use.iter().any(|n| n == name), "{name} of {in_use:?}");
        }
    }
}
