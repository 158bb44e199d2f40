//! Label and field selectors, as they stand in a query.

use std::collections::BTreeMap;

use serde_json::Value;

/// A selector that cannot be parsed or is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

/// Which labels an object must have. The default selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Labels {
    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        split(text)
            .into_iter()
            .filter(|part| !part.trim().is_empty())
            .map(requirement)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether this selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object's labels satisfy all requirements.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let label = |key: &str| labels.get(key).and_then(Value::as_str);
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|l| values.iter().any(|v| v == l)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|l| values.iter().all(|v| v != l)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        })
    }
}

/// Splits at commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (index, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(part: &str) -> Result<Requirement, SelectorError> {
    let part = part.trim();
    let bad = || {
        SelectorError(format!(
            "unable to parse requirement: {part:?}: write key=value, key!=value, key in (a,b), key notin (a,b), key or !key"
        ))
    };
    let key = |text: &str| {
        let text = text.trim();
        let fine = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        if fine { Ok(text.to_owned()) } else { Err(bad()) }
    };
    let value = |text: &str| {
        let text = text.trim();
        let fine = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if fine { Ok(text.to_owned()) } else { Err(bad()) }
    };
    if let Some(rest) = part.strip_prefix('!') {
        return Ok(Requirement::Absent(key(rest)?));
    }
    if let Some(body) = part.strip_suffix(')') {
        let (head, values) = body.split_once('(').ok_or_else(bad)?;
        let values = values.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(name), Some("in"), None) => Ok(Requirement::In(key(name)?, values)),
            (Some(name), Some("notin"), None) => Ok(Requirement::NotIn(key(name)?, values)),
            _ => Err(bad()),
        };
    }
    if let Some((name, wanted)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(key(name)?, vec![value(wanted)?]));
    }
    if let Some((name, wanted)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(key(name)?, vec![value(wanted)?]));
    }
    Ok(Requirement::Exists(key(part)?))
}

/// Which fields an object must have. The default selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, String, bool)>);

impl Fields {
    /// Parses `metadata.name=a,type!=b`; only fields in `served` and name and namespace are.
    pub fn parse(text: &str, served: &BTreeMap<&str, &str>) -> Result<Self, SelectorError> {
        let mut fields = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, value, true)
            } else {
                return Err(SelectorError(format!("invalid selector: {part:?}; can't understand {part:?}")));
            };
            let pointer = match field {
                "metadata.name" => "/metadata/name",
                "metadata.namespace" => "/metadata/namespace",
                other => {
                    served.get(other).ok_or_else(|| SelectorError(format!("field label not supported: {other}")))?
                }
            };
            fields.push((pointer.to_owned(), value.to_owned(), equal));
        }
        Ok(Self(fields))
    }

    /// Whether this selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object's fields are as required. An absent field equals the empty text.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(pointer, wanted, equal)| {
            let field = object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            (field == wanted) == *equal
        })
    }
}

/// The fields by which a kind may be selected beside name and namespace, with their pointers.
pub fn served_fields(group: &str, kind: &str) -> BTreeMap<&'static str, &'static str> {
    let fields: &[(&str, &str)] = match (group, kind) {
        ("", "Event") => &[
            ("involvedObject.kind", "/involvedObject/kind"),
            ("involvedObject.namespace", "/involvedObject/namespace"),
            ("involvedObject.name", "/involvedObject/name"),
            ("involvedObject.uid", "/involvedObject/uid"),
            ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
            ("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
            ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
            ("reason", "/reason"),
            ("reportingComponent", "/reportingComponent"),
            ("source", "/source/component"),
            ("type", "/type"),
        ],
        ("events.k8s.io", "Event") => &[
            ("regarding.kind", "/regarding/kind"),
            ("regarding.namespace", "/regarding/namespace"),
            ("regarding.name", "/regarding/name"),
            ("regarding.uid", "/regarding/uid"),
            ("reason", "/reason"),
            ("reportingController", "/reportingController"),
            ("type", "/type"),
        ],
        ("", "Secret") => &[("type", "/type")],
        ("", "Namespace") => &[("status.phase", "/status/phase")],
        _ => &[],
    };
    fields.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_select_as_kubectl_says() {
        let object = json!({"metadata": {"labels": {"app": "a", "tier": "web"}}});
        for (selector, expected) in [
            ("app=a", true),
            ("app==a,tier=web", true),
            ("app!=a", false),
            ("app in (a, b)", true),
            ("app notin (a,b)", false),
            ("app", true),
            ("!app", false),
            ("!gone", true),
            ("gone!=x", true),
            ("gone=x", false),
            ("", true),
        ] {
            assert_eq!(Labels::parse(selector).unwrap().matches(&object), expected, "{selector}");
        }
        for bad in ["a in", "a in (b", "=x", "a=b c", "a of (b)"] {
            assert!(Labels::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_served_fields_select() {
        let event = json!({"metadata": {"name": "e"}, "involvedObject": {"name": "x"}});
        let served = served_fields("", "Event");
        assert!(Fields::parse("metadata.name=e,involvedObject.name=x", &served).unwrap().matches(&event));
        assert!(!Fields::parse("involvedObject.name!=x", &served).unwrap().matches(&event));
        assert_eq!(
            Fields::parse("spec.image=x", &BTreeMap::new()),
            Err(SelectorError("field label not supported: spec.image".into()))
        );
    }
}
