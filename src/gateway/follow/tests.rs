use kube::core::Status;
use serde_json::{Value, json};

use super::*;
use crate::routing::Upstream;

fn follower() -> Follower {
    let observer = Arc::new(Observer::new("g".into(), None).unwrap());
    Follower::new(Arc::default(), observer, Arc::default(), false)
}

fn server(name: &str) -> McpServer {
    serde_json::from_value(json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name, "namespace": "default"},
        "spec": {"image": "x"},
    }))
    .unwrap()
}

fn release(name: &str, status: &Value) -> CanaryRelease {
    serde_json::from_value(json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease",
        "metadata": {"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"targetRef": {"name": "a"}, "stages": [{"name": "s", "percentage": 10, "duration": "1h"}]},
        "status": status,
    }))
    .unwrap()
}

fn progressing(epoch: i64, message: &str) -> Value {
    json!({"phase": "Progressing", "message": message, "releaseId": "a-2.1", "stableRevision": "a-1",
        "candidateRevision": "a-2", "routing": {"desiredEpoch": epoch, "percentage": 10}})
}

fn failure(code: u16) -> watcher::Error {
    let status = Status { code, ..Status::default() };
    watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()))
}

fn list_servers(follower: &mut Follower) {
    for event in [watcher::Event::Init, watcher::Event::InitApply(server("a")), watcher::Event::InitDone] {
        follower.server(Ok(event));
    }
}

fn list_releases(follower: &mut Follower, releases: Vec<CanaryRelease>) {
    follower.release(Ok(watcher::Event::Init));
    for release in releases {
        follower.release(Ok(watcher::Event::InitApply(release)));
    }
    follower.release(Ok(watcher::Event::InitDone));
}

fn key() -> ServerKey {
    ServerKey::new("default", "a")
}

#[test]
fn pods_are_reached_over_http_whatever_their_command_speaks() {
    let declared = server("a");
    let mut runs = declared.clone();
    runs.status = serde_json::from_value(json!({"transport": {"type": "Stdio"}})).unwrap();
    for server in [declared, runs] {
        let table = RouteTable::compile([&over_http(server)]);
        assert_eq!(table.find(&key()).unwrap().upstream, Upstream::Http);
    }
}

#[test]
fn nothing_is_live_until_both_kinds_are_known() {
    let mut follower = follower();
    list_servers(&mut follower);
    assert!(follower.live.load().find(&key()).is_none() && !follower.ready.load(Ordering::Relaxed));
    list_releases(&mut follower, vec![release("r", &progressing(4, ""))]);
    let table = follower.live.load_full();
    assert_eq!(table.find(&key()).unwrap().split.as_ref().unwrap().epoch, 4);
    let report = follower.observer.report(&table);
    assert!(report.synced && follower.ready.load(Ordering::Relaxed));
    assert_eq!(report.servers[0].revisions.len(), 2);
}

#[test]
fn it_goes_on_without_releases_where_there_is_no_such_kind() {
    for (code, synced) in [(404, true), (403, false), (500, false)] {
        let mut follower = follower();
        follower.release(Err(failure(code)));
        assert!(!follower.ready.load(Ordering::Relaxed), "the servers are not known yet");
        list_servers(&mut follower);
        let table = follower.live.load_full();
        assert!(table.find(&key()).is_some() && follower.ready.load(Ordering::Relaxed), "{code}");
        assert_eq!(follower.observer.report(&table).synced, synced, "{code}");
        list_releases(&mut follower, vec![release("r", &progressing(4, ""))]);
        assert!(follower.observer.report(&follower.live.load()).synced);
        assert_eq!(follower.live.load().splits().len(), 1, "the kind came later");
    }
}

#[test]
fn only_changes_of_the_routing_change_the_table() {
    let mut follower = follower();
    list_servers(&mut follower);
    list_releases(&mut follower, vec![release("r", &progressing(4, ""))]);
    let before = follower.live.load().generation();
    follower.release(Ok(watcher::Event::Apply(release("r", &progressing(4, "more evidence")))));
    assert_eq!(follower.live.load().generation(), before);
    follower.release(Ok(watcher::Event::Apply(release("r", &progressing(5, "")))));
    assert_eq!(follower.live.load().splits()[&key()].epoch, 5);
}

#[test]
fn a_release_ends_with_its_status_or_its_object() {
    let mut follower = follower();
    list_servers(&mut follower);
    list_releases(&mut follower, vec![release("r", &progressing(4, ""))]);
    let over = follower.observer.releases.get(&key()).unwrap().over().clone();
    let mut rolled_back = progressing(5, "");
    rolled_back["phase"] = "RolledBack".into();
    follower.release(Ok(watcher::Event::Apply(release("r", &rolled_back))));
    let split = follower.live.load().find(&key()).unwrap().split.clone().unwrap();
    assert_eq!((split.epoch, split.running_candidate()), (5, None));
    assert!(over.is_cancelled());
    follower.release(Ok(watcher::Event::Delete(release("r", &rolled_back))));
    assert!(follower.live.load().find(&key()).unwrap().split.is_none());
    assert!(follower.observer.report(&follower.live.load()).servers.is_empty());
}

#[test]
fn a_listing_replaces_what_was_known() {
    let mut follower = follower();
    list_servers(&mut follower);
    list_releases(&mut follower, vec![release("r", &progressing(4, ""))]);
    list_releases(&mut follower, vec![]);
    assert!(follower.live.load().splits().is_empty());
    let mut other = release("r", &progressing(4, ""));
    other.spec.target_ref.name = "b".into();
    list_releases(&mut follower, vec![release("r", &progressing(4, ""))]);
    follower.release(Ok(watcher::Event::Apply(other)));
    assert!(follower.live.load().splits().is_empty(), "the release is about another server now");
}

#[test]
fn toolboxes_come_and_go_by_themselves() {
    let toolbox = |name: &str| -> McpToolbox {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpToolbox",
            "metadata": {"name": name, "namespace": "default"}, "spec": {"servers": [{"name": "a"}]},
        }))
        .unwrap()
    };
    let mut follower = follower();
    list_servers(&mut follower);
    list_releases(&mut follower, Vec::new());
    let key = ServerKey::toolbox("default", "dev");
    let live = |follower: &Follower| follower.live.load_full();
    assert!(live(&follower).find(&self::key()).is_some(), "servers do not wait for toolboxes");
    assert!(!live(&follower).has_toolboxes());
    for event in [watcher::Event::Init, watcher::Event::InitApply(toolbox("dev")), watcher::Event::InitDone] {
        follower.toolbox(Ok(event));
    }
    assert!(live(&follower).has_toolboxes() && live(&follower).find(&key).is_some());
    let generation = live(&follower).generation();
    follower.toolbox(Ok(watcher::Event::Apply(toolbox("dev"))));
    assert_eq!(live(&follower).generation(), generation, "a status makes no difference");
    follower.toolbox(Ok(watcher::Event::Apply(toolbox("other"))));
    follower.toolbox(Ok(watcher::Event::Delete(toolbox("dev"))));
    assert_eq!(live(&follower).toolboxes(), [&ServerKey::toolbox("default", "other")]);
    follower.toolbox(Err(failure(500)));
    assert_eq!(live(&follower).toolboxes().len(), 1, "what was known stands");
}

#[test]
fn without_the_kind_there_are_no_toolboxes() {
    for (code, known) in [(404, true), (403, false)] {
        let mut follower = follower();
        follower.toolbox(Err(failure(code)));
        list_servers(&mut follower);
        list_releases(&mut follower, Vec::new());
        assert_eq!(follower.live.load().has_toolboxes(), known, "{code}");
    }
}
