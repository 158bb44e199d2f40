//! Files that are made from the source are current. `make generate` makes them anew.

use std::{fmt::Write, fs, path::Path};

use serde_json::Value;

fn check(path: &str, content: &str) {
    if std::env::var_os("PERCH_REGENERATE").is_some() {
        fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(found == content, "{path} is stale: run `make generate`");
}

#[test]
fn definitions() {
    for crd in perch::api::crds::all() {
        let yaml = serde_yaml_ng::to_string(&crd).unwrap();
        let path = format!("crds/{}.yaml", crd.metadata.name.as_ref().unwrap());
        let text = format!("# Made from src/api by `make generate`. Do not edit.\n{yaml}");
        check(&path, &text);
        // The chart carries a copy, for Helm reads nothing outside of it.
        check(&format!("charts/perch/files/{path}"), &text);
    }
    for dir in ["crds", "charts/perch/files/crds"] {
        let files = fs::read_dir(dir).unwrap().count();
        assert_eq!(files, perch::api::crds::all().len(), "{dir} holds a definition that is no more");
    }
}

#[test]
fn api_reference() {
    let mut text = "# API reference\n\nMade from src/api by `make generate`. Do not edit.\n".to_owned();
    for crd in perch::api::crds::all() {
        let version = &crd.spec.versions[0];
        let schema = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        let schema = serde_json::to_value(schema).unwrap();
        write!(text, "\n## {} ({}/{})\n\n", crd.spec.names.kind, crd.spec.group, version.name).unwrap();
        text.push_str("| Field | Type | Default | Meaning |\n|---|---|---|---|\n");
        for part in ["spec", "status"] {
            fields(&mut text, part, &schema["properties"][part]);
        }
    }
    check("docs/api.md", &text);
}

fn fields(text: &mut String, path: &str, schema: &Value) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let type_ = match (&field["type"], &field["enum"]) {
            (_, Value::Array(choices)) => choices.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" \\| "),
            (Value::String(type_), _) => type_.clone(),
            _ => "integer or string".into(),
        };
        let default = match &field["default"] {
            Value::Null => String::new(),
            default => format!("`{default}`"),
        };
        let meaning = field["description"].as_str().unwrap_or_default().replace('\n', " ");
        writeln!(text, "| `{path}` | {type_} | {default} | {meaning} |").unwrap();
        fields(text, &path, field);
        fields(text, &format!("{path}[]"), &field["items"]);
    }
}

#[test]
fn command_line_reference() {
    let mut command = perch::cli::command();
    command.build();
    let mut text = "# Command line\n\nMade from src/cli by `make generate`. Do not edit.\n".to_owned();
    commands(&mut text, "perch", &command);
    check("docs/cli.md", &text);
}

/// Each command, and those below it.
fn commands(text: &mut String, path: &str, command: &clap::Command) {
    for sub in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        let path = format!("{path} {}", sub.get_name());
        let help = sub.clone().term_width(100).render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        write!(text, "\n## {path}\n\n```\n{}\n```\n", help.join("\n")).unwrap();
        commands(text, &path, sub);
    }
}
