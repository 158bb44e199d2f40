//! The API in process, as controllers see it.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
    },
};
use perch::{
    api::{crds, mcp_server::McpServer},
    local::{ControlPlane, LocalError},
};
use serde_json::json;

async fn open(dir: &std::path::Path) -> Api<McpServer> {
    Api::namespaced(ControlPlane::open(dir, crds::all()).await.unwrap().client(), "default")
}

fn server(name: &str) -> McpServer {
    McpServer::new(name, serde_json::from_value(json!({"image": "x:1"})).unwrap())
}

fn code(error: &kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason.clone()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_stale_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path()).await;
    let first = api.create(&PostParams::default(), &server("a")).await.unwrap();
    let mut newer = first.clone();
    newer.spec.replicas = 2;
    let newer = api.replace("a", &PostParams::default(), &newer).await.unwrap();
    assert_eq!(newer.metadata.generation, Some(2));
    let error = api.replace("a", &PostParams::default(), &first).await.unwrap_err();
    assert_eq!(code(&error), (409, "Conflict".into()));
    let unchanged = api.replace("a", &PostParams::default(), &newer).await.unwrap();
    assert_eq!(unchanged.metadata.resource_version, newer.metadata.resource_version);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path()).await;
    api.create(&PostParams::default(), &server("a")).await.unwrap();
    let patch = json!({"status": {"tools": 3}, "spec": {"replicas": 9}});
    let status = api.patch_status("a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!((status.status.unwrap().tools, status.spec.replicas, status.metadata.generation), (Some(3), 1, Some(1)));
    let spec = api
        .patch("a", &PatchParams::default(), &Patch::Merge(&json!({"status": {"tools": 7}, "spec": {"replicas": 2}})))
        .await
        .unwrap();
    assert_eq!((spec.status.unwrap().tools, spec.spec.replicas, spec.metadata.generation), (Some(3), 2, Some(2)));
}

