//! `perch report`: each server with its owner, how much it is used, how safe it is, and what should be
//! done about it. Nothing is done by itself.

pub mod args;
mod row;

use jiff::Timestamp;
use kube::{Api, ResourceExt, api::ListParams};

use self::{
    args::{Output, Report},
    row::Row,
};
use super::{client, exit::Failure, get};
use crate::api::mcp_server::McpServer;

/// Prints the report.
pub async fn run(args: Report) -> Result<(), Failure> {
    let (client, _) = client::anywhere(&args.plane).await?;
    let api: Api<McpServer> = match &args.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let listed = api.list(&ListParams::default()).await;
    let mut servers = listed.map_err(|error| Failure::failed(client::explain(&error)))?.items;
    servers.sort_by_key(|server| (server.namespace(), server.name_any()));
    let now = Timestamp::now();
    let mut rows: Vec<Row> = servers.iter().map(|server| Row::of(server, now)).collect();
    rows.retain(|row| !args.recommended || !row.life.recommendations.is_empty());
    match args.output {
        Output::Table => table(&rows, now),
        Output::Json => {
            let text = serde_json::to_string_pretty(&rows).map_err(|error| Failure::failed(error.to_string()))?;
            say!("{text}");
        }
        Output::Csv => {
            row::csv(&rows, std::io::stdout()).map_err(|error| Failure::failed(format!("cannot write: {error}")))?;
        }
        Output::Markdown => say!("{}", row::markdown(&rows, now)),
    }
    Ok(())
}

fn table(rows: &[Row], now: Timestamp) {
    if rows.is_empty() {
        say!("No servers to report on.");
        return;
    }
    let mut table = get::plain();
    table.set_header(row::HEADER);
    for row in rows {
        table.add_row(row.cells(now));
    }
    say!("{table}");
    for row in rows.iter().filter(|row| !row.life.recommendations.is_empty()) {
        say!("\n{}/{}", row.namespace, row.name);
        for recommendation in &row.life.recommendations {
            say!("  {}: {}", recommendation.reason, recommendation.message);
        }
    }
}
