use serde_json::{Value, json};

use super::*;

fn view(status: &Value) -> PodView {
    let pod = json!({
        "metadata": {
            "name": "mcp-a-1", "namespace": "default",
            "labels": {"perch.dev/installing": "true"},
            "annotations": {
                "perch.dev/server-name": "a", "perch.dev/revision": "a-1", "perch.dev/endpoint": "3000/mcp",
            },
        },
        "spec": {"initContainers": [{"name": "install"}], "containers": [{"name": "server"}]},
        "status": status,
    });
    PodView::of(&serde_json::from_value(pod).unwrap()).unwrap()
}

fn server(state: &Value, last: &Value) -> Value {
    json!({"containerStatuses": [{
        "name": "server", "image": "x:1", "imageID": "docker.io/x@sha256:abc", "ready": false, "restartCount": 2,
        "state": state, "lastState": last,
    }]})
}

#[test]
fn the_way_out_stays_open_until_the_package_is_there() {
    let install = |state: Value| json!({"initContainerStatuses": [{"name": "install", "image": "b", "imageID": "", "ready": false, "restartCount": 0, "state": state}]});
    assert!(!view(&json!({})).installed, "a pod that has no status yet");
    let running = view(&install(json!({"running": {}})));
    assert!(!running.installed);
    assert_eq!(running.preparing().unwrap().reason, "Installing");
    let failed = view(&install(json!({"terminated": {"exitCode": 1, "message": "no such package"}})));
    assert!(!failed.installed);
    let told = failed.preparing().unwrap();
    assert_eq!(told.reason, "InstallFailed");
    assert!(told.message.contains("no such package"), "{}", told.message);
    assert!(view(&install(json!({"terminated": {"exitCode": 0}}))).installed);
}

#[test]
fn what_the_kubelet_waits_for_has_its_reason() {
    for (waiting, reason) in [
        ("ImagePullBackOff", "ImagePullFailed"),
        ("ErrImageNeverPull", "ImagePullFailed"),
        ("CreateContainerConfigError", "ReferenceNotFound"),
        ("RunContainerError", "CannotStart"),
    ] {
        let status = server(&json!({"waiting": {"reason": waiting, "message": "why"}}), &json!({}));
        let told = view(&status).preparing().unwrap();
        assert_eq!(told.reason, reason);
        assert!(told.message.contains("why") && told.retry_at.is_some());
    }
    let condition = json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "Insufficient cpu"}]});
    assert_eq!(view(&condition).preparing().unwrap().reason, "Unschedulable");
}

#[test]
fn a_crash_waits_for_its_next_start() {
    let last = json!({"terminated": {"exitCode": 42, "message": "it broke", "finishedAt": "2026-01-01T00:00:00Z"}});
    let pod = view(&server(&json!({"waiting": {"reason": "CrashLoopBackOff"}}), &last));
    let instance = pod.instance();
    assert_eq!(instance.restarts, 2);
    assert_eq!(instance.last_exit.as_ref().unwrap().stderr_tail, "it broke");
    let until = "2026-01-01T00:00:40Z".parse().unwrap();
    assert_eq!(instance.state, InstanceState::Waiting { until }, "ten seconds, doubled twice");
    let memory = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    let killed = view(&server(&json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}), &memory)).instance();
    assert_eq!(killed.last_exit.unwrap().reason, "OOMKilled");
    assert!(matches!(killed.state, InstanceState::Running { .. }));
}

#[test]
fn only_a_ready_pod_that_stays_gets_traffic() {
    let ready = |more: Value| {
        let mut status = json!({"podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]});
        status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        view(&status)
    };
    let endpoint = ready(json!({})).address().unwrap();
    assert_eq!(endpoint.address, Address::Http("http://10.0.0.7:3000/mcp".parse().unwrap()));
    assert!(ready(json!({"phase": "Failed"})).address().is_none());
    assert!(view(&json!({"podIP": "10.0.0.7"})).address().is_none());
    let mut ending = ready(json!({}));
    ending.ending = true;
    assert!(ending.address().is_none());
    assert_eq!(
        ready(json!({"podIP": "fd00::7"})).address().unwrap().address,
        Address::Http("http://[fd00::7]:3000/mcp".parse().unwrap())
    );
}

#[test]
fn what_was_tried_before_the_server_is_read_from_the_last_words() {
    let with = |state: Value| {
        let prepare =
            json!({"name": "prepare", "image": "p", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        view(&json!({"initContainerStatuses": [prepare]})).way_out
    };
    assert_eq!(with(json!({"running": {}})), None);
    assert_eq!(with(json!({"terminated": {"exitCode": 0, "message": "no JSON"}})), None);
    let said = json!({"enforced": true, "message": "found no way out"}).to_string();
    let found = with(json!({"terminated": {"exitCode": 0, "message": said}})).unwrap();
    assert_eq!((found.enforced, found.message.as_str()), (Some(true), "found no way out"));
}
