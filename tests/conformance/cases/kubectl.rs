//! What people see.

use serde_json::{Value, json};

use crate::case::{Case, case, config, object, plain, server, with};

/// Lines in any order, without what the real server has more of.
fn resources(outcome: &mut Value) {
    if let Some(lines) = outcome["stdout"].as_array_mut() {
        let known = [
            "NAME",
            "configmaps",
            "events",
            "namespaces",
            "secrets",
            "controllerrevisions",
            "leases",
            "mcpservers",
            "canaryreleases",
            "mcptoolboxes",
        ];
        for line in lines.iter_mut() {
            *line = line.as_str().unwrap().split_whitespace().collect::<Vec<_>>().join(" ").into();
        }
        lines.retain(|line| known.contains(&line.as_str().unwrap().split([' ', '.']).next().unwrap()));
        lines.sort_by_key(Value::to_string);
    }
}

pub fn cases() -> Vec<Case> {
    let a = plain("a");
    let status = json!({"status": {"phase": "Ready", "tools": 3, "url": "http://x", "serverInfo": {"name": "n", "version": "v"}, "conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}});
    vec![
        case("kubectl-get")
            .kubectl(&["get", "mcps"])
            .post("mcpservers", &a)
            .post("mcpservers", &with(plain("long-name-of-a-server"), &json!({"metadata": {"labels": {"team": "red"}}})))
            .merge("mcpservers/a/status", &status)
            .kubectl(&["get", "mcpservers"])
            .kubectl(&["get", "mcps", "a"])
            .kubectl(&["get", "mcpserver/a", "-o", "wide"])
            .kubectl(&["get", "mcps", "-o", "name"])
            .kubectl(&["get", "mcps", "-o", "yaml"])
            .kubectl(&["get", "mcps", "a", "-o", "json", "--show-managed-fields"])
            .kubectl(&["get", "mcps", "-o", "jsonpath={.items[*].spec.transport.type}"])
            .kubectl(&["get", "mcps", "-o", "custom-columns=N:.metadata.name,I:.spec.image"])
            .kubectl(&["get", "mcps", "--show-labels"])
            .kubectl(&["get", "mcps", "-L", "team"])
            .kubectl(&["get", "mcps", "-l", "team=red"])
            .kubectl(&["get", "mcps", "-l", "team of red"])
            .kubectl(&["get", "mcps", "--field-selector", "metadata.name=a"])
            .kubectl(&["get", "mcps", "--field-selector", "spec.image=a"])
            .kubectl(&["get", "mcps", "--sort-by", ".metadata.name", "--no-headers"])
            .kubectl(&["get", "mcps", "--chunk-size", "1"])
            .kubectl(&["get", "mcps", "absent"])
            .kubectl(&["get", "mcps,secrets"])
            .kubectl(&["get", "perch"])
            .kubectl(&["get", "nonsense"])
            .kubectl(&["get", "mcps", "-w", "--request-timeout=2s"]),
        case("kubectl-get-built-in")
            .post("configmaps", &with(config("c", &json!({"k": "v"})), &json!({"metadata": {"labels": {"l": ""}}})))
            .post("secrets", &object("v1", "Secret", "s", &json!({"data": {"k": "YQ=="}})))
            .post("leases", &object("coordination.k8s.io/v1", "Lease", "l", &json!({"spec": {"holderIdentity": "h"}})))
            .post("controllerrevisions", &object("apps/v1", "ControllerRevision", "r", &json!({"revision": 1, "data": {}})))
            .post("events", &object("v1", "Event", "e", &json!({"involvedObject": {"kind": "McpServer", "namespace": "$(ns)", "name": "x"}, "reason": "R", "message": "m", "type": "Normal", "lastTimestamp": "2020-01-01T00:00:00Z", "source": {"component": "c", "host": "h"}, "count": 3, "firstTimestamp": "2020-01-01T00:00:00Z"})))
            .kubectl(&["get", "cm", "-l", "l"])
            .kubectl(&["get", "secrets"])
            .kubectl(&["get", "lease"])
            .kubectl(&["get", "controllerrevisions"])
            .kubectl(&["get", "events", "-o", "wide"]).only(ages)
            .kubectl(&["get", "events"]).only(ages)
            .kubectl(&["events"]).only(ages)
            .kubectl(&["get", "ns", "$(ns)"])
            .kubectl(&["describe", "secret", "s"])
            .kubectl(&["describe", "cm", "c"])
            .kubectl(&["describe", "lease", "l"]),
        case("kubectl-discovery")
            .kubectl(&["api-resources"])
            .only(resources)
            .kubectl(&["api-resources", "--api-group=perch.dev"])
            .kubectl(&["explain", "mcpserver"])
            .kubectl(&["explain", "mcpserver.spec"])
            .kubectl(&["explain", "mcpserver.spec.transport"])
            .kubectl(&["explain", "mcps.spec.env.valueFrom"])
            .kubectl(&["explain", "mcps.spec.resources.limits.cpu"])
            .kubectl(&["explain", "mcps.status", "--recursive"])
            .kubectl(&["explain", "mcps.metadata"])
            .kubectl(&["explain", "mcps.metadata.ownerReferences"])
            .kubectl(&["explain", "mcps.spec.nothing"])
            .kubectl(&["explain", "nothing"])
            .kubectl(&["explain", "configmap"])
            .kubectl(&["explain", "secret.data"])
            .kubectl(&["explain", "lease.spec"]),
        case("kubectl-describe")
            .post("mcpservers", &with(a.clone(), &json!({"metadata": {"labels": {"x": "y"}, "annotations": {"c": "d"}}})))
            .keep("uid", "/metadata/uid")
            .merge("mcpservers/a/status", &status)
            .kubectl(&["describe", "mcps", "a"])
            .post("events", &object("v1", "Event", "e", &json!({"involvedObject": {"kind": "McpServer", "namespace": "$(ns)", "name": "a", "uid": "$(uid)", "apiVersion": "perch.dev/v1alpha1"}, "reason": "R", "message": "m", "type": "Normal", "firstTimestamp": "2020-01-01T00:00:00Z", "lastTimestamp": "2020-01-01T00:00:00Z", "source": {"component": "c"}, "count": 3})))
            .kubectl(&["describe", "mcps", "a"]).only(ages)
            .kubectl(&["events", "--for", "mcpserver/a"]).only(ages)
            .kubectl(&["describe", "mcps", "absent"]),
        case("kubectl-create-and-delete")
            .kubectl_with(&["create", "-f", "-"], &a)
            .kubectl_with(&["create", "-f", "-"], &a)
            .kubectl_with(&["create", "-f", "-", "--dry-run=server", "-o", "yaml"], &plain("b"))
            .kubectl_with(&["create", "-f", "-"], &server("bad", &json!({"imagee": "x"})))
            .kubectl_with(&["create", "-f", "-"], &server("bad", &json!({"image": 7})))
            .kubectl_with(&["create", "-f", "-", "--validate=warn"], &server("warned", &json!({"image": "x", "imagee": "x"})))
            .kubectl_with(&["create", "-f", "-", "--validate=ignore"], &server("ignored", &json!({"image": "x", "imagee": "x"})))
            .kubectl_with(&["create", "-f", "-"], &plain("Bad_Name"))
            .kubectl(&["create", "secret", "generic", "s", "--from-literal=k=v"])
            .kubectl(&["create", "configmap", "c", "--from-literal=k=v"])
            .kubectl(&["create", "namespace", "of-kubectl"])
            .kubectl(&["create", "namespace", "of-kubectl"])
            .kubectl(&["get", "secret", "s", "-o", "yaml"])
            .kubectl(&["get", "cm", "c", "-o", "yaml"])
            .kubectl(&["delete", "mcps", "a", "--dry-run=server"])
            .kubectl(&["delete", "mcps", "a"])
            .kubectl(&["delete", "mcps", "a"])
            .kubectl(&["delete", "mcps", "a", "--ignore-not-found"])
            .kubectl(&["delete", "mcps", "--all"])
            .kubectl(&["delete", "secret", "s", "--cascade=foreground"])
            .kubectl(&["delete", "cm", "-l", "nothing"])
            .kubectl(&["delete", "namespace", "of-kubectl"])
            .kubectl(&["auth", "can-i", "get", "secrets"]),
        case("kubectl-apply")
            .kubectl_with(&["apply", "-f", "-"], &a)
            .get("mcpservers/a")
            .kubectl_with(&["apply", "-f", "-"], &a)
            .kubectl_with(&["apply", "-f", "-"], &server("a", &json!({"image": "y", "env": [{"name": "A", "value": "1"}]})))
            .kubectl_with(&["apply", "-f", "-"], &server("a", &json!({"image": "y", "replicas": 2})))
            .get("mcpservers/a")
            .kubectl_with(&["apply", "-f", "-", "--dry-run=server"], &server("a", &json!({"image": "z"})))
            .kubectl_with(&["apply", "-f", "-"], &server("a", &json!({"image": "y", "replicas": -2})))
            .kubectl_with(&["apply", "-f", "-"], &server("a", &json!({"imagee": "y"})))
            .kubectl_with(&["apply", "-f", "-"], &server("a", &json!({})))
            .kubectl_with(&["diff", "-f", "-"], &server("a", &json!({"image": "z", "replicas": 2})))
            .kubectl_with(&["diff", "-f", "-"], &server("a", &json!({"image": "y", "replicas": 2})))
            .kubectl_with(&["diff", "-f", "-"], &server("fresh", &json!({"image": "y", "replicas": 2})))
            .kubectl_with(&["diff", "--server-side", "-f", "-"], &server("a", &json!({"image": "z", "replicas": 2})))
            .kubectl_with(&["apply", "-f", "-"], &config("c", &json!({"k": "v", "l": "w"})))
            .kubectl_with(&["apply", "-f", "-"], &config("c", &json!({"k": "x"})))
            .get("configmaps/c")
            .kubectl_with(&["apply", "-f", "-"], &json!({"apiVersion": "v1", "kind": "List", "items": [plain("a"), config("d", &json!({}))]}))
            .kubectl_with(&["apply", "--prune", "-l", "x=y", "-f", "-", "--prune-allowlist=core/v1/ConfigMap"], &with(config("d", &json!({})), &json!({"metadata": {"labels": {"x": "y"}}})))
            .kubectl_with(&["replace", "-f", "-"], &plain("a"))
            .kubectl_with(&["replace", "-f", "-"], &plain("absent"))
            .kubectl_with(&["replace", "--force", "-f", "-"], &plain("a"))
            .kubectl(&["apply", "view-last-applied", "cm", "c"]),
        case("kubectl-apply-on-the-server")
            .kubectl_with(&["apply", "--server-side", "-f", "-"], &a)
            .kubectl_with(&["apply", "--server-side", "-f", "-", "--field-manager=me"], &server("a", &json!({"image": "y"})))
            .kubectl_with(&["apply", "--server-side", "-f", "-", "--field-manager=me"], &server("a", &json!({"image": "y", "replicas": 2})))
            .kubectl_with(&["apply", "--server-side", "-f", "-", "--field-manager=me", "--force-conflicts"], &server("a", &json!({"image": "y"})))
            .kubectl_with(&["apply", "--server-side", "-f", "-"], &server("a", &json!({"image": "y", "unknown": 1})))
            .kubectl_with(&["apply", "-f", "-"], &server("a", &json!({"image": "z"})))
            .kubectl_with(&["apply", "--server-side", "-f", "-"], &server("a", &json!({"image": "w"})))
            .kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &server("a", &json!({"image": "w"})))
            .get("mcpservers/a"),
        case("kubectl-change")
            .post("mcpservers", &a)
            .kubectl(&["label", "mcps", "a", "team=red"])
            .kubectl(&["label", "mcps", "a", "team=blue"])
            .kubectl(&["label", "mcps", "a", "team=blue", "--overwrite"])
            .kubectl(&["label", "mcps", "a", "team-"])
            .kubectl(&["label", "mcps", "a", "bad_=x y"])
            .kubectl(&["annotate", "mcps", "a", "note=hello"])
            .kubectl(&["scale", "mcps", "a", "--replicas=3"])
            .kubectl(&["scale", "mcps", "a", "--replicas=4", "--current-replicas=9"])
            .kubectl(&["scale", "mcps", "a", "--replicas=5000"])
            .kubectl(&["scale", "mcps", "absent", "--replicas=3"])
            .kubectl(&["patch", "mcps", "a", "--type=merge", "-p", r#"{"spec":{"replicas":2}}"#])
            .kubectl(&["patch", "mcps", "a", "--type=merge", "-p", r#"{"spec":{"replicas":2}}"#])
            .kubectl(&["patch", "mcps", "a", "--type=merge", "-p", r#"{"spec":{"replicas":"x"}}"#])
            .kubectl(&["patch", "mcps", "a", "--type=json", "-p", r#"[{"op":"replace","path":"/spec/replicas","value":4}]"#])
            .kubectl(&["patch", "mcps", "a", "--type=json", "-p", r#"[{"op":"test","path":"/spec/replicas","value":9}]"#])
            .kubectl(&["patch", "mcps", "a", "--type=strategic", "-p", "{}"])
            .kubectl(&["patch", "mcps", "a", "--subresource=status", "--type=merge", "-p", r#"{"status":{"tools":1}}"#])
            .kubectl(&["edit", "mcps", "a"])
            .kubectl(&["edit", "mcps", "absent"])
            .kubectl(&["edit", "mcps", "a", "--subresource=status"])
            .get("mcpservers/a"),
        case("kubectl-wait")
            .post("mcpservers", &a)
            .kubectl(&["wait", "mcps", "a", "--for=condition=Ready", "--timeout=1s"])
            .kubectl(&["wait", "mcps", "a", "--for=jsonpath={.spec.replicas}=1", "--timeout=5s"])
            .merge("mcpservers/a/status", &status)
            .kubectl(&["wait", "mcps", "a", "--for=condition=Ready", "--timeout=5s"])
            .kubectl(&["wait", "mcps", "--all", "--for=condition=Ready=true", "--timeout=5s"])
            .kubectl(&["wait", "mcps", "absent", "--for=condition=Ready", "--timeout=1s"])
            .kubectl(&["wait", "mcps", "a", "--for=delete", "--timeout=1s"])
            .kubectl(&["wait", "mcps", "absent", "--for=delete", "--timeout=1s"])
            .kubectl(&["wait", "mcps", "absent", "--for=create", "--timeout=1s"]),
    ]
}

/// Ages of the fixed times in the events are long; which is the same on both.
fn ages(_: &mut Value) {}
