//! Secrets, limits and what is used.

use std::path::PathBuf;

use futures::StreamExt;
use perch::runtime::{
    LogOptions, RuntimeError, Workload,
    workload::{EnvEntry, EnvValue, Limits, Mount, MountSource},
};
use serde_json::json;

use super::{Machine, Stage, Talk, eventually, key, plain, running};

const SECRET: &str = "hunter2-5f0c";

pub async fn secrets_reach_the_server_and_nobody_else<M: Machine>(stage: &Stage<M>, _: &str) {
    let files = Mount {
        name: "token".into(),
        path: PathBuf::from("/secret"),
        read_only: true,
        source: MountSource::Files(vec![("token".into(), SECRET.as_bytes().to_vec().into())]),
    };
    let mut a = stage.stdio("a", &[]);
    a.env = vec![
        plain("PLAIN", "first"),
        plain("PLAIN", "last"),
        EnvEntry { name: "SECRET".into(), value: EnvValue::Secret(SECRET.to_owned().into()) },
        // A server may not slip its mark.
        plain("PERCH_INSTANCE", "forged"),
    ];
    let with_files = Workload { volumes: vec![files], ..a.clone() };
    assert!(!format!("{with_files:?}").contains(SECRET));
    if M::CONTAINED {
        a = with_files;
    } else {
        let error = stage.backend.apply(&with_files).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Unsupported(_)), "{error}");
        assert!(error.to_string().contains("volume token cannot be mounted into a local process"), "{error}");
    }
    let instance = stage.run(&a).await.instances[0].id.clone();
    let mut talk = Talk::with(&*stage.backend, &instance).await;
    assert_eq!(talk.text("env", json!({"name": "PLAIN"})).await, "last");
    assert_eq!(talk.text("env", json!({"name": "SECRET"})).await, SECRET);
    if M::CONTAINED {
        assert_eq!(talk.text("read", json!({"path": "/secret/token"})).await, SECRET);
        assert!(talk.text("write", json!({"path": "/secret/x"})).await.contains("ead-only"));
    }
    let handles = stage.machine.running(&key("a"));
    assert_eq!(handles.len(), 1, "its mark is its own");
    let exposed = stage.machine.exposed(handles.first().unwrap());
    assert!(exposed.contains("fixture"), "{exposed}");
    assert!(!exposed.contains(SECRET), "{exposed}");
    let log: Vec<_> = stage.backend.logs(&key("a"), LogOptions::default()).await.unwrap().collect().await;
    assert!(!format!("{log:?}").contains(SECRET));
    drop(talk);
    stage.backend.remove(&key("a")).await.unwrap();
    assert_eq!(stage.machine.left(&key("a")), Vec::<String>::new(), "the files of the secret too");
}

pub async fn usage_is_told_of_each_running_instance<M: Machine>(stage: &Stage<M>, _: &str) {
    assert_eq!(stage.backend.usage(&key("nobody")).await.unwrap(), []);
    let observed = stage.run(&Workload { replicas: 2, ..stage.stdio("a", &["--burn"]) }).await;
    // An engine's first sample may come before the first tick of the instance.
    let deadline = tokio::time::Instant::now() + crate::support::PATIENCE;
    let usage = loop {
        let usage = stage.backend.usage(&key("a")).await.unwrap();
        if usage.len() == 2 && usage.iter().all(|u| u.cpus > 0.0 && u.memory_bytes > 0) {
            break usage;
        }
        assert!(tokio::time::Instant::now() < deadline, "{usage:?}");
    };
    for (used, instance) in usage.iter().zip(&observed.instances) {
        assert_eq!(used.instance, instance.id);
        assert!(used.cpus > 0.05 && used.cpus < 2.5, "{used:?}");
        assert!(used.memory_bytes > 100 << 10 && used.memory_bytes < 512 << 20, "{used:?}");
    }
}

pub async fn memory_has_a_limit<M: Machine>(stage: &Stage<M>, _: &str) {
    let limits = Limits { memory_bytes: 96 << 20, ..stage.stdio("a", &[]).limits };
    let instance = stage.run(&Workload { limits, ..stage.stdio("a", &[]) }).await.instances[0].id.clone();
    let mut talk = Talk::with(&*stage.backend, &instance).await;
    assert_eq!(talk.text("alloc", json!({"mib": 16})).await, (16 << 20).to_string(), "within the limit");
    assert_eq!(talk.call("alloc", json!({"mib": 256})).await, None, "beyond it");
    let observed =
        stage.until(&key("a"), "the restart", |o| o.instances.iter().any(|i| i.restarts == 1) && running(o) == 1).await;
    let exit = observed.instances[0].last_exit.clone().unwrap();
    if M::CONTAINED {
        assert_eq!((exit.reason, exit.code), ("OOMKilled", Some(137)));
    } else {
        // A process is refused memory and gives up by itself.
        assert_eq!(exit.reason, "Killed");
        assert!(exit.stderr_tail.contains("memory allocation of"), "{}", exit.stderr_tail);
    }
}

pub async fn processes_have_a_limit_or_end_together<M: Machine>(stage: &Stage<M>, _: &str) {
    let limits = Limits { pids: 16, ..stage.stdio("a", &[]).limits };
    let instance = stage.run(&Workload { limits, ..stage.stdio("a", &[]) }).await.instances[0].id.clone();
    let mut talk = Talk::with(&*stage.backend, &instance).await;
    let started: u32 = talk.text("spawn", json!({"count": 32})).await.parse().unwrap();
    if M::CONTAINED {
        assert!((1..16).contains(&started), "{started}");
    } else {
        assert_eq!(started, 32, "a local process has no such limit, as its documentation says");
    }
    // Whatever it started ends with it.
    assert_eq!(talk.call("crash", json!({})).await, None);
    stage.until(&key("a"), "the restart", |o| o.instances.iter().any(|i| i.restarts == 1) && running(o) == 1).await;
    eventually("its children to end", || {
        (stage.machine.left(&key("a")).iter().filter(|l| l.contains("process")).count() <= 1).then_some(())
    })
    .await;
}
