//! Watches.

use serde_json::{Value, json};

use crate::case::{Case, case, config, plain, with};

fn labelled(name: &str, labels: Value) -> Value {
    with(plain(name), &json!({"metadata": {"labels": labels}}))
}

/// Events without their objects' fields.
fn brief(outcome: &mut Value) {
    for event in outcome["events"].as_array_mut().into_iter().flatten() {
        if event["object"]["kind"] != "Status" {
            let object = &event["object"];
            *event = json!([
                event["type"],
                object["kind"],
                object["apiVersion"],
                object["metadata"]["name"],
                object["metadata"]["labels"],
                {"resourceVersion": object["metadata"]["resourceVersion"]}
            ]);
        }
    }
}

pub fn cases() -> Vec<Case> {
    vec![
        case("watch-from-a-version")
            .get("mcpservers")
            .keep("rv", "/metadata/resourceVersion")
            .post("mcpservers", &plain("a"))
            .merge("mcpservers/a", &json!({"spec": {"replicas": 2}}))
            .keep("middle", "/metadata/resourceVersion")
            .merge("mcpservers/a/status", &json!({"status": {"tools": 2}}))
            .post("mcpservers?dryRun=All", &plain("dry"))
            .delete("mcpservers/a")
            .post("mcpservers", &plain("last"))
            .watch("mcpservers?watch=true&resourceVersion=$(rv)", "last")
            .watch("mcpservers?watch=true&resourceVersion=$(middle)", "last")
            .only(brief)
            .watch("mcpservers?watch=1&resourceVersion=$(rv)&allowWatchBookmarks=true", "last")
            .only(brief)
            .watch("mcpservers/last?watch=true&resourceVersion=$(rv)", "last")
            .only(brief)
            .watch("/apis/perch.dev/v1alpha1/watch/namespaces/$(ns)/mcpservers?resourceVersion=$(rv)", "last")
            .only(brief),
        case("watch-from-now")
            .post("mcpservers", &plain("a"))
            .post("mcpservers", &plain("last"))
            .watch("mcpservers?watch=true", "last")
            .only(brief)
            .watch("mcpservers?watch=true&resourceVersion=", "last")
            .only(brief)
            .watch("mcpservers?watch=true&resourceVersion=0", "last")
            .only(brief)
            .watch("mcpservers?watch=true&timeoutSeconds=1", "none")
            .only(brief),
        case("watch-and-selectors")
            .get("mcpservers")
            .keep("rv", "/metadata/resourceVersion")
            .post("mcpservers", &labelled("in", json!({"team": "red"})))
            .post("mcpservers", &labelled("out", json!({"team": "blue"})))
            .merge("mcpservers/out", &json!({"metadata": {"labels": {"team": "red"}}}))
            .merge("mcpservers/in", &json!({"metadata": {"labels": {"team": "blue"}}}))
            .merge("mcpservers/in", &json!({"metadata": {"labels": {"other": "x"}}}))
            .merge("mcpservers/out", &json!({"metadata": {"labels": {"other": "x"}}}))
            .delete("mcpservers/in")
            .delete("mcpservers/out")
            .post("mcpservers", &labelled("last", json!({"team": "red"})))
            .watch("mcpservers?watch=true&labelSelector=team%3Dred&resourceVersion=$(rv)", "last")
            .only(brief)
            .watch("mcpservers?watch=true&fieldSelector=metadata.name%3Dlast&resourceVersion=$(rv)", "last")
            .only(brief)
            .watch("mcpservers?watch=true&fieldSelector=metadata.name%21%3Din&resourceVersion=$(rv)", "last")
            .only(brief),
        case("watch-versions-that-cannot-be")
            .watch("mcpservers?watch=true&resourceVersion=1", "ERROR")
            .watch("mcpservers?watch=true&resourceVersion=garbage", "ERROR")
            .watch("mcpservers?watch=true&resourceVersion=-1", "ERROR")
            .watch("mcpservers?watch=true&resourceVersion=999999999", "ERROR")
            .watch("mcpservers?watch=true&resourceVersion=0&resourceVersionMatch=Exact", "ERROR")
            .watch("mcpservers?watch=true&labelSelector=a%20of%20b", "ERROR")
            .watch("mcpservers?watch=true&fieldSelector=spec.image%3Dx", "ERROR")
            .watch("mcpservers?watch=true&continue=x", "ERROR"),
        case("watch-with-initial-events")
            .post("mcpservers", &plain("a"))
            .post("mcpservers", &plain("b"))
            .watch("mcpservers?watch=true&sendInitialEvents=true", "BOOKMARK")
            .watch("mcpservers?watch=true&sendInitialEvents=true&resourceVersionMatch=Exact", "BOOKMARK")
            .watch("mcpservers?watch=true&sendInitialEvents=true&allowWatchBookmarks=true", "BOOKMARK")
            .watch("mcpservers?watch=true&resourceVersionMatch=NotOlderThan", "BOOKMARK")
            .get("mcpservers?sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
        case("watch-in-other-forms")
            .get("mcpservers")
            .keep("rv", "/metadata/resourceVersion")
            .post("mcpservers", &plain("a"))
            .post("mcpservers", &plain("last"))
            .watch("mcpservers?watch=true&resourceVersion=$(rv)", "last")
            .header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .watch("mcpservers?watch=true&resourceVersion=$(rv)&includeObject=Object", "last")
            .header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
            .watch("mcpservers?watch=true&resourceVersion=$(rv)", "last")
            .header("Accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"),
        case("watch-all-namespaces")
            .get("/apis/perch.dev/v1alpha1/mcpservers")
            .keep("rv", "/metadata/resourceVersion")
            .only(|outcome| *outcome = outcome["status"].take())
            .post("mcpservers", &labelled("last", json!({"only": "here"})))
            .watch("/apis/perch.dev/v1alpha1/mcpservers?watch=true&labelSelector=only&resourceVersion=$(rv)", "last"),
        case("watch-built-in")
            .get("configmaps")
            .keep("rv", "/metadata/resourceVersion")
            .post("configmaps", &with(config("a", &json!({"k": "v"})), &json!({"metadata": {"labels": {"l": "m"}}})))
            .merge("configmaps/a", &json!({"data": {"k": "w"}}))
            .delete("configmaps/a")
            .post("configmaps", &with(config("last", &json!({})), &json!({"metadata": {"labels": {"l": "m"}}})))
            .watch("configmaps?watch=true&labelSelector=l&resourceVersion=$(rv)", "last"),
    ]
}
