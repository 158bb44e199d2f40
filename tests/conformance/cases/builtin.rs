//! Secrets, configmaps, events, leases, controllerrevisions.

use serde_json::{Value, json};

use crate::case::{Case, case, config, object, secret, with};

fn event(name: &str, rest: &Value) -> Value {
    with(
        object(
            "v1",
            "Event",
            name,
            &json!({
                "involvedObject": {"kind": "McpServer", "namespace": "$(ns)", "name": "x", "apiVersion": "perch.dev/v1alpha1"},
                "reason": "R", "message": "m", "type": "Normal",
                "firstTimestamp": "2020-01-01T00:00:00Z", "lastTimestamp": "2020-01-01T00:00:00Z", "count": 1, "source": {"component": "c"},
            }),
        ),
        rest,
    )
}

fn new_event(name: &str, rest: &Value) -> Value {
    with(
        object(
            "events.k8s.io/v1",
            "Event",
            name,
            &json!({
                "regarding": {"kind": "McpServer", "namespace": "$(ns)", "name": "x", "apiVersion": "perch.dev/v1alpha1"},
                "reason": "R", "note": "m", "type": "Normal", "action": "A", "eventTime": "2020-01-01T00:00:00.000000Z",
                "reportingController": "perch.dev/c", "reportingInstance": "i",
            }),
        ),
        rest,
    )
}

