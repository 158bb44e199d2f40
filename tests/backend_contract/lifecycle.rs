//! From a wish to what runs.

use std::collections::BTreeSet;

use perch::{
    names::Revision,
    runtime::{Address, InstanceId, Observed, RuntimeError, Workload},
};

use super::{Machine, Stage, eventually, key};

fn ids(observed: &Observed) -> Vec<InstanceId> {
    observed.instances.iter().map(|i| i.id.clone()).collect()
}

pub async fn applying_again_changes_nothing<M: Machine>(stage: &Stage<M>, _: &str) {
    let a = Workload { replicas: 2, ..stage.stdio("a", &[]) };
    let before = stage.run(&a).await;
    let handles = stage.machine.running(&key("a"));
    assert_eq!(handles.len(), 2);
    for _ in 0..3 {
        stage.backend.apply(&a).await.unwrap();
    }
    // Whatever the backend does for `a`, it had the time in which `b` came up.
    stage.run(&stage.stdio("b", &[])).await;
    assert_eq!(ids(&stage.backend.observe(&key("a")).await.unwrap()), ids(&before));
    assert_eq!(stage.machine.running(&key("a")), handles);
    let ids: BTreeSet<InstanceId> = ids(&before).into_iter().collect();
    assert_eq!(ids.len(), 2, "instances have names of their own");
}

pub async fn replicas_go_up_and_down<M: Machine>(stage: &Stage<M>, _: &str) {
    let a = stage.stdio("a", &[]);
    let first = ids(&stage.run(&a).await)[0].clone();
    let three = stage.run(&Workload { replicas: 3, ..a.clone() }).await;
    assert_eq!(three.instances[0].id, first, "what runs already goes on");
    let one = stage.run(&a).await;
    assert_eq!(ids(&one), std::slice::from_ref(&first));
    eventually("two to end", || (stage.machine.running(&key("a")).len() == 1).then_some(())).await;
    let none = stage.run(&Workload { replicas: 0, ..a.clone() }).await;
    assert_eq!(none.instances, []);
    assert_eq!(stage.backend.endpoints(&key("a")), []);
    eventually("the last to end", || stage.machine.running(&key("a")).is_empty().then_some(())).await;
    assert_ne!(ids(&stage.run(&a).await)[0], first, "a name is never used again");
}

pub async fn a_new_revision_replaces_every_instance<M: Machine>(stage: &Stage<M>, _: &str) {
    let old = Workload { replicas: 2, ..stage.stdio("a", &["--name", "old"]) };
    stage.run(&old).await;
    let before = stage.machine.running(&key("a"));
    let new = Workload {
        revision: Revision("a-2".into()),
        program: stage.machine.fixture(&["stdio", "--name", "new"]),
        ..old
    };
    let observed = stage.run(&new).await;
    assert!(observed.instances.iter().all(|i| i.restarts == 0 && i.last_exit.is_none()), "{observed:?}");
    eventually("the old to end", || stage.machine.running(&key("a")).is_disjoint(&before).then_some(())).await;
    assert_eq!(stage.machine.running(&key("a")).len(), 2);
    let endpoints = stage.backend.endpoints(&key("a"));
    assert_eq!(endpoints.len(), 2);
    assert!(endpoints.iter().all(|e| e.revision == new.revision && e.address == Address::Stdio));
}

pub async fn a_namesake_with_another_uid_is_another_server<M: Machine>(stage: &Stage<M>, _: &str) {
    let old = stage.stdio("a", &[]);
    stage.run(&old).await;
    let before = stage.machine.running(&key("a"));
    let namesake = Workload { uid: "another".into(), ..old };
    stage.backend.apply(&namesake).await.unwrap();
    eventually("the old to end and the new to run", || {
        let now = stage.machine.running(&key("a"));
        (now.len() == 1 && now.is_disjoint(&before)).then_some(())
    })
    .await;
}

pub async fn what_can_never_run_is_refused_at_once<M: Machine>(stage: &Stage<M>, _: &str) {
    let impossible = Workload { program: stage.machine.impossible(), ..stage.stdio("a", &[]) };
    let error = stage.backend.apply(&impossible).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("spec."), "it names what to change: {error}");
    assert_eq!(stage.backend.servers().await.unwrap(), []);
    assert_eq!(stage.backend.observe(&key("a")).await.unwrap(), Observed::default());
}

pub async fn an_http_instance_is_reached_at_its_endpoint<M: Machine>(stage: &Stage<M>, _: &str) {
    let a = Workload { replicas: 2, ..stage.http("a") };
    let observed = stage.run(&a).await;
    let endpoints = stage.backend.endpoints(&key("a"));
    assert_eq!(endpoints.iter().map(|e| e.instance.clone()).collect::<Vec<_>>(), ids(&observed));
    let mut urls = BTreeSet::new();
    for endpoint in endpoints {
        let Address::Http(url) = endpoint.address else { panic!("{endpoint:?}") };
        assert_eq!(url.path(), "/mcp");
        let (host, port) = (url.host_str().unwrap().to_owned(), url.port().unwrap());
        // It runs; that it listens comes a moment later.
        eventually("the server to listen", || std::net::TcpStream::connect((host.as_str(), port)).ok()).await;
        urls.insert(url);
    }
    assert_eq!(urls.len(), 2, "each has its own address");
    let error = stage.backend.attach(&observed.instances[0].id).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotRunning(_)), "an HTTP server has no streams: {error}");
}
