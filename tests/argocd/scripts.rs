//! Runs the scripts as Argo CD does: Lua 5.1 with the base functions and the libraries `table`,
//! `package` and `os`, the object in the global `obj`, the last value returned as the result.

use mlua::{
    Lua, LuaOptions, LuaSerdeExt, StdLib,
    serde::{de::Options as DeserializeOptions, ser::Options as SerializeOptions},
};
use serde_json::{Map, Value};

/// The scripts for one kind in `manifests/argocd/argocd-cm-patch.yaml`.
pub struct Scripts {
    health: String,
    /// Null for a kind that has none.
    actions: Value,
}

impl Scripts {
    /// Reads the patch for McpServers.
    pub fn load() -> Self {
        Self::of("McpServer")
    }

    /// Reads the patch for a kind of Perch.
    pub fn of(kind: &str) -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/argocd/argocd-cm-patch.yaml");
        let patch: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let text = |what: &str| patch["data"][format!("resource.customizations.{what}.perch.dev_{kind}")].as_str();
        Self {
            health: text("health").unwrap_or_else(|| panic!("{kind} has no health check")).to_owned(),
            actions: text("actions").map(|text| serde_yaml_ng::from_str(text).unwrap()).unwrap_or_default(),
        }
    }

    /// Health and message of an object.
    pub fn health(&self, object: &Value) -> (String, String) {
        let found = run(&self.health, object);
        let health = found["status"].as_str().unwrap();
        assert!(
            ["Healthy", "Progressing", "Degraded", "Suspended"].contains(&health),
            "{health} is no health that Argo CD knows"
        );
        (health.to_owned(), found["message"].as_str().unwrap_or_default().to_owned())
    }

    /// Names of the actions that a person may choose.
    pub fn enabled(&self, object: &Value) -> Vec<String> {
        let found = run(self.actions["discovery.lua"].as_str().unwrap(), object);
        let found = found.as_object().unwrap();
        assert!(found.keys().all(|name| self.action(name).is_string()), "each has a script: {found:?}");
        found.iter().filter(|(_, action)| action["disabled"] != true).map(|(name, _)| name.clone()).collect()
    }

    /// The object that an action makes of an object.
    pub fn act(&self, name: &str, object: &Value) -> Value {
        let script = self.action(name).as_str().unwrap();
        restore(run(script, object), object)
    }

    fn action(&self, name: &str) -> &Value {
        let definitions = self.actions["definitions"].as_array().unwrap();
        let found = definitions.iter().find(|d| d["name"] == name);
        &found.unwrap_or_else(|| panic!("there is no action {name}"))["action.lua"]
    }
}

fn run(script: &str, object: &Value) -> Value {
    let lua = Lua::new_with(StdLib::TABLE | StdLib::PACKAGE | StdLib::OS, LuaOptions::default()).unwrap();
    let options =
        SerializeOptions::new().serialize_none_to_null(false).serialize_unit_to_null(false).set_array_metatable(false);
    lua.globals().set("obj", lua.to_value_with(object, options).unwrap()).unwrap();
    let result = lua.load(script).eval::<mlua::Value>().unwrap_or_else(|e| panic!("{e}\n{script}"));
    // Lua does not know an empty list from an empty map; Argo CD takes it for a list.
    let options = DeserializeOptions::new().encode_empty_tables_as_array(true);
    lua.from_value_with(result, options).unwrap()
}

/// What Argo CD puts right in the result of an action: an empty list that was an empty map.
fn restore(new: Value, old: &Value) -> Value {
    match (new, old) {
        (Value::Array(items), Value::Object(_)) if items.is_empty() => old.clone(),
        (Value::Object(new), Value::Object(old)) => {
            let member = |(key, value): (String, Value)| {
                let value = old.get(&key).map_or_else(|| value.clone(), |old| restore(value.clone(), old));
                (key, value)
            };
            Value::Object(new.into_iter().map(member).collect::<Map<_, _>>())
        }
        (Value::Array(new), Value::Array(old)) => {
            let item = |(i, value): (usize, Value)| match old.get(i) {
                Some(old) => restore(value, old),
                None => value,
            };
            Value::Array(new.into_iter().enumerate().map(item).collect())
        }
        (new, _) => new,
    }
}
