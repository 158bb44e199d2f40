//! What a server says of itself, from one era's form to the other's.

use serde_json::{json, value::RawValue};

use crate::gateway::{
    era::{LATEST_LEGACY, LEGACY_VERSIONS, META_SERVER, MODERN},
    message::{Entries, member, object, raw, text},
};

/// The answer to `server/discover` that a legacy server's answer to `initialize` amounts to.
pub fn from_initialize(initialized: &RawValue) -> Box<RawValue> {
    let empty = object();
    let mut capabilities = Entries::of(member(initialized, "capabilities").unwrap_or(&empty));
    // Tasks became an extension with another wire form.
    capabilities.retain(|name| name != "tasks");
    let mut versions = vec![MODERN];
    versions.extend(LEGACY_VERSIONS.iter().rev());
    let mut result = Entries::default();
    result.set("resultType", raw("complete"));
    result.set("supportedVersions", raw(versions));
    result.set("capabilities", capabilities.raw());
    if let Some(instructions) = member(initialized, "instructions") {
        result.set("instructions", instructions.to_owned());
    }
    // It may be another revision at any time, and who asks may matter.
    result.set("ttlMs", raw(0));
    result.set("cacheScope", raw("private"));
    if let Some(info) = member(initialized, "serverInfo") {
        result.set("_meta", raw(json!({META_SERVER: info})));
    }
    result.raw()
}

/// The answer to `initialize` that a modern server's answer to `server/discover` amounts to, in
/// the version that the client asked for if there is such a one.
pub fn to_initialize(discovered: &RawValue, asked: &str, name: &str) -> Box<RawValue> {
    let version = if LEGACY_VERSIONS.contains(&asked) { asked } else { LATEST_LEGACY };
    let empty = object();
    let mut capabilities = Entries::of(member(discovered, "capabilities").unwrap_or(&empty));
    capabilities.retain(|name| name != "extensions");
    let mut result = Entries::default();
    result.set("protocolVersion", raw(version));
    result.set("capabilities", capabilities.raw());
    let info = member(discovered, "_meta").and_then(|meta| member(meta, META_SERVER));
    result.set("serverInfo", info.map_or_else(|| raw(json!({"name": name, "version": "unknown"})), ToOwned::to_owned));
    if let Some(instructions) = member(discovered, "instructions") {
        result.set("instructions", instructions.to_owned());
    }
    result.raw()
}

/// Whether an answer to `server/discover` is one.
pub fn is_discovered(result: &RawValue) -> bool {
    has_modern(member(result, "supportedVersions"))
}

/// Whether the data of an error about versions names a modern one among those that are supported.
pub fn supports_modern(data: &RawValue) -> bool {
    has_modern(member(data, "supported"))
}

fn has_modern(versions: Option<&RawValue>) -> bool {
    let versions = versions.and_then(|v| serde_json::from_str::<Vec<String>>(v.get()).ok());
    versions.is_some_and(|versions| versions.iter().any(|version| version.as_str() >= MODERN))
}

/// Whether the server offers something: a capability, and a member of it where one is named.
pub fn offers(described: &RawValue, capability: &str, detail: Option<&str>) -> bool {
    let found = member(described, "capabilities").and_then(|c| member(c, capability));
    match (found, detail) {
        (Some(found), Some(detail)) => member(found, detail).is_some_and(|d| d.get() == "true"),
        (found, None) => found.is_some(),
        (None, Some(_)) => false,
    }
}

/// The version that an answer to `initialize` names.
pub fn agreed(initialized: &RawValue) -> String {
    member(initialized, "protocolVersion").and_then(text).map_or_else(|| LATEST_LEGACY.to_owned(), Into::into)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parsed(raw: &RawValue) -> Value {
        serde_json::from_str(raw.get()).unwrap()
    }

    #[test]
    fn a_server_says_the_same_in_both_forms() {
        let initialized = raw(json!({
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {"listChanged": true}, "tasks": {}, "x": 1},
            "serverInfo": {"name": "s", "version": "1", "icons": []},
            "instructions": "be kind",
        }));
        let discovered = from_initialize(&initialized);
        assert!(is_discovered(&discovered) && !is_discovered(&initialized));
        assert!(offers(&discovered, "tools", Some("listChanged")) && !offers(&discovered, "tasks", None));
        assert_eq!(parsed(&discovered)["capabilities"]["x"], 1);
        let back = parsed(&to_initialize(&discovered, "2025-06-18", "n"));
        assert_eq!(back["protocolVersion"], "2025-06-18");
        assert_eq!(back["serverInfo"], parsed(&initialized)["serverInfo"]);
        assert_eq!(back["instructions"], "be kind");
        assert_eq!(parsed(&to_initialize(&discovered, "1999", "n"))["protocolVersion"], LATEST_LEGACY);
        assert_eq!(parsed(&to_initialize(&object(), "x", "n"))["serverInfo"]["name"], "n");
    }
}
