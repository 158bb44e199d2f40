use super::*;

fn spec(yaml: &str) -> McpToolboxSpec {
    serde_yaml_ng::from_str(yaml).unwrap()
}

#[test]
fn what_is_not_said_is_the_safe_thing() {
    let spec = spec("{servers: [{name: a}]}");
    assert_eq!(spec.conflict_policy, ConflictPolicy::Prefix);
    assert_eq!((&spec.selector, &spec.access, &spec.servers[0].prefix), (&None, &None, &None));
    assert!(spec.servers[0].tools.is_plain() && spec.servers[0].tools.filter().is_open());
    assert_eq!(
        serde_json::to_value(&spec).unwrap(),
        serde_json::json!({"servers": [{"name": "a"}], "conflictPolicy": "Prefix"}),
        "what is written back is what was given"
    );
}

#[test]
fn a_selection_is_by_the_servers_own_names() {
    let spec = spec("{servers: [{name: a, tools: {deny: [x], rename: [{name: y, to: z}]}}]}");
    let tools = &spec.servers[0].tools;
    assert!(!tools.is_plain() && !tools.filter().admits("x") && tools.filter().admits("y"));
    assert_eq!(tools.renames()["y"], "z");
}

#[test]
fn the_schema_says_what_names_may_be() {
    let crd = serde_json::to_value(<McpToolbox as kube::CustomResourceExt>::crd()).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let server = &spec["servers"]["items"]["properties"];
    assert_eq!(spec["servers"]["x-kubernetes-list-type"], "map");
    assert_eq!(spec["servers"]["maxItems"], 128);
    assert_eq!(server["prefix"]["pattern"], "^[A-Za-z0-9_./-]*$");
    assert_eq!(spec["conflictPolicy"]["default"], "Prefix");
    assert_eq!(spec["conflictPolicy"]["enum"], serde_json::json!(["Prefix", "First", "Reject"]));
}
