//! The contents of Secrets and ConfigMaps, with the words of `pkg/apis/core/validation`.
//!
//! Keys become file names and values become bytes wherever such an object is used, so nothing gets
//! into the store that is not fit for that.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use regex::Regex;
use serde_json::{Map, Value};

use crate::local::status::Cause;

/// All values of one object together, in bytes.
const LIMIT: usize = 1024 * 1024;
/// Bytes of a key.
const KEY_LIMIT: usize = 253;

static KEY: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("^[-._a-zA-Z0-9]+$").expect("the pattern is a constant that compiles"));

const KEY_MESSAGE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// Everything that is wrong with the contents of a Secret or ConfigMap, `old` being the one that it
/// replaces. No message holds a value.
pub fn validate(kind: &str, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let (encoded, plain) = match kind {
        "Secret" => ("data", None),
        "ConfigMap" => ("binaryData", Some("data")),
        _ => return Vec::new(),
    };
    let mut causes = Vec::new();
    let mut size = 0;
    for (field, key, value) in members(object, encoded) {
        check_key(field, key, &mut causes);
        match STANDARD.decode(value) {
            Ok(bytes) => size += bytes.len(),
            Err(error) => causes.push(invalid(field, key, &format!("the value is not base64: {}", position(&error)))),
        }
    }
    for (field, key, value) in plain.into_iter().flat_map(|plain| members(object, plain)) {
        check_key(field, key, &mut causes);
        size += value.len();
        if object[encoded].get(key).is_some() {
            causes.push(invalid(field, key, &format!("duplicate of key present in {encoded}")));
        }
    }
    if size > LIMIT {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {LIMIT} bytes"),
            // Of a ConfigMap it is the whole object.
            field: if kind == "Secret" { encoded.into() } else { "[]".into() },
        });
    }
    if kind == "Secret" {
        check_type(object, &mut causes);
    }
    if let Some(old) = old {
        check_update(object, old, &mut causes);
    }
    causes
}

/// Takes line breaks out of base64, as YAML blocks bring them along and Kubernetes lets them pass.
pub fn normalise(kind: &str, object: &mut Value) {
    let encoded = match kind {
        "Secret" => "data",
        "ConfigMap" => "binaryData",
        _ => return,
    };
    let Some(Value::Object(members)) = object.get_mut(encoded) else { return };
    for value in members.values_mut() {
        if let Value::String(text) = value {
            text.retain(|c| !matches!(c, '\r' | '\n'));
        }
    }
}

fn members<'a>(object: &'a Value, field: &'a str) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
    let members = object[field].as_object().into_iter().flat_map(Map::iter);
    members.map(move |(key, value)| (field, key.as_str(), value.as_str().unwrap_or_default()))
}

fn check_key(field: &str, key: &str, causes: &mut Vec<Cause>) {
    if key.len() > KEY_LIMIT {
        causes.push(invalid(field, key, &format!("must be no more than {KEY_LIMIT} characters")));
    }
    if !KEY.is_match(key) {
        causes.push(invalid(field, key, KEY_MESSAGE));
    }
    if key == "." {
        causes.push(invalid(field, key, "must not be '.'"));
    } else if key == ".." {
        causes.push(invalid(field, key, "must not be '..'"));
    } else if key.starts_with("..") {
        causes.push(invalid(field, key, "must not start with '..'"));
    }
}

/// What secrets of a well-known type must hold.
fn check_type(secret: &Value, causes: &mut Vec<Cause>) {
    let has = |key: &str| secret["data"].get(key).is_some();
    let mut need = |field: String| {
        causes.push(Cause { reason: "FieldValueRequired", message: "Required value".into(), field });
    };
    let json = match secret["type"].as_str().unwrap_or_default() {
        "kubernetes.io/service-account-token" => {
            let name = "kubernetes.io/service-account.name";
            if secret["metadata"]["annotations"][name].as_str().unwrap_or_default().is_empty() {
                need(format!("metadata.annotations[{name}]"));
            }
            return;
        }
        "kubernetes.io/basic-auth" => {
            if !has("username") && !has("password") {
                need("data[username]".into());
                need("data[password]".into());
            }
            return;
        }
        "kubernetes.io/ssh-auth" => {
            if secret["data"]["ssh-privatekey"].as_str().unwrap_or_default().is_empty() {
                need("data[ssh-privatekey]".into());
            }
            return;
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].into_iter().filter(|key| !has(key)) {
                need(format!("data[{key}]"));
            }
            return;
        }
        "kubernetes.io/dockercfg" => ".dockercfg",
        "kubernetes.io/dockerconfigjson" => ".dockerconfigjson",
        _ => return,
    };
    let Some(value) = secret["data"][json].as_str() else { return need(format!("data[{json}]")) };
    let bytes = STANDARD.decode(value).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<Map<String, Value>>(&bytes) {
        let why = if error.is_eof() { "unexpected end of JSON input" } else { "it is not a JSON object" };
        causes.push(Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: \"<secret contents redacted>\": {why}"),
            field: format!("data[{json}]"),
        });
    }
}

