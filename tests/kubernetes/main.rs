//! The whole of it on a real Kubernetes with a node: the chart, real MCP servers, and what goes
//! wrong in a cluster. One story, because everything after the first step stands on the release
//! that the chart made.
//!
//! `PERCH_TEST_STEPS=word,word` runs only the steps with one of these words in their names.
//!
//! `hack/test.sh` says where the images are: `PERCH_TEST_IMAGE` (Perch itself),
//! `PERCH_TEST_FIXTURE_IMAGE` and `PERCH_TEST_BASE_IMAGE`.

#[path = "../support/cluster/mod.rs"]
mod cluster;
#[path = "../support/mod.rs"]
mod support;

mod canary;
mod faults;
mod policy;
mod proxy;
mod release;
mod servers;
mod traffic;

use release::Release;

type Step = fn(&Release);

#[test]
fn from_install_to_uninstall() {
    let release = Release::install();
    let steps: [(&str, Step); 17] = [
        ("helm test", Release::test),
        ("the samples of the README, unchanged", servers::samples),
        ("sessions with a process of their own", servers::per_session),
        ("drift is repaired", servers::drift),
        ("a rolling update fails no call", traffic::rolling_update),
        ("a pod that is killed comes back", faults::pod_killed),
        ("the network tier blocks", faults::network_tier),
        ("only listed names are reached", policy::listed_names),
        ("what cannot run says why", faults::cannot_run),
        ("nothing is written when nothing changes", servers::quiet),
        ("the operator that leads is killed", faults::leader_killed),
        ("the API server is away for a while", faults::api_server_away),
        // The next upgrade takes back what the first switches on.
        ("a root container is denied, warned about, and admitted after the fix", policy::root_container),
        ("a rotated credential is seen by the running server", policy::rotated_credential),
        ("helm upgrade keeps sessions", release::upgrade_keeps_sessions),
        ("a release is promoted and one taken back under load", canary::promotion_and_rollback),
        ("helm uninstall keeps what users declared", Release::uninstall),
    ];
    let only = std::env::var("PERCH_TEST_STEPS").unwrap_or_default();
    let asked = |name: &str| only.is_empty() || only.split(',').any(|word| name.contains(word));
    for (name, step) in steps.into_iter().filter(|(name, _)| asked(name)) {
        let begun = std::time::Instant::now();
        eprintln!("-- {name}");
        step(&release);
        eprintln!("-- {name}: {:.1?}", begun.elapsed());
    }
}
