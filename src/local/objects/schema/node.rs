//! One place in a schema.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use super::SchemaError;

/// One place in a schema, compiled.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean`; none for int-or-string and any.
    pub type_: Option<String>,
    /// What `kubectl explain` shows.
    pub description: Option<String>,
    /// Whether null is a value here.
    pub nullable: bool,
    /// Put where nothing is given.
    pub default: Option<Value>,
    /// Known members of an object.
    pub properties: BTreeMap<String, Node>,
    /// Members that must be there.
    pub required: Vec<String>,
    /// Members of a map.
    pub values: Option<Box<Node>>,
    /// Elements of an array.
    pub items: Option<Box<Node>>,
    /// How server-side apply merges an array.
    pub list_type: ListType,
    /// Whether server-side apply replaces a map as a whole.
    pub atomic_map: bool,
    /// Keeps members that the schema does not name.
    pub preserve_unknown: bool,
    /// Takes an integer or a string.
    pub int_or_string: bool,
    pub(super) enum_: Vec<Value>,
    pub(super) pattern: Option<Regex>,
    pub(super) min_length: Option<u64>,
    pub(super) max_length: Option<u64>,
    pub(super) min_items: Option<u64>,
    pub(super) max_items: Option<u64>,
    pub(super) max_properties: Option<u64>,
    pub(super) minimum: Option<f64>,
    pub(super) maximum: Option<f64>,
    /// `int32`, `date-time`, `byte`…
    pub format: Option<String>,
}

/// How server-side apply merges an array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// Scalars, each at most once.
    Set,
    /// Objects, told apart by these members.
    Map(Vec<String>),
}

impl Node {
    /// A string without further rules.
    pub(super) fn text() -> Self {
        Self { type_: Some("string".into()), ..Self::default() }
    }

    pub(super) fn compile(schema: &Value, path: &str) -> Result<Self, SchemaError> {
        let text = |key: &str| schema.get(key).and_then(Value::as_str).map(str::to_owned);
        let flag = |key: &str| schema.get(key).and_then(Value::as_bool).unwrap_or(false);
        let count = |key: &str| schema.get(key).and_then(Value::as_u64);
        let number = |key: &str| schema.get(key).and_then(Value::as_f64);
        let strings = |key: &str| -> Vec<String> {
            let list = schema.get(key).and_then(Value::as_array);
            list.map(|l| l.iter().filter_map(Value::as_str).map(str::to_owned).collect()).unwrap_or_default()
        };
        let child = |schema: &Value, name: &str| Self::compile(schema, &format!("{path}.{name}"));
        let mut properties = BTreeMap::new();
        for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            properties.insert(name.clone(), child(schema, name)?);
        }
        let pattern = match text("pattern") {
            Some(pattern) => Some(
                Regex::new(&pattern)
                    .map_err(|error| SchemaError { path: path.to_owned(), message: error.to_string() })?,
            ),
            None => None,
        };
        let values = match schema.get("additionalProperties") {
            Some(values @ Value::Object(_)) => Some(Box::new(child(values, "*")?)),
            Some(Value::Bool(true)) => Some(Box::new(Self { preserve_unknown: true, ..Self::default() })),
            _ => None,
        };
        let items = match schema.get("items") {
            Some(items) => Some(Box::new(child(items, "[]")?)),
            None => None,
        };
        Ok(Self {
            type_: text("type"),
            description: text("description"),
            nullable: flag("nullable"),
            default: schema.get("default").cloned(),
            properties,
            required: strings("required"),
            values,
            items,
            list_type: match text("x-kubernetes-list-type").as_deref() {
                Some("set") => ListType::Set,
                Some("map") => ListType::Map(strings("x-kubernetes-list-map-keys")),
                _ => ListType::Atomic,
            },
            atomic_map: text("x-kubernetes-map-type").as_deref() == Some("atomic"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            enum_: schema.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            pattern,
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            max_properties: count("maxProperties"),
            minimum: number("minimum"),
            maximum: number("maximum"),
            format: text("format"),
        })
    }

    /// The schema of a member of an object or map.
    pub fn member(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(self.values.as_deref())
    }
}
