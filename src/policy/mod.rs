//! Policy: what may run, decided by Rego modules that OPA runs as well.
//!
//! The shipped modules are the files in `policies/`, compiled into the program. Users add bundles of
//! their own. An object goes in, [`Violation`]s come out; a [`Scope`] turns them into a
//! [`Decision`].
//!
//! # Guarantees
//! * Pure: equal input gives equal output. The time is an argument, and no built-in function that
//!   asks a clock, a network or a source of randomness is allowed.
//! * Bounded: evaluation ends after a number of steps, whatever a module says. Recursion is refused,
//!   and modules have a largest size and depth.
//! * Isolated: each bundle is compiled and run by itself. One that does not compile, or fails, never
//!   changes what another finds.
//! * What the shipped rules cannot judge is denied; what a user's bundle cannot judge is told, and
//!   admitted.
//!
//! May import: `api`, `names`, `error`.

mod bundle;
mod decision;
pub mod dockerfile;
mod engine;
mod images;
mod recursion;
pub mod scan;
pub mod signature;
mod source;

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::mcp_server::GovernanceLevel;
pub use crate::api::mcp_server::{PolicyAction, PolicyViolation as Violation, ViolationSeverity};
pub use bundle::{Bundle, File, is_module, is_settings};
pub use decision::{Decision, LEVEL_LABEL, MODE_LABEL, Mode, Scope, stricter};
pub use engine::MAX_STEPS;
use engine::Program;
pub use images::{ImageFacts, Images, Wanted};

/// The files in `policies/` that judge. Those beside them are cases.
const SHIPPED: [(&str, &str); 18] = [
    ("lib.rego", include_str!("../../policies/lib.rego")),
    ("main.rego", include_str!("../../policies/main.rego")),
    ("capabilities.rego", include_str!("../../policies/capabilities.rego")),
    ("egress_named.rego", include_str!("../../policies/egress_named.rego")),
    ("health_probe.rego", include_str!("../../policies/health_probe.rego")),
    ("image_digest.rego", include_str!("../../policies/image_digest.rego")),
    ("image_signed.rego", include_str!("../../policies/image_signed.rego")),
    ("network_tier.rego", include_str!("../../policies/network_tier.rego")),
    ("owner_and_review.rego", include_str!("../../policies/owner_and_review.rego")),
    ("privileged.rego", include_str!("../../policies/privileged.rego")),
    ("read_only_root.rego", include_str!("../../policies/read_only_root.rego")),
    ("readable.rego", include_str!("../../policies/readable.rego")),
    ("registry_allow_list.rego", include_str!("../../policies/registry_allow_list.rego")),
    ("resource_limits.rego", include_str!("../../policies/resource_limits.rego")),
    ("run_as_non_root.rego", include_str!("../../policies/run_as_non_root.rego")),
    ("scan_passed.rego", include_str!("../../policies/scan_passed.rego")),
    ("secret_in_env.rego", include_str!("../../policies/secret_in_env.rego")),
    ("test_coverage.rego", include_str!("../../policies/test_coverage.rego")),
];

/// What each level asks for.
const LEVELS: &str = include_str!("../../policies/levels.yaml");

/// The rule of what the shipped rules cannot judge.
const READABLE: &str = "readable";

/// Why a bundle of a user does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct PolicyError {
    /// Bundle, file, and line where one is known: `team/no-latest.rego:7`.
    pub place: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl PolicyError {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }
}

/// What is to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// An object: an `McpServer`, a workload of Kubernetes, a compose file, or a Dockerfile as
    /// `perch policy check` reads it.
    pub object: &'a Value,
    /// How strictly.
    pub level: GovernanceLevel,
    /// Now, for what may not be too old.
    pub now: Timestamp,
    /// What registries say about its images. None where nobody can look: then no signature is asked
    /// for.
    pub images: Option<&'a Images>,
}

impl Subject<'_> {
    fn input(&self) -> regorus::Value {
        let mut given = json!({
            "level": level_name(self.level),
            "now": self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "object": null,
        });
        if let Some(images) = self.images {
            given["images"] = images::input(images);
        }
        engine::with_object(engine::input(&given), self.object)
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// Broken rules, the gravest first.
    pub violations: Vec<Violation>,
    /// Bundles that could not judge.
    pub faults: Vec<PolicyError>,
}

impl Judgement {
    /// Whether no rule is broken that the level insists on.
    #[must_use]
    pub fn is_compliant(&self) -> bool {
        self.violations.iter().all(|v| v.action != PolicyAction::Deny)
    }
}

