//! Compiled modules, and a run of them within bounds. The engine is regorus, whose virtual machine
//! counts steps.
//!
//! The machine can also keep calls on a stack of its own (`ExecutionMode::Suspendable`), but then it
//! gives wrong answers for modules that look up data of others (regorus 0.14.1).

use std::sync::Arc;

use regorus::{
    Engine, Value as Rego,
    languages::rego::compiler::Compiler,
    rvm::{self, RegoVM},
};
use serde::Deserialize;
use serde_json::Value;

use super::{PolicyAction, PolicyError, Violation, ViolationSeverity, Wanted, recursion};

/// Steps that an evaluation may take. The shipped rules take some thousands.
pub const MAX_STEPS: usize = 200_000;
/// Violations of one bundle that are told.
const MAX_FOUND: usize = 100;
/// What the shipped rules find.
const VIOLATIONS: &str = "data.perch.violations";
/// What the shipped rules must be told of images.
const WANTED: &str = "data.perch.rules.image_signed.wanted";

/// Built-in functions that modules may call: those whose work is bounded by their arguments, and
/// that always answer the same.
const BUILTINS: [&str; 96] = [
    "abs",
    "all",
    "any",
    "array.concat",
    "array.reverse",
    "array.slice",
    "base64.decode",
    "base64.encode",
    "base64.is_valid",
    "ceil",
    "concat",
    "contains",
    "count",
    "endswith",
    "floor",
    "format_int",
    "glob.match",
    "indexof",
    "indexof_n",
    "intersection",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "json.filter",
    "json.is_valid",
    "json.marshal",
    "json.remove",
    "json.unmarshal",
    "lower",
    "max",
    "min",
    "net.cidr_contains",
    "net.cidr_intersects",
    "net.cidr_is_valid",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.subset",
    "object.union",
    "object.union_n",
    "product",
    "regex.find_all_string_submatch_n",
    "regex.find_n",
    "regex.is_valid",
    "regex.match",
    "regex.replace",
    "regex.split",
    "replace",
    "round",
    "semver.compare",
    "semver.is_valid",
    "set_diff",
    "sort",
    "split",
    "sprintf",
    "startswith",
    "strings.any_prefix_match",
    "strings.any_suffix_match",
    "strings.count",
    "strings.replace_n",
    "strings.reverse",
    "substring",
    "sum",
    "time.add_date",
    "time.clock",
    "time.date",
    "time.diff",
    "time.parse_duration_ns",
    "time.parse_ns",
    "time.parse_rfc3339_ns",
    "time.weekday",
    "to_number",
    "trim",
    "trim_left",
    "trim_prefix",
    "trim_right",
    "trim_space",
    "trim_suffix",
    "type_name",
    "union",
    "units.parse",
    "units.parse_bytes",
    "upper",
    "walk",
    "eq",
    "equal",
    "gt",
    "gte",
    "lt",
    "lte",
    "neq",
];

/// Modules that are run together.
#[derive(Debug)]
pub struct Program {
    name: String,
    program: Arc<rvm::Program>,
    entries: Vec<String>,
    data: Rego,
}

/// What a rule of a module says. What it leaves out is filled in.
#[derive(Deserialize)]
struct Found {
    rule: String,
    #[serde(default)]
    severity: Option<ViolationSeverity>,
    #[serde(default)]
    action: Option<PolicyAction>,
    message: String,
    #[serde(default)]
    field: String,
    #[serde(default)]
    remedy: String,
}

impl Program {
    /// Compiles the shipped modules, given as names and texts.
    pub fn compile(name: &str, files: &[(String, String)], data: &Value) -> Result<Self, PolicyError> {
        let mut engine = Engine::new();
        let mut packages = Vec::new();
        for (file, text) in files {
            let package = engine.add_policy(file.clone(), text.clone()).map_err(|error| explain(name, &error))?;
            packages.push((file.clone(), package));
        }
        let entries = [VIOLATIONS, WANTED].map(str::to_owned).to_vec();
        let mut program = Self::finish(name, engine, entries, &packages, data)?;
        // The other one is asked by itself.
        program.entries.truncate(1);
        Ok(program)
    }

    /// Compiles a user's modules; the first file is the shipped library. The rules that count are
    /// called `violation`.
    pub fn bundle(name: &str, files: &[(String, String)], data: &Value) -> Result<Self, PolicyError> {
        let mut engine = Engine::new();
        let (mut entries, mut packages) = (Vec::new(), Vec::new());
        for (index, (file, text)) in files.iter().enumerate() {
            let package = engine.add_policy(file.clone(), text.clone()).map_err(|error| explain(name, &error))?;
            packages.push((file.clone(), package.clone()));
            if index == 0 {
                continue;
            }
            let own = package.strip_prefix("data.").unwrap_or(&package);
            if own == "perch" || own.starts_with("perch.") {
                let message = format!("the package {own} is Perch's own: give yours another name");
                return Err(PolicyError::new(file, message));
            }
            let entry = format!("{package}.violation");
            let declared =
                engine.has_declared_rule_rooted_at(file, "violation").map_err(|error| explain(name, &error))?;
            if declared && !entries.contains(&entry) {
                entries.push(entry);
            }
        }
        if entries.is_empty() {
            let message = "no module has a rule `violation contains {\"rule\": …, \"message\": …} if …`";
            return Err(PolicyError::new(name, message));
        }
        let program = Self::finish(name, engine, entries, &packages, data)?;
        for sample in samples() {
            program.run(&sample)?;
        }
        Ok(program)
    }

