//! Which rules call which: rules that call themselves, and calls that go too deep. OPA refuses the
//! first when it compiles; here the compiled program is looked at. The machine keeps calls on the
//! stack of its thread, so both must be known before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use regorus::{
    Value as Rego,
    rvm::{Instruction, Program, instructions::LiteralOrRegister},
};

/// Deepest chain of calls.
const MAX_CALLS: usize = 32;

/// Calls of a program: for each rule, the rules that it calls and where it does so first.
struct Calls<'a> {
    program: &'a Program,
    calls: BTreeMap<usize, BTreeMap<usize, usize>>,
}

/// What is wrong with a program's calls: the file and line, and the reason. `packages` are the files
/// and their packages.
pub fn check(program: &Program, packages: &[(String, String)]) -> Result<(), (String, String)> {
    let calls = Calls::of(program);
    let rules = 0..program.rule_infos.len();
    if let Some((rule, at)) = rules.clone().find_map(|rule| Some((rule, calls.way_back(rule)?))) {
        let name = &program.rule_infos[rule].name;
        return Err((calls.place(name, at, packages), format!("the rule {name} calls itself: Rego has no recursion")));
    }
    let mut depths = BTreeMap::new();
    for rule in rules {
        if calls.depth(rule, &mut depths) > MAX_CALLS {
            let name = &program.rule_infos[rule].name;
            let at = calls.calls.get(&rule).and_then(|called| called.values().next()).copied().unwrap_or_default();
            let message = format!("the calls of the rule {name} go more than {MAX_CALLS} deep: put rules together");
            return Err((calls.place(name, at, packages), message));
        }
    }
    Ok(())
}

impl<'a> Calls<'a> {
    fn of(program: &'a Program) -> Self {
        let mut starts: BTreeMap<usize, usize> = BTreeMap::new();
        for (index, rule) in program.rule_infos.iter().enumerate() {
            let bodies = rule.definitions.iter().flatten().chain(rule.destructuring_blocks.iter().flatten());
            starts.extend(bodies.map(|start| (*start as usize, index)));
        }
        let mut calls: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
        for (at, instruction) in program.instructions.iter().enumerate() {
            let Some((_, caller)) = starts.range(..=at).next_back() else { continue };
            for called in called(program, *instruction) {
                calls.entry(*caller).or_default().entry(called).or_insert(at);
            }
        }
        Self { program, calls }
    }

    /// The first call on the way from a rule back to it.
    fn way_back(&self, rule: usize) -> Option<usize> {
        for (next, at) in self.calls.get(&rule)? {
            let (mut seen, mut open) = (BTreeSet::new(), vec![*next]);
            while let Some(here) = open.pop() {
                if here == rule {
                    return Some(*at);
                }
                if seen.insert(here) {
                    open.extend(self.calls.get(&here).into_iter().flat_map(|called| called.keys().copied()));
                }
            }
        }
        None
    }

    /// How deep the calls of a rule go; there is no way back to any. It goes no deeper itself than
    /// it has to.
    fn depth(&self, rule: usize, known: &mut BTreeMap<usize, usize>) -> usize {
        let mut open = vec![rule];
        while let Some(here) = open.last().copied() {
            let called: Vec<usize> = self.calls.get(&here).into_iter().flat_map(|c| c.keys().copied()).collect();
            let unknown: Vec<usize> = called.iter().copied().filter(|c| !known.contains_key(c)).collect();
            if unknown.is_empty() {
                let depth = called.iter().filter_map(|c| known.get(c)).max().map_or(0, |deepest| deepest + 1);
                known.insert(here, depth);
                open.pop();
            } else {
                open.extend(unknown);
            }
        }
        known.get(&rule).copied().unwrap_or_default()
    }

    /// Where a rule makes a call. The program knows the line; which file it is in follows from the
    /// package of the rule.
    fn place(&self, rule: &str, at: usize, packages: &[(String, String)]) -> String {
        let mine = |package: &str| rule.strip_prefix(package).is_some_and(|rest| rest.starts_with('.'));
        let file = packages.iter().filter(|(_, package)| mine(package)).max_by_key(|(_, package)| package.len());
        let file = file.map(|(file, _)| file.as_str()).unwrap_or_default();
        match self.program.instruction_spans.get(at) {
            Some(Some(span)) => format!("{file}:{}", span.line),
            _ => file.to_owned(),
        }
    }
}

/// The rules that an instruction may call.
fn called(program: &Program, instruction: Instruction) -> Vec<usize> {
    let data = &program.instruction_data;
    match instruction {
        Instruction::CallRule { rule_index, .. } => vec![usize::from(rule_index)],
        Instruction::FunctionCall { params_index } => {
            let params = data.function_call_params.get(usize::from(params_index));
            params.map(|p| usize::from(p.func_rule_index)).into_iter().collect()
        }
        Instruction::VirtualDataDocumentLookup { params_index } => {
            let params = data.virtual_data_document_lookup_params.get(usize::from(params_index));
            // What a register holds is not known: any rule below what is known may be meant.
            let known = params.into_iter().flat_map(|p| &p.path_components).map_while(|part| match part {
                LiteralOrRegister::Literal(index) => match program.literals.get(usize::from(*index)) {
                    Some(Rego::String(text)) => Some(text.to_string()),
                    _ => None,
                },
                LiteralOrRegister::Register(_) => None,
            });
            let path = known.fold("data".to_owned(), |path, part| format!("{path}.{part}"));
            let below = format!("{path}.");
            let meant = |name: &str| name == path || name.starts_with(&below) || path.starts_with(&format!("{name}."));
            let rules = program.rule_infos.iter().enumerate();
            rules.filter(|(_, rule)| meant(&rule.name)).map(|(index, _)| index).collect()
        }
        _ => Vec::new(),
    }
}