/// The rules in force: the shipped ones, and those of users.
#[derive(Clone, Debug)]
pub struct Policies {
    shipped: Arc<Program>,
    /// Whether a level names somebody who signs.
    signed: bool,
    bundles: Vec<Arc<Program>>,
    refused: Vec<PolicyError>,
}

impl Policies {
    /// The shipped rules alone.
    ///
    /// # Panics
    /// Never: the tests compile them.
    #[must_use]
    pub fn shipped() -> Self {
        Self::new(&[])
    }

    /// The shipped rules and those of users. A bundle that is not good is left out, and told by
    /// [`Policies::refused`].
    ///
    /// # Panics
    /// Never: the tests compile the shipped rules.
    #[must_use]
    pub fn new(bundles: &[Bundle]) -> Self {
        let mut refused = Vec::new();
        let mut data = levels();
        if bundles.len() > bundle::MAX_BUNDLES {
            let message = format!("there are {} bundles, and at most {} count", bundles.len(), bundle::MAX_BUNDLES);
            refused.push(PolicyError::new(&bundles[bundle::MAX_BUNDLES].name, message));
        }
        let bundles = &bundles[..bundles.len().min(bundle::MAX_BUNDLES)];
        for bundle in bundles {
            match bundle.settings() {
                Ok(settings) => {
                    for settings in settings {
                        overlay(&mut data["perch"], settings);
                    }
                }
                Err(error) => refused.push(error),
            }
        }
        let files = SHIPPED.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let signed = images::any_signer(&data);
        let shipped = Program::compile("perch", &files, &data);
        let shipped = Arc::new(shipped.expect("the tests compile the shipped rules"));
        let lib = &files[0];
        let mut programs = Vec::new();
        for bundle in bundles.iter().filter(|b| b.has_modules()) {
            match bundle.compile(lib, &data) {
                Ok(program) => programs.push(Arc::new(program)),
                Err(error) => refused.push(error),
            }
        }
        Self { shipped, signed, bundles: programs, refused }
    }

    /// The bundles that do not count, and why.
    #[must_use]
    pub fn refused(&self) -> &[PolicyError] {
        &self.refused
    }

    /// How many bundles of users count.
    #[must_use]
    pub fn bundles(&self) -> usize {
        self.bundles.len()
    }

    /// The images about which registries must be asked before an object is judged, and the keys that
    /// may have signed each. Empty where the level asks for no signature.
    #[must_use]
    pub fn wanted(&self, subject: &Subject<'_>) -> Vec<Wanted> {
        // Most levels name nobody, and need not be asked.
        if !self.signed {
            return Vec::new();
        }
        // What cannot be read is not looked for, and then it is denied.
        self.shipped.wanted(&subject.input()).unwrap_or_default()
    }

    /// What is wrong with an object.
    #[must_use]
    pub fn judge(&self, subject: &Subject<'_>) -> Judgement {
        let input = subject.input();
        let mut judgement = Judgement::default();
        match self.shipped.run(&input) {
            Ok(found) => judgement.violations = found,
            Err(error) => judgement.violations.push(Violation {
                rule: READABLE.into(),
                severity: ViolationSeverity::High,
                action: PolicyAction::Deny,
                message: format!("the object cannot be judged: {}", error.message),
                field: String::new(),
                remedy: "make the object smaller".into(),
            }),
        }
        for bundle in &self.bundles {
            match bundle.run(&input) {
                Ok(found) => judgement.violations.extend(found),
                Err(error) => judgement.faults.push(error),
            }
        }
        let key = |v: &Violation| (v.action, v.severity, v.rule.clone(), v.field.clone(), v.message.clone());
        judgement.violations.sort_by_cached_key(key);
        judgement.violations.dedup();
        judgement
    }
}

/// `Low`, `Medium` or `High`.
#[must_use]
pub const fn level_name(level: GovernanceLevel) -> &'static str {
    match level {
        GovernanceLevel::Low => "Low",
        GovernanceLevel::Medium => "Medium",
        GovernanceLevel::High => "High",
    }
}

/// The shipped levels.
fn levels() -> Value {
    yaml(LEVELS).expect("the tests read the shipped levels")
}

/// One document of YAML, with its merge keys applied.
fn yaml(text: &str) -> Result<Value, serde_yaml_ng::Error> {
    let mut value = serde_yaml_ng::Value::deserialize(serde_yaml_ng::Deserializer::from_str(text))?;
    value.apply_merge()?;
    serde_yaml_ng::from_value(value)
}

/// Lays one tree over another, key by key; what is no object replaces.
fn overlay(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                overlay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

#[cfg(test)]
mod tests;
