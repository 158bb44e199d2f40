//! One line of the report, and the forms that it is written in. Pure.

use std::io::Write;

use comfy_table::{Table, presets};
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use crate::{
    api::mcp_server::{ConditionType, GovernanceLevel, McpServer},
    lifecycle::{self, Assessment},
};

/// Names of the columns for people.
pub const HEADER: [&str; 10] =
    ["SERVER", "OWNER", "LEVEL", "COMPLIANT", "SCORE", "STATE", "LAST REQUEST", "7 DAYS", "USERS", "LAST SCAN"];
/// Names of the columns for spreadsheets.
const FIELDS: [&str; 12] = [
    "namespace",
    "name",
    "owner",
    "level",
    "compliant",
    "score",
    "state",
    "lastRequest",
    "requestsIn7Days",
    "usersIn30Days",
    "lastScan",
    "recommendations",
];

/// What is reported of one server.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    owner: Option<String>,
    /// The level that the server names; none where that of its namespace counts.
    level: Option<GovernanceLevel>,
    /// Whether it is as the policies ask; none where nobody judged it.
    compliant: Option<bool>,
    /// The hour of the last request that is known.
    last_request: Option<Timestamp>,
    /// Since when use is counted; none where it is not.
    counted_since: Option<Timestamp>,
    requests_in_7_days: Option<i64>,
    users_in_30_days: Option<i32>,
    last_scan: Option<Timestamp>,
    /// State, score and recommendations.
    #[serde(flatten)]
    pub life: Assessment,
}

impl Row {
    /// What is known of a server now.
    pub fn of(server: &McpServer, now: Timestamp) -> Self {
        let governance = server.spec.governance.as_ref();
        let status = server.status.as_ref();
        let compliant =
            status.iter().flat_map(|s| &s.conditions).find(|c| c.type_ == ConditionType::Compliant.as_str());
        let usage = status.and_then(|s| s.usage.as_ref());
        Self {
            namespace: server.namespace().unwrap_or_default(),
            name: server.name_any(),
            owner: governance.and_then(|g| g.owner.clone()),
            level: governance.map(|g| g.level),
            compliant: compliant.map(|c| c.status == "True"),
            last_request: usage.and_then(|u| Some(u.last_request.as_ref()?.0)),
            counted_since: usage.and_then(|u| Some(u.since.as_ref()?.0)),
            requests_in_7_days: usage.map(|u| u.requests_in_7_days),
            users_in_30_days: usage.map(|u| u.users_in_30_days),
            last_scan: lifecycle::last_scan(server),
            life: lifecycle::assess(server, now),
        }
    }

    /// The cells of a table for people.
    pub fn cells(&self, now: Timestamp) -> [String; 10] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let compliant = self.compliant.map(|yes| if yes { "yes" } else { "no" }.to_owned());
        let last = match (self.last_request, self.counted_since) {
            (Some(at), _) => lifecycle::ago(at, now),
            (None, Some(_)) => "never".to_owned(),
            (None, None) => "-".to_owned(),
        };
        [
            format!("{}/{}", self.namespace, self.name),
            or_dash(self.owner.clone()),
            or_dash(self.level.map(|level| format!("{level:?}"))),
            or_dash(compliant),
            or_dash(self.life.score.map(|score| score.to_string())),
            self.life.state.as_str().to_owned(),
            last,
            or_dash(self.requests_in_7_days.map(|n| n.to_string())),
            or_dash(self.users_in_30_days.map(|n| n.to_string())),
            or_dash(self.last_scan.map(|at| lifecycle::ago(at, now))),
        ]
    }

    fn reasons(&self, between: &str) -> String {
        self.life.recommendations.iter().map(|r| r.reason).collect::<Vec<_>>().join(between)
    }

    fn fields(&self) -> [String; 12] {
        let text = |value: Option<String>| value.unwrap_or_default();
        [
            self.namespace.clone(),
            self.name.clone(),
            text(self.owner.clone()),
            text(self.level.map(|level| format!("{level:?}"))),
            text(self.compliant.map(|yes| yes.to_string())),
            text(self.life.score.map(|n| n.to_string())),
            self.life.state.as_str().to_owned(),
            text(self.last_request.map(|at| at.to_string())),
            text(self.requests_in_7_days.map(|n| n.to_string())),
            text(self.users_in_30_days.map(|n| n.to_string())),
            text(self.last_scan.map(|at| at.to_string())),
            self.reasons(" "),
        ]
    }
}

