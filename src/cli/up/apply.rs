//! `--apply`: files and folders of YAML or JSON.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery::{self, Scope},
};
use serde::Deserialize;

use crate::cli::{client::explain, exit::Failure};

/// One object of a file.
#[derive(Debug)]
pub struct Document {
    /// File, and number of the document in it.
    place: String,
    object: DynamicObject,
}

/// Reads all documents. Nothing was started yet, so a mistake costs nothing.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    for path in paths {
        for file in files(path)? {
            let text = if file == Path::new("-") {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).map(|_| text)
            } else {
                fs::read_to_string(&file)
            };
            let text = text.map_err(|error| Failure::failed(format!("{} cannot be read: {error}", file.display())))?;
            documents.extend(parse(&file.display().to_string(), &text)?);
        }
    }
    Ok(documents)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries =
        fs::read_dir(path).map_err(|error| Failure::failed(format!("{} cannot be read: {error}", path.display())))?;
    let is_manifest = |p: &PathBuf| p.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|k| e == *k));
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(is_manifest).collect();
    files.sort();
    if files.is_empty() {
        return Err(Failure::failed(format!("{} holds no .yaml, .yml or .json file", path.display())));
    }
    Ok(files)
}

fn parse(file: &str, text: &str) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    // Editors on Windows mark UTF-8 so.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let place = format!("{file}, document {}", index + 1);
        let broken = |error: &dyn std::fmt::Display| Failure::failed(format!("{place} is not valid YAML: {error}"));
        // As a tree of YAML first: that refuses a key that is given twice.
        let value = serde_yaml_ng::Value::deserialize(document).map_err(|error| broken(&error))?;
        let mut value = serde_json::to_value(value).map_err(|error| broken(&error))?;
        if value.is_null() {
            continue;
        }
        let items = value.get_mut("items").map(serde_json::Value::take);
        match items {
            // What `kubectl get -o yaml` prints.
            Some(serde_json::Value::Array(items)) if value["kind"].as_str().is_some_and(|k| k.ends_with("List")) => {
                for (index, item) in items.into_iter().enumerate() {
                    documents.push(document_of(format!("{place}, item {}", index + 1), item)?);
                }
            }
            _ => documents.push(document_of(place, value)?),
        }
    }
    Ok(documents)
}

fn document_of(place: String, value: serde_json::Value) -> Result<Document, Failure> {
    let needs = "it needs apiVersion, kind and metadata.name";
    if !value.is_object() {
        return Err(Failure::failed(format!("{place} is not a Kubernetes object: {needs}")));
    }
    let object: DynamicObject = serde_json::from_value(value)
        .map_err(|error| Failure::failed(format!("{place} is not a Kubernetes object: {error}")))?;
    if object.types.is_none() || object.metadata.name.is_none() {
        return Err(Failure::failed(format!("{place} is not a Kubernetes object: {needs}")));
    }
    Ok(Document { place, object })
}

/// Applies all documents, and tells of every one that was refused.
pub async fn apply(client: &Client, documents: &[Document]) -> Result<(), Failure> {
    let mut refused = Vec::new();
    for document in documents {
        if let Err(message) = apply_one(client, &document.object).await {
            refused.push(format!("{}: {message}", document.place));
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(Failure::failed(refused.join("\nerror: "))) }
}

async fn apply_one(client: &Client, object: &DynamicObject) -> Result<(), String> {
    let types = object.types.clone().unwrap_or_default();
    let gvk = GroupVersionKind::try_from(&types).map_err(|error| error.to_string())?;
    let (resource, capabilities) = discovery::pinned_kind(client, &gvk)
        .await
        .map_err(|_| format!("kind {} of {} is not served here", types.kind, types.api_version))?;
    let api: Api<DynamicObject> = if capabilities.scope == Scope::Namespaced {
        let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
        Api::namespaced_with(client.clone(), namespace, &resource)
    } else {
        Api::all_with(client.clone(), &resource)
    };
    let name = object.metadata.name.clone().unwrap_or_default();
    let params = PatchParams::apply("perch-up").force().validation_strict();
    api.patch(&name, &params, &Patch::Apply(object)).await.map(|_| ()).map_err(|error| explain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, String> {
        let documents = parse("f", text).map_err(|error| error.to_string())?;
        Ok(documents.into_iter().map(|d| d.object.metadata.name.unwrap_or_default()).collect())
    }

    #[test]
    fn every_form_of_a_file_is_read() {
        let one = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
        assert_eq!(names(&format!("{}---\n# nothing\n---\n{}", one("a"), one("b"))).unwrap(), ["a", "b"]);
        assert_eq!(names(&format!("\u{feff}{}", one("a").replace('\n', "\r\n"))).unwrap(), ["a"]);
        let json = r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}]}"#;
        assert_eq!(names(json).unwrap(), ["s"]);
        assert!(names("").unwrap().is_empty());
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, expected) in [
            ("a: [", "f, document 1 is not valid YAML"),
            ("kind: X\nkind: Y", "duplicate entry with key \"kind\""),
            ("just text", "it needs apiVersion, kind and metadata.name"),
            ("[1]", "it needs apiVersion, kind and metadata.name"),
            ("kind: X", "it needs apiVersion, kind and metadata.name"),
            ("apiVersion: v1\nkind: List\nitems: [{}]", "f, document 1, item 1 is not"),
        ] {
            let error = names(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
