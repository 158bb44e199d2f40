//! Rules that call themselves. OPA refuses them when it compiles; here the compiled program is
//! looked at, so that a bundle never depends on which of them runs it.

use std::collections::{BTreeMap, BTreeSet};

use regorus::rvm::{Instruction, Program};

/// A rule that comes back to itself: its name, and the line where it is first called on the way.
pub fn find(program: &Program) -> Option<(String, String, usize)> {
    let mut starts: BTreeMap<usize, usize> = BTreeMap::new();
    for (index, rule) in program.rule_infos.iter().enumerate() {
        let bodies = rule.definitions.iter().flatten().chain(rule.destructuring_blocks.iter().flatten());
        starts.extend(bodies.map(|start| (*start as usize, index)));
    }
    let mut calls: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
    for (at, instruction) in program.instructions.iter().enumerate() {
        let called = match instruction {
            Instruction::CallRule { rule_index, .. } => usize::from(*rule_index),
            Instruction::FunctionCall { params_index } => {
                let params = program.instruction_data.function_call_params.get(usize::from(*params_index));
                let Some(params) = params else { continue };
                usize::from(params.func_rule_index)
            }
            _ => continue,
        };
        if let Some((_, caller)) = starts.range(..=at).next_back() {
            calls.entry(*caller).or_default().entry(called).or_insert(at);
        }
    }
    (0..program.rule_infos.len()).find_map(|rule| {
        let at = comes_back(&calls, rule)?;
        let span = program.instruction_spans.get(at).cloned().flatten();
        let (file, line) = span.map_or((String::new(), 0), |span| {
            let file = program.sources.get(span.source_index).map(|s| s.name.clone()).unwrap_or_default();
            (file, span.line)
        });
        Some((program.rule_infos[rule].name.to_string(), file, line))
    })
}

/// The first call on the way from a rule back to it.
fn comes_back(calls: &BTreeMap<usize, BTreeMap<usize, usize>>, rule: usize) -> Option<usize> {
    for (next, at) in calls.get(&rule)? {
        let (mut seen, mut open) = (BTreeSet::new(), vec![*next]);
        while let Some(here) = open.pop() {
            if here == rule {
                return Some(*at);
            }
            if seen.insert(here) {
                open.extend(calls.get(&here).into_iter().flat_map(|called| called.keys().copied()));
            }
        }
    }
    None
}
