//! Standard streams, sessions and logs.

use std::{collections::BTreeSet, time::Duration};

use futures::StreamExt;
use perch::{
    names::Revision,
    runtime::{InstanceId, LogLine, LogOptions, RuntimeError, Workload},
};
use serde_json::json;

use super::{Machine, Stage, Talk, eventually, key, running};
use crate::support::PATIENCE;

pub async fn streams_have_one_holder_at_a_time<M: Machine>(stage: &Stage<M>, _: &str) {
    let instance = stage.run(&stage.stdio("a", &[])).await.instances[0].id.clone();
    let mut talk = Talk::with(&*stage.backend, &instance).await;
    let error = stage.backend.attach(&instance).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::AlreadyAttached(id) if *id == instance), "{error}");
    let pid = talk.text("whoami", json!({})).await;
    drop(talk);
    let mut streams = stage.backend.attach(&instance).await.unwrap();
    // What says that it is done writing does not end the server for the next holder.
    tokio::io::AsyncWriteExt::shutdown(&mut streams.stdin).await.unwrap();
    drop(streams.stdin);
    let error = stage.backend.attach(&instance).await.unwrap_err();
    assert!(matches!(error, RuntimeError::AlreadyAttached(_)), "one half is still held: {error}");
    drop(streams.stdout);
    let mut talk = Talk::with(&*stage.backend, &instance).await;
    let own = |status: &str| status.lines().find(|l| l.starts_with("Pid:")).map(str::to_owned);
    assert_eq!(own(&talk.text("whoami", json!({})).await), own(&pid), "the same process goes on");
    // The streams end with the instance, and those of the next start are free.
    assert_eq!(talk.call("crash", json!({})).await, None);
    let again =
        stage.until(&key("a"), "the restart", |o| o.instances.iter().any(|i| i.restarts == 1) && running(o) == 1).await;
    let error = stage.backend.attach(&instance).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotRunning(_)), "{error}");
    let mut next = Talk::with(&*stage.backend, &again.instances[0].id).await;
    assert_eq!(next.text("echo", json!({"text": "next"})).await, "next");
    let error = stage.backend.attach(&InstanceId("nobody".into())).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotRunning(_)), "{error}");
}

pub async fn sessions_are_instances_of_their_own<M: Machine>(stage: &Stage<M>, _: &str) {
    let a = stage.stdio("a", &[]);
    let error = stage.backend.start_session(&key("a")).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotRunning(_)), "{error}");
    stage.run(&a).await;
    let server = key("a");
    let (one, two) = tokio::join!(stage.backend.start_session(&server), stage.backend.start_session(&server));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one, two);
    assert_eq!(stage.backend.observe(&key("a")).await.unwrap().instances.len(), 1, "a session is no replica");
    assert_eq!(stage.backend.endpoints(&key("a")).len(), 1);
    eventually("all three", || (stage.machine.running(&key("a")).len() == 3).then_some(())).await;
    for session in [&one, &two] {
        let mut talk = Talk::with(&*stage.backend, session).await;
        assert_eq!(talk.text("echo", json!({"text": session.0})).await, session.0);
    }
    stage.backend.end_session(&one).await.unwrap();
    eventually("the session to end", || (stage.machine.running(&key("a")).len() == 2).then_some(())).await;
    stage.backend.end_session(&one).await.unwrap();
    stage.backend.end_session(&InstanceId("nobody".into())).await.unwrap();
    let error = stage.backend.attach(&one).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotRunning(_)), "{error}");
    let mut talk = Talk::with(&*stage.backend, &two).await;
    assert_eq!(talk.text("echo", json!({"text": "still here"})).await, "still here");
    // A wish that changes replicas leaves sessions alone; the end of the server ends them.
    stage.run(&Workload { replicas: 2, ..a }).await;
    assert_eq!(talk.text("echo", json!({"text": "still here"})).await, "still here");
    stage.backend.remove(&key("a")).await.unwrap();
    assert_eq!(stage.machine.left(&key("a")), Vec::<String>::new());
}

