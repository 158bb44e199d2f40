//! Tables, as `kubectl get` asks for them.

use std::sync::LazyLock;

use jiff::Timestamp;
use k8s_openapi::{
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
    /// Number of members at a JSON pointer.
    Count(&'static str),
    /// `kind/name` of the object that an event speaks of.
    Object,
    /// Time of an event.
    LastSeen,
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
    static METADATA: LazyLock<Value> = LazyLock::new(|| builtin::openapi_of::<ObjectMeta>());
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
            Self::Count(pointer) => {
                let members = object.pointer(pointer).and_then(Value::as_object).map_or(0, serde_json::Map::len);
                members.into()
            }
            Self::Object => {
                let involved = &object["involvedObject"];
                let kind = involved["kind"].as_str().unwrap_or_default().to_lowercase();
                format!("{kind}/{}", involved["name"].as_str().unwrap_or_default()).into()
            }
            Self::LastSeen => {
                let time = ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
                    .into_iter()
                    .find_map(|pointer| object.pointer(pointer).and_then(Value::as_str));
                time.map_or_else(|| "<unknown>".to_owned(), |time| age_of(time, now)).into()
            }
        }
    }
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
    let path =
        |name: &str, type_: &str, path: &str| path_column(name, type_, path, 0, "").expect("constant paths parse");
    let special = |name: &str, type_: &str, cell: Cell| Column {
        definition: json!({"name": name, "type": type_, "format": "", "description": "", "priority": 0}),
        cell,
    };
    let name = || path("Name", "string", ".metadata.name");
    let age = || path("Age", "date", ".metadata.creationTimestamp");
    Columns(match kind {
        "Event" => vec![
            special("Last Seen", "string", Cell::LastSeen),
            path("Type", "string", ".type"),
            path("Reason", "string", ".reason"),
            special("Object", "string", Cell::Object),
            path("Message", "string", ".message"),
        ],
        "Namespace" => vec![name(), path("Status", "string", ".status.phase"), age()],
        "Secret" => {
            vec![name(), path("Type", "string", ".type"), special("Data", "integer", Cell::Count("/data")), age()]
        }
        "ConfigMap" => vec![name(), special("Data", "integer", Cell::Count("/data")), age()],
        "Lease" => vec![name(), path("Holder", "string", ".spec.holderIdentity"), age()],
        "ControllerRevision" => vec![
            name(),
            path("Controller", "string", ".metadata.ownerReferences[0].name"),
            path("Revision", "string", ".revision"),
            age(),
        ],
        "CustomResourceDefinition" => vec![name(), path("Created At", "date", ".metadata.creationTimestamp")],
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
        assert_eq!(table["rows"][0]["cells"], json!(["x", "True", "Ready", "Stdio", null, 3, null, "100s"]));
        assert_eq!(table["columnDefinitions"][6]["priority"], 1);
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
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
