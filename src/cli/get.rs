//! `perch get`.

use comfy_table::{Table, presets};
use http::{Request, header};
use serde_json::Value;

use super::{
    args::{Get, Output},
    client,
    exit::Failure,
};

/// Lists servers, or shows one.
pub async fn run(args: Get) -> Result<(), Failure> {
    let (_, client) = client::connect(&args.data_dir).await?;
    let mut path = "/apis/perch.dev/v1alpha1".to_owned();
    if !args.all_namespaces {
        path = format!("{path}/namespaces/{}", args.namespace);
    }
    path.push_str("/mcpservers");
    if let Some(name) = &args.name {
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
        Output::Table | Output::Wide => print(&answer, args.all_namespaces, args.output == Output::Wide),
    }
    Ok(())
}

/// Prints a `Table` of the API as kubectl does.
fn print(answer: &Value, namespaces: bool, wide: bool) {
    let rows = answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        say!("No servers found. Apply one: perch up --apply FILE, or kubectl apply -f FILE");
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