pub async fn a_session_that_ends_is_gone<M: Machine>(stage: &Stage<M>, _: &str) {
    stage.run(&stage.stdio("a", &[])).await;
    let replica = stage.machine.running(&key("a"));
    let parts = || stage.machine.left(&key("a")).iter().filter(|l| l.starts_with(['p', 'c'])).count();
    assert_eq!(parts(), 1);
    let session = stage.backend.start_session(&key("a")).await.unwrap();
    let mut talk = Talk::with(&*stage.backend, &session).await;
    assert_eq!(talk.call("crash", json!({})).await, None);
    eventually("its end", || (stage.machine.running(&key("a")) == replica).then_some(())).await;
    // It does not come back, and nobody has to clean up after it.
    eventually("nothing of it to be left", || (parts() == 1).then_some(())).await;
    stage.run(&Workload { revision: Revision("a-2".into()), ..stage.stdio("a", &[]) }).await;
    eventually("one replica", || (stage.machine.running(&key("a")).len() == 1).then_some(())).await;
    stage.backend.end_session(&session).await.unwrap();
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|l| l.text.as_str()).collect()
}

async fn read<M: Machine>(stage: &Stage<M>, options: LogOptions) -> Vec<LogLine> {
    stage.backend.logs(&key("a"), options).await.unwrap().collect().await
}

pub async fn logs_come_in_order_and_in_part<M: Machine>(stage: &Stage<M>, _: &str) {
    assert_eq!(read(stage, LogOptions::default()).await, [], "an unknown server said nothing");
    let instance = stage.run(&stage.stdio("a", &[])).await.instances[0].id.clone();
    let mut talk = Talk::with(&*stage.backend, &instance).await;
    talk.text("log", json!({"from": 0, "to": 100})).await;
    let all = loop {
        let all = read(stage, LogOptions::default()).await;
        if all.len() == 101 {
            break all;
        }
        assert!(all.len() < 101, "{all:?}");
        tokio::task::yield_now().await;
    };
    let mut expected = vec!["fixture starts".to_owned()];
    expected.extend((0..100).map(|i| format!("line {i}")));
    assert_eq!(texts(&all), expected, "all of standard error in order, and nothing of standard output");
    assert!(all.iter().all(|l| l.at.is_some()) && all.is_sorted_by_key(|l| l.at));
    let tail = read(stage, LogOptions { tail: Some(5), ..LogOptions::default() }).await;
    assert_eq!(texts(&tail), ["line 95", "line 96", "line 97", "line 98", "line 99"]);
    assert_eq!(read(stage, LogOptions { tail: Some(0), ..LogOptions::default() }).await, []);
    let since = all[60].at;
    let wanted: Vec<&LogLine> = all.iter().filter(|l| l.at >= since).collect();
    let later = read(stage, LogOptions { since, ..LogOptions::default() }).await;
    assert_eq!(later.iter().collect::<Vec<_>>(), wanted, "from that moment on, to the fraction of a second");
    let both = read(stage, LogOptions { since, tail: Some(2), ..LogOptions::default() }).await;
    assert_eq!(texts(&both), ["line 98", "line 99"]);
}

pub async fn a_follower_sees_restarts_and_new_instances<M: Machine>(stage: &Stage<M>, _: &str) {
    let a = stage.stdio("a", &[]);
    let instance = stage.run(&a).await.instances[0].id.clone();
    let mut talk = Talk::with(&*stage.backend, &instance).await;
    talk.text("log", json!({"from": 0, "to": 10})).await;
    eventually("ten lines", || {
        let lines = futures::executor::block_on(read(stage, LogOptions::default()));
        (lines.len() == 11).then_some(())
    })
    .await;
    let options = LogOptions { tail: Some(2), follow: true, ..LogOptions::default() };
    let mut lines = stage.backend.logs(&key("a"), options).await.unwrap();
    let mut next = async || tokio::time::timeout(PATIENCE, lines.next()).await.expect("a line").expect("no end").text;
    assert_eq!([next().await, next().await], ["line 8", "line 9"]);
    talk.text("log", json!({"from": 10, "to": 40})).await;
    for i in 10..40 {
        assert_eq!(next().await, format!("line {i}"));
    }
    talk.call("crash", json!({})).await;
    assert_eq!(next().await, "the fixture crashes as asked");
    assert_eq!(next().await, "fixture starts", "the next start is followed too");
    let new = Workload { revision: Revision("a-2".into()), ..a };
    let instance = stage.run(&new).await.instances[0].id.clone();
    assert_eq!(next().await, "fixture starts", "and an instance that was not there yet");
    let mut talk = Talk::with(&*stage.backend, &instance).await;
    talk.text("log", json!({"from": 40, "to": 45})).await;
    let seen: Vec<String> = [next().await, next().await, next().await, next().await, next().await].into();
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 5, "nothing twice: {seen:?}");
    assert_eq!(seen[0], "line 40");
    let quiet = tokio::time::timeout(Duration::from_millis(500), next()).await;
    assert!(quiet.is_err(), "nothing that was not written: {quiet:?}");
}
