//! Tables, as `kubectl get` asks for them.

use std::sync::LazyLock;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::ControllerRevision,
        coordination::v1::LeaseSpec,
        core::v1::{ConfigMap, Event, ObjectReference, Secret},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceColumnDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, json};
use serde_json_path::JsonPath;

use super::builtin;

/// What goes into the rows of a table beside the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// The object.
    Object,
    /// Its metadata.
    Metadata,
    /// Nothing.
    Nothing,
}

/// The columns of a kind.
#[derive(Debug)]
pub struct Columns(Vec<Column>);

#[derive(Debug)]
struct Column {
    definition: Value,
    cell: Cell,
}

#[derive(Debug)]
enum Cell {
    Path {
        path: JsonPath,
        date: bool,
    },
    /// Number of members at these JSON pointers.
    Count(&'static [&'static str]),
    /// A text at a JSON pointer, empty when absent.
    Text(&'static str),
    /// `kind/name` of the object that an event speaks of.
    Object,
    /// What an event says.
    Message,
    /// Who tells of an event.
    Source,
    /// When an event was seen.
    Seen {
        /// The last time, not the first.
        last: bool,
    },
    /// How often an event was seen.
    Times,
    /// `kind.group/name` of the controller that owns an object.
    Controller,
}

impl Columns {
    /// The columns that a CustomResourceDefinition names, or name and age.
    ///
    /// # Errors
    /// When a JSON path does not parse; the text says which.
    pub fn of_crd(columns: &[CustomResourceColumnDefinition]) -> Result<Self, String> {
        let mut all = vec![path_column("Name", "string", ".metadata.name", 0, &described("name"))?];
        for column in columns {
            let description = column.description.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| {
                format!("Custom resource definition column (in JSONPath format): {}", column.json_path)
            });
            let priority = column.priority.unwrap_or_default();
            all.push(path_column(&column.name, &column.type_, &column.json_path, priority, &description)?);
        }
        if columns.is_empty() {
            all.push(path_column("Age", "date", ".metadata.creationTimestamp", 0, &described("creationTimestamp"))?);
        }
        Ok(Self(all))
    }

    /// A `Table` of objects, `now` being the moment that ages are counted to. `definitions` is
    /// false for the later events of a watch, which do not repeat them.
    pub fn table(
        &self,
        objects: &[Value],
        metadata: &Value,
        include: Include,
        definitions: bool,
        now: Timestamp,
    ) -> Value {
        let rows: Vec<Value> = objects
            .iter()
            .map(|object| {
                let cells: Vec<Value> = self.0.iter().map(|column| column.cell.of(object, now)).collect();
                let shown = match include {
                    Include::Object => object.clone(),
                    Include::Metadata => partial(object),
                    Include::Nothing => Value::Null,
                };
                json!({"cells": cells, "object": shown})
            })
            .collect();
        let columns: Option<Vec<&Value>> = definitions.then(|| self.0.iter().map(|c| &c.definition).collect());
        json!({
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "columnDefinitions": columns,
            "rows": rows,
        })
    }
}

/// What Kubernetes says of a field of metadata.
fn described(field: &str) -> String {
    static METADATA: LazyLock<Value> = LazyLock::new(builtin::openapi_of::<ObjectMeta>);
    METADATA["properties"][field]["description"].as_str().unwrap_or_default().to_owned()
}

/// The metadata of an object alone.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn path_column(name: &str, type_: &str, path: &str, priority: i32, description: &str) -> Result<Column, String> {
    let parsed = JsonPath::parse(&format!("${path}")).map_err(|error| format!("column {name}: {path}: {error}"))?;
    let format = if name == "Name" { "name" } else { "" };
    Ok(Column {
        definition: json!({"name": name, "type": type_, "format": format, "description": description, "priority": priority}),
        cell: Cell::Path { path: parsed, date: type_ == "date" },
    })
}

