//! One figure for how safe a server is.

use std::collections::BTreeMap;

use crate::api::mcp_server::{ConditionType, McpServer, ViolationSeverity};

/// What a server loses whose network tier is known not to be in force.
const NETWORK: i32 = 10;

/// What a broken rule costs.
const fn cost(severity: ViolationSeverity) -> i32 {
    match severity {
        ViolationSeverity::Critical => 40,
        ViolationSeverity::High => 20,
        ViolationSeverity::Medium => 8,
        ViolationSeverity::Low => 3,
    }
}

/// How safe a server is, from 0 to 100.
///
/// 100, less 40 for each broken policy rule of severity Critical, 20 for High, 8 for Medium and 3 for
/// Low, less 10 when the network tier is known not to be in force; never below 0. A rule counts once,
/// at its gravest, whether its level denies or warns. None before the policies judged the server:
/// nobody knows. It compares a server with what its own level asks, so servers of one level compare.
#[must_use]
pub fn score(server: &McpServer) -> Option<i32> {
    let status = server.status.as_ref()?;
    let condition = |type_: ConditionType| status.conditions.iter().find(|c| c.type_ == type_.as_str());
    condition(ConditionType::Compliant)?;
    let mut rules: BTreeMap<&str, i32> = BTreeMap::new();
    for violation in &status.violations {
        let worst = rules.entry(&violation.rule).or_default();
        *worst = cost(violation.severity).max(*worst);
    }
    let open = condition(ConditionType::NetworkEnforced).is_some_and(|c| c.status == "False");
    let lost: i32 = rules.values().sum::<i32>() + if open { NETWORK } else { 0 };
    Some((100 - lost).max(0))
}
