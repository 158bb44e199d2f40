//! Structural schemas: what the objects of a kind look like.
//!
//! A schema is compiled once from the OpenAPI v3 schema of a CustomResourceDefinition. It prunes
//! unknown fields, fills defaults and validates, each as `apiextensions-apiserver` does and with
//! its words. `apiVersion`, `kind` and `metadata` are those of every object.

mod defaults;
mod node;
mod prune;
mod validate;

use std::sync::Arc;

use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use serde_json::Value;

pub use node::{ListType, Node};

use super::meta;
use crate::local::status::Cause;

/// The schema of one kind.
#[derive(Clone)]
pub struct Schema {
    root: Arc<Node>,
    rules: Option<Arc<CompiledSchema>>,
    /// Whether no rule looks at the status, or at what was before.
    spares_status: bool,
    openapi: Arc<Value>,
}

impl std::fmt::Debug for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Schema")
    }
}

/// A schema that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {message}")]
pub struct SchemaError {
    /// Where.
    pub path: String,
    /// What.
    pub message: String,
}

impl Schema {
    /// Compiles the schema of a kind.
    ///
    /// # Errors
    /// When a pattern or a validation rule does not compile.
    pub fn compile(openapi: &Value) -> Result<Self, SchemaError> {
        let mut openapi = openapi.clone();
        let mut root = Node::compile(&openapi, "")?;
        let mut metadata = Node::compile(&meta::schema(), "metadata")?;
        metadata.description.clone_from(&meta::schema()["description"].as_str().map(str::to_owned));
        root.properties.insert("apiVersion".into(), Node::text());
        root.properties.insert("kind".into(), Node::text());
        root.properties.insert("metadata".into(), metadata);
        let rules = has_rules(&openapi).then(|| Arc::new(compile_schema(&openapi)));
        let spares_status =
            !openapi.get("x-kubernetes-validations").is_some_and(|own| own.to_string().contains("status"))
                && !openapi.pointer("/properties/status").is_some_and(has_rules)
                && !openapi.to_string().contains("oldSelf");
        openapi["properties"]["apiVersion"] = meta::api_version_schema();
        openapi["properties"]["kind"] = meta::kind_schema();
        openapi["properties"]["metadata"] = meta::schema();
        Ok(Self { root: Arc::new(root), rules, spares_status, openapi: Arc::new(openapi) })
    }

    /// The OpenAPI v3 form, for clients that explain fields.
    pub fn openapi(&self) -> &Value {
        &self.openapi
    }

    /// The compiled root.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// Removes what the schema does not know, and returns the paths of what was removed.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut unknown = Vec::new();
        prune::prune(&self.root, object, "", &mut unknown);
        unknown.sort();
        unknown
    }

    /// Fills in defaults.
    pub fn default(&self, object: &mut Value) {
        defaults::fill(&self.root, object);
    }

    /// Everything that is wrong with an object but for its rules. Metadata is not looked at.
    pub fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        validate::validate(&self.root, object, "", "", &mut causes);
        causes
    }

    /// Everything that is wrong with the status of an object, which is then checked alone.
    pub fn validate_status(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        if let (Some(node), Some(status)) = (self.root.properties.get("status"), object.get("status")) {
            validate::validate(node, status, "status", "status.", &mut causes);
        }
        causes
    }

    /// The rules that an object breaks, given what else is `wrong` with it; `old` is the object that
    /// it replaces. Rules rely on the types, so they do not run on an object that lacks something.
    pub fn broken_rules(&self, object: &Value, old: Option<&Value>, wrong: &[Cause]) -> Vec<Cause> {
        const BLOCKING: [&str; 5] = [
            "FieldValueNotSupported",
            "FieldValueRequired",
            "FieldValueTooLong",
            "FieldValueTooMany",
            "FieldValueTypeInvalid",
        ];
        let Some(rules) = &self.rules else { return Vec::new() };
        if wrong.iter().any(|cause| BLOCKING.contains(&cause.reason)) {
            let message = "Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            return vec![Cause { reason: "FieldValueInvalid", message: message.into(), field: "<nil>".into() }];
        }
        // Controllers write the status again and again. Rules about what did not change found nothing
        // before, and an API server does not hold it against a writer if they would now.
        if self.spares_status && old.is_some_and(|old| same_but_for_status(old, object)) {
            return Vec::new();
        }
        // To a rule, null is nothing.
        let mut object = object.clone();
        drop_nulls(&mut object);
        let errors = Validator::new().validate_compiled(rules, &object, old).err();
        errors
            .into_iter()
            .flatten()
            .map(|error| Cause {
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {}", error.message),
                field: match error.field_path.trim_start_matches('.') {
                    "" => "<nil>".to_owned(),
                    path => path.to_owned(),
                },
            })
            .collect()
    }
}

/// Whether two objects differ in status and metadata at most.
fn same_but_for_status(one: &Value, other: &Value) -> bool {
    let (Value::Object(one), Value::Object(other)) = (one, other) else { return false };
    let told = |key: &String| key != "status" && key != "metadata";
    let keys = |map: &serde_json::Map<String, Value>| map.keys().filter(|key| told(key)).count();
    keys(one) == keys(other)
        && one.iter().filter(|(key, _)| told(key)).all(|(key, value)| other.get(key) == Some(value))
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("x-kubernetes-validations") || map.values().any(has_rules),
        Value::Array(items) => items.iter().any(has_rules),
        _ => false,
    }
}

fn type_name(value: Option<&Value>) -> &'static str {
    match value {
        Some(Value::Object(_)) | None => "object",
        Some(Value::Array(_)) => "array",
        Some(Value::String(_)) => "string",
        Some(Value::Bool(_)) => "boolean",
        Some(Value::Number(n)) if n.is_f64() => "number",
        Some(Value::Number(_)) => "integer",
        Some(Value::Null) => "null",
    }
}

#[cfg(test)]
mod tests;
