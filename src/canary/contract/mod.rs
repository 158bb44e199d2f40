//! The tools of two revisions, compared before the candidate has any user.
//!
//! What a caller of the stable revision may send, the candidate must accept; what the candidate
//! returns, a reader of the stable revision's answers must accept. Where that cannot be shown, the
//! change counts as breaking. What only a model reads is shown for review: a description is a
//! prompt.

mod schema;

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

/// All differences, breaking ones first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contract {
    /// The differences.
    pub findings: Vec<Finding>,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The tool.
    pub tool: String,
    /// Where in the tool: `inputSchema.properties.city`. Empty for the tool as a whole.
    pub path: String,
    /// What has changed, in a few words.
    pub change: String,
}

/// How bad a difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A call that worked may no longer work, or may do more harm.
    Breaking,
    /// Somebody should read it.
    Review,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.tool)?;
        if !self.path.is_empty() {
            write!(f, ", {}", self.path)?;
        }
        write!(f, ": {}", self.change)
    }
}

impl Contract {
    /// Number of breaking differences.
    #[must_use]
    pub fn breaking(&self) -> usize {
        self.findings.iter().filter(|f| f.severity == Severity::Breaking).count()
    }

    /// Number of differences to review.
    #[must_use]
    pub fn review(&self) -> usize {
        self.findings.len() - self.breaking()
    }
}

/// Compares the `tools` of two `tools/list` results.
#[must_use]
pub fn compare(stable: &[Value], candidate: &[Value]) -> Contract {
    let (before, after) = (by_name(stable), by_name(candidate));
    let mut findings = Findings::default();
    for (name, old) in &before {
        findings.tool = (*name).to_owned();
        if let Some(new) = after.get(name) {
            tool(old, new, &mut findings);
        } else {
            let renamed = after.iter().find(|(n, new)| !before.contains_key(*n) && same_but_name(old, new));
            let change = renamed.map_or_else(|| "is gone".to_owned(), |(other, _)| format!("is called {other} now"));
            findings.breaking("", change);
        }
    }
    for name in after.keys().filter(|n| !before.contains_key(*n)) {
        findings.tool = (*name).to_owned();
        findings.review("", "is new".to_owned());
    }
    let mut findings = findings.list;
    findings.sort();
    findings.dedup();
    Contract { findings }
}

fn by_name(tools: &[Value]) -> BTreeMap<&str, &Value> {
    tools.iter().filter_map(|tool| Some((tool.get("name")?.as_str()?, tool))).collect()
}

fn same_but_name(old: &Value, new: &Value) -> bool {
    old.get("inputSchema") == new.get("inputSchema") && old.get("description") == new.get("description")
}

#[derive(Default)]
struct Findings {
    tool: String,
    list: Vec<Finding>,
}

impl Findings {
    fn breaking(&mut self, path: &str, change: String) {
        self.push(Severity::Breaking, path, change);
    }

    fn review(&mut self, path: &str, change: String) {
        self.push(Severity::Review, path, change);
    }

    fn push(&mut self, severity: Severity, path: &str, change: String) {
        self.list.push(Finding { severity, tool: self.tool.clone(), path: path.to_owned(), change });
    }
}

fn tool(old: &Value, new: &Value, findings: &mut Findings) {
    let nothing = Value::Object(Map::new());
    for word in ["title", "description"] {
        if old.get(word) != new.get(word) {
            findings.review(word, "has changed".to_owned());
        }
    }
    let schema_of = |tool: &Value, name: &str| tool.get(name).cloned().unwrap_or_else(|| nothing.clone());
    let (old_in, new_in) = (schema_of(old, "inputSchema"), schema_of(new, "inputSchema"));
    let problems = schema::problems(&old_in, &new_in, "inputSchema");
    if problems.is_empty() && old_in != new_in {
        findings.review("inputSchema", "has changed; calls that worked still do".to_owned());
    }
    for (path, change) in problems {
        findings.breaking(&path, change);
    }
    match (old.get("outputSchema"), new.get("outputSchema")) {
        (Some(_), None) => findings.breaking("outputSchema", "is gone".to_owned()),
        (Some(old_out), Some(new_out)) if old_out != new_out => {
            // Turned round: what the candidate returns must fit what readers expect.
            let problems = schema::problems(new_out, old_out, "outputSchema");
            if problems.is_empty() {
                findings.review("outputSchema", "has changed; answers still fit".to_owned());
            }
            for (path, _) in problems {
                findings.breaking(&path, "answers may no longer fit what was promised".to_owned());
            }
        }
        (None, Some(_)) => findings.review("outputSchema", "is new".to_owned()),
        _ => {}
    }
    annotations(old, new, findings);
}

/// Hints about what a tool does, with the defaults that MCP gives them.
fn annotations(old: &Value, new: &Value, findings: &mut Findings) {
    let hint = |tool: &Value, name: &str, default: bool| {
        tool.pointer(&format!("/annotations/{name}")).and_then(Value::as_bool).unwrap_or(default)
    };
    let (was_read_only, is_read_only) = (hint(old, "readOnlyHint", false), hint(new, "readOnlyHint", false));
    if was_read_only && !is_read_only {
        findings.breaking("annotations.readOnlyHint", "was read-only and may change things now".to_owned());
    }
    let destroys = |tool: &Value, read_only: bool| !read_only && hint(tool, "destructiveHint", true);
    if !was_read_only && !destroys(old, was_read_only) && destroys(new, is_read_only) {
        findings.breaking("annotations.destructiveHint", "may destroy things now".to_owned());
    }
    if hint(old, "idempotentHint", false) && !hint(new, "idempotentHint", false) {
        findings.breaking("annotations.idempotentHint", "a repeated call is no longer harmless".to_owned());
    }
    if !hint(old, "openWorldHint", true) && hint(new, "openWorldHint", true) {
        findings.review("annotations.openWorldHint", "reaches the outside now".to_owned());
    }
}

#[cfg(test)]
mod tests;