#[tokio::test]
async fn a_watch_from_a_list_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path()).await;
    let version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    for i in 0..50 {
        api.create(&PostParams::default(), &server(&format!("s{i}"))).await.unwrap();
    }
    api.delete("s7", &DeleteParams::default()).await.unwrap();
    let mut events = api.watch(&WatchParams::default().timeout(5), &version).await.unwrap().boxed();
    let (mut added, mut deleted) = (0, 0);
    while let Some(event) = events.try_next().await.unwrap() {
        match event {
            WatchEvent::Added(_) => added += 1,
            WatchEvent::Deleted(_) => {
                deleted += 1;
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((added, deleted), (50, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_watcher_misses_the_last_change() {
    const WATCHERS: usize = 50;
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path()).await;
    let version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    for round in 0..5 {
        let mut watchers = tokio::task::JoinSet::new();
        for _ in 0..WATCHERS {
            let mut events = api.watch(&WatchParams::default().timeout(60), &version).await.unwrap().boxed();
            watchers.spawn(async move {
                let mut seen = 0;
                // Nothing is written afterwards that would wake one who slept through the last.
                while seen < 2 * (round + 1) {
                    assert!(matches!(events.try_next().await.unwrap().expect("no end"), WatchEvent::Added(_)));
                    seen += 1;
                }
            });
        }
        let (one, two) = (server(&format!("a{round}")), server(&format!("b{round}")));
        let params = PostParams::default();
        api.create(&params, &one).await.unwrap();
        api.create(&params, &two).await.unwrap();
        let seen = async { while watchers.join_next().await.transpose().unwrap().is_some() {} };
        tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.expect("every watcher sees every change");
    }
}

#[tokio::test]
async fn a_watch_from_too_long_ago_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    {
        let api = open(dir.path()).await;
        for i in 0..3 {
            api.create(&PostParams::default(), &server(&format!("s{i}"))).await.unwrap();
        }
    }
    // What came before a restart is not kept.
    let api = loop {
        match ControlPlane::open(dir.path(), crds::all()).await {
            Ok(plane) => break Api::<McpServer>::namespaced(plane.client(), "default"),
            Err(LocalError::InUse(_)) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    };
    let mut events = api.watch(&WatchParams::default().timeout(5), "2").await.unwrap().boxed();
    match events.try_next().await.unwrap() {
        Some(WatchEvent::Error(error)) => assert_eq!(error.code, 410),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn lists_come_in_pages_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path()).await;
    for i in 0..25 {
        api.create(&PostParams::default(), &server(&format!("s{i:02}"))).await.unwrap();
    }
    let mut names = Vec::new();
    let mut page = api.list(&ListParams::default().limit(10)).await.unwrap();
    api.delete("s24", &DeleteParams::default()).await.unwrap();
    loop {
        names.extend(page.items.iter().map(|s| s.metadata.name.clone().unwrap()));
        let Some(token) = page.metadata.continue_.filter(|t| !t.is_empty()) else { break };
        page = api.list(&ListParams::default().limit(10).continue_token(&token)).await.unwrap();
    }
    assert_eq!(names.len(), 25, "the list is that of its first page");
    let error = api.list(&ListParams::default().continue_token("garbage")).await.unwrap_err();
    assert_eq!(code(&error), (400, "BadRequest".into()));
    // The form of a token, but none that is kept.
    let forgotten = "0".repeat(32);
    let error = api.list(&ListParams::default().continue_token(&forgotten)).await.unwrap_err();
    assert_eq!(code(&error), (410, "Expired".into()));
}

#[tokio::test]
async fn only_one_opens_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let _held = open(dir.path()).await;
    assert!(matches!(ControlPlane::open(dir.path(), crds::all()).await, Err(LocalError::InUse(_))));
}

#[tokio::test]
async fn concurrent_writers_do_not_lose_each_others_writes() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path()).await;
    api.create(&PostParams::default(), &server("a")).await.unwrap();
    let writers = (0..40).map(|i| {
        let api = api.clone();
        async move {
            let patch = json!({"metadata": {"annotations": {format!("k{i}"): "v"}}});
            api.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        }
    });
    futures::future::join_all(writers).await;
    assert_eq!(api.get("a").await.unwrap().metadata.annotations.unwrap().len(), 40);
}

#[tokio::test]
async fn the_store_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.redb");
    drop(open(dir.path()).await);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn secrets_are_checked_before_anybody_relies_on_them() {
    let dir = tempfile::tempdir().unwrap();
    let client = ControlPlane::open(dir.path(), crds::all()).await.unwrap().client();
    let api: Api<DynamicObject> = Api::namespaced_with(client, "default", &ApiResource::erase::<Secret>(&()));
    let secret = |name: &str, data: serde_json::Value| {
        let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data});
        serde_json::from_value::<DynamicObject>(object).unwrap()
    };
    let error = api.create(&PostParams::default(), &secret("bad", json!({"a": "!"}))).await.unwrap_err();
    assert_eq!(code(&error), (400, "BadRequest".into()));
    for data in [json!({"../../x": "YQ=="}), json!({"a": "YWFh".repeat(400_000)})] {
        let error = api.create(&PostParams::default(), &secret("bad", data)).await.unwrap_err();
        assert_eq!(code(&error), (422, "Invalid".into()));
    }
    let mut frozen = secret("frozen", json!({"a": "YQ=="}));
    frozen.data["immutable"] = true.into();
    api.create(&PostParams::default(), &frozen).await.unwrap();
    let change = Patch::Merge(json!({"data": {"a": "Yg=="}}));
    let error = api.patch("frozen", &PatchParams::default(), &change).await.unwrap_err();
    assert_eq!(code(&error), (422, "Invalid".into()));
    let label = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    api.patch("frozen", &PatchParams::default(), &label).await.unwrap();
}

