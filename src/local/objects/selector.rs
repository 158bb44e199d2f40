//! Label and field selectors, as they stand in a query.

use std::collections::BTreeMap;

use serde_json::Value;

use super::names;

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
    Greater(String, i64),
    Less(String, i64),
}

impl Labels {
    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>5`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser { tokens: tokens(text), next: 0 }.requirements().map(Self).map_err(SelectorError)
    }

    /// Whether this selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object's labels satisfy all requirements.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let label = |key: &str| labels.get(key).and_then(Value::as_str);
        let number = |key: &str| label(key).and_then(|l| l.parse::<i64>().ok());
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|l| values.iter().any(|v| v == l)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|l| values.iter().all(|v| v != l)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
            Requirement::Greater(key, bound) => number(key).is_some_and(|n| n > *bound),
            Requirement::Less(key, bound) => number(key).is_some_and(|n| n < *bound),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Mark(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Mark(mark) => mark,
            Self::End => "",
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    const MARKS: [&str; 9] = ["!=", "==", "=", "!", "(", ")", ",", "<", ">"];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(mark) = MARKS.iter().find(|mark| rest.starts_with(**mark)) {
            tokens.push(Token::Mark(mark));
            rest = &rest[mark.len()..];
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "=!(),<>".contains(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    tokens
}

/// The grammar and the messages of `k8s.io/apimachinery/pkg/labels`.
struct Parser {
    tokens: Vec<Token>,
    next: usize,
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens.get(self.next).cloned().unwrap_or(Token::End)
    }

    fn take(&mut self) -> Token {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn requirements(mut self) -> Result<Vec<Requirement>, String> {
        let mut all = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Mark("!") => {
                    all.push(self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
                    match self.take() {
                        Token::End => return Ok(all),
                        Token::Mark(",") => {
                            let after = self.peek();
                            if !matches!(after, Token::Word(_) | Token::Mark("!")) {
                                return Err(format!("found '{}', expected: identifier after ','", after.text()));
                            }
                        }
                        other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
                    }
                }
                Token::End => return Ok(all),
                Token::Mark(other) => {
                    return Err(format!("found '{other}', expected: !, identifier, or 'end of string'"));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.take();
        let absent = token == Token::Mark("!");
        if absent {
            token = self.take();
        }
        let Token::Word(key) = token else { return Err(format!("found '{}', expected: identifier", token.text())) };
        check("<nil>", &key, names::label_key(&key))?;
        if absent {
            return Ok(Requirement::Absent(key));
        }
        if matches!(self.peek(), Token::End | Token::Mark(",")) {
            return Ok(Requirement::Exists(key));
        }
        let operator = self.take();
        let requirement = match &operator {
            Token::Word(word) if word == "in" => Requirement::In(key, self.values()?),
            Token::Word(word) if word == "notin" => Requirement::NotIn(key, self.values()?),
            Token::Mark("=" | "==") => Requirement::In(key, vec![self.value()?]),
            Token::Mark("!=") => Requirement::NotIn(key, vec![self.value()?]),
            Token::Mark(mark @ (">" | "<")) => {
                let value = self.value()?;
                let bound: i64 = value.parse().map_err(|_| {
                    format!(
                        "values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                    )
                })?;
                if *mark == ">" { Requirement::Greater(key, bound) } else { Requirement::Less(key, bound) }
            }
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text()));
            }
        };
        if let Requirement::In(key, values) | Requirement::NotIn(key, values) = &requirement {
            for (index, value) in values.iter().enumerate() {
                check(&format!("values[{index}][{key}]"), value, names::label_value(value))?;
            }
        }
        Ok(requirement)
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.take();
        if open != Token::Mark("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = Vec::new();
        let mut value = String::new();
        loop {
            match self.take() {
                Token::Word(word) if value.is_empty() => {
                    value = word;
                    let after = self.peek();
                    if !matches!(after, Token::Mark("," | ")")) {
                        return Err(format!("found '{}', expected: ',' or ')'", after.text()));
                    }
                }
                Token::Mark(",") => values.push(std::mem::take(&mut value)),
                Token::Mark(")") => {
                    values.push(value);
                    values.sort();
                    values.dedup();
                    return Ok(values);
                }
                other => return Err(format!("found '{}', expected: ',', ')' or identifier", other.text())),
            }
        }
    }

    fn value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Token::End | Token::Mark(",")) {
            return Ok(String::new());
        }
        match self.take() {
            Token::Word(word) => Ok(word),
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }
}

fn check(field: &str, value: &str, problems: Vec<String>) -> Result<(), String> {
    let problems: Vec<String> =
        problems.into_iter().map(|p| format!("{field}: Invalid value: {}: {p}", names::quoted(value))).collect();
    match problems.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// Which fields an object must have. The default selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, String, bool)>);

impl Fields {
    /// Parses `metadata.name=a,type!=b`; only fields in `served` and name and namespace are.
    pub fn parse(text: &str, served: &Served) -> Result<Self, SelectorError> {
        let mut fields = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, value, true)
            } else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            let pointer = match field {
                "metadata.name" => "/metadata/name",
                "metadata.namespace" => "/metadata/namespace",
                "" => continue,
                other => served.fields.get(other).ok_or_else(|| {
                    SelectorError(if served.known {
                        format!("field label not supported: {other}")
                    } else {
                        format!(
                            "{other:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                        )
                    })
                })?,
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

/// The fields by which a kind may be selected beside name and namespace.
#[derive(Debug, Default)]
pub struct Served {
    /// Fields with their pointers.
    fields: BTreeMap<&'static str, &'static str>,
    /// Whether the kind has a list of its own; it decides on the words of the error.
    known: bool,
}

/// The fields by which a kind may be selected.
pub fn served_fields(group: &str, kind: &str) -> Served {
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
    let known = !matches!(kind, "ConfigMap" | "Lease" | "ControllerRevision");
    Served { fields: fields.iter().copied().collect(), known }
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
            ("app>5", false),
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
            Fields::parse("spec.image=x", &served_fields("perch.dev", "McpServer")),
            Err(SelectorError("field label not supported: spec.image".into()))
        );
    }
}