fn check_update(object: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
    let changed = |field: &str| object[field] != old[field] && !(empty(&object[field]) && empty(&old[field]));
    if old["immutable"] == true {
        let mut forbid = |field: &str| {
            causes.push(Cause {
                reason: "FieldValueForbidden",
                message: "Forbidden: field is immutable when `immutable` is set".into(),
                field: field.into(),
            });
        };
        if object["immutable"] != true {
            forbid("immutable");
        }
        ["data", "binaryData"].into_iter().filter(|field| changed(field)).for_each(forbid);
    }
    if changed("type") {
        let message = format!("Invalid value: {}: field is immutable", object["type"]);
        causes.push(Cause { reason: "FieldValueInvalid", message, field: "type".into() });
    }
}

fn invalid(field: &str, key: &str, message: &str) -> Cause {
    Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {key:?}: {message}"),
        field: format!("{field}[{key}]"),
    }
}

/// Where base64 breaks, without what stands there.
fn position(error: &base64::DecodeError) -> String {
    match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => {
            format!("illegal data at input byte {at}")
        }
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
            "its length or padding is wrong".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
        validate(kind, object, old).into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn a_key_is_a_file_name() {
        for key in ["a", "TLS.crt", "a_b-c.", ".hidden"] {
            assert!(problems("Secret", &json!({"data": {key: "YQ=="}}), None).is_empty(), "{key}");
            assert!(problems("ConfigMap", &json!({"data": {key: "a"}}), None).is_empty(), "{key}");
        }
        for key in ["../../etc/cron.d/x", "a/b", "/etc/passwd", ".", "..", "..data", "", "a b", "ä", &"x".repeat(254)]
        {
            assert!(!problems("Secret", &json!({"data": {key: "YQ=="}}), None).is_empty(), "{key}");
            assert!(!problems("ConfigMap", &json!({"data": {key: "a"}}), None).is_empty(), "{key}");
            assert!(!problems("ConfigMap", &json!({"binaryData": {key: "YQ=="}}), None).is_empty(), "{key}");
        }
    }

    #[test]
    fn values_are_base64_and_no_message_repeats_them() {
        let found = problems("Secret", &json!({"data": {"a": "hunter2!", "b": "YQ"}}), None);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("illegal data at input byte 7"), "{found:?}");
        assert!(!found.concat().contains("hunter2"), "{found:?}");
        assert_eq!(problems("ConfigMap", &json!({"binaryData": {"a": "!"}}), None).len(), 1);
        assert!(problems("ConfigMap", &json!({"data": {"a": "!"}}), None).is_empty());
    }

    #[test]
    fn base64_may_come_in_lines() {
        let mut secret = json!({"data": {"a": "aHVu\r\ndGVy\n"}});
        normalise("Secret", &mut secret);
        assert_eq!(secret, json!({"data": {"a": "aHVudGVy"}}));
        let mut map = json!({"data": {"a": "two\nlines"}});
        normalise("ConfigMap", &mut map);
        assert_eq!(map, json!({"data": {"a": "two\nlines"}}));
    }

    #[test]
    fn a_key_has_one_value_and_all_values_are_bounded() {
        let both = json!({"data": {"a": "x"}, "binaryData": {"a": "YQ=="}});
        assert_eq!(problems("ConfigMap", &both, None).len(), 1);
        let large = json!({"data": {"a": "x".repeat(LIMIT), "b": "y"}});
        assert_eq!(problems("ConfigMap", &large, None), ["[]: Too long: may not be more than 1048576 bytes"]);
    }

    #[test]
    fn what_is_immutable_stays() {
        let old = json!({"immutable": true, "data": {"a": "YQ=="}, "type": "Opaque"});
        let check = |new: Value| problems("Secret", &new, Some(&old));
        assert!(check(json!({"immutable": true, "data": {"a": "YQ=="}, "type": "Opaque"})).is_empty());
        assert_eq!(check(json!({"immutable": true, "data": {"a": "Yg=="}, "type": "Opaque"})).len(), 1);
        assert_eq!(check(json!({"immutable": false, "data": {"a": "YQ=="}, "type": "Opaque"})).len(), 1);
        assert_eq!(
            check(json!({"immutable": true, "data": {"a": "YQ=="}, "type": "x"})),
            ["type: Invalid value: \"x\": field is immutable"]
        );
    }
}
