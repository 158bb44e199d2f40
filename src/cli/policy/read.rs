//! Files that are checked: what kind each is, and where in it each object stands.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{cli::exit::Failure, policy::dockerfile};

/// Largest file that is read.
const LIMIT: u64 = 32 << 20;

/// An object of a file.
pub struct Document {
    /// The file.
    pub file: String,
    /// Line where the object begins.
    pub line: usize,
    /// Kind and name, for people.
    pub what: String,
    /// The object.
    pub object: Value,
}

/// Reads everything that can be judged.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    for path in paths {
        for file in files(path, true)? {
            let name = file.display().to_string();
            let text = text(&file).map_err(|error| Failure::usage(format!("{name} cannot be read: {error}")))?;
            if is_dockerfile(&file) {
                let object = dockerfile::read(&name, &text).map_err(|error| Failure::usage(error.to_string()))?;
                documents.push(Document { what: "Dockerfile".into(), file: name, line: 1, object });
            } else {
                documents.extend(yaml(&name, &text)?);
            }
        }
    }
    Ok(documents)
}

/// What a file holds; `-` is standard input.
pub fn text(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(LIMIT + 1).read_to_string(&mut text)?;
    } else {
        fs::File::open(file)?.take(LIMIT + 1).read_to_string(&mut text)?;
    }
    if text.len() as u64 > LIMIT {
        return Err(std::io::Error::other(format!("it is larger than {LIMIT} bytes")));
    }
    Ok(text)
}

/// The files of a folder, and of the folders in it.
fn files(path: &Path, named: bool) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        let counts = named || is_dockerfile(path) || is_yaml(path);
        return Ok(if counts { vec![path.to_owned()] } else { Vec::new() });
    }
    let failed = |error: std::io::Error| Failure::usage(format!("{} cannot be read: {error}", path.display()));
    let mut entries = fs::read_dir(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::path);
    let mut found = Vec::new();
    for entry in entries {
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        // Links could lead in a circle.
        let link = entry.file_type().is_ok_and(|t| t.is_symlink());
        let circle = link && entry.path().is_dir();
        if !hidden && !circle {
            found.extend(files(&entry.path(), false)?);
        }
    }
    if named && found.is_empty() {
        return Err(Failure::usage(format!("{} holds no YAML, JSON or Dockerfile", path.display())));
    }
    Ok(found)
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|k| e.eq_ignore_ascii_case(k)))
}

fn is_dockerfile(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    ["dockerfile", "containerfile"]
        .iter()
        .any(|w| name == *w || name.starts_with(&format!("{w}.")) || name.ends_with(&format!(".{w}")))
}

fn yaml(file: &str, text: &str) -> Result<Vec<Document>, Failure> {
    // Editors on Windows mark UTF-8 so.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    for (line, part) in parts(text) {
        let broken = |error: serde_yaml_ng::Error| {
            let at = error.location().map_or(line, |l| line + l.line() - 1);
            Failure::usage(format!("{file}:{at} is not valid YAML: {error}"))
        };
        for document in serde_yaml_ng::Deserializer::from_str(part) {
            let mut value = serde_yaml_ng::Value::deserialize(document).map_err(broken)?;
            value.apply_merge().map_err(broken)?;
            let value: Value = serde_yaml_ng::from_value(value).map_err(broken)?;
            push(&mut documents, file, line, value);
        }
    }
    Ok(documents)
}

/// The documents of a stream, each with the line it begins at. Only lines that are `---`, or begin
/// so before a blank, part them.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let (mut parts, mut begin, mut first) = (Vec::new(), 0, 1);
    let mut at = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if index > 0 && line.starts_with("---") && line[3..].starts_with([' ', '\t', '\r', '\n']) {
            parts.push((first, &text[begin..at]));
            (begin, first) = (at, index + 1);
        }
        at += line.len();
    }
    parts.push((first, &text[begin..]));
    parts
}

/// Keeps an object, or those of a list. What is no object of Kubernetes or compose is passed over.
fn push(documents: &mut Vec<Document>, file: &str, line: usize, mut value: Value) {
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    if kind.ends_with("List") && value["items"].is_array() {
        for item in value["items"].as_array_mut().into_iter().flatten() {
            push(documents, file, line, item.take());
        }
        return;
    }
    let what = if kind.is_empty() {
        if !value["services"].is_object() {
            return;
        }
        "compose file".to_owned()
    } else {
        match value["metadata"]["name"].as_str() {
            Some(name) => format!("{kind} {name}"),
            None => kind,
        }
    };
    documents.push(Document { file: file.to_owned(), line, what, object: value });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_know_their_lines() {
        let text = "# Source: a\nkind: A\nmetadata: {name: x}\n---\n# nothing\n---\nkind: List\nitems:\n- {kind: B}\n- {kind: C}\n---\ndata: |\n  ---x\nkind: D\n";
        let found: Vec<_> = yaml("f", text).unwrap_or_default().into_iter().map(|d| (d.line, d.what)).collect();
        let wanted = [(1, "A x"), (6, "B"), (6, "C"), (11, "D")].map(|(line, what)| (line, what.to_owned()));
        assert_eq!(found, wanted);
        assert!(yaml("f", "services: {web: {image: x}}").unwrap_or_default()[0].what.contains("compose"));
        assert!(yaml("f", "replicaCount: 1").unwrap_or_default().is_empty(), "values of a chart are no objects");
        let Err(error) = yaml("f", "kind: A\n---\na: b\n  c: d: e\n") else { panic!("it is broken") };
        assert!(error.to_string().starts_with("f:4 "), "{error}");
    }

    #[test]
    fn names_of_dockerfiles() {
        for name in ["Dockerfile", "x/Dockerfile.dev", "web.dockerfile", "Containerfile"] {
            assert!(is_dockerfile(Path::new(name)), "{name}");
        }
        assert!(!is_dockerfile(Path::new("Dockerfile-notes.md")));
    }
}
