//! What a person needs next, once servers are up.

use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::{Map, json};

use crate::{
    api::mcp_server::{McpServer, McpServerStatus, Phase},
    cli::{
        client::explain,
        data_dir::{DataDir, Holder},
        exit::Failure,
        get,
    },
};

/// Prints the servers, the kubectl line to try, and the client configuration to paste.
pub async fn print(client: &Client, data: &DataDir, holder: &Holder) -> Result<(), Failure> {
    let api: Api<McpServer> = Api::all(client.clone());
    let servers = api.list(&ListParams::default()).await.map_err(|error| Failure::failed(explain(&error)))?.items;
    let kubeconfig = data.path("kubeconfig");
    let kubectl = format!("kubectl --kubeconfig {}", kubeconfig.display());
    say!("");
    if servers.is_empty() {
        say!("No servers yet. Apply one:\n  {kubectl} apply -f FILE\n\nCtrl-C stops perch.");
        return Ok(());
    }
    let mut table = get::plain();
    table.set_header(["SERVER", "PHASE", "TOOLS", "URL"]);
    for server in &servers {
        let status = server.status.clone().unwrap_or_default();
        table.add_row([
            format!("{}/{}", server.namespace().unwrap_or_default(), server.name_any()),
            status.phase.map(|p| format!("{p:?}")).unwrap_or_default(),
            status.tools.map(|t| t.to_string()).unwrap_or_default(),
            status.url.unwrap_or_default(),
        ]);
    }
    say!("{table}");
    for server in servers.iter().filter(|s| s.status.as_ref().is_some_and(|s| s.phase != Some(Phase::Ready))) {
        if let Some(condition) = server.status.as_ref().and_then(McpServerStatus::headline) {
            say!("\n{} is not ready: {}: {}", server.name_any(), condition.reason, condition.message);
        }
    }
    say!("\nLook at them:\n  {kubectl} get mcpservers -w");
    say!("\nGive them to an AI client (Claude Code, Cursor and others; VS Code calls the outer key \"servers\"):");
    say!("{:#}", clients(&servers, holder));
    say!("\nCtrl-C stops perch; `perch down` removes what it made.");
    Ok(())
}

fn clients(servers: &[McpServer], holder: &Holder) -> serde_json::Value {
    let mut entries = Map::new();
    for server in servers {
        let (namespace, name) = (server.namespace().unwrap_or_default(), server.name_any());
        let key = if entries.contains_key(&name) { format!("{namespace}-{name}") } else { name.clone() };
        entries.insert(key, json!({"type": "http", "url": format!("{}/{namespace}/{name}/mcp", holder.gateway)}));
    }
    json!({"mcpServers": entries})
}