#[tokio::test]
async fn an_object_that_no_cluster_would_keep_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let api = open(dir.path()).await;
    let mut large = server("large");
    large.spec.args = vec!["x".repeat(2 << 20)];
    let error = api.create(&PostParams::default(), &large).await.unwrap_err();
    assert_eq!(code(&error), (413, "RequestEntityTooLarge".into()));
    let small = api.create(&PostParams::default(), &server("large")).await.unwrap();
    let grow = Patch::Merge(json!({"spec": {"args": ["x".repeat(2 << 20)]}}));
    let error = api.patch("large", &PatchParams::default(), &grow).await.unwrap_err();
    assert_eq!(code(&error), (413, "RequestEntityTooLarge".into()));
    assert_eq!(api.get("large").await.unwrap().metadata.resource_version, small.metadata.resource_version);
}

#[tokio::test]
async fn an_object_of_the_wrong_shape_is_refused_and_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let client = ControlPlane::open(dir.path(), crds::all()).await.unwrap().client();
    let post = |path: &'static str, body: serde_json::Value| {
        let request = http::Request::post(path).header("Content-Type", "application/json");
        let request = request.body(body.to_string().into_bytes()).unwrap();
        let client = client.clone();
        async move { client.request::<serde_json::Value>(request).await }
    };
    let (namespaces, secrets) = ("/api/v1/namespaces", "/api/v1/namespaces/default/secrets");
    for (path, body) in [
        (namespaces, json!({"metadata": {"name": "x", "labels": "text"}})),
        (namespaces, json!({"metadata": {"name": "x"}, "spec": "text"})),
        (namespaces, json!({"metadata": {"name": "x"}, "spec": []})),
        (secrets, json!({"metadata": {"name": "x"}, "data": "text", "stringData": {"a": "b"}})),
        (secrets, json!({"metadata": {"name": "x"}, "stringData": {"a": 5}})),
        (secrets, json!({"metadata": {"name": "x"}, "stringData": [1]})),
        (secrets, json!({"metadata": {"name": "x"}, "type": 5})),
        (secrets, json!({"metadata": {"name": "x", "annotations": [], "finalizers": "a", "ownerReferences": {}}})),
    ] {
        let error = post(path, body.clone()).await.unwrap_err();
        assert_eq!(code(&error), (400, "BadRequest".into()), "{body}");
    }
    let made = post(namespaces, json!({"metadata": {"name": "x"}})).await.unwrap();
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "x");
    post(secrets, json!({"metadata": {"name": "x"}, "stringData": {"a": "b"}})).await.unwrap();
}

/// Every object that comes of putting each of `others` in the place of each part of `value`.
fn mutants(value: &serde_json::Value, others: &[serde_json::Value]) -> Vec<serde_json::Value> {
    let mut all = others.to_vec();
    let keys: Vec<String> = match value {
        serde_json::Value::Object(map) => map.keys().map(|key| format!("/{}", key.replace('/', "~1"))).collect(),
        serde_json::Value::Array(items) => (0..items.len()).map(|index| format!("/{index}")).collect(),
        _ => Vec::new(),
    };
    for pointer in keys {
        for mutant in mutants(value.pointer(&pointer).unwrap(), others) {
            let mut copy = value.clone();
            *copy.pointer_mut(&pointer).unwrap() = mutant;
            all.push(copy);
        }
    }
    all
}

