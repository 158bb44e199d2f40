//! Lists, pages, selectors, tables.

use serde_json::{Value, json};

use crate::case::{Case, case, config, plain, secret, with};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

fn labelled(name: &str, labels: Value) -> Value {
    with(plain(name), &json!({"metadata": {"labels": labels}}))
}

/// A list with names instead of objects.
fn names(outcome: &mut Value) {
    for item in outcome["body"]["items"].as_array_mut().into_iter().flatten() {
        *item = item["metadata"]["name"].take();
    }
}

/// The continue token is in the message of no error.
fn pages() -> Case {
    let mut case = case("pages");
    for name in ["a", "b", "c", "d", "e"] {
        case = case.post("mcpservers", &plain(name));
    }
    case.get("mcpservers?limit=2")
        .keep("token", "/metadata/continue")
        .only(names)
        .delete("mcpservers/e")
        .get("mcpservers?limit=2&continue=$(token)")
        .keep("second", "/metadata/continue")
        .only(names)
        .get("mcpservers?limit=2&continue=$(second)")
        .only(names)
        .get("mcpservers?limit=2&continue=$(token)")
        .only(names)
        .get("mcpservers?continue=$(token)")
        .only(names)
        .get("mcpservers?limit=4")
        .only(names)
        .get("mcpservers?limit=3")
        .only(names)
        .get("mcpservers?limit=0")
        .only(names)
        .get("mcpservers?limit=-1")
        .only(names)
        .get("mcpservers?limit=x")
        .get("mcpservers?continue=garbage")
        .get("mcpservers?limit=1&continue=garbage")
        .get("mcpservers?continue=$(token)&resourceVersion=5")
        .get("mcpservers?continue=$(token)&resourceVersion=0")
        .get("mcpservers?limit=2")
        .header("Accept", TABLE)
        .get("mcpservers?limit=1")
        .header("Accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json")
}