    fn finish(
        name: &str,
        mut engine: Engine,
        entries: Vec<String>,
        packages: &[(String, String)],
        data: &Value,
    ) -> Result<Self, PolicyError> {
        let failed = |error: &dyn std::fmt::Display| explain(name, error);
        let first = entries.first().map(String::as_str).unwrap_or_default();
        let policy = engine.compile_with_entrypoint(&first.into()).map_err(|error| failed(&error))?;
        let names: Vec<&str> = entries.iter().map(String::as_str).collect();
        let program = Compiler::compile_from_policy(&policy, &names).map_err(|error| failed(&error))?;
        recursion::check(&program, packages).map_err(|(place, message)| PolicyError::new(place, message))?;
        let mut called = program.builtin_info_table.iter().map(|b| b.name.as_str());
        if let Some(function) = called.find(|f| !BUILTINS.contains(f)) {
            let message = format!(
                "the function {function} is not allowed here: what decides must be quick and always decide the same (the time is input.now)"
            );
            return Err(PolicyError::new(name, message));
        }
        Ok(Self { name: name.to_owned(), program, entries, data: Rego::from(data.clone()) })
    }

    /// Everything that the modules find.
    pub fn run(&self, input: &Rego) -> Result<Vec<Violation>, PolicyError> {
        let mut all = Vec::new();
        for entry in &self.entries {
            let found = self.ask(entry, input)?;
            let Ok(found) = found.as_set() else { continue };
            for one in found.iter().take(MAX_FOUND) {
                all.push(self.read(entry, one)?);
            }
        }
        Ok(all)
    }

    /// The images that the shipped rules must be told about.
    pub fn wanted(&self, input: &Rego) -> Result<Vec<Wanted>, PolicyError> {
        let found = self.ask(WANTED, input)?;
        let Ok(found) = found.as_set() else { return Ok(Vec::new()) };
        let read = |one: &Rego| serde_json::to_value(one).and_then(serde_json::from_value);
        let wanted: Result<Vec<Wanted>, _> = found.iter().map(read).collect();
        wanted.map_err(|error| PolicyError::new(&self.name, format!("{WANTED} cannot be read: {error}")))
    }

    fn ask(&self, entry: &str, input: &Rego) -> Result<Rego, PolicyError> {
        let failed = |message: String| PolicyError::new(&self.name, message);
        let mut machine = RegoVM::new();
        machine.set_max_instructions(MAX_STEPS);
        machine.load_program(Arc::clone(&self.program));
        machine.set_data(self.data.clone()).map_err(|error| failed(error.to_string()))?;
        machine.set_input(input.clone());
        machine.execute_entry_point_by_name(entry).map_err(|error| {
            let text = error.to_string();
            if text.contains("instruction limit") {
                failed(format!("{entry} takes more than {MAX_STEPS} steps: make it simpler"))
            } else {
                explain(&self.name, &text)
            }
        })
    }

    fn read(&self, entry: &str, found: &Rego) -> Result<Violation, PolicyError> {
        let read = serde_json::to_value(found).and_then(serde_json::from_value::<Found>);
        let found = read.map_err(|error| {
            let message = format!(
                "{entry} gives what is no violation: {error}; it is an object with rule and message, and may have severity (Low, Medium, High, Critical), action (Deny, Warn), field and remedy"
            );
            PolicyError::new(&self.name, message)
        })?;
        Ok(Violation {
            rule: found.rule,
            severity: found.severity.unwrap_or(ViolationSeverity::Medium),
            action: found.action.unwrap_or(PolicyAction::Deny),
            message: found.message,
            field: found.field,
            remedy: found.remedy,
        })
    }
}

/// A value as the engine has it. Members that are null go: in Kubernetes they are absent.
pub fn input(value: &Value) -> Rego {
    match value {
        Value::Object(map) => {
            let members = map.iter().filter(|(_, v)| !v.is_null());
            members
                .map(|(k, v)| (Rego::from(k.as_str()), input(v)))
                .collect::<std::collections::BTreeMap<_, _>>()
                .into()
        }
        Value::Array(list) => list.iter().map(input).collect::<Vec<_>>().into(),
        other => Rego::from(other.clone()),
    }
}

/// The input with the object in it.
pub fn with_object(mut envelope: Rego, object: &Value) -> Rego {
    if let Ok(map) = envelope.as_object_mut() {
        map.insert(Rego::from("object"), input(object));
    }
    envelope
}

/// What each bundle must be able to judge before it counts.
fn samples() -> Vec<Rego> {
    let envelope = |object: Value| {
        let given = serde_json::json!({"level": "Medium", "now": "2026-01-31T00:00:00Z"});
        with_object(input(&given), &object)
    };
    vec![
        envelope(serde_json::json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
            "metadata": {"name": "sample", "namespace": "default", "labels": {}, "annotations": {}},
            "spec": {"image": "registry.example.com/sample:1", "args": ["a", "b"],
                "env": [{"name": "A", "value": "b"}, {"name": "C", "value": "d"}]},
        })),
        envelope(serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "sample"},
            "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "sample:1"}]}}},
        })),
    ]
}

/// The place and the sentence in an error of regorus.
fn explain(name: &str, error: &dyn std::fmt::Display) -> PolicyError {
    let text = error.to_string();
    // The innermost error is the last one: `--> file:line:column`, a quote of the line, `error: …`.
    let place = text.lines().rev().find_map(|l| l.trim_start().strip_prefix("--> "));
    let place = place.map(|p| p.rsplit_once(':').map_or(p, |(line, _)| line));
    let message = text.lines().rev().find_map(|l| l.trim_start().strip_prefix("error: "));
    let message = message.map_or_else(|| text.trim().to_owned(), str::to_owned);
    PolicyError::new(place.unwrap_or(name), message)
}
