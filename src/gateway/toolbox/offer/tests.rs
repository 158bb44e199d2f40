use serde_json::{Value, json};

use super::*;
use crate::{
    api::{mcp_server::ToolFilter, mcp_toolbox::McpToolbox},
    gateway::toolbox::catalog::Item,
};

fn toolbox(spec: &str) -> Toolbox {
    Toolbox::compile(&McpToolbox::new("dev", serde_yaml_ng::from_str(spec).unwrap()), [])
}

fn list(kind: Kind, names: &[&str]) -> Arc<List> {
    let items = names.iter().map(|name| {
        let raw = RawValue::from_string(format!(r#"{{"x": 1.0, "{}":"{name}"}}"#, kind.id())).unwrap();
        Item { id: (*name).to_owned(), raw }
    });
    Arc::new(List::of(items.collect()))
}

fn part(server: &str, list: Result<Arc<List>, Missing>) -> Part {
    Part { server: ServerKey::new("", server), list, had: None, visible: ToolFilter::default().into() }
}

fn failed() -> Missing {
    Missing::Failed("no instance is running".into())
}

fn shown(toolbox: &Toolbox, kind: Kind, parts: Vec<Part>) -> (Vec<String>, Value) {
    let result = result(toolbox, kind, &Lists(parts), |_| {});
    let result: Value = serde_json::from_str(result.get()).unwrap();
    let items = result[kind.member()].as_array().unwrap();
    (items.iter().map(|item| item[kind.id()].as_str().unwrap().to_owned()).collect(), result)
}

#[test]
fn a_tool_changes_its_name_and_nothing_else() {
    let toolbox =
        toolbox("{servers: [{name: a}, {name: b, prefix: '', tools: {deny: [q], rename: [{name: y, to: why}]}}]}");
    let parts = vec![part("a", Ok(list(Kind::Tools, &["x", "x"]))), part("b", Ok(list(Kind::Tools, &["x", "y", "q"])))];
    let (names, _) = shown(&toolbox, Kind::Tools, parts);
    assert_eq!(names, ["a_x", "x", "why"]);
    let whole = result(&toolbox, Kind::Tools, &Lists(vec![part("a", Ok(list(Kind::Tools, &["x"])))]), |_| {});
    assert!(whole.get().starts_with(r#"{"tools":[{"x": 1.0, "name":"a_x"}],"#), "{whole}");
}

#[test]
fn a_rule_decides_about_names_that_are_there_twice() {
    for (policy, expected) in [("Prefix", vec!["a_x", "a_y", "b_x"]), ("First", vec!["x", "y"]), ("Reject", vec!["y"])]
    {
        let toolbox = toolbox(&format!("{{conflictPolicy: {policy}, servers: [{{name: a}}, {{name: b}}]}}"));
        let parts = vec![part("a", Ok(list(Kind::Tools, &["x", "y"]))), part("b", Ok(list(Kind::Tools, &["x"])))];
        let (names, result) = shown(&toolbox, Kind::Tools, parts);
        assert_eq!(names, expected, "{policy}");
        let conflicts = json!([{"name": "x", "servers": ["a", "b"]}]);
        let told = if policy == "Prefix" { Value::Null } else { conflicts };
        assert_eq!(result["_meta"][META_CONFLICTS], told, "{policy}");
    }
}

#[test]
fn prefixes_that_meet_give_a_name_to_nobody() {
    let toolbox = toolbox("{servers: [{name: a}, {name: b, prefix: a_}]}");
    let parts = vec![part("a", Ok(list(Kind::Tools, &["x"]))), part("b", Ok(list(Kind::Tools, &["x", "y"])))];
    assert_eq!(shown(&toolbox, Kind::Tools, parts).0, ["a_y"]);
}

#[test]
fn a_tool_that_took_the_name_of_another_has_it() {
    let toolbox = toolbox("{servers: [{name: a, prefix: '', tools: {rename: [{name: x, to: y}]}}]}");
    let parts = vec![part("a", Ok(list(Kind::Tools, &["y", "x"])))];
    let result = result(&toolbox, Kind::Tools, &Lists(parts), |_| {});
    let result: Value = serde_json::from_str(result.get()).unwrap();
    assert_eq!(result["tools"].as_array().unwrap().len(), 1);
    assert_eq!(toolbox.tool("y").next().unwrap().1, "x", "and this is what is called");
}

#[test]
fn who_does_not_answer_is_left_out_and_named() {
    let toolbox = toolbox("{servers: [{name: a}, {name: b}, {name: c}]}");
    let parts =
        || vec![part("a", Err(failed())), part("b", Ok(list(Kind::Tools, &["x"]))), part("c", Err(Missing::Hidden))];
    let (names, result) = shown(&toolbox, Kind::Tools, parts());
    assert_eq!(names, ["b_x"]);
    let unavailable = json!([{"server": "a", "reason": "no instance is running"}]);
    assert_eq!((&result["_meta"][META_UNAVAILABLE], &result["ttlMs"]), (&unavailable, &json!(0)));
    let counted = std::cell::RefCell::new(Vec::new());
    super::result(&toolbox, Kind::Tools, &Lists(parts()), |server| counted.borrow_mut().push(server.name.clone()));
    assert_eq!(*counted.borrow(), ["a"], "who is hidden is not missing");
    let (_, whole) = shown(&toolbox, Kind::Tools, vec![part("a", Ok(list(Kind::Tools, &["x"])))]);
    assert!(whole["_meta"].is_null() && whole["ttlMs"].as_u64().unwrap() > 0, "{whole}");
}

#[test]
fn a_name_stays_with_a_server_that_does_not_answer() {
    let toolbox = toolbox("{conflictPolicy: First, servers: [{name: a}, {name: b}]}");
    let gone = Part { had: Some(list(Kind::Tools, &["x"])), ..part("a", Err(failed())) };
    let (names, _) = shown(&toolbox, Kind::Tools, vec![gone, part("b", Ok(list(Kind::Tools, &["x", "y"])))]);
    assert_eq!(names, ["y"], "another server's tool never takes its place");
}

#[test]
fn what_somebody_may_not_use_is_not_shown() {
    let toolbox = toolbox("{servers: [{name: a}]}");
    let visible = ToolFilter { allow: vec!["x".into()], deny: vec![] }.into();
    let parts = vec![Part { visible, ..part("a", Ok(list(Kind::Tools, &["x", "y"]))) }];
    assert_eq!(shown(&toolbox, Kind::Tools, parts).0, ["a_x"]);
}

#[test]
fn prompts_and_resources_have_names_that_do_not_meet() {
    let toolbox = toolbox("{servers: [{name: a}, {name: b, prefix: bee-}]}");
    for (kind, name, expected) in [
        (Kind::Prompts, "p", ["a_p", "bee-p"]),
        (Kind::Resources, "memo://x", ["a+memo://x", "b+memo://x"]),
        (Kind::Templates, "memo://{id}", ["a+memo://{id}", "b+memo://{id}"]),
    ] {
        let parts = vec![part("a", Ok(list(kind, &[name]))), part("b", Ok(list(kind, &[name])))];
        assert_eq!(shown(&toolbox, kind, parts).0, expected);
    }
}

#[test]
fn a_template_has_what_it_stands_for() {
    let lists = Lists(vec![part("a", Ok(list(Kind::Templates, &["memo://{id}"])))]);
    let server = ServerKey::new("", "a");
    assert!(lists.has(&server, Kind::Templates, "memo://7") && !lists.has(&server, Kind::Templates, "file://7"));
    assert!(
        lists.has(&server, Kind::Templates, "memo://{id}")
            && !lists.has(&ServerKey::new("", "b"), Kind::Templates, "memo://7")
    );
}

#[test]
fn a_hundred_servers_are_listed_fast() {
    let servers: Vec<String> = (0..100).map(|n| format!("{{name: s{n}}}")).collect();
    let toolbox = toolbox(&format!("{{servers: [{}]}}", servers.join(",")));
    let names: Vec<String> = (0..10).map(|n| format!("tool-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let parts = (0..100).map(|n| part(&format!("s{n}"), Ok(list(Kind::Tools, &names)))).collect();
    let (shown, _) = shown(&toolbox, Kind::Tools, parts);
    assert_eq!((shown.len(), shown[999].as_str()), (1000, "s99_tool-9"));
}
