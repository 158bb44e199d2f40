//! `perch status`.

use k8s_openapi::api::core::v1::Event;
use kube::{Api, ResourceExt, api::ListParams};

use super::{args::Status, client, exit::Failure};
use crate::api::mcp_server::McpServer;

/// Tells how servers are, and why.
pub async fn run(args: Status) -> Result<(), Failure> {
    let (_, client) = client::connect(&args.data_dir).await?;
    let api: Api<McpServer> = Api::namespaced(client.clone(), &args.namespace);
    let failed = |error: kube::Error| Failure::failed(client::explain(&error));
    let servers = match &args.name {
        Some(name) => vec![api.get(name).await.map_err(failed)?],
        None => api.list(&ListParams::default()).await.map_err(failed)?.items,
    };
    if servers.is_empty() {
        say!("No servers in namespace {}. Apply one: perch up --apply FILE, or kubectl apply -f FILE", args.namespace);
    }
    let events: Api<Event> = Api::namespaced(client, &args.namespace);
    for server in &servers {
        show(server);
        let about = ListParams::default().fields(&format!("involvedObject.name={}", server.name_any()));
        let mut found = events.list(&about).await.map_err(failed)?.items;
        found.sort_by_key(|e| e.event_time.as_ref().map(|t| t.0));
        for event in found.iter().rev().take(5).rev() {
            let (reason, message) = (event.reason.as_deref(), event.message.as_deref());
            say!("  event           {}: {}", reason.unwrap_or_default(), message.unwrap_or_default());
        }
    }
    Ok(())
}

fn show(server: &McpServer) {
    let status = server.status.clone().unwrap_or_default();
    let phase = status.phase.map_or_else(|| "Pending".to_owned(), |p| format!("{p:?}"));
    say!("{}  {phase}  {}/{} ready", server.name_any(), status.ready_replicas, server.spec.replicas);
    if let Some(url) = &status.url {
        say!("  url             {url}");
    }
    if let Some(info) = &status.server_info {
        let tools = status.tools.unwrap_or_default();
        say!(
            "  server          {} {}, {tools} tools, protocol {}",
            info.name,
            info.version,
            status.protocol_versions.join(", ")
        );
    }
    for condition in &status.conditions {
        say!("  {:<15} {:<5} {}: {}", condition.type_, condition.status, condition.reason, condition.message);
    }
    if let Some(failure) = &status.last_failure {
        let code = failure.exit_code.map(|c| format!(" (code {c})")).unwrap_or_default();
        say!("  last exit       {}{code} at {}, {} restarts", failure.reason, failure.at.0, status.restarts);
    }
}