#[tokio::test]
async fn no_shape_of_an_object_is_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let client = ControlPlane::open(dir.path(), crds::all()).await.unwrap().client();
    let metadata = json!({
        "name": "x", "labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["a/b"],
        "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "y", "uid": "z"}],
        "managedFields": [{"manager": "m", "operation": "Apply", "apiVersion": "v1", "fieldsV1": {"f:data": {"k:{\"a\"}": {}}}}],
    });
    let server = json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": metadata,
        "spec": {"image": "x", "env": [{"name": "A", "value": "1"}], "replicas": 1, "probe": {"period": "1s"},
            "resources": {"limits": {"cpu": "1"}}, "tools": {"allow": ["a"]}, "transport": {"type": "Stdio"}},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    });
    let secret =
        json!({"metadata": metadata, "data": {"a": "YQ=="}, "stringData": {"b": "c"}, "type": "t", "immutable": false});
    let map = json!({"metadata": metadata, "data": {"a": "b"}, "binaryData": {"c": "YQ=="}});
    let namespace = json!({"metadata": metadata, "spec": {"finalizers": ["a/b"]}, "status": {"phase": "Active"}});
    let (about, time) = (json!({"kind": "X", "namespace": "default"}), "2026-01-01T00:00:00.000000Z");
    let event = json!({"metadata": metadata, "involvedObject": about, "regarding": about, "note": "n", "message": "m",
        "series": {"count": 2, "lastObservedTime": time}, "eventTime": time, "type": "Normal", "action": "A", "reason": "R",
        "reportingComponent": "x.dev/c", "reportingController": "x.dev/c", "reportingInstance": "i"});
    let lease =
        json!({"metadata": metadata, "spec": {"holderIdentity": "a", "renewTime": "2026-01-01T00:00:00.000000Z"}});
    let others = [json!("text"), json!(1.5), json!([]), json!([1]), json!({"a": 1}), json!(null)];
    for (collection, sample) in [
        ("/apis/perch.dev/v1alpha1/namespaces/default/mcpservers", server),
        ("/api/v1/namespaces/default/secrets", secret),
        ("/api/v1/namespaces/default/configmaps", map),
        ("/api/v1/namespaces", namespace),
        ("/api/v1/namespaces/default/events", event.clone()),
        ("/apis/events.k8s.io/v1/namespaces/default/events", event),
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases", lease),
    ] {
        let send = |method: &str, path: String, media: &str, body: &serde_json::Value| {
            let request =
                http::Request::builder().method(method).uri(format!("{path}?dryRun=All&fieldManager=m&force=true"));
            let request = request.header("Content-Type", media).body(body.to_string().into_bytes()).unwrap();
            let client = client.clone();
            async move { client.request::<serde_json::Value>(request).await.map_err(|error| code(&error)) }
        };
        let one = format!("{collection}/y");
        let simple: serde_json::Value = sample
            .as_object()
            .unwrap()
            .iter()
            .filter(|(k, _)| *k != "metadata" && *k != "status")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let mut existing = simple;
        existing["metadata"] = json!({"name": "y"});
        let request = http::Request::post(collection)
            .header("Content-Type", "application/json")
            .body(existing.to_string().into_bytes())
            .unwrap();
        if let Err(error) = client.request::<serde_json::Value>(request).await {
            // The two kinds of events are views of the same objects.
            assert_eq!(code(&error).0, 409, "{error}");
        }
        for mutant in mutants(&sample, &others) {
            let mut named = mutant.clone();
            if named.pointer("/metadata/name").is_some() {
                named["metadata"]["name"] = "y".into();
            }
            for (method, path, media, body) in [
                ("POST", collection.to_owned(), "application/json", &mutant),
                ("PUT", one.clone(), "application/json", &named),
                ("PATCH", one.clone(), "application/merge-patch+json", &named),
                ("PATCH", one.clone(), "application/apply-patch+yaml", &named),
                ("PATCH", one.clone(), "application/strategic-merge-patch+json", &named),
                ("PATCH", format!("{one}/status"), "application/merge-patch+json", &named),
                ("PATCH", format!("{one}/scale"), "application/merge-patch+json", &named),
            ] {
                let answer = send(method, path.clone(), media, body).await;
                // A code of 500 without a reason is how Kubernetes tells that it cannot apply something.
                let fault = answer.as_ref().err().filter(|(code, reason)| *code >= 500 && !reason.is_empty());
                assert_eq!(fault, None, "{method} {path} {media}: {body}");
            }
        }
    }
}
