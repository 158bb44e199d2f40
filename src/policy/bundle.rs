//! Modules and settings of users: what is taken, and what is refused with its place.

use serde::Deserialize;
use serde_json::Value;

use super::{PolicyError, Program, signature::PublicKey, source, yaml};

/// Most bundles that count.
pub(super) const MAX_BUNDLES: usize = 32;
/// Largest file, in bytes.
const MAX_FILE: usize = 64 << 10;
/// Largest bundle, in bytes.
const MAX_BUNDLE: usize = 256 << 10;

/// Modules that are compiled and run together: a ConfigMap, or a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Its name in messages: `namespace/name` of the ConfigMap, or the path.
    pub name: String,
    /// Its files.
    pub files: Vec<File>,
}

/// A file of a bundle: a module (`.rego`), or settings (`settings.yaml`). Others are passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// What a `settings.yaml` may say; it is laid over `policies/levels.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    levels: std::collections::BTreeMap<LevelName, Level>,
}

#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
enum LevelName {
    Low,
    Medium,
    High,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Level {
    #[serde(default)]
    #[expect(dead_code, reason = "read only to check the form")]
    rules: std::collections::BTreeMap<String, Asked>,
    #[serde(default)]
    parameters: Parameters,
}

/// What a level does about a rule. `Off` takes it away.
#[derive(Deserialize)]
enum Asked {
    Deny,
    Warn,
    Off,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Parameters {
    allowed_registries: Vec<String>,
    allowed_capabilities: Vec<String>,
    review_max_age_days: u32,
    scan_max_age_days: u32,
    scan_max_critical: u32,
    scan_max_high: u32,
    test_coverage_min: f64,
    network_tiers: Vec<crate::api::mcp_server::NetworkTier>,
    image_signers: Vec<Signer>,
}

/// Who signs which images.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signer {
    #[expect(dead_code, reason = "read only to check the form")]
    images: Vec<String>,
    key: String,
}

/// Whether a file of this name is a module.
#[must_use]
pub fn is_module(name: &str) -> bool {
    std::path::Path::new(name).extension().is_some_and(|e| e == "rego")
}

/// Whether a file of this name holds settings.
#[must_use]
pub fn is_settings(name: &str) -> bool {
    ["settings.yaml", "settings.json"].contains(&name)
}

impl Bundle {
    /// Whether it has modules.
    pub(super) fn has_modules(&self) -> bool {
        self.modules().next().is_some()
    }

    fn modules(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|f| is_module(&f.name) && !f.name.ends_with("_test.rego"))
    }

    fn place(&self, file: &File) -> String {
        format!("{}/{}", self.name, file.name)
    }

    fn check_size(&self) -> Result<(), PolicyError> {
        let total: usize = self.files.iter().map(|f| f.text.len()).sum();
        if let Some(file) = self.files.iter().find(|f| f.text.len() > MAX_FILE) {
            let message = format!("the file has {} bytes, and the most is {MAX_FILE}: split it", file.text.len());
            return Err(PolicyError::new(self.place(file), message));
        }
        if total > MAX_BUNDLE {
            let message = format!("its files have {total} bytes together, and the most is {MAX_BUNDLE}: split it");
            return Err(PolicyError::new(&self.name, message));
        }
        Ok(())
    }

    /// What is to be laid over the shipped levels.
    pub(super) fn settings(&self) -> Result<Vec<Value>, PolicyError> {
        let mut all = Vec::new();
        for file in self.files.iter().filter(|f| is_settings(&f.name)) {
            self.check_size()?;
            let broken = |error: serde_yaml_ng::Error| PolicyError::new(self.place(file), error.to_string());
            let mut value = yaml(&file.text).map_err(broken)?;
            let settings = serde_yaml_ng::from_str::<Settings>(&file.text).map_err(broken)?;
            for signer in settings.levels.values().flat_map(|level| &level.parameters.image_signers) {
                PublicKey::parse(&signer.key)
                    .map_err(|error| PolicyError::new(self.place(file), format!("in imageSigners: {error}")))?;
            }
            remove_off(&mut value);
            all.push(value);
        }
        Ok(all)
    }

    /// Compiles the modules.
    pub(super) fn compile(&self, lib: &(String, String), data: &Value) -> Result<Program, PolicyError> {
        self.check_size()?;
        for file in self.modules() {
            source::check(&file.text)
                .map_err(|(line, why)| PolicyError::new(format!("{}:{line}", self.place(file)), why))?;
        }
        let mut files = vec![lib.clone()];
        files.extend(self.modules().map(|f| (self.place(f), f.text.clone())));
        Program::bundle(&self.name, &files, data)
    }
}

/// `Off` means no action at all, which the rules see as an absent one.
fn remove_off(settings: &mut Value) {
    let levels = settings.get_mut("levels").and_then(Value::as_object_mut);
    for level in levels.into_iter().flat_map(|levels| levels.values_mut()) {
        let rules = level.get_mut("rules").and_then(Value::as_object_mut);
        for action in rules.into_iter().flat_map(|rules| rules.values_mut()).filter(|a| **a == "Off") {
            *action = Value::Bool(false);
        }
    }
}