pub fn cases() -> Vec<Case> {
    let mut selectors = case("selectors")
        .post("mcpservers", &labelled("a", json!({"team": "red", "tier": "1"})))
        .post("mcpservers", &labelled("b", json!({"team": "blue", "tier": "10"})))
        .post("mcpservers", &labelled("c", json!({"empty": ""})));
    for selector in [
        "team%3Dred",
        "team%3D%3Dred",
        "team%21%3Dred",
        "team",
        "%21team",
        "team%20in%20(red,blue)",
        "team%20notin%20(red)",
        "team%3Dred,tier%3D1",
        "empty%3D",
        "tier%3E5",
        "tier%3C5",
        "tier%3Ex",
        "team%20of%20x",
        "team%20in%20red",
        "team%20in%20()",
        "%3Dx",
        "a%20b",
        "team%3Dred%20blue",
        "-bad",
        "team%3D-bad",
        ",",
        "team,",
        "team%3D(red)",
        "team%20in%20(red",
        "%21",
        "a/b/c%3Dd",
        "team%3Dred%3Dblue",
    ] {
        selectors = selectors.get(&format!("mcpservers?labelSelector={selector}")).only(names);
    }
    for selector in [
        "metadata.name%3Da",
        "metadata.name%21%3Da",
        "metadata.namespace%3D$(ns)",
        "metadata.namespace%3Dother",
        "metadata.name%3Da,metadata.namespace%3D$(ns)",
        "spec.image%3Dx",
        "metadata.labels%3Dx",
        "nonsense",
        "metadata.name",
        "%3D",
        "metadata.name%3D%3Da",
    ] {
        selectors = selectors.get(&format!("mcpservers?fieldSelector={selector}")).only(names);
    }
    selectors = selectors
        .post("secrets", &secret("s", &json!({"type": "a.b/c"})))
        .get("secrets?fieldSelector=type%3Da.b/c")
        .only(names)
        .get("secrets?fieldSelector=data%3Da.b/c")
        .get("configmaps?fieldSelector=data%3Dx")
        .get("namespaces?fieldSelector=metadata.name%3D$(ns),status.phase%3DActive")
        .only(names)
        .get("leases?fieldSelector=spec.holderIdentity%3Dx")
        .get("events?fieldSelector=involvedObject.name%3Dx,reason%3Dy,type%3Dz,source%3Da")
        .get("/apis/events.k8s.io/v1/namespaces/$(ns)/events?fieldSelector=regarding.name%3Dx");
    vec![
        pages(),
        selectors,
        case("list")
            .get("mcpservers")
            .post("mcpservers", &plain("b"))
            .post("mcpservers", &plain("a"))
            .keep("rv", "/metadata/resourceVersion")
            .get("mcpservers")
            .get("mcpservers?resourceVersion=0")
            .only(names)
            .get("mcpservers?resourceVersion=$(rv)")
            .only(names)
            .get("mcpservers?resourceVersion=$(rv)&resourceVersionMatch=Exact")
            .only(names)
            .get("mcpservers?resourceVersion=$(rv)&resourceVersionMatch=NotOlderThan")
            .only(names)
            .get("mcpservers?resourceVersion=0&resourceVersionMatch=Exact")
            .get("mcpservers?resourceVersion=1&resourceVersionMatch=Strange")
            .get("mcpservers?resourceVersionMatch=Exact")
            .get("mcpservers?resourceVersion=garbage")
            .get("mcpservers?resourceVersion=999999999")
            .get("mcpservers?resourceVersion=999999999&resourceVersionMatch=Exact")
            .get("mcpservers/a?resourceVersion=0")
            .get("mcpservers/a?resourceVersion=999999999")
            .get("mcpservers/a?resourceVersion=garbage")
            .get("mcpservers/absent"),
        case("list-of-an-older-version")
            .post("configmaps", &with(config("a", &json!({"k": "1"})), &json!({"metadata": {"labels": {"l": ""}}})))
            .keep("rv", "/metadata/resourceVersion")
            .merge("configmaps/a", &json!({"data": {"k": "2"}}))
            .get("configmaps?labelSelector=l&resourceVersion=$(rv)&resourceVersionMatch=Exact"),
        case("tables")
            .post("mcpservers", &plain("a"))
            .merge("mcpservers/a/status", &json!({"status": {"phase": "Ready", "tools": 3, "url": "http://x", "serverInfo": {"name": "n", "version": "v"}, "conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}}))
            .post("mcpservers", &plain("b"))
            .get("mcpservers").header("Accept", TABLE)
            .get("mcpservers/a").header("Accept", TABLE)
            .get("mcpservers/absent").header("Accept", TABLE)
            .get("mcpservers?includeObject=Object").header("Accept", TABLE)
            .get("mcpservers?includeObject=None").header("Accept", TABLE)
            .get("mcpservers?includeObject=Strange").header("Accept", TABLE)
            .get("mcpservers").header("Accept", "application/json;as=Table;v=v1beta1;g=meta.k8s.io")
            .get("mcpservers").header("Accept", "application/json;as=Strange;v=v1;g=meta.k8s.io")
            .get("mcpservers/a").header("Accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io")
            .get("mcpservers").header("Accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io")
            .get("mcpservers").header("Accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")
            .get("mcpservers/a").header("Accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")
            .post("mcpservers", &plain("c")).header("Accept", TABLE)
            .delete("mcpservers/c").header("Accept", TABLE),
        case("tables-of-built-in-kinds")
            .post("configmaps", &with(config("a", &json!({"k": "v", "l": "w"})), &json!({"metadata": {"labels": {"l": ""}}, "binaryData": {"b": "YQ=="}})))
            .get("configmaps?labelSelector=l").header("Accept", TABLE)
            .post("secrets", &secret("a", &json!({"data": {"k": "YQ=="}})))
            .get("secrets").header("Accept", TABLE)
            .get("/api/v1/namespaces/$(ns)").header("Accept", TABLE)
            .post("leases", &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"}, "spec": {"holderIdentity": "me"}}))
            .get("leases").header("Accept", TABLE)
            .post("controllerrevisions", &json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "a"}, "revision": 3, "data": {"x": "y"}}))
            .get("controllerrevisions").header("Accept", TABLE)
            .post("events", &json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "a"}, "involvedObject": {"kind": "McpServer", "namespace": "$(ns)", "name": "x", "apiVersion": "perch.dev/v1alpha1"}, "reason": "R", "message": "m", "type": "Normal", "firstTimestamp": "2020-01-01T00:00:00Z", "lastTimestamp": "2020-01-01T00:00:00Z", "count": 3, "source": {"component": "c"}}))
            .get("events").header("Accept", TABLE)
            .get("/apis/events.k8s.io/v1/namespaces/$(ns)/events").header("Accept", TABLE),
    ]
}
