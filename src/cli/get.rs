//! `perch get`.

use comfy_table::{Table, presets};
use http::{Request, header};
use serde_json::Value;

use super::{
    args::{Get, Output},
    client,
    exit::Failure,
};

/// What is shown, by the names that kubectl has for it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Servers,
    Toolboxes,
}

impl Kind {
    fn named(name: &str) -> Option<Self> {
        match name {
            "server" | "servers" | "mcpserver" | "mcpservers" | "mcps" => Some(Self::Servers),
            "toolbox" | "toolboxes" | "mcptoolbox" | "mcptoolboxes" | "mcpt" => Some(Self::Toolboxes),
            _ => None,
        }
    }

    /// A kind and a name from what somebody wrote. One word that is no kind is the name of a server.
    fn of(what: &[String]) -> Result<(Self, Option<&String>), Failure> {
        match what {
            [] => Ok((Self::Servers, None)),
            [word] => Ok(Self::named(word).map_or((Self::Servers, Some(word)), |kind| (kind, None))),
            [kind, name, ..] => match Self::named(kind) {
                Some(found) => Ok((found, Some(name))),
                None => Err(Failure::usage(format!("{kind:?} is no kind: write `servers` or `toolboxes`"))),
            },
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Servers => "mcpservers",
            Self::Toolboxes => "mcptoolboxes",
        }
    }

    fn none(self) -> &'static str {
        match self {
            Self::Servers => "No servers found. Apply one: perch up --apply FILE, or kubectl apply -f FILE",
            Self::Toolboxes => "No toolboxes found. Apply one: kubectl apply -f FILE",
        }
    }
}

/// Lists servers or toolboxes, or shows one.
pub async fn run(args: Get) -> Result<(), Failure> {
    let (kind, name) = Kind::of(&args.what)?;
    if name.is_some() && args.all_namespaces {
        return Err(Failure::usage("a name is one of a namespace: leave out --all-namespaces, or the name"));
    }
    let (_, client) = client::connect(&args.data_dir).await?;
    let mut path = "/apis/perch.dev/v1alpha1".to_owned();
    if !args.all_namespaces {
        path = format!("{path}/namespaces/{}", args.namespace);
    }
    path = format!("{path}/{}", kind.plural());
    if let Some(name) = name {
        path = format!("{path}/{name}");
    }
    let table = matches!(args.output, Output::Table | Output::Wide);
    let accept = if table { "application/json;as=Table;v=v1;g=meta.k8s.io" } else { "application/json" };
    let request = Request::get(&path).header(header::ACCEPT, accept).body(Vec::new());
    let request = request.map_err(|error| Failure::usage(format!("{path}: {error}")))?;
    let answer: Value = client.request(request).await.map_err(|error| Failure::failed(client::explain(&error)))?;
    match args.output {
        Output::Json => say!("{answer:#}"),
        Output::Yaml => {
            let yaml = serde_yaml_ng::to_string(&answer).map_err(|error| Failure::failed(error.to_string()))?;
            say!("{}", yaml.trim_end());
        }
        Output::Table | Output::Wide => print(kind, &answer, args.all_namespaces, args.output == Output::Wide),
    }
    Ok(())
}

/// Prints a `Table` of the API as kubectl does.
fn print(kind: Kind, answer: &Value, namespaces: bool, wide: bool) {
    let rows = answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        say!("{}", kind.none());
        return;
    }
    let columns = answer["columnDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown: Vec<usize> = (0..columns.len()).filter(|i| wide || columns[*i]["priority"] == 0).collect();
    let mut table = plain();
    let names = shown.iter().map(|i| columns[*i]["name"].as_str().unwrap_or_default().to_uppercase());
    table.set_header(namespaces.then(|| "NAMESPACE".to_owned()).into_iter().chain(names).collect::<Vec<_>>());
    for row in rows {
        let namespace = row["object"]["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let cells = shown.iter().map(|i| match &row["cells"][*i] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        table.add_row(namespaces.then_some(namespace).into_iter().chain(cells).collect::<Vec<_>>());
    }
    say!("{table}");
}

/// A table without lines.
pub fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_kind_or_the_name_of_a_server() {
        let of = |what: &[&str]| {
            let what: Vec<String> = what.iter().map(ToString::to_string).collect();
            Kind::of(&what).map(|(kind, name)| (kind, name.cloned())).ok()
        };
        let named = |kind, name: &str| Some((kind, Some(name.to_owned())));
        assert_eq!(of(&[]), Some((Kind::Servers, None)));
        assert_eq!(of(&["a"]), named(Kind::Servers, "a"));
        assert_eq!(of(&["toolboxes"]), Some((Kind::Toolboxes, None)));
        assert_eq!(of(&["mcpt", "dev"]), named(Kind::Toolboxes, "dev"));
        assert_eq!(of(&["servers", "toolboxes"]), named(Kind::Servers, "toolboxes"));
        assert_eq!(of(&["a", "b"]), None);
    }
}
