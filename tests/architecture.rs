//! The layer rule: a module imports only from layers below its own. The table that states the
//! layers is the one in the documentation of `src/lib.rs`.

use std::{collections::HashMap, fs, path::Path};

use syn::{UseTree, visit::Visit};
use walkdir::WalkDir;

/// Layer of each top-level module.
fn layers() -> HashMap<String, u8> {
    let text = fs::read_to_string("src/lib.rs").unwrap();
    let table = text.split("```layers").nth(1).unwrap().split("```").next().unwrap();
    let mut layers = HashMap::new();
    for line in table.lines().map(|l| l.trim_start_matches("//!").trim()).filter(|l| !l.is_empty()) {
        let mut words = line.split_whitespace();
        let layer = words.next().unwrap().trim_start_matches('L').parse().unwrap();
        layers.extend(words.map(|module| (module.to_owned(), layer)));
    }
    layers
}

#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl Paths {
    fn tree(&mut self, prefix: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            UseTree::Name(name) => self.0.push(with(&name.ident)),
            UseTree::Rename(rename) => self.0.push(with(&rename.ident)),
            UseTree::Glob(_) => self.0.push(prefix.to_vec()),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(prefix, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.push(path.segments.iter().map(|s| s.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }
}

/// The imports of a source that break the rule for `module`.
fn violations(module: &str, source: &str, layers: &HashMap<String, u8>) -> Vec<String> {
    let mut paths = Paths::default();
    paths.visit_file(&syn::parse_file(source).unwrap());
    let own = layers[module];
    let imported = paths.0.iter().filter(|p| p.len() > 1 && p[0] == "crate").map(|p| p[1].clone());
    let mut bad: Vec<String> = imported
        .filter(|other| other != module)
        .filter(|other| layers.get(other).is_none_or(|layer| *layer >= own))
        .map(|other| format!("{module} imports {other}"))
        .collect();
    bad.sort();
    bad.dedup();
    bad
}

fn sources() -> Vec<(String, String, String)> {
    let files = WalkDir::new("src")
        .into_iter()
        .filter_map(Result::ok)
        .filter(|e| e.path().extension().is_some_and(|x| x == "rs"));
    files
        .filter(|e| !matches!(e.file_name().to_str(), Some("lib.rs" | "main.rs")) || e.depth() > 1)
        .map(|e| {
            let relative = e.path().strip_prefix("src").unwrap();
            let module = relative.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
            (module, e.path().display().to_string(), fs::read_to_string(e.path()).unwrap())
        })
        .collect()
}

#[test]
fn modules_import_only_lower_layers() {
    let layers = layers();
    let bad: Vec<String> = sources()
        .iter()
        .flat_map(|(module, path, source)| {
            violations(module, source, &layers).into_iter().map(move |v| format!("{path}: {v}"))
        })
        .collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn every_module_has_a_layer() {
    let layers = layers();
    for (module, path, _) in sources() {
        assert!(layers.contains_key(&module), "{path} is in no layer");
    }
    for module in layers.keys() {
        assert!(
            Path::new(&format!("src/{module}")).exists() || Path::new(&format!("src/{module}.rs")).exists(),
            "{module} does not exist"
        );
    }
}

#[test]
fn decisions_know_no_clock_and_no_chance() {
    for (module, path, source) in sources() {
        if ["api", "canary", "routing", "lifecycle"].contains(&module.as_str()) && !path.contains("tests") {
            let code = source.split("#[cfg(test)]").next().unwrap();
            for word in ["Timestamp::now", "SystemTime", "Instant::now", "rand::", "tokio::", "std::fs", "std::net"] {
                assert!(!code.contains(word), "{path} uses {word}");
            }
        }
    }
}

#[test]
fn the_rule_catches_what_breaks_it() {
    let layers = layers();
    assert_eq!(violations("gateway", "use crate::controllers::x;", &layers), ["gateway imports controllers"]);
    assert_eq!(violations("api", "use crate::{names::A, runtime::{B, C as D}};", &layers), ["api imports runtime"]);
    assert_eq!(violations("routing", "fn f() { crate::gateway::run(); }", &layers), ["routing imports gateway"]);
    assert!(violations("gateway", "use crate::{routing::X, runtime::Y, gateway::z};", &layers).is_empty());
}