/// Comma-separated values, RFC 4180.
pub fn csv(rows: &[Row], to: impl Write) -> csv::Result<()> {
    let mut lines = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(to);
    lines.write_record(FIELDS)?;
    for row in rows {
        lines.write_record(row.fields().map(no_formula))?;
    }
    Ok(lines.flush()?)
}

/// What a spreadsheet would take for a formula is made text: an owner is what somebody wrote.
fn no_formula(field: String) -> String {
    if field.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{field}") } else { field }
}

/// A table in Markdown.
pub fn markdown(rows: &[Row], now: Timestamp) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(HEADER.iter().copied().chain(["RECOMMENDATIONS"]));
    for row in rows {
        let cells = row.cells(now).into_iter().chain([row.reasons(", ")]);
        table.add_row(cells.map(|cell| cell.replace('|', "\\|").replace(['\r', '\n'], " ")));
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2026-06-10T12:00:00Z".parse().unwrap()
    }

    fn row(owner: &str) -> Row {
        let condition = json!({"type": "Compliant", "status": "False", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let server: McpServer = serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
            "metadata": {"name": "a", "namespace": "n", "annotations": {
                "policy.perch.dev/scanned-at": "2026-06-08", "policy.perch.dev/reviewed-at": "2026-06-08"}},
            "spec": {"image": "x", "governance": {"owner": owner, "level": "High"}},
            "status": {"conditions": [condition], "usage": {
                "since": "2026-06-01T00:00:00Z", "lastRequest": "2026-06-10T09:00:00Z", "requestsIn7Days": 12, "usersIn30Days": 4}},
        }))
        .unwrap();
        Row::of(&server, now())
    }

    #[test]
    fn a_row_has_what_is_known() {
        assert_eq!(
            row("team-a").cells(now()),
            ["n/a", "team-a", "High", "no", "100", "Active", "3h ago", "12", "4", "2d ago"]
        );
        let bare: McpServer = serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "b", "namespace": "n"},
            "spec": {"command": ["x"]},
        }))
        .unwrap();
        let bare = Row::of(&bare, now());
        assert_eq!(bare.cells(now()), ["n/b", "-", "-", "-", "-", "Unknown", "-", "-", "-", "-"]);
        let tree = serde_json::to_value(&bare).unwrap();
        assert_eq!(
            (&tree["state"], &tree["score"], &tree["compliant"]),
            (&json!("Unknown"), &json!(null), &json!(null))
        );
        assert_eq!(tree["recommendations"][0]["reason"], "NoOwner");
    }

    #[test]
    fn a_spreadsheet_gets_text_and_no_formulas() {
        let mut text = Vec::new();
        csv(&[row("a \"b\", c"), row("=cmd()")], &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!((lines.len(), lines[3]), (4, ""));
        assert!(lines[0].starts_with("namespace,name,owner,level,"));
        assert_eq!(
            lines[1],
            "n,a,\"a \"\"b\"\", c\",High,false,100,Active,2026-06-10T09:00:00Z,12,4,2026-06-08T00:00:00Z,NotCompliant"
        );
        assert!(lines[2].starts_with("n,a,'=cmd(),High,"), "{}", lines[2]);
    }

    #[test]
    fn markdown_cells_stay_cells() {
        let text = markdown(&[row("a|b\nc")], now()).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let cells: Vec<&str> = lines[2].split(" | ").map(str::trim).collect();
        assert_eq!(
            cells,
            ["| n/a", "a\\|b c", "High", "no", "100", "Active", "3h ago", "12", "4", "2d ago", "NotCompliant    |"]
        );
    }
}