impl Cell {
    fn of(&self, object: &Value, now: Timestamp) -> Value {
        match self {
            Self::Path { path, date } => {
                let found = path.query(object).first().cloned().unwrap_or(Value::Null);
                match found {
                    Value::String(text) if *date => age_of(&text, now).into(),
                    Value::Object(_) | Value::Array(_) => found.to_string().into(),
                    other => other,
                }
            }
            Self::Count(pointers) => {
                let members =
                    |pointer: &&str| object.pointer(pointer).and_then(Value::as_object).map_or(0, serde_json::Map::len);
                pointers.iter().map(members).sum::<usize>().into()
            }
            Self::Text(pointer) => text(object, pointer).trim().into(),
            Self::Object => {
                // The two kinds of events have different names for it.
                let either = |a, b| Some(text(object, a)).filter(|t| !t.is_empty()).unwrap_or_else(|| text(object, b));
                let kind = either("/involvedObject/kind", "/regarding/kind").to_lowercase();
                match either("/involvedObject/name", "/regarding/name") {
                    "" => kind.into(),
                    name => format!("{kind}/{name}").into(),
                }
            }
            Self::Message => object.get("message").or(object.get("note")).cloned().unwrap_or_default(),
            Self::Source => {
                let first = |pointers: [&str; 2]| {
                    pointers.into_iter().map(|p| text(object, p)).find(|t| !t.is_empty()).unwrap_or_default().to_owned()
                };
                let component = first(["/source/component", "/reportingComponent"]);
                match first(["/source/host", "/reportingInstance"]) {
                    host if host.is_empty() => component.into(),
                    host => format!("{component}, {host}").into(),
                }
            }
            Self::Seen { last } => {
                let pointers: &[&str] = if *last {
                    &[
                        "/series/lastObservedTime",
                        "/lastTimestamp",
                        "/deprecatedLastTimestamp",
                        "/firstTimestamp",
                        "/eventTime",
                    ]
                } else {
                    &["/firstTimestamp", "/eventTime"]
                };
                let time = pointers.iter().map(|pointer| text(object, pointer)).find(|time| !time.is_empty());
                time.map_or_else(|| "<unknown>".to_owned(), |time| age_of(time, now)).into()
            }
            Self::Times => {
                let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).filter(|n| *n > 0);
                number("/series/count").or_else(|| number("/count")).unwrap_or(1).into()
            }
            Self::Controller => {
                let owners = object["metadata"]["ownerReferences"].as_array();
                let controller = owners.into_iter().flatten().find(|owner| owner["controller"] == true);
                controller.map_or_else(
                    || "<none>".into(),
                    |owner| {
                        let kind = text(owner, "/kind").to_lowercase();
                        let group = text(owner, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
                        let dot = if group.is_empty() { "" } else { "." };
                        format!("{kind}{dot}{group}/{}", text(owner, "/name")).into()
                    },
                )
            }
        }
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn age_of(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human_duration(now.duration_since(time).as_secs()),
        Err(_) => "<unknown>".into(),
    }
}

/// An age in at most two units, as `k8s.io/apimachinery/pkg/util/duration.HumanDuration` prints it.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, l: char, small: i64, s: char| {
        if small == 0 { format!("{large}{l}") } else { format!("{large}{l}{small}{s}") }
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, 'd', hours % 24, 'h'),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// The columns of a built-in kind.
///
/// # Panics
/// Never: the paths are constants that parse, as a test shows.
pub fn builtin_columns(kind: &str) -> Columns {
    let path = |name: &str, type_: &str, path: &str, description: &str| {
        path_column(name, type_, path, 0, description).expect("constant paths parse")
    };
    let special = |name: &str, type_: &str, priority: i32, description: &str, cell: Cell| Column {
        definition: json!({"name": name, "type": type_, "format": "", "description": description, "priority": priority}),
        cell,
    };
    let name = || path("Name", "string", ".metadata.name", &described("name"));
    // Not of the type `date`, which clients would count themselves.
    let age = || {
        let mut age = path("Age", "date", ".metadata.creationTimestamp", &described("creationTimestamp"));
        age.definition["type"] = "string".into();
        age
    };
    let of = |schema: &Value, field: &str| -> String {
        schema["properties"][field]["description"].as_str().unwrap_or_default().to_owned()
    };
    Columns(match kind {
        "Event" => {
            let event = builtin::openapi_of::<Event>();
            let reference = builtin::openapi_of::<ObjectReference>();
            let text = |name: &str, priority: i32, description: String, cell: Cell| {
                special(name, "string", priority, &description, cell)
            };
            let mut columns = vec![
                text("Last Seen", 0, of(&event, "lastTimestamp"), Cell::Seen { last: true }),
                text("Type", 0, of(&event, "type"), Cell::Text("/type")),
                text("Reason", 0, of(&event, "reason"), Cell::Text("/reason")),
                text("Object", 0, of(&event, "involvedObject"), Cell::Object),
                text("Subobject", 1, of(&reference, "fieldPath"), Cell::Text("/involvedObject/fieldPath")),
                text("Source", 1, of(&event, "source"), Cell::Source),
                text("Message", 0, of(&event, "message"), Cell::Message),
                text("First Seen", 1, of(&event, "firstTimestamp"), Cell::Seen { last: false }),
                text("Count", 1, of(&event, "count"), Cell::Times),
                text("Name", 1, described("name"), Cell::Text("/metadata/name")),
            ];
            columns[9].definition["format"] = "name".into();
            columns
        }
        "Namespace" => {
            vec![name(), path("Status", "string", ".status.phase", "The status of the namespace"), age()]
        }
        "Secret" => {
            let secret = builtin::openapi_of::<Secret>();
            let type_ = path("Type", "string", ".type", &of(&secret, "type"));
            vec![name(), type_, special("Data", "string", 0, &of(&secret, "data"), Cell::Count(&["/data"])), age()]
        }
        "ConfigMap" => {
            let description = of(&builtin::openapi_of::<ConfigMap>(), "data");
            vec![name(), special("Data", "string", 0, &description, Cell::Count(&["/data", "/binaryData"])), age()]
        }
        "Lease" => {
            let description = of(&builtin::openapi_of::<LeaseSpec>(), "holderIdentity");
            vec![name(), special("Holder", "string", 0, &description, Cell::Text("/spec/holderIdentity")), age()]
        }
        "ControllerRevision" => {
            let description = of(&builtin::openapi_of::<ControllerRevision>(), "revision");
            vec![
                name(),
                special("Controller", "string", 0, "Controller of the object", Cell::Controller),
                path("Revision", "string", ".revision", &description),
                age(),
            ]
        }
        "CustomResourceDefinition" => vec![name(), path("Created At", "date", ".metadata.creationTimestamp", "")],
        _ => vec![name(), age()],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_in_kubectl() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (190, "3m10s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_400, "3h10m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn cells_follow_the_definition() {
        let crd = crate::api::crds::all().remove(0);
        let columns = Columns::of_crd(crd.spec.versions[0].additional_printer_columns.as_ref().unwrap()).unwrap();
        let now: Timestamp = "2026-01-01T00:01:40Z".parse().unwrap();
        let object = json!({
            "metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"transport": {"type": "Stdio"}},
            "status": {"phase": "Ready", "tools": 3, "conditions": [{"type": "Ready", "status": "True"}]},
        });
        let table = columns.table(&[object], &json!({}), Include::Metadata, true, now);
        assert_eq!(table["rows"][0]["cells"], json!(["x", "True", "Ready", "Stdio", null, 3, null, null, "100s"]));
        assert_eq!(table["columnDefinitions"][6]["priority"], 1);
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }

    #[test]
    fn both_kinds_of_events_show_the_same() {
        let core = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "type": "Normal", "reason": "Ready",
            "involvedObject": {"kind": "McpServer", "name": "x"}, "message": "it answers", "lastTimestamp": "2026-01-01T00:01:00Z",
        });
        let mut new = core.clone();
        crate::local::events::from_core(&mut new);
        let now: Timestamp = "2026-01-01T00:01:40Z".parse().unwrap();
        for event in [core, new] {
            let table = builtin_columns("Event").table(&[event], &json!({}), Include::Nothing, true, now);
            let cells = table["rows"][0]["cells"].as_array().unwrap();
            let shown: Vec<_> = [0, 1, 2, 3, 6].into_iter().map(|i| cells[i].clone()).collect();
            assert_eq!(json!(shown), json!(["40s", "Normal", "Ready", "mcpserver/x", "it answers"]));
        }
    }

    #[test]
    fn built_in_columns_parse() {
        for kind in [
            "Event",
            "Namespace",
            "Secret",
            "ConfigMap",
            "Lease",
            "ControllerRevision",
            "CustomResourceDefinition",
            "Other",
        ] {
            assert!(!builtin_columns(kind).0.is_empty());
        }
    }
}
