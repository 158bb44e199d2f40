//! What is left when something ends: a server, a life of the backend, both.

use std::time::Duration;

use perch::runtime::{Observed, Workload};
use serde_json::json;

use super::{Machine, Stage, Talk, eventually, key, killed_life, run, running, twins};

const NOTHING: [String; 0] = [];

pub async fn remove_leaves_nothing<M: Machine>(stage: &Stage<M>, _: &str) {
    stage.run(&stage.stdio("other", &[])).await;
    let observed = stage.run(&Workload { replicas: 2, ..stage.stdio("a", &[]) }).await;
    stage.run(&stage.http("h")).await;
    stage.backend.start_session(&key("a")).await.unwrap();
    let mut talk = Talk::with(&*stage.backend, &observed.instances[0].id).await;
    // One that runs away from its group, and one that does not.
    assert_eq!(talk.text("spawn", json!({"detached": true})).await, "1");
    assert_eq!(talk.text("spawn", json!({})).await, "1");
    for name in ["a", "h"] {
        let server = key(name);
        let mut changes = stage.backend.changes();
        assert!(!stage.machine.left(&server).is_empty());
        stage.backend.remove(&server).await.unwrap();
        assert_eq!(stage.machine.left(&server), NOTHING);
        assert_eq!(stage.backend.observe(&server).await.unwrap(), Observed::default());
        assert_eq!(stage.backend.endpoints(&server), []);
        assert!(!stage.backend.servers().await.unwrap().contains(&server));
        assert!(std::iter::from_fn(|| changes.try_recv().ok()).any(|k| k == server), "its end is told");
        stage.backend.remove(&server).await.unwrap();
    }
    stage.backend.remove(&key("nobody")).await.unwrap();
    assert_eq!(stage.machine.running(&key("other")).len(), 1, "others go on");
    assert_eq!(stage.backend.servers().await.unwrap(), [key("other")]);
    // The name is free again.
    stage.run(&stage.stdio("a", &[])).await;
    assert_eq!(stage.machine.running(&key("a")).len(), 1);
}

pub async fn remove_at_any_moment_leaves_nothing<M: Machine>(stage: &Stage<M>, _: &str) {
    let a = Workload { replicas: 2, ..stage.stdio("a", &[]) };
    for step in 0..24 {
        stage.backend.apply(&a).await.unwrap();
        // Not to wait for anything: to be at another point of the start each time.
        tokio::time::sleep(Duration::from_millis(step * step)).await;
        stage.backend.remove(&key("a")).await.unwrap();
        assert_eq!(stage.machine.left(&key("a")), NOTHING, "removed {} ms after it was applied", step * step);
    }
    // What was under way anywhere had time to come up while this did.
    stage.run(&stage.stdio("b", &[])).await;
    assert_eq!(stage.machine.left(&key("a")), NOTHING);
}

pub async fn what_a_killed_life_left_is_listed_and_removed<M: Machine>(stage: &Stage<M>, killed: &str) {
    killed_life(&stage.place, test_name(killed), "a,b");
    let second = stage.machine.open().await;
    let mut servers = second.servers().await.unwrap();
    servers.sort();
    assert_eq!(servers, [key("a"), key("b")], "so that whoever asks can remove what nobody declares");
    second.remove(&key("a")).await.unwrap();
    assert_eq!(stage.machine.left(&key("a")), NOTHING);
    assert_eq!(second.servers().await.unwrap(), [key("b")]);
    run(&stage.machine, &*second, &twins(&stage.machine, "b")).await;
    assert_eq!(stage.machine.running(&key("b")).len(), 2);
    second.remove(&key("b")).await.unwrap();
    assert_eq!(second.servers().await.unwrap(), []);
}

pub async fn after_a_kill_there_are_no_twins<M: Machine>(stage: &Stage<M>, killed: &str) {
    killed_life(&stage.place, test_name(killed), "a");
    let before = stage.machine.running(&key("a"));
    if M::CONTAINED {
        assert_eq!(before.len(), 2, "containers outlive a killed perch");
    }
    let second = stage.machine.open().await;
    let observed = run(&stage.machine, &*second, &twins(&stage.machine, "a")).await;
    assert!(observed.instances.iter().all(|i| i.restarts == 0 && i.last_exit.is_none()), "{observed:?}");
    let after = stage.machine.running(&key("a"));
    assert_eq!(after.len(), 2, "no twins");
    if M::CONTAINED {
        assert_eq!(after, before, "containers are adopted as they are");
    }
    assert_eq!(second.endpoints(&key("a")).len(), 2);
    second.remove(&key("a")).await.unwrap();
}

pub async fn after_a_drop_there_are_no_twins<M: Machine>(stage: &Stage<M>, _: &str) {
    let first = stage.machine.open().await;
    run(&stage.machine, &*first, &twins(&stage.machine, "a")).await;
    drop(first);
    let second = stage.machine.open().await;
    run(&stage.machine, &*second, &twins(&stage.machine, "a")).await;
    eventually("two and no more", || (stage.machine.running(&key("a")).len() == 2).then_some(())).await;
    second.remove(&key("a")).await.unwrap();
    assert_eq!(stage.machine.left(&key("a")), NOTHING);
}

pub async fn shutdown_stops_everything_and_is_no_failure<M: Machine>(stage: &Stage<M>, _: &str) {
    let first = stage.machine.open().await;
    let a = Workload { replicas: 2, ..stage.stdio("a", &[]) };
    let observed = run(&stage.machine, &*first, &a).await;
    let session = first.start_session(&key("a")).await.unwrap();
    let mut talk = Talk::with(&*first, &observed.instances[0].id).await;
    assert_eq!(talk.text("spawn", json!({"detached": true})).await, "1");
    drop(talk);
    first.shutdown().await.unwrap();
    assert!(stage.machine.running(&key("a")).is_empty());
    assert_eq!(running(&first.observe(&key("a")).await.unwrap()), 0, "what is there, not what was wished");
    assert_eq!(first.endpoints(&key("a")), []);
    assert!(first.attach(&observed.instances[0].id).await.is_err());
    assert!(first.attach(&session).await.is_err());
    assert_eq!(first.servers().await.unwrap(), [key("a")], "it can be started again");
    drop(first);
    let second = stage.machine.open().await;
    let observed = run(&stage.machine, &*second, &a).await;
    assert!(observed.instances.iter().all(|i| i.restarts == 0 && i.last_exit.is_none()), "{observed:?}");
    assert_eq!(stage.machine.running(&key("a")).len(), 2);
    second.shutdown().await.unwrap();
    second.remove(&key("a")).await.unwrap();
    assert_eq!(stage.machine.left(&key("a")), NOTHING, "removal is possible after a shutdown too");
}

/// The test harness names a test without its crate.
fn test_name(path: &str) -> &str {
    path.split_once("::").unwrap().1
}