pub fn cases() -> Vec<Case> {
    let new_events = "/apis/events.k8s.io/v1/namespaces/$(ns)/events";
    let lease = |name: &str, spec: Value| object("coordination.k8s.io/v1", "Lease", name, &json!({"spec": spec}));
    let revision = |name: &str, rest: Value| object("apps/v1", "ControllerRevision", name, &rest);
    vec![
        case("secrets")
            .post("secrets", &secret("a", &json!({"stringData": {"a": "b", "both": "text"}, "data": {"c": "ZA==", "both": "ZA=="}})))
            .get("secrets/a")
            .merge("secrets/a", &json!({"stringData": {"a": "x"}}))
            .merge("secrets/a", &json!({"data": {"a": null}}))
            .merge("secrets/a", &json!({"type": "other"}))
            .strategic("secrets/a", &json!({"stringData": {"s": "t"}}))
            .post("secrets", &secret("typed", &json!({"type": "kubernetes.io/tls"})))
            .post("secrets", &secret("typed", &json!({"type": "kubernetes.io/basic-auth", "stringData": {}})))
            .post("secrets", &secret("typed", &json!({"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "not json"}})))
            .post("secrets", &secret("typed", &json!({"type": "kubernetes.io/ssh-auth"})))
            .post("secrets", &secret("typed", &json!({"type": "kubernetes.io/service-account-token"})))
            .post("secrets", &secret("keys", &json!({"data": {"a/b": "YQ==", "..": "YQ==", "": "YQ==", "a b": "YQ=="}})))
            .post("secrets", &secret("lines", &json!({"data": {"a": "YQ\n==\r\n"}})))
            .post("secrets", &secret("null", &json!({"data": {"a": null}, "stringData": null})))
            .post("secrets", &secret("empty", &json!({"data": {}, "stringData": {}})))
            .post("secrets", &secret("large", &json!({"data": {"a": "YWFh".repeat(349_526)}}))),
        case("secrets-immutable")
            .post("secrets", &secret("a", &json!({"immutable": true, "data": {"a": "YQ=="}})))
            .merge("secrets/a", &json!({"data": {"a": "Yg=="}}))
            .merge("secrets/a", &json!({"stringData": {"a": "b"}}))
            .merge("secrets/a", &json!({"immutable": false}))
            .merge("secrets/a", &json!({"immutable": null}))
            .merge("secrets/a", &json!({"metadata": {"labels": {"a": "b"}}}))
            .post("secrets", &secret("b", &json!({"data": {"a": "YQ=="}})))
            .merge("secrets/b", &json!({"immutable": true, "data": {"a": "Yg=="}})),
        case("configmaps")
            .post("configmaps", &with(config("a", &json!({"k": "v"})), &json!({"binaryData": {"b": "YQ=="}})))
            .post("configmaps", &with(config("b", &json!({"k": "v"})), &json!({"binaryData": {"k": "YQ=="}})))
            .post("configmaps", &config("b", &json!({"a/b": "x", "..x": "y", "": "z"})))
            .post("configmaps", &config("b", &json!({"k": null})))
            .post("configmaps", &config("c", &json!({})))
            .merge("configmaps/a", &json!({"immutable": true}))
            .merge("configmaps/a", &json!({"data": {"k": "w"}}))
            .merge("configmaps/a", &json!({"binaryData": {"b": "Yg=="}}))
            .merge("configmaps/a", &json!({"immutable": false})),
        case("events")
            .post("events", &event("a", &json!({})))
            .get("events/a")
            .get("/apis/events.k8s.io/v1/namespaces/$(ns)/events/a")
            .merge("events/a", &json!({"count": 2}))
            .post("events", &event("b", &json!({"involvedObject": {"namespace": "other"}})))
            .post("events", &event("c", &json!({"involvedObject": {"namespace": ""}})))
            .post("events", &event("d", &json!({"type": "Strange"})))
            .post("events", &event("e", &json!({"message": "x".repeat(2000)})))
            .post("events", &json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "f"}}))
            .get("events?fieldSelector=involvedObject.name%3Dx")
            .delete("events/a")
            .delete("events"),
        case("events-of-the-new-group")
            .post(new_events, &new_event("a", &json!({})))
            .get("events/a")
            .get(&format!("{new_events}/a"))
            .post(new_events, &new_event("b", &json!({"eventTime": null})))
            .post(new_events, &new_event("c", &json!({"action": ""})))
            .post(new_events, &new_event("d", &json!({"reason": ""})))
            .post(new_events, &new_event("e", &json!({"type": "Strange"})))
            .post(new_events, &new_event("f", &json!({"note": "x".repeat(1025)})))
            .post(new_events, &new_event("g", &json!({"reportingController": ""})))
            .post(new_events, &new_event("h", &json!({"reportingController": "not a name"})))
            .post(new_events, &new_event("i", &json!({"reportingInstance": ""})))
            .post(new_events, &new_event("j", &json!({"regarding": {"namespace": "other"}})))
            .merge(&format!("{new_events}/a"), &json!({"note": "changed"}))
            .merge(&format!("{new_events}/a"), &json!({"series": {"count": 2, "lastObservedTime": "2020-01-01T00:00:01.000000Z"}}))
            .apply(&format!("{new_events}/k?fieldManager=me"), &new_event("k", &json!({})))
            .get(&format!("{new_events}?fieldSelector=regarding.name%3Dx")),
        case("leases")
            .post("leases", &lease("a", json!({"holderIdentity": "me", "leaseDurationSeconds": 15, "acquireTime": "2020-01-01T00:00:00.000000Z", "renewTime": "2020-01-01T00:00:00.5Z", "leaseTransitions": 0})))
            .keep("rv", "/metadata/resourceVersion")
            .put("leases/a", &with(lease("a", json!({"holderIdentity": "you"})), &json!({"metadata": {"resourceVersion": "$(rv)"}})))
            .put("leases/a", &with(lease("a", json!({"holderIdentity": "they"})), &json!({"metadata": {"resourceVersion": "$(rv)"}})))
            .put("leases/a", &lease("a", json!({"holderIdentity": "they"})))
            .put("leases/fresh", &lease("fresh", json!({"holderIdentity": "they"})))
            .put("leases/fresh2", &with(lease("fresh2", json!({})), &json!({"metadata": {"resourceVersion": "$(rv)"}})))
            .strategic("leases/a", &json!({"spec": {"holderIdentity": null}}))
            .post("leases", &lease("b", json!({"leaseDurationSeconds": 0})))
            .post("leases", &lease("b", json!({"leaseTransitions": -1})))
            .post("leases", &lease("b", json!({"strategy": "x"})))
            .post("leases", &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "c"}})),
        case("controllerrevisions")
            .post("controllerrevisions", &revision("a", json!({"revision": 1, "data": {"spec": {"x": [1, 2.5, null]}}})))
            .merge("controllerrevisions/a", &json!({"revision": 2}))
            .merge("controllerrevisions/a", &json!({"data": {"spec": {"x": 1}}}))
            .post("controllerrevisions", &revision("b", json!({"revision": -1, "data": {}})))
            .post("controllerrevisions", &revision("b", json!({"revision": 1})))
            .post("controllerrevisions", &revision("c", json!({"data": {"a": 1}})))
            .post("controllerrevisions", &revision("d", json!({"revision": 1, "data": "text"}))),
        case("access-reviews")
            .post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": {"verb": "get", "resource": "secrets", "namespace": "$(ns)"}}})),
    ]
}
