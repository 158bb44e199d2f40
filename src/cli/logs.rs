//! `perch logs`.

use std::io::Write;

use futures::StreamExt;
use jiff::Timestamp;
use kube::Api;

use super::{args::Logs, client, exit::Failure, machine};
use crate::{
    api::mcp_server::{McpServer, RuntimeKind},
    names::ServerKey,
    runtime::{Backend, LogOptions, docker::DockerBackend, process::ProcessBackend},
};

/// Shows what a server wrote.
pub async fn run(args: Logs) -> Result<(), Failure> {
    let since = match &args.since {
        Some(text) => Some(ago(text)?),
        None => None,
    };
    let (data, client) = client::connect(&args.data_dir).await?;
    let api: Api<McpServer> = Api::namespaced(client, &args.namespace);
    let server = api.get(&args.name).await.map_err(|error| Failure::failed(client::explain(&error)))?;
    let failed = |error: crate::runtime::RuntimeError| Failure::failed(error.to_string());
    let backend: Box<dyn Backend> = match server.status.and_then(|s| s.runtime) {
        Some(RuntimeKind::Docker) => {
            let config = machine::docker_config(&data, "", "")?;
            Box::new(DockerBackend::reader(config).await.map_err(failed)?)
        }
        Some(RuntimeKind::Remote) => {
            return Err(Failure::failed(format!("{} runs elsewhere: its logs are there", args.name)));
        }
        Some(RuntimeKind::Kubernetes) => {
            return Err(Failure::failed(format!(
                "{} runs as pods: use `kubectl logs -n {} -l perch.dev/server={}`",
                args.name, args.namespace, args.name
            )));
        }
        Some(RuntimeKind::Process) | None => Box::new(ProcessBackend::reader(machine::process_config(&data)?)),
    };
    let options = LogOptions { tail: args.tail, since, follow: args.follow };
    let key = ServerKey::new(args.namespace, args.name);
    let mut lines = backend.logs(&key, options).await.map_err(failed)?;
    let mut out = std::io::stdout();
    while let Some(line) = lines.next().await {
        // The reader went away, as with `| head`: that is its right.
        if writeln!(out, "{}", line.text).is_err() {
            break;
        }
    }
    Ok(())
}

fn ago(text: &str) -> Result<Timestamp, Failure> {
    let bad = || Failure::usage(format!("--since {text:?} is not a duration: write it like 30s, 5m or 1h30m"));
    let duration: jiff::SignedDuration = text.parse().map_err(|_| bad())?;
    Timestamp::now().checked_sub(duration).map_err(|_| bad())
}
