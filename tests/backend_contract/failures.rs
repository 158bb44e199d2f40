//! Instances that end by themselves, or are ended by others.

use jiff::Timestamp;
use perch::{
    names::Revision,
    runtime::{InstanceState, Workload},
};

use super::{Machine, Stage, eventually, key, running};

pub async fn an_instance_killed_behind_its_back_comes_back<M: Machine>(stage: &Stage<M>, _: &str) {
    let a = stage.stdio("a", &[]);
    let first = stage.run(&a).await.instances[0].clone();
    assert_eq!((first.restarts, &first.last_exit), (0, &None));
    let handle = |what: &str| {
        let machine = &stage.machine;
        let what = what.to_owned();
        async move { eventually(&what, || machine.running(&key("a")).into_iter().next()).await }
    };
    stage.machine.kill(&handle("the first run").await);
    let again = stage
        .until(&key("a"), "the first restart", |o| o.instances.iter().any(|i| i.restarts == 1) && running(o) == 1)
        .await;
    let exit = again.instances[0].last_exit.clone().unwrap();
    assert_eq!((exit.reason, exit.code), ("Killed", Some(137)));
    assert_ne!(again.instances[0].id, first.id, "a start is another instance");
    // Twice in a row: now it waits first, and is not reached meanwhile.
    stage.machine.kill(&handle("the second run").await);
    let waiting = stage
        .until(&key("a"), "the back-off", |o| {
            o.instances.iter().any(|i| i.restarts == 2 && matches!(i.state, InstanceState::Waiting { .. }))
        })
        .await;
    let InstanceState::Waiting { until } = waiting.instances[0].state else { unreachable!() };
    let exit = waiting.instances[0].last_exit.clone().unwrap();
    let wait = until.duration_since(exit.at);
    assert!((wait.as_millis() - 1000).abs() < 800, "about one second: {wait:?}");
    assert_eq!(stage.backend.endpoints(&key("a")), []);
    stage.until(&key("a"), "the second restart", |o| running(o) == 1).await;
    assert!(Timestamp::now() >= until, "not before its time");
    eventually("one process", || (stage.machine.running(&key("a")).len() == 1).then_some(())).await;
    assert_eq!(stage.backend.endpoints(&key("a")).len(), 1);
}

pub async fn a_crash_loop_is_told_with_its_last_words<M: Machine>(stage: &Stage<M>, _: &str) {
    let a = stage.stdio("a", &["--exit", "7"]);
    stage.backend.apply(&a).await.unwrap();
    let mut waits = Vec::new();
    for restarts in [2, 3] {
        let observed = stage
            .until(&key("a"), "a wait", |o| {
                o.instances.iter().any(|i| i.restarts == restarts && matches!(i.state, InstanceState::Waiting { .. }))
            })
            .await;
        let instance = &observed.instances[0];
        let exit = instance.last_exit.clone().unwrap();
        assert_eq!((exit.reason, exit.code), ("Error", Some(7)));
        assert!(exit.stderr_tail.contains("the fixture was told to end"), "{}", exit.stderr_tail);
        assert!(exit.stderr_tail.len() <= 1024);
        let InstanceState::Waiting { until } = instance.state else { unreachable!() };
        waits.push(until.duration_since(exit.at).as_millis());
        assert_eq!(stage.backend.endpoints(&key("a")), []);
    }
    assert!(waits[1] > waits[0] + 500, "the wait grows: {waits:?}");
}

pub async fn a_program_that_is_not_there_cannot_start<M: Machine>(stage: &Stage<M>, _: &str) {
    use perch::runtime::workload::Program;
    let program = match stage.machine.fixture(&[]) {
        Program::Image { image, .. } => {
            Program::Image { image, command: vec!["/no/such/program".into()], args: Vec::new() }
        }
        _ => Program::Command { command: vec!["/no/such/program".into()], args: Vec::new() },
    };
    let a = Workload { program, ..stage.stdio("a", &[]) };
    stage.backend.apply(&a).await.unwrap();
    let observed = stage
        .until(&key("a"), "the reason", |o| {
            let told = o.preparing.as_ref().is_some_and(|p| p.reason == "CannotStart" && p.retry_at.is_some());
            told || o.instances.iter().any(|i| i.last_exit.as_ref().is_some_and(|e| e.reason == "CannotStart"))
        })
        .await;
    let said = observed.preparing.map(|p| p.message).into_iter();
    let said: String =
        said.chain(observed.instances.into_iter().filter_map(|i| Some(i.last_exit?.stderr_tail))).collect();
    assert!(said.contains("/no/such/program"), "{said}");
    // What would have become the program is gone at once.
    eventually("nothing to run", || stage.machine.running(&key("a")).is_empty().then_some(())).await;
}

pub async fn a_failing_revision_can_be_replaced<M: Machine>(stage: &Stage<M>, _: &str) {
    let bad = Workload { replicas: 2, ..stage.stdio("a", &["--exit", "7"]) };
    stage.backend.apply(&bad).await.unwrap();
    stage.until(&key("a"), "back-off", |o| o.instances.iter().any(|i| i.restarts >= 3)).await;
    let good = Workload {
        revision: Revision("a-2".into()),
        program: stage.machine.fixture(&["stdio"]),
        replicas: 1,
        ..bad.clone()
    };
    let observed = stage.run(&good).await;
    assert_eq!((observed.instances[0].restarts, &observed.instances[0].last_exit), (0, &None), "a fresh start");
    // And nothing is left of a failing one that is scaled to nothing.
    stage.backend.apply(&bad).await.unwrap();
    stage.until(&key("a"), "failures", |o| o.instances.iter().any(|i| i.restarts >= 1)).await;
    let none = stage.run(&Workload { replicas: 0, ..bad }).await;
    assert_eq!(none.instances, []);
    assert_eq!(none.preparing, None);
    eventually("both to end", || stage.machine.running(&key("a")).is_empty().then_some(())).await;
}
